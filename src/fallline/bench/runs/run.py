"""A training run: what identifies it, what comes of it, and when it is lost."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from fallline.bench.common.spaces import Setting

RUNAWAY = 1e3
"""A training loss this many times the first one is called divergence, even while it is still a number: see `runaway`
for what that is where losses are negative."""

Curve = dict[str, list[float | None]]
"""`step`, `gradient evaluations`, `train loss` (mean since the last point), `validation loss`, ...: one number a
measurement."""


@dataclass(frozen=True)
class Run:
    """What identifies a run, apart from code and data: enough to repeat it."""

    task: str
    optimizer: str
    settings: dict[str, Setting]
    seed: int
    test: bool = False
    """Whether the test set is looked at, once, at the end: in confirmed runs only."""

    device: str = "cpu"


@dataclass
class Outcome:
    """What came of a run. Divergence and failure are outcomes, with a step and a reason, never gaps."""

    status: Literal["finished", "diverged", "failed"]
    steps: int
    reason: str = ""
    score: float | None = None
    """What the search minimises: the last validation loss, or without held-out data the mean training loss over the
    last tenth of the run. None unless finished."""

    result: dict[str, float] = field(default_factory=dict)
    """Measured once at the end: `loss` (and `accuracy`) on the test set."""

    curve: Curve = field(default_factory=dict)
    times: dict[str, list[float]] = field(default_factory=dict)
    """`cpu seconds` and `wall seconds` of training, at the points of the curve."""

    gradient_evaluations: int = 0
    cpu_seconds: float = 0.0
    """Of training; the clock stands still during evaluation and while a checkpoint is written."""

    wall_seconds: float = 0.0
    state_bytes: int = 0
    """The optimizer's tensors, parameters apart."""

    @property
    def lost(self) -> bool:
        """Whether it diverged or failed."""
        return self.status != "finished"


def record(outcome: Outcome, measures: Mapping[str, float]) -> None:
    """Add a point to the curve; what is not a finite number is None, as JSON has no other word for it.

    All columns stay as long as each other: a measure that appears late, or is missing for once, is None elsewhere.
    """
    before = len(outcome.curve.get("step", ()))
    counts = {"step": float(outcome.steps), "gradient evaluations": float(outcome.gradient_evaluations)}
    for name, value in {**counts, "train loss": math.nan, **measures}.items():
        outcome.curve.setdefault(name, [None] * before).append(value if math.isfinite(value) else None)
    for column in outcome.curve.values():
        column.extend([None] * (before + 1 - len(column)))
    for name, value in {"cpu seconds": outcome.cpu_seconds, "wall seconds": outcome.wall_seconds}.items():
        outcome.times.setdefault(name, []).append(round(value, 6))


def divergence(train_losses: Tensor, measures: Mapping[str, float]) -> tuple[int, str] | None:
    """The step at which a run got lost, and how; None if all is well.

    Args:
        train_losses: the batches' mean losses so far, shape (steps,).
        measures: what has just been measured, with the training loss since the last time.
    """
    if not math.isfinite(measures["train loss"]) and len(broken := (~train_losses.isfinite()).nonzero()):
        return int(broken[0]) + 1, "the training loss is not finite"
    if not math.isfinite(measures.get("validation loss", 0.0)):
        return len(train_losses), "the validation loss is not finite"
    first, lowest = train_losses[0].item(), train_losses.min().item()
    if measures["train loss"] > runaway(first, lowest, RUNAWAY):
        told = "the first one" if lowest > 0 else "as far above the first one as that is from 0 or from the lowest"
        return len(train_losses), f"the training loss is over {RUNAWAY:g} times {told}"
    return None


def runaway(first: float, lowest: float, times: float) -> float:
    """The loss that is so many times the first one, which has a meaning for losses of any sign.

    It lies above the first one by `times` - 1 times the size of the first one, or what the loss has fallen by where
    that is more. Of positive losses it is `times` the first one and nothing else. A loss that begins at -92 and falls
    to -94 may rise to 91,816 before it is 1,000 times the first one; one that begins at 0 may rise to 999 times what it
    has fallen by, and without bound before it has fallen.

    Args:
        first: the loss at the start.
        lowest: the lowest loss since, the first one included.
        times: more than 1.
    """
    if lowest > 0:
        return times * first
    return first + (times - 1) * (max(abs(first), first - lowest) or math.inf)
