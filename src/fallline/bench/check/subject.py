"""The optimizer that is put to the promises: which class, with which settings, and how it is given the loss."""

import ast
import importlib
import inspect
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import fallline


class Loss(StrEnum):
    """How a step is given the loss."""

    none = "none"
    argument = "argument"
    examples = "examples"
    closure = "closure"


@dataclass(frozen=True)
class Subject:
    """An optimizer's class as a program imports it, with settings; plain values, so that another process has it too."""

    name: str
    """As it was typed."""
    module: str
    """Where the class is imported from."""
    kind: str
    """The class's name there."""
    loss: str
    """One of :class:`Loss`."""
    arguments: tuple[str, ...]
    """What its constructor takes by name."""
    folder: str | None = None
    """Where the module lies, if Python does not find it by itself."""
    modes: bool = False
    """Whether it has `train()` and `eval()`, as Schedule-Free optimizers do."""
    settings: dict[str, Any] = field(default_factory=dict, hash=False)
    """Arguments of the class beside its parameters: plain values, written by :func:`literal`."""

    @property
    def written(self) -> str:
        """The settings as arguments in Python."""
        return ", ".join(f"{name}={literal(value)}" for name, value in self.settings.items())

    def header(self, imports: str, uses: Sequence[str]) -> str:
        """The start of every program: imports, settings, seed, and those of `step` and `given` that are used."""
        lines = imports.splitlines()
        own = [one for one in lines if one.split()[1] in sys.stdlib_module_names]
        lines = [*own, *(["", "import torch"] if own else ["import torch"]), *(one for one in lines if one not in own)]
        if self.folder is not None:
            lines = ["import sys", f"sys.path.insert(0, {self.folder!r})", *lines]
        lines.append(f"from {self.module} import {self.kind}" + ("" if self.modes else " as Optimizer"))
        lines += ["", f"settings = dict({self.written})" if self.settings else "settings = {}", "torch.manual_seed(0)"]
        helpers = [MADE.format(kind=self.kind)] if self.modes else []
        helpers += [HELPERS[name][self.loss] for name in HELPERS if name in uses]
        helpers += [VALUE[self.modes]] if "value" in uses else []
        return "\n\n\n".join(["\n".join(lines), *helpers]) + ("\n\n\n" if helpers else "\n\n")


STEP = """def step(opt, losses, times=1):
    torch.manual_seed(0)
    for _ in range(times):
        opt.zero_grad()
        """
GIVEN = """def given(losses):
    torch.manual_seed(0)
    return """
HELPERS = {
    "step": {
        "none": STEP + "losses().mean().backward()\n        opt.step()",
        "argument": STEP + "(loss := losses().mean()).backward()\n        opt.step(loss=loss.detach())",
        "examples": STEP + "(each := losses()).mean().backward()\n        opt.step(loss=each.detach())",
        "closure": """def step(opt, losses, times=1):
    torch.manual_seed(0)

    def closure():
        opt.zero_grad()
        (loss := losses().mean()).backward()
        return loss

    for _ in range(times):
        opt.step(closure)""",
    },
    "given": {
        "none": GIVEN + "{}",
        "argument": GIVEN + "dict(loss=losses.detach().mean())",
        "examples": GIVEN + "dict(loss=losses.detach())",
        "closure": GIVEN + "dict(closure=lambda: losses.detach().mean())",
    },
}
"""What the header defines beside `Optimizer` and `settings`, for each way to give the loss.

`step(opt, losses)` trains once on the mean of what the function `losses` returns; `given(losses)` is what `opt.step`
takes where the gradients are there already. Both seed: two optimizers that are compared draw the same random numbers.
"""

MADE = """def Optimizer(*args, **settings):
    opt = {kind}(*args, **settings)
    opt.train()
    return opt"""
"""What makes an optimizer that has modes, in the mode in which it steps."""

VALUE = {
    False: "def value(opt, losses):\n    return losses().mean().item()",
    True: """def value(opt, losses):
    opt.eval()
    mean = losses().mean().item()
    opt.train()
    return mean""",
}
"""The mean loss, at the weights that its users evaluate: with modes or without."""


def literal(value: object) -> str:
    """A setting as a program writes it: infinity and NaN have no literal, and `repr` gives a name that is not there."""
    if isinstance(value, tuple):
        return f"({', '.join(map(literal, value))}{',' if len(value) == 1 else ''})"
    return f"float({str(value)!r})" if isinstance(value, float) and not math.isfinite(value) else repr(value)


