"""What one training run was asked to be, how that is written as a command, and in what two of them differ."""

import dataclasses
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fallline.bench.common.files import stem
from fallline.bench.contenders import Contender, Drops, get_contender, spell_drops
from fallline.bench.runs.run import Run
from fallline.bench.tasks import Schedule, Task, get_task

HOW = ("data", "out", "resume", "save_every", "log", "log_every", "test", "torchrun", "complete")
"""Fields that have no say in the numbers: a resumed run may have others."""


def option(default: Any, text: str, flag: str = "", **how: Any) -> Any:
    """A field that is an option of `fallline train`.

    Args:
        default: of the field.
        text: help.
        flag: where it is not the field's name; `--x/--no-x` for a switch that is on by default.
        how: what else its help says or its value must keep to, as typer's `Option` takes it.
    """
    return field(default=default, metadata={"help": text, "flag": flag, **how})


@dataclass(frozen=True)
class Plan:
    """One training run. With the code and the data it determines every number."""

    task: str
    optimizer: str = option(
        "koala-m",
        "A name of [b]fallline list[/b], any of torch.optim, package.module:Class.",
        "--optim",
        metavar="NAME",
    )
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the optimizer, where they are not its defaults."""

    seed: int = option(0, "Seed of weights, data order and dropout.", min=0)
    epochs: float | None = option(None, "Length of the run; a fraction will do.", show_default="the task's")
    steps: int | None = option(None, "Length of the run, instead of --epochs.", min=1, show_default="the task's")
    batch_size: int | None = option(None, "Examples in a batch, over all processes.", min=1, show_default="the task's")
    schedule: Schedule | None = option(None, "Schedule of the learning rate.", show_default="the optimizer's")
    drops: Drops | None = option(
        None,
        "Of --schedule step: 0.1,0.5,0.75 is a tenth after 50 % and after 75 %.",
        metavar="FACTOR,SHARE,...",
    )
    warm_up: float | None = option(
        None, "Share of the run with rising rates.", min=0, max=1, metavar="SHARE", show_default="the schedule's"
    )
    clip: float | None = option(None, "Norm to clip gradients to.", metavar="NORM")
    data: str | None = option(None, "Directory of the data sets, as FALLLINE_DATA.", metavar="DIR")
    device: str = option("cpu", "Device to train on.", metavar="cpu|cuda", show_default="cuda if there is one")
    processes: int = option(
        1, "Processes on this machine, each with a GPU of its own; on the CPU too.", "--num-gpus", min=1
    )
    fsdp: bool = option(False, "Shard the model over the processes (FSDP2); else DDP.")
    dtype: str = option("float32", "Type of weights, gradients and activations.")
    amp: bool = option(False, "Run forward passes under bfloat16 autocast.")
    channels_last: bool = option(False, "Store images and filters as NHWC.")
    compile: bool = option(False, "Compile the model.")
    out: Path = option(Path(), "Directory for all results.", metavar="DIR", show_default="in runs/train")
    resume: bool = option(False, "Go on from the checkpoint in --out.")
    save_every: float = option(60.0, "Seconds between two checkpoints, at least.", min=0, metavar="SECONDS")
    log: str = option("", "Write losses and readings to jsonl, tensorboard, wandb, trackio.", metavar="A,B")
    log_every: int = option(20, "Steps between two looks at losses and readings.", min=1, metavar="STEPS")
    test: bool = option(True, "Measure on the test set, once, at the end.", "--test/--no-test")
    torchrun: bool = False
    """Whether it was torchrun that started the processes."""

    complete: bool = False
    """Whether `settings` are all that the optimizer gets, as those of a race's runs are."""


def plan_of(run: Run) -> Plan:
    """The plan of a race's run, which nobody watches."""
    settings = dict(run.settings)
    return Plan(
        run.task, run.optimizer, settings, run.seed, device=run.device, log_every=0, test=run.test, complete=True
    )


def task_of(plan: Plan) -> Task:
    """The task with the horizon and the batch that were asked for; `ValueError` where it has no such thing."""
    task = get_task(plan.task)
    if plan.epochs is None and plan.steps is None and plan.batch_size is None:
        return task
    return task.resized(epochs=plan.epochs, batch_size=plan.batch_size, steps=plan.steps)


def contender_of(plan: Plan, task: Task) -> Contender:
    """The optimizer's entry, under the schedule that was asked for.

    Raises:
        ValueError: no such optimizer, or a setting that it does not have.
    """
    contender = get_contender(plan.optimizer).on(task)
    if plan.schedule is not None:
        contender = dataclasses.replace(contender, schedule=plan.schedule, schedule_note="")
    if plan.drops is not None:
        contender = dataclasses.replace(contender, drops=plan.drops)
    return contender


def default_out(task: str, optimizer: str, seed: int) -> Path:
    """Where a run lies unless another folder is named."""
    return Path("runs", "train", f"{stem([task])}-{stem([optimizer])}-{seed}")


def identity(plan: Plan, horizon: int) -> dict[str, Any]:
    """What a checkpoint must have in common with the run that goes on from it: plain values, by the name of the option.

    Args:
        plan: the run.
        horizon: gradient evaluations in it.
    """
    fields = {name: value for name, value in dataclasses.asdict(plan).items() if name not in (*HOW, "settings")}
    fields["drops"] = None if plan.drops is None else spell_drops(plan.drops)
    return {**fields, "horizon": horizon, **{name: plain(value) for name, value in plan.settings.items()}}


def plain(value: Any) -> Any:
    """A setting as JSON and checkpoints can hold it."""
    keeps = math.isfinite(value) if isinstance(value, float) else isinstance(value, str | int | None)
    return value if keeps else repr(value)


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Where two identities differ, in words."""
    names = sorted({*saved, *now})
    return [
        f"{name} is {saved.get(name, 'not set')} there and {now.get(name, 'not set')} here"
        for name in names
        if saved.get(name, "not set") != now.get(name, "not set")
    ]


def command(plan: Plan, resume: bool = False) -> str:
    """The command that makes this run, or goes on with it."""
    words = ["fallline train", shlex.quote(plan.task), "--optim", shlex.quote(plan.optimizer)]
    if plan.torchrun:
        words[0] = f"torchrun --nproc-per-node {plan.processes} -m fallline train"
    for name, value in plan.settings.items():
        own = {"lr": "--lr", "weight_decay": "--weight-decay"}.get(name)
        words += [own, str(value)] if own else ["--set", shlex.quote(f"{name}={value}")]
    for one in dataclasses.fields(plan):
        value = resume if one.name == "resume" else getattr(plan, one.name)
        said = one.name == "optimizer" or (one.name == "processes" and plan.torchrun)
        if "help" not in one.metadata or said or (value == one.default and one.name not in ("seed", "device", "out")):
            continue
        flag = one.metadata["flag"] or "--" + one.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else flag.partition("/")[2])
        else:
            text = (
                spell_drops(value) if one.name == "drops" else f"{value:g}" if isinstance(value, float) else str(value)
            )
            words += [flag, shlex.quote(text)]
    return " ".join(words)
