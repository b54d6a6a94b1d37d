"""A run that was cut short goes on to the very same numbers, whatever has become of its checkpoint."""

import dataclasses
import math

import pytest
import torch
from referee import Inline
from stress import Interrupted, Noisy, hold, numbers

from fallline.bench.contenders import CONTENDERS, get_contender
from fallline.bench.race.store import Store
from fallline.bench.runs import checkpoint as module
from fallline.bench.runs.checkpoint import Checkpoint, Unsaved, load
from fallline.bench.runs.loop import train
from fallline.bench.runs.run import Run
from fallline.bench.tasks import get_task

OTHERS = {"radam": {"lr": 0.02}, "lbfgs": {"lr": 0.1, "max_iter": 3}, "stress:Wide": {"lr": 0.3}}
HIDING = ["stress:Hidden", "stress:Moving", "stress:Secretive", "stress:Unspeakable"]


@pytest.fixture(autouse=True)
def _uninterrupted(monkeypatch):
    monkeypatch.setattr(Noisy, "interrupt_at", None)
    monkeypatch.setattr(Noisy, "losses_seen", 0)


@pytest.fixture
def checkpoint(tmp_path):
    """At every measurement."""
    return Checkpoint(tmp_path / "checkpoints" / "key.pt", every=0.0)


def middle(name):
    """A run with settings from the middle of the contender's space."""
    contender = get_contender(name).on(get_task("stress:Noisy"))
    settings = {**contender.fixed, **{key: dimension.at(0.5) for key, dimension in contender.space.items()}}
    return Run("stress:Noisy", name, settings, seed=3, test=True)


def interrupted(run, checkpoint, after):
    """Train until so many losses have been seen, and let nothing remain but the checkpoint."""
    Noisy.losses_seen, Noisy.interrupt_at = 0, after
    with pytest.raises(Interrupted):
        train(run, checkpoint)
    Noisy.interrupt_at = None
    torch.manual_seed(after)  # another process would be somewhere else


def resumed(run, checkpoint):
    """The outcome of going on, and how many losses that took."""
    Noisy.losses_seen = 0
    outcome = train(run, checkpoint)
    return numbers(outcome), Noisy.losses_seen


@pytest.mark.parametrize("name", [*CONTENDERS, *OTHERS])
def test_a_run_that_goes_on_ends_as_if_it_had_never_stopped(name, checkpoint):
    run = Run("stress:Noisy", name, OTHERS[name], 3, test=True) if name in OTHERS else middle(name)
    undisturbed = numbers(train(run))
    assert undisturbed["status"] == "finished"
    interrupted(run, checkpoint, after=13)
    interrupted(run, checkpoint, after=12)  # a second time, further on
    again, losses = resumed(run, checkpoint)
    assert again == undisturbed
    assert losses < 25  # of 40: it did not begin anew


@pytest.mark.parametrize("name", HIDING)
def test_what_keeps_its_state_to_itself_begins_anew(name, checkpoint):
    run = Run("stress:Noisy", name, {"lr": 0.1}, 3, test=True)
    undisturbed = numbers(train(run))
    interrupted(run, checkpoint, after=33)
    assert not checkpoint.path.exists()
    assert resumed(run, checkpoint) == (undisturbed, 40)


def test_a_model_that_counts_in_an_attribute_is_noticed():
    class Counting(torch.nn.Linear):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return super().forward(x)

    class Caching(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(3))
            self.also = [self.weight]  # a parameter under another name is saved as what it is
            self.register_buffer("seen", torch.zeros(1), persistent=False)

    for model, touch in [(Counting(2, 2), lambda m: m(torch.zeros(1, 2))), (Caching(), lambda m: m.seen.add_(1))]:
        unsaved = Unsaved(torch.optim.SGD(model.parameters(), lr=0.1), model)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1)
        assert not unsaved.changed()
        touch(model)
        assert unsaved.changed()


