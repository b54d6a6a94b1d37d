"""The search for settings: trials drawn from a space, a look beyond its edges, reruns of the best, and the choice.

Nothing here trains. A race, an experiment of a paper and the gallery run what a search plans, and add what came of it.
"""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import inf

from fallline.bench.common.spaces import Choice, Range, Setting, Side, Space, edge, extended, trials
from fallline.bench.runs.run import Outcome

Settings = dict[str, Setting]


@dataclass
class Search:
    """One optimizer's search on one task. `Search.drawn` plans one; a search without a plan holds what records say."""

    space: Space = field(default_factory=dict)
    shared: Mapping[str, Setting] = field(default_factory=dict)
    """The settings that all trials share."""

    plan: list[Settings] = field(default_factory=list)
    """The settings of the trials, by their numbers."""

    count: int = 0
    """The number of trials in all."""

    top: int = 1
    """The number of best trials to rerun."""

    repeats: int = 0
    """The number of reruns of each of them, against the luck of the best among many."""

    trials: dict[int, tuple[Settings, Outcome]] = field(default_factory=dict)
    """The settings and outcomes of the trials that have run."""

    reruns: dict[int, dict[int, Outcome]] = field(default_factory=dict)
    """The outcomes of the reruns, by trial and repeat."""

    @classmethod
    def drawn(
        cls,
        space: Space,
        count: int,
        seed: int,
        *,
        shared: Mapping[str, Setting] | None = None,
        first: Mapping[str, Setting] | None = None,
        top: int = 1,
        repeats: int = 0,
    ) -> "Search":
        """Plan a search.

        Args:
            space: the dimensions to search.
            count: the number of trials.
            seed: the seed of the points; the same seed with fewer trials draws the first of them.
            shared: settings that all trials share.
            first: settings of a first trial that stands before the points, such as the published ones.
            top: the number of best trials to rerun.
            repeats: the number of reruns of each of them.
        """
        shared = dict(shared or {})
        points = trials(space, count - (first is not None), seed)
        plan = [*([dict(first)] if first is not None else []), *({**shared, **point} for point in points)]
        return cls(space, shared, plan, count, top, repeats)

    def add(self, number: int, outcome: Outcome, settings: Settings | None = None) -> None:
        """Record the outcome of a trial; its settings are those of the plan unless given."""
        self.trials[number] = self.plan[number] if settings is None else settings, outcome

    @property
    def outcomes(self) -> dict[int, Outcome]:
        """The outcomes of the trials."""
        return {number: outcome for number, (_, outcome) in self.trials.items()}

    @property
    def failed(self) -> int:
        """The number of trials that diverged or failed."""
        return sum(outcome.lost for outcome in self.outcomes.values())

    @property
    def runs(self) -> list[Outcome]:
        """The outcomes of all trials and reruns."""
        return [*self.outcomes.values(), *(outcome for some in self.reruns.values() for outcome in some.values())]

    @property
    def tried(self) -> bool:
        """Whether all trials have run."""
        return len(self.trials) == self.count

    @property
    def hopeful(self) -> bool:
        """Whether some trial has finished, or may do so yet."""
        return not self.tried or self.failed < self.count

    @property
    def runs_wanted(self) -> int:
        """The number of trials and reruns in all, as far as is known."""
        candidates = self.count - self.failed if self.tried else self.count
        return self.count + min(self.top, candidates) * self.repeats

    @property
    def finalists(self) -> list[int]:
        """The trials to rerun, best first."""
        return finalists(self.outcomes, self.top)

    @property
    def done(self) -> bool:
        """Whether all trials and all reruns of the finalists have run."""
        return self.tried and sum(map(len, self.reruns.values())) == len(self.finalists) * self.repeats

    @property
    def chosen_trial(self) -> int | None:
        """The trial whose settings go on, as far as is known: of the finalists that with the lowest mean over reruns.

        A finalist with failed reruns comes after those with fewer. Without reruns it is the best trial, if any.
        """
        best = self.finalists
        if not any(self.reruns.get(number) for number in best):
            return next(iter(best), None)
        return min(best, key=lambda number: (*standing(self.reruns.get(number, {}).values()), number))

    @property
    def chosen(self) -> Settings | None:
        """The settings that go on; None while there are none, or if every trial failed."""
        return None if self.chosen_trial is None else self.trials[self.chosen_trial][0]

    def deciding(self, number: int | None) -> list[Outcome]:
        """The runs by whose scores a trial is chosen: its reruns, else itself."""
        if number is None:
            return []
        return list(self.reruns.get(number, {}).values()) or [self.trials[number][1]]

    def extend(self, seed: int) -> dict[str, Range]:
        """Move the trials that have not run beyond the edges at which the best trial lies.

        Args:
            seed: the seed of the new points.

        Returns:
            The ranges with what was opened beyond them; empty if nothing was, and then the plan stays as it is.
        """
        best = next(iter(finalists(self.outcomes, 1)), None)
        if best is None:
            return {}
        space, opened = dict(self.space), {}
        for name, there in self.space.items():
            side = edge_of_search(name, there, self.plan[best][name])
            if not isinstance(there, Range) or side is None or (wider := extended(there, side)) is None:
                continue
            low, high = (wider.low, there.low) if wider.low != there.low else (there.high, wider.high)
            space[name], opened[name] = Range(low, high, there.scale), wider
        if opened:
            first = len(self.trials)
            points = trials(space, len(self.plan) - first, seed)
            self.plan[first:] = [{**self.shared, **point} for point in points]
        return opened


def finalists(trials: Mapping[int, Outcome], count: int) -> list[int]:
    """The numbers of the trials with the lowest scores, best first; of equals the earliest. Failed trials are none."""
    scores = {number: outcome.score for number, outcome in trials.items() if outcome.score is not None}
    return sorted(scores, key=lambda number: (scores[number], number))[:count]


def standing(outcomes: Iterable[Outcome]) -> tuple[int, float]:
    """The rank of a setting by its runs, less is better: how many failed, then the mean score of the others."""
    scores = [outcome.score for outcome in outcomes]
    finished = [score for score in scores if score is not None]
    return len(scores) - len(finished), statistics.fmean(finished) if finished else inf


def edge_of_search(name: str, there: Range | Choice | Setting, value: Setting) -> Side | None:
    """The edge of its range at which the best value of a setting lies, if better ones may lie beyond.

    Beyond the low edge of weight decay there is only less of what is next to nothing.
    """
    side = edge(there, value)
    return None if (name, side) == ("weight_decay", "low") else side
