"""CoolMomentum's walkers in a double well as the temperature falls, beside a control that lowers its learning rate.

The control keeps its momentum and has CoolMomentum's effective learning rate at every step. Both see gradients with
noise of the same size, and all walkers start in the shallow well.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fallline import CoolMomentum
from fallline.bench.common.seeds import derive
from fallline.papers.experiments.coolmomentum_cooling import MatchedSGD
from fallline.papers.gallery._picture import Drawn
from fallline.papers.gallery.svg import (
    EDGE,
    WIDTH,
    Clock,
    Panel,
    area,
    document,
    group,
    heading,
    line,
    num,
    tag,
    track,
    words,
)

Array = NDArray[np.float64]

TILT = 0.15
"""How much the wells differ: by nearly twice this."""

NOISE = 1.0
"""Deviation of a gradient's noise, in a walker and a step."""

LR, RHO_0, SCHEDULE = 0.01, 0.99, "linear"
MOMENTUM = 0.9
"""Of the control."""

COOLING, COLD = 3000, 200
"""Steps while it cools, and after."""

WALKERS, SHOWN = 4000, 90
"""Walkers of each kind, and how many of them are drawn as dots."""

FRAMES = 51


def well(x: Any) -> Any:
    """U = (x² - 1)² + 0.15 x: the deep well on the left, the shallow one on the right."""
    return (x**2 - 1) ** 2 + TILT * x


def slope(x: Any) -> Any:
    """Its derivative."""
    return 4 * x * (x**2 - 1) + TILT


def special_points() -> tuple[float, float, float]:
    """Where the deep well, the barrier and the shallow well lie."""
    deep, barrier, shallow = sorted(float(root.real) for root in np.roots([4, 0, -4, TILT]))
    return deep, barrier, shallow


@dataclass(frozen=True)
class Settling:
    """What the walkers of one optimizer did."""

    name: str
    steps: Array
    """Of the frames, shape (frames,)."""

    places: Array
    """Of the walkers, shape (frames, walkers)."""

    rate: Array
    """The effective learning rate, drift a step and unit of force: shape (frames,)."""

    @property
    def temperature(self) -> Array:
        """At equilibrium, in units of U: half the effective rate times the noise's variance; shape (frames,).

        On a curvature k it is 1 / (1 - lr k / 4) times this, lr that of CoolMomentum with the same momentum.
        """
        return self.rate * NOISE**2 / 2

    @property
    def deep(self) -> Array:
        """The share beyond the barrier, in the deeper well: shape (frames,)."""
        share: Array = (self.places < special_points()[1]).mean(axis=1)
        return share


def equilibrium(temperature: Array) -> Array:
    """The share in the deeper well that Boltzmann's distribution has at these temperatures."""
    x = np.linspace(-3, 3, 3001)
    weights = np.exp(-(well(x) - well(x).min()) / np.asarray(temperature)[:, None])
    share: Array = weights[:, x < special_points()[1]].sum(axis=1) / weights.sum(axis=1)
    return share


def settle(
    name: str, seed: int, walkers: int = WALKERS, cooling: int = COOLING, cold: int = COLD, frames: int = FRAMES
) -> Settling:
    """Walk, as `coolmomentum` or as `sgd`, the control; the noise is the same for both."""
    x = torch.nn.Parameter(torch.full((walkers,), special_points()[2], dtype=torch.float64))
    cooled: Mapping[str, Any] = {"lr": LR, "rho_0": RHO_0, "cool_steps": cooling, "schedule": SCHEDULE}
    optimizer: CoolMomentum | MatchedSGD
    optimizer = CoolMomentum([x], **cooled) if name == "coolmomentum" else MatchedSGD([x], **cooled, momentum=MOMENTUM)
    draw = torch.Generator().manual_seed(derive("gallery", seed, "walkers"))
    steps = cooling + cold
    at = np.unique(np.linspace(0, steps, frames).round().astype(int))
    places, rates = [], []
    for step in range(steps + 1):
        if step in at:
            places.append(x.detach().numpy().copy())
            rates.append(effective_rate(optimizer))
        x.grad = slope(x.detach()) + NOISE * torch.randn(walkers, generator=draw, dtype=torch.float64)
        optimizer.step()
    return Settling(name, at.astype(np.float64), np.stack(places), np.array(rates))


