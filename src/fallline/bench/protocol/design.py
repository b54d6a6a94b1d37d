"""The design of a race, and what it decides from its own runs: who goes on, with which settings, against whom.

Trials find settings, reruns choose among the best of them, fresh seeds confirm the choice. No decision looks at a test
set. Everyone gets the same number of runs at each stage.
"""

import dataclasses
import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

from fallline.bench.common.seeds import derive
from fallline.bench.common.spaces import Choice, Range, Setting, Side, edge
from fallline.bench.protocol.verdict import Pairs

Stage = Literal["default", "trial", "choice", "seed"]
"""Shipped settings on the confirming seeds; points of the search; reruns of the best of them; the confirming seeds."""

STAGES: tuple[Stage, ...] = ("default", "trial", "choice", "seed")
CONFIRMING: tuple[Stage, ...] = ("default", "seed")
"""They share their seeds, and they alone look at the test set."""

TRACKS = ("tuned", "defaults")
TRACK_WORDS = {"tuned": "tuned", "defaults": "shipped settings"}

LOOKS = (1, 2, 4)
"""`--until-decided` judges at these multiples of the seeds, and shares its chance of a false claim among them."""

EXTENSION = 0.25
"""The share of the trials that `--extend` keeps back for ranges whose best lies at an edge."""


@dataclasses.dataclass(frozen=True)
class Design:
    """What is asked for. The same design on the same code and data is the same race."""

    tasks: tuple[str, ...]
    optimizers: tuple[str, ...]
    tracks: tuple[str, ...] = ("tuned",)
    trials: int = 20
    finalists: int = 3
    """How many of the trials are rerun; with 1 the best trial is confirmed as it is."""

    reruns: int = 3
    """Fresh seeds for each finalist, against the luck of the best among many."""

    seeds: int = 10
    seed: int = 0
    """Of the whole race: search, weights, order of the data."""

    baseline: str | None = None
    """Whom the others are compared with; None: the best in choice that is not ours."""

    until_decided: bool = False
    """More seeds for whoever has no evidence, up to four times as many."""

    extend: bool = False
    """The last quarter of the trials beyond an edge, where the best lies at one."""

    spaces: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """Changes to search spaces, by optimizer, as plain values."""

    device: str = "cpu"

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> "Design":
        """From what JSON made of it."""
        tuples: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in plain.items()}
        return cls(**tuples)

    @property
    def looks(self) -> tuple[int, ...]:
        """At how many seeds a verdict is given."""
        return tuple(self.seeds * look for look in LOOKS) if self.until_decided else (self.seeds,)

    @property
    def first_trials(self) -> int:
        """Trials before a look at the edges."""
        return self.trials - math.floor(EXTENSION * self.trials) if self.extend else self.trials

    def runs_wanted(self, trials: int, lost: int, seeds: int) -> int:
        """How many runs of tuned settings an optimizer makes on a task, as far as can be known by now.

        Args:
            trials: those that are done; once all are lost, nothing follows.
            lost: those of them that were lost.
            seeds: confirming seeds.
        """
        going_on = trials - lost if trials == self.trials else self.trials
        if not going_on:
            return self.trials
        return self.trials + min(self.finalists, going_on) * self.reruns_each + seeds

    @property
    def reruns_each(self) -> int:
        """Reruns of a finalist."""
        return self.reruns if self.finalists > 1 else 0


def title(task: str, track: str, tracks: Collection[str]) -> str:
    """The heading of a comparison: its task, and its track where a race has several."""
    return f"{task}, {TRACK_WORDS[track]}" if len(tracks) > 1 else task


def run_seed(design: Design, stage: str, number: int) -> int:
    """The seed of the `number`-th run of a stage, whose optimizer it does not depend on: that makes pairs."""
    return derive(design.seed, "seed" if stage in CONFIRMING else stage, number)


class Scored(Protocol):
    """An outcome, as far as choices look at it."""

    score: float | None


