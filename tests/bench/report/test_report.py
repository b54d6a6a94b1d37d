"""The page: its numbers are the records', it needs nothing but itself, and what has changed is said."""

import dataclasses
import json
import math
import re
import sys

import numpy as np
import pytest
from browser import Reader
from referee import Inline, Referee
from staged import spaced, stage

from fallline.bench.common.numbers import TENTHS, difference, duration, number, size
from fallline.bench.contenders import CONTENDERS
from fallline.bench.protocol.analysis import TAUS
from fallline.bench.protocol.changes import changes
from fallline.bench.protocol.comparison import Alarm
from fallline.bench.race.results import results
from fallline.bench.race.store import Store
from fallline.bench.report import figures
from fallline.bench.report import page as report
from fallline.bench.report.looks import COLOURS, DARK, EITHER, LIGHT, SPARE_COLOURS, coloured, lines, palette
from fallline.bench.report.series import AXES
from fallline.bench.report.tables import SIGNS
from fallline.bench.report.words import changes_words


@pytest.fixture(scope="module")
def cliff(tmp_path_factory):
    """A race with winners, one who diverged in every trial, and one stranger; and its records."""
    with Store(tmp_path_factory.mktemp("cliff") / "records.sqlite") as store:
        yield Referee(store).race("koala-m", "sgd", "adamw", "radam", task="sprint:Cliff", seeds=4), store


@pytest.fixture
def held(cliff):
    race, store = cliff
    return results(store, race)


# --- the numbers ---


def test_the_numbers_are_the_records(held, cliff):
    _, store = cliff
    reader = Reader(report.page(held))
    rows = reader.rows("result-0")
    assert set(rows) == {"KOALA-M", "SGD", "AdamW", "RAdam"}
    losses, cpu = {}, {}
    for entry, _, outcome in store.runs(held.race.id):
        cpu[entry.optimizer] = cpu.get(entry.optimizer, 0) + outcome.cpu_seconds
        if entry.stage == "seed":
            losses.setdefault(entry.optimizer, []).append(outcome.result["loss"])
    part = held.parts[0]
    for name, label in (("koala-m", "KOALA-M"), ("adamw", "AdamW"), ("radam", "RAdam")):
        assert rows[label][1].startswith(number(np.mean(losses[name])))
        assert "0 of 3" in rows[label][5]
        assert rows[label][-1] == duration(cpu[name])
    assert rows["SGD"][1] == "every trial failed"
    assert rows["SGD"][5] == "3 of 3"
    baseline = part.baseline.name
    assert rows[part.baseline.label][3] == "the baseline"
    other = "koala-m" if baseline != "koala-m" else "adamw"
    gap = np.mean(np.subtract(losses[other], losses[baseline]))
    cell = rows[part.get(other).label][3]
    assert difference(gap, np.mean(losses[baseline])) in cell
    assert part.get(other).verdict.word in cell
    assert reader.rows("failed-0")["SGD"][1] == "3 of 3"
    chosen = part.entries[0].chosen
    spaces = reader.rows("spaces-0")[part.entries[0].label]
    assert all(f"{name} {value:g}" in spaces[1] for name, value in chosen.items())


def test_numbers_are_printed_to_what_they_are_worth():
    assert [number(x) for x in (0.1, 14.68, 123.4, 1234.0, None)] == ["0.100", "14.7", "123", "1.23e+03", "–"]
    assert [difference(x, 0.115) for x in (0.00179, -0.0066, 0.5, 99.0)] == ["+0.002", "−0.007", "+0.500", "+99.0"]
    assert [difference(x, 14.7) for x in (1.26, -2.0)] == ["+1.3", "−2.0"]
    assert [size(x) for x in (0, 999, 1000, 35_900, 2.5e6, 7e9)] == [
        "0 B", "999 B", "1.0 kB", "35.9 kB", "2.5 MB", "7.0 GB",
    ]  # fmt: skip


