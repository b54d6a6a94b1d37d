"""The papers' experiments: their numbers, the page made of them, and how the command behaves."""

import contextlib
import json
import re
import shutil

import numpy as np
import pytest
import torch
from browser import Reader, browse
from referee import Inline
from terminal import call

from fallline import LODO
from fallline.bench.common.numbers import number
from fallline.bench.runs.run import Run
from fallline.bench.tasks.bowl import DIMENSION, EIGENVALUES, Landscape
from fallline.papers import experiments as repro
from fallline.papers import repro as command
from fallline.papers.experiments import lodo_bowl, lodo_memory, reproduce, rounding
from fallline.papers.experiments._problem import optimizer_of
from fallline.papers.experiments.lodo_bowl import FLOOR, LodoBowl
from fallline.papers.experiments.lodo_memory import LodoMemory
from fallline.papers.experiments.lodo_rosenbrock import LodoRosenbrock

LABELS = {name: entry.line.label for name, entry in LodoBowl.entries().items()}
CHROMIUM = pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no chromium on the PATH")


@pytest.fixture(scope="module")
def patch():
    """A monkeypatch for the whole module."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def runs(patch):
    """The experiments shortened, and the pool replaced by this process. Returns the pools that were opened."""
    opened = []

    @contextlib.contextmanager
    def here(jobs):
        opened.append(Inline())
        yield opened[-1]

    patch.setattr(command, "local_pool", here)
    for experiment, settings in (
        (LodoBowl, {"steps": 12, "quick_steps": 40}),
        (LodoMemory, {"quick_steps": 20}),
        (LodoRosenbrock, {"steps": 30, "trials": 5, "quick_trials": 4}),
    ):
        for name, value in settings.items():
            patch.setattr(experiment, name, value)
    return opened


@pytest.fixture(scope="module")
def bowl(runs, tmp_path_factory):
    """The folder of a short bowl with two seeds."""
    return reproduced(tmp_path_factory, "lodo-bowl", "--quick", "--seeds", "2")


@pytest.fixture(scope="module")
def valley(runs, tmp_path_factory):
    """The folder of a short valley with two searches."""
    return reproduced(tmp_path_factory, "lodo-rosenbrock", "--quick", "--seeds", "2")


def reproduced(factory, *arguments):
    out = factory.mktemp("out")
    code, output = call("repro", *arguments, "--out", str(out))
    assert code == 0, output
    return out


def files(out):
    """The record and the page."""
    (raw,), (page,) = out.glob("*.json"), out.glob("*.html")
    assert raw.stem == page.stem
    return json.loads(raw.read_text(encoding="utf-8")), page.read_text(encoding="utf-8")


def cells(page, table):
    """A table's rows by their first cell."""
    return {row[0]: row[1:] for row in Reader(page).cells[table][1:]}


def first_number(cell):
    return float(re.match(r"[\d.e+-]+", cell)[0])


# --- the bowl ---


def test_the_bowl_s_page_shows_the_numbers_of_its_record(bowl):
    record, page = files(bowl)
    assert record["design"].items() >= {"experiment": "lodo-bowl", "quick": True, "seeds": 2}.items()
    rows = cells(page, "result")
    assert set(rows) == {LABELS[name] for name in record["results"]["contenders"]}
    for name, entry in record["results"]["contenders"].items():
        mine = [one["outcome"] for one in record["runs"] if one["run"]["optimizer"] == name]
        assert len(mine) == 2
        losses = [outcome["result"]["loss"] for outcome in mine]
        assert entry["measures"]["loss"]["mean"] == pytest.approx(np.mean(losses))
        row = rows[LABELS[name]]
        assert first_number(row[0]) == pytest.approx(np.mean(losses), rel=2e-2)
        assert "[" in row[0]
        if name.startswith("lodo"):
            errors = [outcome["curve"]["Hessian error"][-1] for outcome in mine]
            assert first_number(row[1]) == pytest.approx(np.mean(errors), rel=2e-2)
    assert list(rows) == sorted(rows, key=lambda label: first_number(rows[label][0]))


