"""CoolMomentum: the acceptance list of its specification, and the rules that hold for no other optimizer."""

import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fallline import CoolMomentum
from reference import coolmomentum as reference

SCHEDULES = ["exponential", "exponential_temperature", "linear"]


def parameter(*values: float) -> Tensor:
    """One float64 parameter."""
    return vector(values).requires_grad_()


def vector(values: list[float]) -> Tensor:
    """A float64 tensor; `torch.tensor(values)` alone would round to float32 on the way."""
    return torch.tensor(values, dtype=torch.float64)


def move(optimizer: CoolMomentum, p: Tensor, gradient: Tensor | list[float]) -> Tensor:
    """One step with the given gradient; returns the displacement."""
    before = p.detach().clone()
    p.grad = torch.as_tensor(gradient, dtype=p.dtype)
    optimizer.step()
    return p.detach() - before


def at_step(optimizer: CoolMomentum, t: int) -> None:
    """Pretend that `t` steps were made."""
    optimizer.param_groups[0]["step"].fill_(t)


def uneven_well(x: list[float]) -> list[float]:
    """Gradient of a coupled quartic, so that every number of the trajectory depends on every other."""
    return [4 * v * (v * v - 1) + 0.15 + 0.3 * (x[i - 1] - v) for i, v in enumerate(x)]


# -- the schedule (acceptance 1, 9) --------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("exponential", {0: 0.9, 1: 0.874107, 2: 0.841511, 9: 0.205672, 10: 0, 11: 0, 10**7: 0}),
        ("linear", {0: 0.9, 1: 0.890110, 2: 0.878049, 9: 0.473684, 10: 0, 11: 0, 10**7: 0}),
        ("exponential_temperature", {0: 0.9, 10: 0, 11: 0, 10**7: 0}),
    ],
)
def test_rho_has_the_printed_digits(schedule: str, expected: dict[int, float]) -> None:
    optimizer = CoolMomentum([parameter(0.0)], rho_0=0.9, cool_steps=10, schedule=schedule)
    for t, rho in expected.items():
        at_step(optimizer, t)
        assert float(optimizer.rho) == pytest.approx(rho, abs=5e-7)


