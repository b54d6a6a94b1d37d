"""CoolMomentum's claims (Borysenko and Byshkin, 2021): temperature, stability, annealing, and what its controls say.

Elementwise methods take a tensor of independent copies: one step of the optimizer moves thousands of walkers.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from fallline import CoolMomentum
from fallline.bench.common.seeds import generator
from fallline.papers.claims._claim import DERIVED, Claim, Criterion, Effort, Measured, exact, mean_of
from fallline.papers.experiments.coolmomentum_cooling import MatchedSGD

PAPER = "Borysenko and Byshkin 2021"
README = "README of the authors' program, section of September 2025"
RHOS = (0.0, 0.5, 0.9, 0.99)
LR, RHO_0 = 0.01, 0.99
"""The article's."""

Make = Callable[..., torch.optim.Optimizer]


def walk(
    make: Make,
    x: Tensor,
    force: Callable[[Tensor], Tensor],
    steps: int,
    *,
    noise: float = 0.0,
    draw: torch.Generator | None = None,
    see: Callable[[int, Tensor, torch.optim.Optimizer], None] | None = None,
) -> Tensor:
    """Walkers after so many steps; each element of `x` is one, `force` is the gradient, to which noise is added."""
    p = nn.Parameter(x.clone())
    optimizer = make([p])
    for step in range(steps):
        p.grad = force(p.detach())
        if noise:
            p.grad += noise * torch.randn(p.shape, generator=draw, dtype=p.dtype)
        optimizer.step()
        if see:
            see(step, p.detach(), optimizer)
    return p.detach()


# --- temperature ---


AWAY = 3.0
"""Times the law's variance that walkers start with: what is not settled is seen."""


def relaxation(lr: float, rho: float, k: float) -> float:
    """Steps in which a walker forgets: its displacement, or its position, whichever takes longer."""
    return max(1 / (1 - rho), 2 * (1 - rho) / ((1 + rho) * lr * k))  # the latter: 1 / (effective rate times k)


def temperature(effort: Effort, make: Make = CoolMomentum) -> Measured:
    """k Var(x) and <D^2> / lr of walkers in a harmonic well, by the law's temperature."""
    walkers, readings, heats = effort.pick(40_000, 20_000), [], []
    lr, curvatures, noise = 0.01, torch.tensor([10.0, 100.0], dtype=torch.float64)[:, None], 1.0
    lr_ks: list[float] = (lr * curvatures).flatten().tolist()
    details: dict[str, float] = {}
    for place, rho in enumerate(RHOS):
        law = lr * noise**2 * (1 + rho) / (4 * (1 - rho)) / (1 - lr * curvatures / 4)
        draw = generator(place, "heat")
        start = torch.randn(2, walkers, generator=draw, dtype=torch.float64) * (AWAY * law / curvatures).sqrt()
        settled = math.ceil(6 * max(relaxation(lr, rho, k) for k in curvatures.flatten().tolist()))
        x = walk(
            functools.partial(make, lr=lr, rho_0=rho),
            start,
            lambda x: curvatures * x,
            settled,
            noise=noise,
            draw=draw,
            see=(keep := Last()),
        )
        assert keep.displacement is not None
        heats.append((curvatures * x**2).mean(1))
        for name, sample in (("k Var(x)", curvatures * x**2), ("<D²>/lr", keep.displacement**2 / lr)):
            for row, lr_k in enumerate(lr_ks):
                readings.append(mean_of(f"{name}, rho {rho:g}, lr k {lr_k:g}", sample[row] / law[row]))
        if rho:
            by = (heats[-1] / heats[0]).tolist()
            details |= {
                f"k Var(x) at rho {rho:g}, lr k {lr_k:g}, by that at rho 0": by[row] for row, lr_k in enumerate(lr_ks)
            }
    return Measured(readings, details)


class Last:
    """Keeps the last displacement."""

    def __init__(self) -> None:
        self.displacement: Tensor | None = None

    def __call__(self, step: int, x: Tensor, optimizer: torch.optim.Optimizer) -> None:
        (state,) = optimizer.state.values()
        self.displacement = state["displacement"].clone()