@pytest.mark.parametrize(
    "damage", ["truncated", "emptied", "flipped", "garbage", "pickle", "another run's", "a folder"]
)
def test_a_damaged_checkpoint_costs_its_run_the_time_and_nothing_else(damage, checkpoint):
    run = middle("koala-m")
    undisturbed = numbers(train(run))
    interrupted(run, checkpoint, after=33)
    path = checkpoint.path
    sound = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(sound[: len(sound) // 2])
    elif damage == "emptied":
        path.write_bytes(b"")
    elif damage == "flipped":  # one bit of a weight
        weight = load(checkpoint.path)["model"]["0.weight"].numpy().tobytes()
        spot = sound.index(weight) + 5
        path.write_bytes(sound[:spot] + bytes([sound[spot] ^ 1]) + sound[spot + 1 :])
    elif damage == "garbage":
        path.write_bytes(b"PK\x03\x04" + bytes(range(256)) * 20)
    elif damage == "pickle":
        torch.save([1, 2, 3], path)
    elif damage == "another run's":
        interrupted(dataclasses.replace(run, seed=4), Checkpoint(path, every=0.0), after=33)
    else:
        path.unlink()
        path.mkdir()
    assert resumed(run, checkpoint) == (undisturbed, 40)


@pytest.mark.parametrize("part", ["model", "optimizer", "random"])
def test_what_does_not_fit_leaves_nothing_half_restored(part, checkpoint):
    run = middle("adamw")
    undisturbed = numbers(train(run))
    interrupted(run, checkpoint, after=33)
    saved = load(checkpoint.path)
    saved[part] = {
        "model": {**saved["model"], "4.weight": torch.zeros(7, 7)},
        "optimizer": {**saved["optimizer"], "param_groups": []},
        "random": [torch.zeros(3)],
    }[part]
    torch.save(saved, checkpoint.path)
    assert resumed(run, checkpoint) == (undisturbed, 40)


def test_a_checkpoint_that_can_be_neither_used_nor_removed_is_left_alone(checkpoint, monkeypatch):
    run = middle("sgd")
    undisturbed = numbers(train(run))
    interrupted(run, checkpoint, after=33)
    monkeypatch.setattr("fallline.bench.runs.loop.restore", refuse(ValueError("not of this model")))
    monkeypatch.setattr(type(checkpoint.path), "unlink", refuse(PermissionError(1, "no")))
    assert resumed(run, checkpoint) == (undisturbed, 40)


def refuse(error):
    def function(*args, **more):
        raise error

    return function


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed writing file data/3")]
)
def test_a_full_disk_does_not_end_a_run(error, checkpoint, monkeypatch):
    run = middle("sgd")
    undisturbed = numbers(train(run))

    def half(state, file):
        file.write(b"half of it")
        raise error

    monkeypatch.setattr(module.torch, "save", half)
    assert resumed(run, checkpoint) == (undisturbed, 40)
    assert list(checkpoint.path.parent.iterdir()) == []


def test_no_checkpoint_stays_when_its_run_is_stored(tmp_path):
    folder = tmp_path / "checkpoints"
    saved = []
    with Store(tmp_path / "records.sqlite") as store:
        race = hold(store, "sgd", "koala-m", executor=Inline(), watch=lambda progress: saved.append(folder.exists()))
        assert any(saved)  # there were some
        assert not folder.exists()
        key = store.entered(race.id, "stress:Noisy", "sgd", "trial")[0][1]
        folder.mkdir()
        for name in (f"{key}.pt", f"{key}.pt.0123abcd", "of-another-race.pt"):  # as a killed coordinator leaves them
            (folder / name).write_bytes(b"left over")
        again = Inline()
        hold(store, "sgd", "koala-m", executor=again)
        assert again.calls == []
        assert [path.name for path in folder.iterdir()] == ["of-another-race.pt"]


def test_between_two_checkpoints_there_are_seconds(checkpoint, monkeypatch):
    saves = []
    monkeypatch.setattr("fallline.bench.runs.loop.save", lambda *args, **more: saves.append(1))
    run = middle("sgd")
    train(run, checkpoint)
    assert len(saves) == 39  # of 40 steps: after the last one the run is over
    train(run, dataclasses.replace(checkpoint, every=3600.0))
    assert len(saves) == 39


def test_a_test_loss_that_is_no_number_is_divergence(monkeypatch):
    def evaluate(self, model, split):
        return {"loss": math.inf if split == "test" else 1.0, "accuracy": math.nan}

    monkeypatch.setattr(Noisy, "evaluate", evaluate)
    outcome = train(middle("sgd"))
    assert (outcome.status, outcome.reason) == ("diverged", "the test loss is not finite")
    assert (outcome.score, outcome.result) == (None, {})
    monkeypatch.setattr(Noisy, "evaluate", lambda *_: {"loss": torch.tensor(1.0), "accuracy": math.nan})
    assert train(middle("sgd")).result == {"loss": 1.0}
