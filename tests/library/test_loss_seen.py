"""The loss that is seen is the one whose gradient lies in ``p.grad``; and models stay as they were."""

import copy
import gc
import io
import math
import pickle
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bits import assert_bits, everything
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fallline

KOALAS: dict[str, Callable[..., Any]] = {
    "V": lambda ps, **more: fallline.VanillaKOALA(ps, **{"sigma": 0.1, "q": 0.1, **more}),
    "M": fallline.MomentumKOALA,
    "++": lambda ps, **more: fallline.KOALAPlusPlus(ps, **{"sigma": 0.1, "q": 0.1, **more}),
    "orthogonal": lambda ps, **more: fallline.OrthogonalKOALA(ps, **{"q": 1e-2, **more}),
}
every_koala = pytest.mark.parametrize("koala", KOALAS)


class Model(nn.Module):
    """Two layers; with targets the output is the loss, as transformers do it."""

    def __init__(self, inner: Callable[..., Tensor] | None = None) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 5), nn.Linear(5, 2)
        self.inner = inner  # how the first layer is run

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        hidden = self.first(x).tanh() if self.inner is None else self.inner(lambda x: self.first(x).tanh(), x)
        out = self.last(hidden)
        return out if y is None else {"loss": (out - y).square().mean(), "out": out}


def model(seed: int = 0, **more: Any) -> Model:
    torch.manual_seed(seed)
    return Model(**more).double()


def micro_batches(t: int, k: int) -> list[tuple[Tensor, Tensor]]:
    """Batch ``t``, [12, 3] and [12, 2], in ``k`` pieces."""
    g = torch.Generator().manual_seed(t)
    x, y = torch.randn(12, 3, generator=g, dtype=torch.double), torch.randn(12, 2, generator=g, dtype=torch.double)
    return list(zip(x.chunk(k), y.chunk(k), strict=True))


def spy(seen: list[float]) -> Callable[[Tensor], Tensor]:
    """A target of 0 that writes down the loss."""
    return lambda mean: (seen.append(mean.item()), torch.zeros_like(mean))[1]


def value_seen(optimizer: Any) -> float:
    """The loss of the coming step; it is not used up."""
    losses = optimizer._losses
    return math.nan if losses.sums is None else losses.sums[0].item()


# -- ways to give the loss, to clear gradients, to run the model ---------------------------------------------------

WAYS = ["closure", "observe", "criterion", "model", "attach"]
CLEARS: dict[str, Callable[[Any, nn.Module], object]] = {
    "zero_grad": lambda o, m: o.zero_grad(),
    "zeros": lambda o, m: o.zero_grad(set_to_none=False),
    "model": lambda o, m: m.zero_grad(),
    "by hand": lambda o, m: [setattr(p, "grad", None) for p in m.parameters()],
    "zeros by hand": lambda o, m: [p.grad.zero_() for p in m.parameters() if p.grad is not None],
    "other zeros": lambda o, m: [setattr(p, "grad", torch.zeros_like(p)) for p in m.parameters()],
}
RUNS: dict[str, Callable[..., Any]] = {
    "plain": dict,
    "checkpoint": lambda: {"inner": lambda f, x: checkpoint(f, x, use_reentrant=False)},
    "reentrant": lambda: {"inner": lambda f, x: checkpoint(f, x.requires_grad_(), use_reentrant=True)},
}


def reference(koala: str, k: int, steps: int = 5, **settings: Any) -> tuple[list[Tensor], list[float]]:
    """A plain loop that gives ``loss=``: the losses of all micro-batches at once."""
    net, seen = model(), []  # type: ignore[var-annotated]
    optimizer = KOALAS[koala](net.parameters(), target=spy(seen), **settings)
    for t in range(steps):
        optimizer.zero_grad()
        losses = [(net(x) - y).square().mean() for x, y in micro_batches(t, k)]
        torch.stack(losses).mean().backward()
        optimizer.step(loss=torch.stack(losses).mean())
    return [p.detach() for p in net.parameters()], seen