def test_a_verdict_is_shown_with_its_p_what_would_be_found_and_how_many_seeds_would_tell(store):
    near = [0.51 + 0.06 * (-1) ** i for i in range(12)]
    found = stage(store, {"koala-m": spaced(0.4, 12), "sgd": spaced(0.5, 12), "adamw": near})
    part = found.parts[0]
    assert part.baseline.name == "sgd"
    assert part.get("koala-m").verdict.word == "better"
    assert part.get("adamw").verdict.word == "no evidence"
    rows = Reader(report.page(found)).rows("result-0")
    assert rows["KOALA-M"][3].startswith("✓ better")
    for label, name in (("KOALA-M", "koala-m"), ("AdamW", "adamw")):
        verdict = part.get(name).verdict
        assert f"p {verdict.adjusted:.2g} after Holm" in rows[label][3]
        assert rows[label][4].startswith(number(verdict.detectable))
    needed = part.get("adamw").verdict.needed
    assert needed is not None
    assert f"{needed} seeds would tell" in rows["AdamW"][4]
    assert "would tell" not in rows["KOALA-M"][4]


def test_the_matrix_has_everyone_against_everyone_in_signs_that_need_no_colour(store):
    found = stage(store, {"koala-m": spaced(0.4, 12), "sgd": spaced(0.5, 12), "adamw": spaced(0.6, 12)})
    page = report.page(found)
    head, *rows = Reader(page).cells["matrix-0"]
    assert head == ["", "KOALA-M", "SGD", "AdamW"]
    labels = {entry.label: entry.name for entry in found.parts[0].entries}
    for row in rows:
        for cell, column in zip(row[1:], head[1:], strict=True):
            if column == row[0]:
                assert cell == ""
                continue
            verdict = found.parts[0].matrix[labels[row[0]], labels[column]]
            gap = difference(verdict.difference.mean, 0.5)
            assert cell == f"{SIGNS[verdict.word]} {verdict.word} {gap}"
    assert "descriptive" not in page.split("Pairwise comparisons")[1]
    few = stage(store, {"koala-m": spaced(0.4), "sgd": spaced(0.5)}, name="few")
    assert "descriptive: fewer than 11 seeds" in report.page(few)
    assert len(set(SIGNS.values())) == len(SIGNS)


def test_times_to_target_are_medians_with_the_seeds_that_reached_it(store):
    losses = {"sgd": spaced(0.5, 5), "adamw": [0.4, 0.4, None, None, None], "koala-m": [1.2] * 5}
    found = stage(store, losses, baseline="sgd")
    part = found.parts[0]
    rows = Reader(report.page(found)).rows("targets-0")
    for entry in part.entries:
        for cell, level in zip(rows[entry.label][1:], part.targets, strict=True):
            reached = [hit for hit in entry.hits[level] if math.isfinite(hit)]
            assert cell.endswith(f"{len(reached)} of 5")
            median = sorted(entry.hits[level])[2]
            assert cell.startswith(f"{median:.0f} " if math.isfinite(median) else "not reached")
    assert rows["AdamW"][1] == "not reached 2 of 5"
    assert not rows["SGD"][1].startswith("not")


# --- the figures ---


def test_the_figures_are_the_records(held):
    drawn = report.draw(held, lines(held))
    leader = held.parts[0].entries[0]
    line = next(trace for trace in drawn["0: validation loss by steps"]["data"] if trace.get("name") == leader.label)
    finals = [outcome.curve["validation loss"][-1] for outcome in leader.finished.values()]
    assert line["x"][-1] == 40
    assert line["y"][-1] == pytest.approx(np.mean(finals), rel=1e-4)
    dots = next(trace for trace in drawn["0: final losses"]["data"] if trace["meta"] == leader.name)
    assert dots["x"] == pytest.approx([outcome.result["loss"] for outcome in leader.finished.values()], rel=1e-4)
    trials = drawn[f"0: lr {leader.name}"]["data"]
    assert sum(len(trace["x"]) for trace in trials if trace["marker"]["symbol"] == "circle") == 3
    crosses = next(trace for trace in drawn["0: lr sgd"]["data"] if trace["marker"]["symbol"] == "x-thin-open")
    assert len(crosses["x"]) == 3
    assert "diverged at step" in crosses["text"][0]
    best = next(trace for trace in drawn["0: best of"]["data"] if trace.get("name") == leader.label)
    assert best["x"] == [1, 2, 3]
    scores = [outcome.score for _, outcome in leader.trials.values()]
    assert best["y"][0] == pytest.approx(np.mean(np.minimum(scores, held.parts[0].initial)), rel=1e-4)
    assert best["y"][-1] == pytest.approx(min(scores), rel=1e-4)


