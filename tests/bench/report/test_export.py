"""The exports: every number is the record's, names cannot break a format, nothing of a figure is cut off."""

import csv
import dataclasses
import io
import json
import math
import re
import sys

import matplotlib
import numpy as np
import pyarrow.parquet
import pytest
from markdown_it import MarkdownIt
from matplotlib.text import Text
from PIL import Image
from referee import Inline, Referee

from fallline.bench.common.numbers import TENTHS, number, spread
from fallline.bench.contenders import CONTENDERS
from fallline.bench.race.results import results
from fallline.bench.race.store import Store
from fallline.bench.report import frames, prints
from fallline.bench.report.export import export, markdown
from fallline.bench.report.looks import COLOURS, Line, lines
from fallline.bench.report.page import page_name
from fallline.bench.report.tables import escaped
from fallline.bench.report.words import summary

EVIL = "=cmd|'/c calc'!A1 <b>*bold*</b> `$x_1$` &amp; [a](b)\n# 1. head"

SMALL = {"trials": 4, "finalists": 2, "reruns": 2, "seeds": 3}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Records of the races below, which no test changes."""
    with Store(tmp_path_factory.mktemp("records") / "records.sqlite") as opened:
        yield opened


@pytest.fixture(scope="module")
def held(store):
    """Two tasks and two tracks; one optimizer loses every trial on one of the tasks."""
    tasks, tracks = ("sprint:Cliff", "sprint:Sprint"), ("tuned", "defaults")
    race = Referee(store).race("koala-m", "sgd", "adamw", tasks=tasks, tracks=tracks, **SMALL)
    return results(store, race)


@pytest.fixture(scope="module")
def single(store):
    """One task, where SGD can only diverge."""
    return results(store, Referee(store).race("koala-m", "sgd", "adamw", task="sprint:Cliff", **SMALL))


@pytest.fixture(scope="module")
def figures_held(held):
    """The figures of the race on two tasks."""
    return prints.draw(held)


@pytest.fixture(scope="module")
def figures_single(single):
    """The figures of the race on one."""
    return prints.draw(single)


@pytest.fixture
def fresh(tmp_path):
    """Someone to hold a race that a test may spoil."""
    with Store(tmp_path / "fresh.sqlite") as opened:
        yield Referee(opened)


def read_csv(path):
    """The rows of a CSV file, all cells text."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_parquet(path):
    """The rows of a Parquet file, cells typed."""
    return pyarrow.parquet.read_table(path).to_pylist()


def by_table(paths):
    """`results`, `runs`, `curves` to the file."""
    return {path.stem.rpartition("-")[2]: path for path in paths}


def place(row):
    """Which run a row is of."""
    return tuple(str(row[name]) for name in ("task", "optimizer", "stage", "number", "repeat"))


# --- tables ---


def test_every_run_of_the_records_is_a_row_with_its_numbers(held, store, tmp_path):
    typed = {place(row): row for row in read_parquet(by_table(export(held, "parquet", tmp_path))["runs"])}
    written = {place(row): row for row in read_csv(by_table(export(held, "csv", tmp_path))["runs"])}
    recorded = list(store.runs(held.race.id))
    assert len(recorded) == len(typed) == len(written)
    for entry, run, outcome in recorded:
        key = (entry.task, entry.optimizer, entry.stage, str(entry.number), str(entry.repeat))
        expected = {
            "seed": run.seed,
            "track": "defaults" if entry.stage == "default" else "tuned",
            "status": outcome.status,
            "score": outcome.score,
            "loss": outcome.result.get("loss"),
            "accuracy": outcome.result.get("accuracy"),
            "steps": outcome.steps,
            "gradient_evaluations": outcome.gradient_evaluations,
            "cpu_seconds": outcome.cpu_seconds,
            "wall_seconds": outcome.wall_seconds,
            "state_bytes": outcome.state_bytes,
            "reason": outcome.reason,
            **{f"setting_{name}": value for name, value in run.settings.items()},
        }
        row = typed[key]
        assert {name: row[name] for name in expected} == expected
        assert json.loads(row["settings"]) == run.settings
        absent = {name for name in row if name.startswith("setting_")} - expected.keys()
        assert all(row[name] is None for name in absent)
        for name, value in expected.items():  # and the same, to the last digit, as text
            cell = written[key][name]
            assert cell == ("" if value is None else value if isinstance(value, str) else repr(value)), name


