"""Contenders by name: an entry of the table, an entry under another schedule, or any optimizer."""

import importlib
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from importlib.metadata import entry_points
from typing import Any, get_args

import torch
from torch import nn

import fallline
from fallline.bench.common.names import unknown
from fallline.bench.common.spaces import Choice, Range, Space, dimension
from fallline.bench.contenders.contender import Contender
from fallline.bench.contenders.entries import CONTENDERS, plain
from fallline.bench.contenders.schedules import Drops, parse_drops
from fallline.bench.tasks import Schedule, Task

ANY_LR = Range(1e-4, 1.0)
"""The learning rates of an optimizer without an entry, whose class has no default one."""


def space_of(name: str) -> Space:
    """What is tuned of an optimizer without an entry: its learning rate alone, two decades around the class's own.

    Nothing of a class that has none; `ANY_LR` where the class does not say, or cannot be made here.
    """
    try:
        defaults = fallline.create_optimizer(name, [nn.Parameter(torch.zeros(2, 2))]).defaults
    except Exception:  # whatever an optimizer of somebody's own may raise, now or when it is raced
        return {"lr": ANY_LR}
    if "lr" not in defaults:
        return {}
    try:
        middle = float(defaults["lr"])
        return {"lr": Range(float(f"{middle / 100:.3g}"), float(f"{middle * 100:.3g}"))}
    except (TypeError, ValueError):  # none, or none that is positive
        return {"lr": ANY_LR}


CLASSES = {
    "koalaplusplus": "koala-pp",
    "metrickoala": "koala-metric",
    "momentumkoala": "koala-m",
    "orthogonalkoala": "koala-orthogonal",
    "vanillakoala": "koala-v",
}
"""Names of this library's classes, in lower case, that are not those of their entries."""

VARIANT = re.compile(r"(?P<entry>.*?)(@(?P<schedule>[a-z]+)(?P<drops>(-[0-9.]+)+)?)?(#(?P<copy>\d+))?")
"""`sgd@linear`: under another schedule; `sgd@step-0.1-0.5`: with drops of its own, a factor and shares of the horizon;
`sgd#2`: the same once more under a name of its own."""


def spelled(name: str) -> str:
    """A name as a person may type it, as it stands in records: in lower case, and a class by its entry's name."""
    if ":" in name:
        return name
    entry, *rest = re.split(r"(?=[@#])", name.lower(), maxsplit=1)
    return "".join([CLASSES.get(entry, entry), *rest])


@cache
def contenders() -> dict[str, Contender]:
    """The cards of this package, and of installed packages that have an entry point in `fallline.cards`."""
    found = dict(CONTENDERS)
    for entry in entry_points(group="fallline.cards"):
        try:
            card = entry.load()
        except Exception as error:  # whatever a package of somebody's own may raise
            warnings.warn(f"the card {entry.value} cannot be loaded: {type(error).__name__}: {error}", stacklevel=2)
            continue
        if not isinstance(card, Contender) or card.name in found:
            why = "another card has its name" if isinstance(card, Contender) else f"it is a {type(card).__name__}"
            warnings.warn(f"the card {entry.value} is left out: {why}", stacklevel=2)
            continue
        found[card.name] = card
    return found


@cache
def get_contender(name: str) -> Contender:
    """The entry of that name, or one made for any that `fallline.create_optimizer` takes; else `ValueError`.

    `NAME@SCHEDULE` races it under another schedule than its entry's (`native` for its paper's), and `NAME#2` is a twin:
    the same method under another name, with a search of its own. `NAME@step-0.1-0.5-0.75` says when the schedule
    `step` drops the rates: to a tenth of what they were, after 50 % and after 75 % of the horizon.
    """
    variant = VARIANT.fullmatch(name)
    assert variant is not None  # the expression takes any text
    found = _get_entry(variant["entry"])
    if variant["schedule"] or variant["copy"]:
        found = replace(found, colour=None, dash=Contender.dash)  # it must not look like the method itself
    if schedule := variant["schedule"]:
        schedules: dict[str, Schedule] = {known: known for known in get_args(Schedule)}
        schedules["native"] = found.native or found.schedule
        if schedule not in schedules:
            raise unknown("schedule", schedule, schedules)
        label = f"{found.label}, {schedule}"
        found = replace(found, name=name, label=label, schedule=schedules[schedule], schedule_note="")
        if drops := variant["drops"]:
            found = replace(found, drops=named_drops(name, found.schedule, drops))
    if copy := variant["copy"]:
        found = replace(found, name=name, label=f"{found.label} no. {copy}")
    return found


def named_drops(name: str, schedule: Schedule, text: str) -> Drops:
    """`-0.1-0.5-0.75` as drops; `ValueError` for another schedule than `step`, and for what is no share."""
    try:
        if schedule == "step":
            return parse_drops(text[1:], "-")
    except ValueError:
        pass
    raise ValueError(f"{name!r}: drops are written as in sgd@step-0.1-0.5-0.75, a factor and shares of the run")


def _get_entry(name: str) -> Contender:
    if name in CONTENDERS:
        return CONTENDERS[name]  # without importing what other packages bring
    if name in (cards := contenders()):
        return cards[name]
    if ":" in name:
        if card := card_beside(name):
            return replace(card, name=name)
        label = name.rpartition(":")[2]
    elif name in (known := fallline.list_optimizers()):
        label = next((spelled for spelled in vars(torch.optim) if spelled.lower() == name), name)
    else:
        raise unknown("optimizer", name, [*cards, *known, "package.module:Class"])
    source = "no entry of its own: lr alone, two decades to either side of its default"
    return Contender(name, label, plain(name), space_of(name), source=source)


def card_beside(name: str) -> Contender | None:
    """The card `CARD` in the module of `module:Class`, or that of the class in a mapping `CARD`; None without one."""
    module, _, class_name = name.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), "CARD", None)
    except Exception:  # whatever a module of somebody's own may raise: making the optimizer says so
        return None
    found = found.get(class_name) if isinstance(found, Mapping) else found
    return found if isinstance(found, Contender) else None


def entered(name: str, task: Task, spaces: Mapping[str, Mapping[str, Any]]) -> Contender:
    """A contender as it races on a task, with what `spaces`, in plain values, changes in its search space."""
    changes = {setting: dimension(value) for setting, value in spaces.get(name, {}).items()}
    here = get_contender(name).on(task)
    for setting, value in changes.items():
        for one in (
            value.options if isinstance(value, Choice) else [value.at(0.0) if isinstance(value, Range) else value]
        ):
            here.check({setting: one})
    return here.searching(changes)


def under_schedules(names: Iterable[str], which: str) -> tuple[str, ...]:
    """Everyone under the common schedule, under their papers' own (`native`), or under `both`."""
    found: list[str] = []
    for name in names:
        entry = get_contender(name)
        if "@" in name or entry.native is None:
            found.append(name)
            continue
        common = name if entry.schedule == "cosine" else f"{name}@cosine"
        native = name if entry.schedule == entry.native else f"{name}@native"
        found += {"common": [common], "native": [native], "both": [common, native]}[which]
    return tuple(dict.fromkeys(found))
