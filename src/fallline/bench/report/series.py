"""The series of a race's figures, computed once: the page and the prints only paint them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from fallline.bench.common.spaces import Range, Setting, dimension
from fallline.bench.protocol.analysis import TAUS, Aggregate, highest_drawn
from fallline.bench.protocol.comparison import Comparison, ContenderResult
from fallline.bench.protocol.stats import band, censored_median, performance_profile
from fallline.bench.runs.run import Outcome

Array = NDArray[np.float64]

AXES = {
    "steps": "step",
    "gradient evaluations": "gradient evaluations",
    "CPU seconds": "cpu seconds",
    "wall seconds": "wall seconds",
}
"""What a learning curve can be drawn against: as printed, and as recorded."""

POINTS = 100
"""Number of points of a curve at most: a screen shows no more of them, and a page of many curves stays small."""

LOG_FROM = 3.0
"""An axis whose ends have this ratio, or a larger one, is logarithmic."""

EDGE_SHARE = 0.12
"""How far above the highest score, as a share of their range, failed trials stand."""


# --- axes ---


@dataclass(frozen=True)
class Axis:
    """The range of an axis, some air included."""

    low: float
    high: float
    log: bool
    ticks: Sequence[float] = ()
    """Round numbers on a logarithmic axis; a linear one is left to the painter."""


def fit(low: float, high: float, *, log_from: float = LOG_FROM, most: int = 7, air: float | None = None) -> Axis:
    """The axis that shows `low` to `high`, logarithmic if they are positive and their ratio is `log_from` or more.

    Args:
        low: lowest value.
        high: highest value.
        log_from: ratio of the two.
        most: number of ticks at most.
        air: on either side, as a share of the range.
    """
    if low <= 0 or high / low < log_from:
        margin = (0.06 if air is None else air) * (high - low) or 0.1 * abs(high) or 1.0
        return Axis(low - margin, high + margin, log=False)
    start, end = math.log10(low), math.log10(high)
    margin = (0.05 if air is None else air) * (end - start) or (0.1 if end == start else 0.0)
    start, end = start - margin, end + margin
    return Axis(10**start, 10**end, log=True, ticks=round_values(start, end, most))


def round_values(start: float, end: float, most: int) -> list[float]:
    """Round numbers between 10^start and 10^end, no more than `most`."""
    decades = range(math.floor(start), math.ceil(end) + 1)
    values: list[float] = []
    for digits in ((1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        values = [float(f"{digit}e{decade}") for decade in decades for digit in digits]
        values = [value for value in values if start - 1e-9 <= math.log10(value) <= end + 1e-9]
        if len(values) <= most:
            return values
    return values[:: math.ceil(len(values) / most)]


# --- curves ---


@dataclass(frozen=True)
class Curve:
    """The curve of one optimizer with its band: shape (points,) each."""

    name: str
    x: Array
    mean: Array
    low: Array
    high: Array


def bounds(curves: Iterable[Curve]) -> tuple[float, float]:
    """The lowest and the highest value of all bands."""
    curves = list(curves)
    return min(float(curve.low.min()) for curve in curves), max(float(curve.high.max()) for curve in curves)


def learning_curves(part: Comparison, measure: str, axis: str = "steps") -> list[Curve]:
    """A measure against one of `AXES`: mean over the seeds that finished, with the 95 % band of that mean."""
    found = [(entry.name, courses(entry, measure, axis)) for entry in part.entries]
    return [Curve(name, course[0], *band(course[1])) for name, course in found if course]


def courses(entry: ContenderResult, measure: str, axis: str) -> tuple[Array, Array] | None:
    """A measure of the seeds that finished, on one grid: shapes (points,) and (seeds, points); None without any.

    Seeds that were measured at the same places are taken as they are. Otherwise, as with seconds, each is interpolated
    linearly onto an even grid that ends with the longest; a seed that has ended keeps its last value, as its model
    does.
    """
    runs = []
    for outcome in entry.finished.values():
        places = outcome.curve.get(AXES[axis]) or outcome.times.get(AXES[axis], [])
        known = [(x, y) for x, y in zip(places, outcome.curve.get(measure, []), strict=False) if None not in (x, y)]
        if known:
            runs.append(np.array(known, dtype=np.float64).T)
    if not runs:
        return None
    if all(np.array_equal(one[0], runs[0][0]) for one in runs):
        x, values = runs[0][0], np.stack([one[1] for one in runs])
        keep = np.unique(np.linspace(0, len(x) - 1, POINTS).round().astype(int))
        return x[keep], values[:, keep]
    count = min(POINTS, 2 * max(len(one[0]) for one in runs))
    grid = np.linspace(max(one[0][0] for one in runs), max(one[0][-1] for one in runs), count)
    return grid, np.stack([np.interp(grid, one[0], one[1]) for one in runs])


def best_of(part: Comparison) -> list[Curve]:
    """What each search would have found with fewer trials: the expected best score of K, with its band."""
    found = [(entry.name, entry.best_of) for entry in part.entries]
    return [
        Curve(name, np.arange(1.0, len(best.mean) + 1), best.mean, best.low, best.high)
        for name, best in found
        if best and len(best.mean) > 1 and np.isfinite([best.low, best.mean, best.high]).all()
    ]


def profile(across: Aggregate) -> list[Curve]:
    """The share of runs that reach the target within a multiple of the best optimizer's time, with its band."""
    return [Curve(name, TAUS, *shares) for name, shares in across.profiles.items()]


