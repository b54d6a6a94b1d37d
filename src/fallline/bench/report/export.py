"""A race's report for papers: Markdown, tidy tables as CSV or Parquet, and figures for print as PNG. It never trains.

All files of an export are made before the first is written, and each is put in its place in one move.
"""

import csv
import importlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fallline.bench.common.files import put, stem
from fallline.bench.common.names import needed
from fallline.bench.common.numbers import TENTHS, describe, difference, listed, number, spread
from fallline.bench.common.spaces import Setting
from fallline.bench.protocol.analysis import LEVELS, Aggregate, Results
from fallline.bench.protocol.comparison import Comparison, ContenderResult
from fallline.bench.protocol.design import run_seed
from fallline.bench.protocol.stats import FEW, Interval
from fallline.bench.report.prints import as_png, draw
from fallline.bench.report.summary import summary
from fallline.bench.report.tables import escaped, markdown_row
from fallline.bench.runs.loop import Outcome

FORMATS = ("md", "csv", "parquet", "png")

Value = str | int | float | bool | None
"""A cell; None where there is nothing, or nothing finite, that was measured."""


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
        files = {f"{name}-{kind}.csv": as_csv(table) for kind, table in tables(results).items()}
    elif format == "parquet":
        files = {f"{name}-{kind}.parquet": as_parquet(table, results) for kind, table in tables(results).items()}
    elif format == "png":
        files = {f"{name}-{kind}.png": as_png(figure, results) for kind, figure in draw(results).items()}
        if not files:
            raise ValueError("no run of this race has finished: there is nothing to draw")
    else:
        raise ValueError(f"a report is written as {', '.join(FORMATS)}, not {format!r}")
    return [put(folder / file, content) for file, content in files.items()]


# --- Markdown: what the terminal says, for a page of text ---


def markdown(results: Results) -> str:
    """The report as GitHub's Markdown: the summary, a table for each comparison, and how to repeat it."""
    race, setting = results.race, results.race.setting
    lines = [f"# Race on {listed([*map(escaped, results.design.tasks)])}", ""]
    lines += [f"- {sentence}" for sentence in _sentences(results)]
    if results.missing:
        lines += ["", f"The race is not finished: {results.missing} more run{'s' * (results.missing > 1)} to come."]
    for part in results.parts:
        lines += ["", *_part_lines(part)]
    for across in results.across:
        lines += ["", *_across_lines(results, across)]
    lines += ["", "## How to repeat it", "", *_fenced(str(setting.get("command", ""))), ""]
    lines += [f"Race {escaped(race.id)}, begun {escaped(race.started_at)}.", "", "| with | |", "| --- | --- |"]
    lines += [markdown_row([escaped(name), escaped(value)]) for name, value in setting.get("environment", {}).items()]
    return "\n".join(lines) + "\n"


def _sentences(results: Results) -> Iterator[str]:
    """The summary; a sentence begins with a capital letter, unless it begins with a name."""
    names = (*results.design.tasks, *(entry.label for part in results.parts for entry in part.entries))
    for sentence in summary(results):
        yield escaped(sentence if sentence.startswith(names) else sentence[:1].upper() + sentence[1:])


def _part_lines(part: Comparison) -> list[str]:
    """A table, and as notes under it what weakens its claims."""
    shipped = part.track == "defaults"
    shown = {
        "accuracy": any(entry.measure("accuracy") for entry in part.entries),
        "against": part.baseline is not None,
        "trials": not shipped,
        "cpu": any(entry.relative_cpu is not None for entry in part.entries),
    }
    headings = ["optimizer", part.loss_name]
    headings += ["accuracy"] if shown["accuracy"] else []
    headings += [f"against {escaped(part.baseline.label)}", "p (Holm)"] if part.baseline else []
    headings += ["trials lost"] if shown["trials"] else []
    headings += ["CPU time × SGD"] if shown["cpu"] else []
    lines = [f"## {escaped(part.task)}, {'shipped settings' if shipped else 'tuned'}", ""]
    lines += [f"{escaped(str(part.about['summary']))}.", ""] if part.about.get("summary") else []
    lines += [markdown_row([*headings, "settings"]), markdown_row(["---"] * (len(headings) + 1))]
    for entry in part.entries:
        share = entry.measure("accuracy")
        label = escaped(entry.label)
        row = [f"**{label}**" if entry.ours else label, _loss_cell(entry)]
        row += [f"{100 * share.mean:.1f} %" if share else "–"] if shown["accuracy"] else []
        row += _verdict_cells(part, entry) if shown["against"] else []
        row += [f"{entry.lost_trials}/{len(entry.trials)}"] if shown["trials"] else []
        row += [number(entry.relative_cpu)] if shown["cpu"] else []
        lines.append(
            markdown_row([*row, escaped(describe(entry.chosen)) if entry.chosen else "shipped" if shipped else "–"])
        )
    lines += ["", _caption(part)]
    notes = [f"{escaped(name)} was left out: {escaped(excuse)}." for name, excuse in part.left_out.items()]
    notes += [f"{escaped(e.label)}: {escaped(alarm.text)}." for e in part.entries for alarm in e.alarms]
    return [*lines, *([""] if notes else []), *(f"- Note: {note}" for note in notes)]


