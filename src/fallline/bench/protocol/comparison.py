"""A race's records as numbers: what the table at its end and the report print. Nothing here trains."""

import itertools
import math
import statistics
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fallline.bench.common.spaces import Setting, dimension
from fallline.bench.protocol import design as decide
from fallline.bench.protocol.design import Design
from fallline.bench.protocol.stats import (
    Interval,
    censored_median,
    expected_best,
    expected_best_band,
    interval,
    performance_profile,
    probability_of_improvement,
    stratified_interval,
)
from fallline.bench.protocol.verdict import Verdict, judge, matrix
from fallline.bench.race.store import Race, Store
from fallline.bench.runs.loop import Outcome

LEVELS = (0.5, 0.8, 0.95, 1.0)
"""Targets, as shares of the way from the initial loss to the baseline's final one."""

PROFILE_LEVEL = 0.95
TAUS = np.geomspace(1, 4, 61)
"""Performance profiles: times to target as multiples of the best optimizer's, up to 4."""

STEADY = 0.1
"""The spread of wall time over a seed's repetitions, quartile to quartile, from which it is not to be trusted."""


@dataclass(frozen=True)
class Alarm:
    """A reason to doubt a claim."""

    kind: str
    """`edge`, `flat`, `reference`, `narrow` or `lost`."""

    text: str


@dataclass(frozen=True)
class BestOf:
    """The expected score of the best of K trials, for K = 1, 2, ...: shape (trials,) each."""

    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass
class ContenderResult:
    """What one optimizer did on one task, with tuned or with shipped settings."""

    name: str
    about: dict[str, Any]
    """`label`, `ours`, `space`, `ranges`, `fixed`, `schedule`, `source`, `extended`: see `Contender.describe`."""

    trials: dict[int, tuple[dict[str, Setting], Outcome]] = field(default_factory=dict)
    reruns: dict[int, dict[int, Outcome]] = field(default_factory=dict)
    seeds: dict[int, Outcome] = field(default_factory=dict)
    """The confirming runs."""

    confirmed: dict[str, Setting] | None = None
    """The settings that these ran with, as the records have it; None where that is not known."""

    chosen_trial: int | None = None
    chosen: dict[str, Setting] | None = None
    verdict: Verdict | None = None
    """Against the baseline."""

    relative_cpu: float | None = None
    """CPU time per gradient evaluation, as a multiple of SGD's."""

    best_of: BestOf | None = None
    hits: dict[float, list[float]] = field(default_factory=dict)
    """By level, gradient evaluations until the target is reached, one a seed; inf where it is not."""

    alarms: list[Alarm] = field(default_factory=list)

    @property
    def label(self) -> str:
        """The name to print."""
        return str(self.about["label"])

    @property
    def ours(self) -> bool:
        """Whether it is a method of this library."""
        return bool(self.about["ours"])

    @property
    def lost_trials(self) -> int:
        """Trials that diverged or failed."""
        return sum(outcome.lost for _, outcome in self.trials.values())

    @property
    def lost_seeds(self) -> int:
        """Seeds that diverged or failed."""
        return sum(outcome.lost for outcome in self.seeds.values())

    @property
    def finished(self) -> dict[int, Outcome]:
        """The seeds that reached the end."""
        return {number: outcome for number, outcome in self.seeds.items() if not outcome.lost}

    @property
    def losses(self) -> dict[int, float | None]:
        """The final loss of every seed; None where it was lost."""
        return {number: outcome.result.get("loss") for number, outcome in self.seeds.items()}

    @property
    def choice(self) -> list[Outcome]:
        """The runs by whose scores its settings were chosen; with shipped settings, all."""
        if self.chosen_trial is None:
            return list(self.seeds.values()) if not self.trials else []
        return list(self.reruns.get(self.chosen_trial, {}).values()) or [self.trials[self.chosen_trial][1]]

    @property
    def runs(self) -> list[Outcome]:
        """All of its runs."""
        reruns = itertools.chain.from_iterable(some.values() for some in self.reruns.values())
        return [*(outcome for _, outcome in self.trials.values()), *reruns, *self.seeds.values()]

    @property
    def cpu_seconds(self) -> float:
        """What all of its runs cost."""
        return sum(outcome.cpu_seconds for outcome in self.runs)

    def measure(self, name: str) -> Interval | None:
        """The interval of a final measure over the seeds that finished; None where there is nothing to measure."""
        return interval([outcome.result[name] for outcome in self.finished.values() if name in outcome.result])

    def above(self, other: "ContenderResult") -> Interval | None:
        """By how many per cent of the size of another's mean loss it lies above that, over the seeds both finished."""
        theirs, mean = other.losses, other.measure("loss")
        both = [(loss, theirs.get(number)) for number, loss in self.losses.items()]
        return interval([100 * (a - b) / abs(mean.mean) for a, b in both if mean and a is not None and b is not None])

    def seconds(self, clock: str = "cpu") -> float | None:
        """Median seconds of a gradient evaluation with its share of a step: `cpu` or `wall`."""
        spent = [
            (o.cpu_seconds if clock == "cpu" else o.wall_seconds) / o.gradient_evaluations
            for o in self.finished.values()
            if o.gradient_evaluations
        ]
        return statistics.median(spent) if spent else None

    @property
    def state_bytes(self) -> int | None:
        """Bytes of optimizer state."""
        return next((outcome.state_bytes for outcome in self.finished.values()), None)

    def time_to(self, level: float) -> float | None:
        """Median gradient evaluations to a target; inf if at most half of the seeds reach it."""
        return censored_median(self.hits[level]) if self.hits.get(level) else None


