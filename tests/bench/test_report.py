"""The page: its numbers are the records', it needs nothing but itself, and a browser draws it."""

import dataclasses
import html.parser
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from referee import Inline

from fallline.bench import figures, report
from fallline.bench.contenders import CONTENDERS
from fallline.bench.display import difference, number
from fallline.bench.results import results


class Reader(html.parser.HTMLParser):
    """Collects a page's elements, and the cells of its tables."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.cells, self.scripts = [], {}, []
        self.row = self.script = None
        self.table = ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        if tag == "table":
            self.table = attributes["id"]
        elif tag == "tr":
            self.row = []
            self.cells.setdefault(self.table, []).append(self.row)
        elif tag in ("td", "th"):
            self.row.append("")
        elif tag == "script":
            self.scripts.append("")
            self.script = True

    def handle_endtag(self, tag):
        if tag == "script":
            self.script = None
        elif tag == "table":
            self.row = None

    def handle_data(self, data):
        if self.script:
            self.scripts[-1] += data
        elif self.row:
            self.row[-1] = f"{self.row[-1]} {data.strip()}".strip()


@pytest.fixture
def held(store, referee):
    """A race with winners, one who diverged in every trial, and one stranger."""
    race = referee.race("koala-m", "sgd", "adamw", "radam", task="sprint:Cliff", seeds=4)
    return results(store, race)


def test_the_numbers_are_the_records(held, store):
    reader = Reader(report.page(held))
    rows = {row[0]: row for row in reader.cells["result"][1:]}
    assert set(rows) == {"KOALA-M", "SGD", "AdamW", "RAdam"}
    losses = {}
    for entry, _, outcome in store.runs(held.race.id):
        if entry.stage == "seed":
            losses.setdefault(entry.optimizer, []).append(outcome.result["loss"])
    for name, label in (("koala-m", "KOALA-M"), ("adamw", "AdamW"), ("radam", "RAdam")):
        assert rows[label][1].startswith(number(np.mean(losses[name])))
        assert "0 of 3" in rows[label][4]
    assert rows["SGD"][1] == "every trial lost"
    assert rows["SGD"][4] == "3 of 3"
    best = min(("adamw", "radam"), key=lambda name: np.mean(losses[name]))
    assert held.baseline.name == best
    gap = np.mean(np.subtract(losses["koala-m"], losses[best]))
    assert rows["KOALA-M"][3].startswith(difference(gap, np.mean(losses[best])))
    assert reader.cells["lost"][1][:2] == ["SGD", "3"]
    chosen = held.entries[0].chosen
    assert all(f"{name} {value:g}" in " ".join(reader.cells["spaces"][1]) for name, value in chosen.items())


def test_numbers_are_printed_to_what_they_are_worth():
    assert [number(x) for x in (0.1, 14.68, 123.4, 1234.0, None)] == ["0.100", "14.7", "123", "1.23e+03", "–"]
    assert [difference(x, 0.115) for x in (0.00179, -0.0066, 0.5, 99.0)] == ["+0.002", "−0.007", "+0.500", "99.0"]
    assert [difference(x, 14.7) for x in (1.26, -2.0)] == ["+1.3", "−2.0"]


def test_the_figures_are_the_records(held):
    drawn = report.draw(held)
    leader = held.entries[0]
    line = next(trace for trace in drawn["validation loss"]["data"] if trace.get("name") == leader.label)
    finals = [outcome.curve["validation loss"][-1] for outcome in leader.finished.values()]
    assert line["x"][-1] == 40
    assert line["y"][-1] == pytest.approx(np.mean(finals), rel=1e-4)
    dots = drawn["final losses"]["data"][0]
    assert dots["x"] == pytest.approx([outcome.result["loss"] for outcome in leader.finished.values()], rel=1e-4)
    trials = drawn[f"lr {leader.name}"]["data"]
    assert sum(len(trace["x"]) for trace in trials if trace["marker"]["symbol"] == "circle") == 3
    crosses = next(trace for trace in drawn["lr sgd"]["data"] if trace["marker"]["symbol"] == "x-thin-open")
    assert len(crosses["x"]) == 3
    assert "diverged at step" in crosses["text"][0]


def test_every_colour_is_known_on_every_ground(held):
    for face in (figures.LIGHT, figures.DARK, figures.EITHER):
        for figure in report.draw(held).values():
            painted = json.dumps(figures.coloured(figure, figures.palette(held, face)))
            assert '"@' not in painted
            assert all(len(colour) in (7, 9) for colour in re.findall(r"#[0-9a-f]+", painted))


def test_every_contender_has_a_colour_of_its_own_and_no_spare_one():
    assert set(figures.COLOURS) == set(CONTENDERS)
    for face in (figures.LIGHT, figures.DARK, figures.EITHER):
        colours = [faces[face] for faces in (*figures.COLOURS.values(), *figures.SPARE_COLOURS)]
        assert len(set(colours)) == len(colours)


def test_the_page_needs_nothing_but_itself(held):
    reader = Reader(report.page(held))
    for tag, attributes in reader.elements:
        for name in ("src", "href", "srcset", "action", "data"):
            assert not attributes.get(name) or attributes[name].startswith("data:"), (tag, attributes)
    page = report.page(held)
    styles = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert len(styles) == 1
    assert "url(" not in styles[0]
    assert "@import" not in styles[0]


def test_names_cannot_break_out_of_the_page(held):
    evil = "</script><script>alert(1)</script><b>"
    race = dataclasses.replace(held.race, setting={**held.race.setting, "command": evil, "left_out": {"x": evil}})
    held = dataclasses.replace(held, race=race)
    held.entries[0].about["label"] = evil
    held.entries[0].about["source"] = evil
    reader = Reader(report.page(held))
    assert [tag for tag, _ in reader.elements].count("script") == 3
    assert not any("alert(1)" in script for script in reader.scripts[::2])
    assert ("b", {}) not in reader.elements
    json.loads(reader.scripts[1])


def test_a_race_that_is_not_finished_says_so(store, referee):
    with pytest.raises(KeyboardInterrupt):
        referee.race("sgd", "adamw", executor=Inline(interrupt_at=3))
    page = report.page(results(store, store.last_race()))
    assert "This race is not finished: 7 runs are missing" in page


def test_a_race_of_one_and_a_race_all_lost(store, referee, tmp_path):
    one = results(store, referee.race("koala-v", seeds=1, trials=1))
    assert one.baseline is None
    assert "Loss minus" not in report.page(one)
    lost = results(store, referee.race("sgd", task="sprint:Cliff"))
    reader = Reader(report.page(lost))
    assert reader.cells["result"][1][1] == "every trial lost"
    with pytest.raises(ValueError, match="nothing to draw"):
        report.write_picture(lost, tmp_path / "never.svg")


def test_a_picture_without_kaleido_says_what_to_install(held, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kaleido", None)
    with pytest.raises(ValueError, match=r'pip install "fallline\[docs\]"'):
        report.write_picture(held, tmp_path / "race.svg")


def test_a_picture_is_svg_or_png(held, tmp_path):
    with pytest.raises(ValueError, match=r"an \.svg or a \.png"):
        report.write_picture(held, tmp_path / "race.gif")


def browse(page, profile):
    """The page after its scripts have run, as text, and what the browser's console said."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--dump-dom"]
    flags += [f"--user-data-dir={profile}", "--virtual-time-budget=10000", "--enable-logging=stderr"]
    flags += ["--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=1366,768"]
    done = subprocess.run(["chromium", *flags, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no chromium on the PATH")
def test_a_browser_draws_every_figure_without_a_complaint(held, tmp_path):
    shown, complaints = browse(report.write_page(held, tmp_path / "page.html"), tmp_path / "profile")
    assert complaints == []
    plots = re.split(r'data-figure="', shown.split("<script>")[0])[1:]
    assert len(plots) == 3 + 4
    assert all('class="main-svg"' in plot for plot in plots)
    drawn = {plot.split('"')[0]: plot for plot in plots}
    assert drawn["validation loss"].count('class="js-line"') == 6  # three means, three bands


@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no chromium on the PATH")
def test_a_chip_hides_its_optimizer_and_console_errors_are_seen(held, tmp_path):
    page = tmp_path / "page.html"
    click = "<script>document.querySelector('.chip').click(); console.error('a complaint')</script>"
    page.write_text(report.page(held).replace("</body>", f"{click}</body>"), encoding="utf-8")
    shown, complaints = browse(page, tmp_path / "profile")
    plots = {plot.split('"')[0]: plot for plot in re.split(r'data-figure="', shown.split("<script>")[0])[1:]}
    assert plots["validation loss"].count('class="js-line"') == 4
    assert shown.count('aria-pressed="true"') == 2  # of three
    assert len(complaints) == 1
    assert "a complaint" in complaints[0]
