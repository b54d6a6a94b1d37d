"""What a claim is: a sentence, its source, a criterion in code, and a measurement.

The verdict is the criterion's, never a person's: every reading inside the band, interval and all, and the claim holds;
one reading with its whole interval outside, and it does not; else it is not decided.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t as student
from torch import Tensor

from fallline.bench.protocol.stats import CONFIDENCE, Interval

Verdict = Literal["holds", "does not hold", "not decided"]
HOLDS: Verdict = "holds"
FAILS: Verdict = "does not hold"
OPEN: Verdict = "not decided"


@dataclass(frozen=True)
class Effort:
    """How much may be spent, and where records of longer experiments lie."""

    quick: bool = False
    """Fewer seeds and steps: the verdicts that need many are then open."""

    records: Path | None = None
    """A folder of `repro-*.json`; None where there is none."""

    def pick(self, whole: int, quick: int) -> int:
        """A count of seeds or steps."""
        return quick if self.quick else whole


@dataclass(frozen=True)
class Reading:
    """One number that was measured, under the name of what it was measured on."""

    name: str
    value: float
    low: float
    """Lower end of the 95 % interval; the value itself where nothing is random."""

    high: float
    count: int = 1
    """Seeds or independent samples behind it."""

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (self.value, self.low, self.high))):
            raise ArithmeticError(f"{self.name}: not finite: {self.value} [{self.low}, {self.high}]")

    @property
    def random(self) -> bool:
        """Whether it has an interval."""
        return self.count > 1


def exact(name: str, value: float) -> Reading:
    """A reading in which nothing is random."""
    return Reading(name, float(value), float(value), float(value))


def mean_of(name: str, values: ArrayLike) -> Reading:
    """The mean of independent values, at least two, with Student's 95 % interval."""
    found = t_interval(values)
    assert found.low is not None
    assert found.high is not None
    return Reading(name, found.mean, found.low, found.high, found.count)


def gap(name: str, other: Tensor, path: Tensor, start: Tensor) -> Reading:
    """The distance between the ends of two paths, by the length of the second from its start."""
    return exact(name, float((other - path).norm() / (path - start).norm()))


def t_interval(values: ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """The mean of two or more values and its interval by Student's t; `ValueError` of fewer."""
    sample = np.asarray(values, dtype=np.float64)
    if len(sample) < 2:
        raise ValueError("an interval needs two values")
    half = float(student.ppf((1 + confidence) / 2, len(sample) - 1) * sample.std(ddof=1) / math.sqrt(len(sample)))
    mean = float(sample.mean())
    return Interval(mean, mean - half, mean + half, len(sample))


@dataclass(frozen=True)
class Criterion:
    """What a reading must be for the claim to hold: inside a band."""

    quantity: str
    """What is measured, with its unit."""

    at_least: float = -math.inf
    at_most: float = math.inf

    def place(self, reading: Reading) -> Verdict:
        """Where a reading with its interval lies: inside, outside, or across an edge."""
        if self.at_least <= reading.low and reading.high <= self.at_most:
            return HOLDS
        if reading.high < self.at_least or self.at_most < reading.low:
            return FAILS
        return OPEN

    def beyond(self, reading: Reading) -> float:
        """How far its value is above the band, or below; negative inside."""
        return max(self.at_least - reading.value, reading.value - self.at_most)

    @property
    def band(self) -> str:
        """The band in words."""
        low, high = f"{self.at_least:.12g}", f"{self.at_most:.12g}"
        if math.isinf(self.at_least):
            return f"at most {high}"
        return f"at least {low}" if math.isinf(self.at_most) else f"{low} to {high}"


@dataclass(frozen=True)
class Measured:
    """What a measurement found."""

    readings: Sequence[Reading] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    """Numbers beside them, by name, ready for JSON: they tell more and decide nothing."""

    undecided: str = ""
    """Why nothing can be decided, whatever the readings are."""


@dataclass(frozen=True)
class Claim:
    """One claim of a paper, and how it is put to the test."""

    id: str
    """Begins with the name of its method, or with what stands for it in `ABBREVIATIONS`."""

    sentence: str
    source: str
    """Paper, and section, equation or figure."""

    criterion: Criterion
    measure: Callable[[Effort], Measured]
    how: str
    """The experiment, in a few sentences."""

    if_holds: str
    """What is concluded where it holds."""

    if_not: str
    """What is concluded where it does not."""

    @property
    def method(self) -> str:
        """A name of `METHODS`."""
        first = self.id.partition("-")[0]
        return ABBREVIATIONS.get(first, first)


METHODS = {"koala": "KOALA", "arturo": "arTuRO", "lodo": "LODO", "coolmomentum": "CoolMomentum"}
ABBREVIATIONS = {"cool": "coolmomentum"}


def verdict(criterion: Criterion, measured: Measured) -> tuple[Verdict, str]:
    """The verdict, and where it is open the reason."""
    if measured.undecided or not measured.readings:
        return OPEN, measured.undecided or "nothing was measured"
    places = [criterion.place(reading) for reading in measured.readings]
    if FAILS in places:
        return FAILS, ""
    if OPEN not in places:
        return HOLDS, ""
    across = measured.readings[places.index(OPEN)]
    return OPEN, f"the interval of {across.name} reaches across the edge of the band: more seeds would tell"


def worst(criterion: Criterion, readings: Iterable[Reading]) -> Reading:
    """The reading that is farthest out, or least far in; first by where its interval lies."""
    rank = {FAILS: 2, OPEN: 1, HOLDS: 0}
    return max(readings, key=lambda reading: (rank[criterion.place(reading)], criterion.beyond(reading)))


DERIVED = "follows from the update; not in the paper's words"
"""The source of what can be derived and is not stated, or not where we could read it."""
