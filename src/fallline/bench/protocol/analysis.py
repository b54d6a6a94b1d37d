"""What a report adds to a comparison: targets and times to them, all pairs, alarms, and several tasks together."""

import math
import statistics
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fallline.bench.common.spaces import dimension
from fallline.bench.protocol.comparison import Alarm, BestOf, Comparison, ContenderResult
from fallline.bench.protocol.design import Design
from fallline.bench.protocol.records import Race
from fallline.bench.protocol.search import edge_of_search
from fallline.bench.protocol.stats import (
    Interval,
    expected_best,
    expected_best_band,
    performance_profile,
    probability_of_improvement,
    stratified_interval,
)
from fallline.bench.protocol.verdict import matrix
from fallline.bench.runs.run import Outcome

LEVELS = (0.5, 0.8, 0.95, 1.0)
"""Targets, as shares of the way from the initial loss to the baseline's final one."""

PROFILE_LEVEL = 0.95
TAUS = np.geomspace(1, 4, 61)
"""Performance profiles: times to target as multiples of the best optimizer's, up to 4."""

STEADY = 0.1
"""The spread of wall time over a seed's repetitions, quartile to quartile, from which it is not to be trusted."""


@dataclass
class Aggregate:
    """The summary over several tasks, of those who raced on all of them."""

    track: str
    tasks: list[str]
    iqm: dict[str, Interval]
    """The interquartile mean of how far the loss lies above the mean of each task's baseline, in per cent of the way
    from the initial to the best loss; 0 is its equal, less is better."""

    improvement: dict[str, Interval]
    """The probability that a run has a lower loss than one of each task's baseline."""

    profiles: dict[str, tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]]
    """The share of runs that reach the target within `TAUS` times the best optimizer's median, and its band."""

    profiled: list[str]
    """The tasks that have a target."""


@dataclass
class Results:
    """A race and what came of it."""

    race: Race
    design: Design
    parts: list[Comparison]
    across: list[Aggregate]
    missing: int
    """Runs that the race still lacks, as far as can be known."""

    def part(self, task: str, track: str = "tuned") -> Comparison:
        """One comparison."""
        return next(part for part in self.parts if (part.task, part.track) == (task, track))


def analyse(design: Design, part: Comparison) -> Comparison:
    """Add to a comparison what only a report shows, and return it."""
    losses = part.losses
    part.matrix = matrix(losses, part.margin) if len(losses) > 1 else {}
    for entry in part.entries:
        entry.best_of = best_of(part, entry)
    if part.baseline is not None:
        set_targets(part)
    _measure_time(part)
    for entry in part.entries:
        entry.alarms = alarms(design, part, entry)
    return part


def best_of(part: Comparison, entry: ContenderResult) -> BestOf | None:
    """What the search would have found with fewer trials. A failed trial counts as one that learned nothing."""
    scores = [outcome.score for _, outcome in entry.trials.values()]
    finished = [score for score in scores if score is not None]
    if not finished:
        return None
    worst = part.initial if part.held_out and part.initial is not None else max(finished)
    clipped = [worst if score is None else min(score, worst) for score in scores]
    return BestOf(expected_best(clipped), *expected_best_band(clipped))


def highest_drawn(part: Comparison, lowest: float, highest: float) -> float:
    """The highest score that gets its place in a figure: one that ends in the millions must not flatten all others.

    300 times the lowest; where that is not positive, three times as far above it as the loss before training.
    """
    if lowest > 0:
        return min(highest, 300 * lowest)
    if part.initial is None or part.initial <= lowest:
        return highest
    return min(highest, lowest + 3 * (part.initial - lowest))


def set_targets(part: Comparison) -> None:
    """Target losses, and when each seed reaches them: where three measurements in a row have a mean below."""
    assert part.baseline is not None  # the targets are its
    name = "validation loss" if part.held_out else "train loss"
    curves = [outcome.curve.get(name, []) for outcome in part.baseline.finished.values()]
    finals = [last for curve in curves if curve and (last := curve[-1]) is not None]
    if part.initial is None or not finals or (final := statistics.median(finals)) >= part.initial:
        return  # nothing to go down from: the loss of a minimum that never rests only grows
    part.targets = {level: part.initial - level * (part.initial - final) for level in LEVELS}
    for entry in part.entries:
        entry.hits = {
            level: [first_hit(outcome, name, target) for outcome in entry.seeds.values()]
            for level, target in part.targets.items()
        }


def first_hit(outcome: Outcome, name: str, target: float) -> float:
    """Gradient evaluations until a target is reached; inf if it is not, or if the run failed."""
    curve = outcome.curve.get(name, [])
    if outcome.lost:
        return math.inf
    for i in range(2, len(curve)):
        last = curve[i - 2 : i + 1]
        if all(value is not None for value in last) and statistics.fmean(v or 0.0 for v in last) <= target:
            counts = outcome.curve.get("gradient evaluations", outcome.curve["step"])  # the oldest records lack them
            return float(counts[i] or 0.0)
    return math.inf


