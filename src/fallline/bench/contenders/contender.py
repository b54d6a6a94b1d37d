"""A contender: all that the tool knows of a method. It is the method's card, and the only place to say such things.

A package adds a method of its own by an entry point of the group `fallline.cards`, whose value is such a card; or by a
card of the name `CARD` beside the class, which `module:Class` then finds (by class name, if there are several).
"""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fallline.bench.common.names import unknown
from fallline.bench.common.spaces import Choice, Range, Setting, Space, as_plain
from fallline.bench.contenders.schedules import DROPS, Drops
from fallline.bench.contenders.step import Step
from fallline.bench.tasks import Schedule, Task


class Team:
    """Several optimizers, each for its share of the parameters, behind the face of one."""

    def __init__(self, *members: torch.optim.Optimizer) -> None:
        self.members = members

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The members' groups, one after another."""
        return [group for member in self.members for group in member.param_groups]

    @property
    def state(self) -> dict[Tensor, Any]:
        """The members' states, by parameter."""
        return {parameter: state for member in self.members for parameter, state in member.state.items()}

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for member in self.members:
            member.zero_grad()

    def step(self) -> None:
        """One step of every member."""
        for member in self.members:
            member.step()

    def state_dict(self) -> dict[str, Any]:
        """The members' states, in their order."""
        return {"members": [member.state_dict() for member in self.members]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the members' states back."""
        for member, state in zip(self.members, state_dict["members"], strict=True):
            member.load_state_dict(state)


AnyOptimizer = torch.optim.Optimizer | Team
Make = Callable[[Iterable[nn.Parameter], Mapping[str, Any], int | None], AnyOptimizer]
"""(parameters, settings, horizon) -> optimizer. The horizon is the number of steps over which a method that brings its
own schedule runs it down, None on a task where nothing is to run down."""


@dataclass(frozen=True)
class Contender:
    """One entry of a race."""

    name: str
    label: str
    make: Make
    space: Space
    """At most four dimensions; positive ones over their logarithm."""

    fixed: Mapping[str, Setting] = field(default_factory=dict)
    """Settings that are not tuned and not left at their defaults."""

    variant: Mapping[str, Setting] = field(default_factory=dict)
    """Settings that make it what it is, and those that it ships with as such: those of a run that gives none."""

    schedule: Schedule = "cosine"
    """How its rates run down unless another is asked for; `constant` for a method that cools by itself."""

    native: Schedule | None = None
    """The schedule of its paper, where that is another than the common cosine."""

    drops: Drops = DROPS
    """Of the schedule `step`."""

    rates: tuple[str, ...] = ("lr",)
    """The settings that the schedule multiplies."""

    schedule_note: str = ""
    """Its own schedule, in words."""

    ours: bool = False
    """Whether it is a method of this library."""

    matrices: bool = False
    """Whether it is for matrices, and has nothing to do without any."""

    source: str = ""
    """The method's paper, and where the space comes from."""

    colour: tuple[str, str, str] | None = None
    """The colour of its lines on white, on black and on either, as `#rrggbb`; None: a spare one."""

    dash: str = "longdash"
    """The dash of its lines, as Plotly names them; lines of this library's methods are whole."""

    readings: Callable[[Any], Mapping[str, Tensor]] | None = None
    """What its optimizer says of itself while it trains: 0-D tensors by name."""

    steps: tuple[Step, ...] = ()
    """The forms in which the step benchmark measures it."""

    def on(self, task: Task) -> "Contender":
        """This contender as it races on a task, which may change ranges, fix settings and forbid schedules."""
        changes = task.spaces.get(self.name, {})
        for name in changes:
            if name not in self.space:
                raise unknown(f"setting of {self.name} to change on {task.name}", name, self.space)
        resolved = {name: changes.get(name, dimension) for name, dimension in self.space.items()}
        space = {name: value for name, value in resolved.items() if isinstance(value, Range | Choice)}
        fixed = {name: value for name, value in resolved.items() if not isinstance(value, Range | Choice)}
        here = replace(self, space=space, fixed={**self.fixed, **fixed})
        return here if task.schedule == "cosine" else replace(here, schedule="constant", schedule_note="")

    def searching(self, changes: Mapping[str, Range | Choice | Setting]) -> "Contender":
        """This contender with other ranges, or with settings fixed; `ValueError` beyond four dimensions."""
        tuned = {**self.space, **{name: value for name, value in changes.items() if isinstance(value, Range | Choice)}}
        fixed = {name: value for name, value in changes.items() if not isinstance(value, Range | Choice)}
        space = {name: value for name, value in tuned.items() if name not in fixed}
        if len(space) > 4:
            raise ValueError(f"{self.name}: at most four settings are tuned, not {len(space)} ({', '.join(space)})")
        kept = {name: value for name, value in self.fixed.items() if name not in space}
        return replace(self, space=space, fixed={**kept, **fixed})

    def describe(self) -> dict[str, Any]:
        """What a report says of it, ready for JSON."""
        return {
            "label": self.label,
            "ours": self.ours,
            "space": {name: str(dimension) for name, dimension in self.space.items()},
            "ranges": {name: as_plain(dimension) for name, dimension in self.space.items()},
            "fixed": {k: v for k, v in {**self.variant, **self.fixed}.items() if k not in self.space},
            "schedule": self.schedule_note or self.schedule,
            "source": self.source,
            "colour": self.colour and [*self.colour],
            "dash": self.dash,
        }

    def build(
        self, parameters: Iterable[nn.Parameter], settings: Mapping[str, Any], horizon: int | None
    ) -> AnyOptimizer:
        """As `make`; whatever its class may raise is a `ValueError` that names it."""
        try:
            return self.make(parameters, settings, horizon)
        except Exception as error:
            told = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            raise ValueError(f"{self.name} cannot be made with {dict(settings)}: {told}") from error

    def defaults(self, settings: Mapping[str, Any]) -> dict[str, inspect.Parameter] | None:
        """What may be set and what it is unless it is: the arguments of the class, and what this entry adds.

        None if it cannot be told.
        """
        for given in ({}, {"lr": 0.1}, settings):  # some have no default learning rate
            parameters = [nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))]
            try:
                made = self.make(parameters, given, 1)
            except Exception:  # whatever an optimizer of somebody's own may raise
                continue
            member = made.members[0] if isinstance(made, Team) else made
            arguments = inspect.signature(type(member)).parameters
            if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in arguments.values()):
                return None
            added = {name: there.at(0.0) for name, there in self.space.items()} | dict(self.fixed)
            mine = {
                name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value)
                for name, value in added.items()
            }
            return {**mine, **dict(list(arguments.items())[1:])}
        return None

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raise a `ValueError` for a setting that it does not have, or of another kind than its default."""
        known = self.defaults(settings)
        if known is None:
            return
        for name, value in settings.items():
            if name not in known:
                raise unknown(f"setting of {self.name}", name, known)
            if wanted := misfit(value, known[name]):
                raise ValueError(f"{name} of {self.name} is {wanted}, got {value!r}")

    def excuse(self, model: nn.Module) -> str | None:
        """Why it cannot take part with this model, if so."""
        if self.matrices and not any(p.ndim == 2 for p in model.parameters()):
            return f"{self.label} orthogonalises matrices, and this task has none"
        return None


OPEN = ("None", "Optional", "str", "Any", "Literal", "Callable")
"""In an annotation: the argument takes more than its default shows."""


def misfit(value: Any, argument: inspect.Parameter) -> str:
    """What an argument wants instead of a value, judged by its default; empty if the value will do."""
    default = argument.default
    if isinstance(default, tuple) and all(map(_is_finite, default)):
        fits = isinstance(value, tuple | list) and len(value) == len(default) and all(map(_is_finite, value))
        return "" if fits else f"{len(default)} finite numbers, as {default}"
    if not _is_finite(default) or any(word in str(argument.annotation) for word in OPEN):
        return ""
    if isinstance(default, bool):
        return "" if isinstance(value, bool) or value in (0, 1) else "True or False"
    return "" if _is_finite(value) else f"a finite number, as {default:g}"


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
