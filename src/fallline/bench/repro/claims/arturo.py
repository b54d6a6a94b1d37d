"""arTuRO's claims (Dahlinger et al., 2023): the bound, the exact step, the filter's curvature, speed and generality."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from scipy.optimize import brentq
from torch import Tensor, nn

from fallline import ArTuRO
from fallline.bench.repro.claims._claim import DERIVED, Claim, Criterion, Effort, Measured, Reading, exact, mean_of
from fallline.bench.repro.claims._records import differences
from fallline.bench.repro.perceptron import Perceptron
from fallline.bench.seeds import generator

PAPER = "Dahlinger et al. 2023"
NAMES = ("cifar10-cnn", "cifar10-resnet34", "cifar100-resnet34", "fashion-mnist-cnn")
CUT = 0.006
"""By which the authors multiply the bound at half and at three quarters of a run."""

Make = Callable[..., Any]


def published(name: str) -> dict[str, Any]:
    """Settings of the authors' program."""
    return {**ArTuRO.published(name)}


def train(optimizer: Any, task: Perceptron, steps: int, see: Callable[[float], None] | None = None) -> list[float]:
    """The losses of a run on digits with the published schedule; `see` is called with the bound after each step."""
    first, losses = optimizer.param_groups[0]["lr"], []
    for step in range(steps):
        lr = first * CUT ** ((step >= steps // 2) + (step >= 3 * steps // 4))
        for group in optimizer.param_groups:
            group["lr"] = lr
        losses.append(float(task.losses().mean()))
        optimizer.step()
        if see:
            see(lr)
    return losses


# --- the bound ---


def most_of_bound(make: Make, steps: int, each: bool = False) -> float:
    """The largest KL divergence of a step by its bound, from weights and precisions before and after.

    Args:
        make: the optimizer.
        steps: of the run.
        each: whether every tensor has a bound of its own.
    """
    task = Perceptron(0)
    optimizer = make(task.weights)
    group = optimizer.param_groups[0]

    def now() -> list[tuple[Tensor, Tensor]]:
        return [(p.detach().clone(), optimizer.state[p]["precision"].clone()) for p in task.weights]

    before, largest = now(), 0.0

    def see(lr: float) -> None:
        nonlocal before, largest
        after, shrink = now(), 1 - lr * group["weight_decay"]
        kl = [
            float((precision * (new - old * shrink) ** 2).sum() / 2)
            for (old, precision), (new, _) in zip(before, after, strict=True)
        ]
        before = after
        largest = max(largest, (max(kl) if each else math.fsum(kl)) / lr)

    train(optimizer, task, steps, see)
    return largest


def bound(effort: Effort, make: Make = ArTuRO) -> Measured:
    """With the exact solver: all published settings, and a bound for every tensor."""
    steps = effort.pick(200, 80)
    readings = [
        exact(name, most_of_bound(functools.partial(make, **published(name)), steps))
        for name in NAMES[: effort.pick(4, 1)]
    ]
    own = functools.partial(make, scope="tensor", **published("cifar10-cnn"))
    return Measured([*readings, exact("cifar10-cnn, each tensor by its own bound", most_of_bound(own, steps, True))])


def bound_as_published(effort: Effort) -> Measured:
    """With the authors' bisection."""
    names, steps = NAMES[: effort.pick(4, 1)], effort.pick(200, 80)
    made = [functools.partial(ArTuRO, solver="bisect", **published(name)) for name in names]
    return Measured([exact(name, most_of_bound(make, steps)) for name, make in zip(names, made, strict=True)])


# --- the step ---


def posed(seed: int, spread: float, size: int = 200, **settings: Any) -> tuple[nn.Parameter, ArTuRO, Tensor, Tensor]:
    """A trust-region problem with known curvature, gradient and precision, and an optimizer that has come to it.

    Weights at 0, no prior and a filter that is sure of itself: the model's gradient is the intercept.
    """
    draw = generator(seed, "region")
    precision = torch.randn(size, generator=draw, dtype=torch.float64).exp()
    curvature = precision * (spread * torch.randn(size, generator=draw, dtype=torch.float64)).exp()
    gradient = torch.randn(size, generator=draw, dtype=torch.float64) * precision.sqrt()
    curvature[: size // 20] = 0.0
    gradient[size // 20 : size // 10] = 0.0
    p = nn.Parameter(torch.zeros(size, dtype=torch.float64))
    fixed = dict(reg_weight=0.3, prior_prec=0.0, process_noise=0.0, filter_var_init=0.0)
    optimizer = ArTuRO([p], **{**fixed, **settings})
    state = optimizer.state[p]
    for name, value in (("precision", precision), ("slope", curvature), ("intercept", gradient)):
        state[name].copy_(value)
    state["started"].fill_(1.0)
    p.grad = gradient.clone()
    return p, optimizer, curvature, gradient


def best(precision: Tensor, h: Tensor, g: Tensor, epsilon: float) -> Tensor:
    """The best step, its multiplier by root finding of scipy's."""
    moving = g != 0

    def step(eta: float) -> Tensor:
        return torch.where(moving, -g / (h + eta * precision).clamp_min(1e-300), 0.0)

    def excess(eta: float) -> float:
        return float((precision * step(eta) ** 2).sum() / 2) - epsilon

    if bool((h[moving] > 0).all()) and excess(0.0) <= 0:
        return step(0.0)
    high = float((g**2 / precision).sum().div(2 * epsilon).sqrt())
    return step(brentq(excess, high * 1e-9, high, xtol=1e-15, rtol=1e-14))


def exactness(effort: Effort, solvers: Sequence[dict[str, Any]] = ({}, {"newton_iters": 8})) -> Measured:
    """By how much of the best model's decrease a step falls short, or exceeds what the bound allows."""
    readings, seeds = [], effort.pick(20, 8)
    for settings in solvers:
        lost, over = 0.0, 0.0
        for seed, spread in itertools.product(range(seeds), (0.1, 1.0, 2.0)):
            epsilon = 10.0 ** (seed % 4 - 2)
            p, optimizer, h, g = posed(seed, spread, lr=epsilon, **settings)
            precision = optimizer.state[p]["precision"].clone()
            optimizer.step()
            delta, wanted = p.detach(), best(precision, h, g, epsilon)
            gained, most = (float(-(g @ x + (h * x) @ x / 2)) for x in (delta, wanted))
            lost = max(lost, 1 - gained / most)
            over = max(over, float((precision * delta**2).sum() / 2) / epsilon - 1)
        name = f"newton_iters={settings.get('newton_iters', 0)}"
        readings += [exact(f"{name}, decrease left", lost), exact(f"{name}, KL above the bound", over)]
    return Measured(readings[2:] or readings, {reading.name: reading.value for reading in readings})


def solvers(effort: Effort) -> Measured:
    """The exact solver's validation accuracy less that of the authors' bisection, in points."""
    seeds, steps = effort.pick(6, 3), effort.pick(300, 60)
    ends: dict[str, list[float]] = {"newton": [], "bisect": []}
    for seed, solver in itertools.product(range(seeds), ends):
        task = Perceptron(seed)
        train(ArTuRO(task.weights, solver=solver, **published("cifar10-cnn")), task, steps)
        ends[solver].append(100 * task.accuracy())
    change = [a - b for a, b in zip(ends["newton"], ends["bisect"], strict=True)]
    details = {f"accuracy, {solver}": math.fsum(found) / seeds for solver, found in ends.items()}
    return Measured([mean_of(f"cifar10-cnn's settings, {steps} steps", change)], details)


# --- the filter ---


def least_squares(effort: Effort, make: Make = ArTuRO) -> Measured:
    """Slope and intercept beside the batch solution of ridge regression."""
    n, steps, p0, r, a0 = 30, effort.pick(40, 20), 2.0, 0.5, 0.1
    draw = generator(0, "ridge")
    p = nn.Parameter(torch.zeros(n, dtype=torch.float64))
    optimizer = make([p], lr=0.0, process_noise=0.0, filter_var_init=p0, measurement_noise=r, curvature_init=a0)
    seen: list[tuple[Tensor, Tensor]] = []
    for _ in range(steps):
        theta, g = (torch.randn(n, generator=draw, dtype=torch.float64) for _ in range(2))
        with torch.no_grad():
            p.copy_(theta)
        p.grad = g
        optimizer.step()
        seen.append((theta, g))
    thetas, gradients = (torch.stack(column, 1) for column in zip(*seen, strict=True))
    rows = torch.stack([torch.ones_like(thetas), thetas], 2)  # [n, steps, 2]
    start = torch.stack([gradients[:, 0], torch.full((n,), a0, dtype=torch.float64)], 1)
    left = rows.transpose(1, 2) @ rows / r + torch.eye(2, dtype=torch.float64) / p0
    right = (rows.transpose(1, 2) @ gradients[..., None])[..., 0] / r + start / p0
    intercept, slope = torch.linalg.solve(left, right).unbind(1)
    state = optimizer.state[p]
    off = max(float((state["slope"] - slope).abs().max()), float((state["intercept"] - intercept).abs().max()))
    return Measured([exact(f"{steps} gradients", off)])


def learned(steps: int, groups: int, noise: float, **settings: Any) -> Tensor:
    """By group, the median distance of the slopes from the true curvatures, by that at the start.

    A separable quadratic; the groups have the same curvatures and are one network.
    """
    draw = generator(0, "curvature")
    true = torch.logspace(math.log10(0.02), math.log10(5.0), 200, dtype=torch.float64).expand(groups, -1)
    minimum = 0.3 * torch.randn(true.shape, generator=draw, dtype=torch.float64)
    p = nn.Parameter(torch.zeros(true.shape, dtype=torch.float64))
    optimizer = ArTuRO([p], **settings)
    for _ in range(steps):
        p.grad = true * (p.detach() - minimum) + noise * torch.randn(true.shape, generator=draw, dtype=torch.float64)
        optimizer.step()
    away = (optimizer.state[p]["slope"] - true).abs()
    left: Tensor = (away / (0.1 - true).abs()).median(1).values
    return left


def curvature(effort: Effort) -> Measured:
    """With published constants."""
    steps = effort.pick(1000, 400)
    readings = [
        mean_of(f"{name}'s settings", learned(steps, 8, 0.01, **published(name)))
        for name in ("cifar10-cnn", "fashion-mnist-cnn")[: effort.pick(2, 1)]
    ]
    other = dict(process_noise=1e-6, process_noise_quad=1.0, measurement_noise=1.22)
    details = {"process_noise 1e-6, process_noise_quad 1": float(learned(steps, 1, 0.01, **other))}
    return Measured(readings, details)


def path(k: float, along: bool, steps: int, make: Make = ArTuRO) -> Tensor:
    """The weights after some steps on digits, gradients times k, and all that has the loss's unit too if asked."""
    task = Perceptron(0)
    by = k if along else 1.0
    optimizer = make(task.weights, reg_weight=0.3 * by, nu=1.3 * by, curvature_init=0.1 * by)
    for _ in range(steps):
        task.losses()
        for p in task.weights:
            assert p.grad is not None
            p.grad.mul_(k)
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in task.weights])


def scale(effort: Effort, along: bool = True) -> Measured:
    """How far the weights go from those at scale 1, by how far they went."""
    steps, start = effort.pick(60, 30), path(1.0, True, 0)
    one, other = path(1.0, True, steps), path(100.0, along, steps)
    return Measured([exact("loss × 100", float((other - one).norm() / (one - start).norm()))])


# --- records ---

SHORT = (
    "the record is of CPU scale, less than an epoch, in which no image is seen twice: training and test loss are the "
    "same there, and generalisation does not show. `--scale full` would tell"
)


def _both(effort: Effort, others: Sequence[str], only_whole: str = "") -> Measured:
    found = [
        differences(effort, name, "arTuRO", others, only_whole=only_whole) for name in ("arturo-fmnist", "arturo-cifar")
    ]
    readings: list[Reading] = [reading for one in found for reading in one.readings]
    details = {key: value for one in found for key, value in one.details.items()}
    details["record"] = " and ".join(one.details["record"] for one in found if one.details)
    return Measured(readings, details, next((one.undecided for one in found if one.undecided), ""))


def as_fast(effort: Effort) -> Measured:
    """Test accuracy less that of Adam after the same, short training."""
    return _both(effort, ("Adam",))


def as_general(effort: Effort) -> Measured:
    """Test accuracy less that of SGD."""
    return _both(effort, ("SGD",), SHORT)


CLAIMS = (
    Claim(
        "arturo-bound",
        "arturo",
        "No step exceeds the bound on the KL divergence.",
        f"{PAPER}, abstract",
        Criterion("largest KL divergence of a step by its bound", at_most=1 + 1e-9),
        bound,
        "Digits with the published settings, the bound cut by 0.006 at half and at three quarters of 200 steps. ½ΣΛΔ² "
        'is computed from the weights before and after, for the network, and with `scope="tensor"` for each tensor.',
        "The bound holds at every step, also right after the schedule cuts it.",
        "The bound is broken.",
    ),
    Claim(
        "arturo-bound-published",
        "arturo",
        "The same with the solver of the authors' program, a bisection around the last multiplier.",
        f"{PAPER}, abstract; the authors' program",
        Criterion("largest KL divergence of a step by its bound", at_most=1 + 1e-9),
        bound_as_published,
        'The same runs with `solver="bisect"`.',
        "Their bisection keeps the bound.",
        "Their bisection breaks the bound, most where the schedule cuts it: the multiplier can grow threefold a step, "
        "and would have to grow thirteenfold. Ours is exact by default.",
    ),
    Claim(
        "arturo-exact",
        "arturo",
        "A step is the best one within the trust region.",
        f"{PAPER}, abstract",
        Criterion("decrease of the model left, as a share, and KL above the bound, as a share", at_most=1e-9),
        exactness,
        "Random problems with 200 weights, curvatures spread over up to four orders of magnitude, zeros among "
        "gradients and curvatures, bounds from 0.01 to 10; beside scipy's root finding. `newton_iters=8`; the "
        "default's numbers, which needs no pass of its own, stand beside it.",
        "With a few Newton steps the step is the optimum. The default stays within the bound too, and gives up what "
        "stands beside it where curvatures spread that widely within a tensor; in training they do not.",
        "Something of the model's decrease is left, or the bound is exceeded.",
    ),
    Claim(
        "arturo-solver",
        "arturo",
        "Training with the exact step ends as well as with the authors' approximate one, or better.",
        DERIVED,
        Criterion("validation accuracy, exact less approximate, points", at_least=-1.0),
        solvers,
        "Digits with the published settings of one task and the schedule, 300 steps, paired seeds, Student's interval.",
        "Nothing is lost by keeping the bound.",
        "The published settings were tuned with the approximate solver, whose multiplier never comes to 0: it damps, "
        "and without that the same settings end higher. `eta_min=0.25` mimics it within the bound.",
    ),
    Claim(
        "arturo-least-squares",
        "arturo",
        "Slope and intercept are the recursive least-squares fit of the gradients seen.",
        f"{PAPER}, abstract",
        Criterion("largest difference", at_most=1e-9),
        least_squares,
        "Random weights and gradients without process noise, beside ridge regression of all of them at once.",
        "The filter does what it says.",
        "It is another fit.",
    ),
    Claim(
        "arturo-curvature",
        "arturo",
        "With the published constants the slope learns the Hessian's diagonal: at least half of its first error goes.",
        f"{PAPER}, abstract",
        Criterion("median error of the slopes by that at the start", at_most=0.5),
        curvature,
        "A separable quadratic, curvatures 0.02 to 5, gradient noise of deviation 0.01, 1,000 steps; the slope starts "
        "at 0.1 for all.",
        "The trust region's model has the curvature of the loss.",
        "One process noise serves intercept and slope, and the intercept takes nearly all of what is learned: the "
        "curvature that bounds the Newton step is in effect the constant 0.1 that it started with.",
    ),
    Claim(
        "arturo-loss-scale",
        "arturo",
        "Multiplying the loss changes nothing, if reg_weight, nu and curvature_init are multiplied along.",
        DERIVED,
        Criterion("distance to the weights at scale 1, by the length of the path", at_most=1e-6),
        scale,
        "Digits with the defaults, gradients times 100.",
        "Three settings have the loss's unit, and no other.",
        "Something else has the loss's unit.",
    ),
    Claim(
        "arturo-loss-scale-alone",
        "arturo",
        "The same where nothing but the loss is multiplied.",
        DERIVED,
        Criterion("distance to the weights at scale 1, by the length of the path", at_most=1e-6),
        functools.partial(scale, along=False),
        "Digits with the defaults, gradients times 100, settings as they are.",
        "No setting has the loss's unit.",
        "The scale of the loss matters: a sum in the place of a mean is another training.",
    ),
    Claim(
        "arturo-fast",
        "arturo",
        "It converges as fast as adaptive methods.",
        f"{PAPER}, abstract",
        Criterion("test accuracy less Adam's after the same short training, points", at_least=-1.0),
        as_fast,
        "The records of `fallline repro arturo-fmnist` and `arturo-cifar`: paired seeds, Student's interval.",
        "As fast as Adam.",
        "It is behind Adam after the same number of steps, at the record's size: its own warm-up, which takes the "
        "precision from its start to its fixed point, is a large part of so short a training.",
    ),
    Claim(
        "arturo-general",
        "arturo",
        "It generalises like SGD.",
        f"{PAPER}, abstract",
        Criterion("test accuracy less SGD's at the end of training, points", at_least=-1.0),
        as_general,
        "The same records, beside SGD; decided at the published size alone.",
        "Its test accuracy at the end is SGD's.",
        "Its test accuracy at the end is lower than SGD's.",
    ),
)