def effective_rate(optimizer: CoolMomentum | MatchedSGD) -> float:
    """Terminal drift a step and unit of force, as the optimizer itself tells it."""
    if isinstance(optimizer, CoolMomentum):
        return optimizer.effective_lr.item()
    (group_,) = optimizer.param_groups
    return optimizer.rate(group_) / (1 - MOMENTUM)


# --- the picture ---

LABELS = {"coolmomentum": "CoolMomentum", "sgd": f"SGD, momentum {MOMENTUM:g}, same effective rate"}
CLOCK = Clock(10)
REACH = 1.85
"""The places shown, on either side."""

BASE, TALL = 418.0, 128.0
"""Where the humps stand, and how high the highest of all frames is."""

BINS, SPREAD = 52, 0.12
"""Of the histogram, and the deviation of the normal curve that smooths it: the coldest walkers share one bin."""

SCATTER = 5.0
"""How far to either side of its place a dot may stand, so that cold walkers hide each other less."""


def double_well(seed: int, jobs: int) -> Drawn:
    """CoolMomentum's walkers settling in the deeper well as the temperature falls, beside the matched control."""
    both = [settle(name, seed) for name in LABELS]
    summary = [
        f"{LABELS[one.name]}: {100 * one.deep[-1]:.1f} % of {one.places.shape[1]:,} walkers end in the deeper well"
        for one in both
    ]
    return Drawn(draw(both), tuple(summary), CLOCK.total)


def draw(both: list[Settling]) -> str:
    """The picture: wells with walkers, where the walkers are, and below temperature and shares."""
    first = both[0]
    walkers = first.places.shape[1]
    body = [
        heading(
            "Settling as it cools",
            f"U = (x² − 1)² + {TILT:g} x, gradients with noise of deviation {NOISE:g}. {walkers:,} walkers start in "
            "the shallow well.",
        )
    ]
    highest = max(float(humps(one).max()) for one in both)
    for one, left in zip(both, (EDGE, WIDTH / 2 + 12), strict=True):
        body.append(wells(one, left, highest))
    body += [cooling(first), shares(both)]
    ends = " and ".join(f"{100 * one.deep[-1]:.0f} % with {LABELS[one.name]}" for one in both)
    description = (
        "Walkers in a double well under falling temperature, with their density below; then the temperature and the "
        f"share of walkers in the deeper well against steps. At the end it is {ends}."
    )
    return document(654, "Settling as it cools", description, body, ["hill", *LABELS])


def wells(one: Settling, left: float, highest: float) -> str:
    """The double well with walkers on it, and their density below, as a share of the highest of both."""
    panel = Panel.at(left, 116, 364, 150, (-REACH, REACH), (-0.5, 2.6))
    x = np.linspace(-REACH, REACH, 200)
    curve = np.stack([panel.x(x), panel.y(well(x))], 1)
    curve = curve[curve[:, 1] > 96]
    ground = [*curve, (curve[-1, 0], 276), (curve[0, 0], 276)]
    name = f"well-{one.name}"
    drawn = [
        words(left, 96, LABELS[one.name], f"head f-{one.name}"),
        area(ground, "shade"),
        tag("path", d=track(curve), id=name, class_="line thin s-muted"),
    ]
    # Walkers ride on the curve, a little above it; an even choice of all that there are.
    length = np.concatenate([[0.0], np.linalg.norm(np.diff(curve, axis=0), axis=1).cumsum()])
    chosen = np.linspace(0, one.places.shape[1] - 1, min(SHOWN, one.places.shape[1])).astype(int)
    riding = np.interp(panel.x(one.places[:, chosen]), curve[:, 0], length / length[-1])
    aside, above = np.random.default_rng(0).uniform((-SCATTER, 4), (SCATTER, 36), (len(chosen), 2)).T
    moving, still = [], []
    for places, shift, lift in zip(riding.T, aside, above, strict=True):
        move = CLOCK.along(name, places)
        moving.append(tag("circle", move, cx=float(shift), cy=float(-lift), r=3.0))
        sx, sy = (np.interp(places[-1], length / length[-1], curve[:, axis]) for axis in (0, 1))
        still.append(tag("circle", cx=float(sx + shift), cy=float(sy - lift), r=3.0))
    drawn.append(CLOCK.either(group(*moving), group(*still), class_=f"f-{one.name}", fill_opacity=0.7))
    drawn.append(density(one, panel, highest))
    deep, barrier, shallow = special_points()
    ends = {deep: one.deep[-1], shallow: 1 - one.deep[-1]}
    last, x = humps(one)[-1], middles()
    for at, label in ((deep, "deeper well"), (shallow, "shallow well")):
        drawn.append(words(float(panel.x(at)), BASE + 18, label, "small muted middle"))
        top = BASE - TALL * float(last[(x < barrier) == (at < barrier)].max()) / highest
        share = words(float(panel.x(at)), top - 8, f"{100 * ends[at]:.0f} %", f"head middle f-{one.name}")
        drawn.append(CLOCK.arrive(share))
    return group(*drawn)