def trained(
    koala: str, way: str, clear: str, k: int, run: str = "plain", steps: int = 5, scaler: bool = False, **settings: Any
) -> tuple[list[Tensor], list[float]]:
    net, seen, criterion = model(**RUNS[run]()), [], nn.MSELoss()  # type: ignore[var-annotated]
    optimizer = KOALAS[koala](net.parameters(), target=spy(seen), **settings)
    attached = {"criterion": [criterion], "model": [net], "attach": []}
    if way in attached:
        optimizer.attach(*attached[way])
    scale = torch.amp.GradScaler("cpu", init_scale=2.0**9, enabled=scaler)

    def gradients(t: int) -> Tensor:
        losses = []
        for x, y in micro_batches(t, k):
            loss = net(x, y)["loss"] if way == "model" else criterion(net(x), y)
            losses.append(optimizer.observe(loss) if way == "observe" else loss)
            scale.scale(losses[-1] / k).backward()
        return torch.stack(losses).mean()

    for t in range(steps):
        if t == 2:  # a batch that is thrown away
            gradients(t + 50)
        CLEARS[clear](optimizer, net)
        if way == "closure":
            optimizer.step(lambda t=t: gradients(t))
        else:
            gradients(t)
            scale.step(optimizer)
            scale.update()
    return [p.detach() for p in net.parameters()], seen


def check(one: tuple[list[Tensor], list[float]], other: tuple[list[Tensor], list[float]], rtol: float = 1e-10) -> None:
    assert one[1] == pytest.approx(other[1], rel=rtol)
    for p, q in zip(one[0], other[0], strict=True):
        torch.testing.assert_close(p, q, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("clear", CLEARS)
@pytest.mark.parametrize("way", WAYS)
@every_koala
def test_every_way_and_every_clearing_is_the_loss_argument(koala: str, way: str, clear: str, k: int) -> None:
    fixed = {} if koala == "orthogonal" else {"r": 0.5}  # means of micro-batches do not tell the examples' moment
    check(trained(koala, way, clear, k, **fixed), reference(koala, k, **fixed))


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("run", ["checkpoint", "reentrant"])
@pytest.mark.parametrize("way", WAYS)
def test_pieces_that_run_twice_change_nothing(way: str, run: str, k: int) -> None:
    check(trained("orthogonal", way, "model", k, run), reference("orthogonal", k))


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("clear", CLEARS)
@pytest.mark.parametrize("way", ["observe", "criterion", "model", "attach"])
def test_a_scaler_s_scale_is_divided_out(way: str, clear: str, k: int) -> None:
    check(trained("orthogonal", way, clear, k, scaler=True), reference("orthogonal", k))


@every_koala
def test_the_second_moment_of_scalars_is_that_of_the_argument(koala: str) -> None:
    """One pass: R as with ``loss=``. Several: as with the losses of all micro-batches at once."""
    check(trained(koala, "attach", "zero_grad", 1), reference(koala, 1))
    one, many = model(), model()
    a, b = KOALAS[koala](one.parameters()), KOALAS[koala](many.parameters())
    a.attach()
    pieces = micro_batches(0, 3)
    for x, y in pieces:
        ((one(x) - y).square().mean() / 3).backward()
    losses = torch.stack([(many(x) - y).square().mean() for x, y in pieces])
    losses.mean().backward()
    a.step()
    b.step(loss=losses)
    assert a.measurement_noise.item() == pytest.approx(b.measurement_noise.item(), rel=1e-12)


# -- what backward is called on ------------------------------------------------------------------------------------

ATTACHED = ["criterion", "model", "attach", "observe"]


def watched(way: str, net: Model, **more: Any) -> tuple[Any, Callable[[Tensor, Tensor], Tensor], list[float]]:
    """A filter, a function that gives the loss of a batch as ``way`` has it, and the losses that the filter sees."""
    seen: list[float] = []
    criterion = nn.MSELoss(**more)
    optimizer = fallline.OrthogonalKOALA(net.parameters(), target=spy(seen))
    if way != "observe":
        optimizer.attach(*{"criterion": [criterion], "model": [net], "attach": []}[way])

    def loss(x: Tensor, y: Tensor) -> Tensor:
        value = net(x, y)["loss"] if way == "model" else criterion(net(x), y)
        return optimizer.observe(value) if way == "observe" else value

    return optimizer, loss, seen


def objectives(loss: Tensor, net: Model, x: Tensor) -> dict[str, Callable[[], Tensor]]:
    """What is done with a loss before ``backward``."""

    def out() -> Tensor:
        """The model's output, of a pass at which no hook looks."""
        return net.last(net.first(x).tanh())

    def divided(k: float) -> Tensor:
        nonlocal loss
        loss /= k  # timm's script
        return loss

    def gradient_penalty() -> Tensor:
        (slope,) = torch.autograd.grad(loss, net.first.weight, create_graph=True)
        return loss + slope.square().sum()

    def looked_at() -> Tensor:
        torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)
        return loss

    return {
        "as it is": lambda: loss,
        "divided": lambda: loss / 4,
        "divided in place": lambda: divided(4),
        "divided twice": lambda: divided(2) / 2,
        "times, minus": lambda: loss.mul_(3).sub_(1),
        "with a penalty": lambda: loss + 10 * out().abs().mean(),
        "negative": lambda: -loss,
        "a difference": lambda: loss - 2 * out().mean(),
        "not linear": lambda: loss.sqrt() + loss.log(),
        "gradient penalty": gradient_penalty,
        "a norm is looked at": looked_at,
        "another loss": lambda: (out() - 1).abs().mean(),
    }


