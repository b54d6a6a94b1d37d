"""Tasks of a moment, and optimizers that misbehave; named to the race as `sprint:Sprint` and so on."""

import os
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fallline.bench.common.spaces import Range
from fallline.bench.tasks import Split, Task


class Sprint(Task):
    """Three classes of points, a small perceptron, 40 steps."""

    name: ClassVar[str] = "sprint"
    summary: ClassVar[str] = "points in four dimensions"
    steps: ClassVar[int] = 40
    evaluations: ClassVar[int] = 4

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))

    def points(self, seed: int) -> tuple[Tensor, Tensor]:
        points = torch.randn(90, 4, generator=torch.Generator().manual_seed(seed))
        return points, points[:, :3].argmax(1)

    def batches(self, order: torch.Generator) -> Iterator[Tensor]:
        while True:
            yield torch.randint(90, (16,), generator=order)

    def losses(self, model: nn.Module, batch: Tensor) -> Tensor:
        points, labels = self.points(0)
        return F.cross_entropy(model(points[batch]), labels[batch], reduction="none")

    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        points, labels = self.points(1 if split == "validation" else 2)
        logits = model(points)
        hits = (logits.argmax(1) == labels).float().mean().item()
        return {"loss": F.cross_entropy(logits, labels).item(), "accuracy": hits}


class Spy(Sprint):
    """Notes what it hands out."""

    weights: ClassVar[list[Tensor]] = []
    handed: ClassVar[list[Tensor]] = []
    splits: ClassVar[list[str]] = []

    def model(self) -> nn.Module:
        model = super().model()
        self.weights.append(model[0].weight.detach().clone())
        return model

    def losses(self, model: nn.Module, batch: Tensor) -> Tensor:
        self.handed.append(batch)
        return super().losses(model, batch)

    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        self.splits.append(split)
        return super().evaluate(model, split)


class Poisoned(Sprint):
    """Its 13th batch has no finite loss."""

    def batches(self, order: torch.Generator) -> Iterator[Tensor]:
        for number, batch in enumerate(super().batches(order), start=1):
            yield torch.full_like(batch, -1) if number == 13 else batch

    def losses(self, model: nn.Module, batch: Tensor) -> Tensor:
        losses = super().losses(model, batch.clamp(min=0))
        return losses * torch.nan if batch.max() < 0 else losses


class Cliff(Sprint):
    """SGD is to search where it can only diverge."""

    @property
    def spaces(self) -> Mapping[str, Mapping[str, Any]]:
        return {"sgd": {"lr": Range(1e6, 1e9), "momentum": 0.99, "weight_decay": 1.0}}


class Marathon(Sprint):
    """Long enough to be interrupted."""

    steps: ClassVar[int] = 400


class Deadly(Sprint):
    """Kills the worker that it runs in, as a want of memory would; but not on the rehearsal's single batch."""

    def batches(self, order: torch.Generator) -> Iterator[Tensor]:
        yield torch.arange(16)
        os._exit(9)


class Tired(torch.optim.SGD):
    """Raises at its fifth step."""

    def step(self, closure: Any = None) -> None:
        self.steps = getattr(self, "steps", 0) + 1
        if self.steps == 5:
            raise ArithmeticError("too tired")
        super().step(closure)


class Stubborn(torch.optim.SGD):
    """Cannot take a step at all."""

    def step(self, closure: Any = None) -> None:
        raise TypeError("a closure is needed")


class Still(torch.optim.SGD):
    """Takes no step."""

    def step(self, closure: Any = None) -> None:
        """Stay."""


class Demanding(torch.optim.SGD):
    """Does not run without a learning rate."""

    def __init__(self, params: Any, *, lr: float) -> None:
        super().__init__(params, lr=lr)


class Noted(torch.optim.SGD):
    """Notes its learning rates."""

    rates: ClassVar[list[float]] = []

    def step(self, closure: Any = None) -> None:
        self.rates.append(self.param_groups[0]["lr"])
        super().step(closure)
