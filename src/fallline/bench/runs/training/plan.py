"""What one training run was asked to be, how that is written as a command, and in what two of them differ."""

import dataclasses
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fallline.bench.common.files import stem
from fallline.bench.contenders.contender import Contender, Drops, get_contender
from fallline.bench.runs.loop import lr_factor
from fallline.bench.tasks import Schedule, Task, get_task

HOW = ("data", "out", "resume", "save_every", "log", "log_every", "test", "torchrun")
"""Fields that have no say in the numbers: a resumed run may have others."""


@dataclass(frozen=True)
class Plan:
    """One training run. With the code and the data it determines every number."""

    task: str
    optimizer: str = "koala-m"
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the optimizer, where they are not its defaults."""

    seed: int = 0
    epochs: float | None = None
    """The horizon, instead of the task's own; in epochs or in `steps`."""

    steps: int | None = None
    batch_size: int | None = None
    """Examples in a batch, over all processes."""

    schedule: Schedule | None = None
    """None: the optimizer's own."""

    drops: Drops | None = None
    """Of the schedule `step`."""

    warm_up: float | None = None
    """Share of the run in which the rates rise from zero; None: the schedule's own."""

    clip: float | None = None
    """The norm that gradients are clipped to."""

    device: str = "cpu"
    """`cpu` or `cuda`: which one of several is the process's matter."""

    dtype: str = "float32"
    """Of weights, gradients and activations: `float32` or `bfloat16`."""

    amp: bool = False
    """Forward passes under bfloat16 autocast."""

    channels_last: bool = False
    compile: bool = False
    processes: int = 1
    fsdp: bool = False
    """Several processes shard the model, instead of having a copy each."""

    data: str | None = None
    """The folder with the data sets, where it was given."""

    out: Path = Path()
    resume: bool = False
    save_every: float = 60.0
    """Seconds between two checkpoints, at least."""

    log: str = ""
    """Names of `fallline.bench.runs.training.logs.LOGS`, with commas between them."""

    log_every: int = 20
    """Steps between two looks at losses and readings."""

    test: bool = True
    """Whether the test set is looked at, once, at the end."""

    torchrun: bool = False
    """Whether it was torchrun that started the processes."""


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
    contender.check(plan.settings)
    if plan.schedule is not None:
        contender = dataclasses.replace(contender, schedule=plan.schedule, schedule_note="")
    if plan.drops is not None:
        contender = dataclasses.replace(contender, drops=plan.drops)
    return contender


def factor(contender: Contender, warm_up: float | None, step: int, steps: int) -> float:
    """What multiplies the rates at `step` = 1 ... `steps`: `lr_factor`, but with a warm-up of any length.

    Under `cosine` and `linear` what follows the warm-up is the whole way down; under `step` and `constant` the rates
    are as they would be without.
    """
    if warm_up is None:
        return lr_factor(contender.schedule, step, steps, contender.drops)
    rise = round(warm_up * steps)
    if step <= rise:
        return step / rise
    if contender.schedule in ("step", "constant"):
        return lr_factor(contender.schedule, step, steps, contender.drops)
    gone = (step - rise) / (steps - rise + 1)
    return 1 - gone if contender.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * gone))


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
    factor_and_shares = fields.pop("drops")
    fields["drops"] = None if factor_and_shares is None else ",".join(f"{x:g}" for x in flat(factor_and_shares))
    return {**fields, "horizon": horizon, **{name: plain(value) for name, value in plan.settings.items()}}


def flat(drops: Drops) -> list[float]:
    """The factor and the shares in a row, as they are written."""
    return [drops[0], *drops[1]]


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
    options = {
        "--epochs": plan.epochs,
        "--steps": plan.steps,
        "--batch-size": plan.batch_size,
        "--schedule": plan.schedule,
        "--drops": None if plan.drops is None else ",".join(f"{x:g}" for x in flat(plan.drops)),
        "--warm-up": plan.warm_up,
        "--clip": plan.clip,
        "--seed": plan.seed,
        "--device": plan.device,
        "--dtype": plan.dtype if plan.dtype != "float32" else None,
        "--num-gpus": plan.processes if plan.processes > 1 and not plan.torchrun else None,
        "--data": plan.data,
        "--out": plan.out,
        "--save-every": plan.save_every if plan.save_every != Plan.save_every else None,
        "--log": plan.log or None,
        "--log-every": plan.log_every if plan.log_every != Plan.log_every else None,
    }
    for name, given in options.items():
        words += [] if given is None else [name, shlex.quote(f"{given:g}" if isinstance(given, float) else str(given))]
    switches = ("amp", "channels_last", "compile", "fsdp")
    words += [f"--{name.replace('_', '-')}" for name in switches if getattr(plan, name)]
    words += [] if plan.test else ["--no-test"]
    return " ".join([*words, *(["--resume"] if resume else [])])
