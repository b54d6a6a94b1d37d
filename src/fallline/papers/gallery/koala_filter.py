"""KOALA-M's filter through a run on real images: what it believes of weights and loss, and its trust."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fallline import MomentumKOALA
from fallline.papers.gallery._picture import Drawn
from fallline.papers.gallery.svg import Panel, apart, area, document, group, heading, line, words
from fallline.papers.perceptron import Perceptron

Array = NDArray[np.float64]

NAME = "koala-m"
EPOCHS, BATCHES = 15, 16
"""Of the run on digits: 16 batches of 64 make an epoch."""


@dataclass(frozen=True)
class Filtering:
    """The filter's readings at every step: each of shape (steps,), unless it says otherwise."""

    loss: Array
    """Of the batch, at the predicted weights."""

    R: Array
    """Measurement noise, the running mean of squared losses."""

    P: Array
    """Entries 11, 12 and 22 of the predicted covariance of a weight and its velocity: shape (steps, 3)."""

    gain: Array
    """Of each tensor, P11 |h|² / (P11 |h|² + R), the share of the loss that a step asks for: shape (steps, tensors)."""


def run_filter(seed: int, steps: int = EPOCHS * BATCHES) -> Filtering:
    """Train on digits with KOALA-M as shipped, in its two stages, and read the filter at each."""
    digits = Perceptron(seed, torch.float32)
    optimizer = MomentumKOALA(digits.weights)
    rows = []
    for _ in range(steps):
        optimizer.predict()
        losses = digits.losses()
        P = optimizer.covariance.clone()
        squares = [p.grad.square().sum().item() for p in digits.weights if p.grad is not None]
        optimizer.update(losses)
        R = optimizer.measurement_noise.item()
        p11, p12, p22 = P[0, 0].item(), P[0, 1].item(), P[1, 1].item()
        rows.append([losses.mean().item(), R, p11, p12, p22, *(p11 * h2 / (p11 * h2 + R) for h2 in squares)])
    table = np.array(rows)
    return Filtering(table[:, 0], table[:, 1], table[:, 2:5], table[:, 5:])


# --- the picture ---

LEFT, ACROSS = 70, 590


def koala_filter(seed: int, jobs: int) -> Drawn:
    """KOALA-M's covariance, measurement noise and gain through a run on digits, with the loss."""
    found = run_filter(seed)
    summary = (
        f"Loss from {found.loss[0]:.2f} to {found.loss[-BATCHES:].mean():.3f} (mean of the last epoch), "
        f"root of R to {found.R[-1] ** 0.5:.3f}",
        f"P11 from {found.P[0, 0]:.2g} to {found.P[-1, 0]:.2g}; largest gain of a tensor from "
        f"{found.gain[0].max():.2f} to {found.gain[-1].max():.2f}",
    )
    return Drawn(draw(found), summary)


def draw(found: Filtering) -> str:
    """Loss with the root of R, the covariance, the gains."""
    steps = np.arange(1.0, len(found.loss) + 1)
    ends = (0.0, float(steps[-1]))
    title = "What KOALA-M believes"
    body = [
        heading(
            title, f"A Kalman filter of the loss on 8 × 8 images of digits: {len(steps)} steps, settings as shipped"
        ),
        believed_loss(found, steps, ends),
        covariance(found, steps, ends),
        gains(found, steps, ends),
    ]
    description = (
        "Three panels against steps. Loss of each batch with the root of the measurement noise R; the three entries of "
        "the covariance P; the gains of the tensors, that is the share of the loss which a step asks for."
    )
    return document(706, title, description, body, [NAME])


def believed_loss(found: Filtering, steps: Array, ends: tuple[float, float]) -> str:
    """The loss is the measurement; R says how large a one is expected."""
    low, high = min(found.loss.min(), found.R.min() ** 0.5) / 1.3, max(found.loss.max(), 1.0) * 1.3
    panel = Panel.at(LEFT, 116, ACROSS, 160, ends, (low, high), log_y=True)
    root = np.sqrt(found.R)
    last = [float(panel.y(values[-BATCHES:]).mean()) for values in (root, found.loss)]
    above, below = apart(last, 40, panel.y.end, panel.y.start - 10)
    return group(
        panel.axes(name="The measurement: the loss"),
        line(panel.points(steps, found.loss), NAME, "line thin", opacity=0.65),
        line(panel.points(steps, root), "text"),
        words(panel.x.end + 10, above - 4, "√R, root mean", "small"),
        words(panel.x.end + 10, above + 12, "square of losses", "small"),
        words(panel.x.end + 10, below + 4, "loss of a batch", f"small f-{NAME}"),
    )


def covariance(found: Filtering, steps: Array, ends: tuple[float, float]) -> str:
    """P of weight and velocity."""
    known = found.P[found.P > 0]
    panel = Panel.at(LEFT, 322, ACROSS, 140, ends, (known.min() / 1.3, known.max() * 1.3), log_y=True)
    looks = ((0, "line", ""), (1, "line thin", "2 4"), (2, "line", "7 4"))
    labels = ("P₁₁ of a weight", "P₁₂ of both", "P₂₂ of its velocity")
    drawn = [panel.axes(name="The belief: covariance P")]
    places = apart([float(panel.y(last)) for last in found.P[-1]], 16, panel.y.end, panel.y.start + 8)
    for (entry, classes, dash), label, place in zip(looks, labels, places, strict=True):
        values = found.P[:, entry]
        drawn.append(line(panel.points(steps, values), NAME, classes, stroke_dasharray=dash))
        drawn.append(words(panel.x.end + 10, place + 4, label, f"small f-{NAME}"))
    return group(*drawn)


def gains(found: Filtering, steps: Array, ends: tuple[float, float]) -> str:
    """From the smallest to the largest of all tensors."""
    panel = Panel.at(LEFT, 508, ACROSS, 140, ends, (0, 1))
    low, high = found.gain.min(axis=1), found.gain.max(axis=1)
    band = np.concatenate([panel.points(steps, high), panel.points(steps, low)[::-1]])
    return group(
        panel.axes("step", name="The trust: gain of a tensor"),
        area(band, f"f-{NAME}", fill_opacity=0.22),
        line(panel.points(steps, np.median(found.gain, axis=1)), NAME),
        words(panel.x.end + 10, float(panel.y(1)) + 4, "1: asks for all", "small muted"),
        words(panel.x.end + 10, float(panel.y(1)) + 20, "of the loss", "small muted"),
        words(panel.x.end + 10, float(panel.y(0.5)) - 4, "band: least to", f"small f-{NAME}"),
        words(panel.x.end + 10, float(panel.y(0.5)) + 12, "largest tensor", f"small f-{NAME}"),
        words(panel.x.end + 10, float(panel.y(0.5)) + 34, "line: median", f"small f-{NAME} name"),
        words(panel.x.end + 10, float(panel.y(0)) + 4, "0: asks for none", "small muted"),
    )
