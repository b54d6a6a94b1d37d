"""All promises put to one optimizer, in processes of their own: a crash or a hang is a verdict like others."""

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import IO, Any

from fallline.bench.check.child import read_subject
from fallline.bench.check.limits import Limits, Tree
from fallline.bench.check.promises import PROMISES
from fallline.bench.check.promises._promise import Promise
from fallline.bench.check.subject import Loss, Subject, get_subject
from fallline.bench.check.trial import READY, SUBJECT, Outcome, Verdict

START = 120.0
"""Seconds that a process may take to import torch, before the time of its first promise counts."""

LOOK = 0.05
"""Seconds between two looks at what the processes take."""

LINE = 2**16
"""Bytes that an answer may have."""


def described(name: str, settings: Mapping[str, Any], loss: Loss | None, limits: Limits) -> Subject:
    """The optimizer that a name stands for, imported and made in another process if it is a stranger's.

    Raises:
        ValueError: in a sentence, why there is no such optimizer, or why it cannot be made.
    """
    if ":" not in name and not name.endswith(".py"):
        return get_subject(name, settings, loss)
    with Children({"describe": [name, settings, loss]}, 1) as children:
        (said,) = children.answers(SUBJECT, limits)
    if "subject" in said:
        return read_subject(said["subject"])
    raise ValueError(said.get("error") or f"{name} cannot be made: {said['reason']}")


def check(
    subject: Subject,
    promises: Sequence[Promise] = tuple(PROMISES.values()),
    excuses: Mapping[str, str] | None = None,
    limits: Limits | None = None,
    on_verdict: Callable[[Verdict], None] = lambda verdict: None,
) -> list[Verdict]:
    """Put an optimizer to promises.

    Args:
        subject: which optimizer.
        promises: which promises.
        excuses: for promises by full name, why they may be broken; one that is kept nevertheless is said to hold.
        limits: what each may take.
        on_verdict: called with each verdict at once.

    Returns:
        A verdict on each promise, in the order of `promises`.
    """
    verdicts: dict[str, Verdict] = {}
    excuses, limits = excuses or {}, limits or Limits()
    for ranks in sorted({one.ranks for one in promises}):
        todo = [one.path for one in promises if one.ranks == ranks]
        while todo:
            job = {"subject": asdict(subject), "promises": todo, "ports": [free_port() for _ in todo]}
            with Children(job, ranks) as children:
                for path in list(todo):
                    verdict = children.verdict(path, limits)
                    if verdict.broken and path in excuses:
                        verdict = replace(verdict, outcome=Outcome.excused, reason=excuses[path])
                    verdicts[path] = verdict
                    on_verdict(verdict)
                    if children.spoilt:
                        break
            todo = [path for path in todo if path not in verdicts]
    return [verdicts[one.path] for one in promises]


