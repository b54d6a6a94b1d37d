"""LODO's network learns an inverse Hessian that it never sees: as images, while it follows a moving minimum.

The loss is the energy of a chain of springs whose ends are held, and whose places of rest take a random step before
every evaluation, as in the bowl of LODO's paper. A chain's inverse Hessian has a shape that one can see.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fallline import LODO
from fallline.bench.common.seeds import derive
from fallline.papers.experiments.lodo_bowl import TUNED, hessian_error
from fallline.papers.gallery._picture import Drawn
from fallline.papers.gallery.svg import EDGE, WIDTH, Clock, Panel, document, group, heading, line, num, tag, words

Array = NDArray[np.float64]

SIZE = 16
"""Springs' ends in the chain: numbers to optimize."""

HELD = 0.15
"""Stiffness with which each is held where it rests, that of a spring being 1; without it H is nearly singular."""

FIRST, STEPS = 10, 1500
FRAMES = 25
SETTINGS: Mapping[str, Any] = {**TUNED, "meta_lr": 2e-3}
"""The paper's for its bowl, but for a meta learning rate twice as large: the run is short."""


def chain(size: int = SIZE) -> Tensor:
    """The Hessian: 2 + held on the diagonal, -1 beside it, divided by its largest eigenvalue; shape (size, size)."""
    bare = torch.diag(torch.full((size,), 2.0 + HELD, dtype=torch.float64))
    beside = torch.diag(torch.ones(size - 1, dtype=torch.float64), 1)
    H = bare - beside - beside.T
    scaled: Tensor = H / torch.linalg.eigvalsh(H)[-1]
    return scaled


@dataclass(frozen=True)
class Learning:
    """What LODO learned."""

    H: Array
    """The true Hessian, shape (size, size)."""

    steps: Array
    """Of the frames, even over the logarithm: shape (frames,)."""

    G: Array
    """LODO's preconditioner: shape (frames, size, size)."""

    error: Array
    """The norm of I - G H, divided by that of I: shape (frames,)."""

    losses: Array
    """Of every step: shape (steps,)."""


def learn(seed: int, steps: int = STEPS, size: int = SIZE, frames: int = FRAMES) -> Learning:
    """Follow the moving minimum, and look at the network on the way."""
    H = chain(size)
    x = torch.nn.Parameter(torch.zeros(size, dtype=torch.float64))
    draw = torch.Generator().manual_seed(derive("gallery", seed, "springs"))
    optimizer = LODO([x], generator=torch.Generator().manual_seed(derive("gallery", seed, "network")), **SETTINGS)
    at = np.unique(np.geomspace(FIRST, steps, frames).round().astype(int))
    minimum = torch.zeros(size, dtype=torch.float64)
    seen, losses = [], []
    for step in range(steps + 1):
        if step in at:
            seen.append(optimizer.networks[0].dense().detach().clone())
        if step == steps:
            break
        minimum = minimum + torch.randn(size, generator=draw, dtype=torch.float64)
        x.grad = H @ (x.detach() - minimum)
        losses.append(0.5 * float((x.detach() - minimum) @ x.grad))
        optimizer.step()
    errors = [hessian_error(G, H) for G in seen]
    return Learning(H.numpy(), at.astype(np.float64), torch.stack(seen).numpy(), np.array(errors), np.array(losses))


# --- the picture ---

CLOCK = Clock(8)
SIDE, TOP = 228.0, 122.0
"""Of an image."""

FAINT = 0.05
"""Entries that never reach this share of the largest are not drawn."""