def test_against_every_axis_a_curve_ends_where_its_seeds_do(store):
    found = stage(store, {"sgd": spaced(0.5), "adamw": [*spaced(0.4, 7), None]})
    looks = lines(found)
    for axis, end in (("steps", 100), ("gradient evaluations", 100), ("CPU seconds", 1.7), ("wall seconds", 3.4)):
        figure = figures.curves(found.parts[0], looks, "validation loss", axis)
        assert figure["layout"]["xaxis"]["title"]["text"] == axis
        sgd, adamw = (next(t for t in figure["data"] if t.get("name") == label) for label in ("SGD", "AdamW"))
        assert sgd["x"][-1] == pytest.approx(end)
        assert sgd["y"][-1] == pytest.approx(0.5, rel=1e-4)
        assert adamw["y"][-1] == pytest.approx(np.mean(spaced(0.4, 7)), rel=1e-4)


def test_targets_are_drawn_and_those_close_together_share_a_name(store):
    found = stage(store, {"sgd": spaced(0.5), "adamw": spaced(0.6)})
    layout = figures.curves(found.parts[0], lines(found), "validation loss")["layout"]
    assert [shape["y0"] for shape in layout["shapes"]] == pytest.approx(list(found.parts[0].targets.values()))
    assert [note["text"] for note in layout["annotations"]] == ["50 %", "80 %", "95 %", "100 %"]
    tall = stage(store, {"sgd": spaced(0.5), "adamw": spaced(3e4)}, name="tall")
    layout = figures.curves(tall.parts[0], lines(tall), "validation loss")["layout"]
    assert [note["text"] for note in layout["annotations"]] == ["50 %<br>80 %<br>95 %<br>100 %"]
    train = figures.curves(found.parts[0], lines(found), "train loss")["layout"]
    assert "shapes" not in train


def test_a_profile_s_stairs_stand_on_its_shares(store):
    found = stage(store, {"sgd": spaced(0.5), "adamw": spaced(0.4), "koala-m": spaced(0.3)}, tasks=("hill", "dale"))
    (across,) = found.across
    figure = figures.profile(across, lines(found))
    for name, (mean, _, _) in across.profiles.items():
        line = next(trace for trace in figure["data"] if trace["meta"] == name and "name" in trace)
        stairs = dict(zip(line["x"], line["y"], strict=True))  # of two at one time, the later and higher
        assert stairs == pytest.approx(dict(zip(figures.short_numbers(TAUS), mean, strict=True)), rel=1e-4)
        assert all(
            a == b or c == d for a, b, c, d in zip(line["x"], line["x"][1:], line["y"], line["y"][1:], strict=False)
        )


# --- colours and names ---


def test_every_colour_is_known_on_every_ground(held):
    looks = lines(held)
    for face in (LIGHT, DARK, EITHER):
        for figure in report.draw(held, looks).values():
            painted = json.dumps(coloured(figure, palette(looks, face)))
            assert '"@' not in painted
            assert all(len(colour) in (7, 9) for colour in re.findall(r"#[0-9a-f]+", painted))


def test_every_contender_has_a_colour_of_its_own_and_no_spare_one():
    assert set(COLOURS) == set(CONTENDERS)
    for face in (LIGHT, DARK, EITHER):
        colours = [faces[face] for faces in (*COLOURS.values(), *SPARE_COLOURS)]
        assert len(set(colours)) == len(colours)


def test_twenty_strangers_all_look_different(store):
    names = [*CONTENDERS, *(f"sgd#{i}" for i in range(2, 12)), *(f"koala-m#{i}" for i in range(2, 12))]
    looks = lines(stage(store, {name: [0.5] for name in names}))
    assert set(looks) == set(names)
    assert len({(line.colour, line.dash) for line in looks.values()}) == len(names)
    assert all(looks[name].dash == "solid" for name in CONTENDERS if CONTENDERS[name].ours)


def test_an_optimizer_looks_the_same_beside_an_earlier_race(store):
    now = stage(store, {"sgd": [0.5], "radam": [0.4]})
    then = stage(store, {"sgd": [0.5], "adamax": [0.4], "radam": [0.4]}, name="then")
    looks = lines(now, then)
    assert set(looks) == {"sgd", "radam", "adamax"}
    assert len({line.colour for line in looks.values()}) == 3


def test_the_page_needs_nothing_but_itself(held):
    page = report.page(held, before=held)
    for tag, attributes in Reader(page).elements:
        for name in ("src", "href", "srcset", "action", "data"):
            assert not attributes.get(name) or attributes[name].startswith(("data:", "#")), (tag, attributes)
    styles = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert len(styles) == 1
    assert "url(" not in styles[0]
    assert "@import" not in styles[0]