def test_the_bowl_s_curves_are_the_losses_of_the_runs(bowl):
    record, page = files(bowl)
    figures = json.loads(Reader(page).scripts[1])
    line = next(trace for trace in figures["loss"]["data"] if trace.get("name") == "Adam")
    mine = [one["outcome"]["curve"] for one in record["runs"] if one["run"]["optimizer"] == "adam"]
    assert line["y"] == pytest.approx(np.mean([curve["loss"] for curve in mine], axis=0), rel=1e-3)
    ends = mine[0]["step"]
    assert line["x"][0] == 1
    assert ends[-1] == 40
    assert all(before < at <= end for before, at, end in zip([0, *ends], line["x"], ends, strict=False))


def test_all_contenders_follow_the_same_minimum(bowl):
    record, _ = files(bowl)
    for seed in (0, 1):
        first = {one["outcome"]["curve"]["loss"][0] for one in record["runs"] if one["run"]["seed"] == seed}
        assert len(first) == 1


def test_the_windows_hold_every_step_once():
    settings = {"lr": 1.0, "momentum": 0.0}
    outcome = LodoBowl().run(Run("repro:lodo-bowl", "momentum", {**settings, "steps": 10}, 0))
    longer = LodoBowl().run(Run("repro:lodo-bowl", "momentum", {**settings, "steps": 1000}, 0))
    assert outcome.curve["step"] == [*map(float, range(1, 11))]  # a window a step
    ends = np.array(longer.curve["step"])
    assert ends[-1] == 1000
    until = ends <= 10
    assert np.array(longer.curve["loss"])[until] == pytest.approx(
        np.array(outcome.curve["loss"])[ends[until].astype(int) - 1]
    )
    # The mean over the first thousand is that of all windows, each by its length.
    mean = np.average(longer.curve["loss"], weights=np.diff(ends, prepend=0))
    assert mean == pytest.approx(longer.result["loss to 1000"], rel=1e-9)


def test_newton_reaches_the_floor():
    outcome = LodoBowl().run(Run("repro:lodo-bowl", "newton", {"steps": 2000}, 1))
    # One loss has a variance of ½ tr H².
    deviation = (0.5 * EIGENVALUES.square().sum().item() / 2000) ** 0.5
    assert np.average(outcome.curve["loss"], weights=np.diff(outcome.curve["step"], prepend=0)) == pytest.approx(
        FLOOR, abs=4 * deviation
    )
    assert pytest.approx(7.411847, abs=1e-6) == FLOOR


def test_the_hessian_error_of_known_preconditioners():
    torch.manual_seed(0)
    hessian = Landscape().hessian.double()
    inverse = torch.linalg.inv(hessian)
    assert lodo_bowl.hessian_error(inverse, hessian) == pytest.approx(0, abs=1e-6)
    assert lodo_bowl.hessian_error(torch.zeros_like(hessian), hessian) == pytest.approx(1)
    scaled = (1 - 0.3 * EIGENVALUES).square().mean().sqrt().item()
    assert lodo_bowl.hessian_error(0.3 * torch.eye(DIMENSION), hessian) == pytest.approx(scaled, rel=1e-5)
    inside = lodo_bowl.in_eigenbasis(inverse, hessian)
    assert torch.allclose(inside, torch.diag(1 / EIGENVALUES), rtol=1e-3, atol=1e-3)