def _measure_time(part: Comparison) -> None:
    sgd = next((entry.seconds() for entry in part.entries if entry.name == "sgd"), None)
    spreads = []
    for entry in part.entries:
        if sgd and (mine := entry.seconds()):
            entry.relative_cpu = mine / sgd
        walls = [o.wall_seconds for o in entry.finished.values() if o.wall_seconds]
        if len(walls) >= 4:
            low, middle, high = statistics.quantiles(walls, n=4)
            spreads.append((high - low) / middle)
    part.steady = not spreads or statistics.median(spreads) <= STEADY


def alarms(design: Design, part: Comparison, entry: ContenderResult) -> list[Alarm]:
    """List what weakens a claim about an entry: mostly, that its search may have missed its best settings."""
    found = []
    if entry.failed_seeds:
        found.append(Alarm("lost", f"{entry.failed_seeds} of {len(entry.seeds)} confirming seeds failed"))
    if part.track == "tuned" and entry.chosen is not None:
        ranges = {**entry.about.get("ranges", {}), **entry.about.get("extended", {})}
        for name, plain in ranges.items():
            side = edge_of_search(name, dimension(plain), entry.chosen[name]) if name in entry.chosen else None
            if side:
                more = "" if name in entry.about.get("extended", {}) else "; --extend searches beyond"
                found.append(
                    Alarm(
                        "edge", f"the best {name}, {entry.chosen[name]:g}, lies at the {side} edge of its range{more}"
                    )
                )
        if entry.best_of is not None and len(entry.best_of.mean) >= 4:
            mean = entry.best_of.mean
            gain = float(mean[len(mean) // 2 - 1] - mean[-1])
            if gain > part.margin > 0:
                found.append(
                    Alarm(
                        "flat", f"the second half of its trials still lowered its best loss, by {gain:.2g} on average"
                    )
                )
        if _lonely(part, entry):
            found.append(
                Alarm("narrow", f"one trial of {len(entry.trials)} came near its best: the search is too coarse")
            )
    if entry is part.baseline and (reference := part.about.get("reference")):
        loss = entry.measure("loss")
        if loss and (loss.mean if loss.low is None else loss.low) > reference[0]:
            found.append(
                Alarm("reference", f"tuned baselines are known to reach {reference[0]:g} here ({reference[1]})")
            )
    return found


def _lonely(part: Comparison, entry: ContenderResult) -> bool:
    """Whether no second trial came within a tenth of the way from its best to the loss before training."""
    scores = sorted(o.score for _, o in entry.trials.values() if o.score is not None)
    if len(entry.trials) < 10 or part.initial is None or not part.held_out or not scores:
        return False
    return len(scores) < 2 or scores[1] > scores[0] + 0.1 * max(0.0, part.initial - scores[0])


def over_tasks(parts: list[Comparison]) -> Aggregate | None:
    """Summarise the tasks of one track; None for one task alone, or without a baseline on each."""
    if len(parts) < 2 or any(part.baseline is None for part in parts):
        return None
    everywhere = [e.name for e in parts[0].entries if all(_ran(part, e.name) for part in parts)]

    def apart(part: Comparison, name: str) -> list[float]:
        against = part.baseline.measure("loss") if part.baseline else None
        origin, losses = against.mean if against else 0.0, part.get(name).losses.values()
        return [math.inf if loss is None else 100 * (loss - origin) / (part.way or 1.0) for loss in losses]

    theirs = [apart(part, part.baseline.name) for part in parts if part.baseline]
    mine = {name: [apart(part, name) for part in parts] for name in everywhere}
    iqms = {name: stratified_interval(mine[name]) for name in everywhere}
    chances = {name: probability_of_improvement(mine[name], theirs) for name in everywhere}
    profiled = [part for part in parts if part.targets]
    profiles = {}
    for name in everywhere if profiled else []:
        times = []
        for part in profiled:
            best = min(part.get(other).time_to(PROFILE_LEVEL) or math.inf for other in everywhere)
            times.append(
                [hit / best if math.isfinite(best) else math.inf for hit in part.get(name).hits[PROFILE_LEVEL]]
            )
        profiles[name] = performance_profile(times, list(TAUS))
    ranked = sorted(everywhere, key=lambda name: iqms[name].mean)
    return Aggregate(
        parts[0].track,
        [part.task for part in parts],
        {name: iqms[name] for name in ranked},
        {name: chances[name] for name in ranked},
        {name: profiles[name] for name in ranked if name in profiles},
        [part.task for part in profiled],
    )


def _ran(part: Comparison, name: str) -> bool:
    return any(entry.name == name and entry.seeds for entry in part.entries)
