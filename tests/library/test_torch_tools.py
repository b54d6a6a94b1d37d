"""Torch's own tools around each optimizer: schedulers, averages, torch.compile, torch.func, steps within backward."""

import copy
import inspect
import io
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from bits import assert_bits, everything
from torch import Tensor, nn
from torch.optim import lr_scheduler, swa_utils
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

import fallline

LR = 0.1
METHODS: dict[str, tuple[type[fallline.Optimizer], dict[str, Any]]] = {
    "koala-v": (fallline.VanillaKOALA, dict(sigma=0.1)),
    "koala-m": (fallline.MomentumKOALA, {}),
    "koala-pp": (fallline.KOALAPlusPlus, dict(sigma=0.1, q=0.1)),
    "koala-orthogonal": (fallline.OrthogonalKOALA, dict(q=1e-2)),
    "arturo": (fallline.ArTuRO, {}),
    "lodo": (fallline.LODO, dict(depth=3)),
    "cool": (fallline.CoolMomentum, dict(rho_0=0.9, cool_steps=20, skip_nonfinite=True)),
}
KOALAS = ["koala-v", "koala-m", "koala-pp", "koala-orthogonal"]
every_method = pytest.mark.parametrize("method", METHODS)


def make(method: str, params: Any, **more: Any) -> fallline.Optimizer:
    cls, settings = METHODS[method]
    return cls(params, **{"lr": LR, **settings, **more})


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def groups(model: nn.Module) -> list[dict[str, Any]]:
    """Two parameter groups, the second with half the learning rate."""
    ps = list(model.parameters())
    return [{"params": ps[:2]}, {"params": ps[2:], "lr": LR / 2}]


def batch(i: int) -> tuple[Tensor, Tensor]:
    """Inputs [8, 5] and targets [8, 3] of minibatch ``i``."""
    g = torch.Generator().manual_seed(100 + i)
    return torch.randn(8, 5, generator=g, dtype=torch.float64), torch.randn(8, 3, generator=g, dtype=torch.float64)


def train(model: nn.Module, opt: torch.optim.Optimizer, steps: range, broken: int = -1) -> None:
    """Ordinary steps; the gradients of batch ``broken`` are NaN."""
    for i in steps:
        x, y = batch(i)
        opt.zero_grad()
        loss = F.mse_loss(model(x), y) * (torch.nan if i == broken else 1.0)
        loss.backward()
        opt.step(loss=loss.detach())  # type: ignore[call-arg]


class Lossy(nn.Module):
    """A network whose output is its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.body(x) - y).square().mean()


def tensors(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def close(a: list[Tensor], b: list[Tensor], rtol: float = 1e-10) -> None:
    for p, q in zip(a, b, strict=True):
        torch.testing.assert_close(p, q, rtol=rtol, atol=rtol)


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


# -- learning-rate schedulers -----------------------------------------------------------------------------------

STEPS = 9
Scheduler = Callable[[torch.optim.Optimizer], Any]

SCHEDULERS: dict[str, Scheduler] = {
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.5, total_iters=3), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, total_iters=3),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, LR / 10, LR, step_size_up=3, cycle_momentum=False),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, [lambda e: 1 / (1 + e), lambda e: 0.8**e]),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.3, total_iters=5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 5], 0.5),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda e: 0.9 if e % 2 else 1.05),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, [LR, LR / 2], total_steps=STEPS + 1, cycle_momentum=False),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, STEPS + 1, power=2.0),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=1),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=4), lr_scheduler.CosineAnnealingLR(o, 5)], milestones=[4]
    ),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3, 0.5),
    "SWALR": lambda o: swa_utils.SWALR(o, LR / 4, anneal_epochs=4),
}
every_scheduler = pytest.mark.parametrize("scheduler", SCHEDULERS)
# Every scheduler with two of the methods, every method with five schedulers or more.
pairs = pytest.mark.parametrize(
    ("method", "scheduler"),
    [(list(METHODS)[(i + k) % len(METHODS)], scheduler) for i, scheduler in enumerate(SCHEDULERS) for k in (0, 3)],
)


def advance(scheduler: Any) -> None:
    """One step of a scheduler; a plateau's measure stands still."""
    scheduler.step(1.0) if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else scheduler.step()


def wanted(scheduler: str) -> list[list[float]]:
    """The learning rates of both groups at each step that the scheduler gives to torch's SGD."""
    opt = torch.optim.SGD(groups(net()), lr=LR)
    schedule, rates = SCHEDULERS[scheduler](opt), []
    for _ in range(STEPS):
        rates.append([float(group["lr"]) for group in opt.param_groups])
        opt.step()
        advance(schedule)
    return rates