def test_the_ablations_are_what_they_are_called():
    torch.manual_seed(0)
    model, draw = Landscape(), torch.Generator()
    made = {
        entry.label: optimizer_of(entry.optimizer, model.parameters(), entry.settings, draw)
        for entry in lodo_bowl.ENTRIES
        if lodo_bowl.learns(entry.label)
    }
    groups = {name: optimizer.param_groups[0] for name, optimizer in made.items()}
    assert all(isinstance(optimizer, LODO) for optimizer in made.values())
    tuned = {"lr": 0.27, "meta_lr": 0.00096, "beta": 0.195, "depth": 16, "preconditioner": "network"}
    assert {key: groups["lodo"][key] for key in tuned} == tuned
    assert groups["lodo-no-momentum"]["beta"] == 0
    assert groups["lodo-sgd"]["meta_optimizer"] == "sgd"
    assert groups["lodo-depth-4"]["depth"] == 4
    assert groups["lodo-diagonal"]["preconditioner"] == "diagonal"
    assert groups["lodo-global"]["preconditioner"] == "global"
    assert (groups["lodo-residuals"]["preconditioner"], groups["lodo-residuals"]["depth"]) == ("residual", 64)
    defaults = LODO(model.parameters()).param_groups[0]
    assert all(groups["lodo-defaults"][key] == defaults[key] for key in ("lr", "meta_lr", "beta", "depth"))


def test_the_whole_bowl_with_one_seed_has_everyone_and_no_interval(runs, tmp_path):
    code, output = call("repro", "lodo-bowl", "--seeds", "1", "--out", str(tmp_path))
    assert code == 0
    record, page = files(tmp_path)
    rows = cells(page, "result")
    assert set(rows) == {*LABELS.values()}
    assert all("[" not in cell for row in rows.values() for cell in row)
    assert all(label in output for label in rows)
    assert record["results"]["steps"] == 12
    assert {"loss", "ablations", "error", "curvature", "whitened", "true"} == set(json.loads(Reader(page).scripts[1]))


# --- the valley ---


def test_gradient_descent_in_the_valley_is_that_of_the_formula():
    outcome = LodoRosenbrock().run(
        Run("repro:lodo-rosenbrock", "momentum", {"lr": 0.05, "momentum": 0.0, "steps": 25}, 0, test=True)
    )
    x, y, losses = -0.5, 2.0, []
    for _ in range(25):
        losses.append(0.01 * (1 - x) ** 2 + (y - x * x) ** 2)
        x, y = x - 0.05 * (-0.02 * (1 - x) - 4 * x * (y - x * x)), y - 0.05 * 2 * (y - x * x)
    assert outcome.curve["loss"] == pytest.approx(losses, rel=1e-12)
    assert outcome.score == pytest.approx(np.mean(losses[-20:]), rel=1e-12)
    assert (outcome.curve["x"][0], outcome.curve["y"][0]) == (-0.5, 2.0)


def test_a_run_that_leaves_the_valley_is_lost():
    outcome = LodoRosenbrock().run(
        Run("repro:lodo-rosenbrock", "momentum", {"lr": 10.0, "momentum": 0.9, "steps": 30}, 0)
    )
    assert outcome.status == "diverged"
    assert outcome.score is None


def test_every_search_chooses_its_best_trial(valley):
    record, page = files(valley)
    outcomes = {True: {}, False: {}}
    for one in record["runs"]:
        run, outcome = one["run"], one["outcome"]
        outcomes[run["test"]].setdefault((run["optimizer"], run["seed"]), []).append((run["settings"], outcome))
    assert {len(tried) for tried in outcomes[False].values()} == {4}
    assert len(outcomes[False]) == 4 * 2
    same = {}
    for search, ((settings, outcome),) in outcomes[True].items():
        scored = [(tried["score"], chosen) for chosen, tried in outcomes[False][search] if tried["score"] is not None]
        score, chosen = min(scored, key=lambda pair: pair[0])
        assert settings == chosen
        same[search] = outcome["score"] == score
    # Only LODO's network is drawn; and a chosen one is not judged on the network that it was chosen on.
    assert same == {search: search[0] != "lodo" for search in same}
    rows = cells(page, "result")
    for name, entry in record["results"]["contenders"].items():
        geometric = 10 ** np.mean(np.log10(list(entry["final"].values())))
        row = rows[LodoRosenbrock.entries()[name].line.label]
        assert row[0].startswith(number(geometric))
        assert row[2] == number(max(entry["final"].values()))


