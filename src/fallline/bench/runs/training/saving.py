"""The checkpoint of a run: all that its rest depends on, in one file that appears whole or not at all."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fallline.bench.common.files import replacing
from fallline.bench.common.plain import Misfit, check
from fallline.bench.contenders.contender import AnyOptimizer, Team
from fallline.bench.runs.checkpoint import uncast
from fallline.bench.runs.loop import Outcome
from fallline.bench.runs.training.processes import Processes

NAME = "checkpoint.pt"


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
            with replacing(path) as unfinished, unfinished.open("wb") as file:  # torch's own would not say: a full disk
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


def restore(saved: Mapping[str, Any], processes: Processes, model: nn.Module, optimizer: AnyOptimizer) -> None:
    """Put model, optimizer and random numbers where they were; `ValueError` for a checkpoint of something else."""
    try:
        own = model.state_dict()
        model.load_state_dict({name: like(value, own.get(name)) for name, value in saved["model"].items()})
        state = in_parts(optimizer, saved["optimizer"])
        optimizer.load_state_dict(state)
        uncast(optimizer, state)
        states = saved["random"][processes.rank]
        torch.set_rng_state(states[0])
        if states[1:]:
            torch.cuda.set_rng_state(states[1], processes.device)
    except Exception as error:  # of another model or another torch, and there are many ways to say so
        raise ValueError(f"the checkpoint is none of this model and optimizer: {error}") from error


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
