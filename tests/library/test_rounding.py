"""Stochastic rounding keeps the mean, leaves alone what bfloat16 can say, and gives the same bits however it is run."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from bits import assert_bits
from methods import METHODS, TABLE, make
from torch import Tensor, nn

import fallline
from fallline._engine.run import run, stochastically

FUSED = [name for name in METHODS if not name.startswith("lodo")] + ["arturo"]


def subtract_(p: Tensor, g: Tensor) -> None:
    p.sub_(g)


def values(n: int) -> Tensor:
    """Of all magnitudes, and both signs."""
    return torch.randn(n) * torch.exp(5 * torch.randn(n))


def test_the_expectation_is_the_value() -> None:
    """A weight lies between two neighbours in bfloat16, and meets each as often as it is near to it."""
    x, n = values(1000), 4096
    rounded = torch.stack([stochastically(x, torch.tensor(salt)).double() for salt in range(n)])
    x = x.double()
    gap = 2.0 ** (x.abs().log2().floor() - 7)
    below = (x / gap).floor() * gap
    above = below + gap
    assert ((rounded == below) | (rounded == above)).all()
    often = ((x - below) * (above - x)) > 0.01 * gap**2  # where both are met often enough for a normal distribution
    deviation = ((x - below) * (above - x)).sqrt() / n**0.5
    error = ((rounded.mean(0) - x) / deviation)[often]
    assert often.sum() > 900
    assert error.abs().max() < 5
    assert error.square().mean() == pytest.approx(1, abs=0.2)  # independent from salt to salt
    assert abs(error.mean()) < 4 / len(error) ** 0.5  # and from weight to weight


def test_what_bfloat16_can_say_is_not_touched() -> None:
    x = torch.cat([values(1000).bfloat16(), torch.tensor([0.0, -0.0, math.inf, -math.inf]).bfloat16()])
    for salt in (0, 1, 2**31, 2**53 + 1):
        assert_bits([stochastically(x.float(), torch.tensor(salt))], [x])
    assert stochastically(torch.tensor([math.nan, -math.nan]), torch.tensor(1)).isnan().all()
    huge = stochastically(torch.full((1000,), 3.395e38), torch.tensor(5))
    assert not huge.isnan().any()


@pytest.mark.parametrize("salt", [0, 1, 2**32 + 7])
def test_fused_rounds_to_the_same_bits(salt: int) -> None:
    p, g = values(70_001).bfloat16(), values(70_001)
    p[:2], g[2:5] = torch.tensor([math.inf, math.nan]), torch.tensor([math.nan, math.inf, 0.0])
    eager, fused = p.clone(), p.clone()
    run(subtract_, [[eager], [g]], {}, False, salt=torch.tensor(salt))
    run(subtract_, [[fused], [g]], {}, True, salt=torch.tensor(salt))
    assert torch.equal(eager.isnan(), fused.isnan())
    assert torch.equal(eager.nan_to_num(), fused.nan_to_num())


def test_other_dtypes_are_rounded_as_ever() -> None:
    for dtype in (torch.float16, torch.float32, torch.float64):
        p, g = values(100).clamp(-9, 9).to(dtype), torch.randn(100)
        ends = []
        for salt in (None, torch.tensor(1)):
            for fused in (False, True):
                q = p.clone()
                run(subtract_, [[q], [g]], {}, fused, salt=salt)
                ends.append(q)
        assert all(torch.equal(ends[0], end) for end in ends)


def grads(ps: list[nn.Parameter], t: int) -> None:
    for i, p in enumerate(ps):
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(10 * t + i)).to(p.dtype)


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).bfloat16()) for shape in ((40, 3), (17,), ())]


def steps(opt: fallline.Optimizer, ps: list[nn.Parameter], times: range) -> None:
    for t in times:
        grads(ps, t)
        opt.step(loss=torch.tensor(1.5))


@pytest.mark.parametrize("name", list(TABLE))
def test_a_step_rounds_what_float32_computes(name: str) -> None:
    """From the same weights: the step in float32, with the same state, rounded with the salt of that step."""
    ps = parameters()
    low = make(name, ps, stochastic_rounding=True)
    wide = [nn.Parameter(p.detach().float()) for p in ps]
    high = make(name, wide)
    moved = 0
    for t in range(4):
        with torch.no_grad():
            for q, p in zip(wide, ps, strict=True):
                q.copy_(p)
        grads(ps, t)
        for q, p in zip(wide, ps, strict=True):
            q.grad = p.grad.float()
        before = [p.detach().clone() for p in ps]
        low.step(loss=torch.tensor(1.5))
        high.step(loss=torch.tensor(1.5))
        for p, q, old in zip(ps, wide, before, strict=True):
            assert torch.equal(p, stochastically(q.detach(), torch.tensor(t + 1)))
            moved += not torch.equal(p, old)
    assert moved


@pytest.mark.parametrize("name", METHODS)
def test_resume_equals_never_stopped(name: str, tmp_path: Path) -> None:
    one, two = parameters(), parameters()
    straight, before = make(name, one, stochastic_rounding=True), make(name, two, stochastic_rounding=True)
    steps(straight, one, range(6))
    steps(before, two, range(3))
    torch.save(before.state_dict(), tmp_path / "state.pt")
    after = make(name, two, stochastic_rounding=True)
    after.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    steps(after, two, range(3, 6))
    assert_bits(one, two)


def test_a_run_may_be_continued_with_and_without() -> None:
    """It says how to run, as fused: a checkpoint does not decide on it."""
    ps = parameters()
    plain = make("cool", ps)
    steps(plain, ps, range(2))
    rounding = make("cool", ps, stochastic_rounding=True)
    rounding.load_state_dict(plain.state_dict())
    assert rounding.param_groups[0]["stochastic_rounding"] is True
    steps(rounding, ps, range(2, 4))
    assert rounding.param_groups[0]["roundings"].item() == 2
    plain.load_state_dict(rounding.state_dict())
    assert plain.param_groups[0]["stochastic_rounding"] is False
    steps(plain, ps, range(4, 6))


@pytest.mark.parametrize("name", FUSED)
def test_fused_differs_by_no_more_than_arithmetic(name: str) -> None:
    """The same random numbers: where float32 arithmetic agrees to the bit, so do the weights; that is nearly always."""
    ends = []
    for fused in (False, True):
        ps = parameters()
        steps(make(name, ps, stochastic_rounding=True, fused=fused), ps, range(1))
        ends.append(torch.cat([p.detach().flatten() for p in ps]))
    torch.testing.assert_close(*ends, rtol=2**-7, atol=1e-4)
    assert (ends[0] == ends[1]).float().mean() > 0.8


def test_visits_to_the_filtered_point_change_nothing() -> None:
    ends = []
    for visits in (False, True):
        ps = parameters()
        opt = fallline.MomentumKOALA(ps, lr=0.5, stochastic_rounding=True)
        for t in range(5):
            steps(opt, ps, range(t, t + 1))
            if visits:
                with opt.posterior():
                    pass
        ends.append([p.detach() for p in ps])
    assert_bits(*ends)


def test_small_steps_are_lost_to_nearest_and_kept_in_the_mean() -> None:
    """A thousand steps of a thousandth of a unit in the last place: none, or one unit in the mean."""

    def end(**settings: Any) -> Tensor:
        p = nn.Parameter(torch.linspace(1, 1.9, 2000).bfloat16())
        start = p.detach().clone()
        opt = fallline.CoolMomentum([p], lr=2.0**-7 / 1000, rho_0=0.0, cool_steps=1, **settings)
        for _ in range(1000):
            p.grad = torch.full_like(p, -2.0)  # at rho = 0 half the learning rate counts
            opt.step()
        return (p.detach().float() - start.float()).mean() / 2.0**-7

    assert end() == 0
    assert end(stochastic_rounding=True) == pytest.approx(1, abs=0.2)