def test_every_link_within_the_page_leads_somewhere(store):
    losses = {"sgd": spaced(0.5), "adamw": spaced(0.4)}
    found = stage(store, losses, tasks=("hill", "dale"), tracks=("tuned", "defaults"))
    elements = Reader(report.page(found, before=found)).elements
    links = [attributes["href"][1:] for tag, attributes in elements if tag == "a"]
    assert len(links) >= 4 + 4 + 4
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert set(links) <= set(ids)
    assert len(set(ids)) == len(ids)


def test_names_cannot_break_out_of_the_page(store):
    evil = '</script><script>alert(1)</script><marquee>"%{x}'
    found = stage(
        store,
        {"sgd": [0.5, 0.6, None], "adamw": [0.4, 0.3, 0.2]},
        tasks=(evil, "hill"),
        about={"label": evil, "source": evil, "schedule": evil, "fixed": {evil: evil}, "space": {evil: evil}},
        environment={evil: evil},
        settings={"sgd": {"momentum": evil}},
    )
    found.race.setting["command"] = evil
    found.race.setting["tasks"][evil]["summary"] = evil
    for part in found.parts:
        part.left_out["x"] = evil
        part.about["floor"], part.about["floor_name"] = 0.1, evil
        part.entries[0].alarms = [Alarm("edge", evil)]
        for lost in part.get("sgd").seeds.values():
            lost.reason = evil
    before = stage(store, {"sgd": [0.4, 0.4, 0.4]}, name="before", tasks=(evil,), environment={evil: "else"})
    reader = Reader(report.page(found, before))
    assert [tag for tag, _ in reader.elements].count("script") == 3
    assert not any("alert(1)" in script for script in reader.scripts[::2])
    assert "marquee" not in {tag for tag, _ in reader.elements}
    drawn = json.loads(reader.scripts[1])
    told = [text for figure in drawn.values() for text in _texts(figure)]
    evils = [text for text in told if "alert(1)" in text]
    assert evils
    assert not any("<script>" in text or "<marquee>" in text or '"%{x}' in text for text in evils)


def _texts(value):
    """What Plotly sets as text, in which it would read tags."""
    if isinstance(value, dict):
        for name, one in value.items():
            if name in ("text", "ticktext", "hovertemplate", "name"):
                yield from [one] if isinstance(one, str) else one
            else:
                yield from _texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)


def test_a_page_s_name_is_safe_on_any_file_system(store):
    def name(*tasks):
        return report.page_name(dataclasses.replace(found, design=dataclasses.replace(found.design, tasks=tasks)))

    found = stage(store, {"sgd": [0.5]})
    assert name("digits") == "digits.html"
    assert name("digits", "bowl") == "digits+bowl.html"
    assert name("pkg.mod:Class") == "pkg.mod.Class.html"
    assert name("../some where/my_task.py") == "my_task.html"
    assert name("my_task.py:Mine") == "my_task.Mine.html"
    assert name("..", "/") == "task+task.html"
    long = name(*(f"a-task-with-a-name-{i}" for i in range(40)))
    assert len(long) < 100
    assert long != name(*(f"a-task-with-a-name-{i}" for i in range(41)))


# --- races of every kind ---


def test_a_race_that_is_not_finished_says_so(store, referee):
    with pytest.raises(KeyboardInterrupt):
        referee.race("sgd", "adamw", executor=Inline(interrupt_at=3))
    page = report.page(results(store, store.last_race()))
    assert "This race is not finished: 7 runs are missing" in page


def test_a_race_of_one(store):
    one = stage(store, {"koala-v": [0.5]})
    assert one.parts[0].baseline is None
    reader = Reader(report.page(one))
    assert not any("Against" in heading for heading in reader.cells["result-0"][0])
    assert "matrix-0" not in reader.cells
    assert "targets-0" not in reader.cells


def test_a_race_all_lost(store, tmp_path):
    lost = stage(store, {"sgd": [None, None], "adamw": [None, None]})
    reader = Reader(report.page(lost))
    assert reader.rows("result-0")["SGD"][1] == "every seed failed"
    assert reader.rows("failed-0")["SGD"][1:] == ["3 of 6", "diverged: the training loss is not finite"]
    with pytest.raises(ValueError, match="nothing to draw"):
        report.write_picture(lost, tmp_path / "never.svg")


