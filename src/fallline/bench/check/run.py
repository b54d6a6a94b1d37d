"""All promises put to one optimizer, in processes of their own: a crash or a hang is a verdict like others."""

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import IO, Any

from fallline.bench.check.promise import Promise
from fallline.bench.check.promises import PROMISES
from fallline.bench.check.subject import Subject
from fallline.bench.check.trial import READY, Outcome, Verdict

START = 120.0
"""Seconds that a process may take to import torch, before the time of its first promise counts."""


def check(
    subject: Subject,
    promises: Sequence[Promise] = tuple(PROMISES.values()),
    excuses: Mapping[str, str] | None = None,
    timeout: float = 60.0,
    heard: Callable[[Verdict], None] = lambda verdict: None,
) -> list[Verdict]:
    """Put an optimizer to promises.

    Args:
        subject: which optimizer.
        promises: which promises.
        excuses: for promises by full name, why they may be broken; one that is kept nevertheless is said to hold.
        timeout: seconds that each may take.
        heard: told of each verdict at once.

    Returns:
        A verdict on each promise, in the order of `promises`.
    """
    verdicts: dict[str, Verdict] = {}
    excuses = excuses or {}
    for ranks in sorted({one.ranks for one in promises}):
        todo = [one.path for one in promises if one.ranks == ranks]
        while todo:
            with Children(subject, todo, ranks) as children:
                for path in list(todo):
                    verdict = children.verdict(path, timeout)
                    if verdict.broken and path in excuses:
                        verdict = replace(verdict, outcome=Outcome.excused, reason=excuses[path])
                    verdicts[path] = verdict
                    heard(verdict)
                    if children.spoilt:
                        break
            todo = [path for path in todo if path not in verdicts]
    return [verdicts[one.path] for one in promises]


class Children:
    """So many processes that try promises side by side; a context manager that ends them."""

    spoilt = False
    """Whether one has ended, hangs, or fell out of step with the others: new ones must take over."""

    ready = 0
    """How many have imported torch and begun."""

    def __init__(self, subject: Subject, paths: Sequence[str], ranks: int) -> None:
        job = {"subject": asdict(subject), "promises": list(paths), "ports": [free_port() for _ in paths]}
        self.told: list[queue.Queue[str | None]] = [queue.Queue() for _ in range(ranks)]
        self.complaints: list[IO[str]] = []
        self.processes: list[subprocess.Popen[str]] = []
        for rank, told in enumerate(self.told):
            about = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1"}
            self.complaints.append(tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace"))  # noqa: SIM115
            process = subprocess.Popen(
                [sys.executable, "-m", "fallline.bench.check.child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.complaints[-1],
                encoding="utf-8",
                env={**os.environ, **{name: str(value) for name, value in about.items()}, "PYTHONPATH": search_path()},
            )
            self.processes.append(process)
            threading.Thread(target=listen, args=(process, told), daemon=True).start()
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it ended at once: its silence will tell
                print(json.dumps(job), file=process.stdin, flush=True)

    def verdict(self, path: str, timeout: float) -> Verdict:
        """What the processes say of a promise together: the first that says it is broken, else the first of all."""
        found = [Verdict(path, Outcome.holds) for _ in self.told]
        waiting = set(range(len(self.told)))
        end = self.deadline(timeout)
        while waiting:
            for rank in sorted(waiting):
                try:
                    line = self.told[rank].get(timeout=0.01)
                except queue.Empty:
                    if time.monotonic() > end:
                        self.spoilt = True
                        return Verdict(path, Outcome.fails, f"it had not ended after {timeout:g} seconds", timeout)
                    continue
                if line is None:
                    self.spoilt = True
                    return Verdict(path, Outcome.fails, self.last_words(rank))
                if line.strip() == READY:
                    self.ready += 1
                    end = self.deadline(timeout)
                    continue
                said = json.loads(line)
                found[rank] = Verdict(**{**said, "outcome": Outcome(said["outcome"])})
                waiting.remove(rank)
                if len(self.told) > 1 and found[rank].outcome is not Outcome.holds:
                    self.spoilt = True  # the others may wait for it in vain
                    return found[rank]
        return found[0]

    def deadline(self, timeout: float) -> float:
        """Until when to wait: a promise's own time does not run while torch is imported."""
        return time.monotonic() + (timeout if self.ready == len(self.told) else START)

    def last_words(self, rank: int) -> str:
        """Why a process has ended."""
        code = self.processes[rank].wait()
        self.complaints[rank].seek(0)
        said = [line.strip() for line in self.complaints[rank] if line.strip()]
        if code < 0:
            return f"its process was ended by {signal.Signals(-code).name}"
        return f"its process ended with status {code}" + (f": {said[-1]}" if said else "")

    def __enter__(self) -> "Children":
        return self

    def __exit__(self, *_: Any) -> None:
        for process, complaints in zip(self.processes, self.complaints, strict=True):
            process.kill()
            process.wait()
            complaints.close()
            if process.stdin is not None:
                process.stdin.close()


def listen(process: "subprocess.Popen[str]", told: "queue.Queue[str | None]") -> None:
    """Pass on the lines of a process, and None at its end."""
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            told.put(line)
    told.put(None)


def free_port() -> int:
    """A port at which nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def search_path() -> str:
    """Where this process looks for modules, for another to look there too."""
    return os.pathsep.join(path for path in sys.path if path)
