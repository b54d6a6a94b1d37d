"""The same race under several race seeds: everyone searches anew, which shows the luck of the search.

Most of what separates two races of the same methods is not the seeds on which settings are confirmed but the search
that found them (Bouthillier et al., 2021). The interval over studies has both in it.
"""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fallline.bench.protocol.analysis import Results
from fallline.bench.protocol.comparison import Comparison, baseline
from fallline.bench.protocol.stats import (
    ALPHA,
    Interval,
    holm,
    interval,
    root_mean_square,
    sign_flip,
    smallest_p,
    standard_error,
)
from fallline.bench.protocol.verdict import Word


@dataclass(frozen=True)
class Study:
    """One optimizer against the baseline on one task, over all studies."""

    task: str
    track: str
    label: str
    against: str
    """The label of the baseline, which is the same one in all studies."""

    scale: float | None
    """The size of the losses: the baseline's mean."""

    differences: tuple[float | None, ...]
    """The mean loss less the baseline's, study by study; None where no seed was finished by both."""

    over_studies: Interval | None
    """The mean of the differences and its interval over studies: the luck of the search is in it."""

    error: float | None
    """The standard error that seeds alone would give a difference, root mean square over studies."""

    adjusted: float | None
    """p of the sign-flip test over studies, after Holm; None where so few studies cannot reach 0.05."""

    words: Mapping[Word, int]
    """The number of studies that gave each word."""

    @property
    def place(self) -> str:
        """Task and track."""
        return f"{self.task}, {self.track}"

    @property
    def word(self) -> Word:
        """The verdict of all studies together; a study without a difference, as all seeds failed, leaves no claim."""
        if self.adjusted is None or self.over_studies is None:
            return "too few seeds"
        if self.adjusted > ALPHA or not self.over_studies.excludes_zero or None in self.differences:
            return "no evidence"
        return "better" if self.over_studies.mean < 0 else "worse"


def studies(found: Sequence[Results]) -> list[Study]:
    """Compare everyone with one baseline over the same race under several race seeds, for all tasks and tracks.

    The baseline is the one asked for, else the best by validation score over all studies that is not ours.
    """
    rows = []
    for part in found[0].parts:
        rows += _studied(found[0].design.baseline, [held.part(part.task, part.track) for held in found], found[0])
    return rows


def _studied(asked: str | None, parts: Sequence[Comparison], first: Results) -> list[Study]:
    everywhere = [e for e in parts[0].entries if all(_finished(part, e.name) for part in parts)]
    choices = [(e.name, e.ours, [o for part in parts for o in part.get(e.name).choice]) for e in everywhere]
    against = baseline(asked, choices)
    if against is None:
        return []
    said = [part.words(against) for part in parts]
    base = [part.get(against).measure("loss") for part in parts]
    scale = abs(statistics.fmean(loss.mean for loss in base if loss))
    rivals = [
        name for name in first.design.optimizers if name != against and any(name in verdicts for verdicts in said)
    ]
    differences, errors = {}, {}
    for name in rivals:
        pairs = [part.get(name).paired(part.get(against)) for part in parts]
        gaps = [[mine - theirs for mine, theirs in some] for some in pairs]
        differences[name] = tuple(statistics.fmean(one) if one else None for one in gaps)
        errors[name] = root_mean_square(standard_error(one) for one in gaps)
    known = {name: [one for one in differences[name] if one is not None] for name in rivals}
    adjusted = holm([sign_flip(known[name]) for name in rivals])
    return [
        Study(
            task=parts[0].task,
            track=parts[0].track,
            label=parts[0].get(name).label,
            against=parts[0].get(against).label,
            scale=scale,
            differences=differences[name],
            over_studies=interval(known[name]),
            error=errors[name],
            adjusted=p if smallest_p(len(known[name])) * len(rivals) <= ALPHA else None,
            words=dict(Counter(verdicts[name] for verdicts in said if name in verdicts)),
        )
        for name, p in zip(rivals, adjusted, strict=True)
    ]


def _finished(part: Comparison, name: str) -> bool:
    return any(entry.name == name and entry.finished for entry in part.entries)