# (rho, temperature) at s = t/S for rho_0 = 0.99, as printed in the specification's section 4
TABLE = {
    "exponential": {10: (0.98415, 125.2), 25: (0.96838, 62.2), 50: (0.9, 19), 75: (0.68377, 5.3), 99: (0.04501, 1.09)},
    "exponential_temperature": {10: (0.98308, 117.2), 50: (0.86761, 14.1), 75: (0.57947, 3.8), 99: (0.02646, 1.05)},
    "linear": {
        10: (0.98890, 179.2),
        25: (0.98671, 149.5),
        50: (0.98020, 100),
        90: (0.90826, 20.8),
        99: (0.49749, 2.98),
    },
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_follow_the_printed_table(schedule: str) -> None:
    optimizer = CoolMomentum([parameter(0.0)], rho_0=0.99, cool_steps=100, schedule=schedule)
    for t, (rho, temperature) in ({0: (0.99, 199.0), 100: (0.0, 1.0)} | TABLE[schedule]).items():
        at_step(optimizer, t)
        assert float(optimizer.rho) == pytest.approx(rho, abs=6e-6)
        # schedule_temperature is relative to the start, the table to the end
        assert 199 * float(optimizer.schedule_temperature) == pytest.approx(temperature, rel=2e-2)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("rho_0", [0.0, 0.5, 0.99, 1 - 1e-9])
def test_rho_agrees_with_the_reference_at_every_step(schedule: str, rho_0: float) -> None:
    optimizer = CoolMomentum([parameter(0.0)], rho_0=rho_0, cool_steps=17, schedule=schedule, hold_steps=5)
    for t in range(40):
        at_step(optimizer, t)
        wanted = reference.rho_at(schedule, rho_0, 17, t, hold_steps=5)
        # 1 - rho is what the dynamics see; 1 - (1 - 1e-9) has eight digits
        assert 1 - float(optimizer.rho) == pytest.approx(1 - wanted, rel=1e-12 if rho_0 < 0.999 else 1e-6)


@pytest.mark.parametrize(
    ("rho_0", "cool_steps", "t"),
    [
        (0.5, 10, 20),  # t = S/rho_0, the pole of `linear`
        (0.99, 10, 1619),  # the power forms underflow here and at 1408
        (0.99, 10, 1408),
        (0.99, 10, 10**7),
        (0.99, 1, 1),
        (0.0, 1, 3),
    ],
)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_far_past_the_schedule_it_is_sgd_at_half_the_rate(schedule: str, rho_0: float, cool_steps: int, t: int) -> None:
    p = parameter(1.0, -2.0)
    optimizer = CoolMomentum([p], lr=0.1, rho_0=rho_0, cool_steps=cool_steps, schedule=schedule)
    optimizer.state[p]["displacement"].fill_(123.0)  # whatever the buffer holds
    at_step(optimizer, t)
    assert float(optimizer.rho) == 0
    torch.testing.assert_close(move(optimizer, p, [3.0, 5.0]), vector([-0.15, -0.25]), rtol=1e-12, atol=0)


def test_one_cooling_step_is_one_hot_step() -> None:
    p = parameter(0.0)
    optimizer = CoolMomentum([p], lr=1.0, rho_0=0.9, cool_steps=1)
    assert move(optimizer, p, [1.0]).item() == pytest.approx(-0.95)
    assert move(optimizer, p, [1.0]).item() == pytest.approx(-0.5)


def test_alpha_to_steps() -> None:
    """The articles' runs: 200 epochs of CIFAR-10 at batch 32, and the program's default."""
    assert CoolMomentum.alpha_to_steps(0.99, 0.99998526) == pytest.approx(312_400, rel=4e-4)
    assert CoolMomentum.alpha_to_steps(0.99, 0.99997) == pytest.approx(153_503, abs=1)
    for rho_0, steps in [(0.9, 12.5), (0.5, 3.0)]:
        alpha = reference.alpha_of(rho_0, steps)
        assert CoolMomentum.alpha_to_steps(rho_0, alpha) == pytest.approx(steps, rel=1e-12)


def test_exponential_is_the_article_s_recursion_in_alpha() -> None:
    alpha = 0.9
    steps = CoolMomentum.alpha_to_steps(0.95, alpha)
    optimizer = CoolMomentum([parameter(0.0)], rho_0=0.95, cool_steps=steps)
    cold = [t for t in range(60) if reference.rho_by_alpha(0.95, alpha, t) == 0]
    assert 0 < len(cold) < 60  # both sides of S are looked at
    for t in range(60):
        at_step(optimizer, t)
        assert float(optimizer.rho) == pytest.approx(reference.rho_by_alpha(0.95, alpha, t), rel=1e-12, abs=1e-13)


def test_callable_schedule_gets_s_as_a_tensor_and_is_clamped() -> None:
    seen: list[Tensor] = []

    def schedule(s: Tensor) -> Tensor:
        seen.append(s.detach().clone())
        return 1.5 - 2 * s

    p = parameter(0.0)
    optimizer = CoolMomentum([p], rho_0=0.5, cool_steps=10, schedule=schedule)
    at_step(optimizer, 4)
    assert float(optimizer.rho) == pytest.approx(0.7)
    assert seen[-1].shape == ()
    assert float(seen[-1]) == pytest.approx(0.4)
    at_step(optimizer, 0)
    assert 0.99 < float(optimizer.rho) < 1
    at_step(optimizer, 9)
    assert float(optimizer.rho) == 0
    at_step(optimizer, 2)
    assert math.isfinite(move(optimizer, p, [1.0]).item())


def test_hold_steps_keep_rho_0_and_shift_the_schedule() -> None:
    held = CoolMomentum([parameter(0.0)], rho_0=0.9, cool_steps=10, hold_steps=7)
    plain = CoolMomentum([parameter(0.0)], rho_0=0.9, cool_steps=10)
    for t in range(8):
        at_step(held, t)
        assert float(held.rho) == pytest.approx(0.9, rel=1e-14)
    for t in range(12):
        at_step(held, 7 + t)
        at_step(plain, t)
        torch.testing.assert_close(held.rho, plain.rho, rtol=1e-14, atol=0)


# -- the step (acceptance 2-6) -------------------------------------------------------------------


@pytest.mark.parametrize("decay", [{}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "decoupled": True}], ids=str)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("cool_steps", [None, 25])
def test_trajectory_follows_the_reference(cool_steps: int | None, schedule: str, decay: dict[str, float]) -> None:
    start = [0.9, -0.4, 1.3, 0.05]
    plain = reference.CoolMomentum(start, 0.02, 0.95, cool_steps, schedule=schedule, hold_steps=4, **decay)
    p = parameter(*start)
    optimizer = CoolMomentum([p], 0.02, 0.95, cool_steps, schedule=schedule, hold_steps=4, **decay)
    for _ in range(40):
        assert float(optimizer.rho) == pytest.approx(plain.rho, rel=1e-13, abs=1e-15)
        plain.step(uneven_well(plain.x))
        move(optimizer, p, uneven_well(p.tolist()))
        torch.testing.assert_close(p.detach(), vector(plain.x), rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(optimizer.state[p]["displacement"], vector(plain.d), rtol=1e-11, atol=1e-14)


def test_the_first_call_moves() -> None:
    p = parameter(1.0, -1.0)
    d = move(CoolMomentum([p], lr=0.1, rho_0=0.8, cool_steps=100), p, [2.0, -4.0])
    torch.testing.assert_close(d, vector([-0.18, 0.36]), rtol=1e-12, atol=0)


@pytest.mark.parametrize("rho_0", [0.0, 0.5, 0.9])
def test_constant_force_drifts_at_the_effective_rate(rho_0: float) -> None:
    p = parameter(0.0)
    optimizer = CoolMomentum([p], lr=0.1, rho_0=rho_0)
    for _ in range(400):
        d = move(optimizer, p, [2.0])
    assert d.item() == pytest.approx(-0.1 * (1 + rho_0) / (2 * (1 - rho_0)) * 2, rel=1e-10)
    assert d.item() == pytest.approx(-2 * float(optimizer.effective_lr), rel=1e-10)


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
@pytest.mark.parametrize("rho_0", [0.0, 0.9])
def test_without_cooling_it_is_sgd_with_momentum(rho_0: float, weight_decay: float) -> None:
    p, q = parameter(0.9, -0.4, 1.3), parameter(0.9, -0.4, 1.3)
    ours = CoolMomentum([p], lr=0.02, rho_0=rho_0, weight_decay=weight_decay)
    theirs = torch.optim.SGD([q], lr=0.02 * (1 + rho_0) / 2, momentum=rho_0, weight_decay=weight_decay)
    for _ in range(40):
        move(ours, p, uneven_well(p.tolist()))
        q.grad = vector(uneven_well(q.tolist()))
        theirs.step()
    torch.testing.assert_close(p, q, rtol=1e-13, atol=1e-14)


def test_after_cooling_it_is_sgd_at_half_the_rate() -> None:
    p = parameter(0.9, -0.4, 1.3)
    ours = CoolMomentum([p], lr=0.02, rho_0=0.9, cool_steps=10)
    for _ in range(10):
        move(ours, p, uneven_well(p.tolist()))
    assert ours.state[p]["displacement"].abs().min() > 0
    q = p.detach().clone().requires_grad_()
    theirs = torch.optim.SGD([q], lr=0.01)
    for _ in range(20):
        move(ours, p, uneven_well(p.tolist()))
        q.grad = vector(uneven_well(q.tolist()))
        theirs.step()
        torch.testing.assert_close(p, q, rtol=1e-14, atol=0)


@pytest.mark.parametrize("rho_0", [0.0, 0.5, 0.9, 0.99])
def test_the_stability_limit_is_four_at_every_rho(rho_0: float) -> None:
    """On a quadratic of curvature k the step is stable for lr k < 4 and for no more."""
    lr = 0.1
    k = torch.tensor([0.1, 2.0, 3.99, 4.01, 4.5], dtype=torch.float64) / lr
    p = torch.ones(5, dtype=torch.float64).requires_grad_()
    optimizer = CoolMomentum([p], lr=lr, rho_0=rho_0)
    for _ in range(2500):
        p.grad = k * p.detach()
        optimizer.step()
    assert (p[:3].abs() < 1e-2).all()
    assert not (p[3:].abs() < 1e3).any()  # the fastest is past infinity


def test_decoupled_decay_keeps_its_strength_while_the_momentum_cools() -> None:
    for rho_0 in (0.0, 0.9):
        p = parameter(2.0)
        optimizer = CoolMomentum([p], lr=0.1, rho_0=rho_0, weight_decay=0.5, decoupled=True)
        for t in range(1, 6):
            move(optimizer, p, [0.0])
            assert p.item() == pytest.approx(2 * 0.95**t, rel=1e-13)
        assert optimizer.state[p]["displacement"].item() == 0


# -- physics (acceptance 7, 8, 11) ---------------------------------------------------------------


@pytest.mark.parametrize("rho_0", [0.0, 0.8])
def test_stationary_temperature_on_a_quadratic(rho_0: float) -> None:
    """T = <D^2>/lr = k Var(x) = lr s^2 (1+rho) / (4 (1-rho)) / (1 - lr k/4), and x.g agrees with it."""
    torch.manual_seed(3)
    lr, s = 0.2, 0.7
    for k in (0.5, 5.0, 10.0):
        p = torch.zeros(4096, dtype=torch.float64, requires_grad=True)
        optimizer = CoolMomentum([p], lr=lr, rho_0=rho_0)
        readings = []
        for t in range(800):
            p.grad = k * p.detach() + s * torch.randn_like(p)
            optimizer.step()
            if t >= 200:
                configurational = k * p.detach().square().mean()
                readings.append(
                    torch.stack([optimizer.kinetic_temperature, optimizer.virial_temperature, configurational])
                )
        expected = lr * s**2 * (1 + rho_0) / (4 * (1 - rho_0)) / (1 - lr * k / 4)
        torch.testing.assert_close(
            torch.stack(readings).mean(0), torch.full((3,), expected, dtype=torch.float64), rtol=0.02, atol=0
        )


@pytest.mark.parametrize("rho_0", [0.5, 0.9])
def test_virial_identity_in_a_double_well(rho_0: float) -> None:
    """<x.g> = <|D|^2>/lr in any stationary state of any potential, whatever rho."""
    torch.manual_seed(4)
    p = torch.randn(4096, dtype=torch.float64).sign().requires_grad_()
    optimizer = CoolMomentum([p], lr=0.05, rho_0=rho_0, weight_decay=0.1)
    kinetic, virial = [], []
    for t in range(900):
        x = p.detach()
        p.grad = 4 * x * (x * x - 1) + 0.15 + torch.randn_like(x)
        optimizer.step()
        if t >= 300:
            kinetic.append(optimizer.kinetic_temperature)
            virial.append(optimizer.virial_temperature)
    torch.testing.assert_close(torch.stack(virial).mean(), torch.stack(kinetic).mean(), rtol=0.03, atol=0)
    assert torch.stack(kinetic).mean() > 1e-3


def test_without_friction_the_leapfrog_energy_is_conserved() -> None:
    k, lr = 30.0, 0.01
    p = parameter(1.0)
    optimizer = CoolMomentum([p], lr=lr, rho_0=1 - 1e-9)
    energies = []
    for _ in range(10_000):
        before = p.detach().clone()
        p.grad = k * before
        optimizer.step()
        after = p.detach()
        energies.append((after - before).square() / (2 * lr) + k * after * before / 2)
    energy = torch.cat(energies)
    assert energy[0] > 1
    torch.testing.assert_close(energy, energy[0].expand_as(energy), rtol=1e-4, atol=0)


def escapes(schedule: str, cool_steps: int) -> float:
    """Fraction of 4000 walkers that end in the deep well of U = (x^2 - 1)^2 + 0.15 x, started in the shallow one."""
    torch.manual_seed(5)
    p = torch.full((4000,), 0.98).requires_grad_()
    optimizer = CoolMomentum([p], lr=0.01, rho_0=0.99, cool_steps=cool_steps, schedule=schedule)
    for _ in range(cool_steps + 200):
        x = p.detach()
        p.grad = 4 * x * (x * x - 1) + 0.15 + torch.randn_like(x)
        optimizer.step()
    return (p < 0).float().mean().item()


def test_slower_cooling_finds_the_deeper_well_and_linear_beats_exponential() -> None:
    """The specification's table (section 12), which is itself a sample: 0.04 is five of its standard errors."""
    expected = {"exponential": {100: 0.0, 1000: 0.12, 3000: 0.38}, "linear": {100: 0.01, 1000: 0.40, 3000: 0.67}}
    for schedule, fractions in expected.items():
        for cool_steps, fraction in fractions.items():
            assert escapes(schedule, cool_steps) == pytest.approx(fraction, abs=0.04), (schedule, cool_steps)


# -- reheating, groups, resuming (acceptance 9, 10) ----------------------------------------------


def test_reheat_restarts_the_schedule_at_the_current_step() -> None:
    p = parameter(0.0)
    optimizer = CoolMomentum([p], lr=0.1, rho_0=0.9, cool_steps=5, schedule="linear")
    for _ in range(8):
        move(optimizer, p, [1.0])
    assert float(optimizer.rho) == 0
    optimizer.reheat(0.6, cool_steps=10, hold_steps=3)
    for t in range(20):
        wanted = reference.rho_at("linear", 0.6, 10, t, hold_steps=3)
        assert float(optimizer.rho) == pytest.approx(wanted, rel=1e-13, abs=1e-15)
        move(optimizer, p, [1.0])


def test_reheat_survives_a_checkpoint() -> None:
    p, q = parameter(0.3), parameter(0.3)
    ours = CoolMomentum([p], lr=0.1, rho_0=0.9, cool_steps=5)
    for _ in range(3):
        move(ours, p, [1.0])
    ours.reheat(0.8, cool_steps=7)
    move(ours, p, [1.0])
    resumed = CoolMomentum([q], lr=0.1, rho_0=0.9, cool_steps=5)
    resumed.load_state_dict(ours.state_dict())
    with torch.no_grad():
        q.copy_(p)
    for _ in range(10):
        torch.testing.assert_close(resumed.rho, ours.rho, rtol=0, atol=0)
        move(ours, p, [0.5])
        move(resumed, q, [0.5])
        assert torch.equal(p, q)


@pytest.mark.parametrize("rho", [1.0, -0.1, 2.0])
def test_reheat_refuses_what_the_constructor_refuses(rho: float) -> None:
    optimizer = CoolMomentum([parameter(0.0)], cool_steps=5)
    with pytest.raises(ValueError, match=str(rho)):
        optimizer.reheat(rho, cool_steps=5)


def test_groups_override_every_setting() -> None:
    settings: list[dict[str, object]] = [
        {"lr": 0.02, "rho_0": 0.95, "cool_steps": 30, "schedule": "exponential", "weight_decay": 0.0},
        {"lr": 0.05, "rho_0": 0.5, "cool_steps": 8, "schedule": "linear", "weight_decay": 0.1},
        {"lr": 0.01, "rho_0": 0.9, "cool_steps": 5, "schedule": "exponential_temperature", "hold_steps": 6},
        {"lr": 0.03, "rho_0": 0.7, "cool_steps": None, "schedule": "linear", "weight_decay": 0.2, "decoupled": True},
    ]
    start = [0.9, -0.4, 1.3]
    parameters = [parameter(*start) for _ in settings]
    optimizer = CoolMomentum([{"params": [p], **s} for p, s in zip(parameters, settings, strict=True)])
    plain = [reference.CoolMomentum(start, **s) for s in settings]  # type: ignore[arg-type]
    for _ in range(20):
        assert optimizer.rho.shape == optimizer.effective_lr.shape == (4,)
        torch.testing.assert_close(optimizer.rho, vector([r.rho for r in plain]), rtol=1e-13, atol=1e-15)
        for p, r in zip(parameters, plain, strict=True):
            p.grad = vector(uneven_well(p.tolist()))
            r.step(uneven_well(r.x))
        optimizer.step()
    for p, r in zip(parameters, plain, strict=True):
        torch.testing.assert_close(p.detach(), vector(r.x), rtol=1e-12, atol=1e-13)


def test_settings_changed_in_the_group_take_effect() -> None:
    """Nothing is cached from the constructor."""
    p = parameter(0.0)
    optimizer = CoolMomentum([p], lr=0.1, rho_0=0.9, cool_steps=10)
    optimizer.param_groups[0].update(lr=1.0, rho_0=0.5, cool_steps=4, schedule="linear")
    at_step(optimizer, 2)
    rho = reference.rho_at("linear", 0.5, 4, 2)
    assert move(optimizer, p, [1.0]).item() == pytest.approx(-(1 + rho) / 2, rel=1e-13)


def test_a_late_group_joins_at_the_current_temperature() -> None:
    p, q = parameter(0.5), parameter(0.5)
    optimizer = CoolMomentum([p], lr=0.1, rho_0=0.9, cool_steps=10)
    for _ in range(6):
        move(optimizer, p, [1.0])
    optimizer.add_param_group({"params": [q]})
    rho = reference.rho_at("exponential", 0.9, 10, 6)
    torch.testing.assert_close(optimizer.rho, vector([rho, rho]), rtol=1e-13, atol=0)
    p.grad = None
    assert move(optimizer, q, [1.0]).item() == pytest.approx(-0.1 * (1 + rho) / 2, rel=1e-13)
    assert optimizer.param_groups[0]["step"] is optimizer.param_groups[1]["step"]
    assert int(optimizer.param_groups[0]["step"]) == 7


def test_a_parameter_whose_first_gradient_comes_late_is_as_cold_as_the_rest() -> None:
    p, q = parameter(0.5), parameter(0.5)
    optimizer = CoolMomentum([p, q], lr=0.1, rho_0=0.9, cool_steps=10)
    for _ in range(6):
        move(optimizer, p, [1.0])
    assert q.item() == 0.5
    assert optimizer.state[q]["displacement"].item() == 0
    rho = reference.rho_at("exponential", 0.9, 10, 6)
    assert move(optimizer, q, [1.0]).item() == pytest.approx(-0.1 * (1 + rho) / 2, rel=1e-13)


def test_without_a_gradient_the_displacement_rests_too() -> None:
    p, q = parameter(0.5), parameter(0.5)
    optimizer = CoolMomentum([p, q], lr=0.1, rho_0=0.9)
    q.grad = torch.ones_like(q)
    move(optimizer, p, [1.0])
    before = optimizer.state[q]["displacement"].clone()
    q.grad = None
    place = q.item()
    move(optimizer, p, [1.0])
    assert torch.equal(optimizer.state[q]["displacement"], before)
    assert before.item() != 0
    assert q.item() == place


@pytest.mark.parametrize("schedule", [*SCHEDULES, lambda s: 0.9 * (1 - s)], ids=[*SCHEDULES, "callable"])
def test_resuming_in_mid_cooling_continues_bit_for_bit(
    schedule: str | Callable[[Tensor], Tensor], tmp_path: Path
) -> None:
    def fresh() -> tuple[Tensor, CoolMomentum]:
        p = parameter(0.9, -0.4, 1.3)
        return p, CoolMomentum([p], lr=0.02, rho_0=0.9, cool_steps=20, schedule=schedule, weight_decay=0.01)

    p, ours = fresh()
    for _ in range(8):
        move(ours, p, uneven_well(p.tolist()))
    torch.save({"p": p.detach(), "optimizer": ours.state_dict()}, f"{tmp_path}/checkpoint.pt")
    for _ in range(15):
        move(ours, p, uneven_well(p.tolist()))
    q, resumed = fresh()
    saved = torch.load(f"{tmp_path}/checkpoint.pt", weights_only=True)
    with torch.no_grad():
        q.copy_(saved["p"])
    resumed.load_state_dict(saved["optimizer"])
    assert int(resumed.param_groups[0]["step"]) == 8
    for _ in range(15):
        move(resumed, q, uneven_well(q.tolist()))
    assert torch.equal(p, q)


def test_a_skipped_step_does_not_cool() -> None:
    p = parameter(1.0)
    optimizer = CoolMomentum([p], lr=0.1, rho_0=0.9, cool_steps=10, skip_nonfinite=True)
    assert move(optimizer, p, [float("nan")]).item() == 0
    assert int(optimizer.param_groups[0]["step"]) == 0
    assert int(optimizer.skipped) == 1
    assert move(optimizer, p, [1.0]).item() == pytest.approx(-0.095)


# -- readings (section 8.1) ----------------------------------------------------------------------


def test_readings_are_what_they_are_called() -> None:
    lr, weight_decay = 0.04, 0.3
    p, q = parameter(0.9, -0.4, 1.3), parameter(2.0)
    optimizer = CoolMomentum([p, q], lr=lr, rho_0=0.9, cool_steps=10, weight_decay=weight_decay)
    for t in range(4):
        rho = reference.rho_at("exponential", 0.9, 10, t)
        assert float(optimizer.step_factor) == pytest.approx(lr * (1 + rho) / 2, rel=1e-13)
        assert float(optimizer.effective_lr) == pytest.approx(lr * (1 + rho) / (2 * (1 - rho)), rel=1e-12)
        assert float(optimizer.friction) == pytest.approx(2 * (1 - rho) / (1 + rho) / math.sqrt(lr), rel=1e-12)
        relative = reference.temperature(rho) / reference.temperature(0.9)
        assert float(optimizer.schedule_temperature) == pytest.approx(relative, rel=1e-12)
        before = torch.cat([p, q]).detach()
        p.grad = vector(uneven_well(p.tolist()))
        q.grad = torch.tensor([0.7], dtype=torch.float64)
        force = torch.cat([p.grad, q.grad]) + weight_decay * before
        optimizer.step()
        d = torch.cat([p, q]).detach() - before
        assert float(optimizer.rescaled_temperature) == pytest.approx(d.square().mean().item(), rel=1e-10)
        assert float(optimizer.kinetic_temperature) == pytest.approx(d.square().mean().item() / lr, rel=1e-10)
        assert float(optimizer.virial_temperature) == pytest.approx((before * force).mean().item(), rel=1e-10)
        assert all(r.shape == () for r in (optimizer.rho, optimizer.friction, optimizer.virial_temperature))


def test_readings_come_one_a_group() -> None:
    p, q = parameter(1.0, 1.0), parameter(3.0)
    optimizer = CoolMomentum([{"params": [p], "lr": 0.1}, {"params": [q], "lr": 0.4, "rho_0": 0.5}], rho_0=0.0)
    p.grad, q.grad = torch.ones_like(p), 2 * torch.ones_like(q)
    optimizer.step()
    d = [-0.05, -0.6]  # -lr (1 + rho)/2 g
    expected = {
        "rescaled_temperature": [d[0] ** 2, d[1] ** 2],
        "kinetic_temperature": [d[0] ** 2 / 0.1, d[1] ** 2 / 0.4],
        "virial_temperature": [1.0, 6.0],
        "step_factor": [0.05, 0.3],
        "effective_lr": [0.05, 0.6],
    }
    for name, values in expected.items():
        torch.testing.assert_close(getattr(optimizer, name), vector(values), rtol=1e-12, atol=0, msg=name)


# -- its manners ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "value", "range_"),
    [
        ("lr", -0.1, r"0"),
        ("lr", float("nan"), r"0"),
        ("rho_0", 1.0, r"1"),
        ("rho_0", -0.01, r"0"),
        ("cool_steps", 0, r"1"),
        ("cool_steps", -5, r"1"),
        ("hold_steps", -1, r"0"),
        ("weight_decay", -1e-4, r"0"),
        ("schedule", "cosine", r"exponential.*linear"),
    ],
)
def test_bad_arguments_name_themselves_their_value_and_the_range(argument: str, value: object, range_: str) -> None:
    with pytest.raises(ValueError, match=argument) as error:
        CoolMomentum([parameter(0.0)], **{argument: value})  # type: ignore[arg-type]
    text = str(error.value)
    assert str(value) in text
    remaining = text.replace(argument, "").replace(str(value), "")
    assert re.search(range_, remaining), text


