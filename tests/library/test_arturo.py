"""arTuRO: the acceptance list of its specification, and the rules that hold for no other optimizer."""

import copy
import math
import statistics
from collections.abc import Iterator
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bits import assert_bits
from problem import at, batch_losses, lists, start, vector
from torch import Tensor

from fallline import ArTuRO
from fallline.arturo._curvature import rls_observe_
from fallline.arturo._trust_region import Moments, TrustRegion
from reference import arturo as reference

WHOLE = {"solver", "eta_min", "scope"}  # settings of the reference's optimizer; the others are its groups'
COVARIANCE = ["p00", "p01", "p11"]
EXPERIMENTS = [
    "fashion-mnist-cnn",
    "fashion-mnist-resnet18",
    "cifar10-cnn",
    "cifar100-cnn",
    "cifar10-resnet34",
    "cifar100-resnet34",
]


def parameter(values: list[float] | Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """One parameter of the given values."""
    return torch.as_tensor(values, dtype=torch.float64).to(dtype).clone().requires_grad_()


def pose(optimizer: ArTuRO, p: Tensor, *, intercept: Any, slope: Any, precision: Any) -> None:
    """Make the next step start from this model, with a gradient that it foretells: the filter leaves it as it is."""
    state = optimizer.state[p]
    for name, value in dict(intercept=intercept, slope=slope, precision=precision, started=1.0).items():
        state[name].copy_(torch.as_tensor(value, dtype=torch.float64))
    p.grad = state["slope"] * p.detach() + state["intercept"]


def move(optimizer: ArTuRO, p: Tensor, gradient: Tensor | list[float] | float) -> Tensor:
    """One step with the given gradient; returns the displacement."""
    before = p.detach().clone()
    p.grad = torch.as_tensor(gradient, dtype=p.dtype).expand_as(p).clone()
    optimizer.step()
    return p.detach() - before


def pair(groups: list[list[Tensor]], settings: list[dict[str, Any]], **whole: Any) -> tuple[ArTuRO, reference.Arturo]:
    """The library's optimizer over groups of tensors, and the reference's."""
    mine = ArTuRO([{"params": ps, **s} for ps, s in zip(groups, settings, strict=True)], **whole)
    known = {f.name for f in fields(reference.Settings)}
    plain = reference.Arturo(
        [
            (lists(ps), reference.Settings(**{k: v for k, v in {**whole, **s}.items() if k in known}))
            for ps, s in zip(groups, settings, strict=True)
        ],
        **{k: v for k, v in whole.items() if k in WHOLE},
    )
    return mine, plain


def assert_same(optimizer: ArTuRO, parameters: list[Tensor], plain: reference.Arturo, rel: float = 1e-9) -> None:
    """Parameters, state and readings are those of the reference."""
    for p, block, wanted in zip(parameters, plain.weights, plain.blocks, strict=True):
        assert p.detach().flatten().tolist() == pytest.approx(wanted, rel=rel, abs=rel)
        state = {name: value.flatten().tolist() for name, value in optimizer.state[p].items()}
        assert state["precision"] == pytest.approx([w.precision for w in block], rel=rel)
        if "second_moment" in state:
            if block[0].mean is not None:
                assert state["second_moment"] == pytest.approx([w.second_moment for w in block], rel=rel, abs=rel)
                assert state["intercept"] == pytest.approx([w.model[0] for w in block], rel=rel, abs=rel)
                assert state["p00"] == pytest.approx([block[0].P[0][0]], rel=rel)
            continue
        for name, (i, j) in {"p00": (0, 0), "p01": (0, 1), "p11": (1, 1)}.items():
            assert state[name] == pytest.approx([w.P[i][j] for w in block], rel=rel, abs=rel)
        assert state["started"] == [block[0].mean is not None]
        if block[0].mean is not None:
            assert state["intercept"] == pytest.approx([w.model[0] for w in block], rel=rel, abs=rel)
            assert state["slope"] == pytest.approx([w.model[1] for w in block], rel=rel, abs=rel)
    readings = [torch.atleast_1d(t).tolist() for t in (optimizer.eta, optimizer.kl, optimizer.active)]
    etas, kls, active = [[getattr(c, name) for c in plain.constraints] for name in ("eta", "kl", "active")]
    assert readings[0] == pytest.approx(etas, rel=rel, abs=rel)
    assert readings[1] == pytest.approx(kls, rel=rel)
    assert readings[2] == active


# -- printed numbers (acceptance 1) ------------------------------------------------------------------------------

EXAMPLE = dict(lr=0.01, reg_weight=0.3, prior_prec=0.0015, nu=1.3)
MODEL = dict(intercept=[0.2, 0.3], slope=[0.1, 0.4], precision=[2.0, 1.0])
AT = [0.5, -1.0]
DELTA, PRECISION, ETA = [-0.0911118722, 0.0582859631], [1.68778125, 1.06278125], 1.3229495052
NOISES = dict(filter_var_init=0.5, process_noise=0.05, measurement_noise=0.5)
FILTERED = [  # theta, g, then b, a, P00, P01, P11
    (0.4, 0.2, [0.1806678383, 0.0922671353, 0.2841827768, -0.1063268893, 0.5074692442]),
    (0.3, 0.1, [0.1407536550, 0.0842239633, 0.2228244713, -0.1287668827, 0.5529473247]),
]


def example(dtype: torch.dtype, **settings: Any) -> tuple[ArTuRO, Tensor]:
    """The worked example, its step made."""
    p = parameter(AT, dtype)
    optimizer = ArTuRO([p], **{**EXAMPLE, **settings})
    pose(optimizer, p, **MODEL)
    optimizer.step()
    return optimizer, p.detach()


def test_the_reference_has_the_printed_digits() -> None:
    plain = reference.Arturo([([AT], reference.Settings(**EXAMPLE))])
    for w, b, a, precision in zip(plain.weights[0], *MODEL.values(), strict=True):
        w.mean, w.precision = [[b], [a]], precision
    terms = [reference.Term(w.g, w.h, w.precision) for w in plain.weights[0]]
    assert reference.published_multiplier(terms, 0.01, -1.0) == (1.373291015625, 15)
    plain.step([[a * x + b for x, b, a in zip(AT, MODEL["intercept"], MODEL["slope"], strict=True)]])
    assert [w.x - x for w, x in zip(plain.weights[0], AT, strict=True)] == pytest.approx(DELTA, abs=6e-11)
    assert [w.precision for w in plain.weights[0]] == pytest.approx(PRECISION, rel=1e-14)
    assert plain.constraints[0].eta == pytest.approx(ETA, abs=6e-11)
    w = reference.Weight(0.0, reference.Settings(**NOISES))
    for w.x, g, wanted in FILTERED:
        w.observe(g)
        (p00, p01), (p10, p11) = w.P
        assert p01 == p10
        assert [*w.model, p00, p01, p11] == pytest.approx(wanted, abs=1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-6)])