def target_profiles(part: Comparison) -> dict[float, list[Curve]]:
    """The same on one task, for each target that an optimizer reaches in half of its runs."""
    found = {}
    for level in part.targets:
        hits = {entry.name: times for entry in part.entries if (times := entry.hits.get(level))}
        best = min(map(censored_median, hits.values()), default=math.inf)
        if best < math.inf:
            found[level] = [
                Curve(name, TAUS, *performance_profile([[time / best for time in times]], list(TAUS)))
                for name, times in hits.items()
            ]
    return found


# --- trials ---


@dataclass(frozen=True)
class Point:
    """A trial in a figure."""

    number: int
    x: float
    y: float
    settings: Mapping[str, Setting]
    outcome: Outcome


@dataclass(frozen=True)
class Sensitivity:
    """The score of every trial of one optimizer against a setting."""

    setting: str
    """`lr`, or where an optimizer has none, the first that is a number."""

    finished: list[Point]
    above: list[Point]
    """Trials whose scores lie beyond the upper edge; they stand on it."""

    failed: list[Point]
    """Trials without a score, on the upper edge."""

    chosen: Point | None
    failed_stretches: list[tuple[float, float]]
    opened: list[tuple[float, float]]
    """What an extension of the range opened."""

    x: Axis
    y: Axis
    """The same for all optimizers of a comparison."""


def sensitivity(part: Comparison, entry: ContenderResult) -> Sensitivity | None:
    """What one panel shows; None where no setting is a number."""
    setting = _drawn_setting(entry)
    if setting is None:
        return None
    low, edge = _score_range(part)
    groups: dict[str, list[Point]] = {"finished": [], "above": [], "failed": []}
    for number, (settings, outcome) in entry.trials.items():
        if not _is_number(at := settings.get(setting)):
            continue
        score = outcome.score
        kind = "failed" if score is None else "above" if score > edge else "finished"
        y = edge if score is None else min(score, edge)
        groups[kind].append(Point(number, float(at), y, settings, outcome))
    points = [point for group in groups.values() for point in group]
    declared, extended = _range(entry, "ranges", setting), _range(entry, "extended", setting)
    ends = [*(point.x for point in points), *(declared or ()), *(extended or ())]
    x = fit(min(ends), max(ends), most=4)
    failed: dict[float, bool] = {}
    for point in points:
        failed[point.x] = failed.get(point.x, True) and point.outcome.lost
    opened = []
    if declared and extended:
        opened += [(extended[0], declared[0])] if extended[0] < declared[0] else []
        opened += [(declared[1], extended[1])] if extended[1] > declared[1] else []
    return Sensitivity(
        setting,
        **groups,
        chosen=next((point for point in points if point.number == entry.chosen_trial), None),
        failed_stretches=failed_stretches(failed, extended or declared or (x.low, x.high)),
        opened=opened,
        x=x,
        y=fit(low, edge),
    )


def failed_stretches(failed: Mapping[float, bool], ends: tuple[float, float]) -> list[tuple[float, float]]:
    """Where every trial failed: at two or more neighbouring values, or at all up to an end of the range.

    A stretch goes half-way to the next trial that finished, in the logarithm where the two are positive, or to the end
    of the range.

    Args:
        failed: by value of the setting, whether all trials there failed.
        ends: the range.
    """

    def between(a: float, b: float) -> float:
        return math.sqrt(a * b) if min(a, b) > 0 else (a + b) / 2

    values = sorted(failed)
    found, start = [], 0
    for i in range(len(values) + 1):
        if i < len(values) and failed[values[i]]:
            continue
        first, last = start == 0, i == len(values)
        if i - start >= (1 if first or last else 2):
            low = min(values[0], ends[0]) if first else between(values[start - 1], values[start])
            high = max(values[-1], ends[1]) if last else between(values[i - 1], values[i])
            found.append((low, high))
        start = i + 1
    return found


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _drawn_setting(entry: ContenderResult) -> str | None:
    trials = [settings for settings, _ in entry.trials.values()]
    if any(_is_number(settings.get("lr")) for settings in trials):
        return "lr"
    return next((name for settings in trials for name, value in settings.items() if isinstance(value, float)), None)


def _score_range(part: Comparison) -> tuple[float, float]:
    """The lowest score of all trials, and the edge on which those stand that failed or lie far above."""
    scores = [
        score for entry in part.entries for _, outcome in entry.trials.values() if (score := outcome.score) is not None
    ]
    low, high = (min(scores), max(scores)) if scores else (0.1, 10.0)
    high = highest_drawn(part, low, high)
    if low > 0 and high / low >= LOG_FROM:
        return low, high * (high / low) ** EDGE_SHARE
    return low, high + (EDGE_SHARE * (high - low) or 0.5 * abs(high) + 1e-12)


def _range(entry: ContenderResult, which: str, setting: str) -> tuple[float, float] | None:
    """The ends of a setting's range: `ranges` as declared, or `extended`."""
    plain = entry.about.get(which, {}).get(setting)
    there = None if plain is None else dimension(plain)
    if not isinstance(there, Range):
        return None
    return (1 - there.high, 1 - there.low) if there.scale == "one minus log" else (there.low, there.high)
