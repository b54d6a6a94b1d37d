"""KOALA++: the path of its reference, the least-norm covariance in it, its start, and its safeguard."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from bits import assert_bits
from problem import (
    assert_path,
    assert_same,
    at,
    backward,
    lists,
    scalars,
    snapshot,
    start,
    vector,
)
from torch import Tensor

from fallline import KOALA, KOALAPlusPlus, VanillaKOALA
from reference.koala import matmul, transpose
from reference.koala_pp import PlusPlus, least_norm

VARIANTS = pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "vanilla"])

# -- the matrices of the reference -------------------------------------------------------------------------


@VARIANTS
@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_least_norm_is_what_it_says(n: int, symmetric: bool) -> None:
    """It has the product, it is symmetric where it should be, and every other matrix of its kind is larger."""
    H, v = torch.randn(2, n, dtype=torch.float64).tolist()
    rows = least_norm(H, v, symmetric=symmetric)
    assert matmul([H], rows)[0] == pytest.approx(v, rel=1e-12, abs=1e-14)
    if symmetric:
        assert rows == transpose(rows)
    P, h = vector(rows), vector(H)
    off = torch.eye(n, dtype=torch.float64) - torch.outer(h, h) / h.square().sum()
    for _ in range(50 if n > 1 else 0):
        step = torch.randn(n, n, dtype=torch.float64)
        other = P + (off @ (step + step.T) @ off if symmetric else off @ step)
        assert (h @ other).tolist() == pytest.approx(v, rel=1e-9, abs=1e-12)
        assert other.norm() > P.norm()


def test_the_symmetric_matrix_is_the_larger_one() -> None:
    """Both kinds agree where v is parallel to H; else symmetry costs norm, so that the two methods differ."""
    H = [1.0, -2.0, 0.5]
    for v, same in (([3 * x for x in H], True), ([0.3, 1.0, 1.0], False)):
        two = [vector(least_norm(H, v, symmetric=s)) for s in (True, False)]
        assert torch.allclose(*two, rtol=1e-12) is same
        assert (two[0].norm() > two[1].norm() * (1 + 1e-9)).item() is not same


# -- the path ----------------------------------------------------------------------------------------------

SETTINGS: list[dict[str, Any]] = [
    {},
    {"symmetric": False},
    {"sigma": 0.1, "q": 0.1, "weight_decay": 5e-4},  # the authors' experiments
    {"lr": 2.0, "sigma": 0.2, "q": 0.2, "weight_decay": 1e-4},
    {"sigma": 0.1, "q": 0.1, "symmetric": False},
    # every other switch
    {"weight_decay": 0.02},
    {"weight_decay": 0.02, "symmetric": False},
    {"lr": 0.6, "sigma": 0.3, "q": 0.02, "alpha_r": 0.8},
    {"sigma": 0.5, "q": 0.0},
    {"sigma": 0.0},
    {"r": 0.5},
    {"r": 0.5, "symmetric": False},
    {"target": 0.05, "weight_decay": 0.02},
    {"target": lambda loss: loss - 0.3},
]


def label(value: Any) -> str | None:
    return ",".join(f"{k}={'f' if callable(v) else v}" for k, v in value.items()) if isinstance(value, dict) else None


@pytest.mark.parametrize(("groups", "form"), [(1, "stages"), (2, "step")])
@pytest.mark.parametrize("settings", SETTINGS, ids=label)
def test_path_is_the_reference_s(settings: dict[str, Any], groups: int, form: str) -> None:
    """30 steps in float64: weights, R, and v, H, S of every block, to 1e-9."""
    assert_path("++", settings, groups, form, steps=30)


@VARIANTS
def test_a_loss_var_of_zero_is_accepted(symmetric: bool) -> None:
    """The authors' language model measures without noise: R = 0.9^k."""
    parameters = start()
    optimizer = KOALAPlusPlus(parameters, 0.05, sigma=0.1, q=0.1, symmetric=symmetric)
    plain = PlusPlus(lists(parameters), 0.05, sigma=0.1, q=0.1, symmetric=symmetric)
    for t in range(30):
        loss, gradients, _ = at(plain.blocks, t)
        optimizer.predict()
        optimizer.update(backward(optimizer, parameters, t).mean(), loss_var=0.0)
        plain.update(loss, gradients, loss_var=0.0)
        assert_same(optimizer, parameters, plain)
    assert float(optimizer.measurement_noise) == pytest.approx(0.9**30, rel=1e-12)