@pytest.mark.parametrize("what", objectives(torch.ones(1), model(), torch.ones(1)))
@pytest.mark.parametrize("way", ATTACHED)
def test_the_loss_is_what_backward_is_called_on(way: str, what: str) -> None:
    net = model()
    optimizer, loss, seen = watched(way, net)
    for t in range(3):
        optimizer.zero_grad()
        ((x, y),) = micro_batches(t, 1)
        objective = objectives(loss(x, y), net, x)[what]()
        objective.backward()
        optimizer.step()
        assert seen[-1] == pytest.approx(objective.item(), rel=1e-12)


@pytest.mark.parametrize("way", ATTACHED)
def test_several_roots_and_given_gradients(way: str) -> None:
    net = model()
    optimizer, loss, seen = watched(way, net)
    ((x, y),) = micro_batches(0, 1)
    one, two = loss(x, y), net.last(net.first(x).tanh()).square().mean()
    torch.autograd.backward([one, two])
    optimizer.step()
    assert seen[-1] == pytest.approx(one.item() + two.item())
    optimizer.zero_grad()
    one = loss(x, y)
    one.backward(gradient=torch.tensor(0.25, dtype=torch.double))
    optimizer.step()
    assert seen[-1] == pytest.approx(one.item() / 4)
    optimizer.zero_grad()
    one = loss(x, y)
    one.backward(retain_graph=True)
    one.backward()  # the gradient is twice that of the loss
    optimizer.step()
    assert seen[-1] == pytest.approx(2 * one.item())


def test_a_vector_with_gradients_of_its_own_is_refused_or_observed() -> None:
    """It may be losses and their weights, or what another stage of a pipeline makes of it: who knows says so."""
    net, seen = model(), []  # type: ignore[var-annotated]
    optimizer = fallline.OrthogonalKOALA(net.parameters(), target=spy(seen))
    optimizer.attach()
    ((x, y),) = micro_batches(0, 1)
    losses = (net(x) - y).square().mean(1)
    losses.backward(torch.full((12,), 1 / 12, dtype=torch.double))
    before = everything(optimizer)
    with pytest.raises(RuntimeError, match=r"shape \(12,\).*observe"):
        optimizer.step()
    assert_bits(before, everything(optimizer))
    optimizer.step(loss=losses)
    optimizer.zero_grad()
    losses = optimizer.observe((net(x) - y).square().mean(1))
    losses.backward(torch.full((12,), 1 / 12, dtype=torch.double))
    optimizer.step()
    assert seen[-1] == pytest.approx(losses.mean().item())


@every_koala
def test_missing_labels_that_are_masked_skip_nothing(koala: str) -> None:
    """NaN entries of a loss that are left out of the mean: as with ``loss=``, examples' losses apart."""
    ((x, y),) = micro_batches(0, 1)
    y[0, 0] = math.nan
    net, plain = model(), model()
    criterion = nn.L1Loss(reduction="none")
    optimizer, other = KOALAS[koala](net.parameters()), KOALAS[koala](plain.parameters())
    optimizer.attach(criterion)
    for _ in range(5):
        optimizer.zero_grad()
        criterion(net(x), y)[~y.isnan()].mean().backward()
        optimizer.step()
        other.zero_grad()
        losses = criterion(plain(x), y)[~y.isnan()]
        losses.mean().backward()
        other.step(loss=losses.detach())
    assert optimizer.skipped.item() == 0
    check(([p.detach() for p in net.parameters()], []), ([p.detach() for p in plain.parameters()], []))