def test_every_measured_number_is_a_row_of_the_curves(held, store, tmp_path):
    found = {}
    for row in read_parquet(by_table(export(held, "parquet", tmp_path))["curves"]):
        points = found.setdefault((place(row), row["measure"]), [])
        spent = row["gradient_evaluations"], row["cpu_seconds"], row["wall_seconds"]
        points.append((row["step"], *spent, row["value"]))
    expected = {}
    for entry, _, outcome in store.runs(held.race.id):
        key = tuple(map(str, dataclasses.astuple(entry)))
        axes = [outcome.curve["step"], outcome.curve["gradient evaluations"]]
        axes += [outcome.times["cpu seconds"], outcome.times["wall seconds"]]
        for name in ("train loss", "validation loss", "validation accuracy"):
            expected[key, name] = list(zip(*axes, outcome.curve[name], strict=True))
    assert found == expected
    assert any(value is None for points in found.values() for *_, value in points)


def test_csv_and_parquet_hold_the_same_tables(held, tmp_path):
    typed, written = by_table(export(held, "parquet", tmp_path)), by_table(export(held, "csv", tmp_path))
    assert typed.keys() == written.keys() == {"results", "runs", "curves"}
    for name in typed:
        table, rows = pyarrow.parquet.read_table(typed[name]), read_csv(written[name])
        assert table.column_names == list(rows[0])
        for row, other in zip(table.to_pylist(), rows, strict=True):
            assert {column: "" if value is None else str(value) for column, value in row.items()} == other


def test_columns_have_types_even_where_they_are_empty(held, tmp_path):
    schema = pyarrow.parquet.read_schema(by_table(export(held, "parquet", tmp_path))["results"])
    kinds = {name: str(schema.field(name).type) for name in ("rank", "ours", "loss", "label", "p_holm", "seeds_needed")}
    expected = {"rank": "int64", "ours": "bool", "loss": "double", "label": "string", "p_holm": "double"}
    assert kinds == {**expected, "seeds_needed": "int64"}
    assert schema.metadata[b"race"].decode() == held.race.id


def test_the_results_are_those_of_the_comparisons(held, tmp_path):
    rows = read_parquet(by_table(export(held, "parquet", tmp_path))["results"])
    assert len(rows) == sum(len(part.entries) for part in held.parts) == 12
    for part in held.parts:
        mine = [row for row in rows if (row["task"], row["track"]) == (part.task, part.track)]
        assert [row["optimizer"] for row in sorted(mine, key=lambda row: row["rank"])] == [e.name for e in part.entries]
        for row in mine:
            entry = part.get(row["optimizer"])
            loss, verdict = entry.measure("loss"), entry.verdict
            assert row["baseline"] == part.baseline.name
            assert (row["loss"], row["loss_low"], row["loss_high"]) == (
                (loss.mean, loss.low, loss.high) if loss else (None,) * 3
            )
            assert (row["verdict"], row["p_holm"]) == ((verdict.word, verdict.adjusted) if verdict else (None, None))
            assert row["gradient_evaluations_to_95"] == entry.time_to(0.95)
            assert row["seeds_lost"] == 0
            assert row["trials_lost"] == entry.failed_trials
    cliff = next(r for r in rows if (r["task"], r["track"], r["optimizer"]) == ("sprint:Cliff", "tuned", "sgd"))
    assert (cliff["trials_lost"], cliff["seeds"], cliff["loss"], cliff["settings"]) == (4, 0, None, None)
    assert any(row["gradient_evaluations_to_100"] == math.inf for row in rows)


