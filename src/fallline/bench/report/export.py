"""A race's report for papers: Markdown, tidy tables as CSV or Parquet, and figures for print as PNG. It never trains.

All files of an export are made before the first is written, and each is put in its place in one move.
"""

import re
from pathlib import Path

from fallline.bench.common.files import put, stem
from fallline.bench.common.numbers import difference, listed
from fallline.bench.protocol.analysis import Results
from fallline.bench.protocol.comparison import Comparison
from fallline.bench.protocol.design import TRACK_WORDS
from fallline.bench.protocol.stats import FEW
from fallline.bench.report.frames import as_csv, as_parquet, frames
from fallline.bench.report.looks import lines
from fallline.bench.report.prints import as_png, draw
from fallline.bench.report.race_tables import Looks, across_table, markdown_results
from fallline.bench.report.tables import Row, Table, escaped
from fallline.bench.report.tables import markdown as table_lines
from fallline.bench.report.words import summary

FORMATS = ("md", "csv", "parquet", "png")


def export(results: Results, format: str, folder: Path) -> list[Path]:
    """Write the report of a race, finished or not, and return the files written.

    Args:
        results: the race.
        format: `md`, `csv`, `parquet` or `png`.
        folder: where to; made where it is not there.

    Raises:
        ValueError: another format, a library that is missing, or nothing to draw yet; no file is written then.
        OSError: a file cannot be written.
    """
    name = stem(results.design.tasks)
    files: dict[str, str | bytes]
    if format == "md":
        files = {f"{name}.md": markdown(results)}
    elif format == "csv":
        files = {f"{name}-{kind}.csv": as_csv(frame) for kind, frame in frames(results).items()}
    elif format == "parquet":
        files = {f"{name}-{kind}.parquet": as_parquet(frame, results) for kind, frame in frames(results).items()}
    elif format == "png":
        files = {f"{name}-{kind}.png": as_png(figure, results) for kind, figure in draw(results).items()}
        if not files:
            raise ValueError("no run of this race has finished: there is nothing to draw")
    else:
        raise ValueError(f"a report is written as {', '.join(FORMATS)}, not {format!r}")
    return [put(folder / file, content) for file, content in files.items()]


def markdown(results: Results) -> str:
    """The report as GitHub's Markdown: the summary, a table for each comparison, and how to repeat it."""
    race, setting, looks = results.race, results.race.setting, lines(results)
    written = [f"# Race on {listed([*map(escaped, results.design.tasks)])}", ""]
    written += [f"- {escaped(sentence)}" for sentence in summary(results)]
    if results.missing:
        written += ["", f"The race is not finished: {results.missing} more run{'s' * (results.missing > 1)} to come."]
    for part in results.parts:
        written += ["", *_comparison(part, looks)]
    for i, across in enumerate(results.across):
        table = across_table(i, across, looks)
        written += ["", f"## All tasks, {TRACK_WORDS[across.track]}", "", *table_lines(table)]
        written += ["", f"Optimizers that raced on {escaped(listed(across.tasks))}. {escaped(table.caption)}"]
    written += ["", "## How to repeat it", "", *_fenced(str(setting.get("command", ""))), ""]
    written += [f"Race {escaped(race.id)}, begun {escaped(race.started_at)}.", ""]
    written += table_lines(Table("", ["with", ""], [Row(pair) for pair in setting.get("environment", {}).items()]))
    return "\n".join(written) + "\n"


def _comparison(part: Comparison, looks: Looks) -> list[str]:
    """A table, and as notes under it what weakens its claims."""
    written = [f"## {escaped(part.task)}, {TRACK_WORDS[part.track]}", ""]
    written += [f"{escaped(str(part.about['summary']))}.", ""] if part.about.get("summary") else []
    written += [*table_lines(markdown_results(part, looks)), "", _caption(part)]
    notes = [f"{escaped(name)} was left out: {escaped(excuse)}." for name, excuse in part.left_out.items()]
    notes += [f"{escaped(e.label)}: {escaped(alarm.text)}." for e in part.entries for alarm in e.alarms]
    return [*written, *([""] if notes else []), *(f"- Note: {note}" for note in notes)]


def _caption(part: Comparison) -> str:
    """What the numbers of a table are."""
    counts = sorted({len(entry.finished) for entry in part.entries if entry.finished})
    seeds = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0]) if counts else "no"
    caption = f"Mean [95 % interval] over {seeds} finished seeds"
    caption += "; this library's in bold." if any(entry.ours for entry in part.entries) else "."
    if counts and counts[0] < FEW:
        caption += f" Intervals over fewer than {FEW} seeds are descriptive only."
    if part.baseline:
        caption += f" The equivalence margin is ±{difference(part.margin, part.scale or 1.0).lstrip('+')}."
    if not part.held_out:
        caption += " There is no held-out data: the loss is the mean training loss over the last tenth of a run."
    return caption


def _fenced(text: str) -> list[str]:
    """A block of code, its fence longer than any in the text."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return [f"{fence}sh", text, fence]
