"""A method from outside the package: one file with its card, and everything knows it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fallline
from fallline.bench.contenders import CONTENDERS, get_contender, names, plain
from fallline.bench.report.looks import SPARE_COLOURS, recorded_colour
from fallline.bench.runs.readings import readings

METHOD = """
import torch
from fallline.bench.common.spaces import Range
from fallline.bench.contenders import Contender, Step, Words, plain

class Halved(torch.optim.SGD):
    def __init__(self, params, lr=0.1, fused=None):
        super().__init__(params, lr=lr / 2)

def halves(optimizer):
    return {"half": torch.tensor(optimizer.param_groups[0]["lr"])}

CARD = Contender(
    "halved", "SGD in halves", plain("halved_method:Halved"), {"lr": Range(0.1, 1.0)},
    source="a test", colour=("#123450", "#123451", "#123452"), readings=halves,
    steps=(Step("halved", "SGD in halves", Words(3, 0), 0, against="sgd-fused"),),
)
"""
HERE, SOURCE = Path(__file__).parents[2] / "helpers", Path(fallline.__file__).parents[1]
BENCHMARKS = HERE.parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def call(tmp_path_factory):
    """A function that runs Python where a package with this method is installed."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "halved_method.py").write_text(METHOD)
    about = folder / "halved_method-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: halved-method\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[fallline.cards]\nhalved = halved_method:CARD\n")
    paths = os.pathsep.join(map(str, (folder, HERE, SOURCE)))

    def run(*words):
        done = subprocess.run(
            [sys.executable, *map(str, words)],
            env={**os.environ, "PYTHONPATH": paths, "COLUMNS": "200"},
            cwd=folder,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run.folder = folder
    return run


def test_it_is_listed(call):
    (line,) = (line for line in call("-m", "fallline", "list").splitlines() if line.startswith("halved"))
    assert "lr 0.1 … 1, log" in line


@pytest.mark.parametrize("name", ["halved", "halved_method:Halved"])
def test_it_races_in_the_workers_and_is_reported_by_its_name_and_in_its_colour(call, name):
    out = f"runs-{len(name)}"
    small = ("--trials", "2", "--finalists", "1", "--seeds", "2", "--jobs", "1", "--out", out)
    told = call("-m", "fallline", "race", "sprint:Sprint", "--optimizers", f"{name},sgd", *small)
    assert "SGD in halves" in told
    page = (call.folder / out / "sprint.Sprint.html").read_text()
    assert "SGD in halves" in page
    assert "#123450" in page
    assert "#123451" in page


def test_it_trains_and_its_readings_are_written(call):
    told = (
        "--optim",
        "halved",
        "--steps",
        "4",
        "--log",
        "jsonl",
        "--log-every",
        "1",
        "--out",
        "trained",
        "--lr",
        "0.5",
    )
    call("-m", "fallline", "train", "sprint:Sprint", *told)
    lines = (call.folder / "trained" / "metrics.jsonl").read_text().splitlines()
    assert any("half" in json.loads(line) or "half" in json.loads(line).get("scalars", {}) for line in lines)


def test_its_step_is_measured(call):
    told = call(BENCHMARKS / "speed", "--set", "tiny", "--only", "halved-eager", "--rounds", "3", "--steps", "1")
    assert "SGD in halves, eager" in told


class Entry:
    """An entry point with a card, or with what its module raises."""

    value = "somewhere:CARD"

    def __init__(self, card):
        self.card = card

    def load(self):
        if isinstance(self.card, Exception):
            raise self.card
        return self.card


@pytest.mark.parametrize(
    ("card", "message"),
    [
        (ImportError("no such thing"), "cannot be loaded: ImportError: no such thing"),
        (3, "left out: it is a int"),
        (CONTENDERS["sgd"], "left out: another card has its name"),
    ],
)
def test_a_card_that_is_none_is_left_out_with_a_warning(card, message, monkeypatch):
    monkeypatch.setattr(names, "entry_points", lambda group: [Entry(card)])
    with pytest.warns(UserWarning, match=message):
        assert names.contenders.__wrapped__() == CONTENDERS


def test_a_colour_from_a_record_is_a_colour():
    assert recorded_colour({"colour": ["#000000", "#ffffff", "#7f7f7f"]}) == ("#000000", "#ffffff", "#7f7f7f")
    for wrong in (None, "#000000", ["red", "red", "red"], ["#000000"], [1, 2, 3], ["#000000</script>"] * 3):
        assert recorded_colour({"colour": wrong}) is None
    assert SPARE_COLOURS


def test_every_step_s_learning_rate_and_settings_make_an_optimizer():
    for card in CONTENDERS.values():
        for step in card.steps:
            params = [torch.nn.Parameter(torch.ones(4, 4)), torch.nn.Parameter(torch.ones(4))]
            assert card.make(params, {"lr": 1e-9, **step.settings}, None).param_groups


def test_readings_of_a_card_stand_beside_those_of_the_class():
    optimizer = get_contender("koala-v").make([torch.nn.Parameter(torch.ones(4))], {}, None)
    assert {"P", "R", "mine"} <= readings(optimizer, lambda one: {"mine": torch.tensor(1.0)}).keys()
    assert readings(torch.optim.SGD([torch.nn.Parameter(torch.ones(2))])) == {}
    assert plain("sgd")([torch.nn.Parameter(torch.ones(2))], {"lr": 0.5}, None).defaults["lr"] == 0.5