def by_hand(model: nn.Module, opt: torch.optim.Optimizer, rates: list[list[float]], broken: int = -1) -> None:
    for i, pair in enumerate(rates):
        for group, lr in zip(opt.param_groups, pair, strict=True):
            group["lr"] = lr
        if i != broken:
            train(model, opt, range(i, i + 1))


def test_every_scheduler_of_torch_is_in_the_table() -> None:
    found = {
        name
        for module in (lr_scheduler, swa_utils)
        for name, cls in vars(module).items()
        if inspect.isclass(cls) and issubclass(cls, lr_scheduler.LRScheduler)
    }
    assert found - {"LRScheduler", "_LRScheduler"} == SCHEDULERS.keys()


@every_scheduler
def test_the_table_of_schedulers_changes_learning_rates(scheduler: str) -> None:
    rates = wanted(scheduler)
    assert all(len({pair[i] for pair in rates}) > 1 for i in range(2))


@every_method
@every_scheduler
def test_a_step_uses_the_lr_that_the_scheduler_set(method: str, scheduler: str) -> None:
    one, two, constant = net(), net(), net()
    opt = make(method, groups(one))
    schedule = SCHEDULERS[scheduler](opt)
    for i in range(STEPS):
        train(one, opt, range(i, i + 1))
        advance(schedule)
    by_hand(two, make(method, groups(two)), wanted(scheduler))
    assert_bits(tensors(one), tensors(two))
    train(constant, make(method, groups(constant)), range(STEPS))
    assert not equal(tensors(one), tensors(constant))


@pairs
def test_a_scheduler_sets_an_lr_that_is_a_tensor(method: str, scheduler: str) -> None:
    one, two = net(), net()
    pair = groups(one)
    for group, lr in zip(pair, (LR, LR / 2), strict=True):
        group["lr"] = torch.tensor(lr, dtype=torch.float64)
    opt = make(method, pair)
    schedule = SCHEDULERS[scheduler](opt)
    for i in range(STEPS):
        train(one, opt, range(i, i + 1))
        advance(schedule)
    assert all(group["lr"] is own["lr"] for group, own in zip(opt.param_groups, pair, strict=True))
    by_hand(two, make(method, groups(two)), wanted(scheduler))
    close(tensors(one), tensors(two))


@pairs
def test_a_run_with_a_scheduler_resumes_to_the_bit(method: str, scheduler: str) -> None:
    model = net()
    opt = make(method, groups(model))
    schedule = SCHEDULERS[scheduler](opt)
    for i in range(STEPS):
        if i == 4:
            file = io.BytesIO()
            torch.save([model.state_dict(), opt.state_dict()], file)
            saved = copy.deepcopy(schedule.state_dict())  # of some, pickles that weights_only refuses
        train(model, opt, range(i, i + 1))
        advance(schedule)

    other = net()
    resumed = make(method, groups(other))
    again = SCHEDULERS[scheduler](resumed)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    other.load_state_dict(weights)
    resumed.load_state_dict(state)
    again.load_state_dict(saved)
    for i in range(4, STEPS):
        train(other, resumed, range(i, i + 1))
        advance(again)
    assert_bits(everything(opt), everything(resumed))


@pairs
def test_the_schedule_goes_on_where_a_step_was_skipped(method: str, scheduler: str) -> None:
    """The scheduler cannot know; the path is that of a run in which the step was left out and the lr was not."""
    one, two = net(), net()
    opt = make(method, groups(one))
    schedule = SCHEDULERS[scheduler](opt)
    for i in range(STEPS):
        train(one, opt, range(i, i + 1), broken=3)
        advance(schedule)
    assert opt.skipped.item() == 1
    by_hand(two, make(method, groups(two)), wanted(scheduler), broken=3)
    assert_bits(tensors(one), tensors(two))


@every_method
@pytest.mark.parametrize("scheduler", ["OneCycleLR", "CyclicLR"])
def test_cycling_the_momentum_is_refused_by_torch(method: str, scheduler: str) -> None:
    opt = make(method, net().parameters())
    cycle = {
        "OneCycleLR": lambda: lr_scheduler.OneCycleLR(opt, LR, total_steps=5, cycle_momentum=True),
        "CyclicLR": lambda: lr_scheduler.CyclicLR(opt, LR / 10, LR, cycle_momentum=True),
    }[scheduler]
    with pytest.raises(ValueError, match=r"optimizer must support momentum.* with `cycle_momentum` option enabled"):
        cycle()