def virial(effort: Effort, make: Make = CoolMomentum) -> Measured:
    """<x g> by <D^2> / lr in a double well, once walkers no longer drift."""
    walkers, steps, averaged = effort.pick(2000, 500), effort.pick(1500, 600), effort.pick(1000, 400)
    readings, lr = [], 0.01
    for place, rho in enumerate((0.9, 0.99)):
        work, heat = torch.zeros(walkers, dtype=torch.float64), torch.zeros(walkers, dtype=torch.float64)

        def see(step: int, x: Tensor, optimizer: torch.optim.Optimizer) -> None:
            if step >= steps - averaged:
                (state,) = optimizer.state.values()
                (p,) = optimizer.param_groups[0]["params"]
                d = state["displacement"]
                work.add_((x - d) * p.grad)  # noqa: B023
                heat.add_(d**2 / lr)  # noqa: B023

        draw = generator(place, "virial")
        start = torch.where(torch.rand(walkers, generator=draw, dtype=torch.float64) < 0.5, -1.0, 1.0)
        walk(functools.partial(make, lr=lr, rho_0=rho), start.double(), well, steps, noise=2.0, draw=draw, see=see)
        mean = float(heat.mean())
        readings.append(mean_of(f"rho {rho:g}", 1 + (work - heat) / mean))
    return Measured(readings, {"walkers": walkers, "steps": steps})


# --- stability ---


def radius(make: Make, lr: float, curvature: float) -> float:
    """Spectral radius of one step on a parabola, as a linear map of position and displacement."""
    p = nn.Parameter(torch.tensor([1.0, 0.0], dtype=torch.float64))
    optimizer = make([p], lr=lr)
    (state,) = optimizer.state.values()
    state["displacement"].copy_(torch.tensor([0.0, 1.0]))
    p.grad = curvature * p.detach()
    optimizer.step()
    step = torch.stack([p.detach(), state["displacement"]])  # columns: from a unit of x, from a unit of d
    return float(torch.linalg.eigvals(step).abs().max())


def bisected(unstable: Callable[[float], bool], low: float, high: float, halvings: int = 36) -> float:
    """Where something turns from stable to unstable."""
    for _ in range(halvings):
        middle = (low + high) / 2
        low, high = (low, middle) if unstable(middle) else (middle, high)
    return (low + high) / 2


def stability(effort: Effort, make: Make = CoolMomentum) -> Measured:
    """The largest lr k that does not blow up, bisected at each rho."""
    readings, details = [], {}
    around = torch.tensor([3.96, 4.04], dtype=torch.float64)
    for rho in (0.0, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999):
        made = functools.partial(make, rho_0=rho)
        limit = bisected(lambda lr_k, made=made: radius(made, lr_k / 7.0, 7.0) > 1 + 1e-13, 1.0, 16.0)  # type: ignore[misc]
        readings.append(exact(f"rho {rho:g}", limit))
        if rho in RHOS:
            ends = walk(functools.partial(made, lr=0.01), torch.ones_like(around), lambda x: around / 0.01 * x, 2000)
            for lr_k, end in zip(around.tolist(), ends.abs().tolist(), strict=True):
                details[f"|x| after 2,000 steps at lr k = {lr_k:g}, rho {rho:g}"] = end
    return Measured(readings, details)


def stiffest(make: Make) -> float:
    """The largest curvature on which 600 steps do not blow up: a grid, and the gap where it happens, three times."""
    low, high = 1.0, 1e4
    for _ in range(3):
        k = torch.logspace(math.log10(low), math.log10(high), 100, dtype=torch.float64)
        bears = walk(make, torch.ones_like(k), lambda x, k=k: k * x, 600).abs() < 1e3  # type: ignore[misc]
        first = int(bears.double().argmin())  # not borne
        low, high = float(k[first - 1]), float(k[first])
    return low


def stiffness(effort: Effort, rho_0: float = 0.99) -> Measured:
    """The largest curvature that CoolMomentum bears at its start, by what SGD of the same effective rate bears."""
    ours = stiffest(functools.partial(CoolMomentum, lr=LR, rho_0=rho_0))
    theirs = stiffest(functools.partial(MatchedSGD, lr=LR, rho_0=rho_0, cool_steps=1e9))
    details = {"largest curvature, CoolMomentum": ours, "largest curvature, SGD of the same effective rate": theirs}
    return Measured([exact(f"rho {rho_0:g} against momentum 0.9, lr {LR:g}", ours / theirs)], details)


