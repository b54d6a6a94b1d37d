"""How a momentum may cool: schedules, what they do to the learning rate, and the temperature that walkers measure."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fallline import CoolMomentum
from fallline.bench.common.seeds import derive
from fallline.papers.gallery._picture import Drawn
from fallline.papers.gallery.svg import EDGE, WIDTH, Panel, document, dot, group, heading, line, tag, words

Array = NDArray[np.float64]

LR, RHO_0, MOMENTUM = 0.01, 0.99, 0.9
STEPS, WARM = 2000, 300
"""Steps of a schedule, and before it at its start, so that walkers are in equilibrium."""

WALKERS, READINGS = 3000, 24
"""Walkers in a harmonic well of curvature 1 under gradients with noise of deviation 1; how often they are measured."""


@dataclass(frozen=True)
class Course:
    """One schedule through a run: each of shape (steps,), unless it says otherwise."""

    name: str
    momentum: Array
    factor: Array
    """What multiplies a gradient in its own step."""

    rate: Array
    """The effective learning rate: drift a step and unit of a steady force."""

    at: Array
    """Steps at which walkers were measured, shape (readings,)."""

    temperature: Array
    """What they measured, the mean of x²: shape (readings,)."""

    @property
    def expected(self) -> Array:
        """The temperature at equilibrium: half the effective rate, at noise of variance 1."""
        return self.rate / 2


KINDS = {
    "exponential": ("exponential (the paper’s)", "coolmomentum", ""),
    "exponential_temperature": ("exponential temperature", "spare-0", "8 4"),
    "linear": ("linear", "spare-1", ""),
    "sgd": (f"SGD, momentum {MOMENTUM:g}, cosine", "sgd", "8 3 2 3"),
}
"""Label, colour and dashes of each."""


def run_course(name: str, seed: int, steps: int = STEPS, walkers: int = WALKERS, readings: int = READINGS) -> Course:
    """Walk in a harmonic well under the schedule; momentum and rates are the optimizer's own readings."""
    draw = torch.Generator().manual_seed(derive("gallery", seed, "schedules"))
    start = (LR * (1 + RHO_0) / (4 * (1 - RHO_0))) ** 0.5
    x = torch.nn.Parameter(start * torch.randn(walkers, generator=draw, dtype=torch.float64))
    cool, sgd = None, None
    if name == "sgd":
        first = (1 - MOMENTUM) * LR * (1 + RHO_0) / (2 * (1 - RHO_0))  # the same effective rate at the start
        sgd = torch.optim.SGD([x], lr=first, momentum=MOMENTUM)
    else:
        cool = CoolMomentum([x], lr=LR, rho_0=RHO_0, cool_steps=steps, hold_steps=WARM, schedule=name)  # type: ignore[arg-type]  # one of KINDS
    at = np.linspace(0, steps - 1, readings).round().astype(int)
    rows, hot = [], []
    for step in range(-WARM, steps):
        if sgd is not None:
            sgd.param_groups[0]["lr"] = first * 0.5 * (1 + np.cos(np.pi * max(0, step) / steps))
            lr = sgd.param_groups[0]["lr"]
            row = [MOMENTUM, lr, lr / (1 - MOMENTUM)]
        elif cool is not None and step >= 0:
            row = [cool.rho.item(), cool.step_factor.item(), cool.effective_lr.item()]
        if step >= 0:
            rows.append(row)
        if step in at:
            hot.append(x.detach().square().mean().item())
        x.grad = x.detach() + torch.randn(walkers, generator=draw, dtype=torch.float64)
        optimizer: Any = cool or sgd
        optimizer.step()
    momentum, factor, rate = np.array(rows).T
    return Course(name, momentum, factor, rate, at.astype(np.float64), np.array(hot))


# --- the picture ---


def rho(seed: int, jobs: int) -> Drawn:
    """Schedules of the momentum, the step factor, the effective learning rate and the temperature through a run."""
    courses = [run_course(name, seed) for name in KINDS]
    summary = [
        f"{KINDS[one.name][0]}: momentum {one.momentum[0]:.3g} to {one.momentum[-1]:.3g}, temperature "
        f"{one.temperature[0]:.3g} to {one.temperature[-1]:.3g} (at equilibrium {one.expected[-1]:.3g})"
        for one in courses
    ]
    return Drawn(draw(courses), tuple(summary))


def draw(courses: list[Course]) -> str:
    """Four panels and a legend."""
    title = "Four ways to cool"
    steps = len(courses[0].momentum)
    share = np.arange(steps) / steps
    wide, tall, left, right = 316, 170, 64, 448
    everything = np.concatenate([one.rate for one in courses])
    rates = (max(1e-3, float(everything.min())), float(everything.max()) * 1.4)
    factors = (LR / 4, max(float(one.factor.max()) for one in courses) * 1.6)
    panels = {
        "Momentum ρ": (Panel.at(left, 162, wide, tall, (0, 1), (0, 1)), "momentum"),
        "Step factor": (Panel.at(right, 162, wide, tall, (0, 1), factors, log_y=True), "factor"),
        "Effective learning rate": (Panel.at(left, 392, wide, tall, (0, 1), rates, log_y=True), "rate"),
        "Temperature": (
            Panel.at(right, 392, wide, tall, (0, 1), (rates[0] / 2, rates[1] / 2), log_y=True),
            "expected",
        ),
    }
    body = [
        heading(
            title,
            f"CoolMomentum from ρ = {RHO_0:g} to 0 in {steps:,} steps, and SGD with a cosine.",
            f"Lines: the optimizers’ readings. Dots: measured on {WALKERS:,} walkers.",
        ),
        legend(courses),
    ]
    for label, (panel, what) in panels.items():
        drawn = [panel.axes("share of the run" if panel.y.end > 300 else " ", name=label)]
        for one in courses:
            _, colour, dash = KINDS[one.name]
            values = getattr(one, what)
            inside = values >= panel.y.low  # the cosine falls out of the panel
            classes = "line thin" if what == "expected" else "line"  # the dots are to be seen on their lines
            drawn.append(line(panel.points(share[inside], values[inside]), colour, classes, stroke_dasharray=dash))
        if what == "expected":
            for one in courses:
                places = panel.points(one.at / steps, one.temperature)
                drawn += [dot(x, y, 2.8, f"f-{KINDS[one.name][1]}") for x, y in places]
        body.append(group(*drawn))
    description = (
        "Momentum, step factor, effective learning rate and temperature against the share of the run, for three "
        "schedules of CoolMomentum and for SGD with a cosine; dots are temperatures measured in a harmonic well."
    )
    return document(622, title, description, body, [colour for _, colour, _ in KINDS.values()])


def legend(courses: list[Course]) -> str:
    """A row of names with their lines."""
    drawn, x = [], float(EDGE)
    for one in courses:
        label, colour, dash = KINDS[one.name]
        drawn.append(tag("path", d=f"M{x:g} 108h26", class_=f"line s-{colour}", stroke_dasharray=dash))
        drawn.append(words(x + 32, 112, label, "small"))
        x += 50 + 7.1 * len(label)
    assert x < WIDTH + 30, "the legend is wider than the picture"
    return group(*drawn)
