"""Settings: a constructor's annotations say what each may be, and this is where they are read and checked.

An interval is metadata, ``rho_0: Share``. The values of a ``Literal``, and whether a callable will do, are read from
the type. What is None by default may be None; what is a bool by default must be one.
"""

import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, NamedTuple, TypedDict, Union, get_args, get_origin, get_type_hints

from torch import Tensor

Rate = Annotated[float | Tensor, "[0, inf)"]
NonNegative = Annotated[float, "[0, inf)"]
Positive = Annotated[float, "(0, inf)"]
Real = Annotated[float, "(-inf, inf)"]
Share = Annotated[float, "[0, 1)"]
ClosedShare = Annotated[float, "[0, 1]"]
Count = Annotated[int, "[1, inf)"]
CountOrZero = Annotated[int, "[0, inf)"]


class RunSettings(TypedDict, total=False):
    """What every optimizer takes: how a step is run. A constructor says ``**run: Unpack[RunSettings]``."""

    skip_nonfinite: bool
    maximize: bool
    stochastic_rounding: bool
    fused: bool


RUN = tuple(RunSettings.__annotations__)


class Rule(NamedTuple):
    """What a setting may be; False and None leave it open."""

    interval: str | None
    options: tuple[Any, ...]  # `callable` among them admits any
    optional: bool
    switch: bool


def check(cls: type, settings: dict[str, Any]) -> None:
    """Refuse settings that an optimizer's class does not admit.

    Raises:
        ValueError: the message has the setting, its value, and what it may be.
    """
    known = {name: (rule, settings[name]) for name, rule in rules(cls).items() if name in settings}
    for name, (rule, value) in known.items():
        if rule.interval and not (inside(value, rule.interval) or (value is None and rule.optional)):
            raise ValueError(f"{name}={value!r} is outside its range: a number in {rule.interval}")
    for name, (rule, value) in known.items():
        if rule.options and not (value in rule.options or (callable in rule.options and callable(value))):
            allowed = ", ".join("a callable" if option is callable else repr(option) for option in rule.options)
            raise ValueError(f"{name}={value!r} is unknown: one of {allowed}")
    for name, (rule, value) in known.items():
        if rule.switch and not isinstance(value, bool):
            raise ValueError(f"{name}={value!r} is outside its range: True or False")


@functools.cache
def rules(cls: type) -> dict[str, Rule]:
    """By name, from the constructors of a class and of its bases: it may pass settings on to them."""
    found = {"lr": Rule("[0, inf)", (), False, False)}
    for base in reversed(cls.__mro__):
        make = vars(base).get("__init__")
        if make is None or base.__module__.startswith("torch."):
            continue
        hints = _hints(make)
        for one in inspect.signature(make).parameters.values():
            parts = list(_parts(hints.get(one.name)))
            values = tuple(value for part in parts if get_origin(part) is Literal for value in get_args(part))
            intervals = [part for part in parts if isinstance(part, str)]
            options = (*values, callable) if values and any(get_origin(part) is Callable for part in parts) else values
            before = found.get(one.name, Rule(None, (), False, False))
            found[one.name] = Rule(
                intervals[0] if intervals else before.interval,
                options or before.options,
                one.default is None or before.optional,
                isinstance(one.default, bool),
            )
    return found | {name: Rule(None, (), False, True) for name in RUN}


def intervals(cls: type) -> dict[str, str]:
    """By name, of the settings that have one."""
    return {name: rule.interval for name, rule in rules(cls).items() if rule.interval}


def choices(cls: type) -> dict[str, tuple[Any, ...]]:
    """By name, what a setting may be, of those that are one of a few."""
    return {name: rule.options for name, rule in rules(cls).items() if rule.options}


def _hints(make: Any) -> dict[str, Any]:
    try:
        return get_type_hints(make, include_extras=True)
    except (NameError, TypeError):  # names that are imported for a type checker alone
        return {}


def _parts(annotation: Any) -> Iterator[Any]:
    """What an annotation is put together from: intervals as strings, types as they are."""
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        yield from (one for one in metadata if isinstance(one, str))
        yield from _parts(inner)
    elif get_origin(annotation) in (Union, types.UnionType):
        for one in get_args(annotation):
            yield from _parts(one)
    else:
        yield annotation


class Signature:
    """What ``inspect.signature`` finds on a class: made when somebody asks, as it takes a tenth of the import."""

    def __get__(self, instance: object, owner: type) -> inspect.Signature:
        return signature(owner)


@functools.cache
def signature(cls: type) -> inspect.Signature:
    """The signature of a class, in which ``**`` has become what it stands for: what the base takes."""
    above: inspect.Signature | None = getattr(cls.__mro__[1], "__signature__", None)
    make = vars(cls).get("__init__")
    if make is None and above is not None:
        return above
    plain = inspect.signature(make or cls.__init__)  # type: ignore[misc]
    _, *own = plain.parameters.values()
    rest = [one for one in own if one.kind is one.VAR_KEYWORD]
    if not rest:
        return plain.replace(parameters=own)
    named = [one for one in own if one.kind is not one.VAR_KEYWORD]
    defaults: dict[str, bool] = getattr(cls, "_run_defaults", {})
    keyword = inspect.Parameter.KEYWORD_ONLY
    run = [inspect.Parameter(name, keyword, default=defaults.get(name, False), annotation=bool) for name in RUN]
    inherited = [] if above is None else [one for one in above.parameters.values() if one.kind is keyword]
    inherited = [*(one for one in inherited if one.name not in RUN), *run]
    taken = {one.name for one in named}
    return plain.replace(parameters=[*named, *(one for one in inherited if one.name not in taken)])


def inside(value: Any, interval: str) -> bool:
    """Whether this is a number, or a tensor of one, in an interval such as ``"[0, 1)"``."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    if isinstance(value, Tensor):
        if value.numel() != 1:
            return False
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    above = low <= value if interval[0] == "[" else low < value
    return above and (value <= high if interval[-1] == "]" else value < high)


def plain(value: Any) -> Any:
    """A number of numpy as Python's, also within a tuple: a checkpoint then holds nothing of numpy."""
    if isinstance(value, tuple) and type(value) is tuple:
        return tuple(map(plain, value))
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic | numpy.ndarray) and value.ndim == 0:
        return value.item()
    return value