def test_the_searches_differ_by_their_seed(valley):
    record, _ = files(valley)
    for name in LodoRosenbrock.contenders:
        rates = {
            seed: [
                one["run"]["settings"]["lr"]
                for one in record["runs"]
                if (one["run"]["optimizer"], one["run"]["seed"], one["run"]["test"]) == (name, seed, False)
            ]
            for seed in (0, 1)
        }
        assert not set(rates[0]) & set(rates[1])


# --- the page ---


@pytest.mark.parametrize("folder", ["bowl", "valley"])
def test_the_page_is_made_from_the_file_and_needs_nothing_else(folder, request):
    record, page = files(request.getfixturevalue(folder))
    assert reproduce.render(repro.get_experiment(record["experiment"]).page(record), record) == page
    reader = Reader(page)
    for tag, attributes in reader.elements:
        for name in ("src", "href", "srcset", "action", "data"):
            assert not attributes.get(name) or attributes[name].startswith("data:"), (tag, attributes)
    palettes = re.search(r"const palettes = (.*);", reader.scripts[2])[1]
    colours = re.findall(r'"([\w-]+)": "#', palettes)
    assert set(re.findall(r'"@([^"/]+)', reader.scripts[1])) <= set(colours)
    assert record["command"] in page
    assert torch.__version__ in page


@CHROMIUM
def test_a_browser_draws_both_pages_without_a_complaint(bowl, valley, tmp_path):
    for folder in (bowl, valley):
        (page,) = folder.glob("*.html")
        shown, complaints = browse(page, tmp_path / "profile")
        assert complaints == []
        plots = re.split(r'data-figure="', shown.split("<script>")[0])[1:]
        assert plots
        assert all('class="main-svg"' in plot for plot in plots)


# --- less memory ---


def test_every_way_to_shrink_the_state_shrinks_it(runs, tmp_path):
    code, output = call("repro", "lodo-memory", "--quick", "--seeds", "2", "--out", str(tmp_path))
    assert code == 0, output
    record, page = files(tmp_path)
    rows = cells(page, "result")
    found = record["results"]["ways"]
    assert list(rows) == list(found) == list(lodo_memory.WAYS)
    for way, entry in found.items():
        outcomes = [one["outcome"] for one in record["runs"] if one["run"]["optimizer"] == way]
        assert entry["bytes"] == outcomes[0]["state_bytes"] / 100
        assert entry["loss"]["mean"] == pytest.approx(np.mean([outcome["score"] for outcome in outcomes]))
        assert first_number(rows[way][0]) == pytest.approx(entry["loss"]["mean"], rel=2e-2)
    size = {way: entry["bytes"] for way, entry in found.items()}
    assert size["as published"] > size["second moment a block"] > size["both"] > size["half the depth"] > 500
    assert all(size["as published"] >= other for other in size.values())


# --- bfloat16 ---


def test_stochastic_rounding_trains_as_float32_does(runs, tmp_path):
    code, output = call("repro", "bfloat16", "--seeds", "2", "--optimizers", "CoolMomentum", "--out", str(tmp_path))
    assert code == 0, output
    record, page = files(tmp_path)
    for split in ("train", "validation"):
        rows = cells(page, split)
        assert set(rows) == {"CoolMomentum"}
        for name, row in rows.items():
            for weights, cell in zip(rounding.WEIGHTS, row, strict=True):
                mine = [
                    one["outcome"]["result"][split]
                    for one in record["runs"]
                    if (one["run"]["optimizer"], one["run"]["settings"]["weights"]) == (name, weights)
                ]
                assert len(mine) == 2
                assert first_number(cell) == pytest.approx(np.mean(mine), rel=2e-2, abs=1e-4)
    losses = {w: entry["train"]["mean"] for w, entry in record["results"]["optimizers"]["CoolMomentum"].items()}
    full, nearest, stochastic = losses.values()
    assert nearest > 1.2 * full
    assert stochastic == pytest.approx(full, rel=0.02)
    assert "stochastic" in output


