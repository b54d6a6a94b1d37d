"""The report of a race as GitHub's Markdown."""

import re
from collections.abc import Iterator

from fallline.bench.common.numbers import difference, listed
from fallline.bench.protocol.analysis import Results
from fallline.bench.protocol.comparison import Comparison
from fallline.bench.protocol.design import TRACK_WORDS
from fallline.bench.protocol.stats import FEW
from fallline.bench.report.looks import lines
from fallline.bench.report.race_tables import Looks, across_table, markdown_results
from fallline.bench.report.tables import Row, Table, escaped, markdown
from fallline.bench.report.words import summary


def document(results: Results) -> str:
    """The summary, a table for each comparison, and how to repeat it."""
    race, setting, looks = results.race, results.race.setting, lines(results)
    written = [f"# Race on {listed([*map(escaped, results.design.tasks)])}", ""]
    written += [f"- {sentence}" for sentence in _sentences(results)]
    if results.missing:
        written += ["", f"The race is not finished: {results.missing} more run{'s' * (results.missing > 1)} to come."]
    for part in results.parts:
        written += ["", *_comparison(part, looks)]
    for i, across in enumerate(results.across):
        table = across_table(i, across, looks)
        written += ["", f"## All tasks, {TRACK_WORDS[across.track]}", "", *markdown(table)]
        written += ["", f"Optimizers that raced on {escaped(listed(across.tasks))}. {escaped(table.caption)}"]
    written += ["", "## How to repeat it", "", *_fenced(str(setting.get("command", ""))), ""]
    written += [f"Race {escaped(race.id)}, begun {escaped(race.started_at)}.", ""]
    written += markdown(Table("", ["with", ""], [Row(pair) for pair in setting.get("environment", {}).items()]))
    return "\n".join(written) + "\n"


def _sentences(results: Results) -> Iterator[str]:
    """The summary; a sentence begins with a capital letter, unless it begins with a name."""
    names = (*results.design.tasks, *(entry.label for part in results.parts for entry in part.entries))
    for sentence in summary(results):
        yield escaped(sentence if sentence.startswith(names) else sentence[:1].upper() + sentence[1:])


def _comparison(part: Comparison, looks: Looks) -> list[str]:
    """A table, and as notes under it what weakens its claims."""
    written = [f"## {escaped(part.task)}, {TRACK_WORDS[part.track]}", ""]
    written += [f"{escaped(str(part.about['summary']))}.", ""] if part.about.get("summary") else []
    written += [*markdown(markdown_results(part, looks)), "", _caption(part)]
    notes = [f"{escaped(name)} was left out: {escaped(excuse)}." for name, excuse in part.left_out.items()]
    notes += [f"{escaped(e.label)}: {escaped(alarm.text)}." for e in part.entries for alarm in e.alarms]
    return [*written, *([""] if notes else []), *(f"- Note: {note}" for note in notes)]


def _caption(part: Comparison) -> str:
    """What the numbers of a table are."""
    counts = sorted({len(entry.finished) for entry in part.entries if entry.finished})
    seeds = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0]) if counts else "no"
    told = f"Mean [95 % interval] over {seeds} finished seeds"
    told += "; this library's in bold." if any(entry.ours for entry in part.entries) else "."
    if counts and counts[0] < FEW:
        told += f" Intervals of fewer than {FEW} seeds only describe what was seen."
    if part.baseline:
        told += f" The equivalence margin is ±{difference(part.margin, part.scale or 1.0).lstrip('+')}."
    if not part.held_out:
        told += " There is no held-out data: the loss is the mean training loss over the last tenth of a run."
    return told


def _fenced(text: str) -> list[str]:
    """A block of code, its fence longer than any in the text."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return [f"{fence}sh", text, fence]