@every_koala
def test_a_mean_square_is_never_below_the_squared_mean(koala: str) -> None:
    """The difference of two watched losses (a critic's): weights of both signs have no second moment."""
    net = model()
    optimizer = KOALAS[koala](net.parameters())
    ((x, _),) = micro_batches(0, 1)
    real, fake = optimizer.observe(net(x).mean(1)), optimizer.observe(net(-x).mean(1))
    (real.mean() - 3 * fake.mean()).backward()
    mean, square = optimizer._moments(optimizer.measurement_noise, None)
    assert mean.item() == pytest.approx((real.mean() - 3 * fake.mean()).item())
    assert square >= mean.square()


# -- several optimizers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["criterion", "attach"])
@every_koala
def test_adversaries_with_both_losses_first(koala: str, way: str) -> None:
    torch.manual_seed(0)
    G, D, criterion = nn.Linear(2, 2), nn.Linear(2, 1), nn.BCEWithLogitsLoss()
    og, od = KOALAS[koala](G.parameters()), KOALAS[koala](D.parameters())
    for optimizer in (og, od):
        optimizer.attach(*([criterion] if way == "criterion" else []))
    for clear in (lambda: None, lambda: [o.zero_grad() for o in (og, od)], lambda: [m.zero_grad() for m in (G, D)]):
        clear()
        real, fake = torch.randn(16, 2), G(torch.randn(16, 2))
        g = criterion(D(fake), torch.ones(16, 1))
        d = criterion(D(real), torch.ones(16, 1)) + criterion(D(fake.detach()), torch.zeros(16, 1))
        d.backward()  # reaches D alone
        assert math.isnan(value_seen(og))
        g.backward(inputs=list(G.parameters()))  # reaches G alone
        assert value_seen(og) == pytest.approx(g.item())
        assert value_seen(od) == pytest.approx(d.item())
        og.step()
        od.step()


@pytest.mark.parametrize("clear", ["zero_grad", "zeros", "model", "by hand", "zeros by hand"])
@pytest.mark.parametrize("way", ["criterion", "attach"])
def test_adversaries_in_the_usual_order(way: str, clear: str) -> None:
    """The generator's pass leaves gradients in the critic, which are cleared before its own: so is that loss."""
    torch.manual_seed(0)
    G, D, criterion = nn.Linear(2, 2), nn.Linear(2, 1), nn.BCEWithLogitsLoss()
    og, od = (fallline.OrthogonalKOALA(m.parameters()) for m in (G, D))
    for optimizer in (og, od):
        optimizer.attach(*([criterion] if way == "criterion" else []))
    for _ in range(3):
        real, fake = torch.randn(16, 2), G(torch.randn(16, 2))
        CLEARS[clear](od, D)
        d = criterion(D(real), torch.ones(16, 1)) + criterion(D(fake.detach()), torch.zeros(16, 1))
        d.backward()
        assert value_seen(od) == pytest.approx(d.item())
        od.step()
        CLEARS[clear](og, G)
        g = criterion(D(fake), torch.ones(16, 1))
        g.backward()
        assert value_seen(og) == pytest.approx(g.item())
        assert value_seen(od) == pytest.approx(g.item())  # what lies in the critic's gradients now
        og.step()


def test_one_loss_for_two_optimizers_and_two_for_one() -> None:
    net = model()
    first, last = fallline.OrthogonalKOALA(net.first.parameters()), fallline.OrthogonalKOALA(net.last.parameters())
    first.attach()
    last.attach()
    ((x, y),) = micro_batches(0, 1)
    one = (net(x) - y).square().mean()
    one.backward()
    two = net.last(torch.ones(1, 5).double()).square().mean()
    two.backward()  # reaches the last layer alone
    assert value_seen(first) == pytest.approx(one.item())
    assert value_seen(last) == pytest.approx(one.item() + two.item())


