"""A method raced against itself: what a verdict is worth when there is nothing to find.

Twins (`sgd`, `sgd#2`) are one method under two names, and each searches for itself. Whatever a race says of them, it
would say of two methods that are equally good. Seeds tell how sure the difference is between two sets of settings; how
lucky the searches were that found these settings, they cannot tell. Here it can be seen.
"""

import dataclasses
import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from rich.table import Table

from fallline.bench.common.files import put
from fallline.bench.common.numbers import difference
from fallline.bench.common.spaces import Setting
from fallline.bench.protocol.comparison import STEADY, Comparison, ContenderResult, Results
from fallline.bench.protocol.stats import Interval, share_interval
from fallline.bench.protocol.verdict import CLAIMS, Word

WORDS: tuple[Word, ...] = get_args(Word)
ALPHA = 0.05
TWINS = ("sgd", "sgd#2")


@dataclass(frozen=True)
class Duel:
    """One race of twins on one task."""

    seed: int
    """Of the race."""

    word: Word | None
    """What was said of the second twin; None if one of them has no finished seed."""

    p: float | None
    difference: float | None
    """The second's mean loss less the first's, over the seeds."""

    error: float | None
    """The standard error of the difference, from its spread over the seeds."""

    margin: float
    """The equivalence margin of the comparison."""

    settings: tuple[Mapping[str, Setting] | None, Mapping[str, Setting] | None]
    """What the two searches found."""

    wall: float | None
    """The second's wall time a gradient evaluation as a multiple of the first's, which does the same work."""

    cpu: float | None

    @property
    def called(self) -> bool:
        """Whether a difference was claimed."""
        return self.word in CLAIMS


@dataclass(frozen=True)
class AA:
    """What came of all races of twins on one task."""

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
        """How often each word was said."""
        counts = Counter(duel.word for duel in self.judged)
        return {word: counts[word] for word in WORDS}

    def share(self, *words: Word) -> Interval | None:
        """The share of verdicts that are one of these words, with its exact 95 % interval."""
        return share_interval(sum(self.words[word] for word in words), len(self.judged))

    @property
    def trifles(self) -> int:
        """How many of the claimed differences are within the equivalence margin."""
        return sum(duel.called and abs(duel.difference or 0.0) <= duel.margin for duel in self.judged)

    @property
    def searches(self) -> float | None:
        """How far two searches are apart: the root mean square of the differences, whose true mean is zero."""
        return root_mean_square(duel.difference for duel in self.duels)

    @property
    def seeds(self) -> float | None:
        """How far apart they would be by the luck of the seeds alone: the root mean square of the standard errors."""
        return root_mean_square(duel.error for duel in self.duels)

    @property
    def luck(self) -> float | None:
        """The share of the variance between two searches that seeds do not explain; 0 if they explain it all."""
        if not self.searches or self.seeds is None:
            return None
        return max(0.0, 1 - (self.seeds / self.searches) ** 2)

    @property
    def walls(self) -> float | None:
        """How far apart the wall times of the same work are in all but one of twenty races, as a share."""
        apart = [max(duel.wall, 1 / duel.wall) - 1 for duel in self.duels if duel.wall]
        return float(np.quantile(apart, 1 - ALPHA, method="higher")) if apart else None

    @property
    def steady(self) -> bool:
        """Whether wall times can be trusted."""
        return self.walls is None or self.walls <= STEADY


def aa_results(found: Sequence[Results]) -> list[AA]:
    """What races of twins say, task by task.

    Args:
        found: races of one design under different race seeds, with two entries: the baseline and its twin.

    Raises:
        ValueError: there was no search, without which twins are one and the same.
    """
    first = found[0]
    if "tuned" not in first.design.tracks:
        raise ValueError("twins with shipped settings make the very same runs; race them on the track tuned")
    told = []
    for task in first.design.tasks:
        parts = [held.part(task) for held in found]
        duels = tuple(_duel(held.design.seed, part) for held, part in zip(found, parts, strict=True))
        scale = next((part.scale for part in parts if part.scale), None)
        label = parts[0].get(first.design.optimizers[0]).label
        told.append(AA(task, label, parts[0].loss_name, scale, duels))
    return told


def _duel(seed: int, part: Comparison) -> Duel:
    twins = sorted(part.entries, key=lambda entry: entry is not part.baseline)
    one, other = twins
    said = other.verdict
    differences = paired(other, one)
    walls, cpus = ([twin.seconds(clock) for twin in twins] for clock in ("wall", "cpu"))
    return Duel(
        seed=seed,
        word=said.word if said and part.baseline else None,
        p=said.p if said else None,
        difference=statistics.fmean(differences) if differences else None,
        error=standard_error(differences),
        margin=part.margin,
        settings=(one.chosen, other.chosen),
        wall=walls[1] / walls[0] if walls[0] and walls[1] else None,
        cpu=cpus[1] / cpus[0] if cpus[0] and cpus[1] else None,
    )