@dataclass
class Comparison:
    """One comparison: all optimizers on one task, tuned or with shipped settings; best first.

    Who lost seeds comes after who lost none.
    """

    task: str
    about: dict[str, Any]
    """`summary`, `steps`, `held_out`, `floor`, ...: see `Task.describe`."""

    track: str
    entries: list[ContenderResult]
    left_out: dict[str, str]
    baseline: ContenderResult | None = None
    initial: float | None = None
    """The loss before training."""

    way: float = 0.0
    """From the initial to the best loss: see `fallline.bench.protocol.design.way`."""

    margin: float = 0.0
    """The equivalence margin: differences within it are of no consequence."""

    targets: dict[float, float] = field(default_factory=dict)
    matrix: dict[tuple[str, str], Verdict] = field(default_factory=dict)
    """Every ordered pair; descriptive with fewer than 11 seeds."""

    steady: bool = True
    """Whether repetitions took about the same wall time."""

    @property
    def held_out(self) -> bool:
        """Whether there are a validation and a test set."""
        return bool(self.about["held_out"])

    @property
    def scale(self) -> float | None:
        """The size of the baseline's loss, which says to how many places differences are printed."""
        loss = self.baseline.measure("loss") if self.baseline else None
        return abs(loss.mean) if loss else None

    @property
    def loss_name(self) -> str:
        """What is called the result."""
        return "test loss" if self.held_out else "mean loss over the last tenth"

    @property
    def score_name(self) -> str:
        """What the search minimised."""
        return "validation loss" if self.held_out else "mean loss over the last tenth"

    def get(self, name: str) -> ContenderResult:
        """The entry of that name."""
        return next(entry for entry in self.entries if entry.name == name)


@dataclass
class Aggregate:
    """What several tasks say together, of those who raced on all of them."""

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


def results(store: Store, race: Race) -> Results:
    """Read a race, finished or not."""
    design = Design.read(race.design)
    entered = race.setting["contenders"]
    found = {
        (task, track): {name: ContenderResult(name, about) for name, about in entered[task].items()}
        for task in design.tasks
        for track in design.tracks
    }
    confirmed: dict[tuple[str, str], dict[str, Setting]] = {}
    for place, run, outcome in store.runs(race.id):
        if place.stage == "default":
            found[place.task, "defaults"][place.optimizer].seeds[place.number] = outcome
            continue
        entry = found[place.task, "tuned"][place.optimizer]
        if place.stage == "trial":
            entry.trials[place.number] = run.settings, outcome
        elif place.stage == "choice":
            entry.reruns.setdefault(place.number, {})[place.repeat] = outcome
        else:
            entry.seeds[place.number] = outcome
            confirmed[place.task, place.optimizer] = run.settings
    for (task, name), settings in confirmed.items():
        found[task, "tuned"][name].confirmed = settings
    parts = [
        compare(race, design, task, track, list(found[task, track].values()))
        for track in sorted(design.tracks, key=decide.TRACKS.index)
        for task in design.tasks
    ]
    across = [both for track in design.tracks if (both := over_tasks([p for p in parts if p.track == track]))]
    return Results(race, design, parts, across, sum(lacking(design, part) for part in parts))


