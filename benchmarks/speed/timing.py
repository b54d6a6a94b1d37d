"""Turns: who steps when, and what it takes by two clocks.

Whatever else a machine does comes and goes within seconds. So all methods step in one process, a few steps at a time,
in rounds of random order; and a method and the one that it is compared with always follow each other directly.
"""

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.utils.benchmark import Timer

TURN = 0.05
"""Seconds that the steps of a turn shall take, where nobody says how many they are."""

MOST = 100
"""Steps of a turn."""

LONG = 0.15
"""Seconds: who takes longer for a turn takes part in every second round, who takes twice as long in every third, ..."""

LEAST = 3
"""... but everybody in as many as these at least."""

COPY = "copy"
"""The name of a copy of all parameters, among the methods."""

Pair = tuple[str, str | None]
"""A method, and the one that it is timed beside."""


class Clock:
    """A `timer=` for torch's `Timer` that reads two clocks, once the device has finished its work."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.readings: list[tuple[float, float]] = []
        """Seconds: wall time, and CPU time of the whole process."""

    def __call__(self) -> float:
        """The wall time, in seconds since some moment."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.readings.append((time.perf_counter(), time.process_time()))
        return self.readings[-1][0]


@dataclass(frozen=True)
class Turn:
    """Some steps of a method in a row."""

    method: str
    """Who."""

    beside: str | None
    """For whom, if another's turn directly before or after is compared with it; else None: its own."""

    round: int
    """Which round, from 0."""

    steps: int
    """How many steps."""

    wall: float
    """Seconds of wall time a step."""

    cpu: float
    """Seconds of CPU time a step, of all threads."""


class Runner:
    """Something to time: how many steps it takes in a turn, and in which rounds."""

    def __init__(self, step: Callable[[], object], device: torch.device, threads: int, steps: int | None) -> None:
        """`step` is warm: it has been called before.

        Args:
            step: what to time.
            device: whose work to wait for.
            threads: of torch.
            steps: in a turn; None: as many as take about 0.05 seconds.
        """
        self.clock = Clock(device)
        self.timer = Timer("step()", timer=self.clock, globals={"step": step}, num_threads=threads)
        seconds, _ = self.time(1)
        self.steps = steps or max(1, min(MOST, round(TURN / seconds)))
        # Before each turn torch's Timer takes steps that it does not count: two, unless there are hundreds.
        self.every = max(1, math.ceil((self.steps + 2) * seconds / LONG))

    def time(self, steps: int) -> tuple[float, float]:
        """Seconds of wall and of CPU time a step."""
        self.timer.timeit(steps)
        (wall, cpu), (wall_end, cpu_end) = self.clock.readings[-2:]  # those before are of its warm-up
        self.clock.readings.clear()
        return (wall_end - wall) / steps, (cpu_end - cpu) / steps


def order(pairs: Sequence[Pair], seed: int, round_: int) -> Iterator[tuple[str, str | None]]:
    """The turns of a round in random order: who, and for whom. Partners follow each other, in random order too."""
    chance = random.Random(f"{seed}/{round_}")
    for name, against in chance.sample(pairs, len(pairs)):
        turns = [(name, None)] if against is None else [(name, None), (against, name)]
        yield from chance.sample(turns, len(turns))


def turns(
    runners: Mapping[str, Runner], pairs: Sequence[Pair], rounds: int, seed: int, say: Callable[[int], object]
) -> Iterator[Turn]:
    """Hold all rounds.

    Args:
        runners: by name, references too.
        pairs: who has turns of its own, and who has one directly before or after each.
        rounds: how many.
        seed: of the order.
        say: is told each round.
    """
    for round_ in range(rounds):
        say(round_)
        # Slow ones spread over the rounds.
        every = [min(runners[name].every, max(1, rounds // LEAST)) for name, _ in pairs]
        here = [pair for i, pair in enumerate(pairs) if (round_ + i) % every[i] == 0]
        for name, beside in order(here, seed, round_):
            steps = runners[name].steps
            yield Turn(name, beside, round_, steps, *runners[name].time(steps))