def test_a_name_is_no_formula_in_a_spreadsheet_and_a_number_stays_one():
    texts = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "＝1", "1-1", "sgd", "'quoted", ""]
    table = frames.Frame({"text": str, "value": float}, [{"text": text, "value": -0.5} for text in texts])
    rows = list(csv.DictReader(io.StringIO(frames.as_csv(table))))
    assert [row["text"] for row in rows] == [f"'{text}" for text in texts[:6]] + texts[6:]
    assert {float(row["value"]) for row in rows} == {-0.5}


def test_a_setting_that_is_of_several_kinds_is_text(fresh):
    race = fresh.race("sgd", "adamw", spaces={"sgd": {"nesterov": False}, "adamw": {"amsgrad": True, "beta2": 0.99}})
    found = results(fresh.store, race)
    sgd = found.parts[0].get("sgd")
    sgd.search.trials = {n: ({**settings, "beta2": "auto"}, outcome) for n, (settings, outcome) in sgd.trials.items()}
    table = frames.runs_frame(found)
    assert table.columns["setting_nesterov"] is bool
    assert table.columns["setting_lr"] is float
    assert table.columns["setting_beta2"] is str
    assert {row.get("setting_beta2") for row in table.rows if row["stage"] == "trial"} == {"auto", "0.99"}


def test_a_measure_of_a_task_s_own_takes_no_other_column_s_name(fresh):
    found = results(fresh.store, fresh.race("sgd", "adamw"))
    for entry in found.parts[0].entries:
        for outcome in entry.seeds.values():
            outcome.result["seed"] = 0.25
    runs, summed = frames.runs_frame(found), frames.results_frame(found)
    assert {row["measure_seed"] for row in runs.rows if row["stage"] == "seed"} == {0.25}
    assert all(isinstance(row["seed"], int) for row in runs.rows)
    assert [row["measure_seed_high"] for row in summed.rows] == [0.25, 0.25]


# --- Markdown ---


def parsed(text):
    """The tables, headings, list items and code blocks that a Markdown reader finds."""
    tables, headings, items, code = [], [], [], []
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    for i, token in enumerate(tokens):
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            tables[-1].append([])
        elif token.type == "fence":
            code.append(token.content)
        elif token.type == "inline":
            shown = "".join(child.content for child in token.children)
            kind = tokens[i - 1].type
            if kind in ("td_open", "th_open"):
                tables[-1][-1].append(shown)
            elif kind == "heading_open":
                headings.append(shown)
            elif tokens[i - 2].type == "list_item_open":
                items.append(shown)
    return tables, headings, items, code


def test_markdown_prints_the_numbers_of_the_race(held, tmp_path):
    (path,) = export(held, "md", tmp_path)
    assert path == tmp_path / "sprint.Cliff+sprint.Sprint.md"
    tables, headings, items, code = parsed(path.read_text(encoding="utf-8"))
    assert headings[0] == "Race on sprint:Cliff and sprint:Sprint"
    for sentence in summary(held):
        assert sentence in items or sentence[0].upper() + sentence[1:] in items
    for part, (header, *rows) in zip(held.parts, tables, strict=False):
        assert all(len(row) == len(header) for row in rows)
        for entry, row in zip(part.entries, rows, strict=True):
            cells = dict(zip(header, row, strict=True))
            loss, verdict = entry.measure("loss"), entry.verdict
            assert cells["optimizer"] == entry.label
            if loss is None:
                assert cells["test loss"] == "every trial failed"
                continue
            assert cells["test loss"] == spread(loss)
            assert cells["accuracy"] == f"{100 * entry.measure('accuracy').mean:.1f} %"
            against = cells[f"against {part.baseline.label}"]
            if verdict is None:
                assert (against, cells["p (Holm)"]) == ("baseline", "–")
            else:
                assert against == f"{verdict.word} {spread(verdict.difference, part.scale)}"
                assert cells["p (Holm)"] == f"{verdict.adjusted:.3g}"
            if part.track == "tuned":
                assert cells["failed trials"] == f"{entry.failed_trials}/4"
                assert all(f"{name} {value:g}" in cells["settings"] for name, value in entry.chosen.items())
            if entry.relative_cpu is not None:
                assert cells["CPU time × SGD"] == number(entry.relative_cpu)
        assert {f"Note: {e.label}: {alarm.text}." for e in part.entries for alarm in e.alarms} <= set(items)
    for across, (_, *rows) in zip(held.across, tables[len(held.parts) :], strict=False):
        labels = [held.parts[0].get(name).label for name in across.iqm]
        assert [row[:2] for row in rows] == [
            [label, spread(iqm, TENTHS)] for label, iqm in zip(labels, across.iqm.values(), strict=True)
        ]
    assert code == ["fallline race\n"]
    assert ["torch", held.race.setting["environment"]["torch"]] in tables[-1]