# --- the command ---


def test_some_contenders_may_be_chosen(runs, tmp_path):
    code, output = call(
        "repro", "lodo-bowl", "--quick", "--seeds", "1", "--optimizers", "newton,lodo-depth-4", "--out", str(tmp_path)
    )
    assert code == 0, output
    record, page = files(tmp_path)
    assert {one["run"]["optimizer"] for one in record["runs"]} == {"newton", "lodo-depth-4"}
    assert "--optimizers newton,lodo-depth-4 --seeds 1" in record["command"]
    assert set(cells(page, "result")) == {"Newton, exact H", "LODO, depth 4"}


def test_without_a_name_the_experiments_are_listed():
    code, output = call("repro")
    assert code == 0
    for name in repro.EXPERIMENTS:
        assert name in output
        assert " ".join(repro.get_experiment(name).summary.split()[:4]) in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lodo-bowel",), "no experiment 'lodo-bowel'; did you mean lodo-bowl?"),
        (("sprint:Sprint",), "'sprint:Sprint' is no experiment"),
        (("nowhere_at_all:Class",), "cannot be imported"),
        (("lodo-bowl", "--seeds", "0"), "Invalid value for '--seeds'"),
        (("lodo-bowl", "--jobs", "0"), "Invalid value for '--jobs'"),
        (("lodo-bowl", "--optimizers", "lodo,adaam"), "no contender 'adaam'; did you mean adam?"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(arguments, message, tmp_path):
    code, output = call("repro", *arguments, "--out", str(tmp_path))
    assert code == 2
    assert message in output
    assert not list(tmp_path.iterdir())


def test_interrupted_it_leaves_nothing_half_written_and_goes_on(runs, monkeypatch, tmp_path):
    @contextlib.contextmanager
    def interrupted(jobs):
        yield Inline(interrupt_at=3)

    with monkeypatch.context() as context:
        context.setattr(command, "local_pool", interrupted)
        code, output = call("repro", "lodo-rosenbrock", "--quick", "--seeds", "1", "--out", str(tmp_path))
    assert code == 130
    assert "the same command goes on" in output
    assert {path.name for path in tmp_path.iterdir()} == {command.DATABASE}

    code, output = call("repro", "lodo-rosenbrock", "--quick", "--seeds", "1", "--out", str(tmp_path))
    assert code == 0
    assert len(runs[-1].calls) == 4 * 4 + 4 - 3
    record, page = files(tmp_path)
    assert record["reused"] == 3
    assert "3 of 20 runs taken from the records" in page


def test_a_run_that_raises_is_lost_and_when_all_are_it_is_said(runs, tmp_path, monkeypatch):
    def broken(self, run):
        raise ArithmeticError("too tired")

    monkeypatch.setattr(LodoRosenbrock, "run", broken)
    outcome = reproduce.attempt("lodo-rosenbrock", Run("repro:lodo-rosenbrock", "adam", {}, 0))
    assert (outcome.status, outcome.reason) == ("failed", "ArithmeticError: too tired")
    code, output = call("repro", "lodo-rosenbrock", "--quick", "--seeds", "1", "--out", str(tmp_path))
    assert code == 1
    assert "no run has finished" in output
    assert not list(tmp_path.glob("repro-*"))


def test_changed_code_runs_anew(monkeypatch):
    experiment = repro.get_experiment("lodo-bowl")
    before = reproduce.fingerprint(experiment)
    monkeypatch.setattr(LodoBowl, "code", lambda self: [Landscape])
    assert reproduce.fingerprint(experiment) != before
