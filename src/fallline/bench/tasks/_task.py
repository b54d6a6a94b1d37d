"""What a task is: a model, batches, a loss, a horizon and, where there is held-out data, how to measure on it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fallline.bench.spaces import Choice, Range, Setting

Batch = Any
"""What `Task.batches` yields and `Task.losses` takes; nothing else looks inside."""

Schedule = Literal["cosine", "constant"]
Split = Literal["validation", "test"]


class Task(ABC):
    """One problem to race on. A subclass is a task: the loop, the search and the report ask for no more than this."""

    name: ClassVar[str]
    summary: ClassVar[str]
    """One sentence: data, model, batch, horizon."""

    steps: ClassVar[int]
    """The horizon: optimizer steps of every run."""

    evaluations: ClassVar[int] = 20
    """How often, evenly over the horizon, a run is measured."""

    schedule: ClassVar[Schedule] = "cosine"
    """`cosine`: a short warm-up and a cosine to zero, but for methods that bring their own. `constant`: nothing is run
    down, neither learning rates nor what a method cools by itself."""

    held_out: ClassVar[bool] = True
    """With held-out data the score is the last validation loss, and the result the test loss. Without, both are the
    mean training loss over the last tenth of the run; the search and the result differ by their seeds."""

    floor: ClassVar[float | None] = None
    """The lowest loss in reach, where it is known."""

    floor_name: ClassVar[str] = ""

    @property
    def horizon(self) -> int | None:
        """The steps over which to run down what is run down; None for nothing."""
        return self.steps if self.schedule == "cosine" else None

    @property
    def spaces(self) -> Mapping[str, Mapping[str, Range | Choice | Setting]]:
        """Per optimizer, what this task changes in its declared space: another range, or a value, which fixes it."""
        return {}

    @abstractmethod
    def model(self) -> nn.Module:
        """A fresh model, drawn from torch's global generator (which the loop seeds)."""

    @abstractmethod
    def batches(self, order: torch.Generator) -> Iterator[Batch]:
        """Training batches without end, drawn from `order`."""

    @abstractmethod
    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """One loss per example, with its graph: shape (examples,)."""

    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """Mean `loss`, and further measures, on held-out data. Called without gradients."""
        raise NotImplementedError(f"the task {self.name} has no held-out data")