# --- annealing ---


def well(x: Tensor) -> Tensor:
    """Gradient of (x² − 1)² + 0.15 x: the deep well is at −1, the shallow one at +1."""
    return 4 * x * (x**2 - 1) + 0.15


COLD = 200
"""Steps without momentum at the end, for everyone."""


def cooled(steps: int, schedule: Literal["exponential", "linear"] = "linear") -> Make:
    """CoolMomentum that cools over so many steps."""
    return functools.partial(CoolMomentum, lr=LR, rho_0=RHO_0, cool_steps=steps, schedule=schedule)


def quenched(steps: int) -> Make:
    """CoolMomentum that stays hot as long, and then loses all momentum at once."""
    return functools.partial(CoolMomentum, lr=LR, rho_0=RHO_0, hold_steps=steps, cool_steps=1)


def matched(steps: int) -> Make:
    """SGD with momentum 0.9, whose effective learning rate is the linearly cooled one's at every step."""
    return functools.partial(MatchedSGD, lr=LR, rho_0=RHO_0, cool_steps=steps, schedule="linear")


WAYS: dict[str, Callable[[int], Make]] = {
    "linear": cooled,
    "exponential": functools.partial(cooled, schedule="exponential"),
    "quench": quenched,
    "matched": matched,
}


def deep(make: Make, steps: int, walkers: int, seeds: int, noise: float = 1.0) -> Tensor:
    """By seed, the share of walkers that end in the deep well from the shallow one; the same noise for every method."""
    start, draw = torch.ones(seeds, walkers, dtype=torch.float64), generator(0, "well")
    end = walk(make, start, well, steps + COLD, noise=noise, draw=draw)
    return (end < 0).double().mean(1)


@functools.cache
def shares(way: str, steps: int, walkers: int, seeds: int) -> Tensor:
    """Of one of the ways; remembered, for claims share them."""
    return deep(WAYS[way](steps), steps, walkers, seeds)


def gain(effort: Effort, mine: str, theirs: str, steps: int = 3000) -> Measured:
    """How many more walkers reach the deep well one way than another, with the same steps, noise and seeds."""
    ours, others = (shares(way, steps, effort.pick(1000, 250), effort.pick(8, 5)) for way in (mine, theirs))
    reading = mean_of(f"{mine} − {theirs}, {steps} steps", ours - others)
    return Measured([reading], {f"share, {mine}": float(ours.mean()), f"share, {theirs}": float(others.mean())})


def slower(effort: Effort, lengths: Sequence[int] = (300, 1000, 3000)) -> Measured:
    """How many more walkers reach the deep well when cooled over more steps."""
    size = effort.pick(1000, 250), effort.pick(8, 5)
    found = [shares("linear", steps, *size) for steps in lengths]
    readings = [
        mean_of(f"{more} steps − {fewer} steps", after - before)
        for (fewer, before), (more, after) in itertools.pairwise(zip(lengths, found, strict=True))
    ]
    details = {f"share, {steps} steps": float(x.mean()) for steps, x in zip(lengths, found, strict=True)}
    still = deep(cooled(lengths[0]), lengths[0], 10, 1, noise=0.0)
    return Measured(readings, details | {f"share, {lengths[0]} steps, no gradient noise": float(still)})


# --- what it is a special case of ---


def as_sgd(effort: Effort, make: Make = CoolMomentum) -> Measured:
    """How far it runs from torch's SGD: at constant rho, and after the cooling."""
    start = torch.linspace(-2, 2, 50, dtype=torch.float64)
    readings = []
    for rho in (0.5, 0.9, 0.99):
        ours = walk(functools.partial(make, lr=LR, rho_0=rho), start, well, 200)
        sgd = walk(functools.partial(torch.optim.SGD, lr=LR * (1 + rho) / 2, momentum=rho), start, well, 200)
        readings.append(exact(f"rho {rho:g}", float((ours - sgd).abs().max())))
    points: list[Tensor] = []
    made = functools.partial(make, lr=LR, rho_0=0.9, cool_steps=50)
    walk(made, start, well, 150, see=lambda step, x, _: points.append(x.clone()))
    half = walk(functools.partial(torch.optim.SGD, lr=LR / 2), points[50], well, 99)
    readings.append(exact("after cooling", float((points[-1] - half).abs().max())))
    return Measured(readings)


