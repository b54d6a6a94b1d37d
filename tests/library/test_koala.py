"""The KOALAs: paths of the references of V and M, what all keep, and the order of the two stages."""

import copy
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bits import assert_bits
from problem import (
    METHODS,
    REFERENCES,
    SHARED,
    Net,
    assert_path,
    assert_same,
    at,
    backward,
    batch_losses,
    lists,
    scalars,
    snapshot,
    start,
    vector,
)
from torch import Tensor

from fallline import KOALA, KOALAPlusPlus, MomentumKOALA, VanillaKOALA

# -- the path of the reference -----------------------------------------------------------------------------

SETTINGS: list[tuple[str, dict[str, Any]]] = [
    # the authors' programs
    ("V", {"weight_decay_mode": "reference"}),
    ("V", {"weight_decay_mode": "reference", "weight_decay": 0.02}),
    ("M", {"average_init": "zeros"}),
    ("M", {"average_init": "zeros", "weight_decay": 0.02}),
    # every other switch
    ("V", {"weight_decay": 0.02}),
    ("V", {"lr": 0.6, "sigma": 0.1, "q": 0.2, "alpha_r": 0.8}),
    ("V", {"r": 0.5}),
    ("V", {"target": 0.05, "weight_decay": 0.02}),
    ("V", {"target": lambda loss: loss - 0.3}),
    ("M", {"weight_decay": 0.02}),
    ("M", {"q_rule": "paper"}),
    ("M", {"q_rule": "paper", "average_init": "zeros"}),
    ("M", {"q_rule": "fixed", "qw": 0.05, "weight_decay": 0.02}),
    ("M", {"lr": 0.6, "sw": 0.3, "sc": 0.05, "sv": 0.2, "a": 0.5, "qw": 0.1, "qv": 0.02, "alpha_r": 0.8}),
    ("M", {"a": 0.0}),
    ("M", {"r": 0.5}),
    ("M", {"target": 0.05, "weight_decay": 0.02}),
    ("M", {"target": lambda loss: loss - 0.3}),
]


def label(value: Any) -> str:
    return ",".join(f"{k}={'f' if callable(v) else v}" for k, v in value.items()) if isinstance(value, dict) else value


