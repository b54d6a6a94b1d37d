"""What a task must be, tried once: the mistakes that a newcomer makes, each told in one sentence."""

import inspect
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import torch
from torch import Tensor, nn

from fallline.bench.common.seeds import generator, seed_torch
from fallline.bench.common.spaces import Choice, Range, Setting
from fallline.bench.tasks._file import describe_error
from fallline.bench.tasks._task import Batch, Split, Task, alone, measure
from fallline.bench.tasks.data import find

T = TypeVar("T")

PATIENCE = 1.0
"""Seconds for which `check` draws batches, to see whether they end."""


def make_sure(task: Task) -> None:
    """See to it, before anything is started, that a task's data are there and, unless it is ours, that it is a task.

    Ours are checked by tests, and some are large.

    Raises:
        ValueError: a sentence: which data are missing and how to get them, or as `check`.
    """
    for name in task.needs:
        find(name)
    if not type(task).__module__.startswith("fallline."):
        check(task)


def check(task: Task) -> None:
    """Call everything of a task once: its model, two batches, their losses and gradients, the evaluation.

    Torch's global generator is left as it was.

    Raises:
        ValueError: one sentence that begins with the task's file: what was expected, and what came.
    """
    trial = _Trial(task)
    with torch.random.fork_rng(devices=[]):
        trial.constants()
        model = trial.model()
        trial.losses(model)
        trial.order(model)
        trial.measures(model)
        trial.rest()