def test_markdown_shows_any_name_as_it_is(single, tmp_path):
    strange = dataclasses.replace(
        single, race=dataclasses.replace(single.race, setting={**single.race.setting, "command": "a\n```\nb"})
    )
    part = strange.parts[0]
    entries = [dataclasses.replace(part.entries[0], about={**part.entries[0].about, "label": EVIL}), *part.entries[1:]]
    part = dataclasses.replace(part, task=EVIL, entries=entries, left_out={EVIL: EVIL})
    text = markdown(dataclasses.replace(strange, parts=[part]))
    tables, headings, items, code = parsed(text)
    shown = " ".join(EVIL.split())
    assert tables[0][1][0] == shown
    assert {len(row) for row in tables[0]} == {len(tables[0][0])}
    assert f"{shown}, tuned" in headings
    assert f"Note: {shown} was left out: {shown}." in items
    assert code == ["a\n```\nb\n"]
    assert "<b>" not in MarkdownIt("commonmark").enable("table").render(text)


@pytest.mark.parametrize(
    "name", ["1. a", "12) a", "- a", "+ a", "=== a", "# a", "> a", "* a", "0.1.0", "a_b_c", "~~~ a"]
)
def test_a_name_at_the_start_of_a_line_is_text(name):
    tokens = MarkdownIt("commonmark").parse(escaped(name))
    assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"]
    assert "".join(child.content for child in tokens[1].children) == name


# --- figures ---


def test_the_lines_are_the_means_of_the_records(held, figures_held):
    drawn = figures_held
    part = held.part("sprint:Sprint")
    axes = drawn["curves"].axes[1]
    assert axes.get_title() == "sprint:Sprint"
    ends = sorted(float(line.get_ydata()[-1]) for line in axes.lines)
    finals = [
        np.mean([outcome.curve["validation loss"][-1] for outcome in entry.finished.values()]) for entry in part.entries
    ]
    assert ends == pytest.approx(sorted(finals))
    assert {float(line.get_xdata()[-1]) for line in axes.lines} == {40.0}
    tuned = sorted(float(line.get_ydata()[-1]) for line in drawn["best-of"].axes[1].lines)
    scores = [[outcome.score for _, outcome in entry.trials.values()] for entry in part.entries]
    assert tuned == pytest.approx(sorted(map(min, scores)))  # of as many as there are, the best is the best
    assert len(drawn["curves-defaults"].axes) == 2
    assert "best-of-defaults" not in drawn


def test_every_trial_is_in_its_panel_and_lost_rates_are_shaded(single, figures_single):
    panels = {axes.get_title(): axes for axes in figures_single["sensitivity"].axes}
    assert set(panels) == {"KOALA-M", "AdamW", "SGD"}
    for entry in single.parts[0].entries:
        marked = {line.get_marker(): line for line in panels[entry.label].lines if line.get_markersize() == 4}
        rates = sorted(settings["lr"] for settings, _ in entry.trials.values())
        assert sorted(x for line in marked.values() for x in line.get_xdata()) == rates
        assert ("x" in marked) == (entry.name == "sgd")
        rings = [line for line in panels[entry.label].lines if line.get_markersize() == 8]
        assert [ring.get_xdata()[0] for ring in rings] == ([entry.chosen["lr"]] if entry.chosen else [])
    assert len(panels["SGD"].patches) == 1  # the whole of it
    assert not panels["AdamW"].patches


