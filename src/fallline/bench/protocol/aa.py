"""A method raced against itself: what a verdict is worth when there is nothing to find.

Twins (`sgd`, `sgd#2`) are one method under two names, and each searches for itself. Whatever a race says of them, it
would say of two methods that are equally good. Seeds show how sure the difference is between two sets of settings.
They cannot show how lucky the searches were that found these settings; twins can.
"""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fallline.bench.common.spaces import Setting
from fallline.bench.protocol.analysis import STEADY, Results
from fallline.bench.protocol.comparison import Comparison
from fallline.bench.protocol.stats import ALPHA, Interval, root_mean_square, share_interval, standard_error
from fallline.bench.protocol.verdict import CLAIMS, WORDS, Word


@dataclass(frozen=True)
class Duel:
    """One race of twins on one task."""

    seed: int
    """The seed of the race."""

    word: Word | None
    """The verdict on the second twin; None if one of them has no finished seed."""

    p: float | None
    difference: float | None
    """The second's mean loss less the first's, over the seeds."""

    error: float | None
    """The standard error of the difference, from its spread over the seeds."""

    margin: float
    """The equivalence margin of the comparison."""

    settings: tuple[Mapping[str, Setting] | None, Mapping[str, Setting] | None]
    """The settings that the two searches found."""

    wall: float | None
    """The second's wall time a gradient evaluation as a multiple of the first's, which does the same work."""

    cpu: float | None

    @property
    def called(self) -> bool:
        """Whether a difference was claimed."""
        return self.word in CLAIMS


@dataclass(frozen=True)
class AA:
    """The races of twins on one task."""

    task: str
    label: str
    loss_name: str
    scale: float | None
    """The size of the losses."""

    duels: tuple[Duel, ...]

    @property
    def judged(self) -> list[Duel]:
        """Those that have a verdict."""
        return [duel for duel in self.duels if duel.word is not None]

    @property
    def words(self) -> dict[Word, int]:
        """The number of verdicts of each word."""
        counts = Counter(duel.word for duel in self.judged)
        return {word: counts[word] for word in WORDS}

    def share(self, *words: Word) -> Interval | None:
        """The share of verdicts that are one of these words, with its exact 95 % interval."""
        return share_interval(sum(self.words[word] for word in words), len(self.judged))

    @property
    def trifles(self) -> int:
        """The number of claimed differences that lie within the equivalence margin."""
        return sum(one.called and abs(one.difference or 0.0) <= one.margin for one in self.judged)

    @property
    def searches(self) -> float | None:
        """The distance of two searches: the root mean square of the differences, whose true mean is zero."""
        return root_mean_square(duel.difference for duel in self.duels)

    @property
    def seeds(self) -> float | None:
        """The distance that the luck of the seeds alone explains: the root mean square of the standard errors."""
        return root_mean_square(duel.error for duel in self.duels)

    @property
    def luck(self) -> float | None:
        """The share of the variance between two searches that seeds do not explain; 0 if they explain it all."""
        if not self.searches or self.seeds is None:
            return None
        return max(0.0, 1 - (self.seeds / self.searches) ** 2)

    @property
    def walls(self) -> float | None:
        """The share by which wall times of the same work differ, in all but one of twenty races."""
        apart = [max(duel.wall, 1 / duel.wall) - 1 for duel in self.duels if duel.wall]
        return float(np.quantile(apart, 1 - ALPHA, method="higher")) if apart else None

    @property
    def steady(self) -> bool:
        """Whether wall times can be trusted."""
        return self.walls is None or self.walls <= STEADY


def aa_results(found: Sequence[Results]) -> list[AA]:
    """Summarise races of twins, task by task.

    Args:
        found: races of one design under different race seeds, with two entries: the baseline and its twin.

    Raises:
        ValueError: there was no search, without which twins are one and the same.
    """
    first = found[0]
    if "tuned" not in first.design.tracks:
        raise ValueError("twins with default settings make the very same runs; race them on the track tuned")
    summaries = []
    for task in first.design.tasks:
        parts = [held.part(task) for held in found]
        duels = tuple(duel(held.design.seed, part) for held, part in zip(found, parts, strict=True))
        scale = next((part.scale for part in parts if part.scale), None)
        label = parts[0].get(first.design.optimizers[0]).label
        summaries.append(AA(task, label, parts[0].loss_name, scale, duels))
    return summaries


def duel(seed: int, part: Comparison) -> Duel:
    """Summarise one race of twins on one task."""
    twins = sorted(part.entries, key=lambda entry: entry is not part.baseline)
    one, other = twins
    verdict = other.verdict
    differences = [later - first for later, first in other.paired(one)]
    walls, cpus = ([twin.seconds(clock) for twin in twins] for clock in ("wall", "cpu"))
    return Duel(
        seed=seed,
        word=verdict.word if verdict and part.baseline else None,
        p=verdict.p if verdict else None,
        difference=statistics.fmean(differences) if differences else None,
        error=standard_error(differences),
        margin=part.margin,
        settings=(one.chosen, other.chosen),
        wall=walls[1] / walls[0] if walls[0] and walls[1] else None,
        cpu=cpus[1] / cpus[0] if cpus[0] and cpus[1] else None,
    )
