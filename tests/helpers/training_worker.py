"""Tasks for the tests of `fallline train`, and what two processes do in them."""

import dataclasses
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fallline.bench.runs.checkpoint import NAME, Checkpoint
from fallline.bench.runs.loop import Listener, carry_out
from fallline.bench.runs.plan import Plan
from fallline.bench.runs.processes import Processes, joined
from fallline.bench.tasks import Split, Task


class Dropping(Task):
    """Three classes of points, two blocks with dropout, 24 steps."""

    name = "dropping"
    summary = "points in four dimensions, with dropout"
    steps = 24
    evaluations = 4
    batch_size = 8
    examples = 64
    stop_at: ClassVar[int | None] = None
    """The step within which somebody presses Ctrl-C."""

    break_at: ClassVar[int | None] = None
    """The step whose loss is no number."""

    seen: ClassVar[int] = 0

    def model(self) -> nn.Module:
        type(self).seen = 0
        block = [nn.Linear(8, 8), nn.Tanh(), nn.Dropout(0.3)]
        return nn.Sequential(nn.Linear(4, 8), nn.Sequential(*block), nn.Linear(8, 3))

    def points(self, seed: int) -> tuple[Tensor, Tensor]:
        points = torch.randn(64, 4, generator=torch.Generator().manual_seed(seed))
        return points, points[:, :3].argmax(1)

    def batches(self, order: torch.Generator) -> Iterator[Tensor]:
        while True:
            yield torch.randint(64, (self.batch_size,), generator=order)

    def losses(self, model: nn.Module, batch: Tensor) -> Tensor:
        type(self).seen += 1
        if self.seen == self.stop_at:
            os.kill(os.getpid(), signal.SIGINT)
        points, labels = self.points(0)
        losses = F.cross_entropy(model(points[batch]), labels[batch], reduction="none")
        return losses * torch.nan if self.seen == self.break_at else losses

    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        points, labels = self.points(1 if split == "validation" else 2)
        logits = model(points)
        hits = (logits.argmax(1) == labels).float().mean().item()
        return {"loss": F.cross_entropy(logits, labels).item(), "accuracy": hits}


class Steady(Dropping):
    """The same without dropout, which on two processes draws otherwise than on one."""

    name = "steady"

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 16), nn.Sequential(nn.Linear(16, 16), nn.Tanh()), nn.Linear(16, 3))


class Pictures(Dropping):
    """The points as images of one row, through a convolution."""

    name = "pictures"

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Conv2d(4, 8, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))

    def points(self, seed: int) -> tuple[Tensor, Tensor]:
        points, labels = super().points(seed)
        return points.reshape(-1, 4, 1, 1).expand(-1, -1, 1, 2).contiguous(), labels


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.1, "momentum": 0.9},
    "koala-m": {"weight_decay": 1e-3},
    "koala-pp": {},
    "coolmomentum": {"lr": 0.05},
}
SHARED = [*(("ddp", name) for name in OPTIMIZERS), ("fsdp", "koala-m"), ("fsdp", "coolmomentum")]
RESUMED = ("koala-m", "adamw")
"""One that has its state from the start, one that gets it with its first step."""


class Noting(Listener):
    """Keeps losses and measures."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.validation: list[float] = []

    def look(self, done: int, scalars: Any, measures: Any) -> None:
        self.losses.append(scalars["loss"])
        self.validation += [measures["validation loss"]] if measures else []


def sharing(optimizer: str, fsdp: bool = False) -> Plan:
    """A run with every loss looked at."""
    plan = Plan("training_worker:Steady", optimizer, OPTIMIZERS[optimizer], log_every=1, save_every=1e9, test=False)
    return dataclasses.replace(plan, fsdp=fsdp)


def at(plan: Plan) -> Checkpoint:
    """Where `fallline train` keeps the checkpoint."""
    return Checkpoint(plan.out / NAME, plan.save_every, plan.resume)


def curves(plan: Plan, out: Path, processes: Processes) -> dict[str, list[float]]:
    """What a run looks like; every process of it calls it."""
    noting = Noting()
    run = dataclasses.replace(plan, out=out, processes=processes.ranks)
    carry_out(run, at(run), processes, noting)
    return {"losses": noting.losses, "validation": noting.validation}


def work(folder: Path) -> int:
    """One of two processes: optimizers under DDP and under FSDP2, and runs that were stopped."""
    found: dict[str, Any] = {}
    with joined("cpu", patience=120.0) as processes:  # a process that waits in vain gives up
        for way, name in SHARED:
            found[f"{way} {name}"] = curves(sharing(name, way == "fsdp"), folder / f"{way}-{name}", processes)
        for name in RESUMED:
            plan = Plan(
                "training_worker:Dropping", name, {"lr": 0.05}, processes=2, fsdp=True, steps=12, save_every=1e9
            )
            curves(plan, folder / f"whole-{name}", processes)
            stopped, calls = dataclasses.replace(plan, out=folder / f"stopped-{name}"), iter(range(99))
            # One process is told alone, in its fifth step: both stop after it.
            first = carry_out(
                stopped, at(stopped), processes, asked=lambda calls=calls: next(calls) == 4 and not processes.leads
            )
            torch.manual_seed(7)
            processes.wait()  # until the first one has written: another command would come later
            resumed = dataclasses.replace(stopped, resume=True)
            again = carry_out(resumed, at(resumed), processes)
            found[f"stopped {name}"] = (first.interrupted, first.outcome.steps, again.interrupted, again.outcome.steps)
        if processes.leads:
            torch.save(found, folder / "found.pt")
    return 0