@pytest.mark.parametrize("method", KOALAS)
def test_the_two_stages_are_a_step_for_a_scheduler(method: str) -> None:
    """A scheduler warns where it sees no step before its own; warnings are errors here."""
    one, two = net(), net()
    opt = make(method, groups(one))
    assert isinstance(opt, fallline.KOALA)
    schedule = SCHEDULERS["ExponentialLR"](opt)
    for i in range(STEPS):
        opt.predict()
        opt.zero_grad()
        x, y = batch(i)
        loss = F.mse_loss(one(x), y)
        loss.backward()
        opt.update(loss)
        schedule.step()
    stepping = make(method, groups(two))
    by_hand(two, stepping, wanted("ExponentialLR"))
    assert isinstance(stepping, fallline.KOALA)
    stepping.eval()
    close(tensors(one), tensors(two))


# -- averages of the weights ------------------------------------------------------------------------------------


def averages() -> dict[str, dict[str, Any]]:
    return {
        "equal": {},
        "swa multi": dict(multi_avg_fn=swa_utils.get_swa_multi_avg_fn()),
        "ema": dict(multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.5)),
        "ema one": dict(avg_fn=swa_utils.get_ema_avg_fn(0.5)),
    }


def averaged_by_hand(points: list[list[Tensor]], ema: bool) -> list[Tensor]:
    out = [p.clone() for p in points[0]]
    for n, point in enumerate(points[1:], start=1):
        weight = 0.5 if ema else 1 / (n + 1)
        out = [a + weight * (p - a) for a, p in zip(out, point, strict=True)]
    return out


@every_method
@pytest.mark.parametrize("kind", averages())
def test_averaged_weights_are_those_of_the_points_seen(method: str, kind: str) -> None:
    """Of the filtered points within ``posterior()``, else of the predicted ones, which differ for KOALA-M."""
    model = net()
    opt = make(method, model.parameters())
    predicted = swa_utils.AveragedModel(model, **averages()[kind])
    filtered = swa_utils.AveragedModel(model, **averages()[kind])
    points: dict[str, list[list[Tensor]]] = {"predicted": [], "filtered": []}
    for i in range(4):
        train(model, opt, range(i, i + 1))
        predicted.update_parameters(model)
        points["predicted"].append(tensors(model))
        if isinstance(opt, fallline.KOALA):
            with opt.posterior():
                filtered.update_parameters(model)
                points["filtered"].append(tensors(model))
            assert equal(points["predicted"][-1], tensors(model))
    close(tensors(predicted.module), averaged_by_hand(points["predicted"], ema="ema" in kind), 1e-7)
    if isinstance(opt, fallline.KOALA):
        close(tensors(filtered.module), averaged_by_hand(points["filtered"], ema="ema" in kind), 1e-7)
        assert equal(tensors(predicted.module), tensors(filtered.module)) == (method != "koala-m")


def test_an_average_after_an_evaluation_is_of_filtered_points_where_the_model_is_followed() -> None:
    model, other = net(), net()
    opt, opt2 = make("koala-m", model.parameters()), make("koala-m", other.parameters())
    assert isinstance(opt, fallline.KOALA)
    assert isinstance(opt2, fallline.KOALA)
    opt.follow(model)
    averaged, wanted = swa_utils.AveragedModel(model), swa_utils.AveragedModel(other)
    for i in range(4):
        model.train()
        train(model, opt, range(i, i + 1))
        model.eval()
        with torch.no_grad():
            model(batch(i)[0])
        averaged.update_parameters(model)
        train(other, opt2, range(i, i + 1))
        with opt2.posterior():
            wanted.update_parameters(other)
    assert_bits(tensors(averaged.module), tensors(wanted.module))