def compare(race: Race, design: Design, task: str, track: str, entries: list[ContenderResult]) -> Comparison:
    """One comparison, from its runs."""
    about = race.setting.get("tasks", {}).get(task) or {"summary": "", "steps": 0, "held_out": True, "floor": None}
    left_out = dict(race.setting["left_out"].get(task, {}))
    if track == "defaults":
        left_out |= {entry.name: entry.about["excuse"] for entry in entries if entry.about.get("excuse")}
        entries = [entry for entry in entries if entry.name not in left_out]
    for entry in entries:
        if track == "defaults":
            entry.chosen = {}
            continue
        entry.reruns = {number: some for number, some in entry.reruns.items() if number in entry.trials}
        reruns = {number: list(outcomes.values()) for number, outcomes in entry.reruns.items()}
        outcomes = {number: outcome for number, (_, outcome) in entry.trials.items()}
        entry.chosen_trial = decide.chosen(outcomes, reruns, design.finalists)
        if entry.chosen_trial is not None:
            entry.chosen = entry.trials[entry.chosen_trial][0]
        if entry.confirmed not in (None, entry.chosen):  # the records have lost what decided
            alike = (number for number, (settings, _) in entry.trials.items() if settings == entry.confirmed)
            entry.chosen_trial, entry.chosen = next(alike, None), entry.confirmed
    part = Comparison(task, about, track, sorted(entries, key=_rank), left_out)
    candidates = [(e.name, e.ours, e.choice) for e in part.entries if e.finished]
    against = decide.baseline(design.baseline, candidates)
    everyone = [list(entry.seeds.values()) for entry in part.entries]
    part.initial = decide.initial_loss(itertools.chain(*everyone), part.held_out)
    best = decide.best_loss(everyone)
    # Where a task names its band, as one that begins near its minimum does, the way is what the band is 1 % of.
    named = about.get("equivalence")
    part.way = 100 * named if named else decide.way(part.initial, best)
    part.margin = decide.equivalence(about.get("equivalence"), part.initial, best)
    losses = {entry.name: entry.losses for entry in part.entries if entry.seeds}
    part.matrix = matrix(losses, part.margin) if len(losses) > 1 else {}
    for entry in part.entries:
        entry.best_of = best_of(part, entry)
    if against is not None:
        part.baseline = part.get(against)
        for name, verdict in judge(decide.pairs(losses, against), part.margin, looks=len(design.looks)).items():
            part.get(name).verdict = verdict
        set_targets(part)
    _measure_time(part)
    for entry in part.entries:
        entry.alarms = alarms(design, part, entry)
    return part


def _rank(entry: ContenderResult) -> tuple[bool, int, float]:
    loss = entry.measure("loss")
    return loss is None, entry.lost_seeds, loss.mean if loss else 0.0


def lacking(design: Design, part: Comparison) -> int:
    """Runs that a comparison still lacks."""
    if part.track == "defaults":
        return sum(design.seeds - len(entry.seeds) for entry in part.entries)
    return sum(
        design.runs_wanted(len(entry.trials), entry.lost_trials, max(design.seeds, len(entry.seeds))) - len(entry.runs)
        for entry in part.entries
    )


def best_of(part: Comparison, entry: ContenderResult) -> BestOf | None:
    """What the search would have found with fewer trials. A lost trial counts as one that learned nothing."""
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
    """Gradient evaluations until a target is reached; inf if it is not, or if the run was lost."""
    curve = outcome.curve.get(name, [])
    if outcome.lost:
        return math.inf
    for i in range(2, len(curve)):
        last = curve[i - 2 : i + 1]
        if all(value is not None for value in last) and statistics.fmean(v or 0.0 for v in last) <= target:
            counts = outcome.curve.get("gradient evaluations", outcome.curve["step"])  # records of schema 1 lack them
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
    """What weakens a claim about an entry: mostly, that its search may have missed its best settings."""
    found = []
    if entry.lost_seeds:
        found.append(Alarm("lost", f"{entry.lost_seeds} of {len(entry.seeds)} confirming seeds were lost"))
    if part.track == "tuned" and entry.chosen is not None:
        ranges = {**entry.about.get("ranges", {}), **entry.about.get("extended", {})}
        for name, plain in ranges.items():
            side = decide.edge_of_search(name, dimension(plain), entry.chosen[name]) if name in entry.chosen else None
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
    """What the tasks of one track say together; None of one task alone, or without a baseline on each."""
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