def test_worked_example(dtype: torch.dtype, tolerance: float) -> None:
    optimizer, x = example(dtype)
    assert (x - parameter(AT, dtype)).tolist() == pytest.approx(DELTA, abs=tolerance)
    (state,) = optimizer.state.values()
    assert state["precision"].tolist() == pytest.approx(PRECISION, rel=tolerance)
    assert optimizer.eta.item() == pytest.approx(ETA, rel=tolerance)
    assert optimizer.kl.item() == pytest.approx(0.01, rel=10 * tolerance)  # the margin is 8 roundings of the dtype
    assert optimizer.active.item() is True


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-6)])
def test_three_moments_and_an_end_are_all_of_two_weights(dtype: torch.dtype, tolerance: float) -> None:
    """Gauss-Radau quadrature is exact for two atoms: with no pass over the weights or with many, one multiplier."""
    for iters in range(4):
        optimizer, x = example(dtype, newton_iters=iters)
        assert optimizer.eta.item() == pytest.approx(ETA, rel=tolerance)
        delta = (x - parameter(AT, dtype)).double()
        assert (vector(MODEL["precision"]) * delta.square()).sum().item() / 2 == pytest.approx(0.01, rel=10 * tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_published_bisection_has_its_printed_value(dtype: torch.dtype) -> None:
    optimizer, x = example(dtype, solver="bisect")
    assert optimizer.eta.item() == 1.373291015625
    plain = [-0.250225 / (0.10045 + 1.373291015625 * 2), 0.10045 / (0.40045 + 1.373291015625)]  # and not rescaled
    assert (x - parameter(AT, dtype)).tolist() == pytest.approx(plain, abs=1e-12 if dtype == torch.float64 else 1e-7)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
def test_the_filter_has_its_printed_values(dtype: torch.dtype, tolerance: float) -> None:
    p = parameter([0.0], dtype)
    optimizer = ArTuRO([p], lr=0.0, **NOISES)
    for theta, g, wanted in FILTERED:
        p.detach().fill_(theta)
        move(optimizer, p, g)
        state = optimizer.state[p]
        assert [state[k].item() for k in ("intercept", "slope", *COVARIANCE)] == pytest.approx(wanted, abs=tolerance)


# lr, kappa, r, q, decay; and what the specification derives: q/r, the gain, beta, Lambda*, the first step's length
SETTINGS = {
    "fashion-mnist-cnn": (
        [0.0856746, 0.0586566, 2.816791, 0.0173930, 1.5404e-6],
        [6.2e-3, 0.076, 0.043, 1.71, 0.041],
    ),
    "cifar10-cnn": ([0.00278750, 0.296786, 1.219750, 0.00245526, 0.0], [2.0e-3, 0.044, 0.186, 0.34, 0.0075]),
    "cifar10-resnet34": ([0.00713292, 1.597354, 9.328440, 0.0893810, 7.0291e-4], [9.6e-3, 0.093, 0.551, 0.064, 0.012]),
    "cifar100-resnet34": ([0.00723373, 1.676770, 4.822032, 0.00977875, 0.0], [2.0e-3, 0.044, 0.563, 0.061, 0.012]),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_published_settings(name: str) -> None:
    values, derived = SETTINGS[name]
    names = ["lr", "reg_weight", "measurement_noise", "process_noise", "weight_decay"]
    p = parameter([0.0])
    optimizer = ArTuRO([p], **ArTuRO.published(name))
    group, state = optimizer.param_groups[0], optimizer.state[p]
    assert [group[k] for k in names] == values
    shared = dict(var_init=0.01, prior_prec=0.0015, filter_var_init=5e-5, nu=1.3, curvature_init=0.1)
    assert {k: group[k] for k in shared} == shared

    # The derived columns, seen in a run: the first step, then the filter and the precision at rest at theta = 0.
    length = move(optimizer, p, 1.0).abs().item()
    beta = (100 - state["precision"].item()) / (100 - derived[3])
    state["precision"].fill_(2 * derived[3])
    group["lr"] = 0.0
    p.detach().zero_()
    for _ in range(120):
        move(optimizer, p, 1.0)
    before = state["intercept"].item()
    move(optimizer, p, 2.0)
    gain = (state["intercept"].item() - before) / (2 - before)
    seen = [group["process_noise"] / group["measurement_noise"], gain, beta, state["precision"].item(), length]
    assert seen == pytest.approx(derived, rel=2e-2)


def test_published_settings_that_tasks_share() -> None:
    assert ArTuRO.published("fashion-mnist-resnet18") == ArTuRO.published("fashion-mnist-cnn")
    assert ArTuRO.published("cifar100-cnn") == ArTuRO.published("cifar10-cnn")


def test_published_is_a_copy_and_knows_its_names() -> None:
    ArTuRO.published("cifar10-cnn")["lr"] = 7.0
    assert ArTuRO.published("cifar10-cnn")["lr"] == 0.00278750
    with pytest.raises(ValueError, match="'mnist'") as caught:
        ArTuRO.published("mnist")
    assert all(name in str(caught.value) for name in EXPERIMENTS)


# -- trajectories ------------------------------------------------------------------------------------------------

CASES: dict[str, dict[str, Any]] = {
    "defaults": {"newton_iters": 4},
    "published": ArTuRO.published("fashion-mnist-cnn"),
    "decay": {"lr": 0.2, "weight_decay": 0.5},
    "priors": {"lr": 0.05, "reg_weight": 0.8, "prior_prec": 0.2, "nu": 0.4},
    "no-inertia": {"lr": 0.05, "reg_weight": 0.5, "nu": 0.0},
    "no-prior": {"lr": 0.05, "reg_weight": 0.0, "nu": 0.7},
    "starts": {"lr": 0.02, "var_init": 0.5, "filter_var_init": 0.3, "curvature_init": 0.7},
    "floor": {"lr": 0.02, "process_noise": 1e-4, "process_noise_quad": 1.0, "measurement_noise": 0.1}
    | {"curvature_floor": 0.05},
    "centred": {"lr": 0.5, "intercept_init": "centred", "eta_min": 0.25},
    "group": {"lr": 0.02, "scope": "group"},
    "tensor": {"lr": 0.02, "scope": "tensor"},
    "bisect": {"lr": 0.01, "solver": "bisect", "curvature_floor": -math.inf},
    "second-moment": {"lr": 0.02, "curvature": "second-moment", "process_noise": 0.3, "beta2": 0.9},
    "second-moment-prior": {"lr": 1.0, "curvature": "second-moment", "prior_prec": 0.2, "eta_min": 0.25}
    | {"curvature_floor": 0.2, "scope": "tensor"},
    "second-moment-bisect": {"lr": 0.01, "curvature": "second-moment", "solver": "bisect"},
}
OTHER = {"nu": 0.9, "reg_weight": 0.4, "curvature_init": 0.2, "intercept_init": "centred", "weight_decay": 0.2}


@pytest.mark.parametrize(
    ("case", "two"), [(c, False) for c in ("defaults", "centred", "tensor", "bisect")] + [(c, True) for c in CASES]
)
def test_trajectory_follows_the_reference(case: str, two: bool) -> None:
    """A network on 30 batches; one tensor gets gradients late, another misses some, and the bound is cut at step 18."""
    settings = {"newton_iters": 6, **CASES[case]}
    parameters = start()
    if two:
        own = [{}, {**OTHER, "lr": 3 * settings.get("lr", 1e-3)}]
        optimizer, plain = pair([parameters[:2], parameters[2:]], own, **settings)
    else:
        optimizer, plain = pair([parameters], [{}], **settings)
    for t in range(30):
        if t == 18:
            for group, (_, theirs) in zip(optimizer.param_groups, plain.groups, strict=True):
                group["lr"] *= 0.006
                theirs.lr = group["lr"]
        optimizer.zero_grad()
        batch_losses(parameters, t).mean().backward()
        gradients: list[list[float] | None] = list(at(plain.blocks, t)[1])
        for i in [1] * (t < 10) + [2] * (t % 7 == 3):
            parameters[i].grad = gradients[i] = None
        optimizer.step()
        plain.step(gradients)
        if t in (0, 5, 12, 18, 29):
            assert_same(optimizer, parameters, plain)


def test_the_bisection_follows_the_authors_loop_at_every_step() -> None:
    """Its multiplier after every step, through early exits, a cut bound, its cap and the resting point above 0."""
    seen = []
    for lr in (1e-14, 0.01, 3.0):
        parameters = start()
        optimizer, plain = pair([parameters], [{}], lr=lr, solver="bisect")
        for t in range(30):
            if t == 15:
                optimizer.param_groups[0]["lr"] = plain.groups[0][1].lr = 0.006 * lr
            optimizer.zero_grad()
            batch_losses(parameters, t).mean().backward()
            optimizer.step()
            plain.step(at(plain.blocks, t)[1])
            assert optimizer.eta.item() == pytest.approx(plain.eta, rel=1e-12)
            seen.append(plain.eta)
    assert len(set(seen)) > 20
    assert max(seen) > 9999
    assert 0 < min(seen) < 0.25


def test_a_cut_bound_is_broken_by_the_bisection_and_kept_by_newton() -> None:
    for solver in ("bisect", "newton"):
        parameters = start()
        optimizer = ArTuRO(parameters, **ArTuRO.published("cifar10-cnn"), solver=solver)
        bound, ratios = optimizer.param_groups[0]["lr"], []
        for t in range(30):
            lr = optimizer.param_groups[0]["lr"] = bound * (1 if t < 15 else 0.006)
            optimizer.zero_grad()
            batch_losses(parameters, t).mean().backward()
            before = [(p.detach().clone(), optimizer.state[p]["precision"].clone()) for p in parameters]
            optimizer.step()
            kl = sum((c * (p.detach() - x).square()).sum().item() for p, (x, c) in zip(parameters, before, strict=True))
            ratios.append(kl / 2 / lr)
            assert optimizer.kl.item() == pytest.approx(kl / 2, rel=1e-9)
        if solver == "bisect":
            assert ratios[15] > 10
            assert sum(r > 1.1 for r in ratios[15:]) >= 2
        else:
            assert ratios == pytest.approx([1.0] * 30, rel=1e-9)


# -- the exact solver on random problems (acceptance 2) ----------------------------------------------------------


def problem(seed: int, *, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> tuple[dict[str, Tensor], dict]:
    """A model at theta = 0, and settings whose bound has the multiplier of the seed's choice, if above 0.

    The sizes run from one element, the spread of ln w to 5; some gradients are 0, some curvatures 0 or floored.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(n, generator=generator, dtype=torch.float64)

    n, spread = [1, 2, 17, 300][seed % 4], [0.1, 1.0, 2.0, 5.0][seed // 4 % 4]
    precision, gradient = normal().exp(), scale * normal() * normal().exp()
    slope = precision * (spread * normal()).exp()
    settings = dict(reg_weight=[0.0, 0.3][(seed + seed // 16) % 2], prior_prec=0.5, nu=1.3)
    if n > 2:
        gradient[::5] = 0
        slope[1::7] = 0
        slope[2::9] *= -1
        gradient[3::35] = slope[3::35] = 0
    model = {k: v.to(dtype) for k, v in dict(intercept=gradient, slope=slope, precision=precision).items()}
    g, h, c = problem_terms(model, settings)
    target = (h / c).quantile(0.4).item() * [0.0, 0.01, 1.0, 30.0][seed // 16 % 4]
    bound = divergence(g, h, c, target)
    bound = bound * 1.5 if target == 0 else bound
    settings["lr"] = bound if 0 < bound < math.inf else divergence(g, h, c, max(target, 1.0))
    return model, settings


def problem_terms(model: dict[str, Tensor], settings: dict[str, float]) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient, curvature and precision of a problem, in float64."""
    g, a, precision = [model[k].double() for k in ("intercept", "slope", "precision")]
    return g, a.clamp_min(0) + settings["reg_weight"] * settings["prior_prec"], precision


def divergence(g: Tensor, h: Tensor, precision: Tensor, eta: float) -> float:
    """phi(eta), with 0 / 0 = 0."""
    delta = torch.where(g == 0, 0.0, g / (h + eta * precision))
    return (precision * delta.square()).sum().item() / 2


def solve(model: dict[str, Tensor], **settings: Any) -> tuple[ArTuRO, Tensor]:
    """The displacement of one step from 0, where it is read without rounding."""
    p = torch.zeros_like(model["slope"]).requires_grad_()
    optimizer = ArTuRO([p], **settings)
    pose(optimizer, p, **model)
    optimizer.step()
    for name in ("intercept", "slope"):
        assert torch.equal(optimizer.state[p][name], model[name])
    return optimizer, p.detach().double()


SEEDS = range(64)


@pytest.mark.parametrize(
    ("dtype", "rel", "root"), [(torch.float64, 1e-6, 1e-9), (torch.float32, 1e-4, 1e-4)], ids=["float64", "float32"]
)
def test_the_step_solves_the_trust_region_problem(dtype: torch.dtype, rel: float, root: float) -> None:
    actives = 0
    for seed in SEEDS:
        model, settings = problem(seed, dtype=dtype)
        g, h, precision = problem_terms(model, settings)
        bound = settings["lr"]
        optimizer, delta = solve(model, **settings, newton_iters=8)
        eta, active = optimizer.eta.item(), optimizer.active.item()
        kl = (precision * delta.square()).sum().item() / 2
        assert kl <= bound
        assert optimizer.kl.item() == pytest.approx(kl, rel=rel)
        assert active is (eta > 0)
        assert (delta[g == 0] == 0).all()
        if active:
            assert kl == pytest.approx(bound, rel=rel)
            assert divergence(g, h, precision, eta) == pytest.approx(bound, rel=root)
        else:
            assert divergence(g, h, precision, 0.0) <= bound * (1 + rel)
        actives += active
        residual = h * delta + g + eta * precision * delta
        assert (residual.abs() <= 10 * root * g.abs()).all()
    assert len(SEEDS) / 4 < actives < len(SEEDS)  # both answers are looked at


def test_the_multiplier_is_that_of_the_reference() -> None:
    """As near as the multiplier is known from the bound: where phi is flat, not to every digit."""
    for seed in SEEDS:
        model, settings = problem(seed)
        g, h, precision = problem_terms(model, settings)
        terms = [reference.Term(*t) for t in zip(g.tolist(), h.tolist(), precision.tolist(), strict=True)]
        for eta_min in (0.0, 0.25):
            optimizer, delta = solve(model, **settings, newton_iters=8, eta_min=eta_min)
            wanted = reference.exact_multiplier(terms, settings["lr"], eta_min)
            flat = (h[g != 0] / precision[g != 0]).median().item()
            assert optimizer.eta.item() == pytest.approx(wanted, rel=1e-9, abs=1e-9 * flat)
            assert delta.tolist() == pytest.approx([t.delta(wanted) for t in terms], rel=1e-8, abs=1e-300)


@pytest.mark.parametrize("iters", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_bound_holds_and_is_used_with_any_number_of_newton_steps(dtype: torch.dtype, iters: int) -> None:
    for seed in SEEDS:
        model, settings = problem(seed, dtype=dtype)
        optimizer, delta = solve(model, **settings, newton_iters=iters)
        g, h, precision = problem_terms(model, settings)
        kl = (precision * delta.square()).sum().item() / 2
        assert kl <= settings["lr"]
        if divergence(g, h, precision, 0.0) > settings["lr"]:
            assert kl == pytest.approx(settings["lr"], rel=1e-6 if dtype == torch.float64 else 1e-4)
        # iterates come from below: an eta above the root would break the step short, which no factor mends
        assert divergence(g, h, precision, optimizer.eta.item()) >= min(
            settings["lr"], divergence(g, h, precision, 0.0)
        ) * (1 - (1e-12 if dtype == torch.float64 else 1e-4))


@pytest.mark.parametrize(("dtype", "slack"), [(torch.float64, 1e-9), (torch.float32, 1e-4)], ids=str)
def test_moments_keep_the_bound_and_use_most_of_it(dtype: torch.dtype, slack: float) -> None:
    """Whatever the distribution of the curvatures; all of it where there are two weights."""
    shares: dict[bool, list[float]] = {}
    for seed in SEEDS:
        model, settings = problem(seed, dtype=dtype)
        optimizer, delta = solve(model, **settings)
        g, h, precision = problem_terms(model, settings)
        kl = (precision * delta.square()).sum().item() / 2
        assert kl <= settings["lr"]
        assert optimizer.kl.item() == pytest.approx(kl, rel=1e-4)
        most = min(settings["lr"], divergence(g, h, precision, 0.0))
        assert divergence(g, h, precision, optimizer.eta.item()) <= most * (1 + slack)  # not below the exact one
        shares.setdefault(len(g) <= 2, []).append(kl / most)
    assert min(shares[True]) > 1 - 1e-4
    assert min(shares[False]) > 0.05
    assert statistics.median(shares[False]) > 0.5


def test_atoms_bound_the_divergence_from_both_sides() -> None:
    """Gauss-Radau quadrature of a completely monotone function: above with the lower end, below with the upper."""
    group = SimpleNamespace(
        lr=1.0, params=[None], owners=[torch.zeros(50)], multiplier=vector([0.0])[0], precision=[vector([0.0])]
    )
    region = TrustRegion([group], "global", squared=True)
    for seed in SEEDS:
        generator = torch.Generator().manual_seed(seed)
        w = torch.randn(50, generator=generator, dtype=torch.float64).mul(seed / 16).exp()
        s = torch.randn(50, generator=generator, dtype=torch.float64).mul(2).exp()
        row = [s.sum(), (s * w).sum(), (s * w * w).sum(), -w.min(), w.max(), torch.zeros(())]
        moments = Moments(*[torch.as_tensor(x, dtype=torch.float64).view(1) for x in row])
        for end, above in ((moments.low, True), (moments.high, False)):
            weights, nodes = (x[0] for x in region._atoms(moments, end))
            for power in range(3):
                torch.testing.assert_close((weights * nodes**power).sum(), row[power])
            for eta in (1e-3, 1.0, 1e3):
                phi, by_atoms = ((m / (n + eta) ** 2).sum().item() for m, n in ((s, w), (weights, nodes)))
                assert by_atoms >= phi * (1 - 1e-12) if above else by_atoms <= phi * (1 + 1e-12)


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(torch.float32, 1e15), (torch.float64, 1e100), (torch.float64, 1e15)],
    ids=str,
)
def test_huge_gradients_are_a_normalised_step(dtype: torch.dtype, scale: float) -> None:
    """Where curvature is small beside eta, Delta = -sqrt(2 eps) (g / Lambda) / sqrt(S)."""
    for seed in SEEDS:
        model, settings = problem(seed, dtype=dtype)
        model["intercept"] = model["intercept"] * scale
        g, _, precision = problem_terms(model, settings)
        _, delta = solve(model, **settings)
        kl = (precision * delta.square()).sum().item() / 2
        assert kl <= settings["lr"]
        assert kl == pytest.approx(settings["lr"], rel=1e-6 if dtype == torch.float64 else 1e-4)
        wanted = -math.sqrt(2 * settings["lr"]) * (g / precision) / (g.square() / precision).sum().sqrt()
        torch.testing.assert_close(delta, wanted, rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_tiny_gradients_are_a_newton_step_and_a_line_where_there_is_no_curvature(dtype: torch.dtype) -> None:
    for seed in SEEDS:
        model, settings = problem(seed, dtype=dtype)
        model["intercept"] = model["intercept"] * 1e-30
        g, h, precision = problem_terms(model, settings)
        optimizer, delta = solve(model, **settings, newton_iters=8)
        if settings["reg_weight"] > 0:  # h > 0
            torch.testing.assert_close(delta, -g / h, rtol=1e-5, atol=0)
            assert optimizer.eta.item() == 0
        elif ((h == 0) & (g != 0)).any():  # eta > 0 however small the gradient
            kl = (precision * delta.square()).sum().item() / 2
            assert kl <= settings["lr"]
            assert kl == pytest.approx(settings["lr"], rel=1e-6 if dtype == torch.float64 else 1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradients_of_very_different_size(dtype: torch.dtype) -> None:
    model = {
        "intercept": torch.tensor([1e15, 1.0, 1e-15, 1e-30, 0.0, 1e-30], dtype=dtype),
        "slope": torch.tensor([1.0, 0.0, -1.0, 0.0, 0.0, 2.0], dtype=dtype),
        "precision": torch.tensor([2.0, 1.0, 0.1, 3.0, 1.0, 1.0], dtype=dtype),
    }
    _, delta = solve(model, lr=0.5, reg_weight=0.0)
    assert delta[0].item() == pytest.approx(-math.sqrt(0.5), rel=1e-5)
    assert (delta[1:3] < 0).all()
    assert delta[3] <= 0  # 1e-30 of 1e15 is below float32
    assert delta[4] == 0
    assert (model["precision"].double() * delta.square()).sum() <= 1.0


@pytest.mark.parametrize("scope", ["global", "group", "tensor"])
def test_no_gradient_anywhere_is_no_step_but_the_gaussian_advances(scope: str) -> None:
    ps = [parameter([0.0, 0.0]), parameter([0.0])]
    optimizer = ArTuRO(ps, scope=scope, reg_weight=0.3, prior_prec=0.5, nu=1.3, process_noise=0.25)
    for p in ps:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p in ps:
        state = optimizer.state[p]
        assert (p.detach() == 0).all()
        assert (optimizer.state[p]["intercept"] == 0).all()
        torch.testing.assert_close(state["precision"], torch.full_like(p, (0.1 + 0.15 + 130) / 1.6))
        torch.testing.assert_close(state["p11"], torch.full_like(p, 5e-5 + 0.25))
    assert (optimizer.eta == 0).all()
    assert (optimizer.kl == 0).all()
    assert not optimizer.active.any()


def test_squares_may_overflow() -> None:
    """|g| / sqrt(Lambda) is 1e20, whose square float32 does not hold."""
    model = dict(
        intercept=torch.tensor([1e15, -2e15]), slope=torch.tensor([1.0, 2.0]), precision=torch.full((2,), 1e-10)
    )
    for iters in (0, 4):
        _, delta = solve(model, lr=0.5, newton_iters=iters)
        kl = (1e-10 * delta.square()).sum().item() / 2
        assert 0.1 < kl <= 0.5 * (1 + 1e-6)  # 1e-10 is not a float32
        assert delta.sign().tolist() == [-1.0, 1.0]


def test_without_gradient_or_curvature_there_is_no_step() -> None:
    """h = 0 and g = 0 beside a weight that moves: 0 / 0 is 0, at eta = 0 and above."""
    for lr, active in ((1e-3, True), (1e3, False)):
        model = {k: vector(v) for k, v in dict(intercept=[0, 1], slope=[0, 2], precision=[1, 1]).items()}
        optimizer, delta = solve(model, lr=lr, reg_weight=0.0)
        assert delta.tolist() == pytest.approx([0.0, -math.sqrt(2e-3) if active else -0.5], rel=1e-9)
        assert optimizer.active.item() is active


def test_bounds_of_several_groups_are_one_constraint() -> None:
    """The sum of KL / eps is at most 1, and stationarity holds with a group's own eta = eta eps_max / eps."""
    bounds = [0.3, 0.02, 0.0, 0.1]
    actives = []
    for factor in (1.0, 1e-4, 1e6):
        ps = [parameter([0.0] * 5) for _ in bounds]
        optimizer = ArTuRO([{"params": [p], "lr": factor * b} for p, b in zip(ps, bounds, strict=True)], newton_iters=8)
        models = [dict(intercept=torch.randn(5), slope=torch.rand(5), precision=1 + torch.rand(5)) for _ in ps]
        for p, model in zip(ps, models, strict=True):
            pose(optimizer, p, **model)
        optimizer.step()
        eta, total = optimizer.eta.item(), 0.0
        for p, b, model in zip(ps, bounds, models, strict=True):
            delta = p.detach()
            if b == 0:
                assert (delta == 0).all()
                continue
            g, h, precision = problem_terms(model, {"reg_weight": 0.3, "prior_prec": 0.0015})
            own = eta * max(bounds) / b
            torch.testing.assert_close(h * delta + g + own * precision * delta, torch.zeros_like(g), rtol=0, atol=1e-8)
            total += (precision * delta.square()).sum().item() / 2 / (factor * b)
        active = optimizer.active.item()
        assert total <= 1
        if active:
            assert total == pytest.approx(1, rel=1e-9)
        actives.append(active)
    assert actives == [True, True, False]


def test_in_the_steady_state_the_multiplier_has_a_closed_form() -> None:
    """Lambda = h / kappa: every w is kappa, eta = sqrt(S / (2 eps)) - kappa, and the step is Newton's, scaled."""
    slope, gradient = vector([0.1, 0.7, 3.0]), vector([0.3, -1.0, 2.0])
    kappa = 0.6
    precision = (slope + kappa * 0.5) / kappa
    S = (gradient.square() / precision).sum().item()
    model = dict(intercept=gradient, slope=slope, precision=precision)
    optimizer, delta = solve(model, lr=0.01, reg_weight=kappa, prior_prec=0.5)
    eta = math.sqrt(S / 0.02) - kappa
    assert optimizer.eta.item() == pytest.approx(eta, rel=1e-12)
    torch.testing.assert_close(delta, -gradient / (slope + kappa * 0.5) * kappa / (kappa + eta), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_limits_of_the_bound(dtype: torch.dtype) -> None:
    model, settings = problem(7, dtype=dtype)  # h > 0
    g, h, precision = problem_terms(model, settings)
    tolerance = 1e-6 if dtype == torch.float64 else 1e-4
    optimizer, delta = solve(model, **{**settings, "lr": 1e-20})
    wanted = -math.sqrt(2e-20) * (g / precision) / (g.square() / precision).sum().sqrt()
    torch.testing.assert_close(delta, wanted, rtol=tolerance, atol=0)
    optimizer, delta = solve(model, **{**settings, "lr": 1e20})
    torch.testing.assert_close(delta, -g / h, rtol=tolerance, atol=0)
    assert optimizer.eta.item() == 0


def test_the_floor_bends_the_curvature_and_not_the_gradient() -> None:
    p = parameter([2.0])
    optimizer = ArTuRO([p], lr=1e6, curvature_floor=0.5, reg_weight=0.2, prior_prec=0.5, nu=1.0)
    pose(optimizer, p, intercept=[1.0], slope=[-0.3], precision=[4.0])
    optimizer.step()
    gradient, curvature = -0.3 * 2 + 1 + 0.1 * 2, 0.5 + 0.1
    assert p.item() == pytest.approx(2 - gradient / curvature, rel=1e-12)
    assert optimizer.state[p]["precision"].item() == pytest.approx((curvature + 4) / 1.2, rel=1e-12)
    assert optimizer.curvature.item() == pytest.approx(curvature, rel=1e-12)


# -- the filter (acceptance 3) -----------------------------------------------------------------------------------


def test_without_drift_the_filter_is_ridge_regression() -> None:
    """Of g on (1, theta) with prior mean (g_1, a_0), prior variance p0 and noise variance r."""
    p0, r, a0 = 0.4, 0.7, 0.3
    theta, g = torch.randn(2, 25, 3, dtype=torch.float64)
    p = parameter(theta[0])
    optimizer = ArTuRO([p], lr=0.0, process_noise=0.0, filter_var_init=p0, measurement_noise=r, curvature_init=a0)
    for t in range(25):
        p.detach().copy_(theta[t])
        move(optimizer, p, g[t])
    for i in range(3):
        X = torch.stack([torch.ones(25, dtype=torch.float64), theta[:, i]], 1)
        information = X.T @ X / r + torch.eye(2, dtype=torch.float64) / p0
        mean = torch.linalg.solve(information, X.T @ g[:, i] / r + torch.stack([g[0, i], vector([a0])[0]]) / p0)
        state = {k: v[i].item() for k, v in optimizer.state[p].items() if v.dim()}
        assert [state["intercept"], state["slope"]] == pytest.approx(mean.tolist(), rel=1e-11)
        wanted = torch.linalg.inv(information).flatten().tolist()
        assert [state[k] for k in ("p00", "p01", "p01", "p11")] == pytest.approx(wanted, rel=1e-11)


def test_at_zero_the_gain_settles_and_the_slope_s_variance_winds_up() -> None:
    q, r, p0 = 0.02, 1.5, 0.3
    p = parameter([0.0])
    optimizer = ArTuRO([p], lr=0.0, process_noise=q, process_noise_quad=0.5, measurement_noise=r, filter_var_init=p0)
    for _ in range(150):
        move(optimizer, p, 1.0)
    predicted = (q + math.sqrt(q * q + 4 * q * r)) / 2
    assert optimizer.state[p]["p00"].item() == pytest.approx(predicted * r / (predicted + r), rel=1e-12)
    assert optimizer.state[p]["p11"].item() == pytest.approx(p0 + 150 * 0.5, rel=1e-11)
    assert optimizer.state[p]["slope"].item() == 0.1  # not observable there


def subtract(P00: Tensor, P01: Tensor, P11: Tensor, x: Tensor, q: Any, r: Any) -> tuple[Tensor, Tensor, Tensor]:
    """One step of the covariance as the specification prints it, by subtraction."""
    P00, P11 = P00 + q, P11 + q
    k0, k1 = P00 + P01 * x, P01 + P11 * x
    S = k0 + k1 * x + r
    return P00 - k0 * k0 / S, P01 - k0 * k1 / S, P11 - k1 * k1 / S


def covariances(paths: Tensor, p0: float, q: Any, r: Any, rows: int = 1) -> Iterator[tuple[int, Any, Any]]:
    """The library's covariances in float32 and the textbook's in float64, along paths [steps, n] of the weights."""
    shape = (rows, paths.shape[1])
    ones, spare = torch.ones(shape), [torch.zeros(shape) for _ in range(3)]
    mine = torch.full(shape, p0), torch.zeros(shape), torch.full(shape, p0)
    wanted = tuple(t.double() for t in mine)
    Q, R = (torch.as_tensor(v).double() for v in (q, r))
    settings = dict(
        shrink=None, start=None, q=q, q_quad=q, r=r, c=0.0, floor=0.0, per_radius=torch.ones(()), less=1.0, ok=None
    )
    for t, x in enumerate(paths):
        model = spare[0], spare[1]  # without gradient they stay at 0
        rls_observe_(x.expand(shape), spare[2], ones, *model, *mine, ones[0, 0], **settings)
        wanted = subtract(*wanted, x.double(), Q, R)
        yield t, mine, wanted


def errors(mine: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> Tensor:
    """Largest relative error of each path's covariance."""
    P00, _, P11 = wanted
    scales = P00, (P00 * P11).sqrt(), P11
    return torch.stack([(a - b).abs() / c for a, b, c in zip(mine, wanted, scales, strict=True)]).amax((0, 1))


def positive(p00: Tensor, p01: Tensor, p11: Tensor) -> bool:
    """Whether all covariances are positive definite, or singular after rounding."""
    determinant = p00.double() * p11.double() - p01.double().square()
    rounding = 4 * torch.finfo(p00.dtype).eps * p00.double() * p11.double()
    return bool((p00 > 0).all() and (p11 > 0).all() and (determinant >= -rounding).all())


def paths(steps: int) -> Tensor:
    """Noise, rest at 0, near and far, random walks, wide noise, a jump after a long rest."""
    path = 0.05 * torch.randn(steps, 9, generator=torch.Generator().manual_seed(0))
    path[:, 1], path[:, 2], path[:, 3] = 0.0, 0.05, -3.0
    path[:, 4:7] = path[:, 4:7].cumsum(0) / 5
    path[:, 7] *= 100
    path[:, 8] = 30.0 * (torch.arange(steps) > steps // 2)
    return path


@torch.inference_mode()  # a third faster
def test_covariances_stay_positive_and_near_float64() -> None:
    """Over 20,000 steps with each of the published constants; a weight at rest sums its rounding errors."""
    published = [ArTuRO.published(name) for name in SETTINGS]
    q, r = [torch.tensor([[s[k]] for s in published]) for k in ("process_noise", "measurement_noise")]
    tolerance = vector([1e-4, 1e-3, 1e-3, 1e-3, 1e-4, 1e-4, 1e-4, 1e-4, 1e-3])
    for t, mine, wanted in covariances(paths(20_000), 5e-5, q, r, rows=4):
        if t % 500 == 499 or t in (0, 1, 5, 50):
            assert positive(*mine)
            assert (errors(mine, wanted) < tolerance).all()


def test_an_ill_conditioned_start_is_no_danger() -> None:
    """Where p0 / r is 1e6 the subtraction loses the sign in float32; the library's form does not."""
    p0, q, r = 1e6, 1e-3, 1.0
    plain = torch.full((1, 9), p0), torch.zeros(1, 9), torch.full((1, 9), p0)
    worst = [0.0, 0.0]
    signs = []
    for t, mine, wanted in covariances(paths(50), p0, q, r):
        plain = subtract(*plain, paths(50)[t], q, r)
        assert positive(*mine)
        signs.append(positive(*plain))
        worst = [max(w, errors(p, wanted).max().item()) for w, p in zip(worst, (mine, plain), strict=True)]
    assert not all(signs)
    assert worst[0] < 0.2
    assert worst[1] > 10 * worst[0]


def test_a_covariance_that_rounding_made_indefinite_recovers() -> None:
    """Its determinant counts as 0 and the innovation's variance as r, where they would be -1.6e9 and -15."""
    p = parameter([-1.0], torch.float32)
    optimizer = ArTuRO([p], lr=0.0, process_noise=0.0, measurement_noise=1.0)
    state = optimizer.state[p]
    for name, value in dict(p00=1e8, p01=1e8 + 8, p11=1e8, started=1.0).items():
        state[name].fill_(value)
    move(optimizer, p, 1.0)
    assert state["p00"].item() == state["p11"].item() == 1e8
    assert state["p01"].item() == 1e8 + 8
    assert state["slope"].isfinite().all()


def test_the_model_learns_a_quadratic_and_one_step_lands_on_its_minimum() -> None:
    curvature, minimum = vector([0.5, 1.0, 2.0, 3.0]), vector([1.0, -2.0, 0.0, 0.3])
    p = parameter([0.5, 0.5, -0.5, 1.0])
    optimizer = ArTuRO([p], lr=0.02, process_noise=0.0, filter_var_init=1e8, measurement_noise=1.0, var_init=1.0)
    for _ in range(15):
        move(optimizer, p, curvature * (p.detach() - minimum))
    state = optimizer.state[p]
    torch.testing.assert_close(state["slope"], curvature, rtol=1e-4, atol=0)
    torch.testing.assert_close(state["intercept"], -curvature * minimum, rtol=1e-4, atol=1e-5)
    assert (p.detach() - minimum).abs().max() > 0.1  # not there yet
    optimizer.param_groups[0].update(reg_weight=0.0, lr=1e9)
    move(optimizer, p, curvature * (p.detach() - minimum))
    torch.testing.assert_close(p.detach(), minimum, rtol=0, atol=1e-4)
    assert not optimizer.active.item()


@pytest.mark.parametrize(("intercept_init", "seen"), [("centred", 2.0), ("grad", 2.0 + 0.1 * 5.0)])
def test_the_first_model_gradient(intercept_init: str, seen: float) -> None:
    """Centred it is the gradient itself; published it is off by a_0 theta, but for what the filter takes back."""
    p = parameter([5.0])
    optimizer = ArTuRO([p], lr=0.0, intercept_init=intercept_init, process_noise=0.0, filter_var_init=1e-12)
    move(optimizer, p, 2.0)
    state = optimizer.state[p]
    assert (state["slope"] * 5 + state["intercept"]).item() == pytest.approx(seen, rel=1e-9)


# -- the precision -----------------------------------------------------------------------------------------------


def precisions(steps: int, **settings: Any) -> list[float]:
    """Precision before and after each of `steps` at theta = 0, where the slope stays at its start."""
    p = parameter([0.0])
    optimizer = ArTuRO([p], lr=0.0, **settings)
    seen = [optimizer.state[p]["precision"].item()]
    for _ in range(steps):
        move(optimizer, p, 1.0)
        seen.append(optimizer.state[p]["precision"].item())
    assert p.item() == 0
    return seen


def test_the_precision_decays_to_curvature_over_kappa() -> None:
    kappa, nu, prior, a0, v0 = 0.4, 1.6, 0.25, 0.3, 0.02
    seen = precisions(20, reg_weight=kappa, nu=nu, prior_prec=prior, curvature_init=a0, var_init=v0)
    rest, beta = (a0 + kappa * prior) / kappa, kappa / (kappa + nu)
    assert seen == pytest.approx([rest + (1 / v0 - rest) * (1 - beta) ** t for t in range(21)], rel=1e-12)


def test_without_prior_the_precision_accumulates() -> None:
    seen = precisions(10, reg_weight=0.0, nu=0.5, curvature_init=0.3)
    assert seen == pytest.approx([100 + t * 0.3 / 0.5 for t in range(11)], rel=1e-12)


def test_without_inertia_the_precision_is_at_rest_at_once() -> None:
    assert precisions(3, reg_weight=0.5, nu=0.0, prior_prec=0.2)[1:] == pytest.approx([0.2 / 0.5] * 3, rel=1e-12)


def test_the_precision_keeps_away_from_zero_and_infinity() -> None:
    assert precisions(2, reg_weight=0.0, nu=1e-15)[1:] == [1e12, 1e12]
    assert precisions(2, reg_weight=0.5, nu=0.0, prior_prec=0.0, curvature_init=-1.0)[1:] == [1e-12, 1e-12]


# -- the second moment as curvature -------------------------------------------------------------------------------


def by_moment(p: Tensor, **settings: Any) -> ArTuRO:
    """The other curvature, over one parameter."""
    return ArTuRO([p], curvature="second-moment", **settings)


def test_a_constant_gradient_has_a_closed_form() -> None:
    """sqrt(v) is |g| and b is g from the first step, whatever beta2 and the noises; so is Lambda known."""
    g, kappa, nu, v0, bound = vector([0.3, -2.0, 1e-3]), 0.4, 1.6, 0.02, 1e-3
    for fused in (False, True):
        p = parameter([0.0, 0.0, 0.0])
        settings = dict(reg_weight=kappa, nu=nu, var_init=v0, beta2=0.97, process_noise=0.3, fused=fused)
        optimizer = by_moment(p, lr=bound, prior_prec=0.0, newton_iters=4, **settings)
        precision = torch.full_like(p, 1 / v0)
        for _ in range(20):
            delta = move(optimizer, p, g)
            eta = optimizer.eta.item()
            assert ((precision * delta.square()).sum() / 2).item() == pytest.approx(bound, rel=1e-9)
            torch.testing.assert_close(delta, -g / (g.abs() + eta * precision), rtol=1e-9, atol=0)
            rest = g.abs() / kappa
            precision = rest + (precision - rest) * nu / (kappa + nu)
        state = optimizer.state[p]
        torch.testing.assert_close(state["precision"], precision, rtol=1e-12, atol=0)
        torch.testing.assert_close(state["second_moment"], g.square(), rtol=1e-12, atol=0)
        torch.testing.assert_close(state["intercept"], g, rtol=1e-12, atol=0)
        assert optimizer.curvature.item() == pytest.approx(0.3, rel=1e-12)


@pytest.mark.parametrize("eta_min", [0.0, 500.0])
def test_at_rest_a_step_has_adams_direction_and_the_bounds_length(eta_min: float) -> None:
    """With eta_min at most the length of a learning rate kappa / (kappa + eta_min)."""
    kappa, bound = 0.5, 1e-4
    p = parameter([0.0] * 50)
    noise = torch.randn(60, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    settings = dict(lr=bound, reg_weight=kappa, nu=0.0, prior_prec=0.0, process_noise=0.1, measurement_noise=0.9)
    optimizer = by_moment(p, newton_iters=4, eta_min=eta_min, **settings)
    adam = torch.optim.Adam([q := parameter([0.0] * 50)], lr=1.0, betas=(0.0, 0.999), eps=0.0)
    for t, row in enumerate(noise):
        q.grad = row * torch.linspace(0.1, 3, 50)
        adam.step()
        state, moment = optimizer.state[p], adam.state[q]["exp_avg_sq"] / (1 - 0.999 ** (t + 1))
        state["precision"].copy_(moment.sqrt() / kappa)
        delta = move(optimizer, p, q.grad)
    torch.testing.assert_close(state["second_moment"], moment, rtol=1e-12, atol=0)
    direction = state["intercept"] / moment.sqrt()
    length = math.sqrt(2 * bound * kappa) / (state["intercept"] / moment.sqrt().sqrt()).norm().item()
    if eta_min:
        assert length > kappa / (kappa + eta_min)
    wanted = -min(length, kappa / (kappa + eta_min)) * direction
    torch.testing.assert_close(delta, wanted, rtol=1e-9, atol=0)


def test_the_filter_of_the_intercept_begins_as_a_mean_and_comes_to_a_steady_gain() -> None:
    rows = torch.randn(60, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    p = parameter([0.0] * 4)
    mean = by_moment(p, lr=0.0, process_noise=0.0, measurement_noise=0.7)
    for row in rows:
        move(mean, p, row)
    torch.testing.assert_close(mean.state[p]["intercept"], rows.mean(0), rtol=1e-12, atol=0)
    q, r = 0.3, 0.7
    steady = by_moment(p, lr=0.0, process_noise=q, measurement_noise=r)
    for row in rows:
        before = steady.state[p]["intercept"].clone()
        move(steady, p, row)
    predicted = (q + math.sqrt(q * q + 4 * q * r)) / 2
    gain = predicted / (predicted + r)
    torch.testing.assert_close(steady.state[p]["intercept"], before + gain * (rows[-1] - before), rtol=1e-12, atol=0)
    assert {name for name, value in steady.state[p].items() if not value.dim()} == {"p00", "seen"}


def test_gradients_whose_squares_are_too_large_for_float32_leave_a_finite_curvature() -> None:
    p = parameter([0.0, 0.0], torch.float32)
    optimizer = by_moment(p, lr=0.01, skip_nonfinite=False)
    move(optimizer, p, [1e30, 1.0])
    assert all(value.isfinite().all() for value in (p, *optimizer.state[p].values()))


# -- invariances (section 10) ------------------------------------------------------------------------------------

PRECISIONS = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-4)], ids=["float64", "float32"]
)


def force(x: Tensor, t: int) -> Tensor:
    """Noisy gradient of a coupled quartic, so that every number of the trajectory depends on every other."""
    noise = torch.randn(x.numel(), generator=torch.Generator().manual_seed(t), dtype=torch.float64)
    return 4 * x * (x * x - 1) + 0.15 + 0.3 * (x.roll(1) - x) + 0.1 * noise


def follow(
    dtype: torch.dtype,
    sizes: list[int] | None = None,
    *,
    factor: float = 1.0,
    sign: float = 1.0,
    order: Tensor | None = None,
    grouped: bool = False,
    **settings: Any,
) -> tuple[Tensor, ArTuRO, dict[str, Tensor]]:
    """25 steps on the quartic: where the weights are, and the state of all of them; undoes what the options do."""
    order = torch.arange(8) if order is None else order
    back = order.argsort()
    x = sign * torch.linspace(-1.5, 1.5, 8, dtype=torch.float64)[order]
    ps = [parameter(part, dtype) for part in x.split(sizes or [8])]
    groups = [{"params": [p]} for p in ps] if grouped else ps
    optimizer = ArTuRO(groups, **{"lr": 0.05, "reg_weight": 0.6, **settings})
    for t in range(25):
        x = torch.cat([p.detach().double() for p in ps])
        g = factor * sign * force(sign * x[back], t)[order]
        for p, part in zip(ps, g.split(sizes or [8]), strict=True):
            p.grad = part.to(dtype)
        optimizer.step()
    state = {
        name: torch.cat([optimizer.state[p][name].double() for p in ps])[back]
        for name, value in optimizer.state[ps[0]].items()
        if value.dim()
    }
    return torch.cat([p.detach().double() for p in ps])[back], optimizer, state


@PRECISIONS
def test_only_ratios_of_the_noises_matter(dtype: torch.dtype, tolerance: float) -> None:
    noises = dict(filter_var_init=0.01, process_noise=0.03, process_noise_quad=0.1, measurement_noise=0.8)
    x, _, state = follow(dtype, **noises)
    y, _, scaled = follow(dtype, **{name: 3.7 * value for name, value in noises.items()})
    torch.testing.assert_close(y, x, rtol=tolerance, atol=tolerance)
    for name in ("slope", "intercept", "precision"):
        torch.testing.assert_close(scaled[name], state[name], rtol=tolerance, atol=tolerance)
    for name in COVARIANCE:
        torch.testing.assert_close(scaled[name], 3.7 * state[name], rtol=10 * tolerance, atol=tolerance)


@PRECISIONS
def test_the_loss_s_scale_is_that_of_slope_kappa_and_nu(dtype: torch.dtype, tolerance: float) -> None:
    k, scaled = 3.7, dict(curvature_init=0.2, reg_weight=0.6, nu=0.9)
    x, one, state = follow(dtype, **scaled, newton_iters=6)
    y, other, after = follow(dtype, factor=k, **{name: k * v for name, v in scaled.items()}, newton_iters=6)
    torch.testing.assert_close(y, x, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(after["precision"], state["precision"], rtol=tolerance, atol=0)
    assert other.eta.item() == pytest.approx(k * one.eta.item(), rel=10 * tolerance)
    assert one.eta.item() > 0
    z, _, _ = follow(dtype, factor=k, **scaled, newton_iters=6)
    assert (z - x).abs().max() > 0.01  # alone it is no invariance


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_mirror_image_of_a_run(dtype: torch.dtype) -> None:
    x, _, state = follow(dtype)
    y, _, mirrored = follow(dtype, sign=-1.0)
    assert torch.equal(y, -x)
    for name, value in mirrored.items():
        assert torch.equal(value, -state[name] if name in ("intercept", "p01") else state[name])


@PRECISIONS
def test_how_weights_are_laid_out_does_not_matter(dtype: torch.dtype, tolerance: float) -> None:
    x, _, _ = follow(dtype, newton_iters=6)
    layouts: list[dict[str, Any]] = [
        dict(sizes=[1, 4, 3]),
        dict(sizes=[2, 5, 1], grouped=True),
        dict(order=torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])),
    ]
    for layout in layouts:
        y, _, _ = follow(dtype, **layout, newton_iters=6)
        torch.testing.assert_close(y, x, rtol=tolerance, atol=tolerance)


# -- scopes, readings, groups ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["group", "tensor"])
def test_a_scope_is_as_many_optimizers(scope: str) -> None:
    """With bounds of their own, and one tensor without gradient at some steps."""
    sizes, bounds = [3, 2, 3], [0.05, 0.05, 0.2]
    ps, qs = [[parameter(x) for x in torch.linspace(-1.5, 1.5, 8, dtype=torch.float64).split(sizes)] for _ in range(2)]
    optimizer = ArTuRO([{"params": ps[:2]}, {"params": ps[2:], "lr": bounds[2]}], lr=bounds[0], scope=scope)
    members = [[0, 1], [2]] if scope == "group" else [[0], [1], [2]]
    others = [ArTuRO([qs[i] for i in part], lr=bounds[part[0]]) for part in members]
    for t in range(12):
        g = force(torch.cat([p.detach() for p in ps]), t).split(sizes)
        for params in (ps, qs):
            for i, p in enumerate(params):
                p.grad = None if i == 1 and t % 4 == 2 else g[i].clone()
        for o in (optimizer, *others):
            o.step()
        for p, q in zip(ps, qs, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-13, atol=1e-15)
        took_part = [o for o, part in zip(others, members, strict=True) if qs[part[0]].grad is not None]
        for name in ("eta", "kl", "active"):
            wanted = torch.stack([getattr(o, name) for o in took_part])
            torch.testing.assert_close(getattr(optimizer, name), wanted, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(("scope", "shape"), [("global", ()), ("group", (2,)), ("tensor", (3,))])
def test_readings(scope: str, shape: tuple[int, ...]) -> None:
    ps = [parameter([0.0, 0.0]), parameter([0.0]), parameter([[0.0], [0.0]])]
    optimizer = ArTuRO([{"params": ps[:2]}, {"params": ps[2:], "reg_weight": 0.9}], scope=scope, curvature_init=-0.2)
    assert optimizer.eta.isnan().all()
    assert optimizer.kl.isnan().all()
    assert not optimizer.active.any()
    for p, slope in zip(ps, (0.3, -0.4, 0.5), strict=True):
        pose(optimizer, p, intercept=torch.ones_like(p), slope=slope, precision=2.0)
    before = [optimizer.state[p]["precision"].clone() for p in ps]
    optimizer.step()
    assert optimizer.eta.shape == optimizer.kl.shape == optimizer.active.shape == shape
    assert optimizer.active.dtype == torch.bool
    assert optimizer.active.all()
    kl = [(c * p.detach().square()).sum().item() / 2 for c, p in zip(before, ps, strict=True)]
    wanted = {"global": [sum(kl)], "group": [kl[0] + kl[1], kl[2]], "tensor": kl}[scope]
    assert optimizer.kl.flatten().tolist() == pytest.approx(wanted, rel=1e-12)
    assert optimizer.curvature.shape == ()
    ridge = [0.3 * 0.0015, 0.3 * 0.0015, 0.9 * 0.0015]
    h = [max(a, 0.0) + c for a, c, n in zip((0.3, -0.4, 0.5), ridge, (2, 1, 2), strict=True) for _ in range(n)]
    assert optimizer.curvature.item() == pytest.approx(statistics.median(h), rel=1e-12)


def test_state_is_allocated_with_the_group() -> None:
    p = parameter([[1.0, 2.0]])
    half = parameter([1.0, 2.0, 3.0], torch.bfloat16)
    optimizer = ArTuRO([p], var_init=0.5, curvature_init=0.7, filter_var_init=0.25)
    optimizer.add_param_group({"params": [half], "var_init": 0.1})
    for q, precision in ((p, 2.0), (half, 10.0)):
        state = optimizer.state[q]
        start = dict(precision=precision, slope=0.7, intercept=0.0, p00=0.25, p01=0.0, p11=0.25, started=0.0)
        assert state.keys() == start.keys()
        for name, value in start.items():
            dtype = torch.float64 if q is p else torch.float32
            like = torch.full(() if name == "started" else q.shape, value, dtype=dtype)
            torch.testing.assert_close(state[name], like, rtol=1e-7, atol=0)


# -- edges (section 11) ------------------------------------------------------------------------------------------


def test_a_zero_gradient_is_no_rest() -> None:
    """The filter goes on to foretell what it saw: that is the method's momentum."""
    p = parameter([0.0])
    optimizer = ArTuRO([p])
    moves = [move(optimizer, p, g).item() for g in (1.0, 1.0, 1.0, 0.0, 0.0)]
    assert all(d < 0 for d in moves)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_spike_in_the_gradient_does_not_break_the_bound(dtype: torch.dtype) -> None:
    p = parameter([0.3, -0.2, 1.0], dtype)
    optimizer = ArTuRO([p], lr=0.01)
    for t in range(12):
        precision = optimizer.state[p]["precision"].double().clone()
        delta = move(optimizer, p, [1e12, -1.0, 0.0] if t == 4 else [1.0, -1.0, 0.1])
        rounding = 4 * torch.finfo(dtype).eps * (precision * p.detach().abs() * delta.abs()).sum().item()
        assert (precision * delta.double().square()).sum().item() / 2 <= 0.01 + rounding
        assert all(value.isfinite().all() for value in optimizer.state[p].values())


@pytest.mark.parametrize("scope", ["global", "group", "tensor"])
def test_a_bound_of_zero_is_no_step(scope: str) -> None:
    """The weights stay to the bit, and filter and precision advance as if the step had been made."""
    p, q = parameter([0.7, -1.1]), parameter([0.7, -1.1])
    rest = ArTuRO([p], lr=0.0, scope=scope, weight_decay=0.5)
    small = ArTuRO([q], lr=1e-30)
    for g in ([1.0, 2.0], [0.5, -1.0], [0.0, 0.0]):
        assert (move(rest, p, g) == 0).all()
        move(small, q, g)
    assert_state(rest, p, small, q)
    assert (rest.kl == 0).all()


def assert_state(one: ArTuRO, p: Tensor, two: ArTuRO, q: Tensor) -> None:
    """The states are the same."""
    for name, value in one.state[p].items():
        torch.testing.assert_close(value, two.state[q][name], rtol=1e-12, atol=0)


def test_the_bound_may_be_a_tensor_and_change_in_place() -> None:
    p, q = parameter([0.7, -1.1]), parameter([0.7, -1.1])
    bound = torch.tensor(0.05, dtype=torch.float64)
    one, two = ArTuRO([p], lr=0.05, weight_decay=0.2), ArTuRO([q], lr=bound, weight_decay=0.2)
    for t in range(8):
        if t == 4:
            one.param_groups[0]["lr"] = 3e-4
            bound.fill_(3e-4)
        g = force(p.detach(), t)
        move(one, p, g)
        move(two, q, g)
        torch.testing.assert_close(p, q, rtol=1e-14, atol=0)
        assert two.kl.item() == pytest.approx(0.05 if t < 4 else 3e-4, rel=1e-9)


def everything(optimizer: ArTuRO, parameters: list[Tensor]) -> list[Any]:
    """All that a step may change, but the count of skipped steps."""
    groups = [{k: v for k, v in g.items() if k not in ("params", "skipped")} for g in optimizer.param_groups]
    state = [dict(optimizer.state[p]) for p in parameters]
    return copy.deepcopy([[p.detach() for p in parameters], groups, state])


@pytest.mark.parametrize(
    "settings",
    [{}, {"solver": "bisect"}, {"scope": "tensor", "intercept_init": "centred"}, {"curvature": "second-moment"}],
    ids=str,
)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_nonfinite_gradient_in_mid_run_changes_nothing(bad: float, settings: dict[str, Any]) -> None:
    """With decay, with a tensor that has not begun; and the run goes on as if the step had not been."""
    finals = []
    for broken in (False, True):
        ps = [parameter([0.7, -1.1]), parameter([0.4]), parameter([0.2])]
        optimizer = ArTuRO([{"params": ps[:2]}, {"params": ps[2:], "lr": 0.01}], lr=0.05, weight_decay=0.5, **settings)
        for t in range(8):
            g = force(torch.cat([p.detach() for p in ps]), t).split([2, 1, 1])
            if t == 4 and broken:
                before = everything(optimizer, ps)
                for p, part in zip(ps, g, strict=True):
                    p.grad = part.clone()
                ps[0].grad[1] = bad
                optimizer.step()
                assert_bits(before, everything(optimizer, ps))
                assert optimizer.skipped.item() == 1
            for i, p in enumerate(ps):
                p.grad = None if i == 1 and t < 4 else g[i].clone()
            optimizer.step()
        finals.append(everything(optimizer, ps))
    assert_bits(*finals)


@pytest.mark.parametrize(("iters", "near"), [(4, 1e-6), (0, 1e-5)])
def test_float32_stays_near_float64(iters: int, near: float) -> None:
    """Over 30 steps (acceptance 5): 1e-6 where the loss is convex, about 1e-3 for the network.

    From moments each step aims 4e-6 below the bound, for the sake of their rounding.
    """
    curvature = vector([0.5, 1.0, 2.0, 3.0])
    ends = []
    for dtype in (torch.float64, torch.float32):
        p = parameter([0.5, 0.5, -0.5, 1.0], dtype)
        optimizer = ArTuRO([p], lr=0.02, newton_iters=iters)
        for t in range(30):
            noise = torch.randn(4, generator=torch.Generator().manual_seed(t), dtype=torch.float64)
            move(optimizer, p, curvature * (p.detach().double() - 0.3) + 0.1 * noise)
        parameters = start(dtype=dtype)
        optimizer = ArTuRO(parameters, lr=0.02, newton_iters=iters)
        for t in range(30):
            optimizer.zero_grad()
            batch_losses(parameters, t).mean().backward()
            optimizer.step()
        ends.append((p.detach().double(), torch.cat([q.detach().double().flatten() for q in parameters])))
    (p, net), (p32, net32) = ends
    torch.testing.assert_close(p32, p, rtol=near, atol=near)
    torch.testing.assert_close(net32, net, rtol=1e-3, atol=1e-3)


# -- arguments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reg_weight": 0.0, "nu": 0.0}, r"^nu=0\.0.*range.*\(0, inf\)"),
        ({"lr": -1e-3}, r"^lr=-0\.001.*range.*\[0, inf\)"),
        ({"measurement_noise": 0.0}, r"^measurement_noise=0\.0.*range.*\(0, inf\)"),
        ({"var_init": 0.0}, r"^var_init=0\.0.*range.*\(0, inf\)"),
        ({"filter_var_init": -1e-9}, r"^filter_var_init=-1e-09.*range.*\[0, inf\)"),
        ({"process_noise": -1e-9}, r"^process_noise=-1e-09.*range.*\[0, inf\)"),
        ({"process_noise_quad": -1e-9}, r"^process_noise_quad=-1e-09.*range.*\[0, inf\)"),
        ({"beta2": 1.0}, r"^beta2=1\.0.*range.*\[0, 1\)"),
        ({"curvature": "hessian"}, r"^curvature='hessian' is unknown.*'rls', 'second-moment'"),
        ({"newton_iters": 2.5}, r"^newton_iters=2\.5.*range.*whole"),
        ({"newton_iters": -1}, r"^newton_iters=-1.*range"),
        ({"curvature_floor": -math.inf}, r"^curvature_floor=-inf.*range"),
        ({"curvature_floor": -0.011, "reg_weight": 0.1, "prior_prec": 0.1}, r"^curvature_floor=-0\.011.*range.*-0\.01"),
        ({"solver": "bisect", "scope": "tensor"}, r"^scope='tensor'.*bisect"),
        ({"solver": "bisect", "scope": "group"}, r"^scope='group'.*bisect"),
    ],
    ids=str,
)
def test_bad_arguments(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ArTuRO([parameter([0.0])], **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"reg_weight": 0.0},
        {"nu": 0.0},
        {"filter_var_init": 0.0, "process_noise": 0.0, "process_noise_quad": 0.0},
        {"curvature_floor": -0.01, "reg_weight": 0.1, "prior_prec": 0.1},
        {"curvature_init": -1.0},
        {"newton_iters": 0},
        {"eta_min": 0.25},
        {"solver": "bisect", "curvature_floor": -math.inf},
    ],
    ids=str,
)
def test_arguments_at_the_ends_of_their_ranges(settings: dict[str, Any]) -> None:
    p = parameter([0.5, -1.0])
    optimizer = ArTuRO([p], **settings)
    for g in ([1.0, 0.0], [0.0, 0.0], [-1.0, 1.0]):
        assert move(optimizer, p, g).isfinite().all()
    assert optimizer.state[p]["precision"].isfinite().all()


@pytest.mark.parametrize(
    "setting",
    [{"solver": "bisect"}, {"newton_iters": 7}, {"eta_min": 0.5}, {"scope": "tensor"}, {"curvature": "second-moment"}],
)
def test_how_to_solve_is_one_for_all_groups(setting: dict[str, Any]) -> None:
    optimizer = ArTuRO([parameter([0.0])])
    with pytest.raises(ValueError, match=f"^{next(iter(setting))}=.*one for the whole optimizer"):
        optimizer.add_param_group({"params": [parameter([0.0])], **setting})
