"""`fallline train`."""

import contextlib
import dataclasses
import inspect
import math
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import torch
import typer

from fallline.bench.check.subject import parse_settings
from fallline.bench.cli.terminal import checked_device
from fallline.bench.cli.training import run
from fallline.bench.contenders import Drops, parse_drops, spelled
from fallline.bench.runs.loggers import checked
from fallline.bench.runs.plan import Plan, contender_of, default_out, task_of
from fallline.bench.runs.processes import launch, started_by_others
from fallline.bench.tasks import Schedule, make_sure


class Dtype(StrEnum):
    """Of weights, gradients and activations."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class Schedules(StrEnum):
    """How the learning rate runs down."""

    cosine = "cosine"
    linear = "linear"
    step = "step"
    constant = "constant"


assert set(Schedules) == set(get_args(Schedule))


KINDS: dict[str, Any] = {
    "schedule": Schedules | None,
    "drops": str | None,
    "data": Path | None,
    "device": str | None,
    "dtype": Dtype,
    "out": Path | None,
}
"""Types of the options that are typed in another form than the plan has them."""


def options() -> dict[str, tuple[Any, Any]]:
    """By the names of the plan's fields: the annotation from which typer makes an option, and the default."""
    kinds, found = get_type_hints(Plan), {}
    for one in dataclasses.fields(Plan):
        if "help" in one.metadata:
            how = dict(one.metadata)
            kind, flag = KINDS.get(one.name, kinds[one.name]), how.pop("flag") or "--" + one.name.replace("_", "-")
            default = None if kind in (str | None, Path | None) else Dtype.float32 if kind is Dtype else one.default
            found[one.name] = (Annotated[kind, typer.Option(flag, **how)], default)
    return found


def train(
    task: Annotated[
        str,
        typer.Argument(
            metavar="TASK",
            help="A name of [b]fallline list[/b], with options as in cifar10-resnet8@epochs=2,batch=64; my_task.py; "
            "package.module:Class.",
        ),
    ],
    lr: Annotated[float | None, typer.Option(help="Learning rate.", show_default="the optimizer's")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Weight decay.", show_default="the optimizer's")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any other setting of the optimizer; may come again."),
    ] = None,
    fused: Annotated[bool, typer.Option("--fused", help="The optimizer's fused=True.")] = False,
    stochastic_rounding: Annotated[
        bool, typer.Option("--stochastic-rounding", help="The optimizer's stochastic_rounding=True, for bfloat16.")
    ] = False,
    **given: Any,
) -> None:
    """Train once: any task with any optimizer, on one process or on many.

    Ctrl-C finishes the step, saves, and prints the command that goes on, to the very same numbers.

    [b]Examples[/b]

    fallline train digits --optim koala-m

    fallline train cifar10-resnet18 --optim sgd --lr 0.1 --weight-decay 5e-4 --set momentum=0.9 --amp --channels-last

    fallline train cifar10-resnet18 --optim coolmomentum --epochs 30 --log tensorboard

    torchrun --nproc-per-node 4 -m fallline train cifar10-resnet18 --fsdp
    """
    data, optim, out = given["data"], given["optimizer"], given["out"]
    if data is not None:
        os.environ["FALLLINE_DATA"] = str(data.expanduser().resolve())
    torchrun, processes = started_by_others(), given["processes"]
    if torchrun and processes > 1:
        raise typer.BadParameter("torchrun has started the processes already.", param_hint="--num-gpus")
    if given["fsdp"] and not torchrun and processes == 1:
        raise typer.BadParameter("several processes shard a model: --num-gpus N, or torchrun.", param_hint="--fsdp")
    if given["clip"] is not None and not 0 < given["clip"] < math.inf:
        raise typer.BadParameter(f"a norm is positive and finite, got {given['clip']:g}.", param_hint="--clip")
    try:
        chosen = {
            "optimizer": spelled(optim),
            "schedule": None if given["schedule"] is None else given["schedule"].value,
            "drops": chosen_drops(given["drops"], given["schedule"], optim),
            "device": chosen_device(given["device"], processes),
            "dtype": given["dtype"].value,
            "processes": int(os.environ["WORLD_SIZE"]) if torchrun else processes,
            "data": None if data is None else str(data),
            "out": out or default_out(task, optim, given["seed"]),
        }
        plan = Plan(
            task=Path(task).as_posix() if ".py" in task else task,
            settings=chosen_settings(lr, weight_decay, settings or [], fused, stochastic_rounding),
            torchrun=torchrun,
            **{**given, **chosen},
        )
        checked_plan(plan)
    except typer.BadParameter:
        if torchrun and os.environ["RANK"] != "0":
            raise typer.Exit(2) from None  # the first process says it
        raise
    try:
        code = launch(run, (plan,), processes) if processes > 1 else run(plan)
    except KeyboardInterrupt:  # the second
        code = 130
    if code:
        raise typer.Exit(code)


