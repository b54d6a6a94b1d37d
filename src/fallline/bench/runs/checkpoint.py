"""Checkpoints: all that the rest of a run depends on, in one file that appears whole or not at all."""

import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fallline.bench.common.files import replacing
from fallline.bench.common.plain import Misfit, check
from fallline.bench.contenders import AnyOptimizer, Team
from fallline.bench.runs.processes import Processes
from fallline.bench.runs.run import Outcome

NAME = "checkpoint.pt"

SAVED = {"state", "param_groups", "defaults", "training", "_parameters", "_buffers", "_modules"}
"""Attributes of optimizers and modules that `state_dict` takes care of."""

HIDDEN = "optimizer or model keep something outside of state_dict: the run could not go on to the same numbers"


@dataclass(frozen=True)
class Checkpoint:
    """Where a run leaves what it needs to go on after it was killed."""

    path: Path
    every: float = 30.0
    """Seconds between two, at least."""

    resume: bool | None = None
    """Whether to go on from what is there. None: if it is sound and of this run; else the run begins anew."""


def save(
    path: Path, processes: Processes, model: nn.Module, optimizer: AnyOptimizer, more: Mapping[str, Any]
) -> str | None:
    """Write a checkpoint; every process calls it, and the first one writes.

    Args:
        path: where to.
        processes: whose.
        model: as it is now; where it is sharded, the file has it whole.
        optimizer: likewise.
        more: plain values and tensors.

    Returns:
        Why it could not be written, or None. What was there before is then still there.
    """
    try:
        state = {
            "model": whole(model.state_dict()),
            "optimizer": whole(optimizer.state_dict()),
            "random": processes.gather(random_state(processes.device)),
            **more,
        }
        if processes.leads:
            # Another coordinator's worker may be at the same run. torch's own writing would not tell of a full disk.
            with replacing(path) as unfinished, unfinished.open("wb") as file:
                torch.save(state, file)
    except Exception as error:  # pickle and torch have many ways to say that something cannot be saved
        return f"{type(error).__name__}: {error}"
    return None


def load(path: Path) -> dict[str, Any]:
    """A checkpoint as it was saved, on the CPU; `ValueError` where there is none, or none that is sound."""
    if not path.exists():
        raise ValueError(f"there is no {path} to go on from")
    try:
        with zipfile.ZipFile(path) as file:
            broken = file.testzip()  # torch writes checksums and does not look at them
        if broken is None:
            saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            check_saved(saved)
            return saved
    except Misfit as error:
        raise ValueError(f"{path} is no checkpoint of fallline train: {error}") from error
    except Exception as error:  # whatever is wrong with the file
        raise ValueError(f"{path} cannot be read, it may have been cut short: {type(error).__name__}") from error
    raise ValueError(f"{path} is damaged: {broken} is not what was written")


def check_saved(saved: Any) -> None:
    """`Misfit` for what somebody else has saved; the states themselves are looked at when they are loaded."""
    lacking = {"model", "optimizer", "random", "plan", "outcome", "losses"} - set(
        saved if isinstance(saved, dict) else ()
    )
    if lacking:
        raise Misfit(f"it has no {min(lacking)}")
    check(saved["outcome"], Outcome, "outcome")
    outcome = Outcome(**saved["outcome"])
    losses = saved["losses"]
    if not outcome.curve.get("step") or not isinstance(losses, Tensor) or losses.shape != (outcome.steps,):
        raise Misfit("its losses and its outcome are not of one run")
    check(saved["plan"], dict[str, Any], "plan")


def restore(
    saved: Mapping[str, Any], processes: Processes, model: nn.Module, optimizer: AnyOptimizer, batches: Iterator[Any]
) -> None:
    """Put everything where it was.

    Args:
        saved: what `load` gave.
        processes: of the run.
        model: fresh.
        optimizer: fresh.
        batches: from the start; afterwards, as far on as the run was.

    Raises:
        ValueError: the checkpoint is of something else. Half of it is then done, and nothing is of use any more.
    """
    try:
        own = model.state_dict()
        model.load_state_dict({name: like(value, own.get(name)) for name, value in saved["model"].items()})
        state = in_parts(optimizer, saved["optimizer"])
        optimizer.load_state_dict(state)
        uncast(optimizer, state)
        drawn = saved["outcome"]["steps"]
        next(islice(batches, drawn, drawn), None)
        states = saved["random"][processes.rank]
        torch.set_rng_state(states[0])
        if states[1:]:
            torch.cuda.set_rng_state(states[1], processes.device)
    except Exception as error:  # of another model or another torch, and there are many ways to say so
        raise ValueError(f"the checkpoint is none of this model and optimizer: {error}") from error


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


def random_state(device: str) -> list[Tensor]:
    """Of torch's global generators: the CPU's and, where it trains, the device's."""
    return [torch.get_rng_state(), *([] if device == "cpu" else [torch.cuda.get_rng_state(device)])]


def whole(value: Any) -> Any:
    """A state with its sharded tensors put together; every process calls it."""
    if isinstance(value, Mapping) and any(map(sharded, value.values())):
        value = dict(value)  # not torch's own class, whose metadata are of no use to a sharded model
    if isinstance(value, Mapping):
        for name, one in value.items():
            if (new := whole(one)) is not one:
                value = {**value, name: new}
        return value
    if isinstance(value, list):
        return [whole(one) for one in value]
    return value.full_tensor() if sharded(value) else value


def sharded(value: Any) -> bool:
    """Whether it is a tensor of which this process has a part."""
    return hasattr(value, "full_tensor")


def like(value: Tensor, own: Any) -> Tensor:
    """A whole tensor, laid out over the processes as another is."""
    if not sharded(own):
        return value
    from torch.distributed.tensor import distribute_tensor

    value = value.to(own.to_local().device)
    return distribute_tensor(value, own.device_mesh, own.placements, src_data_rank=None)


def in_parts(optimizer: AnyOptimizer, saved: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's whole state, laid out as its parameters are."""
    if isinstance(optimizer, Team):
        pairs = zip(optimizer.members, saved["members"], strict=True)
        return {"members": [in_parts(member, state) for member, state in pairs]}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not any(map(sharded, parameters)):
        return saved
    laid_out = {}
    for index, state in saved["state"].items():
        parameter = parameters[index]
        present = optimizer.state.get(parameter, {})
        # What is not there yet comes with the first step, in torch's own: if it has the parameter's shape, its layout.
        laid_out[index] = {
            name: like(value, present.get(name, parameter if value.shape == parameter.shape else None))
            if isinstance(value, Tensor)
            else value
            for name, value in state.items()
        }
    return {**saved, "state": laid_out}


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
