"""The same race under several race seeds: everyone searches anew, so that the luck of the search can be seen.

Most of what separates two races of the same methods is not the seeds on which settings are confirmed but the search
that found them (Bouthillier et al., 2021). The interval over studies has both in it.
"""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from fallline.bench.common.numbers import difference, listed, spread
from fallline.bench.protocol import design as decide
from fallline.bench.protocol.aa import ALPHA, WORDS, paired, root_mean_square, standard_error
from fallline.bench.protocol.comparison import Comparison, Results
from fallline.bench.protocol.stats import FEW, Interval, fewest_seeds, holm, interval, sign_flip, smallest_p
from fallline.bench.protocol.verdict import CLAIMS, Word, judge


@dataclass(frozen=True)
class Study:
    """What all studies say of one optimizer against the baseline on one task."""

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
    """In how many studies which word was said."""

    @property
    def place(self) -> str:
        """Task and track."""
        return f"{self.task}, {self.track}"

    @property
    def word(self) -> Word:
        """What the studies say together, lost ones included: a study that has no difference leaves no claim."""
        if self.adjusted is None or self.over_studies is None:
            return "too few seeds"
        if self.adjusted > ALPHA or not self.over_studies.excludes_zero or None in self.differences:
            return "no evidence"
        return "better" if self.over_studies.mean < 0 else "worse"


def studies(found: Sequence[Results]) -> list[Study]:
    """What the same race under several race seeds says of everyone against one baseline, for all tasks and tracks.

    The baseline is the one asked for, else the best in choice over all studies that is not ours.
    """
    told = []
    for part in found[0].parts:
        told += _studied(found[0].design.baseline, [held.part(part.task, part.track) for held in found], found[0])
    return told


def _studied(asked: str | None, parts: Sequence[Comparison], first: Results) -> list[Study]:
    everywhere = [e for e in parts[0].entries if all(_finished(part, e.name) for part in parts)]
    choices = [(e.name, e.ours, [o for part in parts for o in part.get(e.name).choice]) for e in everywhere]
    against = decide.baseline(asked, choices)
    if against is None:
        return []
    said = [_verdicts(part, against, len(first.design.looks)) for part in parts]
    base = [part.get(against).measure("loss") for part in parts]
    scale = abs(statistics.fmean(loss.mean for loss in base if loss))
    rivals = [
        name for name in first.design.optimizers if name != against and any(name in verdicts for verdicts in said)
    ]
    differences, errors = {}, {}
    for name in rivals:
        pairs = [paired(part.get(name), part.get(against)) for part in parts]
        differences[name] = tuple(statistics.fmean(one) if one else None for one in pairs)
        errors[name] = root_mean_square(standard_error(one) for one in pairs)
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


def _verdicts(part: Comparison, against: str, looks: int) -> dict[str, Word]:
    """What one study says against the baseline of all."""
    if part.baseline is not None and part.baseline.name == against:
        return {entry.name: entry.verdict.word for entry in part.entries if entry.verdict}
    losses = {entry.name: entry.losses for entry in part.entries if entry.seeds}
    verdicts = judge(decide.pairs(losses, against), part.margin, looks=looks)
    return {name: verdict.word for name, verdict in verdicts.items()}


def studies_table(rows: Sequence[Study]) -> Table:
    """One row an optimizer: the difference over studies, what seeds alone make of it, and what single studies said."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    several = len({row.place for row in rows}) > 1
    for heading in (*([""] if several else []), "", "over studies", "seeds alone", "in single studies"):
        table.add_column(heading)
    for row in rows:
        scale = row.scale or 1.0
        words = ", ".join(f"{word} {row.words[word]}" for word in WORDS if row.words.get(word))
        seeds = f"±{difference(row.error, scale).lstrip('+')}" if row.error is not None else "–"
        table.add_row(
            *([row.place] if several else []), row.label, spread(row.over_studies, scale), seeds, words or "–"
        )
    return table


def studies_words(rows: Sequence[Study]) -> list[str]:
    """What the table compares, and who is told from the baseline."""
    if not rows:
        return ["No optimizer has a baseline to compare with in every study."]
    count = len(rows[0].differences)
    few = f", which fewer than {FEW} studies only describe" if count < FEW else ""
    told = [
        f"Everyone searched anew in each of {count} studies. Differences of the mean loss [95 % interval over "
        f"studies{few}]; beside them the standard error that the seeds of one study give."
    ]
    for place in dict.fromkeys(row.place for row in rows):
        here = [row for row in rows if row.place == place]
        against = here[0].against
        where = f"{place}: " if len(here) < len(rows) else ""
        for word in CLAIMS:
            if names := [row.label for row in here if row.word == word]:
                verb = "is" if len(names) == 1 else "are"
                told.append(
                    f"{where}{listed(names)} {verb} {word} than {against} over studies, p ≤ {ALPHA:g} after Holm."
                )
        if all(row.word == "too few seeds" for row in here):
            enough = fewest_seeds(ALPHA, len(here))
            told.append(f"{where}{count} studies are too few to tell anyone from {against}; {enough} can.")
        elif all(row.word not in CLAIMS for row in here):
            told.append(f"{where}no evidence of a difference to {against} over studies.")
    return told