def paired(mine: ContenderResult, theirs: ContenderResult) -> list[float]:
    """The differences of the final losses, over the seeds that both finished."""
    losses = [(loss, theirs.losses.get(number)) for number, loss in sorted(mine.losses.items())]
    return [ours - other for ours, other in losses if ours is not None and other is not None]


def standard_error(differences: Sequence[float]) -> float | None:
    """Of their mean; None of fewer than two."""
    return statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else None


def root_mean_square(values: Iterable[float | None]) -> float | None:
    """Of those that are known; None if none is."""
    known = [value for value in values if value is not None]
    return math.sqrt(statistics.fmean(value**2 for value in known)) if known else None


def aa_line(found: Results) -> str:
    """One race of twins in a line, as soon as it is over."""
    duels = [(part, _duel(found.design.seed, part)) for part in found.parts if part.track == "tuned"]
    told = [
        f"{part.task}: {duel.word or 'no verdict'}"
        + (f", {difference(duel.difference, part.scale or 1.0)}" if duel.difference is not None else "")
        for part, duel in duels
    ]
    return f"race seed {found.design.seed}: " + "; ".join(told)


def aa_table(found: AA) -> Table:
    """How often each word was said of a method and itself."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in (f"{found.label} against itself, {found.task}", "races", "share [95 % interval]"):
        table.add_column(heading, justify="right" if heading == "races" else "left")
    for word in WORDS:
        table.add_row(word, str(found.words[word]), _share(found.share(word)))
    called = sum(found.words[word] for word in CLAIMS)
    table.add_row("called different", str(called), _share(found.share(*CLAIMS)), style="bold")
    return table


def _share(share: Interval | None) -> str:
    return f"{share.mean:.0%} [{share.low:.0%}, {share.high:.0%}]" if share else "–"


def aa_words(found: AA) -> list[str]:
    """What the table means, and how far wall times can be trusted."""
    share, apart, by_seeds = found.share(*CLAIMS), found.searches, found.seeds
    if share is None or apart is None or by_seeds is None:
        return ["No race has come to a verdict."]
    called = sum(found.words[word] for word in CLAIMS)
    races = f"{len(found.judged)} race{'s' if len(found.judged) > 1 else ''}"
    told = [
        f"{found.label} was called different from itself in {called} of {races}; "
        f"the luck of the seeds alone would do so in at most {ALPHA:.0%}."
    ]
    if called:
        told += [
            f"Of the differences claimed, {found.trifles} of {called} lie within the equivalence margin.",
            "Such a claim need be no mistake of the test. The two searches found different settings, and of the "
            "settings the difference may well be true; of the methods it is not, for there is only one. Seeds cannot "
            "see the luck of a search; --studies, which repeats it, can.",
        ]

    def size(value: float) -> str:
        return difference(value, found.scale or 1.0).lstrip("+")

    told.append(
        f"Two searches end {size(apart)} apart in {found.loss_name} (root mean square); by the luck of the seeds alone "
        f"it would be {size(by_seeds)}. So {found.luck or 0.0:.0%} of the variance is the luck of the search, and a "
        f"difference of less than {size(2 * apart)} between two methods in one race may be no more than that."
    )
    if found.walls is not None:
        told.append(
            f"The wall time of the same work differs by up to {found.walls:.0%} from twin to twin (limit "
            f"{STEADY:.0%}): wall times of this machine {'can' if found.steady else 'cannot'} be trusted."
        )
    return told


def write_aa(found: Sequence[AA], folder: Path, environment: Mapping[str, str]) -> Path:
    """Write all numbers as `aa.json`, and return where."""
    plain = {"environment": dict(environment), "tasks": [aa_plain(one) for one in found]}
    return put(folder / "aa.json", json.dumps(plain, indent=2, ensure_ascii=False) + "\n")


def aa_plain(found: AA) -> dict[str, Any]:
    """Ready for JSON."""
    share = found.share(*CLAIMS)
    return {
        "task": found.task,
        "method": found.label,
        "words": found.words,
        "called_different": dataclasses.asdict(share) if share else None,
        "within_band": found.trifles,
        "rms_difference": found.searches,
        "rms_standard_error": found.seeds,
        "luck_of_the_search": found.luck,
        "wall_times_apart": found.walls,
        "races": [_plain_duel(duel) for duel in found.duels],
    }


def _plain_duel(duel: Duel) -> dict[str, Any]:
    plain = dataclasses.asdict(duel)
    return {"band" if name == "margin" else name: value for name, value in plain.items()}  # the name in the file
