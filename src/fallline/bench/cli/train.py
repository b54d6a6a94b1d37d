"""`fallline train`."""

import math
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, get_args

import torch
import typer

from fallline.bench.check.subject import parse_settings
from fallline.bench.cli.terminal import checked_device
from fallline.bench.contenders.contender import Drops, spelled
from fallline.bench.runs.training.logs import checked
from fallline.bench.runs.training.plan import Plan, contender_of, default_out, task_of
from fallline.bench.runs.training.processes import launch, started_by_others
from fallline.bench.runs.training.run import run
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


def train(
    task: Annotated[
        str,
        typer.Argument(
            metavar="TASK",
            help="A name of [b]fallline list[/b], with options as in cifar10-resnet8@epochs=2,batch=64; my_task.py; "
            "package.module:Class.",
        ),
    ],
    optim: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="A name of [b]fallline list[/b], any of torch.optim, package.module:Class.",
        ),
    ] = "koala-m",
    lr: Annotated[float | None, typer.Option(help="Learning rate.", show_default="the optimizer's")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Weight decay.", show_default="the optimizer's")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any other setting of the optimizer; may come again."),
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(help="How long; a fraction will do.", show_default="the task's")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="How long, instead of --epochs.", show_default="the task's")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Examples in a batch, over all processes.", show_default="the task's")
    ] = None,
    schedule: Annotated[
        Schedules | None, typer.Option(help="How the learning rate runs down.", show_default="the optimizer's")
    ] = None,
    drops: Annotated[
        str | None,
        typer.Option(
            metavar="FACTOR,SHARE,...", help="Of --schedule step: 0.1,0.5,0.75 is a tenth after 50 % and after 75 %."
        ),
    ] = None,
    warm_up: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, metavar="SHARE", help="Of the run, with rising rates.", show_default="the schedule's"
        ),
    ] = None,
    clip: Annotated[float | None, typer.Option(metavar="NORM", help="Clip gradients to this norm.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, data order and dropout.")] = 0,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the data sets are, as FALLLINE_DATA.")] = None,
    device: Annotated[
        str | None, typer.Option(metavar="cpu|cuda", help="Where to train.", show_default="cuda if there is one")
    ] = None,
    num_gpus: Annotated[
        int, typer.Option(min=1, help="So many processes on this machine, each with a GPU of its own; on the CPU too.")
    ] = 1,
    fsdp: Annotated[bool, typer.Option("--fsdp", help="Several processes shard the model (FSDP2); else DDP.")] = False,
    dtype: Annotated[Dtype, typer.Option(help="Of weights, gradients and activations.")] = Dtype.float32,
    amp: Annotated[bool, typer.Option("--amp", help="Forward passes under bfloat16 autocast.")] = False,
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Images and filters as NHWC.")] = False,
    compile_: Annotated[bool, typer.Option("--compile", help="Compile the model.")] = False,
    fused: Annotated[bool, typer.Option("--fused", help="The optimizer's fused=True.")] = False,
    stochastic_rounding: Annotated[
        bool, typer.Option("--stochastic-rounding", help="The optimizer's stochastic_rounding=True, for bfloat16.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where all goes.", show_default="in runs/train")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out.")] = False,
    save_every: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Between two checkpoints.")
    ] = Plan.save_every,
    log: Annotated[
        str, typer.Option(metavar="A,B", help="Write losses and readings to jsonl, tensorboard, wandb, trackio.")
    ] = "",
    log_every: Annotated[int, typer.Option(min=1, metavar="STEPS", help="Between two looks at them.")] = Plan.log_every,
    test: Annotated[bool, typer.Option("--test/--no-test", help="Look at the test set, once, at the end.")] = True,
) -> None:
    """Train once: any task with any optimizer, on one process or on many.

    Ctrl-C finishes the step, saves, and prints the command that goes on, to the very same numbers.

    [b]Examples[/b]

    fallline train digits --optim koala-m

    fallline train cifar10-resnet18 --optim sgd --lr 0.1 --weight-decay 5e-4 --set momentum=0.9 --amp --channels-last

    fallline train cifar10-resnet18 --optim coolmomentum --epochs 30 --log tensorboard

    torchrun --nproc-per-node 4 -m fallline train cifar10-resnet18 --fsdp
    """
    if data is not None:
        os.environ["FALLLINE_DATA"] = str(data.expanduser().resolve())
    torchrun = started_by_others()
    if torchrun and num_gpus > 1:
        raise typer.BadParameter("torchrun has started the processes already.", param_hint="--num-gpus")
    if fsdp and not torchrun and num_gpus == 1:
        raise typer.BadParameter("several processes shard a model: --num-gpus N, or torchrun.", param_hint="--fsdp")
    if clip is not None and not 0 < clip < math.inf:
        raise typer.BadParameter(f"a norm is positive and finite, got {clip:g}.", param_hint="--clip")
    try:
        plan = Plan(
            task=Path(task).as_posix() if ".py" in task else task,
            optimizer=spelled(optim),
            settings=chosen_settings(lr, weight_decay, settings or [], fused, stochastic_rounding),
            seed=seed,
            epochs=epochs,
            steps=steps,
            batch_size=batch_size,
            schedule=None if schedule is None else schedule.value,
            drops=chosen_drops(drops, schedule, optim),
            warm_up=warm_up,
            clip=clip,
            device=chosen_device(device, num_gpus),
            dtype=dtype.value,
            amp=amp,
            channels_last=channels_last,
            compile=compile_,
            processes=int(os.environ["WORLD_SIZE"]) if torchrun else num_gpus,
            fsdp=fsdp,
            data=None if data is None else str(data),
            out=out or default_out(task, optim, seed),
            resume=resume,
            save_every=save_every,
            log=log,
            log_every=log_every,
            test=test,
            torchrun=torchrun,
        )
        checked_plan(plan)
    except typer.BadParameter:
        if torchrun and os.environ["RANK"] != "0":
            raise typer.Exit(2) from None  # the first process says it
        raise
    try:
        code = launch(run, (plan,), num_gpus) if num_gpus > 1 else run(plan)
    except KeyboardInterrupt:  # the second
        code = 130
    if code:
        raise typer.Exit(code)


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
    try:
        factor, *shares = (float(one) for one in written.split(","))
    except ValueError:
        factor, shares = 0.0, []
    if not (0 < factor < 1 and shares and all(0 < share < 1 for share in shares)):
        raise typer.BadParameter("a factor and shares, all between 0 and 1: 0.1,0.5,0.75", param_hint="--drops")
    return factor, tuple(shares)


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
        contender_of(plan, task)
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
