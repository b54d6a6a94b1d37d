"""`fallline train`: the same numbers as the race's loop, also when it is stopped, and on two processes."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import typer
from training_worker import RESUMED, SHARED, Dropping, curves, sharing, work
from typer.testing import CliRunner

import fallline
from fallline.bench.cli.train import train as train_command
from fallline.bench.contenders import lr_factor
from fallline.bench.runs.checkpoint import load
from fallline.bench.runs.loggers import open_logs
from fallline.bench.runs.loop import train as race_loop
from fallline.bench.runs.processes import Processes, blocks, launch
from fallline.bench.runs.readings import readings
from fallline.bench.runs.run import Run

TASK = "training_worker:Dropping"


@pytest.fixture(autouse=True)
def _fresh(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name, value in {"stop_at": None, "break_at": None}.items():
        monkeypatch.setattr(Dropping, name, value)


def call(*arguments):
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(train_command)
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "80", "NO_COLOR": "1"}, catch_exceptions=False)
    return result.exit_code, " ".join(re.sub(r"[│╭╮╰╯─]", " ", result.output).split())


def assert_same(one, other):
    """To the bit, through dictionaries and lists."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_same(one[name], other[name])
    elif isinstance(one, list | tuple):
        for mine, yours in zip(one, other, strict=True):
            assert_same(mine, yours)
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    else:
        assert one == other


def state(folder):
    """What the rest of a run depends on, but for the times."""
    saved = load(Path(folder) / "checkpoint.pt")
    return {name: saved[name] for name in ("model", "optimizer", "losses", "random")} | {
        "curve": saved["outcome"]["curve"]
    }


@pytest.mark.parametrize(
    ("name", "settings"), [("adamw", {"lr": 0.01, "beta1": 0.8}), ("coolmomentum", {"lr": 0.1}), ("lbfgs", {"lr": 0.5})]
)
def test_one_process_computes_what_the_loop_of_the_race_does(name, settings):
    wanted = race_loop(Run("digits@steps=40,evaluations=4", name, settings, seed=3, test=True))
    given = [word for setting, value in settings.items() for word in ("--set", f"{setting}={value}")]
    code, output = call("digits@steps=40,evaluations=4", "--optim", name, *given, "--seed", "3", "--out", "x")
    assert code == 0, output
    assert load(Path("x/checkpoint.pt"))["outcome"]["curve"] == wanted.curve
    result = json.loads(Path("x/result.json").read_text())
    assert (result["score"], result["test"]) == (wanted.score, wanted.result)
    assert f"test loss {wanted.result['loss']:.4g}" in output
    lines = [json.loads(line) for line in Path("x/metrics.jsonl").read_text().splitlines()]
    assert lines[0]["validation accuracy"] == wanted.curve["validation accuracy"][0]
    assert lines[-1]["validation accuracy"] == wanted.curve["validation accuracy"][-1]


@pytest.mark.parametrize("name", ["koala-m", "coolmomentum", "muon"])
def test_ctrl_c_saves_and_the_command_that_it_prints_goes_on_to_the_same_weights(name):
    assert call(TASK, "--optim", name, "--lr", "0.05", "--out", "whole", "--log", "jsonl", "--log-every", "2")[0] == 0
    Dropping.stop_at = 9
    code, output = call(TASK, "--optim", name, "--lr", "0.05", "--out", "cut", "--log", "jsonl", "--log-every", "2")
    assert code == 130
    assert "Stopped after step 9." in output
    words = shlex.split(re.search(r"To go on: fallline train (.*)", output)[1])
    Dropping.stop_at = None
    torch.manual_seed(5)
    code, output = call(*words)
    assert code == 0, output
    assert "Going on from step 9." in output
    assert_same(state("cut"), state("whole"))
    for file, names in {"metrics.jsonl": ["validation loss", "train loss"], "log.jsonl": ["lr"]}.items():
        runs = [[json.loads(line) for line in Path(out, file).read_text().splitlines()] for out in ("cut", "whole")]
        seen = [{line["step"]: [line.get(name) for name in names] for line in run} for run in runs]
        assert seen[1].items() <= seen[0].items()  # a look more, at the step where it stopped
        assert len(runs[0]) == len(seen[0])


