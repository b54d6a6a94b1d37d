"""The luck of a search in words: twins that raced each other, and races that were held several times."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from fallline.bench.common.files import put
from fallline.bench.common.numbers import difference, listed, spread
from fallline.bench.protocol.aa import AA, Duel, duel
from fallline.bench.protocol.analysis import STEADY, Results
from fallline.bench.protocol.stats import ALPHA, FEW, Interval, fewest_seeds
from fallline.bench.protocol.studies import Study
from fallline.bench.protocol.verdict import CLAIMS, WORDS


def aa_line(found: Results) -> str:
    """One race of twins in a line, as soon as it is over."""
    duels = [(part, duel(found.design.seed, part)) for part in found.parts if part.track == "tuned"]
    sentences = [
        f"{part.task}: {one.word or 'no verdict'}"
        + (f", {difference(one.difference, part.scale or 1.0)}" if one.difference is not None else "")
        for part, one in duels
    ]
    return f"race seed {found.design.seed}: " + "; ".join(sentences)


def aa_table(found: AA) -> Table:
    """How often a method got each verdict against itself."""
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
    sentences = [
        f"{found.label} was called different from itself in {called} of {races}; "
        f"the luck of the seeds alone would do so in at most {ALPHA:.0%}."
    ]
    if called:
        sentences += [
            f"Of the differences claimed, {found.trifles} of {called} lie within the equivalence margin.",
            "Such a claim need be no mistake of the test. The two searches found different settings, and of the "
            "settings the difference may well be true; of the methods it is not, for there is only one. Seeds cannot "
            "see the luck of a search; --studies, which repeats it, can.",
        ]

    def size(value: float) -> str:
        return difference(value, found.scale or 1.0).lstrip("+")

    sentences.append(
        f"Two searches end {size(apart)} apart in {found.loss_name} (root mean square); by the luck of the seeds alone "
        f"it would be {size(by_seeds)}. So {found.luck or 0.0:.0%} of the variance is the luck of the search, and a "
        f"difference of less than {size(2 * apart)} between two methods in one race may be no more than that."
    )
    if found.walls is not None:
        sentences.append(
            f"The wall time of the same work differs by up to {found.walls:.0%} from twin to twin (limit "
            f"{STEADY:.0%}): wall times of this machine {'can' if found.steady else 'cannot'} be trusted."
        )
    return sentences


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
        "races": [_plain_duel(one) for one in found.duels],
    }


def _plain_duel(one: Duel) -> dict[str, Any]:
    plain = dataclasses.asdict(one)
    return {"band" if name == "margin" else name: value for name, value in plain.items()}  # the name in the file


def studies_table(rows: Sequence[Study]) -> Table:
    """One row an optimizer: the difference over studies, its standard error from seeds alone, and single verdicts."""
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
    """What the table compares, and which optimizers differ from the baseline."""
    if not rows:
        return ["No optimizer has a baseline to compare with in every study."]
    count = len(rows[0].differences)
    few = f", which fewer than {FEW} studies only describe" if count < FEW else ""
    sentences = [
        f"Every optimizer was tuned anew in each of {count} studies. Differences of the mean loss [95 % interval over "
        f"studies{few}]; next to them the standard error from the seeds of one study."
    ]
    for place in dict.fromkeys(row.place for row in rows):
        here = [row for row in rows if row.place == place]
        against = here[0].against
        where = f"{place}: " if len(here) < len(rows) else ""
        for word in CLAIMS:
            if names := [row.label for row in here if row.word == word]:
                verb = "is" if len(names) == 1 else "are"
                sentences.append(
                    f"{where}{listed(names)} {verb} {word} than {against} over studies, p ≤ {ALPHA:g} after Holm."
                )
        if all(row.word == "too few seeds" for row in here):
            enough = fewest_seeds(ALPHA, len(here))
            sentences.append(f"{where}{count} studies are too few to tell any optimizer from {against}; {enough} can.")
        elif all(row.word not in CLAIMS for row in here):
            sentences.append(f"{where}no evidence of a difference to {against} over studies.")
    return sentences