def test_a_task_without_held_out_data_has_one_loss_and_its_floor(store):
    found = stage(store, {"sgd": spaced(15.0), "koala-m": spaced(14.0)}, held_out=False)
    found.parts[0].about |= {"floor": 7.5, "floor_name": "the floor"}
    page = report.page(found)
    reader = Reader(page)
    assert reader.cells["result-0"][0][1] == "Mean loss over the last tenth"
    assert not any("accuracy" in heading for heading in reader.cells["result-0"][0])
    assert "Validation loss" not in page
    drawn = json.loads(reader.scripts[1])
    assert "0: train loss by CPU seconds" in drawn
    assert not any("validation" in name for name in drawn)
    notes = drawn["0: train loss by steps"]["layout"]["annotations"]
    assert any(note["text"] == "the floor: 7.50" for note in notes)


def test_shipped_settings_have_no_trials_to_show(store):
    found = stage(store, {"sgd": spaced(0.5), "koala-m": spaced(0.4)}, tracks=("defaults",))
    reader = Reader(report.page(found))
    assert not any("Failed trials" in heading for heading in reader.cells["result-0"][0])
    assert not any("lr" in name or "best of" in name for name in json.loads(reader.scripts[1]))


def test_a_report_asks_no_task_for_anything(store, referee, tmp_path):
    task = tmp_path / "mine.py"
    source = "from sprint import Sprint\n\n\nclass Mine(Sprint):\n    summary = 'my own points'\n"
    task.write_text(source, encoding="utf-8")
    race = referee.race("sgd", "adamw", task=str(task), trials=1)
    task.unlink()
    found = results(store, race)
    assert "My own points." in report.page(found)
    assert report.page_name(found) == "mine.html"


def test_alarms_stand_beside_the_claims_that_they_weaken(store):
    found = stage(store, {"koala-m": spaced(0.4), "sgd": spaced(0.5), "adamw": spaced(0.6)})
    part = found.parts[0]
    assert [part.entries[0].name, part.baseline.name, part.entries[2].name] == ["koala-m", "sgd", "adamw"]
    for entry in part.entries:
        entry.alarms = [Alarm("edge", f"a doubt about {entry.name}")]
    page = report.page(found)
    answer, table = page.split('id="answer"')[1].split('id="result-0"')
    assert "KOALA-M: a doubt about koala-m." in answer
    assert "SGD: a doubt about sgd." in answer
    assert "adamw" not in answer.split('class="answers"')[1].lower().replace("adamw (", "").replace("adamw is", "")
    rows = Reader(page).cells["result-0"]
    assert [rows[2], rows[4], rows[6]] == [[f"a doubt about {name}"] for name in ("koala-m", "sgd", "adamw")]
    assert "a doubt about adamw" in table


def test_wall_seconds_are_greyed_out_when_repetitions_differ(store):
    found = stage(store, {"sgd": spaced(0.5), "adamw": spaced(0.4)})
    for steady in (True, False):
        found.parts[0].steady = steady
        page = report.page(found)
        choices = [a for tag, a in Reader(page).elements if tag == "input"]
        assert [one["value"] for one in choices] == list(AXES)
        assert ["disabled" in one for one in choices] == [False, False, False, not steady]
        assert (report.UNSTEADY in page) is not steady


def test_several_tasks_are_told_together(store):
    found = stage(store, {"sgd": spaced(0.5), "adamw": spaced(0.4), "koala-m": [0.3] * 7 + [None]}, tasks=("a", "b"))
    (across,) = found.across
    rows = Reader(report.page(found)).rows("across0")
    assert list(rows) == [found.parts[0].get(name).label for name in across.iqm]
    for name, label in (("adamw", "AdamW"), ("sgd", "SGD"), ("koala-m", "KOALA-M")):
        assert rows[label][1].startswith(difference(across.iqm[name].mean, TENTHS))
        assert rows[label][2].startswith(f"{100 * across.improvement[name].mean:.0f} %")


# --- what changed ---


def test_an_unchanged_race_has_the_very_same_losses(store):
    losses = {"sgd": spaced(0.5), "adamw": spaced(0.4)}
    now, then = stage(store, losses), stage(store, losses, name="then")
    page = report.page(now, before=then)
    assert "AdamW and SGD ended at the very same losses" in page
    assert {row[3] for row in Reader(page).rows("changes-0").values()} == {"the same numbers"}
    assert "changes-around" not in page
    assert "What changed" not in report.page(now)