def test_a_bad_setting_of_a_group_is_refused_too() -> None:
    with pytest.raises(ValueError, match="rho_0"):
        CoolMomentum([{"params": [parameter(0.0)], "rho_0": 1.0}])
    optimizer = CoolMomentum([parameter(0.0)])
    with pytest.raises(ValueError, match="cool_steps"):
        optimizer.add_param_group({"params": [parameter(1.0)], "cool_steps": 0})
    assert len(optimizer.param_groups) == 1


def test_zero_rates_are_legal() -> None:
    p = parameter(1.0)
    assert move(CoolMomentum([p], lr=0.0), p, [1.0]).item() == 0
    assert move(CoolMomentum([p], lr=1.0, rho_0=0.0), p, [1.0]).item() == -0.5


def test_a_tensor_learning_rate_does_as_a_float() -> None:
    p, q = parameter(0.9, -0.4), parameter(0.9, -0.4)
    lr = torch.tensor(0.05, dtype=torch.float64)
    ours, theirs = CoolMomentum([p], lr=lr, cool_steps=10), CoolMomentum([q], lr=0.05, cool_steps=10)
    for t in range(12):
        lr.fill_(0.05 / (1 + t))
        theirs.param_groups[0]["lr"] = 0.05 / (1 + t)
        move(ours, p, uneven_well(p.tolist()))
        move(theirs, q, uneven_well(q.tolist()))
    torch.testing.assert_close(p, q, rtol=1e-13, atol=0)