def energy(effort: Effort, make: Make = CoolMomentum) -> Measured:
    """How far the leapfrog energy drifts as rho goes to 1, without noise."""
    k, lr, steps = 30.0, 0.01, effort.pick(10_000, 2_000)
    seen: list[float] = []

    def see(step: int, x: Tensor, optimizer: torch.optim.Optimizer) -> None:
        if step % 100 == 0:
            (state,) = optimizer.state.values()
            d = state["displacement"]
            seen.append(float(d**2 / (2 * lr) + k * x * (x - d) / 2))

    make = functools.partial(make, lr=lr, rho_0=1 - 1e-9)
    walk(make, torch.tensor([1.0], dtype=torch.float64), lambda x: k * x, steps, see=see)
    return Measured([exact(f"{steps} steps", (max(seen) - min(seen)) / seen[0])])


CLAIMS = (
    Claim(
        "cool-temperature",
        "At constant momentum the weights have a temperature, T = lr s² (1 + rho) / (4 (1 − rho)) / (1 − lr k / 4), "
        "the same by their positions and by their displacements: less momentum is colder.",
        f"{PAPER}, abstract; the law is derived from the update",
        Criterion("measured temperature by the law's", 0.96, 1.04),
        temperature,
        "Independent walkers in harmonic wells of lr k = 0.1 and 1, gradient noise of variance 1, at four momenta. "
        "They start at rest with 3 times the law's variance, and walk 6 relaxation times of the slower of two: 1 / (1 "
        "− rho) steps for displacements, 1 / (lr k (1 + rho) / (2 (1 − rho))) for positions. k times the mean square "
        "position, and the mean square displacement by lr. By the law the temperatures at rho 0.5, 0.9 and 0.99 are 3, "
        "19 and 199 times that at 0.",
        "Momentum sets the temperature as the law says, at every curvature, so lowering it is annealing.",
        "The law does not describe the weights' temperature.",
    ),
    Claim(
        "cool-virial",
        "At equilibrium the mean of x g is that of D² / lr, in any potential, at any momentum.",
        DERIVED,
        Criterion("⟨x g⟩ by ⟨D²⟩ / lr", 0.9, 1.1),
        virial,
        "Walkers in the double well with gradient noise of deviation 2, averaged over the last steps of a run.",
        "`virial_temperature` by `kinetic_temperature` tells whether a run is at equilibrium.",
        "The two thermometers disagree at equilibrium.",
    ),
    Claim(
        "cool-stability",
        "On a curvature k the method is stable for lr k < 4 at every momentum, lr being the squared time step.",
        DERIVED,
        Criterion("largest stable lr k", 4 - 1e-6, 4 + 1e-6),
        stability,
        "The spectral radius of one step of the optimizer as a linear map of position and displacement, in float64; "
        "the lr k at which it passes 1 is bisected. Runs of 2,000 steps 1 % below and above say the same.",
        "Cooling costs no stability: a learning rate that is stable at the start stays so.",
        "The limit moves with the momentum.",
    ),
    Claim(
        "cool-stiffness",
        "It bears ten times the curvature that SGD with momentum 0.9 and the same effective learning rate does.",
        DERIVED,
        Criterion("largest stable curvature by that of SGD", at_least=10.0),
        stiffness,
        "The largest curvature on which 600 steps at the initial momentum do not blow up, bisected for both.",
        "Where the task is stiff, cooling momentum allows an effective rate that SGD cannot take. Here is its case.",
        "Nothing is gained in stiff directions.",
    ),
    Claim(
        "cool-annealing",
        "Annealing finds the deep well more often than a quench with as many steps, by the linear schedule, the "
        "README's of 2025.",
        f"{PAPER}, title and abstract; the schedule: {README}",
        Criterion("share of walkers, annealed − quenched", at_least=0.0),
        functools.partial(gain, mine="linear", theirs="quench"),
        "A double well, (x² − 1)² + 0.15 x, gradient noise of variance 1, lr 0.01. Walkers start in the shallow well. "
        "In 3,000 steps the momentum cools from 0.99 linearly in temperature; or stays as long, and is then 0 at once. "
        "Both end with 200 steps at 0. Same noise, paired by seed.",
        "Cooling slowly is better than cooling at once: it is annealing.",
        "Hot steps do it, and how they end does not matter.",
    ),
    Claim(
        "cool-annealing-exponential",
        "The same by the article's own schedule, the exponential one.",
        f"{PAPER}, title and abstract",
        Criterion("share of walkers, annealed − quenched", at_least=0.0),
        functools.partial(gain, mine="exponential", theirs="quench"),
        "The same wells, walkers and 3,000 steps; 1 / (1 − rho) falls exponentially.",
        "The article's schedule anneals.",
        "The article's schedule leaves the heat early: while it cools its mean temperature is a fifth of the first, "
        "the linear one's half. In so many steps a quench finds the deep well more often.",
    ),
    Claim(
        "cool-annealing-exponential-long",
        "The article's schedule is better than a quench where steps are many.",
        f"{PAPER}, title and abstract; the length is ours",
        Criterion("share of walkers, annealed − quenched", at_least=0.0),
        functools.partial(gain, mine="exponential", theirs="quench", steps=10_000),
        "The same with 10,000 steps.",
        "It anneals, but needs more steps than the linear schedule.",
        "It does not come to be better than a quench.",
    ),
    Claim(
        "cool-annealing-short",
        "Annealing, linear, is better than a quench also where steps are few.",
        f"{PAPER}, title and abstract; the schedule: {README}",
        Criterion("share of walkers, annealed − quenched", at_least=0.0),
        functools.partial(gain, mine="linear", theirs="quench", steps=1000),
        "The same wells and walkers with 1,000 steps, too few for the hot walkers to forget where they started.",
        "Cooling pays from the first steps on.",
        "In a short run time spent hot counts for more than how it ends: annealing must be slow.",
    ),
    Claim(
        "cool-slowly",
        "The slower it cools, the more often it finds the deep well.",
        DERIVED,
        Criterion("share of walkers, slower − faster", at_least=0.0),
        slower,
        "The same wells and walkers, cooled linearly over 300, 1,000 and 3,000 steps.",
        "`cool_steps` should be the length of the run.",
        "Cooling over more steps gains nothing.",
    ),
    Claim(
        "cool-linear",
        "At equal length the linear schedule finds the deep well more often than the article's exponential one.",
        README,
        Criterion("share of walkers, linear − exponential", at_least=0.0),
        functools.partial(gain, mine="linear", theirs="exponential"),
        "The same wells and walkers.",
        '`schedule="linear"` is the better one here, though the article has the other.',
        "The article's schedule is as good.",
    ),
    Claim(
        "cool-control",
        "It is the cooling momentum that helps, and not the fall of the effective learning rate that comes with it.",
        "ours: the abstract does not set the momentum against the effective rate",
        Criterion(
            "share of walkers, cooled momentum − SGD with momentum 0.9 and the same effective rate", at_least=0.0
        ),
        functools.partial(gain, mine="linear", theirs="matched"),
        "The same wells and walkers; the control keeps momentum 0.9 and takes at every step the effective learning "
        "rate that the linearly cooled one has.",
        "Cooling the momentum does more than the decay of the rate.",
        "The benefit is annealing by whatever lowers the effective learning rate: SGD with a decaying rate anneals "
        "as well or better where the task is not too stiff for its larger steps.",
    ),
    Claim(
        "cool-sgd",
        "At constant momentum it is SGD with momentum rho and rate lr (1 + rho) / 2; when it has cooled, SGD at lr / "
        "2.",
        DERIVED,
        Criterion("largest difference of a position", at_most=1e-12),
        as_sgd,
        "Fifty positions in the double well without noise: 200 steps beside torch's SGD, at three momenta; and the "
        "last 99 of 150 steps, of which the first 50 cool.",
        "There is nothing else in it than momentum, rate and schedule.",
        "It is another method than SGD with that momentum.",
    ),
    Claim(
        "cool-energy",
        "Without friction the dynamics conserve energy.",
        DERIVED,
        Criterion("drift of the energy by the energy", at_most=1e-4),
        energy,
        "One particle on a parabola, k = 30, lr 0.01, rho = 1 − 1e-9: D² / (2 lr) + k x x' / 2 every hundredth step.",
        "The integrator is Verlet's: it adds no friction of its own.",
        "The integrator has friction of its own.",
    ),
)
