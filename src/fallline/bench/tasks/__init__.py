"""The tasks by name: what is trained. A task is one class in one file.

`get_task` also takes `my_task.py` and `package.module:Class`. Imports `common`, and its own data and networks.
"""

import importlib
import inspect
from functools import cache
from pathlib import Path
from typing import Any

from fallline.bench.common.names import make, unknown
from fallline.bench.tasks._check import check, make_sure
from fallline.bench.tasks._file import fill_in, is_file, load_file
from fallline.bench.tasks._options import HORIZON, split
from fallline.bench.tasks._task import Batch, Schedule, Split, Task, alone

TASKS = {
    "bowl": "fallline.bench.tasks.bowl:Bowl",
    "digits": "fallline.bench.tasks.digits:Digits",
}

IMAGES = "fallline.bench.tasks.images:Images"
LANGUAGE = "fallline.bench.tasks.language:Language"
NETWORKS = ("resnet8", "resnet20", "resnet18", "resnet34", "resnet50", "wrn50-2")
REAL = {
    **{
        f"{data}-{model}": IMAGES
        for data in ("mnist", "fmnist")
        for model in ("softmax", "mlp", "cnn", "lstm", "resnet18")
    },
    **{f"{data}-autoencoder": "fallline.bench.tasks.autoencoder:Autoencoder" for data in ("mnist", "fmnist")},
    **{f"{data}-{model}": IMAGES for data in ("cifar10", "cifar100") for model in ("cnn", "cnn-bn", *NETWORKS)},
    **{f"imagenet32-{model}": IMAGES for model in ("resnet18", "resnet50")},
    "shakespeare-gpt": LANGUAGE,
    "shakespeare-gpt-small": LANGUAGE,
    **{f"{text}-{m}": LANGUAGE for text in ("ptb", "wikitext2") for m in ("lstm", "lstm-large", "transformer", "gpt")},
    "mnist-autoregression": "fallline.bench.tasks.autoregression:Autoregression",
    "imagenet-efficientnet-b0": "fallline.bench.tasks.imagenet:ImageNet",
}
"""Those whose data come from `fallline data`; made with their name and their options."""


def get_task(name: str) -> Task:
    """The task of that name, of the file `my_task.py` or `my_task.py:Class`, or of the class `package.module:Class`.

    Options may follow, as in `cifar10-resnet8@epochs=2,batch=64`: `epochs` or `steps`, `batch`, `evaluations`, and what
    the class takes. The same object each time, so that data are read once in a process; whether they are there is not
    asked here.

    Raises:
        ValueError: when there is none, and why.
    """
    base, horizon, options = split(name)
    if is_file(base):
        if options:
            raise no_option(base, options)
        task = load_file(base)
    else:
        task = _named(base, tuple(options.items()))
    return task if name == base else _resized(task, name, tuple(horizon.items()))


@cache
def _named(base: str, options: tuple[tuple[str, Any], ...]) -> Task:
    if base in REAL:
        module, _, kind = REAL[base].partition(":")
        make_real = getattr(importlib.import_module(module), kind)
        known = [known for known in inspect.signature(make_real).parameters if known != "name"]
        for option, _ in options:
            if option not in known:
                raise unknown(f"option of {base}", option, [*HORIZON, *known])
        made: Task = make_real(base, **dict(options))
        return made
    if options:
        raise no_option(base, dict(options))
    if base not in TASKS and Path(f"{base}.py").is_file():
        raise ValueError(f"there is no task {base!r}; did you mean {base}.py?")
    task: Task = make("task", base, {**TASKS, **dict.fromkeys(REAL, "")}, Task)
    fill_in(type(task), type(task).__name__)
    return task


@cache
def _resized(task: Task, name: str, horizon: tuple[tuple[str, Any], ...]) -> Task:
    """Under a name with options; it shares the data of the one without."""
    resized = task.resized(**dict(horizon))
    resized.name = name
    return resized


def no_option(base: str, options: dict[str, Any]) -> ValueError:
    """What to say of options that a task does not have."""
    return unknown(f"option of {base}", next(iter(options)), HORIZON)


__all__ = ["REAL", "TASKS", "Batch", "Schedule", "Split", "Task", "alone", "check", "get_task", "make_sure"]