class Measured(Protocol):
    """An outcome, as far as its losses go."""

    curve: dict[str, list[float | None]]
    result: dict[str, float]


def finalists(trials: Mapping[int, Scored], count: int) -> list[int]:
    """The numbers of the trials with the lowest scores, best first; of equals the earliest. Lost trials are none."""
    scores = {number: outcome.score for number, outcome in trials.items() if outcome.score is not None}
    return sorted(scores, key=lambda number: (scores[number], number))[:count]


def chosen(trials: Mapping[int, Scored], reruns: Mapping[int, Sequence[Scored]], count: int) -> int | None:
    """The trial whose settings go on: of the finalists the one with the lowest mean over its reruns.

    A finalist that lost reruns comes after those that lost fewer. Without reruns it is the best trial, if any.
    """

    def rank(number: int) -> tuple[int, float, int]:
        scores = [outcome.score for outcome in reruns.get(number, ())]
        finished = [score for score in scores if score is not None]
        return len(scores) - len(finished), statistics.fmean(finished) if finished else math.inf, number

    best = finalists(trials, count)
    return min(best, key=rank) if any(reruns.get(number) for number in best) else next(iter(best), None)


def baseline(asked: str | None, candidates: Iterable[tuple[str, bool, Sequence[Scored]]]) -> str | None:
    """Whom the others are compared with: the one asked for, else the best in choice that is not ours, nor a stranger.

    An optimizer of one's own, `package.module:Class`, is what is asked about; it is the baseline where nobody else is.

    Args:
        asked: a name, which need not be among the candidates.
        candidates: (name, whether ours, outcomes by which its settings were chosen): scores on validation data, so that
            no look at the test set makes a baseline.
    """
    ranked = []
    for name, ours, outcomes in candidates:
        finished = [outcome.score for outcome in outcomes if outcome.score is not None]
        if name == asked:
            return name
        if finished and not ours:
            stranger = ":" in name and not name.startswith("torch.")
            ranked.append((stranger, len(outcomes) - len(finished), statistics.fmean(finished), name))
    return min(ranked)[-1] if ranked else None


def pairs(losses: Mapping[str, Mapping[int, float | None]], against: str) -> dict[str, Pairs]:
    """Everyone's losses by seed beside the baseline's."""
    return {name: Pairs(mine, losses[against]) for name, mine in losses.items() if name != against and mine}


def edge_of_search(name: str, there: Range | Choice | Setting, value: Setting) -> Side | None:
    """The edge of its range at which the best value of a setting lies, if better ones may lie beyond.

    Beyond the low edge of weight decay there is only less of what is next to nothing.
    """
    side = edge(there, value)
    return None if (name, side) == ("weight_decay", "low") else side


def initial_loss(outcomes: Iterable[Measured], held_out: bool) -> float | None:
    """The loss before training, median over runs: on validation data, or of the first stretch of training."""
    name, point = ("validation loss", 0) if held_out else ("train loss", 1)
    values = [o.curve[name][point] for o in outcomes if len(o.curve.get(name, ())) > point]
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def best_loss(entries: Iterable[Iterable[Measured]]) -> float | None:
    """The lowest mean final loss among optimizers, over the seeds that finished."""
    finals = [[o.result["loss"] for o in outcomes if "loss" in o.result] for outcomes in entries]
    return min((statistics.fmean(losses) for losses in finals if losses), default=None)


def way(initial: float | None, best: float | None) -> float:
    """What differences of losses are measured by: the way from the initial to the best loss.

    A ratio of losses says nothing where they are negative or change their sign, and changes when a constant is added to
    all of them; a share of the way does neither. Where the initial loss is unknown, or nobody came below it, it is the
    size of the best loss; 0 where that is unknown.
    """
    if best is None:
        return 0.0
    return initial - best if initial is not None and initial > best else abs(best)


def equivalence(task: float | None, initial: float | None, best: float | None) -> float:
    """The equivalence margin: the task's own, else 1 % of the way from the initial to the best loss."""
    return 0.01 * way(initial, best) if task is None else task