def lodo_hessian(seed: int, jobs: int) -> Drawn:
    """LODO's learned inverse Hessian beside the true one, as images over time, with its error."""
    found = learn(seed)
    tail = max(1, len(found.losses) // 10)
    floor = found.H.trace() / 2
    summary = (
        f"|I - G H| / |I| from {found.error[0]:.3f} to {found.error[-1]:.3f} in {found.steps[-1]:.0f} steps",
        f"Mean loss of the last tenth: {found.losses[-tail:].mean():.2f}; of an exact Newton step {floor:.2f}",
    )
    return Drawn(draw(found), summary, CLOCK.total)


def draw(found: Learning) -> str:
    """G over time, the goal, both along the eigenvectors; below the error."""
    title = "Learning an inverse Hessian from gradients alone"
    size = len(found.H)
    inverse = np.asarray(np.linalg.inv(found.H), dtype=np.float64)
    largest = float(np.abs(inverse).max())
    gap = (WIDTH - 2 * EDGE - 3 * SIDE) / 2
    lefts = [EDGE + i * (SIDE + gap) for i in range(3)]
    cell = num(SIDE / size + 0.2)
    body = [
        tag("defs", tag("rect", id="cell", width=cell, height=cell)),
        heading(title, f"A chain of {size} springs whose places of rest take a random step before every gradient."),
        image(found.G / largest, lefts[0], "LODO’s G"),
        image(inverse[None] / largest, lefts[1], "H⁻¹, which it never sees"),
        directions(found, lefts[2]),
        errors(found),
    ]
    description = (
        f"LODO's preconditioner G as an image that changes over {found.steps[-1]:.0f} steps, beside the inverse of the "
        "Hessian; the two along the eigenvectors of the Hessian; and the error of G against steps, from "
        f"{found.error[0]:.2f} to {found.error[-1]:.2f}."
    )
    return document(578, title, description, body, ["lodo", "koala-m"])


def image(frames: Array, left: float, name: str) -> str:
    """A matrix, entries in [-1, 1], shape (frames, size, size): positive ones in one colour, negative in another."""
    frame = tag("rect", x=left, y=TOP, width=SIDE, height=SIDE, class_="grid")
    still = cells(frames[-1:], left)
    drawn = still if len(frames) == 1 else CLOCK.either(cells(frames, left), still)
    return group(words(left, TOP - 14, name, "head"), frame, drawn)


def cells(frames: Array, left: float) -> str:
    """The entries that can be seen, each as opaque as it is large."""
    cell = SIDE / frames.shape[1]
    drawn: dict[str, list[str]] = {"lodo": [], "koala-m": []}
    for colour, sign in (("lodo", 1), ("koala-m", -1)):
        shown = np.clip(sign * frames, 0, 1) ** 0.8  # small entries can be seen
        for row, column in np.argwhere(shown.max(axis=0) > FAINT).tolist():
            values = [num(value, 2) for value in shown[:, row, column]]
            move = CLOCK.animate("fill-opacity", values)
            place = {"x": left + column * cell, "y": TOP + row * cell}
            drawn[colour].append(tag("use", move, href="#cell", **place, fill_opacity=values[-1]))
    return "".join(group(*uses, class_=f"f-{colour}") for colour, uses in drawn.items())


def directions(found: Learning, left: float) -> str:
    """v'Gv against the eigenvalue, for every eigenvector v of H: learned, the dots lie on 1 / eigenvalue."""
    values, vectors = np.linalg.eigh(found.H)
    along = np.einsum("ik,fij,jk->fk", vectors, found.G, vectors)
    panel = Panel.at(
        left + 34, TOP, SIDE - 34, SIDE, (min(0.05, values[0] / 1.3), 1.3), (0.3, 2 / values[0]), log_x=True, log_y=True
    )
    drawn = [panel.axes("eigenvalue λ, dotted 1 / λ", y_ticks=4)]
    drawn.append(words(left + 34, TOP - 14, "Along H’s eigenvectors", "head"))
    drawn.append(line(panel.points(values, 1 / values), "text", "line thin", stroke_dasharray="2 4"))
    courses = {f"lodo/{i}": panel.points(np.full(len(along), value), along[:, i]) for i, value in enumerate(values)}
    drawn.append(CLOCK.heads(courses, 4.5))
    return group(*drawn)


def errors(found: Learning) -> str:
    """Against steps, over their logarithm."""
    ends = (float(found.steps[0]), float(found.steps[-1]))
    panel = Panel.at(64, 440, WIDTH - 64 - EDGE, 84, ends, (0, max(1.0, float(found.error.max())) * 1.02), log_x=True)
    return group(
        panel.axes("step", name="Error ‖I − GH‖ / ‖I‖", y_ticks=3),
        CLOCK.reveal(panel, "erring", line(panel.points(found.steps, found.error), "lodo")),
    )