class Children:
    """So many processes that do a job side by side; a context manager that ends them, and all that they started."""

    spoilt = False
    """Whether one has ended, was ended, or fell out of step with the others: new ones must take over."""

    ready = 0
    """How many have imported torch and begun."""

    def __init__(self, job: Mapping[str, Any], ranks: int) -> None:
        self.tree = Tree()
        self.listeners: list[Listener] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        for rank in range(ranks):
            about = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1"}
            about |= {"PYTHONPATH": search_path(), self.tree.variable: self.tree.value}
            process = subprocess.Popen(
                # A shell between the two is the parent that an optimizer can end.
                ["/bin/sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-m", "fallline.bench.check.child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, **{name: str(value) for name, value in about.items()}},
                start_new_session=True,
            )
            self.tree.add(process.pid)
            self.processes.append(process)
            self.listeners.append(Listener(process))
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it ended at once: its silence will tell
                process.stdin.write(json.dumps(job).encode() + b"\n")
                process.stdin.flush()

    def verdict(self, path: str, limits: Limits) -> Verdict:
        """What the processes say of a promise together: the first that does not hold, else the first of all."""
        said = self.answers(path, limits)
        wrong = [one for one in said if one["outcome"] != Outcome.holds]
        one = (wrong or said)[0]
        return Verdict(**{**one, "outcome": Outcome(one["outcome"])})

    def answers(self, path: str, limits: Limits) -> list[dict[str, Any]]:
        """What each process says of a promise, or the one that has ended, was ended, or does not keep it."""
        found: dict[int, dict[str, Any]] = {}
        start, look = time.monotonic(), 0.0
        while len(found) < len(self.processes):
            for rank in range(len(self.processes)):
                if rank in found:
                    continue
                said = self.listeners[rank].next(0.01)
                if said == READY:
                    self.ready += 1
                    start = time.monotonic()
                elif isinstance(said, dict) and said.get("promise") == path:
                    found[rank] = said
                    if len(self.processes) > 1 and said["outcome"] != Outcome.holds:
                        self.spoilt = True  # the others may wait for it in vain
                        return [said]
                elif said is None and self.processes[rank].poll() is not None and self.listeners[rank].empty():
                    return self.failed(path, self.last_words(rank))
            if (now := time.monotonic()) > look:
                look = now + LOOK
                if met := self.exceeds(limits, now - start):
                    return self.failed(path, met)
        self.spoilt = any((process.poll() or 0) < 0 for process in self.processes)  # a parent that the optimizer ended
        return [found[rank] for rank in sorted(found)]

    def exceeds(self, limits: Limits, seconds: float) -> str | None:
        """Which limit is exceeded now, in words."""
        begun = self.ready == len(self.processes)  # a promise's own time does not run while torch is imported
        if seconds > (most := limits.seconds if begun else START):
            return f"it had not ended after {most:g} seconds"
        if any(one.size > limits.output for one in self.listeners):
            return f"it was ended when it had printed more than {limits.output / 2**20:.3g} MiB"
        return self.tree.exceeds(limits)

    def failed(self, path: str, reason: str) -> list[dict[str, Any]]:
        """A promise that was broken by what its process did."""
        self.spoilt = True
        return [{"promise": path, "outcome": Outcome.fails, "reason": reason}]

    def last_words(self, rank: int) -> str:
        """Why a process has ended."""
        code = self.processes[rank].wait()
        if code < 0:
            return f"the process that had started it was ended by {signal_name(-code)}"
        if code > 128 and (name := signal_name(code - 128)):  # so a shell says it
            return f"its process was ended by {name}"
        said = self.listeners[rank].complaint()
        return f"its process ended with status {code}" + (f": {said}" if said else "")

    def __enter__(self) -> "Children":
        return self

    def __exit__(self, *_: Any) -> None:
        self.tree.end()
        for process in self.processes:
            process.wait()
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()


class Listener:
    """Reads what a process writes, and keeps its answers, the end of what else it said, and how much it was."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.size = 0
        self._said: queue.Queue[Any] = queue.Queue()
        self._rest = b""
        assert process.stdout is not None
        assert process.stderr is not None
        self._threads = [
            threading.Thread(target=read, args=(stream,), daemon=True)
            for read, stream in ((self._answers, process.stdout), (self._complaints, process.stderr))
        ]
        for thread in self._threads:
            thread.start()

    def next(self, seconds: float) -> Any:
        """The next answer, or None if there is none for so long."""
        try:
            return self._said.get(timeout=seconds)
        except queue.Empty:
            return None

    def empty(self) -> bool:
        """Whether no answer will come any more. What outlives the process may keep its streams open: wait a second."""
        self._threads[0].join(1.0)
        return self._said.empty()

    def complaint(self) -> str:
        """The last line of what it printed."""
        self._threads[1].join(1.0)
        lines = [line.strip() for line in self._rest.decode(errors="replace").splitlines()]
        return next((line[:300] for line in reversed(lines) if line), "")

    def _answers(self, stream: IO[bytes]) -> None:
        with stream, contextlib.suppress(OSError, ValueError):
            while line := stream.readline(LINE):
                if line.strip() == READY.encode():
                    self._said.put(READY)
                    continue
                try:
                    self._said.put(json.loads(line))
                except ValueError:  # not ours: the optimizer writes where it should not
                    self.size += len(line)

    def _complaints(self, stream: IO[bytes]) -> None:
        with stream, contextlib.suppress(OSError, ValueError):
            while said := os.read(stream.fileno(), LINE):
                self.size += len(said)
                self._rest = (self._rest + said)[-LINE:]


def signal_name(number: int) -> str:
    """The name of a signal; nothing if there is none of that number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return ""


def free_port() -> int:
    """A port at which nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def search_path() -> str:
    """Where this process looks for modules, for another to look there too."""
    return os.pathsep.join(path for path in sys.path if path)