def middles() -> Array:
    """Of the bins."""
    edges = np.linspace(-REACH, REACH, BINS + 1)
    return (edges[1:] + edges[:-1]) / 2


def humps(one: Settling) -> Array:
    """Where the walkers are: a smoothed histogram, in shares a bin; shape (frames, bins)."""
    counts = np.stack([np.histogram(places, BINS, (-REACH, REACH))[0] for places in one.places])
    kernel = np.exp(-0.5 * np.square(np.subtract.outer(middles(), middles()) / SPREAD))
    smooth: Array = counts @ (kernel / kernel.sum(axis=1)[BINS // 2]) / one.places.shape[1]
    return smooth


def density(one: Settling, panel: Panel, highest: float) -> str:
    """The humps, which move."""
    heights = np.rint(TALL * humps(one) / highest)
    # Whole units up and even steps across: the numbers of all frames stay short.
    x = np.rint(panel.x(-REACH) + 7 * np.arange(heights.shape[1]))
    shapes = [
        f"M{num(x[0])} {num(BASE)}" + "".join(f"l7 {num(step)}" for step in -np.diff(row, prepend=0, append=0)) + "z"
        for row in heights
    ]
    floor = tag("path", d=f"M{num(panel.x.start)} {num(BASE)}H{num(panel.x.end)}", class_="grid")
    moving, still = tag("path", CLOCK.animate("d", shapes), d=shapes[-1]), tag("path", d=shapes[-1])
    return floor + CLOCK.either(moving, still, class_=f"f-{one.name}", fill_opacity=0.55)


def cooling(one: Settling) -> str:
    """The temperature of the schedule."""
    top = float(one.temperature.max()) * 1.1
    panel = Panel.at(60, 492, 316, 100, (0, one.steps[-1]), (0, top))
    return group(
        panel.axes("step", name="Temperature at equilibrium", y_ticks=4, x_ticks=4),
        CLOCK.reveal(panel, "cooled", line(panel.points(one.steps, one.temperature), "text")),
    )


def shares(both: list[Settling]) -> str:
    """The share in the deeper well, and that of equilibrium."""
    panel = Panel.at(448, 492, 240, 100, (0, both[0].steps[-1]), (0, 1))
    steps = both[0].steps
    even = equilibrium(np.maximum(both[0].temperature, 1e-3))
    drawn = [line(panel.points(steps, even), "muted", "line thin", stroke_dasharray="2 4")]
    marks = [words(panel.x.end + 6, float(panel.y(even[-1])) + 4, "equilibrium", "small muted")]
    ends = []
    for one in both:
        drawn.append(line(panel.points(steps, one.deep), one.name))
        place = float(panel.y(one.deep[-1]))
        share = f"{100 * one.deep[-1]:.0f} %"
        ends.append(words(panel.x.end + 6, place + (0 if one.name == "sgd" else 14), share, f"f-{one.name} name"))
    return group(
        panel.axes("step", name="Share in the deeper well", y_ticks=3, x_ticks=4),
        CLOCK.reveal(panel, "shares", *drawn),
        *marks,
        CLOCK.arrive(*ends),
    )
