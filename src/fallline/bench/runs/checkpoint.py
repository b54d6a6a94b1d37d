"""Checkpoints: what a run needs to go on after it was killed, to the very same numbers, or not at all."""

import contextlib
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fallline.bench.common.files import replacing
from fallline.bench.contenders.contender import AnyOptimizer, Team

SAVED = {"state", "param_groups", "defaults", "training", "_parameters", "_buffers", "_modules"}
"""Attributes of optimizers and modules that `state_dict` takes care of."""


@dataclass(frozen=True)
class Checkpoint:
    """Where a run leaves what it needs to go on after it was killed."""

    path: Path
    every: float = 30.0
    """Seconds between two, at least."""


def save(checkpoint: Checkpoint, model: nn.Module, optimizer: AnyOptimizer, **more: Any) -> None:
    """Write down all that the rest of a run depends on; the file appears whole or not at all.

    A full disk, or an optimizer whose state cannot be saved, does not end a run that may well reach its end without.

    Args:
        checkpoint: where to.
        model: as it is now.
        optimizer: as it is now.
        more: plain values and tensors; `run` says whose checkpoint it is.
    """
    if not hasattr(optimizer, "state_dict"):
        return
    with contextlib.suppress(Exception):  # pickle and torch have many ways to say that something cannot be saved
        accelerator = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        random = [torch.get_rng_state(), *accelerator]
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "random": random, **more}
        with replacing(checkpoint.path) as unfinished:  # another coordinator's worker may be at the same run
            torch.save(state, unfinished)


def load(checkpoint: Checkpoint, run: Mapping[str, Any]) -> dict[str, Any] | None:
    """What is to go on from; None where there is nothing of this run, or nothing that is sound."""
    if not checkpoint.path.exists():
        return None
    try:
        with zipfile.ZipFile(checkpoint.path) as file:
            if file.testzip():  # torch writes checksums and does not look at them
                return None
        saved: dict[str, Any] = torch.load(checkpoint.path, weights_only=True)
        return saved if saved["run"] == run else None
    except Exception:  # whatever is wrong with the file: the run starts anew
        return None


def restore(
    saved: Mapping[str, Any], model: nn.Module, optimizer: AnyOptimizer, batches: Iterator[Any], drawn: int
) -> bool:
    """Put everything where it was; whether that worked. If not, half of it is done, and nothing is of use any more.

    Args:
        saved: what `load` gave.
        model: fresh.
        optimizer: fresh.
        batches: from the start; afterwards, `drawn` of them on.
        drawn: how many batches the run has seen.
    """
    try:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        uncast(optimizer, saved["optimizer"])
        next(islice(batches, drawn - 1, None))
        torch.set_rng_state(saved["random"][0])
        if saved["random"][1:]:
            torch.cuda.set_rng_state_all(saved["random"][1:])
    except Exception:  # of another model or of another torch, and there are many ways to say so
        return False
    return True


def uncast(optimizer: AnyOptimizer, saved: Mapping[str, Any]) -> None:
    """Undo what torch does to a loaded state: it takes every tensor to its parameter's precision, counters too."""
    if isinstance(optimizer, Team):
        for member, state_dict in zip(optimizer.members, saved["members"], strict=True):
            uncast(member, state_dict)
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, state in saved.get("state", {}).items():
        own = optimizer.state.get(parameters[index], {}) if isinstance(index, int) else {}
        for name, value in state.items():
            if isinstance(value, Tensor) and isinstance(own.get(name), Tensor) and own[name].dtype != value.dtype:
                own[name] = value.to(own[name].device)


def discard(checkpoint: Checkpoint) -> Checkpoint | None:
    """Remove what cannot be gone on from; None, for a run without checkpoints, if even that fails."""
    try:
        checkpoint.path.unlink(missing_ok=True)
    except OSError:
        return None
    return checkpoint


class Unsaved:
    """What an optimizer and a model keep where no `state_dict` finds it: in attributes, as in `self.t += 1`.

    A run in which that changes is not saved, as it could not go on to the same numbers. torch's own classes and ours
    are taken at their word.
    """

    def __init__(self, optimizer: AnyOptimizer, model: nn.Module) -> None:
        members = optimizer.members if isinstance(optimizer, Team) else (optimizer,)
        everything = [*members, *model.modules()]
        self.model = model
        self.foreign = [one for one in everything if type(one).__module__.split(".")[0] not in ("torch", "fallline")]
        self.parameters = {id(parameter) for parameter in model.parameters()}
        self.held: list[Tensor] = []
        """Kept alive, so that no other tensor comes to lie where one did by whose place it is known."""

        self.before = self.marks(self.held)

    def changed(self) -> bool:
        """Whether it is another than at the start."""
        return self.marks([]) != self.before

    def marks(self, held: list[Tensor]) -> list[Any]:
        """What is different when something has changed; `held` takes the tensors in it."""

        def mark(value: Any) -> Any:
            if isinstance(value, Tensor):
                held.append(value)
                return None if id(value) in self.parameters else (id(value), value._version)
            if isinstance(value, Mapping):
                return [(str(name), mark(one)) for name, one in value.items()]
            if isinstance(value, tuple | list):
                return [mark(one) for one in value]
            return value if isinstance(value, bool | int | float | str) else type(value)

        found = self.model.state_dict()
        buffers = {name: mark(buffer) for name, buffer in self.model.named_buffers() if name not in found}
        attributes = [
            {name: mark(value) for name, value in getattr(one, "__dict__", {}).items() if name not in SAVED}
            for one in self.foreign
        ]
        return [buffers, *attributes]