class Attached(nn.Module):
    """A network with batch statistics whose output holds the loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 3)).double()

    def forward(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        output = self.body(x)
        return {"loss": output.square().mean() if y is None else F.mse_loss(output, y)}


@every_method
def test_batch_statistics_of_an_average_leave_the_training_alone(method: str) -> None:
    """``update_bn`` runs the average, a copy of the attached model, forward: nothing of that reaches the optimizer."""
    runs = []
    for average in (False, True):
        model = Attached()
        opt = make(method, model.parameters())
        if isinstance(opt, fallline.KOALA):
            opt.attach(model)
            opt.follow(model)
        averaged = swa_utils.AveragedModel(model)
        for i in range(4):
            opt.zero_grad()
            model(*batch(i))["loss"].backward()
            if average:
                averaged.update_parameters(model)
                swa_utils.update_bn([batch(i)[0], batch(i + 1)[0]], averaged)
            opt.step()
        runs.append(everything(opt))
    assert_bits(runs[0], runs[1])
    expected = averaged.module.body[0](torch.cat([batch(3)[0], batch(4)[0]])).mean(0) / 1
    torch.testing.assert_close(averaged.module.body[1].running_mean, expected.detach())


# -- torch.compile of a whole train step ------------------------------------------------------------------------

Step = Callable[[Tensor, Tensor], Tensor]


def whole_step(form: str, model: nn.Module, opt: Any) -> Step:
    criterion = nn.MSELoss()
    if form == "attach":
        opt.attach(criterion)

    def step(x: Tensor, y: Tensor) -> Tensor:
        opt.zero_grad()
        loss = criterion(model(x), y)
        if form == "observe":
            loss = opt.observe(loss)
        loss.backward()
        if form == "loss":
            opt.step(loss=loss)
        else:
            opt.step()
        return loss

    def step_with_closure(x: Tensor, y: Tensor) -> Tensor:
        def closure() -> Tensor:
            opt.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            return loss

        value: Tensor = opt.step(closure)
        return value

    return step_with_closure if form == "closure" else step


FORMS = [(m, f) for m in METHODS for f in ("loss", "closure")] + [(m, f) for m in KOALAS for f in ("observe", "attach")]
# of its own look at a loss that a graph returned, which torch hides unless warnings are errors
compiling = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


def compiled_and_plain(method: str, form: str, backend: str, **more: Any) -> tuple[int, int]:
    """Eight steps, the fifth of them broken, at a falling lr; from the fourth on nothing may be compiled again.

    Returns how many graph breaks and how many graphs the first four make.
    """
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain, model = net(), net()
    one, two = make(method, plain.parameters(), **more), make(method, model.parameters(), **more)
    eager, compiled = whole_step(form, plain, one), torch.compile(whole_step(form, model, two), backend=backend)
    schedules = [lr_scheduler.ExponentialLR(opt, 0.9) for opt in (one, two)]
    for i in range(8):
        if i == 4:
            counters = torch._dynamo.utils.counters
            breaks, graphs = sum(counters["graph_break"].values()), counters["stats"]["unique_graphs"]
        x, y = batch(i)
        y = y * (torch.nan if i == 4 else 1.0)
        wanted = eager(x, y)
        with torch._dynamo.config.patch(error_on_recompile=i > 2 and i != 4):  # torch guards against a NaN
            torch.testing.assert_close(compiled(x, y), wanted, equal_nan=True)
        for schedule in schedules:
            schedule.step()
    assert one.skipped.item() == two.skipped.item() == 1
    close(tensors(plain), tensors(model), 1e-12)
    return breaks, graphs


@compiling
@pytest.mark.parametrize(("method", "form"), FORMS)
def test_a_compiled_train_step_equals_an_eager_one(method: str, form: str) -> None:
    breaks, graphs = compiled_and_plain(method, form, "aot_eager")
    # zero_grad (torch's own), the tap, backward and step: each once or, with torch's own look at it, twice
    assert breaks <= 6
    assert graphs == 0 if form == "closure" else 1 <= graphs <= 3  # forward passes; a closure runs as it is


@compiling
@pytest.mark.parametrize(("method", "form"), [("koala-m", "attach")])
def test_a_train_step_compiled_by_inductor_equals_an_eager_one(method: str, form: str) -> None:
    compiled_and_plain(method, form, "inductor")


@compiling
@pytest.mark.parametrize("method", ["koala-m", "cool"])
def test_a_compiled_train_step_with_fused_kernels_equals_an_eager_one(method: str) -> None:
    compiled_and_plain(method, "loss", "aot_eager", fused=True)


@every_method
def test_a_graph_of_a_whole_step_without_breaks_is_refused_by_torch(method: str) -> None:
    torch._dynamo.reset()
    model = net()
    opt = make(method, model.parameters())
    before = everything(opt)
    with pytest.raises(Exception, match=r"Optimizer\.zero_grad"):  # torch._dynamo.exc.Unsupported
        torch.compile(whole_step("loss", model, opt), backend="eager", fullgraph=True)(*batch(0))
    assert_bits(before, everything(opt))


# -- torch.func -------------------------------------------------------------------------------------------------


def losses_of(params: dict[str, Tensor], model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The loss of each example, by vmap over a functional call."""

    def one(x: Tensor, y: Tensor) -> Tensor:
        return (torch.func.functional_call(model, params, (x,)) - y).square().mean()

    return torch.vmap(one)(x, y)