def test_a_change_on_the_same_seeds_is_taken_seed_by_seed(store):
    then = stage(store, {"sgd": spaced(0.5), "koala-m": spaced(0.45)}, name="then")
    better = [0.38 + 0.002 * i for i in range(8)]
    now = stage(
        store,
        {"sgd": spaced(0.5), "koala-m": better},
        environment={"torch": "2.14.0"},
        settings={"koala-m": {"qv": 0.25}},
    )
    page = report.page(now, before=then)
    mine = changes(now, then).parts[0].entries[0]
    assert mine.paired
    assert mine.difference.mean == pytest.approx(np.mean(np.subtract(better, spaced(0.45))))
    assert mine.settings == [("qv", None, 0.25)]
    assert "KOALA-M became better" in page
    row = Reader(page).rows("changes-0")["KOALA-M"]
    assert row[1].startswith("0.450")
    assert row[2].startswith(number(np.mean(better)))
    assert row[3].startswith("✓ better −0.06")
    assert "seed by seed" in row[3]
    assert row[5] == "qv – → 0.25"
    around = Reader(page).rows("changes-around")
    assert around == {"torch": ["torch", "2.13.0", "2.14.0"]}


def test_a_change_on_other_seeds_is_of_means_and_has_no_verdict(store):
    then = stage(store, {"sgd": spaced(0.5), "koala-m": spaced(0.45)}, name="then", seed=1)
    now = stage(store, {"sgd": spaced(0.5), "koala-m": spaced(0.4, 8)})
    told = changes(now, then)
    koala, sgd = told.parts[0].entries
    assert not koala.paired
    assert koala.verdict is None
    assert koala.difference.mean == pytest.approx(-0.05)
    spread = np.std(spaced(0.5)) * math.sqrt(2 / 8)  # of the difference of two means
    assert koala.difference.high - koala.difference.low == pytest.approx(2 * 1.96 * spread, rel=0.15)
    assert sgd.difference.low < 0 < sgd.difference.high
    assert changes_words(told) == [
        "hill: KOALA-M ended at lower losses, on other seeds.",
        "hill: SGD ended at about the same losses, on other seeds.",
    ]
    assert ("seed", 1, 0) in told.design


def test_who_came_and_who_went_is_said(store):
    then = stage(store, {"sgd": spaced(0.5), "adamw": spaced(0.45)}, name="then", tasks=("hill", "dale"))
    now = stage(store, {"sgd": [None] * 8, "koala-m": spaced(0.4)}, tasks=("hill", "glen"))
    words = changes_words(changes(now, then))
    assert "hill: KOALA-M took part for the first time." in words
    assert "hill: AdamW took part before, and no longer." in words
    assert "hill: SGD became worse." in words
    assert "glen is new." in words
    assert "dale was raced before, and is no longer." in words
    rows = Reader(report.page(now, before=then)).rows("changes-0")
    assert rows["KOALA-M"][1] == "–"
    assert rows["AdamW"][2] == "–"


# --- pictures ---


def test_a_picture_without_kaleido_says_what_to_install(held, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kaleido", None)
    with pytest.raises(ValueError, match=r'pip install "fallline\[docs\]"'):
        report.write_picture(held, tmp_path / "race.svg")


def test_a_picture_is_svg_or_png(held, tmp_path):
    with pytest.raises(ValueError, match=r"an \.svg or a \.png"):
        report.write_picture(held, tmp_path / "race.gif")


def test_a_picture_has_a_legend_and_no_targets(store):
    found = stage(store, {"sgd": spaced(0.5), "koala-m": spaced(0.4)})
    figure = figures.picture(found)
    assert [trace["name"] for trace in figure["data"] if "name" in trace] == ["KOALA-M", "SGD"]
    assert figure["layout"]["showlegend"]
    assert "shapes" not in figure["layout"]


def test_a_picture_is_as_high_as_its_names_need(store):
    few = figures.picture(stage(store, {"sgd": spaced(0.5), "koala-m": spaced(0.4)}))
    assert report.picture_size(few) == report.PICTURE_SIZE
    many = {name: spaced(0.5) for name in ("sgd", "koala-m", *(f"adamw#{number}" for number in range(2, 18)))}
    width, height = report.picture_size(figures.picture(stage(store, many)))
    assert width == report.PICTURE_SIZE[0]
    assert height > 18 * 22