def test_a_folder_with_a_run_and_a_checkpoint_of_another_are_refused():
    assert call(TASK, "--optim", "sgd", "--lr", "0.1", "--out", "x", "--steps", "6")[0] == 0
    code, output = call(TASK, "--optim", "sgd", "--lr", "0.1", "--out", "x", "--steps", "6")
    assert (code, "--resume goes on" in output) == (1, True)
    code, output = call(TASK, "--optim", "sgd", "--lr", "0.2", "--out", "x", "--steps", "8", "--resume")
    assert code == 1
    assert "horizon is 6 there and 8 here; lr is 0.1 there and 0.2 here; steps is 6 there and 8 here" in output
    file = Path("x/checkpoint.pt")
    file.write_bytes(file.read_bytes()[:-200])
    code, output = call(TASK, "--optim", "sgd", "--lr", "0.1", "--out", "x", "--steps", "6", "--resume")
    assert (code, "cannot be read" in output) == (1, True)
    code, output = call(TASK, "--out", "y", "--resume")
    assert (code, "there is no y/checkpoint.pt" in output) == (1, True)


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_good_checkpoint():
    Dropping.break_at = 11
    code, output = call(TASK, "--optim", "sgd", "--out", "x", "--log-every", "1", "--save-every", "0")
    assert code == 1
    assert "the training loss is not finite, at step 11" in output
    kept = load(Path("x/checkpoint.pt"))
    assert kept["outcome"]["steps"] == 10
    assert all(value.isfinite().all() for value in kept["model"].values())
    assert json.loads(Path("x/result.json").read_text())["status"] == "diverged"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda saved: [saved], "it has no losses"),
        (lambda saved: {"model": saved["model"]}, "it has no losses"),
        (lambda saved: saved | {"outcome": {"status": "finished"}}, "outcome has no steps"),
        (lambda saved: saved | {"outcome": saved["outcome"] | {"steps": "3"}}, "outcome.steps is '3', and not a whole"),
        (lambda saved: saved | {"outcome": saved["outcome"] | {"curve": {}}}, "are not of one run"),
        (lambda saved: saved | {"losses": saved["losses"][:-1]}, "are not of one run"),
        (lambda saved: saved | {"plan": None}, "plan is null, and not a mapping"),
    ],
    ids=["list", "model", "outcome", "steps", "curve", "losses", "plan"],
)
def test_a_file_that_is_no_checkpoint_of_this_command_is_refused_in_a_sentence(change, why):
    run = (TASK, "--optim", "sgd", "--out", "x")
    assert call(*run)[0] == 0
    torch.save(change(torch.load("x/checkpoint.pt", weights_only=True)), "x/checkpoint.pt")
    code, output = call(*run, "--resume")
    assert code == 1
    assert "Error: x/checkpoint.pt is no checkpoint of fallline train: " in output
    assert why in output


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_run(monkeypatch):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", full)
    code, output = call(TASK, "--optim", "sgd", "--out", "x")
    assert code == 0
    assert "Warning: no checkpoint can be saved" in output
    assert "the last checkpoint could not be saved: OSError: no space left" in output
    assert not Path("x/checkpoint.pt").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "momentun=0.9", "--optim", "sgd"), "no setting of sgd 'momentun'; did you mean momentum?"),
        (("--set", "sigma=1"), "no setting of koala-m 'sigma'"),
        (("--optim", "sgd", "--fused", "--set", "fused=True"), "fused is given twice"),
        (("--optim", "adamw", "--stochastic-rounding"), "no setting of adamw 'stochastic_rounding'"),
        (("--epochs", "1", "--steps", "8"), "in epochs or in steps, not in both"),
        (("--drops", "0.1,0.5"), "drops belong to --schedule step"),
        (("--schedule", "step", "--drops", "0.1"), "a factor and shares"),
        (("--num-gpus", "3"), "a batch of 8 cannot be cut into 3 equal shares"),
        (("--log", "tensorbord"), "did you mean tensorboard?"),
        (("--optim", "koala"), "did you mean koala-"),
        (("--optim", "sgd", "--set", "momentum=abc"), "momentum of sgd is a finite number, as 0, got 'abc'"),
        (("--optim", "sgd", "--set", "momentum="), "momentum of sgd is a finite number, as 0, got ''"),
        (("--optim", "sgd", "--set", "momentum=None"), "momentum of sgd is a finite number, as 0, got None"),
        (("--optim", "sgd", "--set", "momentum=0.9", "--set", "momentum=0.8"), "momentum is given twice"),
        (("--optim", "sgd", "--lr", "nan"), "lr of sgd is a finite number, as 0.001, got nan"),
        (("--optim", "adamw", "--set", "betas=(0.9,)"), "betas of adamw is 2 finite numbers"),
        (("--epochs", "inf"), "epochs must be positive and finite, got inf"),
        (("--clip", "-1"), "a norm is positive and finite, got -1"),
        (("--clip", "nan"), "a norm is positive and finite, got nan"),
    ],
)
def test_mistakes_are_told_before_anything_is_made(arguments, message):
    code, output = call(TASK, "--out", "x", *arguments)
    assert code == 2
    assert message in output
    assert not Path("x").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--set", "betas=(0.9,0.95)", "--set", "eps=1e-6"),
        ("--set", "betas=[0.9, 0.95]", "--set", "amsgrad=true"),
        ("--set", "beta1=0.8", "--set", "foreach=None"),
    ],
)
def test_settings_of_all_kinds_work(arguments):
    code, output = call(TASK, "--out", "x", "--optim", "adamw", "--steps", "4", *arguments)
    assert (code, "Error" in output) == (0, False)


