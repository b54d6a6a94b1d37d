"""The loop: against one written by hand, its seeds, and what it does with runs that go wrong."""

import contextlib
import itertools
import math
import sys

import pytest
import torch
from sprint import Noted, Poisoned, Sprint, Spy
from torch.nn import functional as F

import fallline
from fallline.bench.common.seeds import derive, generator
from fallline.bench.contenders import get_contender, lr_factor, under_schedules
from fallline.bench.runs.loop import STATISTICS, statistics_anew, train
from fallline.bench.runs.run import Run
from fallline.bench.tasks import get_task
from fallline.bench.tasks.bowl import DIMENSION, Landscape

SGD = {"lr": 0.3, "momentum": 0.9, "weight_decay": 1e-4}
KOALA_M = {"lr": 1.0, "qv": 0.1, "weight_decay": 1e-4}


@pytest.mark.parametrize(("name", "settings"), [("sgd", SGD), ("koala-m", KOALA_M)])
def test_the_loop_is_the_loop_one_would_write(name, settings):
    run = Run("sprint:Sprint", name, settings, seed=7, test=True)
    outcome = train(run)

    task = Sprint()
    batches = task.batches(generator(7, "order"))
    torch.manual_seed(derive(7, "init"))
    model = task.model()
    points, labels = task.points(0)
    optimizer = fallline.create_optimizer(name, model.parameters(), **settings)
    train_losses = []
    for step in range(1, 41):
        for group in optimizer.param_groups:
            group["lr"] = settings["lr"] * lr_factor("cosine", step, 40)
        batch = next(batches)
        losses = F.cross_entropy(model(points[batch]), labels[batch], reduction="none")
        optimizer.zero_grad()
        losses.mean().backward()
        if name == "sgd":
            optimizer.step()
        else:
            optimizer.step(loss=losses.detach())
        train_losses.append(losses.mean().item())
    if name == "koala-m":
        optimizer.eval()  # measured at the filtered point

    with torch.no_grad():
        assert outcome.score == task.evaluate(model, "validation")["loss"]
        assert outcome.result == task.evaluate(model, "test")
    assert outcome.curve["step"] == [0, 10, 20, 30, 40]
    assert outcome.curve["train loss"][1:] == pytest.approx(
        [sum(train_losses[i : i + 10]) / 10 for i in range(0, 40, 10)], rel=1e-6
    )
    assert (outcome.status, outcome.steps, outcome.gradient_evaluations) == ("finished", 40, 40)


def test_a_run_repeats_itself_and_another_seed_does_not():
    def numbers(seed):
        outcome = train(Run("sprint:Sprint", "koala-m", KOALA_M, seed, test=True))
        return outcome.curve, outcome.score, outcome.result

    assert numbers(3) == numbers(3)
    assert numbers(3)[1] != numbers(4)[1]


def test_two_optimizers_with_a_seed_share_weights_and_batches():
    for log in (Spy.weights, Spy.handed):
        log.clear()
    train(Run("sprint:Spy", "sgd", SGD, seed=5))
    train(Run("sprint:Spy", "koala-m", KOALA_M, seed=5))
    train(Run("sprint:Spy", "sgd", SGD, seed=6))
    assert torch.equal(Spy.weights[0], Spy.weights[1])
    assert not torch.equal(Spy.weights[0], Spy.weights[2])
    first, second, other = Spy.handed[:40], Spy.handed[40:80], Spy.handed[80:]
    assert all(map(torch.equal, first, second))
    assert not any(map(torch.equal, first, other))


def test_the_test_set_is_seen_once_and_in_confirmed_runs_only():
    Spy.splits.clear()
    tried = train(Run("sprint:Spy", "sgd", SGD, seed=5))
    assert "test" not in Spy.splits
    assert tried.result == {}
    train(Run("sprint:Spy", "sgd", SGD, seed=5, test=True))
    assert Spy.splits.count("test") == 1


def test_a_loss_that_is_not_finite_is_divergence_at_its_step():
    outcome = train(Run("sprint:Poisoned", "sgd", SGD, seed=0, test=True))
    assert issubclass(Poisoned, Sprint)
    assert (outcome.status, outcome.steps) == ("diverged", 13)
    assert "not finite" in outcome.reason
    assert outcome.score is None
    assert outcome.result == {}
    assert outcome.curve["train loss"][-1] is None  # and not NaN, for which JSON has no word
    assert outcome.gradient_evaluations == 20  # noticed at the next measurement


