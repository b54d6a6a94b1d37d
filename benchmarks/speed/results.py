"""From turns to numbers: what a step takes, its ratio to another's, its share of a copy's bandwidth."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from speed.counts import Counts
from speed.fresh import Fresh
from speed.methods import Method
from speed.timing import Turn

ClockName = Literal["wall", "cpu"]
CLOCKS: tuple[ClockName, ...] = ("wall", "cpu")


@dataclass(frozen=True)
class Times:
    """Seconds a step, over all turns."""

    minimum: float
    """Of the fastest turn."""

    median: float
    """Of the turns."""


@dataclass(frozen=True)
class Ratio:
    """A method's time as a multiple of another's, over pairs of turns directly after each other."""

    median: float
    """Of the pairs' ratios."""

    low: float
    """A quarter of the pairs lie below."""

    high: float
    """A quarter of the pairs lie above."""

    of_minima: float
    """The fastest turn of the one by the fastest of the other."""


@dataclass(frozen=True)
class Row:
    """All that is known of a method on a parameter set."""

    method: Method
    turns: int
    """Its own."""

    times: Mapping[ClockName, Times]
    """By clock."""

    ratios: Mapping[ClockName, Ratio]
    """To the method that it is timed beside, by clock; empty where there is none."""

    clock: ClockName
    """By which it is judged."""

    floor: float | None
    """The least bytes that it must move by the other's."""

    bytes: float | None
    """The least that a step must move, over all parameters."""

    bandwidth: float | None
    """That by the median time, in bytes a second."""

    share: float | None
    """Of the bandwidth of a copy, by the medians."""

    state: float
    """Words of the optimizer's state a parameter, by its tensors."""

    counts: Counts | None
    """Of a step."""

    fresh: Fresh | None
    """From new processes, if there were any."""

    temporaries: int | None
    """Bytes at the peak of a step, beyond parameters, gradients and state; None where nobody looked."""

    target: float | None
    """The largest ratio that it may have here."""

    @property
    def met(self) -> bool | None:
        """Whether it keeps to its target; None without one."""
        return None if self.target is None or self.ratio is None else self.ratio.median <= self.target

    @property
    def ratio(self) -> Ratio | None:
        """By its clock."""
        return self.ratios.get(self.clock)


@dataclass(frozen=True)
class Part:
    """All methods on one parameter set in one dtype."""

    set: str
    """Its name."""

    dtype: str
    """Of parameters and gradients."""

    device: str
    """cpu or cuda."""

    threads: int
    """Of torch."""

    tensors: int
    """How many."""

    elements: int
    """Numbers in all of them."""

    largest: int
    """Bytes of the largest tensor."""

    clock: ClockName
    """By which the tables tell ratios: CPU time, which other processes hardly change, where one thread does all."""

    rounds: int
    """In which everybody has a turn; slow ones in fewer."""

    seed: int
    """Of the order, and of the parameters."""

    rows: tuple[Row, ...]
    """In the order of the tables."""

    copy: Mapping[ClockName, Times]
    """Of a copy of all parameters from one buffer to another: two words a parameter."""

    copy_bandwidth: float
    """Bytes a second of that copy, by the median."""

    turns: tuple[Turn, ...]
    """All of them, in order."""

    left_out: Mapping[str, str] = field(default_factory=dict)
    """Methods that could not take a step, and why."""


def times(turns: Sequence[Turn]) -> dict[ClockName, Times]:
    """Of some turns."""
    return {clock: Times(min(seconds), float(np.median(seconds))) for clock, seconds in _by_clock(turns)}


def ratios(method: Method, turns: Sequence[Turn]) -> dict[ClockName, Ratio]:
    """Of all pairs of turns of a method and the one that it is timed beside; empty if there are none.

    Args:
        method: whose.
        turns: of everybody.
    """
    own = {turn.round: turn for turn in turns if (turn.method, turn.beside) == (method.name, None)}
    other = {turn.round: turn for turn in turns if (turn.method, turn.beside) == (method.against, method.name)}
    pairs = [(own[round_], other[round_]) for round_ in own.keys() & other.keys()]
    if not pairs:
        return {}
    minima = times([turn for turn in turns if turn.method == method.name])
    against = times([turn for turn in turns if turn.method == method.against])
    found = {}
    for clock in CLOCKS:
        low, median, high = np.percentile([getattr(a, clock) / getattr(b, clock) for a, b in pairs], [25, 50, 75])
        of_minima = minima[clock].minimum / against[clock].minimum
        found[clock] = Ratio(float(median), float(low), float(high), of_minima)
    return found


def _by_clock(turns: Sequence[Turn]) -> Iterable[tuple[ClockName, list[float]]]:
    for clock in CLOCKS:
        yield clock, [getattr(turn, clock) for turn in turns]