@pytest.mark.parametrize("name", ["sigma", "q", "symmetric"])
def test_groups_may_differ(name: str) -> None:
    """Blocks are independent but for R: two groups with settings of their own are two optimizers."""
    values = {"sigma": (0.3, 2.0), "q": (0.1, 0.5), "symmetric": (True, False)}[name]
    together = start()
    optimizer = KOALAPlusPlus(
        [{"params": together[:2], name: values[0]}, {"params": together[2:], name: values[1]}], r=0.4
    )
    plains = [PlusPlus(lists(together), r=0.4, **{name: value}) for value in values]
    for t in range(10):
        loss, gradients, _ = at([*plains[0].blocks[:2], *plains[1].blocks[2:]], t)
        plains[0].update(loss, [*gradients[:2], None, None])
        plains[1].update(loss, [None, None, *gradients[2:]])
        optimizer.step(loss=backward(optimizer, together, t).mean())
    for mine, wanted in zip(lists(together), [*plains[0].blocks[:2], *plains[1].blocks[2:]], strict=True):
        assert mine == pytest.approx(wanted, rel=1e-9, abs=1e-12)


# -- what it is for one weight, on a line, in other coordinates --------------------------------------------


def feed(optimizer: KOALA, p: Tensor, gradient: Tensor, loss: float, loss_var: float | None = None) -> None:
    """One predict and one update with made-up numbers."""
    optimizer.predict()
    p.grad = gradient.clone()
    optimizer.update(loss, loss_var)


def after_virtual_measurement(sigma: float, q: float, r: float, square: float) -> float:
    """The variance that the start leaves: sigma + q, measured once by the first gradient."""
    return (sigma + q) * r / ((sigma + q) * square + r)


@VARIANTS
@pytest.mark.parametrize("n", [1, 5])
def test_on_a_line_it_is_v(n: int, symmetric: bool) -> None:
    """Gradients c_k u: weights and the variance along u are those of KOALA-V, one virtual measurement later."""
    sigma, q, r = 0.7, 0.2, 0.3
    u = torch.randn(n, dtype=torch.float64)
    c = torch.randn(40, dtype=torch.float64)
    first = (c[0] * u).square().sum().item()
    x = torch.randn(n, dtype=torch.float64)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    optimizer = KOALAPlusPlus([mine], 0.8, sigma=sigma, q=q, r=r, symmetric=symmetric)
    vanilla = VanillaKOALA([theirs], 0.8, sigma=after_virtual_measurement(sigma, q, r, first), q=q, r=r)
    for t in range(40):
        g, loss = c[t] * u, math.sin(t)
        prior = float(vanilla.covariance)  # the predicted one, with q
        mine.grad = theirs.grad = g
        optimizer.step(loss=loss)
        vanilla.step(loss=loss)
        torch.testing.assert_close(mine.detach(), theirs.detach(), rtol=1e-10, atol=1e-12)
        state = optimizer.state[mine]
        torch.testing.assert_close(state["product"], (prior - q) * g, rtol=1e-9, atol=1e-12)
        assert float(state["innovation_variance"]) == pytest.approx(prior * g.square().sum().item() + r, rel=1e-9)


def test_on_one_weight_it_is_the_textbook_filter() -> None:
    """Nothing is approximated for one weight and a linear loss: predict, gain, correct, contract."""
    sigma, q, r = 0.4, 0.2, 0.3
    p = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    optimizer = KOALAPlusPlus([p], sigma=sigma, q=q, r=r, target=0.0)
    x, P = 0.7, math.nan
    for t in range(40):
        slope, intercept = torch.randn(2, dtype=torch.float64).tolist()
        P = after_virtual_measurement(sigma, q, r, slope**2) if t == 0 else P
        P += q
        K = P * slope / (slope * P * slope + r)
        loss = slope * x + intercept
        x, P = x - K * loss, (1 - K * slope) * P
        feed(optimizer, p, vector([slope]), slope * p.item() + intercept)
        assert p.item() == pytest.approx(x, rel=1e-9)


