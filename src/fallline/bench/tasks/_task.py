"""What a task is: a model, batches, a loss, a horizon and, where there is held-out data, how to measure on it."""

import copy
import dataclasses
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fallline.bench.common.spaces import Choice, Range, Setting

Batch = Any
"""What `Task.batches` yields and `Task.losses` takes; nothing else looks inside."""

Schedule = Literal["cosine", "linear", "step", "constant"]
"""How the learning rate runs down: see `fallline.bench.runs.loop.lr_factor`."""

Split = Literal["validation", "test"]


class Task(ABC):
    """One problem to race on. A subclass is a task: the loop, the search and the report ask for no more than this."""

    name: str
    summary: str
    """One sentence: data, model, batch, horizon."""

    steps: int
    """The horizon: gradient evaluations of every run, which for most optimizers are its steps."""

    batch_size: int | None = None
    """Examples in a batch, where `batches` goes by it: then it may be changed."""

    examples: int | None = None
    """Examples to train on, on a task with epochs; one has `examples // batch_size` batches."""

    needs: tuple[str, ...] = ()
    """The sets of `fallline.bench.tasks.data` that it reads."""

    evaluations: int = 20
    """How often, evenly over the horizon, a run is measured."""

    schedule: Schedule = "cosine"
    """`cosine`: a short warm-up and a cosine to zero, but for methods that bring their own. `constant`: nothing is run
    down, neither learning rates nor what a method cools by itself."""

    held_out: bool = True
    """With held-out data the score is the last validation loss, and the result the test loss. Without, both are the
    mean training loss over the last tenth of the run; the search and the result differ by their seeds."""

    floor: float | None = None
    """The lowest loss in reach, where it is known."""

    floor_name: str = ""

    reference: tuple[float, str] | None = None
    """A loss that a tuned baseline is known to reach over the task's own horizon, and the source: a worse baseline
    raises an alarm. A task with fewer steps or another batch has none."""

    equivalence: float | None = None
    """The band of practical equivalence, in units of the loss: differences within are of no consequence. None: 1 % of
    the way from the initial loss to the best."""

    @property
    def horizon(self) -> int | None:
        """The steps over which to run down what is run down; None for nothing."""
        return self.steps if self.schedule == "cosine" else None

    @property
    def epoch(self) -> int | None:
        """Batches in an epoch, the last, incomplete one dropped; None on a task without epochs."""
        if self.examples is None or self.batch_size is None:
            return None
        return self.examples // self.batch_size

    def resized(
        self,
        *,
        epochs: float | None = None,
        batch_size: int | None = None,
        steps: int | None = None,
        evaluations: int | None = None,
    ) -> Self:
        """The same task with another batch or horizon. A new batch alone leaves the number of epochs.

        Args:
            epochs: the horizon in epochs; a fraction is allowed.
            batch_size: examples in a batch.
            steps: the horizon in steps, instead of epochs.
            evaluations: how often a run is measured.

        Raises:
            ValueError: on a task without epochs, or whose batch is fixed, and for what is not positive.
        """
        if epochs is not None and steps is not None:
            raise ValueError("the horizon is given in epochs or in steps, not in both")
        asked = {"epochs": epochs, "batch": batch_size, "steps": steps, "evaluations": evaluations}
        for name, value in asked.items():
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive{'' if value != math.inf else ' and finite'}, got {value:g}")
        changed = copy.copy(self)
        if batch_size is not None:
            if self.batch_size is None:
                raise ValueError(f"the batch of the task {self.name} is fixed")
            if self.examples is not None and batch_size > self.examples:
                raise ValueError(f"the task {self.name} has {self.examples:,} examples to train on, fewer than a batch")
            if self.epoch and epochs is None and steps is None:
                epochs = self.steps / self.epoch
            changed.batch_size = batch_size
        if epochs is not None:
            if not changed.epoch:
                raise ValueError(f"the task {self.name} has no epochs: give its horizon in steps")
            changed.steps = max(1, round(epochs * changed.epoch))
        if steps is not None:
            changed.steps = steps
        if changed.steps < self.steps or changed.batch_size != self.batch_size:
            changed.reference = None  # it is known of the task's own horizon
        changed.evaluations = min(evaluations or self.evaluations, changed.steps)
        return changed

    def shares(self, order: torch.Generator, rank: int, ranks: int) -> Iterator[Batch]:
        """The batches of one process among several: of every batch, its share of the examples.

        Each tensor of a batch is cut along its first dimension. A task whose batches are something else, or costly to
        make, cuts them itself.

        Raises:
            ValueError: when a batch cannot be cut into equal shares.
        """
        batches = self.batches(order)
        return batches if ranks == 1 else (_share(batch, rank, ranks) for batch in batches)

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
        """Mean `loss`, and further measures, on held-out data. Called without gradients.

        Where it takes a derivative, and autograd refuses for want of a graph, it is called once more with gradients.
        """
        raise NotImplementedError(f"the task {self.name} has no held-out data")


def measure(task: Task, model: nn.Module, split: Split) -> dict[str, float]:
    """What `task.evaluate` returns, called without gradients unless it needs them."""
    process = os.getpid()
    measures: Any = without_gradients(lambda: task.evaluate(model, split))
    alone(process)
    detached: dict[str, float] = through(measures, lambda one: one.detach() if isinstance(one, Tensor) else one)
    return detached


def without_gradients(call: Callable[[], Any]) -> Any:
    """What a call of a task's gives without gradients; where autograd finds that it needs them, with them."""
    try:
        with torch.no_grad():
            return call()
    except RuntimeError as error:
        if "does not require grad" not in str(error):
            raise
    with torch.enable_grad():
        return call()


def through(batch: Batch, change: Callable[[Any], Any]) -> Batch:
    """A batch with each of its leaves changed; mappings, tuples with names or without, lists and data classes stay."""
    if isinstance(batch, Mapping):
        changed = {name: through(value, change) for name, value in batch.items()}
        return changed if type(batch) is dict else _alike(batch, changed)
    if isinstance(batch, PackedSequence):
        return change(batch)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(through(value, change) for value in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(through(value, change) for value in batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type) and not hasattr(batch, "to"):
        other: Any = copy.copy(batch)
        for field in dataclasses.fields(batch):  # past __init__, which may take something else, and past `frozen`
            object.__setattr__(other, field.name, through(getattr(batch, field.name), change))
        return other
    return change(batch)


def _alike(batch: Mapping[Any, Any], changed: dict[Any, Any]) -> Any:
    """The values in a mapping of the batch's own kind, which may have further methods; else in a plain one."""
    try:
        other = copy.copy(batch)
        other.update(changed)  # type: ignore[attr-defined]
    except Exception:  # one that cannot be written to, or copied
        return changed
    return other


def _share(batch: Batch, rank: int, ranks: int) -> Batch:
    """One rank's examples of a batch."""

    def cut(value: Any) -> Any:
        if not isinstance(value, Tensor):
            if hasattr(value, "to"):
                raise ValueError(
                    f"a batch of the kind {type(value).__name__} cannot be cut into shares: write `shares` in the task"
                )
            return value
        if value.ndim == 0:
            return value
        if len(value) % ranks:
            raise ValueError(f"a batch of {len(value)} examples cannot be cut into {ranks} equal shares")
        size = len(value) // ranks
        return value[rank * size : (rank + 1) * size]

    return through(batch, cut)


def alone(process: int) -> None:
    """End a process that is not that one: a task has forked, and come back from its child's side too."""
    if os.getpid() != process:
        os._exit(1)
