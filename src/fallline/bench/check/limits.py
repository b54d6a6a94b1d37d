"""What an optimizer's processes may take while it is checked, and how all of them are found and ended."""

import contextlib
import os
import signal
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

PROC = Path("/proc")
"""Where Linux shows its processes. Without it memory and processes are not watched."""

GIB = 2**30


def fair_memory() -> float:
    """GiB that an optimizer may take: half of what is free, but at least 1 and at most 8."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = (PROC / "meminfo").read_text().splitlines()
        free = int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) * 1024
        return min(8.0, max(1.0, free / 2 / GIB))
    return 8.0


@dataclass(frozen=True)
class Limits:
    """What a promise may take, in all processes that it starts."""

    seconds: float = 60.0
    memory: float = field(default_factory=fair_memory)
    """In GiB; memory that processes share counts once."""
    processes: int = 256
    """At the same time. A compiler that works in parallel starts dozens."""
    output: int = 64 * 2**20
    """Bytes that it may print."""


def watched() -> bool:
    """Whether memory and processes can be watched on this machine."""
    return (PROC / "self" / "statm").exists()


class Tree:
    """Processes of one origin, wherever they went: those with a mark in their environment, and what those started.

    A process keeps the mark when it leaves its group, its session and its parent.
    """

    def __init__(self) -> None:
        self.variable = "FALLLINE_CHECK"
        self.value = uuid.uuid4().hex
        self.roots: list[int] = []
        self._ours: dict[int, bool] = {}

    def add(self, pid: int) -> None:
        """Say that a process, which leads a group of its own, belongs to the tree."""
        self.roots.append(pid)
        self._ours[pid] = True

    def alive(self) -> list[int]:
        """The processes that are there now; none where they cannot be watched."""
        if not watched():
            return []
        there = [int(name) for name in os.listdir(PROC) if name.isdigit()]
        known, self._ours = self._ours, {}
        for pid in there:  # the others are gone, and their numbers may come again
            self._ours[pid] = known[pid] if pid in known else self._belongs(pid, known)
        return [pid for pid in there if self._ours[pid] and status(pid)[0] not in ("Z", "X", "")]

    def _belongs(self, pid: int, known: dict[int, bool]) -> bool:
        parent = status(pid)[1]
        if known.get(parent) or self._ours.get(parent):
            return True
        try:
            return f"{self.variable}={self.value}".encode() in (PROC / str(pid) / "environ").read_bytes()
        except OSError:  # it is gone, or somebody else's
            return False

    def exceeds(self, limits: Limits) -> str | None:
        """Which limit of memory or processes is exceeded now, in words."""
        pids = self.alive()
        if len(pids) > limits.processes:
            return f"it was ended when it had {len(pids)} processes, more than {limits.processes}"
        most = limits.memory * GIB
        # What processes share is in the first sum several times. The exact one is slow, and taken above the limit only.
        if sum(map(resident, pids)) > most and (exact := sum(map(proportional, pids))) > most:
            return f"it was ended when it took {exact / GIB:.3g} GiB of memory, more than {limits.memory:.3g}"
        return None

    def end(self, seconds: float = 10.0) -> None:
        """End all of them; what starts others meanwhile is sought until none is left."""
        for pid in self.roots:
            with contextlib.suppress(OSError):
                os.killpg(pid, signal.SIGKILL)
        until = time.monotonic() + seconds
        while (pids := self.alive()) and time.monotonic() < until:
            for pid in pids:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.002)


def status(pid: int) -> tuple[str, int]:
    """The state of a process, as a letter, and its parent; nothing and 0 if it is gone."""
    try:
        state, parent, *_ = (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except (OSError, ValueError):
        return "", 0
    return state, int(parent)


def resident(pid: int) -> int:
    """Bytes of memory that a process has, with all that it shares."""
    try:
        return int((PROC / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def proportional(pid: int) -> int:
    """Bytes of memory that a process has, with its part of what it shares."""
    try:
        lines: Iterable[str] = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return 0 if not status(pid)[0] else resident(pid)