def test_the_gradient_is_only_read() -> None:
    p = parameter(1.0, 2.0)
    optimizer = CoolMomentum([p], weight_decay=0.5, maximize=True)
    p.grad = gradient = torch.tensor([3.0, -4.0], dtype=torch.float64)
    kept = gradient.clone()
    optimizer.step()
    assert p.grad is gradient
    assert torch.equal(gradient, kept)


def test_closure_runs_with_gradients_enabled_and_its_loss_comes_back() -> None:
    p = parameter(1.0, 2.0)
    optimizer = CoolMomentum([p], lr=0.1, rho_0=0.0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert loss.detach() == 5
    torch.testing.assert_close(p.detach(), vector([0.9, 1.8]), rtol=1e-12, atol=0)


def test_one_cycle_needs_cycle_momentum_false() -> None:
    """The group has no key `momentum` which OneCycleLR would overwrite with its own cycle."""
    p = parameter(1.0)
    optimizer = CoolMomentum([p], rho_0=0.9, cool_steps=10)
    with pytest.raises(ValueError, match="momentum"):
        torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10, cycle_momentum=False)
    rates = []
    for t in range(9):
        assert float(optimizer.rho) == pytest.approx(reference.rho_at("exponential", 0.9, 10, t), rel=1e-13)
        rates.append(optimizer.param_groups[0]["lr"])
        move(optimizer, p, [1.0])
        scheduler.step()
    assert max(rates) > 10 * rates[0]