def test_a_profile_of_one_task_has_a_panel_a_target_and_of_several_one(single, figures_single, figures_held):
    panels = {axes.get_title(): axes for axes in figures_single["profile"].axes}
    part, level = single.parts[0], 0.8
    assert f"{100 * level:.0f} % of the way" in panels
    times = [entry.hits[level] for entry in part.entries if entry.seeds]
    within = 4 * min(map(np.median, times))
    ends = [float(line.get_ydata()[-1]) for line in panels["80 % of the way"].lines]
    assert sorted(ends) == pytest.approx(sorted(np.mean(np.array(some) <= within) for some in times))
    (together,) = figures_held["profile"].axes
    assert together.get_title() == "95 % of the way, 2 tasks"


def test_no_text_is_cut_off_or_lies_over_another(figures_held, figures_single):
    for name, figure in [*figures_held.items(), *figures_single.items()]:
        figure.draw_without_rendering()
        texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
        boxes = [text.get_window_extent() for text in texts]
        for i, box in enumerate(boxes):
            assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1, (name, texts[i])
            assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1, (name, texts[i])
            assert not [texts[j] for j in range(i) if box.overlaps(boxes[j])], (name, texts[i])


def test_a_png_is_as_wide_as_a_column_in_print(single, figures_single, tmp_path):
    paths = {path.stem.partition("-")[2]: path for path in export(single, "png", tmp_path)}
    assert set(paths) == {"curves", "sensitivity", "best-of", "profile"}
    with Image.open(paths["curves"]) as image:
        assert image.width == round(3.3 * 300)
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
        assert image.info["Source"] == "fallline race"
    sizes = {text.get_fontsize() for text in figures_single["curves"].findobj(Text)}
    assert min(sizes) >= 8


def test_drawing_leaves_matplotlib_as_it_was(single):
    before, backend = dict(matplotlib.rcParams), matplotlib.get_backend()
    pyplot = sys.modules.get("matplotlib.pyplot")
    prints.draw(single)
    assert dict(matplotlib.rcParams) == before
    assert matplotlib.get_backend() == backend
    assert sys.modules.get("matplotlib.pyplot") is pyplot


def test_strangers_look_like_no_one_else_and_ours_are_whole(single):
    part = single.parts[0]
    about = {True: {"label": "x", "ours": True}, False: {"label": "x", "ours": False}}
    names = [*COLOURS, *(f"sgd@{i}" for i in range(9)), *(f"koala-m#{i}" for i in range(9))]
    entries = [dataclasses.replace(part.entries[0], name=n, about=about["koala" in n]) for n in names]
    looks = lines(dataclasses.replace(single, parts=[dataclasses.replace(part, entries=entries)]))
    drawn = {name: prints.stroke(line) for name, line in looks.items()}
    assert len({(one["color"], one["marker"]) for one in drawn.values()}) == len(names)
    assert all((drawn[n]["linestyle"] == "-") == ("koala" in n) for n in names)
    assert all(drawn[n]["color"] == COLOURS[n][0] for n in COLOURS)


def test_a_figure_takes_any_name(single):
    part = single.parts[0]
    strange = [r"$\frac$", "_hidden", "競走 " + "long " * 20, EVIL]
    entries = [
        dataclasses.replace(entry, about={**entry.about, "label": label})
        for entry, label in zip(part.entries, strange, strict=False)
    ]
    part = dataclasses.replace(part, task=strange[0], entries=entries)
    drawn = prints.draw(dataclasses.replace(single, parts=[part]))
    labels = {text.get_text() for figure in drawn.values() for text in figure.findobj(Text)}
    assert {r"$\frac$", "_hidden"} <= labels
    assert drawn["curves"].axes[0].get_title() == r"$\frac$"
    assert prints.as_png(drawn["sensitivity"], single).startswith(b"\x89PNG")  # with the letters that the font lacks


def test_every_dash_of_a_card_is_drawn_broken_in_print_and_in_the_key(single):
    for name, card in CONTENDERS.items():
        line = Line(name, card.label, COLOURS[name], "solid" if card.ours else card.dash, ours=card.ours)
        lengths = [float(length) for length in line.dasharray.split()]  # as SVG takes them: numbers alone
        assert bool(lengths) == (prints.stroke(line)["linestyle"] != "-") == (not card.ours)
        assert len(lengths) % 2 == 0