@VARIANTS
def test_it_turns_with_the_coordinates(symmetric: bool) -> None:
    """In rotated coordinates the same happens: what is kept are vectors and numbers, no diagonals."""
    rotation, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    gradients = torch.randn(30, 6, dtype=torch.float64)
    x = torch.randn(6, dtype=torch.float64)
    p, turned = x.clone().requires_grad_(), (rotation @ x).requires_grad_()
    one = KOALAPlusPlus([p], weight_decay=0.02, symmetric=symmetric)
    two = KOALAPlusPlus([turned], weight_decay=0.02, symmetric=symmetric)
    for t, g in enumerate(gradients):
        feed(one, p, g, math.cos(t), 1.0)
        feed(two, turned, rotation @ g, math.cos(t), 1.0)
    for a, b in ((p, turned), (one.state[p]["product"], two.state[turned]["product"])):
        torch.testing.assert_close(rotation @ a.detach(), b.detach(), rtol=1e-9, atol=1e-11)
    assert scalars(one) == pytest.approx(scalars(two), rel=1e-9)
    assert (p - x).norm() > 0.1


# -- the bound of section 4.2 ------------------------------------------------------------------------------


@VARIANTS
def test_the_first_step_keeps_the_trust_region(symmetric: bool) -> None:
    """|step| <= lr L sqrt(P/R)/2, P <= sigma + 2 q; equal where P |h|^2 = R, with sigma = q where |h|^2 = R / 2 q."""
    lr, loss, R, q = 0.7, 0.4, 0.09, 0.5
    reached = math.sqrt(R / (2 * q))
    lengths = []
    for norm in (1e-6, 1e-2, 0.5 * reached, reached, 2 * reached, 10.0, 1e5):
        p = torch.zeros(4, dtype=torch.float64, requires_grad=True)
        optimizer = KOALAPlusPlus([p], lr, sigma=q, q=q, r=R, symmetric=symmetric)
        feed(optimizer, p, torch.full((4,), norm / 2, dtype=torch.float64), loss)
        P = after_virtual_measurement(q, q, R, norm**2) + q
        lengths.append(p.detach().norm().item())
        assert lengths[-1] <= lr * loss * math.sqrt(P / R) / 2 * (1 + 1e-12)
        assert lengths[-1] <= lr * loss * math.sqrt(3 * q / R) / 2
    assert lengths[3] == pytest.approx(lr * loss * math.sqrt(2 * q / R) / 2, rel=1e-9)
    assert lengths[0] < 1e-4 * lengths[3] > lengths[-1]


@VARIANTS
def test_no_step_is_longer_than_its_gain(symmetric: bool) -> None:
    """On every path S >= R, so that a step is at most lr L |v + q H| / R, however long or short the gradient."""
    shortened = False
    for scale in (1e-3, 1.0, 1e3):
        p = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        optimizer = KOALAPlusPlus([p], sigma=1.0, q=0.1, r=0.5, symmetric=symmetric)
        for _ in range(50):
            before = p.detach().clone()
            feed(optimizer, p, scale * torch.randn(3, dtype=torch.float64), 2.0)
            state = optimizer.state[p]
            longest = 2.0 * (state["product"] + 0.1 * state["gradient"]).norm() / 0.5
            taken = (p.detach() - before).norm()
            assert taken <= longest * (1 + 1e-12)
            shortened |= bool(taken < 1e-3 * longest)
    assert shortened


# -- start and missing gradients ---------------------------------------------------------------------------


def test_before_a_block_s_first_gradient_its_state_is_zero() -> None:
    parameters = start()
    optimizer = KOALAPlusPlus(parameters)
    for p in parameters:
        state = optimizer.state[p]
        assert set(state) == {"product", "gradient", "innovation_variance"}
        assert state["product"].shape == state["gradient"].shape == p.shape
        assert state["innovation_variance"].shape == ()
        assert all(not t.any() for t in state.values())
    optimizer.step(loss=backward(optimizer, parameters, 0))
    for p in parameters:  # two tensors and one number a block, now as then
        assert sum(t.numel() for t in optimizer.state[p].values()) == 2 * p.numel() + 1
        assert torch.equal(optimizer.state[p]["gradient"], p.grad)
    shared = {k for k, v in optimizer.param_groups[0].items() if isinstance(v, Tensor)}
    assert shared == {"measurement_noise", "lowest", "loss_mean", "loss_variance", "skipped"}