def test_a_loss_that_runs_away_is_divergence_while_still_a_number():
    outcome = train(Run("sprint:Sprint", "sgd", {"lr": 1e4, "momentum": 0.99, "weight_decay": 0.0}, seed=0))
    assert outcome.status == "diverged"
    assert "1000 times" in outcome.reason
    assert all(math.isfinite(loss) for loss in outcome.curve["train loss"][1:])


def test_the_optimizers_own_bytes_are_counted():
    parameters = 4 * 8 + 8 + 8 * 3 + 3
    sgd = train(Run("sprint:Sprint", "sgd", SGD, seed=0))
    assert sgd.state_bytes == 4 * parameters  # one float32 buffer
    adamw = train(Run("sprint:Sprint", "adamw", {"lr": 0.01, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.1}, seed=0))
    assert adamw.state_bytes == 2 * 4 * parameters + 4 * 4  # two, and a counter for each of four tensors


def test_the_schedule_rises_falls_and_ends_over_zero():
    factors = [lr_factor("cosine", step, 200) for step in range(1, 201)]
    assert factors[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert max(factors) == factors[9] == 1
    assert all(a > b for a, b in itertools.pairwise(factors[9:]))
    assert 0 < factors[-1] < 1e-3
    assert {lr_factor("constant", step, 200) for step in range(1, 201)} == {1.0}
    assert lr_factor("cosine", 1, 1) == 1
    straight = [lr_factor("linear", step, 200) for step in range(1, 201)]
    assert straight[:10] == factors[:10]
    falls = {round(a - b, 12) for a, b in itertools.pairwise(straight[9:])}
    assert len(falls) == 1
    assert 0 < straight[-1] < 0.01
    drops = [lr_factor("step", step, 100, (0.5, (0.5, 0.75))) for step in range(1, 101)]
    assert drops == [1.0] * 50 + [0.5] * 25 + [0.25] * 25


def test_a_schedule_is_asked_for_by_name_and_reaches_the_rate():
    rates = {}
    for name in ("sprint:Noted", "sprint:Noted@constant", "sprint:Noted@linear"):
        Noted.rates.clear()
        train(Run("sprint:Sprint", name, {"lr": 0.5}, seed=0))
        rates[name] = list(Noted.rates)
    assert rates["sprint:Noted@constant"] == [0.5] * 40
    assert rates["sprint:Noted"] == [0.5 * lr_factor("cosine", step, 40) for step in range(1, 41)]
    assert rates["sprint:Noted@linear"] == [0.5 * lr_factor("linear", step, 40) for step in range(1, 41)]
    assert get_contender("coolmomentum@cosine").schedule == "cosine"
    assert get_contender("coolmomentum@native").schedule == "constant"
    assert get_contender("arturo@native").drops == (0.006, (0.5, 0.75))
    assert under_schedules(("sgd", "koala-m", "coolmomentum"), "both") == (
        "sgd",
        "koala-m",
        "koala-m@native",
        "coolmomentum@cosine",
        "coolmomentum",
    )
    with pytest.raises(ValueError, match="did you mean cosine"):
        get_contender("sgd@cosin")


def test_the_bowl_scores_the_last_tenth_and_nothing_cools():
    outcome = train(Run("bowl", "sgd", {"lr": 1.5, "momentum": 0.5, "weight_decay": 0.0}, seed=1, test=True))
    assert outcome.score == pytest.approx(sum(outcome.curve["train loss"][-4:]) / 4, rel=1e-5)
    assert outcome.result == {"loss": outcome.score}
    assert outcome.score == pytest.approx(16.2, abs=1.5)  # the specification's figure for momentum, over 100,000 steps
    contender = get_contender("coolmomentum").on(get_task("bowl"))
    optimizer = contender.make([torch.nn.Parameter(torch.zeros(2))], {"rho_0": 0.9}, get_task("bowl").horizon)
    assert optimizer.param_groups[0]["cool_steps"] is None
    assert contender.schedule == "constant"


def test_a_newton_step_on_the_bowl_reaches_the_floor():
    task = get_task("bowl")
    assert task.floor == pytest.approx(7.411847, abs=1e-6)
    torch.manual_seed(0)
    landscape = Landscape()
    spectrum = torch.linalg.eigvalsh(landscape.hessian.double())
    assert torch.allclose(spectrum, torch.logspace(-3, 0, DIMENSION, dtype=torch.float64), rtol=1e-3)
    total = 0.0
    batches = task.batches(generator(0, "order"))
    with torch.no_grad():
        for _ in range(2000):
            minimum = next(batches)
            total += landscape(minimum).item()
            landscape.x.copy_(minimum)
    assert total / 2000 == pytest.approx(task.floor, rel=0.03)


def test_digits_are_split_by_class_without_overlap():
    splits = get_task("digits")._splits
    assert [len(labels) for _, labels in splits.values()] == [1077, 360, 360]
    images = torch.cat([images for images, _ in splits.values()])
    assert len(images.unique(dim=0)) == len(images)  # scikit-learn's images are all different
    for _, labels in splits.values():
        shares = labels.bincount(minlength=10) / len(labels)
        assert (shares - 0.1).abs().max() < 0.01
    batches = get_task("digits").batches(generator(0, "order"))
    epoch = torch.cat([next(batches)[0] for _ in range(16)])
    assert len(epoch.unique(dim=0)) == 16 * 64


# --- measured elsewhere than trained ---


def test_batch_norm_is_measured_with_the_mean_statistics_of_batches_of_their_own():
    task = get_task("stress:Noisy")
    torch.manual_seed(0)
    model = task.model()
    seen: list[torch.Tensor] = []
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    model.eval()
    with torch.no_grad(), statistics_anew(task, model):
        assert not any(module.training for module in model.modules())
        found = model[1].running_mean.clone(), model[1].running_var.clone()
    assert len(seen) == STATISTICS
    assert torch.equal(random, torch.get_rng_state())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    expected = torch.stack([x.mean(0) for x in seen]).mean(0), torch.stack([x.var(0) for x in seen]).mean(0)
    torch.testing.assert_close(found, expected)


def test_schedule_free_trains_to_the_same_bits_whether_or_not_statistics_are_taken_anew(monkeypatch):
    run = Run("stress:Noisy", "schedulefree-sgd", {"lr": 0.5}, seed=2, test=True)
    anew = train(run)
    monkeypatch.setattr("fallline.bench.runs.loop.statistics_anew", lambda task, model: contextlib.nullcontext())
    stale = train(run)
    assert anew.curve["train loss"] == stale.curve["train loss"]
    assert anew.curve["validation loss"][0] == stale.curve["validation loss"][0]  # one point as yet
    assert anew.curve["validation loss"][1:] != stale.curve["validation loss"][1:]


@pytest.mark.parametrize("name", ["schedulefree-adamw", "schedulefree-sgd"])
def test_schedule_free_warms_up_as_everybody_and_names_what_is_missing(name, monkeypatch):
    point = torch.nn.Parameter(torch.ones(3))
    contender = get_contender(name)
    assert lr_factor(contender.schedule, 7, 100) == 1
    optimizer = contender.make([point], {"lr": 0.5}, 100)
    rates = []
    for _ in range(8):
        point.grad = point.detach().clone()
        optimizer.step()
        rates.append(optimizer.param_groups[0]["scheduled_lr"])
    assert rates == pytest.approx([0.5 * lr_factor("cosine", step, 100) for step in range(1, 6)] + [0.5] * 3)
    assert contender.make([point], {}, None).param_groups[0]["warmup_steps"] == 0
    monkeypatch.setitem(sys.modules, "schedulefree", None)
    with pytest.raises(ValueError, match=r"Schedule-Free needs schedulefree: pip install \"fallline\[bench\]\""):
        contender.make([point], {}, 100)


def test_an_optimizer_with_two_points_is_told_to_train_where_nothing_is_measured():
    outcome = train(Run("bowl@steps=20", "schedulefree:SGDScheduleFree", {"lr": 1.0}, seed=0))
    assert (outcome.status, outcome.steps) == ("finished", 20)
