"""A race as tidy tables for other programs, CSV or Parquet."""

import csv
import importlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fallline.bench.common.names import needed
from fallline.bench.common.spaces import Setting
from fallline.bench.protocol.analysis import LEVELS, Results
from fallline.bench.protocol.comparison import Comparison, ContenderResult
from fallline.bench.protocol.design import run_seed
from fallline.bench.protocol.stats import Interval
from fallline.bench.runs.run import Outcome

Value = str | int | float | bool | None
"""A cell; None where nothing, or nothing finite, was measured."""


@dataclass(frozen=True)
class Frame:
    """A tidy table: rows with typed columns, a row for each observation."""

    columns: dict[str, type]
    """Name to `str`, `int`, `float` or `bool`."""

    rows: list[dict[str, Value]]
    """A column that a row lacks is None there."""


def _typed(kind: type, *names: str) -> dict[str, type]:
    return dict.fromkeys(names, kind)


_PLACE = {**_typed(str, "race", "task", "track", "optimizer", "stage"), **_typed(int, "number", "repeat")}
"""The columns that tell runs apart, and join `curves` to `runs`."""


def frames(results: Results) -> dict[str, Frame]:
    """`results`, one row an optimizer in a comparison; `runs`, one row a run; `curves`, one row a measured number."""
    return {"results": results_frame(results), "runs": runs_frame(results), "curves": curves_frame(results)}


def results_frame(results: Results) -> Frame:
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
            row |= {"ours": entry.ours, "seeds": len(entry.seeds), "seeds_lost": entry.failed_seeds}
            row |= {"trials": len(entry.trials), "trials_lost": entry.failed_trials, "chosen_trial": entry.chosen_trial}
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
    return Frame(columns, rows)


def runs_frame(results: Results) -> Frame:
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
    return Frame(columns, rows)


def curves_frame(results: Results) -> Frame:
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
    return Frame(columns, rows)


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


def as_csv(frame: Frame) -> str:
    """The frame as CSV: a header, full precision, nothing for None, `inf` for what was not reached.

    A spreadsheet takes a text that begins with `=`, `+`, `-` or `@` for a formula, and a name may come from anyone:
    such a text gets an apostrophe before it. Numbers stay what they are.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(frame.columns)
    writer.writerows([_no_formula(row.get(name)) for name in frame.columns] for row in frame.rows)
    return text.getvalue()


def _no_formula(value: Value) -> Value:
    return f"'{value}" if isinstance(value, str) and value.startswith(tuple("=+-@＝＋－＠\t\r\n")) else value


def as_parquet(frame: Frame, results: Results) -> bytes:
    """The frame as a Parquet file with typed columns; race and command stand in its metadata. `ValueError` without
    pyarrow."""
    arrow = needed("pyarrow", "Parquet", extra="parquet")
    parquet = importlib.import_module("pyarrow.parquet")
    types = {str: arrow.string(), int: arrow.int64(), float: arrow.float64(), bool: arrow.bool_()}
    columns = [arrow.array([row.get(n) for row in frame.rows], types[kind]) for n, kind in frame.columns.items()]
    about = {"race": results.race.id, "command": str(results.race.setting.get("command", ""))}
    file = io.BytesIO()
    parquet.write_table(arrow.table(columns, names=list(frame.columns), metadata=about), file)
    return file.getvalue()