def test_the_first_gradient_counts_twice() -> None:
    """v_1 = (R / S_0) (sigma + q) H_1 with S_0 = (sigma + q) |H_1|^2 + R."""
    p = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = KOALAPlusPlus([p], sigma=0.3, q=0.2, r=0.4)
    feed(optimizer, p, vector([3.0, 4.0]), 1.0)
    product = after_virtual_measurement(0.3, 0.2, 0.4, 25.0) * vector([3.0, 4.0])
    torch.testing.assert_close(optimizer.state[p]["product"], product, rtol=1e-12, atol=0)


MISSING: dict[str, Callable[[Tensor], Tensor | None]] = {
    "none": lambda g: None,
    "zero": torch.zeros_like,
    "tiny": lambda g: torch.full_like(g, 4e-10 / g.numel()),
}


@VARIANTS
@pytest.mark.parametrize("missing", MISSING)
def test_a_late_block_starts_with_its_own_first_gradient(missing: str, symmetric: bool) -> None:
    """Until then its state is untouched; from then on it goes as if the optimizer had been made at that moment."""
    parameters, fresh = start(), start()
    late = KOALAPlusPlus(parameters, r=0.4, weight_decay=0.02, symmetric=symmetric)
    new = KOALAPlusPlus(fresh, r=0.4, weight_decay=0.02, symmetric=symmetric)
    for t in range(10):
        late.zero_grad()
        losses = backward(late, parameters, t)
        if t < 4:
            parameters[2].grad = MISSING[missing](parameters[2].grad)
        late.step(loss=losses)
        if t < 4:
            assert all(not x.any() for x in late.state[parameters[2]].values())
            assert torch.equal(parameters[2], fresh[2])
        else:
            fresh[2].grad = parameters[2].grad
            new.step(loss=losses)
            mine, wanted = late.state[parameters[2]], new.state[fresh[2]]
            assert_bits([parameters[2], *mine.values()], [fresh[2], *wanted.values()])
    assert not torch.equal(parameters[2], start()[2])


@pytest.mark.parametrize("missing", MISSING)
def test_a_skipped_block_keeps_what_it_knows(missing: str) -> None:
    """H, v, S and the weights, weight decay included, to the bit; and the next step goes on from there."""
    parameters = start()
    optimizer = KOALAPlusPlus(parameters, weight_decay=0.02)
    plain = PlusPlus(lists(parameters), weight_decay=0.02)
    for t in range(12):
        loss, found, loss_var = at(plain.blocks, t)
        gradients: list[list[float] | None] = [*found]
        losses = backward(optimizer, parameters, t)
        block = t % 4 if t in (3, 4, 8, 9) else None
        if block is not None:
            p = parameters[block]
            p.grad, gradients[block] = MISSING[missing](p.grad), None
            kept = [x.detach().clone() for x in (p, *optimizer.state[p].values())]
        optimizer.step(loss=losses)
        plain.step(loss, gradients, loss_var)
        if block is not None:
            assert_bits(kept, [parameters[block].detach(), *optimizer.state[parameters[block]].values()])
        assert_same(optimizer, parameters, plain)


@VARIANTS
def test_a_gradient_that_cancels_the_weight_decay_breaks_nothing(symmetric: bool) -> None:
    """H = 0 exactly, at a block's start and later: nothing is known of P, the division by |H|^2 is left out."""
    for at_step in (0, 3):
        p = vector([2.0, -1.0]).requires_grad_()
        optimizer = KOALAPlusPlus([p], 0.5, weight_decay=0.5, symmetric=symmetric)
        plain = PlusPlus([[2.0, -1.0]], 0.5, weight_decay=0.5, symmetric=symmetric)
        for t in range(6):
            g = -0.5 * p.detach() if t == at_step else torch.randn(2, dtype=torch.float64)
            feed(optimizer, p, g, 1.5)
            plain.step(1.5, [[-0.5 * x for x in plain.blocks[0]] if t == at_step else g.tolist()])
            assert p.isfinite().all()
            if t == at_step:
                assert not optimizer.state[p]["gradient"].any()
            assert_same(optimizer, [p], plain)


