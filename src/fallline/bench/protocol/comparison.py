"""The comparison of all contenders on one task: baseline, initial loss, margin, and the verdict on each.

It is made in this one place. The rule that stops a race, its report and the studies over several races ask for it
here, so that they cannot disagree.
"""

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fallline.bench.protocol.design import CONFIRMATION, SELECTION, TRIAL, Design
from fallline.bench.protocol.search import Search, Settings, standing
from fallline.bench.protocol.stats import Interval, censored_median, interval
from fallline.bench.protocol.verdict import Pairs, Verdict, Word, judge, words
from fallline.bench.runs.run import Outcome


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
    """What a race knows of one contender on one task and track: built run by run, live or from the records."""

    name: str
    about: dict[str, Any]
    """`label`, `ours`, `space`, `ranges`, `fixed`, `schedule`, `source`, `extended`: see `Contender.describe`."""

    track: str = "tuned"
    search: Search = field(default_factory=Search)
    """The search for its settings; empty on the track of defaults."""

    seeds_wanted: int = 0
    seeds: dict[int, Outcome] = field(default_factory=dict)
    """The confirming runs."""

    confirmed: Settings | None = None
    """The settings of these runs; None where that is not known."""

    verdict: Verdict | None = None
    """The verdict against the baseline."""

    relative_cpu: float | None = None
    """CPU time per gradient evaluation, as a multiple of SGD's."""

    best_of: BestOf | None = None
    hits: dict[float, list[float]] = field(default_factory=dict)
    """By level, gradient evaluations until the target is reached, one a seed; inf where it is not."""

    alarms: list[Alarm] = field(default_factory=list)

    def add(self, stage: str, number: int, repeat: int, settings: Settings, outcome: Outcome) -> None:
        """Take in a run, at its place in the race."""
        if stage == TRIAL:
            self.search.add(number, outcome, settings)
        elif stage == SELECTION:
            self.search.reruns.setdefault(number, {})[repeat] = outcome
        else:
            self.seeds[number] = outcome
            self.confirmed = settings if stage == CONFIRMATION else None

    @property
    def label(self) -> str:
        """The name to print."""
        return str(self.about["label"])

    @property
    def ours(self) -> bool:
        """Whether it is a method of this library."""
        return bool(self.about["ours"])

    @property
    def trials(self) -> dict[int, tuple[Settings, Outcome]]:
        """The settings and outcomes of the trials."""
        return self.search.trials

    @property
    def reruns(self) -> dict[int, dict[int, Outcome]]:
        """The outcomes of the reruns, by trial and repeat."""
        return self.search.reruns

    @property
    def chosen_trial(self) -> int | None:
        """The trial whose settings go on; None while there is none, or where the records have lost it."""
        if self.confirmed in (None, self.search.chosen):
            return self.search.chosen_trial
        return next((number for number, (settings, _) in self.trials.items() if settings == self.confirmed), None)

    @property
    def chosen(self) -> Settings | None:
        """The settings that go on; none are set on the track of defaults."""
        if self.track == "defaults":
            return {}
        return self.search.chosen if self.confirmed is None else self.confirmed

    @property
    def failed_trials(self) -> int:
        """Trials that diverged or failed."""
        return self.search.failed

    @property
    def failed_seeds(self) -> int:
        """Seeds that diverged or failed."""
        return sum(outcome.lost for outcome in self.seeds.values())

    @property
    def finished(self) -> dict[int, Outcome]:
        """The seeds that reached the end."""
        return {number: outcome for number, outcome in self.seeds.items() if not outcome.lost}

    @property
    def losses(self) -> dict[int, float | None]:
        """The final loss of every seed; None where it failed."""
        return {number: outcome.result.get("loss") for number, outcome in self.seeds.items()}

    @property
    def choice(self) -> list[Outcome]:
        """The runs by whose scores its settings were chosen; with default settings, all."""
        if self.chosen_trial is None:
            return list(self.seeds.values()) if not self.trials else []
        return self.search.deciding(self.chosen_trial)

    @property
    def runs(self) -> list[Outcome]:
        """All of its runs."""
        return [*self.search.runs, *self.seeds.values()]

    @property
    def runs_wanted(self) -> int:
        """The number of runs it makes in all, as far as is known; no seeds follow when every trial failed."""
        if self.track == "defaults":
            return self.seeds_wanted
        return self.search.runs_wanted + (self.seeds_wanted if self.search.hopeful else 0)

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds of all of its runs."""
        return sum(outcome.cpu_seconds for outcome in self.runs)

    def measure(self, name: str) -> Interval | None:
        """The interval of a final measure over the seeds that finished; None where there is nothing to measure."""
        return interval([outcome.result[name] for outcome in self.finished.values() if name in outcome.result])

    def paired(self, other: "ContenderResult") -> list[tuple[float, float]]:
        """Its final losses beside another's, over the seeds that both finished."""
        theirs = other.losses
        both = [(loss, theirs.get(number)) for number, loss in sorted(self.losses.items())]
        return [(mine, its) for mine, its in both if mine is not None and its is not None]

    def above(self, other: "ContenderResult") -> Interval | None:
        """By how many per cent of the size of another's mean loss it lies above that, over the seeds both finished."""
        mean = other.measure("loss")
        return interval([100 * (a - b) / abs(mean.mean) for a, b in self.paired(other)]) if mean else None

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
    """All contenders on one task and track, best first. Those with failed seeds come after those with none."""

    task: str
    about: Mapping[str, Any]
    """`summary`, `steps`, `held_out`, `floor`, ...: see `Task.describe`."""

    track: str
    entries: list[ContenderResult]
    left_out: dict[str, str]
    looks: int = 1
    """The number of times that a race may judge it."""

    baseline: ContenderResult | None = None
    initial: float | None = None
    """The loss before training."""

    way: float = 0.0
    """The way from the initial to the best loss, see `way`."""

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
        """The name of the result."""
        return "test loss" if self.held_out else "mean loss over the last tenth"

    @property
    def score_name(self) -> str:
        """The name of what the search minimised."""
        return "validation loss" if self.held_out else "mean loss over the last tenth"

    def get(self, name: str) -> ContenderResult:
        """The entry of that name."""
        return next(entry for entry in self.entries if entry.name == name)

    @property
    def losses(self) -> dict[str, dict[int, float | None]]:
        """The final losses by seed, of those that have run seeds."""
        return {entry.name: entry.losses for entry in self.entries if entry.seeds}

    def rivals(self, against: str) -> dict[str, Pairs]:
        """The losses of everyone else beside those of a baseline."""
        losses = self.losses
        return {name: Pairs(mine, losses[against]) for name, mine in losses.items() if name != against}

    def judged(self, against: str) -> dict[str, Verdict]:
        """The verdicts on everyone else against a baseline."""
        return judge(self.rivals(against), self.margin, looks=self.looks)

    def words(self, against: str) -> dict[str, Word]:
        """The words of these verdicts, which take less time."""
        return words(self.rivals(against), self.margin, looks=self.looks)