def _caption(part: Comparison) -> str:
    """What the numbers of a table are."""
    counts = sorted({len(entry.finished) for entry in part.entries if entry.finished})
    seeds = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0]) if counts else "no"
    told = f"Mean [95 % interval] over {seeds} finished seeds"
    told += "; this library's in bold." if any(entry.ours for entry in part.entries) else "."
    if counts and counts[0] < FEW:
        told += f" Intervals of fewer than {FEW} seeds only describe what was seen."
    if part.baseline:
        told += f" Differences within ±{difference(part.margin, part.scale or 1.0).lstrip('+')} are of no consequence."
    if not part.held_out:
        told += " There is no held-out data: the loss is the mean training loss over the last tenth of a run."
    return told


def _loss_cell(entry: ContenderResult) -> str:
    """Loss and interval, or why there is none; seeds that were lost are named beside it."""
    if entry.trials and entry.lost_trials == len(entry.trials):
        return "every trial lost"
    loss = entry.measure("loss")
    if loss is None:
        return "every seed lost" if entry.seeds else "–"
    return spread(loss) + (f", {entry.lost_seeds}/{len(entry.seeds)} seeds lost" if entry.lost_seeds else "")


def _verdict_cells(part: Comparison, entry: ContenderResult) -> list[str]:
    """Word with difference, and p."""
    verdict = entry.verdict
    if verdict is None:
        return ["baseline" if entry is part.baseline else "–", "–"]
    gap = f" {spread(verdict.difference, part.scale or 1.0)}" if verdict.difference else ""
    return [verdict.word + gap, "–" if verdict.adjusted is None else f"{verdict.adjusted:.3g}"]


def _across_lines(results: Results, across: Aggregate) -> list[str]:
    """What the tasks of a track say together."""
    labels = {entry.name: entry.label for part in results.parts for entry in part.entries}
    lines = [f"## All tasks, {'shipped settings' if across.track == 'defaults' else 'tuned'}", ""]
    lines += [markdown_row(["optimizer", "loss above the baseline's, % of the way", "probability of improvement"])]
    lines += [markdown_row(["---"] * 3)]
    for name, iqm in across.iqm.items():
        lines.append(markdown_row([escaped(labels[name]), spread(iqm, TENTHS), spread(across.improvement[name])]))
    told = (
        f"Over {listed([*map(escaped, across.tasks)])}, with 95 % intervals. The first is the interquartile mean over"
        " all runs, in per cent of the way from the initial to the best loss of each task; the second is the chance"
        " that a run has a lower loss than one of the task's baseline."
    )
    return [*lines, "", told]


