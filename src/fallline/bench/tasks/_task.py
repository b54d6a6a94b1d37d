"""What a task is: a model, batches, a loss, a horizon and, where there is held-out data, how to measure on it."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fallline.bench.spaces import Choice, Range, Setting

Batch = Any
"""What `Task.batches` yields and `Task.losses` takes; nothing else looks inside."""

Schedule = Literal["cosine", "linear", "step", "constant"]
"""How the learning rate runs down: see `fallline.bench.train.lr_factor`."""

Split = Literal["validation", "test"]


class Task(ABC):
    """One problem to race on. A subclass is a task: the loop, the search and the report ask for no more than this."""

    name: ClassVar[str]
    summary: ClassVar[str]
    """One sentence: data, model, batch, horizon."""

    steps: ClassVar[int]
    """The horizon: gradient evaluations of every run, which for most optimizers are its steps."""

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

    reference: ClassVar[tuple[float, str] | None] = None
    """A loss that a tuned baseline is known to reach, and the source: a worse baseline raises an alarm."""

    equivalence: ClassVar[float | None] = None
    """The band of practical equivalence, in units of the loss: differences within are of no consequence. None: 1 % of
    the way from the initial loss to the best."""

    @property
    def horizon(self) -> int | None:
        """The steps over which to run down what is run down; None for nothing."""
        return self.steps if self.schedule == "cosine" else None

    def describe(self) -> dict[str, Any]:
        """What a report says of it, ready for JSON."""
        names = ("summary", "steps", "held_out", "floor", "floor_name", "reference", "equivalence")
        return {name: getattr(self, name) for name in names}

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

    def data(self) -> Iterable[Any]:
        """What the data's checksum is taken of, so that other data make other runs: tensors, arrays, text, files.

        A file is given as its `Path`. By default the first batches, which tell most changes apart but not all: a task
        with data should return it all.
        """
        return islice(self.batches(torch.Generator().manual_seed(0)), 4)

    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        """Mean `loss`, and further measures, on held-out data. Called without gradients."""
        raise NotImplementedError(f"the task {self.name} has no held-out data")
