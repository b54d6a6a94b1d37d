"""How the loss reaches an optimizer: argument, closure, tap, and none of them."""

import math
from typing import Any

import pytest
import torch
from bits import assert_bits
from problem import (
    METHODS,
    Net,
    backward,
    batch_losses,
    scalars,
    snapshot,
    start,
    vector,
)
from torch import Tensor, nn

from fallline import MomentumKOALA, VanillaKOALA


class ExampleLoss(nn.modules.loss._Loss):
    """A criterion with reduction "none"."""

    def forward(self, losses: Tensor, _: None) -> Tensor:
        return losses * 1


WAYS = ["loss", "closure", "observe", "attribute", "dict", "criterion", "get"]


def train(method: str, way: str, steps: int = 6, **settings: Any) -> list[Tensor]:
    """Train on losses one each, given to the optimizer in one of the ways; returns the parameters."""
    net = Net({"attribute": "attribute", "dict": "dict", "get": "tuple"}.get(way, "plain"))
    optimizer = METHODS[method](net.parameters(), **settings)
    criterion = ExampleLoss()
    if way in ("attribute", "dict"):
        optimizer.attach(net)
    elif way == "get":
        optimizer.attach(net, get=lambda output: output[1])
    elif way == "criterion":
        optimizer.attach(criterion)
    for t in range(steps):

        def closure(t: int = t) -> Tensor:
            optimizer.zero_grad()
            output = net(t)
            losses = output.loss if way == "attribute" else output["loss"] if way == "dict" else output
            losses = losses[1] if way == "get" else criterion(losses, None) if way == "criterion" else losses
            losses = optimizer.observe(losses) if way == "observe" else losses
            losses.mean().backward()
            return losses

        if way == "closure":
            with torch.no_grad():
                optimizer.step(closure)
        elif way == "loss":
            optimizer.step(loss=closure())
        else:
            closure()
            optimizer.step()
    return [p.detach() for p in net.blocks]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", METHODS)
def test_every_way_to_give_the_loss_gives_the_same_path(method: str, way: str) -> None:
    parameters = start()
    optimizer = METHODS[method](parameters)
    for t in range(6):
        optimizer.predict()
        optimizer.update(backward(optimizer, parameters, t))
    optimizer.predict()
    for mine, wanted in zip(train(method, way), parameters, strict=True):
        torch.testing.assert_close(mine, wanted.detach(), rtol=1e-10, atol=1e-12)


def test_tap_goes_before_argument_goes_before_closure() -> None:
    """Read from R after one step: 0.9 + 0.1 loss^2."""

    def noise_after(tap: float | None, argument: float | None, returned: float | None) -> float:
        p = torch.ones(1, dtype=torch.float64, requires_grad=True)
        optimizer = VanillaKOALA([p])

        def closure() -> float | None:
            p.grad = vector([1.0])
            if tap is not None:
                optimizer.observe(tap * p.squeeze()).backward()
            return returned

        value = optimizer.step(closure, **({} if argument is None else {"loss": argument}))
        assert value == returned
        return round((float(optimizer.param_groups[0]["measurement_noise"]) - 0.9) / 0.1, 9)

    assert noise_after(2.0, 3.0, 5.0) == 4
    assert noise_after(2.0, None, 5.0) == 4
    assert noise_after(2.0, None, None) == 4
    assert noise_after(None, 3.0, 5.0) == 9
    assert noise_after(None, None, 5.0) == 25


def test_the_closure_runs_once() -> None:
    parameters = start()
    optimizer = MomentumKOALA(parameters)
    calls = []

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        return backward(optimizer, parameters, 0)

    assert torch.equal(optimizer.step(closure), batch_losses(start(), 0).detach())
    assert calls == [True]


