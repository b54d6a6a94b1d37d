"""arTuRO's trust region through a run on real images: the KL divergence of each step, its bound, and the multiplier."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fallline import ArTuRO
from fallline.bench.contenders import lr_factor
from fallline.papers.gallery._picture import Drawn
from fallline.papers.gallery.svg import Panel, area, document, group, heading, line, words
from fallline.papers.perceptron import Perceptron

Array = NDArray[np.float64]

NAME = "arturo"
BOUND = 0.01
"""The bound at its highest, in nats; a race's cosine takes it up and down."""

EPOCHS, BATCHES = 30, 16


@dataclass(frozen=True)
class Steps:
    """A reading of every step: each of shape (steps,)."""

    bound: Array
    """What the step's KL divergence may be, in nats."""

    kl: Array
    """What it was, as the optimizer tells it."""

    measured: Array
    """The same from the weights before and after, ½ Σ Λ Δ² with the precision that the step had."""

    multiplier: Array
    """Eta; 0 where the bound does not shorten the step."""

    length: Array
    """Euclidean length of the step over all weights."""

    loss: Array
    """Of the batch."""


def run_steps(seed: int, steps: int = EPOCHS * BATCHES) -> Steps:
    """Train on digits with arTuRO as shipped but for the bound, and measure each step from outside."""
    digits = Perceptron(seed, torch.float32)
    parameters = digits.weights
    optimizer = ArTuRO(parameters, lr=BOUND)
    rows = []
    for step in range(1, steps + 1):
        bound = BOUND * lr_factor("cosine", step, steps)
        optimizer.param_groups[0]["lr"] = bound
        loss = digits.losses().mean()
        before = [(p.detach().clone(), optimizer.state[p]["precision"].clone()) for p in parameters]
        optimizer.step()
        moved = [(p.detach() - old, precision) for p, (old, precision) in zip(parameters, before, strict=True)]
        measured = sum(0.5 * float((precision * delta.square()).double().sum()) for delta, precision in moved)
        length = sum(float(delta.double().square().sum()) for delta, _ in moved) ** 0.5
        rows.append([bound, optimizer.kl.item(), measured, optimizer.eta.item(), length, loss.item()])
    return Steps(*np.array(rows).T)


# --- the picture ---

LEFT, ACROSS = 70, 590


def trust_region(seed: int, jobs: int) -> Drawn:
    """arTuRO's step, its KL divergence against the bound, and the multiplier, through a run on digits."""
    found = run_steps(seed)
    full = float((found.multiplier > 0).mean())
    summary = (
        f"KL / bound: largest {(found.kl / found.bound).max():.6f}; the bound shortens {100 * full:.0f} % of the steps",
        f"Loss from {found.loss[0]:.2f} to {found.loss[-BATCHES:].mean():.3f} (mean of the last epoch)",
    )
    return Drawn(draw(found), summary)


def draw(found: Steps) -> str:
    """KL divergence under its bound, multiplier, length of the step."""
    steps = np.arange(1.0, len(found.loss) + 1)
    ends = (0.0, float(steps[-1]))
    title = "As far as the bound allows"
    body = [
        heading(
            title, f"arTuRO on 8 × 8 images of digits: {len(steps)} steps, bound ε = {BOUND:g} nats times a cosine"
        ),
        divergence(found, steps, ends),
        multiplier(found, steps, ends),
        length(found, steps, ends),
    ]
    description = (
        "Three panels against steps. The KL divergence of every step under its bound; the multiplier that makes the "
        "step fit; the length of the step in the weights."
    )
    return document(706, title, description, body, [NAME])


def divergence(found: Steps, steps: Array, ends: tuple[float, float]) -> str:
    """Measured from the weights, not as the optimizer tells it."""
    panel = Panel.at(LEFT, 116, ACROSS, 160, ends, (0, found.bound.max() * 1.1))
    bound = panel.points(steps, found.bound)
    floor = panel.y.start
    allowed = [*bound, (bound[-1, 0], floor), (bound[0, 0], floor)]
    return group(
        panel.axes(name="KL divergence of a step, nats"),
        area(allowed, f"f-{NAME}", fill_opacity=0.13),
        line(panel.points(steps, found.measured), NAME),
        line(bound, "text", "line thin", stroke_dasharray="2 4"),
        words(panel.x.end + 10, float(panel.y(found.bound.max())) + 4, "dotted: bound", "small muted"),
        words(panel.x.end + 10, float(panel.y(found.bound.max())) + 20, "line: ½ Σ Λ Δ²", f"small f-{NAME} name"),
        words(panel.x.end + 10, float(panel.y(found.bound.max())) + 36, "as measured", f"small f-{NAME} name"),
    )


def multiplier(found: Steps, steps: Array, ends: tuple[float, float]) -> str:
    """On a logarithmic axis; steps that nothing shortens are dots at its foot."""
    known = found.multiplier[found.multiplier > 0]
    low, high = (known.min() / 1.5, known.max() * 1.5) if len(known) else (0.1, 1.0)
    panel = Panel.at(LEFT, 322, ACROSS, 140, ends, (low, high), log_y=True)
    return group(
        panel.axes(name="Multiplier η: what it takes to stay within"),
        line(panel.points(steps, found.multiplier), NAME, "line thin"),
        words(LEFT - 8, panel.y.start + 4, "0", "small muted end figures"),
        words(panel.x.end + 10, panel.y.start - 11, "0: the bound", "small muted"),
        words(panel.x.end + 10, panel.y.start + 4, "shortens nothing", "small muted"),
    )


def length(found: Steps, steps: Array, ends: tuple[float, float]) -> str:
    """Of all weights together."""
    panel = Panel.at(LEFT, 508, ACROSS, 140, ends, (0, found.length.max() * 1.1))
    return group(
        panel.axes("step", name="Length of a step ‖Δ‖"), line(panel.points(steps, found.length), NAME, "line thin")
    )