def compare(
    design: Design,
    task: str,
    track: str,
    about: Mapping[str, Any],
    entries: Sequence[ContenderResult],
    left_out: Mapping[str, str] | None = None,
) -> Comparison:
    """Compare what contenders have done by now, and set their verdicts.

    Args:
        design: the design of the race: baseline asked for, number of looks.
        task: the name of the task.
        track: `tuned` or `defaults`.
        about: what `Task.describe` says of the task.
        entries: everyone on the task.
        left_out: who does not take part, and why.
    """
    found = Comparison(task, about, track, sorted(entries, key=_rank), dict(left_out or {}), len(design.looks))
    against = baseline(design.baseline, [(e.name, e.ours, e.choice) for e in found.entries if e.finished])
    found.initial = initial_loss(itertools.chain(*(e.seeds.values() for e in found.entries)), found.held_out)
    best = min((statistics.fmean(losses) for e in found.entries if (losses := _finals(e))), default=None)
    # Where a task names its margin, as one that begins near its minimum does, the way is what the margin is 1 % of.
    named = about.get("equivalence")
    found.way = 100 * named if named else way(found.initial, best)
    found.margin = 0.01 * way(found.initial, best) if named is None else named
    found.baseline = None if against is None else found.get(against)
    verdicts = {} if against is None else found.judged(against)
    for entry in found.entries:
        entry.verdict = verdicts.get(entry.name)
    return found


def _rank(entry: ContenderResult) -> tuple[bool, int, float]:
    loss = entry.measure("loss")
    return loss is None, entry.failed_seeds, loss.mean if loss else 0.0


def _finals(entry: ContenderResult) -> list[float]:
    return [outcome.result["loss"] for outcome in entry.seeds.values() if "loss" in outcome.result]


def baseline(asked: str | None, candidates: Iterable[tuple[str, bool, Sequence[Outcome]]]) -> str | None:
    """The baseline: the one asked for, else the best by validation score that is neither ours nor a stranger.

    An optimizer of one's own, `package.module:Class`, is what is asked about; it is the baseline only where there is
    no other.

    Args:
        asked: a name, which need not be among the candidates.
        candidates: (name, whether ours, outcomes by which its settings were chosen): scores on validation data, so that
            no look at the test set makes a baseline.
    """
    ranked = []
    for name, ours, outcomes in candidates:
        if name == asked:
            return name
        failed, mean = standing(outcomes)
        if failed < len(outcomes) and not ours:
            stranger = ":" in name and not name.startswith("torch.")
            ranked.append((stranger, failed, mean, name))
    return min(ranked)[-1] if ranked else None


def initial_loss(outcomes: Iterable[Outcome], held_out: bool) -> float | None:
    """The loss before training, median over runs: on validation data, or of the first stretch of training."""
    name, point = ("validation loss", 0) if held_out else ("train loss", 1)
    values = [o.curve[name][point] for o in outcomes if len(o.curve.get(name, ())) > point]
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def way(initial: float | None, best: float | None) -> float:
    """The measure of differences of losses: the way from the initial to the best loss.

    A ratio of losses says nothing where they are negative or change their sign, and changes when a constant is added to
    all of them; a share of the way does neither. Where the initial loss is unknown, or no loss came below it, it is the
    size of the best loss; 0 where that is unknown.
    """
    if best is None:
        return 0.0
    return initial - best if initial is not None and initial > best else abs(best)
