"""MetricKOALA and OrthogonalKOALA: the reference's path, the directions, and what the filter makes of the loss."""

import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from bits import assert_bits, everything, reloaded
from problem import batch_losses
from torch import Tensor, nn

from fallline import MetricKOALA, OrthogonalKOALA, VanillaKOALA
from fallline.koala.metric import orthogonalized
from reference.koala_metric import WHOLE, MetricKoala, gain_at_rest


def rows(h: Tensor) -> Tensor:
    """A user's metric: each row at length 1, of whole tensors alone."""
    return nn.functional.normalize(h.reshape(len(h), -1), dim=1).reshape(h.shape)


def rows_in_numpy(h: Any) -> Any:
    """The same."""
    flat = h.reshape(len(h), -1)
    return (flat / np.linalg.norm(flat, axis=1, keepdims=True)).reshape(h.shape)


def lower(loss: Any) -> Any:
    """A target below each loss."""
    return loss - 0.5


def matrix(rows: int, columns: int, condition: float, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """A random matrix of that condition."""
    g = torch.Generator().manual_seed(seed)
    u, _, vh = torch.linalg.svd(torch.randn(rows, columns, generator=g, dtype=torch.float64), full_matrices=False)
    return (u * torch.logspace(0, -math.log10(condition), min(rows, columns), dtype=torch.float64) @ vh).to(dtype)


def linear(slope: Tensor, start: float) -> Callable[[Tensor], Tensor]:
    """A loss that falls by ``slope`` everywhere, from ``start`` at the origin."""
    return lambda w: start + (slope * w).sum()


def one_step(opt: MetricKOALA, ps: list[nn.Parameter], loss: Tensor) -> None:
    """Backward and step."""
    opt.zero_grad()
    loss.backward()
    opt.step(loss=loss.detach())


# -- the path of the reference ----------------------------------------------------------------------------------

PATHS: dict[str, dict[str, Any]] = {
    "orthogonal": dict(metric="orthogonal", weight_decay=0.3),
    "adam": dict(metric="adam", target=0.01, lr=0.4),
    "identity": dict(metric="identity", beta=0.5, r=0.7),
    "callable target": dict(metric="orthogonal", target=lower, alpha_r=0.5, beta=0.0),
    "callable metric": dict(metric=rows, weight_decay=0.2),
    "maximize": dict(metric="orthogonal", maximize=True, target=50.0),
    "unmeasured": dict(metric="orthogonal", measured=False, q=0.01, beta2=0.5),
}


@pytest.mark.parametrize("name", PATHS)
def test_the_path_is_the_reference_s(name: str) -> None:
    """Over two groups, a tensor now and then without gradient, and a step that is skipped."""
    settings = dict(q=0.003, target=0.0) | PATHS[name]
    g = torch.Generator().manual_seed(0)
    shapes = [(3, 2), (3,), (1, 3), (), (2, 3, 2)]
    ps = [nn.Parameter(torch.randn(s, generator=g, dtype=torch.float64)) for s in shapes]
    groups = [
        {"params": [ps[0], ps[4]]},
        {"params": ps[1:4], "lr": 0.25, "weight_decay": 0.6, "metric": "identity" if name == "maximize" else "adam"},
    ]
    opt = MetricKOALA(groups, **settings)
    owned = [(p, group) for group in opt.param_groups for p in group["params"]]
    plain = MetricKoala(
        [p.detach().numpy() for p, _ in owned],
        [group["lr"] for _, group in owned],
        [rows_in_numpy if group["metric"] is rows else group["metric"] for _, group in owned],
        weight_decay=[group["weight_decay"] for _, group in owned],
        **{key: opt.defaults[key] for key in WHOLE},
    )
    moved = [p.detach().clone() for p in ps]
    for t in range(7):
        opt.zero_grad()
        losses = batch_losses(ps[:4], t) + ps[4].square().mean()
        losses.mean().backward()
        if t in (2, 5):
            ps[t // 2].grad = None
        if t == 3:
            ps[0].grad[0, 0] = torch.nan
        gradients = [None if p.grad is None else p.grad.numpy().copy() for p, _ in owned]
        opt.step(loss=losses.detach())
        plain.step(losses.detach().numpy(), gradients)
        for (mine, _), wanted in zip(owned, plain.tensors, strict=True):
            np.testing.assert_allclose(mine.detach().numpy(), wanted, rtol=1e-9, atol=1e-11)
        assert t == 3 or float(opt.distance) == pytest.approx(plain.distance, rel=1e-9)
        if settings.get("measured", True):
            assert float(opt.measurement_noise) == pytest.approx(plain.R, rel=1e-9)
    assert opt.skipped == 1
    assert all((p - m).abs().max() > 1e-3 for p, m in zip(ps, moved, strict=True))


@pytest.mark.parametrize("metric", ["orthogonal", "adam"])
def test_two_stages_are_a_step(metric: str) -> None:
    """Whichever way the loss comes: as an argument, from the tap, or from a closure."""
    ends = []
    for form in ("step", "stages", "observe", "closure"):
        torch.manual_seed(0)
        ps = [nn.Parameter(torch.randn(s, dtype=torch.float64)) for s in [(3, 2), (3,), (1, 3), ()]]
        opt = MetricKOALA(ps, metric=metric, q=0.01)
        for t in range(4):
            if form == "stages":
                opt.predict()

            def closure(t: int = t, opt: MetricKOALA = opt, ps: Any = ps, form: str = form) -> Tensor:
                opt.zero_grad()
                losses = batch_losses(ps, t)
                (opt.observe(losses) if form == "observe" else losses).mean().backward()
                return losses.detach()

            if form == "closure":
                opt.step(closure)
            elif form == "observe":
                closure()
                opt.step()
            else:
                (opt.update if form == "stages" else lambda loss, opt=opt: opt.step(loss=loss))(closure())
        with opt.posterior():  # which is no other point
            ends.append(torch.cat([p.detach().flatten() for p in ps]))
    for other in ends[1:]:
        torch.testing.assert_close(other, ends[0], rtol=1e-12, atol=1e-14)


# -- directions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 6), (8, 30), (30, 8), (2, 50), (64, 64)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_singular_values_come_near_to_one(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    h = matrix(*shape, 30.0, dtype)
    d = orthogonalized(h)
    assert d.dtype == dtype
    assert d.shape == h.shape
    values = torch.linalg.svdvals(d.double()) / max(1.0, shape[0] / shape[1]) ** 0.5
    assert values.min() > 0.3
    assert values.max() < 1.25


def test_orthogonalization_turns_with_the_matrix_and_does_not_see_its_scale() -> None:
    h = matrix(5, 9, 10.0)
    d = orthogonalized(h)
    q, r = (torch.linalg.qr(torch.randn(n, n, dtype=torch.float64)).Q for n in h.shape)
    torch.testing.assert_close(orthogonalized(q @ h @ r), q @ d @ r, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(orthogonalized(h.T), d.T * (9 / 5) ** 0.5, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(orthogonalized(-h), -d, rtol=0, atol=0)
    kernel = h.view(5, 1, 3, 3)
    torch.testing.assert_close(orthogonalized(kernel), d.view(5, 1, 3, 3), rtol=0, atol=0)
    lasts = kernel.to(memory_format=torch.channels_last)
    torch.testing.assert_close(orthogonalized(lasts), d.view(5, 1, 3, 3), rtol=1e-12, atol=1e-14)
    for scale in (1e-30, 1e-15, 1e15, 1e30):
        torch.testing.assert_close(orthogonalized(h.float() * scale).double(), d, rtol=1e-4, atol=1e-5)
    assert torch.equal(orthogonalized(torch.zeros(3, 4)), torch.zeros(3, 4))


def test_what_dead_units_leave_is_no_subnormal_number_and_changes_nothing_else():
    h = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    dead = h.clone()
    dead[2:4] *= 1e-30  # what the average of a unit that has not fired for 700 steps has come to
    none = h.clone()
    none[2:4] = 0
    assert torch.equal(orthogonalized(dead), orthogonalized(none))
    faint = h.clone()
    faint[2:4] *= 1e-12  # as small a part of the whole is still brought up
    assert (orthogonalized(faint)[2:4].abs().amax(dim=1) > 1e-11).all()
    assert orthogonalized(torch.full((2, 3), math.nan)).isnan().all()


def test_a_metric_is_a_group_s_own_and_a_callable_sees_whole_tensors() -> None:
    seen: list[tuple[int, ...]] = []

    def sign(h: Tensor) -> Tensor:
        seen.append(tuple(h.shape))
        return h.sign()

    torch.manual_seed(0)
    ps = [nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(2, 2))]
    opt = OrthogonalKOALA(
        [
            {"params": ps[:1], "metric": sign},
            {"params": ps[1:2], "metric": "identity", "lr": 0.5},
            {"params": ps[2:], "metric": "adam"},
        ],
        weight_decay=0.0,
        measured=False,
        q=1e-2,
        beta=0.0,
    )
    assert [set(opt.state[p]) for p in ps] == [{"momentum", "step"}] * 2 + [{"momentum", "step", "second_moment"}]
    before = [p.detach().clone() for p in ps]
    sum(p.square().sum() for p in ps).backward()
    opt.step()  # no loss is wanted
    ways = [p.detach() - b for p, b in zip(ps, before, strict=True)]
    assert seen == [(3, 4)]
    torch.testing.assert_close(ways[0], -0.1 * before[0].sign())
    torch.testing.assert_close(ways[1], -0.05 * before[1] / (before[1].norm() * 0.5**0.5))  # half its square counts
    torch.testing.assert_close(ways[2], -0.1 * before[2].sign(), rtol=1e-4, atol=1e-6)  # Adam's first step


@pytest.mark.parametrize("metric", ["orthogonal", "adam", "identity"])
def test_a_group_with_half_the_lr_goes_half_as_far(metric: str) -> None:
    torch.manual_seed(0)
    whole = torch.randn(3, 4, dtype=torch.float64)
    ps = [nn.Parameter(whole.clone()) for _ in range(2)]
    opt = MetricKOALA([{"params": ps[:1]}, {"params": ps[1:], "lr": 0.3}], lr=0.6, metric=metric, weight_decay=0.0)
    one_step(opt, ps, sum(p.square().sum() for p in ps))
    torch.testing.assert_close(2 * (ps[1] - whole), ps[0] - whole)


# -- the filter -------------------------------------------------------------------------------------------------


def test_at_rest_it_is_vanilla_koala_with_one_tensor() -> None:
    """Whose variance comes to rest where loss and gradient stay the same."""
    slope = torch.tensor([0.3, -0.2], dtype=torch.float64)
    known: dict[str, Any] = dict(weight_decay=0.0, q=0.5, r=0.5, target=lower)
    ways = []
    for opt_of in (lambda p: VanillaKOALA(p, **known), lambda p: MetricKOALA(p, metric="identity", beta=0, **known)):
        w = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        opt = opt_of([w])
        for _ in range(80):
            before = w.detach().clone()
            one_step(opt, [w], linear(slope, 10.0)(w))
        ways.append(w.detach() - before)
    torch.testing.assert_close(*ways, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("metric", ["orthogonal", "adam", "identity"])
def test_a_linear_loss_is_at_its_target_in_one_step_where_the_loss_is_believed(metric: str) -> None:
    torch.manual_seed(0)
    slopes = [torch.randn(3, 4, dtype=torch.float64), torch.randn(5, dtype=torch.float64)]
    ps = [nn.Parameter(torch.randn_like(s)) for s in slopes]

    def loss() -> Tensor:
        return 20 + sum((s * p).sum() for s, p in zip(slopes, ps, strict=True))

    opt = MetricKOALA(ps, metric=metric, q=1e6, r=0.0, target=2.0, weight_decay=0.0)
    one_step(opt, ps, loss())
    assert float(loss().detach()) == pytest.approx(2.0, abs=1e-9)


@pytest.mark.parametrize("slope", [0.03, 1.0, 30.0, 1e6])
def test_the_distance_is_the_filter_s_at_rest_and_has_two_bounds(slope: float) -> None:
    """The loss's own, where it is believed least; and Polyak's."""
    q, R, lr, above = 1e-3, 4.0, 0.5, 1.7
    w = nn.Parameter(torch.zeros((), dtype=torch.float64))
    opt = MetricKOALA([w], lr, metric="identity", q=q, r=R, weight_decay=0.0)
    one_step(opt, [w], above + slope * w)
    distance = float(opt.distance)
    assert distance == pytest.approx(lr * gain_at_rest(slope, q, R) * above / slope, rel=1e-6)
    assert distance == pytest.approx(-w.item(), rel=1e-12)
    bounds = lr * (q / R) ** 0.5 * above, lr * above / slope
    assert distance <= min(bounds) * (1 + 1e-12)
    if slope in (0.03, 1e6):
        assert distance == pytest.approx(min(bounds), rel=1e-3)


def test_a_mean_does_as_well_as_the_losses_it_is_of() -> None:
    """However much they differ; and R is the mean's square, or what a caller of `update` says."""
    for losses in ([2.0, 2.0], [1.0, 3.0], 2.0):
        w = nn.Parameter(torch.ones(2))
        opt = MetricKOALA([w], metric="adam")
        w.sum().backward()
        opt.step(loss=torch.tensor(losses))
        assert float(opt.measurement_noise) == 4
        assert float(opt.distance) == pytest.approx(2 * gain_at_rest(2, 2.5e-3, 4.0) / 2, rel=1e-6)
    opt.predict()
    opt.update(loss=2.0, loss_var=24.0)
    assert float(opt.measurement_noise) == pytest.approx(0.9 * 4 + 0.1 * 24)


def test_without_measurement_each_step_is_as_long_and_no_loss_is_needed() -> None:
    w = nn.Parameter(torch.ones(3, 2))
    opt = OrthogonalKOALA([w], 0.5, measured=False, q=4e-4)
    for scale in (1.0, 1e-8, 1e8):
        w.grad = torch.full_like(w, scale)
        opt.step()
        assert float(opt.distance) == pytest.approx(0.01)
    w.grad[0, 0] = torch.nan
    opt.step()
    assert float(opt.distance) == 0
    assert opt.skipped == 1


def test_decay_is_apart_from_the_direction() -> None:
    w = nn.Parameter(torch.full((2, 2), 3.0))
    opt = OrthogonalKOALA([w], 0.5, weight_decay=0.2, q=1e-2)
    w.grad = torch.zeros_like(w)
    opt.step(loss=1.0)
    torch.testing.assert_close(w.detach(), torch.full((2, 2), 3.0 * (1 - 0.5 * 0.1 * 0.2)))


# -- how it runs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["target", "loss", "gradient"])
def test_what_is_not_finite_changes_nothing(bad: str) -> None:
    torch.manual_seed(0)
    ps = [nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(4))]
    broken = [False]

    def target(loss: Tensor) -> Tensor:
        return loss * torch.nan if broken[0] else 0 * loss

    opt = OrthogonalKOALA(ps, target=target, weight_decay=0.1)
    one_step(opt, ps, sum(p.square().sum() for p in ps))
    before = everything(opt)
    ps[0].grad[0, 0] *= math.inf if bad == "gradient" else 1
    broken[0] = bad == "target"
    opt.step(loss=torch.tensor([1.0, math.nan if bad == "loss" else 1.0]))
    assert opt.skipped == 1
    opt.skipped.zero_()
    assert_bits(before, everything(opt))


def test_momentum_and_iteration_are_float32_where_weights_are_in_half_precision() -> None:
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(4, 6).bfloat16())
    q = nn.Parameter(p.detach().float())
    opts = [OrthogonalKOALA([x], q=0.1) for x in (p, q)]
    for _ in range(3):
        q.data.copy_(p)
        p.grad = torch.randn(4, 6).bfloat16()
        q.grad = p.grad.float()
        for opt in opts:
            opt.step(loss=2.0)
        assert torch.equal(p.detach(), q.detach().bfloat16())
        assert torch.equal(opts[0].state[p]["momentum"], opts[1].state[q]["momentum"])
        assert opts[0].state[p]["momentum"].dtype == torch.float32


def test_many_small_tensors_and_a_callable_survive_saving_and_copying() -> None:
    torch.manual_seed(0)

    def built(metric: Any = rows) -> tuple[list[nn.Parameter], MetricKOALA]:
        ps = [nn.Parameter(torch.randn(2, 3) if i % 2 else torch.randn(4)) for i in range(400)]
        return ps, MetricKOALA([{"params": ps[1::2]}, {"params": ps[::2], "metric": "orthogonal"}], metric=metric)

    ps, opt = built()
    one_step(opt, ps, sum(p.square().sum() for p in ps))
    others, opt2 = built()
    for p, q in zip(ps, others, strict=True):
        q.data.copy_(p)
    opt2.load_state_dict(reloaded(opt.state_dict()))  # which has no callable
    copied_ps, copied = pickle.loads(pickle.dumps((ps, opt)))
    assert copied.distance is None
    for one, optimizer in ((ps, opt), (others, opt2), (copied_ps, copied)):
        one_step(optimizer, one, sum(p.square().sum() for p in one))
    assert_bits([p.detach() for p in others], [p.detach() for p in ps])
    assert_bits([p.detach() for p in copied_ps], [p.detach() for p in ps])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_fused_equals_eager_and_stochastic_rounding_keeps_small_steps(dtype: torch.dtype) -> None:
    """Matrices, channels last, tensors without elements and numbers, in every metric at once."""
    ends = []
    for fused in (False, True):
        torch.manual_seed(0)
        ps = [nn.Parameter(torch.randn(s).to(dtype)) for s in [(3, 4), (2, 3, 2, 2), (0, 3), (), (5,), (3, 3), (2, 2)]]
        ps[1].data = ps[1].data.to(memory_format=torch.channels_last)
        groups = [
            {"params": ps[:5]},
            {"params": ps[5:6], "metric": "identity"},
            {"params": ps[6:], "metric": rows, "lr": 0.5},
        ]
        opt = OrthogonalKOALA(groups, weight_decay=0.1, fused=fused, stochastic_rounding=True)
        for _ in range(3):
            one_step(opt, ps, sum((p.float() - 0.5).square().sum() for p in ps))
        ends.append([*(p.detach().double() for p in ps), *(t for p in ps for t in opt.state[p].values())])
    tolerance = 1e-12 if dtype == torch.float64 else 2e-2
    for eager, fused_too in zip(*ends, strict=True):
        torch.testing.assert_close(eager, fused_too, rtol=tolerance, atol=tolerance)