@every_method
@pytest.mark.parametrize("kind", ["grad", "grad_and_value", "per-example losses"])
def test_gradients_of_torch_func_are_gradients(method: str, kind: str) -> None:
    functional, plain = net(), net()
    one, two = make(method, functional.parameters()), make(method, plain.parameters())
    for i in range(5):
        x, y = batch(i)
        params = {name: p.detach() for name, p in functional.named_parameters()}

        def mean_and_losses(params: dict[str, Tensor], x: Tensor = x, y: Tensor = y) -> tuple[Tensor, Tensor]:
            losses = losses_of(params, functional, x, y)
            return losses.mean(), losses

        if kind == "grad":
            grads, losses = torch.func.grad(mean_and_losses, has_aux=True)(params)
            given = losses.mean()
        elif kind == "grad_and_value":
            grads, (given, _) = torch.func.grad_and_value(mean_and_losses, has_aux=True)(params)
        else:
            grads, (_, given) = torch.func.grad_and_value(mean_and_losses, has_aux=True)(params)
        for name, p in functional.named_parameters():
            p.grad = grads[name]
        one.step(loss=given)

        two.zero_grad()
        each = (plain(x) - y).square().mean(1)
        each.mean().backward()
        two.step(loss=each if kind == "per-example losses" else each.mean())
    close(tensors(functional), tensors(plain))


@every_method
def test_one_optimizer_trains_a_stacked_ensemble(method: str) -> None:
    """The stacked tensors are parameters as any: vmap over the members equals a loop over them."""
    ends = []
    for vmapped in (True, False):
        torch.manual_seed(0)
        models = [nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double() for _ in range(3)]
        params, buffers = torch.func.stack_module_state(models)
        opt = make(method, params.values())
        base = models[0]

        def of_one(p: dict[str, Tensor], x: Tensor, y: Tensor, base: nn.Module = base) -> Tensor:
            return F.mse_loss(torch.func.functional_call(base, p, (x,)), y)

        for i in range(5):
            opt.zero_grad()
            if vmapped:
                losses = torch.vmap(of_one, in_dims=(0, None, None))(params, *batch(i))
            else:
                members = [{name: p[k] for name, p in params.items()} for k in range(3)]
                losses = torch.stack([of_one(member, *batch(i)) for member in members])
            losses.sum().backward()
            opt.step(loss=losses.detach().sum())
        ends.append([p.detach().clone() for p in params.values()])
        assert not buffers
    close(*ends)


def test_a_stacked_ensemble_is_members_of_their_own_for_coolmomentum() -> None:
    torch.manual_seed(0)
    models = [nn.Linear(5, 3).double() for _ in range(3)]
    alone = copy.deepcopy(models)
    params, _ = torch.func.stack_module_state(models)
    together = make("cool", params.values())
    each = [make("cool", model.parameters()) for model in alone]
    for i in range(5):
        together.zero_grad()
        call = torch.vmap(lambda p, x: torch.func.functional_call(models[0], p, (x,)), in_dims=(0, None))
        x, y = batch(i)
        F.mse_loss(call(params, x), y.expand(3, 8, 3), reduction="none").mean((1, 2)).sum().backward()
        together.step()
        for model, opt in zip(alone, each, strict=True):
            train(model, opt, range(i, i + 1))
    for k, model in enumerate(alone):
        close([params[name][k].detach() for name, _ in model.named_parameters()], tensors(model))


@every_method
@pytest.mark.parametrize("guarded", [True, False])
@pytest.mark.parametrize("transform", ["grad", "vjp", "jacrev", "vmap"])
def test_a_step_within_a_transform_is_refused_and_changes_nothing(method: str, guarded: bool, transform: str) -> None:
    """The optimizer is as before and goes on."""
    model, clear = net(), net()
    opt, opt2 = (make(method, m.parameters(), skip_nonfinite=guarded) for m in (model, clear))
    train(model, opt, range(2))
    train(clear, opt2, range(2))
    F.mse_loss(model(batch(2)[0]), batch(2)[1]).backward()
    before = everything(opt)

    def stepping(x: Tensor) -> Tensor:
        loss = x.square().sum()
        opt.step(loss=loss)
        return loss

    x = torch.ones(3, dtype=torch.float64)
    run = {
        "grad": lambda: torch.func.grad(stepping)(x),
        "vjp": lambda: torch.func.vjp(stepping, x),
        "jacrev": lambda: torch.func.jacrev(stepping)(x),
        "vmap": lambda: torch.vmap(stepping)(x),
    }[transform]
    with pytest.raises(RuntimeError, match=r"^step\(\) within torch.func"):
        run()
    assert_bits(before, everything(opt))
    train(model, opt, range(3, 5))
    train(clear, opt2, range(3, 5))
    assert_bits(everything(opt2), everything(opt))