# --- whole races, part of races ---


def test_a_race_that_was_stopped_is_written_as_far_as_it_came(fresh, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fresh.race("koala-m", "sgd", trials=4, seeds=3, executor=Inline(interrupt_at=5))
    found = results(fresh.store, fresh.store.last_race())
    assert found.missing > 0
    rows = read_csv(by_table(export(found, "csv", tmp_path / "out"))["runs"])
    assert len(rows) == 5
    (path,) = export(found, "md", tmp_path / "out")
    text = path.read_text(encoding="utf-8")
    assert f"{found.missing} more runs to come" in text
    assert "failed" not in re.sub("failed trials", "", text)
    assert {p.stem.partition("-")[2] for p in export(found, "png", tmp_path / "out")} == {"sensitivity", "best-of"}


def test_a_race_in_which_no_run_finished_has_tables_and_no_figures(fresh, tmp_path):
    found = results(fresh.store, fresh.race("sgd", "adamw", task="sprint:Poisoned"))
    rows = read_parquet(by_table(export(found, "parquet", tmp_path))["runs"])
    assert {row["status"] for row in rows} == {"diverged"}
    assert all("not finite" in row["reason"] for row in rows)
    (path,) = export(found, "md", tmp_path)
    assert path.read_text(encoding="utf-8").count("every trial failed") == 2
    with pytest.raises(ValueError, match="nothing to draw"):
        export(found, "png", tmp_path)
    assert not list(tmp_path.glob("*.png"))


def test_a_race_without_held_out_data_is_drawn_by_its_training_loss(fresh, single):
    found = dataclasses.replace(single)
    part = dataclasses.replace(single.parts[0], about={"held_out": False, "floor": 0.05, "floor_name": "the floor"})
    figure = prints.learning_curves(found, [part])
    (axes,) = figure.axes
    assert axes.get_ylabel() == "training loss"
    assert [text.get_text() for text in axes.texts] == ["the floor"]
    assert axes.get_ylim()[0] < 0.05
    assert "There is no held-out data" in markdown(dataclasses.replace(single, parts=[part]))


def test_names_of_files_are_those_of_the_page_and_safe(single, tmp_path):
    design = dataclasses.replace(single.design, tasks=("path/my_task.py", "pkg.mod:Class", "../../etc/passwd"))
    found = dataclasses.replace(single, design=design)
    for format in ("md", "csv", "parquet"):
        for path in export(found, format, tmp_path):
            assert path.parent == tmp_path
            assert path.name.startswith(page_name(found).removesuffix(".html"))
            assert re.fullmatch(r"\w[\w.+-]+", path.name)


def test_tasks_whose_names_are_one_when_made_safe_have_a_figure_each(held):
    twins = [dataclasses.replace(part, task=task) for part, task in zip(held.parts[:2], ("a b", "a?b"), strict=True)]
    drawn = prints.draw(dataclasses.replace(held, parts=twins, across=[]))
    assert {name for name in drawn if name.startswith("sensitivity")} == {"sensitivity-a.b", "sensitivity-a.b+"}


# --- what is missing ---


@pytest.mark.parametrize(
    ("format", "library", "extra"), [("parquet", "pyarrow", "parquet"), ("png", "matplotlib", "plots")]
)
def test_a_missing_library_is_named_with_its_extra(single, tmp_path, monkeypatch, format, library, extra):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ValueError, match=library) as caught:
        export(single, format, tmp_path)
    assert f'pip install "fallline[{extra}]"' in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_an_unknown_format_is_refused(single, tmp_path):
    with pytest.raises(ValueError, match="md, csv, parquet, png"):
        export(single, "xlsx", tmp_path)


def test_a_file_is_written_whole_or_not_at_all(single, tmp_path, monkeypatch):
    before = {path.name: path.read_bytes() for path in export(single, "parquet", tmp_path)}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        export(single, "parquet", tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