@pytest.mark.parametrize("form", ["step", "stages"])
@pytest.mark.parametrize("method", METHODS)
def test_accumulation_equals_the_big_batch(method: str, form: str) -> None:
    """Two micro-batches, each loss divided by two, observed: the same as all examples at once."""
    big, parts = start(), start()
    whole, accumulated = METHODS[method](big), METHODS[method](parts)
    for t in range(6):
        losses = backward(whole, big, t)
        accumulated.zero_grad()
        if form == "stages":
            whole.predict()
            losses = backward(whole, big, t)
            whole.update(losses)
            accumulated.predict()
        else:
            whole.step(loss=losses)
        for examples in (slice(0, 4), slice(4, 8)):
            (accumulated.observe(batch_losses(parts, t, examples)).mean() / 2).backward()
        if form == "stages":
            accumulated.update(None)
        else:
            accumulated.step()
    for a, b in zip(big, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("kind", ["divided", "partial"])
@pytest.mark.parametrize("method", METHODS)
def test_accumulated_scalars_have_the_big_batch_s_mean(method: str, kind: str) -> None:
    """Divided: mean of the micro-batch over two. Partial: sums over the number of all items, weight one, as in HF.

    The second moment cannot be known from means, so R is fixed here.
    """
    big, parts = start(), start()
    whole, accumulated = METHODS[method](big, r=0.5), METHODS[method](parts, r=0.5)
    for t in range(6):
        whole.step(loss=backward(whole, big, t))
        accumulated.zero_grad()
        for examples in (slice(0, 2), slice(2, 8)) if kind == "partial" else (slice(0, 4), slice(4, 8)):
            losses = batch_losses(parts, t, examples)
            if kind == "partial":
                accumulated.observe(losses.sum() / 8).backward()
            else:
                (accumulated.observe(losses.mean()) / 2).backward()
        accumulated.step()
    for a, b in zip(big, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("way", ["observe", "told", "loss"])
@pytest.mark.parametrize("method", METHODS)
def test_grad_scaler(method: str, way: str) -> None:
    """The same path as without scaler; a step that the scaler skips for an infinity leaves nothing behind."""
    plainly, parameters = start(), start()
    plain, optimizer = METHODS[method](plainly), METHODS[method](parameters)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    if way == "told":
        optimizer.set_grad_scaler(scaler)
    for t in range(12):
        if t % 2:  # both ways to clear gradients
            optimizer.zero_grad(set_to_none=False)
        else:
            for p in parameters:
                p.grad = None
        losses = batch_losses(parameters, t)
        if way != "loss":
            losses = optimizer.observe(losses)
        scaler.scale(losses.mean()).backward()
        overflow = t in (4, 7)
        if overflow:
            parameters[1].grad[0] = math.inf
        else:
            plain.step(loss=backward(plain, plainly, t))
        before = snapshot(optimizer, parameters)
        if way == "told":  # as a loop of one's own may do it, without scaler.step
            scaler.unscale_(optimizer)
            if not overflow:
                optimizer.step()
        else:
            scaler.step(optimizer, **({"loss": losses} if way == "loss" else {}))
        scaler.update()
        if overflow:
            assert_bits(before, snapshot(optimizer, parameters))
    assert scaler.get_scale() > 2.0**10
    for a, b in zip(plainly, parameters, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)
    assert scalars(optimizer) == pytest.approx(scalars(plain), rel=1e-11)


def test_an_evaluation_leaves_nothing_behind() -> None:
    """Losses that are observed and never differentiated, or computed without gradients, are not used."""
    net, twin = Net("dict"), Net("dict")
    watched, plain = VanillaKOALA(net.parameters()), VanillaKOALA(twin.parameters())
    watched.attach(net)
    for t in range(4):
        for optimizer, model in ((watched, net), (plain, twin)):
            optimizer.zero_grad()
            losses = model(t)["loss"]
            losses.mean().backward()
            if optimizer is watched:
                with torch.no_grad():
                    model(t + 50)
                model(t + 60)  # with gradients, without backward
                optimizer.step()
            else:
                optimizer.step(loss=losses)
    for a, b in zip(net.blocks, twin.blocks, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def test_one_step_s_tap_does_not_reach_the_next() -> None:
    p = torch.ones(1, dtype=torch.float64, requires_grad=True)
    optimizer = VanillaKOALA([p], alpha_r=0.0)
    for value in (2.0, 3.0):
        optimizer.zero_grad()
        optimizer.observe(value * (p / p.detach()).squeeze()).backward()
        optimizer.step()
        assert float(optimizer.param_groups[0]["measurement_noise"]) == pytest.approx(value**2)
    with pytest.raises(RuntimeError, match="observe"):
        optimizer.step()


def test_observe_returns_its_argument() -> None:
    parameters = start()
    optimizer = VanillaKOALA(parameters)
    losses = batch_losses(parameters, 0)
    assert optimizer.observe(losses) is losses
    constant = torch.tensor(1.0)
    assert optimizer.observe(constant) is constant


def test_attach_can_be_undone() -> None:
    net = Net("mean")
    optimizer = VanillaKOALA(net.parameters())
    handle = optimizer.attach(net)
    net(0).backward()
    optimizer.step()
    handle.remove()
    optimizer.zero_grad()
    net(1).backward()
    with pytest.raises(RuntimeError, match="attach"):
        optimizer.step()


@pytest.mark.parametrize("module", ["plain", "tuple"])
def test_attach_takes_no_output_for_a_loss_that_is_none(module: str) -> None:
    net = Net(module)
    optimizer = VanillaKOALA(net.parameters())
    optimizer.attach(net)
    with pytest.raises(ValueError, match="get"):
        net(0)
    with torch.no_grad():
        net(0)  # in an evaluation no loss is missed


CRITERIA = {"mean": nn.MSELoss(), "each": nn.MSELoss(reduction="none"), "entropy": nn.CrossEntropyLoss()}


@pytest.mark.parametrize("criterion", CRITERIA.values(), ids=CRITERIA)
def test_attach_knows_torch_s_criteria(criterion: nn.Module) -> None:
    p = torch.tensor([[0.3, -0.2]], requires_grad=True)
    optimizer = VanillaKOALA([p], alpha_r=0.0)
    optimizer.attach(criterion)
    losses = criterion(p, torch.tensor([[1.0, 0.0]]))
    losses.mean().backward()
    optimizer.step()
    wanted = losses.detach().double().square().mean().item()
    assert float(optimizer.param_groups[0]["measurement_noise"]) == pytest.approx(wanted, rel=1e-6)


# -- no loss -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [None, 1.0])
@pytest.mark.parametrize("method", METHODS)
def test_without_any_gradient_nothing_is_touched_or_asked(method: str, loss: float | None) -> None:
    parameters = start()
    optimizer = METHODS[method](parameters)
    optimizer.step(loss=backward(optimizer, parameters, 0))
    before = snapshot(optimizer, parameters)
    optimizer.zero_grad()
    optimizer.step(loss=loss)
    assert_bits(before, snapshot(optimizer, parameters))


@pytest.mark.parametrize("method", METHODS)
def test_zero_gradients_without_a_loss_are_no_step(method: str) -> None:
    """What torch.distributed.checkpoint does to make an optimizer's state exist."""
    parameters = start()
    optimizer = METHODS[method](parameters)
    optimizer.step(loss=backward(optimizer, parameters, 0))
    before = snapshot(optimizer, parameters)
    for p in parameters:
        p.grad = torch.zeros_like(p)
    optimizer.step(closure=None)
    assert_bits(before, snapshot(optimizer, parameters))


@pytest.mark.parametrize("form", ["step", "stages"])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_without_a_loss_raise_and_name_the_four_ways(method: str, form: str) -> None:
    parameters = start()
    optimizer = METHODS[method](parameters)
    backward(optimizer, parameters, 0)
    if form == "stages":
        optimizer.predict()
    before = snapshot(optimizer, parameters)
    with pytest.raises(RuntimeError) as error:
        optimizer.update(None) if form == "stages" else optimizer.step()
    for way in ("loss=", "closure", "observe", "attach"):
        assert way in str(error.value)
    assert_bits(before, snapshot(optimizer, parameters))