def _declare() -> None:
    """Give the command the plan's options, which help lists in the order of its fields."""
    own = inspect.signature(train).parameters
    last = ["fused", "stochastic_rounding"]
    keyword = inspect.Parameter.KEYWORD_ONLY
    more = {name: inspect.Parameter(name, keyword, default=of[1], annotation=of[0]) for name, of in options().items()}
    first = [own["task"], more.pop("optimizer"), own["lr"], own["weight_decay"], own["settings"]]
    order = [one.replace(kind=keyword) for one in (*first, *more.values(), *(own[name] for name in last))]
    train.__signature__ = inspect.Signature(order)  # type: ignore[attr-defined]
    train.__annotations__ = {one.name: one.annotation for one in order}


_declare()


def chosen_settings(
    lr: float | None, weight_decay: float | None, written: list[str], fused: bool, stochastic_rounding: bool
) -> dict[str, Any]:
    """The optimizer's settings from all options that hold some."""
    given = {"lr": lr, "weight_decay": weight_decay, "fused": fused or None}
    given["stochastic_rounding"] = stochastic_rounding or None
    try:
        named = parse_settings(written)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--set") from error
    options = {name: value for name, value in given.items() if value is not None}
    for name in options:
        if name in named:
            raise typer.BadParameter(f"{name} is given twice.", param_hint="--set")
    return {**options, **named}


def chosen_drops(written: str | None, schedule: Schedules | None, optim: str) -> Drops | None:
    """A factor, and the shares of the run after which it is applied."""
    if written is None:
        return None
    if schedule is not Schedules.step and not (schedule is None and "@step" in optim):
        raise typer.BadParameter("drops belong to --schedule step.", param_hint="--drops")
    with contextlib.suppress(ValueError):
        drops = parse_drops(written)
        if drops[0] < 1:
            return drops
    raise typer.BadParameter("a factor and shares, all between 0 and 1: 0.1,0.5,0.75", param_hint="--drops")


def chosen_device(name: str | None, num_gpus: int) -> str:
    """A device that is there; as many of them as are asked for."""
    name = checked_device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    if name == "cuda" and num_gpus > torch.cuda.device_count():
        raise typer.BadParameter(f"there are {torch.cuda.device_count()} GPUs here.", param_hint="--num-gpus")
    return name


def checked_plan(plan: Plan) -> None:
    """See to it that task, optimizer and logs are there, before anything is started."""
    try:
        task = task_of(plan)
        make_sure(task)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="TASK") from error
    try:
        contender_of(plan, task).check(plan.settings)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--optim") from error
    try:
        checked(plan.log)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--log") from error
    size = task.batch_size
    if size is not None and size % plan.processes:
        raise typer.BadParameter(
            f"a batch of {size} cannot be cut into {plan.processes} equal shares.", param_hint="--batch-size"
        )