def parse_settings(written: Sequence[str]) -> dict[str, Any]:
    """Settings from `name=value`: values are numbers, true or false, Python's literals; anything else is text.

    Raises:
        ValueError: one is no `name=value`, or a name comes twice.
    """
    settings: dict[str, Any] = {}
    for one in written:
        name, equals, value = one.partition("=")
        if not equals or not name.strip().isidentifier():
            raise ValueError(f"{one!r} is no setting: write name=value, as in lr=0.1")
        name, value = name.strip(), value.strip()
        if name in settings:
            raise ValueError(f"{name} is given twice")
        settings[name] = _value(value)
    return settings


def _value(text: str) -> Any:
    """What a text says: a literal of Python's, a number that is none (inf, nan), true or false; else the text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for read in (ast.literal_eval, float):
        with suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return read(text)
    return text


def get_subject(name: str, settings: Mapping[str, Any], loss: Loss | None = None) -> Subject:
    """The optimizer that a name stands for, once it is seen that it can be made.

    Args:
        name: `package.module:Class`, `file.py:Class`, or a name that `fallline.create_optimizer` knows.
        settings: arguments of the class.
        loss: how its step is given the loss; by default what its `step` looks like.

    Raises:
        ValueError: in a sentence, why there is no such optimizer, or why it cannot be made.
    """
    folder = None
    if match := re.fullmatch(r"(.+\.py)(?::(\w+))?", name):
        path = Path(match[1]).expanduser().resolve()
        if not path.is_file():
            raise ValueError(f"there is no file {match[1]}")
        folder, module = str(path.parent), _imported(path.stem, str(path.parent))
        if Path(module.__file__ or "").resolve() != path:
            raise ValueError(f"{match[1]}: a module named {path.stem} is there already; rename the file")
        kind = _class(module, match[2])
    elif ":" in name:
        home, _, wanted = name.partition(":")
        module = _imported(home)
        kind = _class(module, wanted)
        folder = os.getcwd() if _home(module) == Path.cwd() else None
    else:
        kind = type(fallline.create_optimizer(name, [torch.nn.Parameter(torch.ones(2, 2))]))
        module = _imported(_public(kind))
    try:
        kind([torch.nn.Parameter(torch.ones(3, 3))], **settings)
    except Exception as error:
        says = f"{type(error).__name__}: {error}"
        raise ValueError(f"{name} cannot be made with these settings ({says}); give others by --set") from error
    where = module.__name__
    how = loss or loss_of(kind)
    return Subject(name, where, kind.__name__, how.value, _arguments(kind), folder, has_modes(kind), dict(settings))


def loss_of(kind: type) -> Loss:
    """How a class takes the loss, as far as the signature of its `step` shows."""
    if issubclass(kind, fallline.Optimizer):
        return Loss.examples
    parameters = inspect.signature(kind.step).parameters if hasattr(kind, "step") else {}
    if "loss" in parameters:
        return Loss.argument
    closure = parameters.get("closure")
    return Loss.closure if closure is not None and closure.default is closure.empty else Loss.none


def has_modes(kind: type) -> bool:
    """Whether a class has `train()` and `eval()`, which its users call before they step and before they evaluate."""
    modes = [getattr(kind, name, None) for name in ("train", "eval")]
    try:
        return all(callable(one) and inspect.signature(one).bind(None) for one in modes)
    except (TypeError, ValueError):  # they want more than an optimizer
        return False


def _arguments(kind: type) -> tuple[str, ...]:
    return tuple(inspect.signature(kind).parameters)


def _imported(name: str, folder: str | None = None) -> ModuleType:
    if folder is not None and folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    except Exception as error:  # whatever a module of somebody's own may raise
        raise ValueError(f"{name} cannot be imported: {type(error).__name__}: {error}") from error


def _home(module: ModuleType) -> Path | None:
    """The folder in which Python finds a module's outermost package."""
    if module.__file__ is None:
        return None
    return Path(module.__file__).resolve().parents[module.__name__.count(".") + hasattr(module, "__path__")]


def _class(module: ModuleType, name: str | None) -> type:
    """The class of that name, or the only optimizer that the module has of its own."""
    if not name:
        own = [
            key
            for key, kind in vars(module).items()
            if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind.__module__ == module.__name__
        ]
        if len(own) != 1:
            has = f"it has {', '.join(own)}" if own else "it has none"
            raise ValueError(f"say which optimizer of {module.__name__}, as in file.py:Class; {has}")
        name = own[0]
    found = getattr(module, name, None)
    if not isinstance(found, type):
        raise ValueError(f"{module.__name__} has no class {name!r}")
    return found


def _public(kind: type) -> str:
    """The shortest of the packages around a class that shows it."""
    parts = kind.__module__.split(".")
    names = (".".join(parts[:i]) for i in range(1, len(parts) + 1))
    return next(name for name in names if getattr(importlib.import_module(name), kind.__name__, None) is kind)