def _fenced(text: str) -> list[str]:
    """A block of code, its fence longer than any in the text."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return [f"{fence}sh", text, fence]


# --- tidy tables ---


@dataclass(frozen=True)
class Table:
    """Rows with typed columns; a row is one observation."""

    columns: dict[str, type]
    """Name to `str`, `int`, `float` or `bool`."""

    rows: list[dict[str, Value]]
    """A column that a row lacks is None there."""


def _typed(kind: type, *names: str) -> dict[str, type]:
    return dict.fromkeys(names, kind)


_PLACE = {**_typed(str, "race", "task", "track", "optimizer", "stage"), **_typed(int, "number", "repeat")}
"""The columns that tell runs apart, and join `curves` to `runs`."""


def tables(results: Results) -> dict[str, Table]:
    """`results`, one row an optimizer in a comparison; `runs`, one row a run; `curves`, one row a measured number."""
    return {"results": results_table(results), "runs": runs_table(results), "curves": curves_table(results)}


def results_table(results: Results) -> Table:
    """One row an optimizer in a comparison, in its order; losses and differences in units of the loss.

    `gradient_evaluations_to_95` is a median over seeds, inf where at most half of them reach the target: 95 % of the
    way from the loss before training to the baseline's. p-values are of the sign-flip test; `p_holm` is adjusted.
    """
    measures = _measures(entry.seeds.values() for part in results.parts for entry in part.entries)
    to_target = [f"gradient_evaluations_to_{100 * level:.0f}" for level in LEVELS]
    columns = {
        **_typed(str, "race", "task", "track"),
        **_typed(int, "rank"),
        **_typed(str, "optimizer", "label"),
        **_typed(bool, "ours"),
        **_typed(int, "seeds", "seeds_lost", "trials", "trials_lost"),
        **_typed(float, *(column + end for column in measures.values() for end in ("", "_low", "_high"))),
        **_typed(str, "baseline", "verdict"),
        **_typed(float, "difference", "difference_low", "difference_high", "p", "p_holm", "band", "detectable"),
        **_typed(int, "seeds_needed"),
        **_typed(str, "why"),
        **_typed(float, *to_target),
        **_typed(float, "cpu_seconds_per_evaluation", "cpu_relative_to_sgd", "wall_seconds_per_evaluation"),
        **_typed(bool, "wall_seconds_steady"),
        **_typed(float, "cpu_seconds"),
        **_typed(int, "state_bytes", "chosen_trial"),
        **_typed(str, "settings", "alarms"),
    }
    rows: list[dict[str, Value]] = []
    for part in results.parts:
        for rank, entry in enumerate(part.entries, start=1):
            row: dict[str, Value] = {**_place(results, part, entry), "rank": rank, "label": entry.label}
            row |= {"ours": entry.ours, "seeds": len(entry.seeds), "seeds_lost": entry.lost_seeds}
            row |= {"trials": len(entry.trials), "trials_lost": entry.lost_trials, "chosen_trial": entry.chosen_trial}
            for measure, column in measures.items():
                row |= _bounds(column, entry.measure(measure))
            row |= {"baseline": part.baseline.name if part.baseline else None, "band": part.margin}
            if verdict := entry.verdict:
                row |= {"verdict": verdict.word, **_bounds("difference", verdict.difference), "why": verdict.why}
                row |= {"p": verdict.p, "p_holm": verdict.adjusted, "detectable": verdict.detectable}
                row |= {"seeds_needed": verdict.needed}
            row |= dict(zip(to_target, map(entry.time_to, LEVELS), strict=True))
            row |= {"cpu_seconds_per_evaluation": entry.seconds(), "cpu_relative_to_sgd": entry.relative_cpu}
            row |= {"wall_seconds_per_evaluation": entry.seconds("wall"), "wall_seconds_steady": part.steady}
            row |= {"cpu_seconds": entry.cpu_seconds, "state_bytes": entry.state_bytes}
            row |= {"settings": None if entry.chosen is None else _json(entry.chosen)}
            row |= {"alarms": "; ".join(alarm.text for alarm in entry.alarms)}
            rows.append(row)
    return Table(columns, rows)


def runs_table(results: Results) -> Table:
    """One row a run; `repeat` counts the reruns of a trial. A setting that a run has not got is None.

    Stages are those of `fallline.bench.protocol.design.Stage`. The score is what the search minimised; loss and
    accuracy were measured at the end, on test data where there are any, in confirming runs only.
    """
    runs = [
        (part, entry, run) for part in results.parts for entry in part.entries for run in _runs(results, part, entry)
    ]
    measures = _measures([run.outcome] for _, _, run in runs)
    settings: dict[str, list[Setting]] = {}
    for _, _, run in runs:
        for name, value in run.settings.items():
            settings.setdefault(name, []).append(value)
    kinds = {name: _kind(values) for name, values in sorted(settings.items(), key=lambda item: item[0] != "lr")}
    columns = {
        **_PLACE,
        **_typed(str, "settings"),
        **{f"setting_{name}": kind for name, kind in kinds.items()},
        **_typed(int, "seed"),
        **_typed(str, "status"),
        **_typed(float, "score", *measures.values()),
        **_typed(int, "steps", "gradient_evaluations"),
        **_typed(float, "cpu_seconds", "wall_seconds"),
        **_typed(int, "state_bytes"),
        **_typed(str, "reason"),
    }
    rows: list[dict[str, Value]] = []
    for part, entry, run in runs:
        outcome = run.outcome
        row: dict[str, Value] = {**_place(results, part, entry), **run.place, "seed": run.seed}
        row |= {"settings": _json(run.settings)}
        row |= {f"setting_{name}": kinds[name](value) for name, value in run.settings.items()}
        row |= {"status": outcome.status, "score": outcome.score, "steps": outcome.steps, "reason": outcome.reason}
        row |= {column: outcome.result.get(measure) for measure, column in measures.items()}
        row |= {"gradient_evaluations": outcome.gradient_evaluations, "state_bytes": outcome.state_bytes}
        row |= {"cpu_seconds": outcome.cpu_seconds, "wall_seconds": outcome.wall_seconds}
        rows.append(row)
    return Table(columns, rows)


def curves_table(results: Results) -> Table:
    """One row a number measured during a run; its value is None where it was not finite, or not measured there."""
    columns = {
        **_PLACE,
        **_typed(int, "step", "gradient_evaluations"),
        **_typed(float, "cpu_seconds", "wall_seconds"),
        **_typed(str, "measure"),
        **_typed(float, "value"),
    }
    rows: list[dict[str, Value]] = []
    for part in results.parts:
        for entry in part.entries:
            for run in _runs(results, part, entry):
                curve, times = run.outcome.curve, run.outcome.times
                place = {**_place(results, part, entry), **run.place}
                for i, step in enumerate(curve.get("step", ())):
                    here: dict[str, Value] = {**place, "step": int(step or 0)}
                    if counts := curve.get("gradient evaluations"):
                        here["gradient_evaluations"] = int(counts[i] or 0)
                    here |= {name.replace(" ", "_"): seconds[i] for name, seconds in times.items()}
                    measured = (name for name in curve if name not in ("step", "gradient evaluations"))
                    rows += [{**here, "measure": name, "value": curve[name][i]} for name in measured]
    return Table(columns, rows)


@dataclass(frozen=True)
class _Run:
    """A run and its place in the race, as the records have it."""

    stage: str
    number: int
    repeat: int
    seed: int
    settings: Mapping[str, Setting]
    outcome: Outcome

    @property
    def place(self) -> dict[str, Value]:
        return {"stage": self.stage, "number": self.number, "repeat": self.repeat}


def _runs(results: Results, part: Comparison, entry: ContenderResult) -> Iterator[_Run]:
    """All runs of an entry, stage by stage."""

    def seed(stage: str, number: int) -> int:
        return run_seed(results.design, stage, number)

    for n, (settings, outcome) in entry.trials.items():
        yield _Run("trial", n, 0, seed("trial", n), settings, outcome)
    for n, reruns in entry.reruns.items():
        for repeat, outcome in reruns.items():
            yield _Run("choice", n, repeat, seed("choice", repeat), entry.trials[n][0], outcome)
    stage = "seed" if part.track == "tuned" else "default"
    for n, outcome in entry.seeds.items():
        yield _Run(stage, n, 0, seed(stage, n), entry.chosen or {}, outcome)


def _place(results: Results, part: Comparison, entry: ContenderResult) -> dict[str, Value]:
    return {"race": results.race.id, "task": part.task, "track": part.track, "optimizer": entry.name}


def _measures(outcomes: Iterable[Iterable[Outcome]]) -> dict[str, str]:
    """The names of final measures, and of their columns; a task's own must not take the name of another column."""
    names = {name for some in outcomes for outcome in some for name in outcome.result}
    return {"loss": "loss", "accuracy": "accuracy"} | {
        name: f"measure_{name}" for name in sorted(names - {"loss", "accuracy"})
    }