def test_a_pass_that_fails_is_no_loss() -> None:
    net = model()
    optimizer = fallline.OrthogonalKOALA(net.parameters())
    optimizer.attach()
    ((x, y),) = micro_batches(0, 1)
    loss = (net(x) - y).square().mean()
    handle = net.first.weight.register_hook(lambda g: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loss.backward()
    handle.remove()
    optimizer.zero_grad()
    loss = (net(x) - y).square().mean()
    loss.backward()
    assert value_seen(optimizer) == pytest.approx(loss.item())


@pytest.mark.parametrize("cleared", [True, False])
def test_a_step_within_backward_uses_the_loss_up(cleared: bool) -> None:
    """An optimizer a parameter, in hooks: the pass that is running is the loss of each, once."""
    net = model()
    seen: dict[nn.Parameter, list[float]] = {p: [] for p in net.parameters()}
    optimizers = {p: fallline.OrthogonalKOALA([p], target=spy(seen[p])) for p in net.parameters()}
    for p, optimizer in optimizers.items():
        optimizer.attach()

        def hook(p: Tensor, optimizer: Any = optimizer) -> None:
            optimizer.step()
            if cleared:
                optimizer.zero_grad()

        p.register_post_accumulate_grad_hook(hook)
    for t in range(3):
        net.zero_grad()
        ((x, y),) = micro_batches(t, 1)
        loss = (net(x) - y).square().mean()
        loss.backward()
        assert all(values[-1] == pytest.approx(loss.item()) for values in seen.values())
        assert all(len(values) == t + 1 for values in seen.values())
        assert all(math.isnan(value_seen(optimizer)) for optimizer in optimizers.values())


# -- no loss, in words ----------------------------------------------------------------------------------------------


def test_an_attached_loss_that_no_pass_reached_is_told() -> None:
    net = model()
    optimizer = fallline.OrthogonalKOALA(net.parameters())
    ((x, y),) = micro_batches(0, 1)

    def by_hand() -> Tensor:
        loss = (net(x) - y).square().mean()
        for p, g in zip(net.parameters(), torch.autograd.grad(loss, list(net.parameters())), strict=True):
            p.grad = g
        return loss

    by_hand()
    with pytest.raises(RuntimeError, match=r"Four ways.*optimizer\.attach\(\)"):
        optimizer.step()
    handle = optimizer.attach()
    with pytest.raises(RuntimeError, match=r"no backward pass has reached.*autograd\.grad.*loss=loss") as error:
        optimizer.step()
    assert "Four ways" not in str(error.value)
    optimizer.step(loss=by_hand())
    handle.remove()
    (net(x) - y).square().mean().backward()
    with pytest.raises(RuntimeError, match="Four ways"):
        optimizer.step()


# -- trainers' wrappers: copies of the optimizer's attributes ---------------------------------------------------------


def wrapped(optimizer: Any, name: str) -> Any:
    if name == "Fabric":
        from lightning.fabric.strategies import SingleDeviceStrategy
        from lightning.fabric.wrappers import _FabricOptimizer

        return _FabricOptimizer(optimizer, SingleDeviceStrategy())
    from lightning.pytorch.core.optimizer import LightningOptimizer

    return LightningOptimizer(optimizer)


@pytest.mark.parametrize("way", ["observe", "attach"])
@pytest.mark.parametrize("name", ["Fabric", "Lightning"])
@every_koala
def test_a_wrapper_hands_on_what_it_is_told(koala: str, name: str, way: str) -> None:
    """``self.optimizers().observe(loss)``, and ``zero_grad`` of the wrapper."""
    net, seen = model(), []  # type: ignore[var-annotated]
    optimizer = KOALAS[koala](net.parameters(), target=spy(seen))
    wrapper = wrapped(optimizer, name)
    if way == "attach":
        wrapper.attach()
    for t in range(3):
        ((x, y),) = micro_batches(t, 1)
        for _ in range(2):  # the first batch is thrown away
            wrapper.zero_grad(set_to_none=t % 2 == 0)
            loss = (net(x) - y).square().mean()
            (wrapper.observe(loss) if way == "observe" else loss).backward()
        assert value_seen(optimizer) == pytest.approx(loss.item())
        optimizer.step()
        assert seen[-1] == pytest.approx(loss.item())


def test_a_wrapper_follows_for_the_optimizer_inside() -> None:
    net = model()
    optimizer = fallline.MomentumKOALA(net.parameters())
    wrapper = wrapped(optimizer, "Fabric")
    wrapper.follow(net)
    del wrapper
    gc.collect()
    ((x, y),) = micro_batches(0, 1)
    for _ in range(2):
        loss = (net(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss=loss.detach())
    predicted = net.first.weight.detach().clone()
    net.eval()
    with torch.no_grad():
        net(x)
    assert not torch.equal(net.first.weight, predicted)
    net.train()
    loss = (net(x) - y).square().mean()
    assert torch.equal(net.first.weight, predicted)


# -- what is left behind ----------------------------------------------------------------------------------------------


def test_nothing_is_kept_alive() -> None:
    """Neither an optimizer that is attached, nor gradients that were cleared, nor losses."""
    net = model()
    optimizer = fallline.OrthogonalKOALA(net.parameters())
    optimizer.attach()
    optimizer.attach(net, get=lambda output: output if output.dim() == 0 else output.mean())
    ((x, y),) = micro_batches(0, 1)
    loss = (net(x) - y).square().mean()
    loss.backward()
    gradient, kept = weakref.ref(net.first.weight.grad), weakref.ref(loss)
    net.zero_grad()
    del loss
    gc.collect()
    assert gradient() is None
    assert kept() is None
    gone = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert gone() is None
    (net(x) - y).square().mean().backward()  # nobody listens any more


class Inside(nn.Module):
    """A model in which another one is followed and attached."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x)


HOOKED = ["follow", "attach(model)", "both", "inside another"]


def hooked(how: str) -> tuple[nn.Module, Any]:
    part = nn.Linear(3, 2)
    optimizer = fallline.MomentumKOALA(part.parameters())
    if how != "attach(model)":
        optimizer.follow(part)
    if how != "follow":
        optimizer.attach(part, get=lambda output: output.mean())
    return (Inside(part) if how == "inside another" else part), optimizer


@pytest.mark.parametrize("how", HOOKED)
def test_a_saved_model_holds_nothing_of_the_library(how: str) -> None:
    net, optimizer = hooked(how)
    kept = [dict(part._forward_hooks) | dict(part._forward_pre_hooks) for part in net.modules()]
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    with torch.serialization.safe_globals([nn.Linear, Inside]):
        loaded = torch.load(file, weights_only=True)
    assert b"fallline" not in file.getvalue()
    assert b"fallline" not in pickle.dumps(net)
    x = torch.randn(4, 3)
    for copied in (loaded, pickle.loads(pickle.dumps(net)), copy.deepcopy(net), copy.copy(net)):
        assert type(copied) is type(net)
        assert torch.equal(copied(x), net(x))
        pickle.dumps(copied)
    assert [dict(part._forward_hooks) | dict(part._forward_pre_hooks) for part in net.modules()] == kept
    optimizer.zero_grad()
    net(x).mean().backward()
    if how != "follow":
        optimizer.step()  # the original is attached as before


@pytest.mark.parametrize("how", HOOKED)
def test_traces_exports_and_scripts(how: str) -> None:
    """A trace and an export are those of the bare model; a script is made of a copy, for torch compiles hooks."""
    net, optimizer = hooked(how)
    bare, x = copy.deepcopy(net), torch.randn(4, 3)
    before = everything(optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for mode in (net.train, net.eval):
            mode()
            with torch.no_grad():
                assert torch.equal(torch.jit.trace(net, x)(x), bare(x))
            exported = torch.export.export(net, (x,))
            assert torch.equal(exported.module()(x), bare(x))
        with pytest.raises(RuntimeError, match=r"copy\.deepcopy"):
            torch.jit.script(net)
        assert torch.equal(torch.jit.script(copy.deepcopy(net))(x), bare(x))
    optimizer.train()  # from the pass in eval mode by which torch.jit.trace checks itself
    assert_bits(before, everything(optimizer))


# -- losses below zero ----------------------------------------------------------------------------------------------


@every_koala
def test_the_target_costs_nothing_where_losses_are_positive(koala: str) -> None:
    """To the bit the path of ``target=0``, skipped steps among it."""
    one, two = model(), model()
    auto, zero = KOALAS[koala](one.parameters()), KOALAS[koala](two.parameters(), target=0.0)
    for t in range(30):
        for net, optimizer in ((one, auto), (two, zero)):
            ((x, y),) = micro_batches(t, 1)
            optimizer.zero_grad()
            losses = (net(x) - y).square().mean(1) * (math.nan if t == 7 else 1)
            losses.mean().backward()
            optimizer.step(loss=losses.detach())
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(p, q)
    assert auto.measurement_noise == zero.measurement_noise


def bounds(losses: list[float], alpha: float = 0.9) -> list[float]:
    """The target of each loss in plain arithmetic, where R has not been larger than the first negative loss squared."""
    lowest, mean, variance, targets = 0.0, 0.0, 0.0, []
    for loss in losses:
        if lowest == 0:
            mean, variance = loss, loss**2
        else:
            variance = alpha * variance + (1 - alpha) * (loss - mean) ** 2
            mean = alpha * mean + (1 - alpha) * loss
        lowest = min(lowest, loss)
        targets.append(lowest - math.sqrt(variance) if lowest < 0 else 0.0)
    return targets


@pytest.mark.parametrize("maximize", [False, True])
@every_koala
def test_below_zero_the_target_is_a_deviation_below_the_lowest(koala: str, maximize: bool) -> None:
    """Against ``target=`` with the numbers in plain arithmetic; raising a gain is lowering its negative."""
    p = torch.nn.Parameter(torch.ones(3, 2, dtype=torch.double))
    q = torch.nn.Parameter(p.detach().clone())
    losses = [0.01, -3.0, -4.0, -2.0, -2.5, 1.0, math.nan, -6.0, -6.0, -5.0]
    wanted = iter(bounds([loss for loss in losses if loss == loss]))
    now: list[float] = []
    auto = KOALAS[koala]([p], maximize=maximize, r=1e-3)
    plain = KOALAS[koala]([q], target=lambda mean: torch.full_like(mean, now[-1]), r=1e-3)
    for t, loss in enumerate(losses):
        g = torch.randn(3, 2, dtype=torch.double, generator=torch.Generator().manual_seed(t))
        now.append(next(wanted) if loss == loss else 0.0)
        p.grad, q.grad = (-g if maximize else g), g
        auto.step(loss=-loss if maximize else loss)
        plain.step(loss=loss)
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)
    assert auto.skipped == plain.skipped == 1


@every_koala
def test_a_likelihood_goes_on_below_zero(koala: str) -> None:
    """A density of narrow data: the target 0 is where it stays; "auto" leaves it behind."""

    def ends(**settings: Any) -> float:
        torch.manual_seed(0)
        x = 0.02 * torch.randn(256, dtype=torch.double)
        mean, log_sd = nn.Parameter(torch.tensor(0.5).double()), nn.Parameter(torch.tensor(1.0).double())
        optimizer = KOALAS[koala]([mean, log_sd], lr=0.3, **settings)
        for _ in range(400):
            batch = x[torch.randint(256, (32,))]
            loss = (((batch - mean) / log_sd.exp()).square() / 2 + log_sd).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step(loss=loss.detach())
        with torch.no_grad():
            return (((x - mean) / log_sd.exp()).square() / 2 + log_sd).mean().item()

    assert ends(target=0.0) > -0.5
    assert ends() < -2.5  # the best is -3.4


@every_koala
def test_what_is_known_below_zero_is_saved(koala: str) -> None:
    def step(p: nn.Parameter, optimizer: Any, loss: float) -> None:
        p.grad = torch.ones_like(p)
        optimizer.step(loss=loss)

    p = nn.Parameter(torch.ones(3, 2))
    optimizer = KOALAS[koala]([p])
    for loss in (1.0, -2.0, -1.0):
        step(p, optimizer, loss)
    q = nn.Parameter(p.detach().clone())
    other = KOALAS[koala]([q])
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    for loss in (-3.0, -2.5):
        step(p, optimizer, loss)
        step(q, other, loss)
    assert torch.equal(p, q)


@every_koala
def test_adam_s_learning_rate_is_warned_of(koala: str) -> None:
    ps = [nn.Parameter(torch.ones(2, 2))]
    with pytest.warns(UserWarning, match=r"KOALA.*\(lr=0\.001\).*factor of a schedule"):
        KOALAS[koala](ps, lr=1e-3)
    for lr in (0.0, 0.1, 1.0, torch.tensor(1e-3)):
        KOALAS[koala](ps, lr=lr)