class _Trial:
    """Calls what a task has, and complains in its name."""

    def __init__(self, task: Task) -> None:
        self.task, self.process = task, os.getpid()
        try:
            self.file = Path(inspect.getfile(type(task)))
        except (TypeError, OSError):  # a class that was typed into an interpreter
            self.file = Path(type(task).__name__)

    def complain(self, what: str) -> ValueError:
        return ValueError(f"{self.file.name}: {what}")

    def call(self, function: Callable[..., T], *args: Any) -> T:
        try:
            return function(*args)
        except (Exception, SystemExit) as error:
            raise ValueError(describe_error(error, self.file)) from error
        finally:
            alone(self.process)

    def constants(self) -> None:
        task = self.task
        for name in ("steps", "evaluations"):
            value = getattr(task, name, None)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                got = "it is missing" if value is None else f"got {value!r}"
                raise self.complain(f"{name} must be a positive whole number, as in `{name} = 500`; {got}")
        for name in ("name", "summary"):
            value = getattr(task, name, None)
            if not isinstance(value, str) or not value.strip():
                raise self.complain(f"{name} must be a text that says something, got {value!r}")
        if task.schedule not in ("cosine", "constant"):
            raise self.complain(f"schedule must be 'cosine' or 'constant', got {task.schedule!r}")
        if not isinstance(task.held_out, bool):
            raise self.complain(f"held_out must be True or False, got {task.held_out!r}")
        if task.held_out and type(task).evaluate is Task.evaluate:
            raise self.complain(
                "`evaluate` is missing; write it, or `held_out = False` where there is no held-out data"
            )

    def model(self) -> nn.Module:
        seed_torch(0, "init")
        model = self.call(self.task.model)
        if not isinstance(model, nn.Module):
            raise self.complain(f"model must return a torch.nn.Module, got {_kind(model)}")
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise self.complain("model must have parameters to train, and this one has none")
        seed_torch(0, "init")
        again = self.call(self.task.model)
        first, second = dict(model.named_parameters()), dict(again.named_parameters())
        if any(first.get(name) is value for name, value in second.items()):
            raise self.complain("model must return a new module each time, and two calls gave the same parameters")
        if first.keys() != second.keys() or not all(_same(first[name], second[name]) for name in first):
            raise self.complain(
                "model must draw its weights from torch's global generator: "
                "two calls after the same torch.manual_seed gave different weights"
            )
        return model

    def losses(self, model: nn.Module) -> None:
        """Two batches, their losses and gradients."""
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        batches = self.batches(0)
        for drawn in range(2):
            losses = self.call(self.task.losses, model, self.next(batches, drawn))
            self.are_losses(losses)
            if not any(gradient is not None for gradient in self.call(_gradients, losses, trained)):
                raise self.complain("losses do not depend on the model's parameters: no gradient reaches them")

    def order(self, model: nn.Module) -> None:
        """Whether batches come from `order` alone, and do not end."""

        def draw(noise: int) -> list[Tensor]:
            seed_torch(noise, "noise")  # what must not matter
            batches = self.batches(1)
            drawn = [self.next(batches, number) for number in range(2)]
            seed_torch(0, "dropout")
            return [self.call(self.task.losses, model, batch).detach() for batch in drawn]

        if not all(_same(one, other) for one, other in zip(draw(0), draw(1), strict=True)):
            raise self.complain(
                "batches must draw from `order` and nothing else, as in torch.randperm(n, generator=order): "
                "the same `order` gave different batches"
            )
        until = time.monotonic() + PATIENCE
        batches = self.batches(2)
        for number in range(self.task.steps):
            self.next(batches, number)
            if time.monotonic() > until:
                break

    def batches(self, seed: int) -> Iterator[Batch]:
        batches = self.call(self.task.batches, generator(seed, "order"))
        if not isinstance(batches, Iterator):
            raise self.complain(
                f"batches must return an iterator, as a function with `yield` does, got {_kind(batches)}"
            )
        return batches

    def next(self, batches: Iterator[Batch], drawn: int) -> Batch:
        end = object()
        batch = self.call(next, batches, end)
        if batch is end:
            raise self.complain(
                f"batches ended after {drawn}, and a run takes {self.task.steps}: "
                "let them go on, epoch after epoch, in a `while True:`"
            )
        return batch

    def are_losses(self, losses: Any) -> None:
        if not isinstance(losses, Tensor):
            raise self.complain(f"losses must return a tensor, one loss per example, got {_kind(losses)}")
        shape = tuple(losses.shape)
        if losses.ndim > 1 or 0 in shape:
            dims = tuple(range(1, losses.ndim))
            hint = f"; average over the rest, .mean({dims[0] if len(dims) == 1 else dims})" if losses.ndim > 1 else ""
            raise self.complain(f"losses must return one loss per example, shape (examples,), got {shape}{hint}")
        if not losses.is_floating_point():
            raise self.complain(f"losses must be floating-point numbers, got {losses.dtype}")
        if not losses.requires_grad:
            raise self.complain(
                "losses must carry their graph, and these do not require gradients: no .detach(), .item() or no_grad()"
            )
        if not bool(losses.isfinite().all()):
            raise self.complain("losses must be finite at the start, got inf or nan from an untrained model")

    def measures(self, model: nn.Module) -> None:
        """What `evaluate` returns, as the loop calls it."""
        if not self.task.held_out:
            return
        model.eval()
        for split in get_args(Split):
            measures: Any = self.call(measure, self.task, model, split)
            if not isinstance(measures, Mapping) or "loss" not in measures:
                raise self.complain(f'evaluate must return a dict with "loss", got {_kind(measures)}')
            for name, value in measures.items():
                try:
                    float(value)
                except (TypeError, ValueError, RuntimeError, OverflowError):
                    call_item = ": .mean().item() makes it one" if isinstance(value, Tensor) else ""
                    raise self.complain(
                        f"evaluate must return numbers, got {_kind(value)} for {name!r}{call_item}"
                    ) from None
            if not math.isfinite(measures["loss"]):
                raise self.complain(f"evaluate gave the {split} loss {measures['loss']} for an untrained model")
        model.train()

    def rest(self) -> None:
        """What a task may say beyond that."""
        match self.task.reference:
            case None | (int() | float(), str()):
                pass
            case other:
                raise self.complain(f"reference must be a loss and its source, (0.1, 'a paper'), got {other!r}")
        band: Any = self.task.equivalence
        if band is not None and not (isinstance(band, int | float) and band >= 0):
            raise self.complain(f"equivalence must be a difference of losses, 0 or more, got {band!r}")
        for optimizer, space in self.call(lambda: self.task.spaces).items():
            for name, value in space.items():
                if not isinstance(value, Range | Choice | Setting | int):
                    raise self.complain(
                        f"spaces: {optimizer}, {name}: a Range, a Choice or a value is wanted, got {value!r}"
                    )
        self.call(lambda: list(self.task.data()))


def _kind(value: object) -> str:
    """What something is, for a message."""
    if isinstance(value, Mapping):
        return f"a dict with {', '.join(map(repr, value)) or 'nothing in it'}"
    if isinstance(value, type):
        return f"the class {value.__name__} itself (call it)"
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return "None (is a `return` missing?)" if value is None else f"{type(value).__name__}"


def _same(one: Tensor, other: Tensor) -> bool:
    """Equal but for the last digits, in which parallel sums may differ."""
    return one.shape == other.shape and torch.allclose(one.double(), other.double(), equal_nan=True)


def _gradients(losses: Tensor, parameters: list[nn.Parameter]) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(losses.mean(), parameters, allow_unused=True)