def test_settings_that_only_the_class_can_refuse_end_in_a_sentence():
    for optim, setting, told in (
        ("adamw", "betas=(0.9,1.5)", "Invalid beta parameter"),
        ("lodo", "generator=3", "lodo cannot be made with {'generator': 3}: AttributeError"),
        ("torch.optim:nadam", "eps=1e-8", "did you mean 'NAdam'?"),
    ):
        code, output = call(TASK, "--out", "x", "--optim", optim, "--set", setting)
        assert code == 1
        assert told in " ".join(output.split())
        assert "Traceback" not in output


def test_precision_layout_and_clipping_are_what_was_asked_for():
    task = "training_worker:Pictures"
    options = ["--optim", "sgd", "--lr", "0.1", "--clip", "1e-9", "--channels-last", "--dtype", "bfloat16"]
    assert call(task, "--out", "x", *options)[0] == 0
    saved = load(Path("x/checkpoint.pt"))
    assert {value.dtype for value in saved["model"].values()} == {torch.bfloat16}
    assert saved["model"]["0.weight"].is_contiguous(memory_format=torch.channels_last)
    assert saved["losses"].isfinite().all()
    assert len(saved["losses"].unique()) > 1
    start = call(task, "--out", "y", *options, "--steps", "1")
    assert start[0] == 0
    assert_same(saved["model"], load(Path("y/checkpoint.pt"))["model"])  # nothing moves by gradients clipped to 1e-9
    assert call(task, "--out", "z", "--amp", "--optim", "sgd", "--lr", "0.1")[0] == 0
    assert call(task, "--out", "full", "--optim", "sgd", "--lr", "0.1")[0] == 0
    rounded, exact = (load(Path(out, "checkpoint.pt"))["losses"] for out in ("z", "full"))
    assert 0 < (rounded - exact).abs().max() < 0.02  # eight bits of mantissa


def test_a_warm_up_rises_in_a_line_and_leaves_the_schedules_as_they_are():
    for schedule in ("cosine", "linear"):
        given, own = ([lr_factor(schedule, i, 200, warm_up=w) for i in range(1, 201)] for w in (0.05, None))
        assert given == own == [lr_factor(schedule, i, 200) for i in range(1, 201)]
        assert lr_factor(schedule, 1, 200, warm_up=0.0) > 0.99
    for schedule in ("step", "constant"):
        rates = [lr_factor(schedule, i, 200, warm_up=0.1) for i in range(1, 201)]
        assert rates[:20] == pytest.approx([i / 20 for i in range(1, 21)])
        assert rates[20:] == [lr_factor(schedule, i, 200) for i in range(21, 201)]