@pytest.mark.parametrize("form", ["step", "stages"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("method", "settings"), SETTINGS, ids=label)
def test_path_is_the_reference_s(method: str, settings: dict[str, Any], groups: int, form: str) -> None:
    assert_path(method, settings, groups, form, steps=40)


@pytest.mark.parametrize("method", METHODS)
def test_loss_of_one_number_is_its_own_second_moment(method: str) -> None:
    """A float, a 0-D tensor, and the pair (loss, loss^2) say the same; losses one each say more."""
    ends = []
    for kind in ("float", "tensor", "pair", "vector"):
        parameters = start()
        optimizer = METHODS[method](parameters)
        for t in range(5):
            if kind == "pair":
                optimizer.predict()
            losses = backward(optimizer, parameters, t)
            loss: Any = {"float": losses.mean().item(), "vector": losses.view(2, 4)}.get(kind, losses.mean())
            if kind == "pair":
                optimizer.update(loss, loss_var=float(loss) ** 2)
            else:
                optimizer.step(loss=loss)
        with optimizer.posterior():
            ends.append(torch.cat([p.detach().flatten() for p in parameters]))
    as_float, as_tensor, as_pair, as_vector = ends
    torch.testing.assert_close(as_float, as_tensor, rtol=1e-13, atol=0)
    torch.testing.assert_close(as_pair, as_tensor, rtol=1e-10, atol=1e-12)
    assert (as_vector - as_tensor).abs().max() > 1e-3


@pytest.mark.parametrize("q_rule", ["reference", "paper", "fixed"])
def test_state_is_what_it_should_be(q_rule: str) -> None:
    parameters = start()
    momentum = MomentumKOALA(parameters, q_rule=q_rule)
    wanted = {"velocity"} if q_rule == "fixed" else {"velocity", "average"}
    assert all(set(momentum.state[p]) == wanted for p in parameters)
    vanilla = VanillaKOALA(parameters)
    assert all(not vanilla.state[p] for p in parameters)
    assert isinstance(momentum, KOALA)
    assert isinstance(vanilla, KOALA)


@pytest.mark.parametrize("average_init", ["params", "zeros"])
def test_frozen_parameters_take_no_part(average_init: str) -> None:
    """They count neither among the parameters nor in their distance from the average."""
    paths = []
    for frozen in ([], [torch.full((50,), 3.0, dtype=torch.float64)]):
        parameters = start()
        optimizer = MomentumKOALA([*parameters, *frozen], average_init=average_init)
        for t in range(6):
            optimizer.step(loss=backward(optimizer, parameters, t))
        paths.append((lists(parameters), scalars(optimizer)))
        assert all((p == 3).all() for p in frozen)
    assert paths[0] == paths[1]


@pytest.mark.parametrize("method", METHODS)
def test_a_late_group_joins_the_filter(method: str) -> None:
    parameters = start()
    optimizer = METHODS[method](parameters[:2])
    plain = REFERENCES[method](lists(parameters[:2]))
    plain.predict()
    for t in range(10):
        if t == 4:
            optimizer.add_param_group({"params": parameters[2:], "lr": 0.5})
            late = REFERENCES[method](lists(parameters[2:]), 0.5)
            for name in ("blocks", "filtered", "velocity", "average", "memory", "lr", "weight_decay"):
                getattr(plain, name, []).extend(getattr(late, name, []))
        fixed = lists(parameters[2:]) if t < 4 else []
        loss, gradients, loss_var = at(plain.blocks + fixed, t)
        losses = backward(optimizer, parameters, t)
        for p in parameters[2:]:
            p.grad = p.grad if t >= 4 else None
        plain.step(loss, gradients[: len(plain.blocks)], loss_var)
        optimizer.step(loss=losses)
        assert_same(optimizer, parameters[: len(plain.blocks)], plain)
    assert optimizer.param_groups[0]["measurement_noise"] is optimizer.param_groups[1]["measurement_noise"]


# -- the filter's identities (section 12, 1-5, 12) ------------------------------------------------------------


def feed(optimizer: KOALA, p: Tensor, gradient: Tensor, loss: float, loss_var: float | None = None) -> None:
    """One predict and one update with made-up numbers."""
    optimizer.predict()
    p.grad = gradient.to(p.dtype)
    optimizer.update(loss, loss_var)


@pytest.mark.parametrize("method", SHARED)
def test_closed_forms_are_the_matrix_form(method: str) -> None:
    """Norms and losses over ten orders of magnitude; the covariance stays one."""
    torch.manual_seed(0)
    parameters = [torch.zeros(n, dtype=torch.float64, requires_grad=True) for n in (3, 5)]
    optimizer = METHODS[method](parameters, r=1e-2)
    plain = REFERENCES[method](lists(parameters), r=1e-2)
    for _ in range(60):
        plain.predict()
        optimizer.predict()
        for p in parameters:
            p.grad = torch.randn_like(p) * 10 ** (4 * torch.rand(()).item() - 3)
        loss = 10 ** (6 * torch.rand(()).item() - 3)
        plain.update(loss, lists([p.grad for p in parameters]))
        optimizer.update(loss)
        assert_same(optimizer, parameters, plain, rel=1e-7)  # the matrix form cancels: 1e-16 P |h|^2 / R
        if method == "M":
            now = scalars(optimizer)
            assert now["p11"] > 0
            assert now["p22"] > 0
            assert now["p12"] ** 2 <= now["p11"] * now["p22"] * (1 + 1e-12)


@pytest.mark.parametrize("method", SHARED)
def test_covariance_is_right_where_the_printed_difference_cancels(method: str) -> None:
    """R = 1e-12 P |h|^2: P - P^2 |h|^2/S has four digits in double precision, P R/S has all."""
    p = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = METHODS[method]([p], r=1e-6, **({"sc": 0.05} if method == "M" else {}))
    optimizer.predict()
    prior = scalars(optimizer)
    p.grad = vector([600.0, 800.0])
    optimizer.update(0.0)
    for name in {"V": ["covariance"], "M": ["p11", "p12"]}[method]:
        variance = prior["covariance" if method == "V" else "p11"]
        wanted = prior[name] * 1e-6 / (variance * 1e6 + 1e-6)
        assert scalars(optimizer)[name] == pytest.approx(wanted, rel=1e-12, abs=0)


@pytest.mark.parametrize("method", SHARED)
def test_on_one_weight_it_is_the_textbook_filter(method: str) -> None:
    """Nothing is approximated for one weight and a linear loss: compare with the Kalman filter's five equations."""
    torch.manual_seed(1)
    r = 0.3
    if method == "V":
        p = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
        optimizer: KOALA = VanillaKOALA([p], sigma=0.4, q=0.2, r=r, target=0.0)
        F, Q, P = torch.eye(1).double(), 0.2 * torch.eye(1).double(), 0.4 * torch.eye(1).double()
        state = vector([0.7])
    else:
        p = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
        optimizer = MomentumKOALA([p], sw=0.4, sc=0.1, sv=0.3, a=0.8, qw=0.2, qv=0.05, r=r, q_rule="fixed", target=0.0)
        F = torch.tensor([[1.0, 1.0], [0.0, 0.8]], dtype=torch.float64)
        Q = torch.diag(vector([0.2, 0.05]))
        P = torch.tensor([[0.4, 0.1], [0.1, 0.3]], dtype=torch.float64)
        state = vector([0.7, 0.0])
    eye = torch.eye(len(P), dtype=torch.float64)
    for _ in range(40):
        slope, intercept = torch.randn(2, dtype=torch.float64)
        state, P = F @ state, F @ P @ F.T + Q
        H = slope * eye[:1]
        S = H @ P @ H.T + r
        K = P @ H.T / S
        state = state + (K * (0 - (slope * state[0] + intercept))).flatten()
        P = (eye - K @ H) @ P

        optimizer.predict()
        loss = slope * p.detach() + intercept
        p.grad = slope.reshape(1)
        optimizer.update(loss.squeeze())
        assert p.item() == pytest.approx(state[0].item(), rel=1e-9)
        wanted = [P[0, 0]] if method == "V" else [P[0, 0], P[0, 1], P[1, 1]]
        assert list(scalars(optimizer).values())[: len(wanted)] == pytest.approx([w.item() for w in wanted], rel=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_the_scale_of_the_loss_cancels(method: str) -> None:
    """Loss and gradient times c, their squares times c^2: the same path and covariance, if R starts at c^2."""
    ends = []
    for c in (1.0, 700.0):
        parameters = start()
        optimizer = METHODS[method](parameters)
        optimizer.param_groups[0]["measurement_noise"].fill_(c**2)
        for t in range(20):
            optimizer.zero_grad()
            losses = c * batch_losses(parameters, t)
            losses.mean().backward()
            optimizer.step(loss=losses)
        numbers = scalars(optimizer)
        for name in numbers:
            if name == "measurement_noise" or name.startswith("S"):  # R and S are squares of losses
                numbers[name] /= c**2
        ends.append((torch.cat([p.detach().flatten() for p in parameters]), numbers))
    torch.testing.assert_close(ends[0][0], ends[1][0], rtol=1e-9, atol=1e-12)
    assert ends[0][1] == pytest.approx(ends[1][1], rel=1e-9)


def test_no_block_moves_further_than_the_trust_region() -> None:
    """|step of a block| <= lr L sqrt(P/R)/2 for every gradient, and that much where P |h|^2 = R."""
    lr, loss, P, R = 0.7, 0.4, 2.0, 0.09
    reached = math.sqrt(R / P)
    bound = lr * loss * math.sqrt(P / R) / 2
    lengths = []
    for norm in (1e-6, 1e-2, 0.5 * reached, reached, 2 * reached, 10.0, 1e5):
        p = torch.zeros(4, dtype=torch.float64, requires_grad=True)
        optimizer = VanillaKOALA([p], lr, sigma=1.5, q=0.5, r=R)
        feed(optimizer, p, torch.full((4,), norm / 2), loss)
        lengths.append(p.detach().norm().item())
    assert max(lengths) == lengths[3] == pytest.approx(bound, rel=1e-9)
    assert lengths[0] < 1e-4 * bound > lengths[-1]


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_without_velocity_m_is_v(weight_decay: float) -> None:
    ours, theirs = start(), start()
    m = MomentumKOALA(ours, sw=0.5, sc=0.0, sv=0.0, qw=0.3, qv=0.0, q_rule="fixed", weight_decay=weight_decay)
    v = VanillaKOALA(theirs, sigma=0.5, q=0.3, weight_decay=weight_decay)
    for t in range(20):
        m.step(loss=backward(m, ours, t))
        v.step(loss=backward(v, theirs, t))
        assert float(m.param_groups[0]["p11"]) == pytest.approx(float(v.param_groups[0]["covariance"]), rel=1e-12)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("method", "settings", "shrinks"),
    [
        ("V", {}, True),
        ("M", {}, True),
        ("++", {}, True),
        ("V", {"weight_decay_mode": "reference"}, False),  # the defect of the authors' program, kept for comparison
    ],
)
def test_weight_decay_shrinks_a_weight_without_gradient(method: str, settings: dict[str, Any], shrinks: bool) -> None:
    p = torch.tensor([2.0, 1.0], dtype=torch.float64, requires_grad=True)
    optimizer = METHODS[method]([p], weight_decay=0.1, **settings)
    feed(optimizer, p, vector([0.0, 0.5]), 0.3)
    assert (p[0] < 2).item() is shrinks
    assert p[0] > 1.5


# -- edge cases (sections 10.3, 10.4) ----------------------------------------------------------------------


@pytest.mark.parametrize("form", ["step", "stages"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("missing", ["none", "zero", "tiny", "all zero"])
def test_missing_gradients_follow_the_reference(missing: str, method: str, form: str) -> None:
    """Every third step a block has no gradient, a vanishing one, or all of them have.

    Without a gradient a block takes no part in `step`; `predict` moves it by its velocity all the same. With a gradient
    below 1e-9 it is predicted, not updated, weight decay included, and has no say in the covariance.
    """
    parameters = start()
    settings = {"weight_decay": 0.02}
    optimizer = METHODS[method](parameters, **settings)
    plain = REFERENCES[method](lists(parameters), **settings)
    for t in range(20):
        if t == 0 or form == "stages":
            plain.predict()
        if form == "stages":
            optimizer.predict()
        loss, found, loss_var = at(plain.blocks, t)
        losses = backward(optimizer, parameters, t)
        gradients: list[list[float] | None] = [*found]
        for i in (range(4) if missing == "all zero" else [t % 4]) if t % 3 == 2 else []:
            if missing == "none":
                parameters[i].grad = gradients[i] = None
            else:
                value = 4e-10 / len(found[i]) if missing == "tiny" else 0.0
                parameters[i].grad = torch.full_like(parameters[i], value)
                gradients[i] = [value] * len(found[i])
        if form == "stages":
            plain.update(loss, gradients, loss_var)
            optimizer.update(losses)
        else:
            plain.step(loss, gradients, loss_var)
            optimizer.step(loss=losses)
        assert_same(optimizer, parameters, plain)


@pytest.mark.parametrize("method", METHODS)
def test_a_gradient_just_long_enough_is_used(method: str) -> None:
    for length, moved in ((0.9e-9, False), (1.1e-9, True)):
        p = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        feed(METHODS[method]([p], r=1e-20), p, vector([length]), 1.0)
        assert (p.item() != 0) is moved


@pytest.mark.parametrize("method", METHODS)
def test_a_zero_loss_moves_nothing_and_contracts_the_covariance(method: str) -> None:
    p = torch.ones(2, dtype=torch.float64, requires_grad=True)
    optimizer = METHODS[method]([p])
    optimizer.predict()
    before = scalars(optimizer)
    p.grad = vector([3.0, 4.0])
    optimizer.update(0.0)
    after = scalars(optimizer)
    assert p.tolist() == [1.0, 1.0]
    assert after["measurement_noise"] == pytest.approx(0.9)
    if method in SHARED:
        name = "covariance" if method == "V" else "p11"
        assert after[name] == pytest.approx(before[name] * 0.9 / (25 * before[name] + 0.9), rel=1e-12)
    else:  # from sigma = q = 1 by the virtual measurement
        product = optimizer.state[p]["product"]
        torch.testing.assert_close(product, 2 * 0.9 / (25 * 2 + 0.9) * p.grad, rtol=1e-12, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_that_stays_zero_breaks_nothing(method: str) -> None:
    """R decays to nothing; with and without gradients the numbers stay finite, and a loss moves the weights again."""
    p = torch.ones(2, dtype=torch.float64, requires_grad=True)
    optimizer = METHODS[method]([p], alpha_r=0.5, target=0.0)
    for t in range(1200):  # 0.5^t underflows after 1075
        p.grad = vector([3.0, 4.0]) if t % 2 else torch.zeros(2, dtype=torch.float64)
        optimizer.step(loss=0.0)
    assert all(math.isfinite(x) and x >= 0 for x in scalars(optimizer).values())
    assert scalars(optimizer)["measurement_noise"] > 0
    assert p.tolist() == [1.0, 1.0]
    p.grad = vector([3.0, 4.0])
    optimizer.step(loss=1.0)
    assert p.isfinite().all()
    assert (p < 1).all()


@pytest.mark.parametrize("method", METHODS)
def test_without_measurement_noise_it_is_a_polyak_step(method: str) -> None:
    """r = 0: x steps by lr L h/|h|^2, and the covariance is what the next prediction adds."""
    p = torch.tensor([1.0, -1.0], dtype=torch.float64, requires_grad=True)
    optimizer = METHODS[method]([p], 0.5, r=0.0)
    feed(optimizer, p, vector([3.0, 4.0]), 2.0)
    torch.testing.assert_close(p.detach(), vector([1 - 0.5 * 2 * 3 / 25, -1 - 0.5 * 2 * 4 / 25]), rtol=1e-12, atol=0)
    if method == "++":
        assert optimizer.state[p]["product"].tolist() == pytest.approx([0, 0], abs=1e-25)
    else:
        assert scalars(optimizer)["covariance" if method == "V" else "p11"] == pytest.approx(0, abs=1e-25)
    optimizer.predict()
    if method == "V":
        assert scalars(optimizer)["covariance"] == pytest.approx(1.0)
    p.grad = torch.zeros_like(p)  # no noise and no gradient together: 0/0 in the closed form
    optimizer.update(2.0)
    assert all(math.isfinite(x) for x in scalars(optimizer).values())
    assert p.isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_below_its_target_rises_to_it(method: str) -> None:
    p = torch.tensor([0.3, 0.1], dtype=torch.float64, requires_grad=True)
    optimizer = METHODS[method]([p], 0.2, target=0.8, r=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        optimizer.step(loss=loss)
    assert loss.item() == pytest.approx(0.8, rel=1e-3)


BROKEN_LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "loss nan": lambda losses: losses * math.nan,
    "loss inf": lambda losses: losses + math.inf,
    "one example inf": lambda losses: torch.cat([losses, vector([-math.inf])]),
    "loss whose square overflows": lambda losses: losses + 1e200,
}
BROKEN_GRADIENTS: dict[str, Callable[[list[Tensor]], Tensor]] = {
    "gradient nan": lambda gradients: gradients[2].view(-1)[1].fill_(math.nan),
    "gradient inf": lambda gradients: gradients[3].fill_(-math.inf),
    "norm whose square overflows": lambda gradients: gradients[0].mul_(1e160),
}
BROKEN = [*BROKEN_LOSSES, *BROKEN_GRADIENTS]


def spoil(broken: str, parameters: list[Tensor], losses: Tensor) -> Tensor:
    """Make the loss or a gradient non-finite; returns the losses."""
    if broken in BROKEN_LOSSES:
        return BROKEN_LOSSES[broken](losses)
    BROKEN_GRADIENTS[broken]([p.grad for p in parameters])
    return losses


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("method", METHODS)
def test_a_nonfinite_step_changes_nothing(method: str, broken: str) -> None:
    parameters = start()
    optimizer = METHODS[method](parameters, weight_decay=0.02)
    for t in range(4):
        optimizer.step(loss=backward(optimizer, parameters, t))
    before = snapshot(optimizer, parameters)
    losses = spoil(broken, parameters, backward(optimizer, parameters, 4))
    optimizer.step(loss=losses)
    assert_bits(before, snapshot(optimizer, parameters))
    assert int(optimizer.skipped) == 1
    assert optimizer.skipped.dtype == torch.int64
    optimizer.step(loss=backward(optimizer, parameters, 5))
    assert not torch.equal(before[0], parameters[0])
    assert all(p.isfinite().all() for p in parameters)
    assert int(optimizer.skipped) == 1


def test_a_norm_that_overflows_float32_counts_as_nonfinite() -> None:
    parameters = start(dtype=torch.float32)
    optimizer = MomentumKOALA(parameters)
    losses = backward(optimizer, parameters, 0)
    parameters[1].grad.fill_(1e25)
    before = snapshot(optimizer, parameters)
    optimizer.step(loss=losses)
    assert_bits(before, snapshot(optimizer, parameters))
    assert int(optimizer.skipped) == 1


@pytest.mark.parametrize("broken", [*BROKEN, "loss_var nan"])
@pytest.mark.parametrize("method", METHODS)
def test_a_failed_update_leaves_its_prediction_standing(method: str, broken: str) -> None:
    """As if nothing had been measured: weights and covariance stay where `predict` put them."""
    parameters = start()
    optimizer = METHODS[method](parameters)
    plain = REFERENCES[method](lists(parameters))
    for t in range(8):
        plain.predict()
        optimizer.predict()
        losses = backward(optimizer, parameters, t)
        if t == 4:
            before = [*map(torch.clone, parameters)], scalars(optimizer)
            losses = losses if broken == "loss_var nan" else spoil(broken, parameters, losses)
            optimizer.update(losses, **({"loss_var": math.nan} if broken == "loss_var nan" else {}))
            assert_bits(before[0], parameters)
            assert before[1] == scalars(optimizer)
        else:
            plain.update(*at(plain.blocks, t))
            optimizer.update(losses)
        assert_same(optimizer, parameters, plain)
    assert int(optimizer.skipped) == 1


# -- the two forms -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_calls_out_of_order_raise(method: str) -> None:
    parameters = start()
    optimizer = METHODS[method](parameters)
    losses = backward(optimizer, parameters, 0)
    with pytest.raises(RuntimeError, match="predict"):
        optimizer.update(losses)
    optimizer.predict()
    with pytest.raises(RuntimeError, match="predict"):
        optimizer.predict()
    optimizer.update(losses)
    with pytest.raises(RuntimeError, match="predict"):
        optimizer.update(losses)
    before = snapshot(optimizer, parameters)
    with pytest.raises(RuntimeError, match="predict"):
        optimizer.step(loss=losses)
    assert_bits(before, snapshot(optimizer, parameters))


@pytest.mark.parametrize("method", METHODS)
def test_the_forms_may_take_turns(method: str) -> None:
    """`predict` after `step` finds its prediction made: it moves nothing."""
    parameters = start()
    optimizer = METHODS[method](parameters)
    plain = REFERENCES[method](lists(parameters))
    for t in range(12):
        plain.predict()
        plain.update(*at(plain.blocks, t))
        staged = t % 4 in (1, 2)
        if staged:
            before = snapshot(optimizer, parameters)
            optimizer.predict()
            if t % 4 == 1:  # after a step
                assert_bits(before[: len(parameters)], parameters)
            optimizer.update(backward(optimizer, parameters, t))
        else:
            if t % 4 == 3:  # after an update
                optimizer.predict()
            optimizer.step(loss=backward(optimizer, parameters, t))
        with optimizer.posterior():
            for mine, wanted in zip(lists(parameters), plain.blocks, strict=True):
                assert mine == pytest.approx(wanted, rel=1e-10, abs=1e-12)


def test_the_filtered_point_is_that_of_the_two_stages() -> None:
    """After `step`, and between `predict` and `update`, eval goes back by the velocity."""
    parameters, staged = start(), start()
    optimizer, two_stage = MomentumKOALA(parameters), MomentumKOALA(staged)
    moved = 0.0
    for t in range(10):
        optimizer.step(loss=backward(optimizer, parameters, t))
        two_stage.predict()
        two_stage.update(backward(two_stage, staged, t))
        if t == 7:
            optimizer.predict()
        optimizer.eval()
        for mine, wanted in zip(parameters, staged, strict=True):
            torch.testing.assert_close(mine, wanted, rtol=1e-12, atol=1e-13)
        optimizer.train()
        if t == 7:
            optimizer.update(backward(optimizer, parameters, t))
            two_stage.predict()
            two_stage.update(backward(two_stage, staged, t))
            two_stage.eval()  # there already
            for mine, wanted in zip(parameters, staged, strict=True):
                torch.testing.assert_close(mine, wanted, rtol=1e-12, atol=1e-13)
            two_stage.train()
            optimizer.predict()
        moved += sum(optimizer.state[p]["velocity"].abs().sum().item() for p in parameters)
    assert moved > 0.1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", ["eval", "posterior"])
def test_back_from_the_filtered_point_bit_for_bit(how: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    p = torch.randn(1000).to(dtype).requires_grad_()
    optimizer = MomentumKOALA([p])
    optimizer.state[p]["velocity"].copy_(torch.randn(1000))
    p.grad = torch.randn(1000).to(dtype)
    optimizer.step(loss=3.0)
    resting = snapshot(optimizer, [p])
    if how == "posterior":
        with optimizer.posterior():
            filtered = p.detach().clone()
    else:
        optimizer.eval()
        optimizer.eval()  # twice is once
        filtered = p.detach().clone()
        optimizer.train()
        optimizer.train()
    assert_bits(resting, snapshot(optimizer, [p]))
    assert not torch.equal(filtered, p)
    if dtype == torch.bfloat16:  # adding the velocity again would not do: the way there was rounded
        assert not torch.equal((filtered.float() + optimizer.state[p]["velocity"]).to(dtype), p)


def test_the_posterior_comes_back_after_an_exception_and_nests_in_eval() -> None:
    parameters = start()
    optimizer = MomentumKOALA(parameters)
    for t in range(3):
        optimizer.step(loss=backward(optimizer, parameters, t))
    resting = snapshot(optimizer, parameters)
    with pytest.raises(KeyError), optimizer.posterior():
        raise KeyError
    assert_bits(resting, snapshot(optimizer, parameters))
    optimizer.eval()
    filtered = [p.detach().clone() for p in parameters]
    with optimizer.posterior():
        assert_bits(filtered, [p.detach() for p in parameters])
    assert_bits(filtered, [p.detach() for p in parameters])
    optimizer.train()
    assert_bits(resting, snapshot(optimizer, parameters))


def test_a_group_may_join_at_the_filtered_point() -> None:
    parameters, late = start(), torch.ones(2, dtype=torch.float64, requires_grad=True)
    optimizer = MomentumKOALA(parameters)
    for t in range(3):
        optimizer.step(loss=backward(optimizer, parameters, t))
    resting = [p.detach().clone() for p in parameters]
    optimizer.eval()
    optimizer.add_param_group({"params": [late]})
    optimizer.train()
    assert_bits([*resting, torch.ones_like(late)], [*parameters, late])
    optimizer.step(loss=backward(optimizer, parameters, 3))


def test_training_at_the_filtered_point_is_refused() -> None:
    """A gradient taken there belongs to another point than the covariance: say so instead of going on."""
    parameters = start()
    optimizer = MomentumKOALA(parameters)
    optimizer.step(loss=backward(optimizer, parameters, 0))
    optimizer.eval()
    losses = backward(optimizer, parameters, 1)
    for call in (lambda: optimizer.step(loss=losses), lambda: optimizer.predict()):
        with pytest.raises(RuntimeError, match="train"):
            call()


@pytest.mark.parametrize("method", ["V", "++"])
def test_without_velocity_the_filtered_point_is_the_point(method: str) -> None:
    parameters = start()
    optimizer = METHODS[method](parameters)
    for t in range(3):
        optimizer.step(loss=backward(optimizer, parameters, t))
        before = snapshot(optimizer, parameters)
        with optimizer.posterior():
            assert_bits(before[:4], [p.detach() for p in parameters])
        optimizer.eval()
        assert_bits(before, snapshot(optimizer, parameters))
        optimizer.step(loss=backward(optimizer, parameters, t))
        optimizer.train()


@pytest.mark.parametrize("moment", ["predicted", "updated", "stepped", "eval"])
@pytest.mark.parametrize("method", METHODS)
def test_resuming_continues_bit_for_bit(method: str, moment: str, tmp_path: Path) -> None:
    """Saved between predict and update, after a bare update, after a step, and at the filtered point."""

    def go_on(optimizer: KOALA, parameters: list[Tensor]) -> None:
        if moment == "predicted":
            optimizer.update(backward(optimizer, parameters, 5))
        if moment == "eval":
            optimizer.train()
        for t in range(6, 12):
            if moment in ("stepped", "eval"):
                optimizer.step(loss=backward(optimizer, parameters, t))
            else:
                optimizer.predict()
                optimizer.update(backward(optimizer, parameters, t))

    parameters = start()
    ours = METHODS[method](parameters, weight_decay=0.01)
    for t in range(5):
        if moment in ("stepped", "eval"):
            ours.step(loss=backward(ours, parameters, t))
        else:
            ours.predict()
            ours.update(backward(ours, parameters, t))
    if moment == "predicted":
        ours.predict()
    elif moment == "eval":
        ours.eval()
    torch.save({"p": [p.detach() for p in parameters], "o": ours.state_dict()}, tmp_path / "checkpoint.pt")
    go_on(ours, parameters)

    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    others = start(seed=1)
    resumed = METHODS[method](others, weight_decay=0.01)
    with torch.no_grad():
        for p, value in zip(others, saved["p"], strict=True):
            p.copy_(value)
    resumed.load_state_dict(saved["o"])
    go_on(resumed, others)
    assert_bits(snapshot(ours, parameters), snapshot(resumed, others))
    if moment == "predicted":
        resumed.load_state_dict(saved["o"])
        with pytest.raises(RuntimeError, match="predict"):
            resumed.predict()


@pytest.mark.parametrize("method", METHODS)
def test_schedulers_do_not_warn_after_update(method: str) -> None:
    parameters = start()
    optimizer = METHODS[method](parameters)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    optimizer.predict()
    optimizer.update(backward(optimizer, parameters, 0))
    scheduler.step()  # warnings are errors
    assert optimizer.param_groups[0]["lr"] == 0.5

    unused = METHODS[method](start())
    scheduler = torch.optim.lr_scheduler.StepLR(unused, 1)
    with pytest.warns(UserWarning, match="lr_scheduler.step"):  # the warning that does not come above
        scheduler.step()


# -- maximize and target -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_maximize_refuses_the_target_zero(method: str) -> None:
    with pytest.raises(ValueError, match="target"):
        METHODS[method](start(), maximize=True, target=0.0)


@pytest.mark.parametrize(
    ("target", "negated"),
    [(2.0, -2.0), (lambda gain: gain + 0.5, lambda loss: loss - 0.5)],
    ids=["number", "function"],
)
@pytest.mark.parametrize("form", ["step", "stages"])
@pytest.mark.parametrize("method", METHODS)
def test_maximizing_is_minimizing_the_negative(method: str, form: str, target: Any, negated: Any) -> None:
    """The target is in the caller's terms: the value wanted of what is maximized."""
    ours, theirs = start(), start()
    up = METHODS[method](ours, maximize=True, target=target, weight_decay=0.02)
    down = METHODS[method](theirs, target=negated, weight_decay=0.02)
    for t in range(8):
        for optimizer, parameters, sign in ((up, ours, 1), (down, theirs, -1)):
            if form == "stages":
                optimizer.predict()
            optimizer.zero_grad()
            gains = sign * (1 - batch_losses(parameters, t))
            gains.mean().backward()
            if form == "stages":
                optimizer.update(gains)
            else:
                optimizer.step(loss=gains)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-15)
    assert not torch.equal(ours[0], start()[0])


def test_a_target_function_is_given_the_loss() -> None:
    seen: list[Any] = []

    def target(loss: Tensor) -> Tensor:
        seen.append(loss)
        return 0.5 * loss

    parameters = start()
    optimizer = VanillaKOALA(parameters, target=target)
    losses = backward(optimizer, parameters, 0)
    optimizer.step(loss=losses)
    assert len(seen) == 1
    assert isinstance(seen[0], Tensor)
    assert seen[0].shape == ()
    assert float(seen[0]) == pytest.approx(losses.mean().item())
    halved = start()
    same = VanillaKOALA(halved, 0.5, r=float(optimizer.param_groups[0]["measurement_noise"]))
    same.step(loss=backward(same, halved, 0))  # target (1 - e) L is lr = e
    for a, b in zip(parameters, halved, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


# -- following a model ---------------------------------------------------------------------------------------------


def follow_steps(net: Net, optimizer: MomentumKOALA, times: range) -> None:
    for t in times:
        net.train()
        optimizer.zero_grad()
        losses = net(t)
        losses.mean().backward()
        optimizer.step(loss=losses.detach())


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("between", ["step and forward", "backward and step"])
def test_a_followed_model_is_evaluated_at_the_filtered_point_and_trained_as_ever(context: Any, between: str) -> None:
    nets, seen = (Net(), Net()), []
    straight, followed = (MomentumKOALA(net.parameters()) for net in nets)
    followed.follow(nets[1])
    for t in range(6):
        follow_steps(nets[0], straight, range(t, t + 1))
        with straight.posterior(), torch.no_grad():
            wanted = nets[0](100)
        nets[1].train()
        followed.zero_grad()
        losses = nets[1](t)
        losses.mean().backward()
        if between == "backward and step" and t:  # the step comes back by itself
            with context():
                assert torch.equal(nets[1].eval()(100), seen[-1])
        followed.step(loss=losses.detach())
        assert_bits([*nets[0].blocks], [*nets[1].blocks])
        with context():
            seen.append(nets[1].eval()(100).clone())
        assert torch.equal(seen[-1], wanted)
        assert not torch.equal(nets[1].blocks[0], nets[0].blocks[0])
    with torch.no_grad():
        nets[1].train()(100)  # in training mode, such as for the statistics of a batch norm
    assert_bits([*nets[0].blocks], [*nets[1].blocks])


def test_a_model_trained_in_eval_mode_is_followed_too() -> None:
    """As one fine-tunes with frozen batch norms: gradients say that it is training."""
    net, twin = Net(), Net()
    one, two = MomentumKOALA(net.parameters()), MomentumKOALA(twin.parameters())
    two.follow(twin)
    for t in range(4):
        for model, optimizer in ((net, one), (twin.eval(), two)):
            optimizer.zero_grad()
            losses = model(t)
            losses.mean().backward()
            optimizer.step(loss=losses.detach())
    assert_bits([*net.blocks], [*twin.blocks])


def test_what_is_saved_after_an_evaluation_goes_on_equal() -> None:
    net, twin = Net(), Net()
    straight, first = MomentumKOALA(net.parameters()), MomentumKOALA(twin.parameters())
    follow_steps(net, straight, range(6))
    first.follow(twin)
    follow_steps(twin, first, range(3))
    with torch.no_grad():
        twin.eval()(100)
    saved = copy.deepcopy((twin.state_dict(), first.state_dict()))
    for brings_copies in (True, False):
        again = Net()
        resumed = MomentumKOALA(again.parameters())
        again.load_state_dict(saved[0])
        if not brings_copies:  # the loader of a distributed checkpoint brings what the optimizer had asked for
            for state in saved[1]["state"].values():
                del state["predicted"]
        resumed.load_state_dict(saved[1])
        resumed.follow(again)
        follow_steps(again, resumed, range(3, 6))
        if brings_copies:
            assert_bits([*net.blocks], [*again.blocks])
        else:
            for p, q in zip(net.blocks, again.blocks, strict=True):
                torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_of_a_followed_model_are_not_followed(copied: Any) -> None:
    net = Net()
    optimizer = MomentumKOALA(net.parameters())
    handle = optimizer.follow(net)
    follow_steps(net, optimizer, range(3))
    twin = copied(net)
    with torch.no_grad():
        twin.eval()(100)
        assert_bits([*net.blocks], [*twin.blocks])
        assert not optimizer.param_groups[0]["evaluating"]
        handle.remove()
        net.eval()(100)
    assert not optimizer.param_groups[0]["evaluating"]


@pytest.mark.parametrize("cls", [VanillaKOALA, KOALAPlusPlus])
def test_a_method_with_one_point_stays_there(cls: type[KOALA]) -> None:
    net = Net()
    optimizer = cls(net.parameters())
    optimizer.follow(net)
    follow_steps(net, optimizer, range(2))
    before = [p.detach().clone() for p in net.blocks]
    with torch.no_grad():
        net.eval()(100)
    assert_bits(before, [p.detach() for p in net.blocks])


@pytest.mark.parametrize("when", ["training", "evaluating"])
def test_weights_that_a_followed_model_loads_are_evaluated_as_they_are(when: str) -> None:
    """As after training, when the best of a run is loaded and tested; training goes on from there."""
    net = Net()
    optimizer = MomentumKOALA(net.parameters())
    optimizer.follow(net)
    follow_steps(net, optimizer, range(3))
    with torch.no_grad():
        net.eval()(100)
        best = copy.deepcopy(net.state_dict())
    follow_steps(net, optimizer, range(3, 6))
    if when == "evaluating":
        with torch.no_grad():
            net.eval()(100)
    net.load_state_dict(best)
    with torch.no_grad():
        net.eval()(100)
        optimizer.eval()  # transformers' Trainer says it too
        assert_bits([p.detach() for p in net.blocks], list(best.values()))
        optimizer.train()
        assert_bits([p.detach() for p in net.blocks], list(best.values()))
    follow_steps(net, optimizer, range(6, 7))
    with torch.no_grad():
        before = [p.detach().clone() for p in net.blocks]
        net.eval()(100)
    assert not torch.equal(before[0], net.blocks[0])


@pytest.mark.parametrize("first", ["model", "optimizer"])
def test_resuming_a_followed_model_needs_no_order(first: str) -> None:
    net, twin = Net(), Net()
    straight, resumed = MomentumKOALA(net.parameters()), MomentumKOALA(twin.parameters())
    for model, optimizer in ((net, straight), (twin, resumed)):
        optimizer.follow(model)
        follow_steps(model, optimizer, range(3))
    with torch.no_grad():
        net.eval()(100)
    saved = copy.deepcopy((net.state_dict(), straight.state_dict()))
    follow_steps(net, straight, range(3, 6))
    follow_steps(twin, resumed, range(10, 12))  # somewhere else
    loads = [lambda: twin.load_state_dict(saved[0]), lambda: resumed.load_state_dict(saved[1])]
    for load in loads if first == "model" else reversed(loads):
        load()
    follow_steps(twin, resumed, range(3, 6))
    assert_bits([*net.blocks], [*twin.blocks])


@pytest.mark.parametrize("follows", [False, True])
def test_a_parameter_may_thaw_while_the_others_are_at_the_filtered_point(follows: bool) -> None:
    net = Net()
    net.blocks[0].requires_grad_(False)
    optimizer = MomentumKOALA(net.parameters())
    if follows:
        optimizer.follow(net)
    follow_steps(net, optimizer, range(3))
    before = [p.detach().clone() for p in net.blocks]
    with torch.no_grad():
        net.eval()(100)
    if not follows:
        optimizer.eval()
    net.blocks[0].requires_grad_()
    net.blocks[0].grad = torch.ones_like(net.blocks[0])
    if follows:
        optimizer.step(loss=1.0)
        assert not torch.equal(before[0], net.blocks[0])
    else:
        with pytest.raises(RuntimeError, match=r"call train\(\) first"):
            optimizer.step(loss=1.0)
        optimizer.train()
        assert_bits([p.detach() for p in net.blocks], before)


def test_training_may_begin_with_everything_frozen() -> None:
    """As one unfreezes layer by layer: the process noise of no weights is no NaN."""
    p = torch.ones(2, dtype=torch.float64)
    optimizer = MomentumKOALA([p])
    p.requires_grad_()
    for _ in range(3):
        p.grad = p.detach().clone()
        optimizer.step(loss=0.5)
    assert p.isfinite().all()
    assert optimizer.covariance.isfinite().all()
    assert optimizer.skipped == 0