# -- an optimizer within backward -------------------------------------------------------------------------------


def step_in_backward(opts: dict[Tensor, fallline.Optimizer]) -> None:
    """Each parameter steps as soon as its gradient is there, and drops it."""

    def hook(p: Tensor) -> None:
        opts[p].step()
        opts[p].zero_grad()

    for p in opts:
        p.register_post_accumulate_grad_hook(hook)


def own_networks(i: int) -> dict[str, Any]:
    """What makes LODO's only network the ``i``-th of an optimizer with several."""
    return {"generator": torch.Generator().manual_seed(i)}


# How one optimizer is set so that it equals one for each parameter, and what each of these is given.
SEPARABLE: dict[str, tuple[dict[str, Any], Callable[[int], dict[str, Any]]]] = {
    "cool": ({}, lambda i: {}),
    "koala-pp": ({}, lambda i: {}),
    "arturo": (dict(scope="tensor"), lambda i: {}),
    "lodo": (dict(bucket_size=1), own_networks),
}


@every_method
def test_an_optimizer_in_backward_equals_the_ordinary_where_it_can(method: str) -> None:
    """CoolMomentum and KOALA++ equal the ordinary; ArTuRO a bound, LODO a network a tensor; KOALA-V and -M a P each."""
    inside, plain = net(), net()
    together, one_each = SEPARABLE.get(method, ({}, lambda i: {}))
    opts = {p: make(method, [p], **one_each(i)) for i, p in enumerate(inside.parameters())}
    step_in_backward(opts)
    criterion = nn.MSELoss()
    if method in KOALAS:
        for opt in opts.values():
            assert isinstance(opt, fallline.KOALA)
            opt.attach(criterion)
    if method in SEPARABLE:
        ordinary = [make(method, plain.parameters(), **together)]
    else:
        ordinary = [make(method, [p]) for p in plain.parameters()]
    for i in range(6):
        x, y = batch(i)
        criterion(inside(x), y).backward()
        assert all(p.grad is None for p in inside.parameters())
        for opt in ordinary:
            opt.zero_grad()
        loss = criterion(plain(x), y)
        loss.backward()
        for opt in ordinary:
            opt.step(loss=loss)
    close(tensors(inside), tensors(plain), 1e-12)