def test_readings_are_what_the_optimizers_hold():
    weights = torch.nn.Parameter(torch.tensor([1.0, -2.0]))

    def after(optimizer, steps=3):
        for _ in range(steps):
            optimizer.zero_grad()
            loss = weights.square().sum()
            loss.backward()
            optimizer.step(loss=loss.detach())
        return readings(optimizer)

    koala = fallline.MomentumKOALA([weights], lr=0.1)
    assert after(koala) == pytest.approx({"P": koala.covariance[0, 0].item(), "R": koala.measurement_noise.item()})
    vanilla = fallline.VanillaKOALA([weights], lr=0.1)
    assert after(vanilla) == pytest.approx({"P": vanilla.covariance.item(), "R": vanilla.measurement_noise.item()})
    assert set(after(fallline.KOALAPlusPlus([weights], lr=0.1))) == {"R"}
    before = weights.detach().clone()
    cool = after(fallline.CoolMomentum([weights], lr=0.1, rho_0=0.9), steps=1)
    assert cool == pytest.approx({"rho": 0.9, "temperature": ((weights - before).square().mean() / 0.1).item()})
    turo = fallline.ArTuRO([weights], lr=0.01)
    assert readings(turo) == {}
    told = after(turo)
    assert set(told) == {"eta", "KL"}
    assert 0 < told["KL"] <= 0.01 * (1 + 1e-5)
    assert after(fallline.LODO([weights], lr=0.25, depth=0)) == pytest.approx({"scale": 0.25})  # G is lr itself
    broken = fallline.MomentumKOALA([weights])
    weights.grad = torch.full_like(weights, torch.nan)
    broken.step(loss=1.0)
    assert readings(broken)["skipped"] == 1
    assert readings(torch.optim.AdamW([weights])) == {}


def test_tensorboard_has_a_point_on_the_disk_as_soon_as_it_is_written(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logs = open_logs("tensorboard", tmp_path, {"lr": 0.1}, 0, pytest.fail)
    logs.write(10, {"loss": 0.5})
    logs.write(20, {"loss": 0.25})
    read = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(point.step, point.value) for point in read.Scalars("loss")] == [(10, 0.5), (20, 0.25)]
    logs.close()
    again = open_logs("tensorboard", tmp_path, {"lr": 0.1}, 10, pytest.fail)  # stopped at 10, gone on from there
    again.write(20, {"loss": 0.125})
    again.close()
    read = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(point.step, point.value) for point in read.Scalars("loss")] == [(10, 0.5), (20, 0.125)]


def test_blocks_are_the_members_of_lists_however_they_are_nested():
    block = [torch.nn.Sequential(torch.nn.Linear(2, 2)) for _ in range(3)]
    model = torch.nn.Module()
    model.stem, model.layers = torch.nn.Linear(2, 2), torch.nn.ModuleList([block[0], torch.nn.Sequential(*block[1:])])
    assert list(blocks(model)) == [one[0] for one in block]


# -- two processes ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """What two processes leave behind, started once for all tests."""
    folder = tmp_path_factory.mktemp("pair")
    assert launch(work, (folder,), 2) == 0
    return folder, torch.load(folder / "found.pt")


@pytest.mark.parametrize(("way", "name"), SHARED)
def test_two_processes_are_one(way, name, pair, tmp_path):
    alone = curves(sharing(name), tmp_path, Processes())
    shared = pair[1][f"{way} {name}"]
    assert len(shared["losses"]) == 24
    assert shared["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert shared["validation"] == pytest.approx(alone["validation"], rel=1e-5)
    one, two = load(tmp_path / "checkpoint.pt"), load(pair[0] / f"{way}-{name}" / "checkpoint.pt")
    for weight, whole in two["model"].items():  # a file from two processes has whole tensors
        torch.testing.assert_close(whole, one["model"][weight], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", RESUMED)
def test_two_processes_that_were_stopped_go_on_to_the_same_bits(name, pair):
    folder, found = pair
    assert found[f"stopped {name}"] == (True, 5, False, 12)
    assert_same(state(folder / f"stopped-{name}"), state(folder / f"whole-{name}"))
    random = state(folder / f"whole-{name}")["random"]
    assert not torch.equal(random[0][0], random[1][0])  # each draws dropout of its own