# -- the safeguard -----------------------------------------------------------------------------------------


Q, R = 0.01, 1.0


def random_run(seed: int, symmetric: bool) -> Iterator[tuple[KOALAPlusPlus, PlusPlus, list[Tensor], dict[int, float]]]:
    """Tiny blocks under random gradients of mixed lengths; after each step, S of each block before the safeguard."""
    parameters = [torch.zeros(n, dtype=torch.float64, requires_grad=True) for n in (2, 3, 5, 10)]
    optimizer = KOALAPlusPlus(parameters, q=Q, r=R, symmetric=symmetric)
    plain = PlusPlus(lists(parameters), q=Q, r=R, symmetric=symmetric)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(200):
        for p in parameters:
            length = 10 ** torch.randn((), generator=generator, dtype=torch.float64)
            p.grad = length * torch.randn(len(p), generator=generator, dtype=torch.float64)
        plain.raw.clear()
        plain.step(1.0, lists([p.grad for p in parameters]))
        optimizer.step(loss=1.0)
        yield optimizer, plain, parameters, dict(plain.raw)


@VARIANTS
def test_the_safeguard_steps_in_where_no_covariance_could(symmetric: bool) -> None:
    """S < R: v = 0 and S = q |H|^2 + R, the step of a filter that knows nothing but its process noise."""
    triggered = []
    for optimizer, plain, parameters, raw in random_run(5, symmetric):
        assert_same(optimizer, parameters, plain)
        for i, p in enumerate(parameters):
            state = optimizer.state[p]
            assert state["innovation_variance"] >= R
            if raw[i] < R:
                triggered.append(raw[i])
                assert not state["product"].any()
                assert float(state["innovation_variance"]) == pytest.approx(Q * p.grad.square().sum().item() + R)
                assert torch.equal(state["gradient"], p.grad)
    assert len(triggered) >= 3  # of 800 block steps
    assert min(triggered) < -R  # this one would have turned the step round


@VARIANTS
def test_a_negative_product_alone_does_not_trigger_it(symmetric: bool) -> None:
    """H.v < 0 says that P is indefinite; while q |H|^2 keeps S above R, the method goes on as published."""
    seen = 0
    for optimizer, _, parameters, raw in random_run(7, symmetric):
        for i, p in enumerate(parameters):
            state = optimizer.state[p]
            along = float(p.grad @ state["product"])
            if along < 0:
                seen += 1
                assert float(state["innovation_variance"]) == pytest.approx(raw[i], rel=1e-9)
                assert raw[i] > R
    assert seen >= 3


def test_a_wild_block_leaves_its_neighbours_alone() -> None:
    """The safeguard is each block's own: the path of one does not depend on what the others are given."""
    alone = [torch.zeros(n, dtype=torch.float64, requires_grad=True) for n in (2, 3, 5, 10)]
    optimizers = [KOALAPlusPlus([p], q=Q, r=R) for p in alone]
    for together, _, parameters, _ in random_run(5, True):
        for p, q, optimizer in zip(parameters, alone, optimizers, strict=True):
            q.grad = p.grad
            optimizer.step(loss=1.0)
            assert_bits([p, *together.state[p].values()], [q, *optimizer.state[q].values()])


# -- the two stages ----------------------------------------------------------------------------------------


def test_predict_moves_nothing_and_the_filtered_point_is_the_point() -> None:
    parameters = start()
    optimizer = KOALAPlusPlus(parameters)
    for t in range(4):
        before = snapshot(optimizer, parameters)
        optimizer.predict()
        assert_bits(before, snapshot(optimizer, parameters))
        optimizer.update(backward(optimizer, parameters, t))
        before = snapshot(optimizer, parameters)
        with optimizer.posterior():
            assert_bits(before, snapshot(optimizer, parameters))
        assert_bits(before, snapshot(optimizer, parameters))