@pytest.mark.parametrize("method", ["koala-v", "koala-m", "koala-orthogonal", "arturo", "lodo"])
def test_a_coupled_method_in_backward_is_another_method(method: str) -> None:
    """Which is why the table of ``SEPARABLE`` names what it equals."""
    inside, plain = Lossy(), net()
    opts = {p: make(method, [p]) for p in inside.parameters()}
    step_in_backward(opts)
    for opt in opts.values():
        if isinstance(opt, fallline.KOALA):
            opt.attach(inside)
    for i in range(4):
        inside(*batch(i)).backward()
    train(plain, make(method, plain.parameters()), range(4))
    assert all((p - q).abs().max() > 1e-7 for p, q in zip(inside.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("method", KOALAS)
def test_a_koala_in_backward_without_a_loss_names_the_four_ways(method: str) -> None:
    model = net()
    before = tensors(model)
    step_in_backward({p: make(method, [p]) for p in model.parameters()})
    with pytest.raises(RuntimeError, match="Four ways to give it"):
        model(batch(0)[0]).square().mean().backward()
    assert_bits(before, tensors(model))


@every_method
@pytest.mark.filterwarnings("ignore")  # of torch.distributed.optim, whose functional optimizers are deprecated
def test_torch_applies_it_in_backward(method: str) -> None:
    """``torch.distributed.optim._apply_optimizer_in_backward``, which makes one optimizer a parameter."""
    from torch.distributed.optim import _apply_optimizer_in_backward, _get_in_backward_optimizers

    model, other = Lossy(), net()
    cls, settings = METHODS[method]
    _apply_optimizer_in_backward(cls, model.parameters(), {"lr": LR, **settings})
    if method in KOALAS:
        with pytest.raises(RuntimeError, match="Four ways to give it"):
            model(*batch(0)).backward()
        model.zero_grad()
        for opt in _get_in_backward_optimizers(model):
            opt.attach(model)
    opts = [make(method, [p]) for p in other.parameters()]
    for i in range(4):
        model(*batch(i)).backward()
        assert all(p.grad is None for p in model.parameters())
        for opt in opts:
            opt.zero_grad()
        loss = F.mse_loss(other(batch(i)[0]), batch(i)[1])
        loss.backward()
        for opt in opts:
            opt.step(loss=loss)
    close(tensors(model), tensors(other), 1e-12)


# -- ZeroRedundancyOptimizer: each of two processes steps on a part of the parameters ---------------------------

ZERO_STEPS = 5


def train_sharded(opt: Any, model: nn.Module, rank: int | None, steps: range) -> None:
    examples = slice(None) if rank is None else slice(4 * rank, 4 * rank + 4)
    for i in steps:
        x, y = (t[examples] for t in batch(i))
        opt.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        opt.step(loss=loss.detach())


def zero_worker(rank: int, folder: str) -> None:
    """One of two processes: whom ZeroRedundancyOptimizer may run, and how; whom it may not, and what they say."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # DDP's own
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    results: dict[str, Any] = {}
    for method, (cls, settings) in METHODS.items():
        settings = {"lr": LR, **settings}
        if method == "cool":
            settings["skip_nonfinite"] = False
        module = net()
        model = nn.parallel.DistributedDataParallel(module)
        try:
            opt = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=cls, **settings)
        except (RuntimeError, ValueError) as error:
            results[method] = str(error)
            continue
        train_sharded(opt, model, rank, range(ZERO_STEPS))
        results[method] = {"state": len(opt.optim.state), "half way": tensors(module)}
        opt.consolidate_state_dict(to=0)
        whole = [opt.state_dict() if rank == 0 else None]
        dist.broadcast_object_list(whole)
        again = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=cls, **{**settings, "lr": 7.0})
        again.load_state_dict(whole[0])
        train_sharded(again, model, rank, range(ZERO_STEPS, 2 * ZERO_STEPS))
        results[method] |= {"end": tensors(module), "lr": again.param_groups[0]["lr"]}
    try:
        ZeroRedundancyOptimizer(net().parameters(), optimizer_class=fallline.CoolMomentum, skip_nonfinite=True)
    except RuntimeError as error:
        results["cool guarded"] = str(error)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("zero")
    torch.multiprocessing.spawn(zero_worker, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("method", ["cool"])
def test_zero_redundancy_equals_one_process(method: str, two_ranks: list[dict[str, Any]]) -> None:
    """Also after its consolidated state was loaded; and each rank keeps the state of its own share only."""
    model = net()
    opt = make(method, model.parameters(), skip_nonfinite=False)
    train_sharded(opt, model, None, range(ZERO_STEPS))
    half_way = tensors(model)
    train_sharded(opt, model, None, range(ZERO_STEPS, 2 * ZERO_STEPS))
    for result in two_ranks:
        close(result[method]["half way"], half_way)
        close(result[method]["end"], tensors(model))
        assert 0 < result[method]["state"] < len(half_way)
        assert result[method]["lr"] == LR
    assert_bits(two_ranks[0][method]["end"], two_ranks[1][method]["end"])


@pytest.mark.parametrize("method", ["koala-v", "koala-m", "koala-pp", "koala-orthogonal", "arturo", "lodo"])
def test_zero_redundancy_is_refused_where_a_step_couples_tensors(method: str, two_ranks: list[dict[str, Any]]) -> None:
    for result in two_ranks:
        assert isinstance(result[method], str)
        assert "ZeroRedundancyOptimizer" in result[method]
        assert METHODS[method][0].__name__ in result[method]
        assert "skip_nonfinite" in result["cool guarded"]  # one rank's NaN would be skipped by that rank alone


# -- what changes the gradients, the parameters or the graph ----------------------------------------------------


@every_method
def test_clipped_gradients_are_what_a_step_sees(method: str) -> None:
    model, other = net(), net()
    opt, opt2 = make(method, model.parameters()), make(method, other.parameters())
    for i in range(5):
        runs = []
        for m, o in ((model, opt), (other, opt2)):
            o.zero_grad()
            loss = F.mse_loss(m(batch(i)[0]), batch(i)[1])
            loss.backward()
            runs.append(loss)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        assert norm > 0.05
        scale = 0.05 / (sum(p.grad.square().sum() for p in other.parameters()).sqrt() + 1e-6)
        for p in other.parameters():
            p.grad *= scale
        opt.step(loss=runs[0])
        opt2.step(loss=runs[1])
    close(tensors(model), tensors(other))


@every_method
def test_a_clipped_nan_is_skipped(method: str) -> None:
    """A total norm that is NaN makes every gradient NaN."""
    model = net()
    opt = make(method, model.parameters())
    train(model, opt, range(2))
    before = tensors(model)
    model(batch(2)[0]).square().mean().backward()
    model[0].bias.grad[0] = torch.nan
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    assert model[2].weight.grad.isnan().all()
    opt.step(loss=1.0)
    assert_bits(before, tensors(model))
    assert opt.skipped.item() == 1


@every_method
def test_weight_norm_is_training_of_its_parameters(method: str) -> None:
    model = net()
    nn.utils.parametrizations.weight_norm(model[0])
    plain = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    opt, opt2 = make(method, model.parameters()), make(method, plain.values())
    for i in range(5):
        train(model, opt, range(i, i + 1))
        x, y = batch(i)
        g, v = (plain[f"0.parametrizations.weight.original{k}"] for k in (0, 1))
        hidden = torch.tanh(x @ (g * v / v.square().sum(1, keepdim=True).sqrt()).T + plain["0.bias"])
        opt2.zero_grad()
        loss = F.mse_loss(hidden @ plain["2.weight"].T + plain["2.bias"], y)
        loss.backward()
        opt2.step(loss=loss)
    close(tensors(model), [p.detach() for p in plain.values()])


@every_method
@pytest.mark.parametrize("early_stop", [True, False])
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_forward_pass_is_seen_once(method: str, reentrant: bool, early_stop: bool) -> None:
    """Also where it is attached and holds the loss, which is computed again within backward."""
    model, other = Lossy(), Lossy()
    opt, opt2 = make(method, model.parameters()), make(method, other.parameters())
    if isinstance(opt, fallline.KOALA):
        opt.attach(model)
    for i in range(4):
        x, y = batch(i)
        opt.zero_grad()
        with set_checkpoint_early_stop(early_stop):
            checkpoint(model, x.requires_grad_(), y, use_reentrant=reentrant).backward()
        opt.step()
        train(other.body, opt2, range(i, i + 1))
    close(tensors(model), tensors(other), 1e-12)


@every_method
def test_pruned_weights_stay_pruned(method: str) -> None:
    from torch.nn.utils import prune

    model, other = net(), net()
    prune.l1_unstructured(model[0], "weight", amount=0.4)
    mask = model[0].weight_mask.clone()
    names = dict(other.named_parameters())
    names["0.weight_orig"] = names.pop("0.weight")
    opt = make(method, model.parameters())
    opt2 = make(method, [names[name] for name, _ in model.named_parameters()])
    for i in range(5):
        train(model, opt, range(i, i + 1))
        x, y = batch(i)
        opt2.zero_grad()
        loss = F.mse_loss(other[2](torch.tanh(F.linear(x, other[0].weight * mask, other[0].bias))), y)
        loss.backward()
        opt2.step(loss=loss)
    close(tensors(model), [names[name].detach() for name, _ in model.named_parameters()])
    model(batch(0)[0])
    assert Counter(mask.flatten().tolist())[0.0] == 14
    assert (model[0].weight[mask == 0] == 0).all()
    assert (model[0].weight[mask == 1] != 0).all()
    prune.remove(model[0], "weight")
    assert (model[0].weight[mask == 0] == 0).all()


@every_method
def test_stateless_calls_leave_gradients_at_the_given_parameters(method: str) -> None:
    stateless = pytest.importorskip("torch.nn.utils.stateless")
    model, other = net(), net()
    params = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    opt = make(method, params.values())
    for i in range(4):
        x, y = batch(i)
        opt.zero_grad()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # it has moved to torch.func
            loss = F.mse_loss(stateless.functional_call(model, params, (x,)), y)
        loss.backward()
        opt.step(loss=loss)
    train(other, make(method, other.parameters()), range(4))
    close([p.detach() for p in params.values()], tensors(other))


@every_method
def test_the_profiler_names_the_step(method: str) -> None:
    model = net()
    opt = make(method, model.parameters())
    train(model, opt, range(1))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
        train(model, opt, range(1, 3))
    cls = METHODS[method][0].__name__
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts[f"Optimizer.step#{cls}.step"] == 2
    assert counts[f"Optimizer.zero_grad#{cls}.zero_grad"] == 2