def _bounds(column: str, found: Interval | None) -> dict[str, Value]:
    return {column: found.mean, f"{column}_low": found.low, f"{column}_high": found.high} if found else {}


def _kind(values: Sequence[Setting]) -> type:
    """The type of a setting's column: text, where optimizers use one name for several kinds."""
    kinds = {type(value) for value in values}
    if kinds <= {int, float}:
        return float
    return bool if kinds == {bool} else str


def _json(settings: Mapping[str, Setting]) -> str:
    return json.dumps(settings, ensure_ascii=False)


def as_csv(table: Table) -> str:
    """The table as CSV: a header, full precision, nothing for None, `inf` for what was not reached.

    A spreadsheet takes a text that begins with `=`, `+`, `-` or `@` for a formula, and a name may come from anyone:
    such a text gets an apostrophe before it. Numbers stay what they are.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows([_no_formula(row.get(name)) for name in table.columns] for row in table.rows)
    return text.getvalue()


def _no_formula(value: Value) -> Value:
    return f"'{value}" if isinstance(value, str) and value.startswith(tuple("=+-@＝＋－＠\t\r\n")) else value


def as_parquet(table: Table, results: Results) -> bytes:
    """The table as a Parquet file with typed columns; race and command stand in its metadata. `ValueError` without
    pyarrow."""
    arrow = needed("pyarrow", "Parquet", extra="parquet")
    parquet = importlib.import_module("pyarrow.parquet")
    types = {str: arrow.string(), int: arrow.int64(), float: arrow.float64(), bool: arrow.bool_()}
    columns = [arrow.array([row.get(n) for row in table.rows], types[kind]) for n, kind in table.columns.items()]
    about = {"race": results.race.id, "command": str(results.race.setting.get("command", ""))}
    file = io.BytesIO()
    parquet.write_table(arrow.table(columns, names=list(table.columns), metadata=about), file)
    return file.getvalue()
