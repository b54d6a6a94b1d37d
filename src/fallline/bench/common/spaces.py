"""Search spaces: what a setting may be, the quasi-random trials drawn from it, and how to write one in TOML."""

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from fallline.bench.common.names import unknown

Setting = float | str | bool
"""A value of a hyperparameter."""

Scale = Literal["log", "linear", "one minus log"]

Side = Literal["low", "high"]
"""An edge of a range, named by the value of the setting: `high` is where the setting is largest."""

MOST_TUNED = 4
"""Dimensions of a space at most: with 20 trials, more are hardly searched."""

EDGE = 0.05
"""The share of a range, on its own scale, that counts as its edge."""

NEAREST_TO_ONE = 1e-10
"""The smallest distance to one that is tried: `Range.at` rounds to twelve decimals, and means three digits of it."""


@dataclass(frozen=True)
class Range:
    """An interval of positive numbers, `low` to `high`.

    `scale="log"` spreads the trials evenly over the logarithm, `"linear"` over the value. `"one minus log"` is for
    momenta: the *distance to one* lies between `low` and `high`, evenly over its logarithm.
    """

    low: float
    high: float
    scale: Scale = "log"

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high < math.inf:
            raise ValueError(f"a range needs 0 < low < high, got [{self.low:g}, {self.high:g}]")
        if self.scale == "one minus log" and self.high > 1:
            raise ValueError(
                f"low and high are distances to one under 'one minus log', hence at most 1, "
                f"got [{self.low:g}, {self.high:g}]"
            )

    def at(self, u: float) -> float:
        """The value at `u` in [0, 1), to three significant digits: what a report prints is then what ran."""
        if self.scale == "linear":
            return _three_digits(self.low + u * (self.high - self.low))
        value = _three_digits(self.low * (self.high / self.low) ** u)
        return value if self.scale == "log" else round(1 - value, 12)

    def share(self, value: float) -> float:
        """The `u` at which `at` gives this value, rounding apart; below 0 or above 1 outside of the range."""
        if self.scale == "linear":
            return (value - self.low) / (self.high - self.low)
        measured = value if self.scale == "log" else 1 - value
        return math.log(measured / self.low) / math.log(self.high / self.low) if measured > 0 else -math.inf

    def __str__(self) -> str:
        if self.scale == "one minus log":
            return f"1 − ({self.low:g} … {self.high:g}), log"
        return f"{self.low:g} … {self.high:g}, {self.scale}"


@dataclass(frozen=True)
class Choice:
    """One of a few values."""

    options: tuple[Setting, ...]

    def at(self, u: float) -> Setting:
        """The option at `u` in [0, 1)."""
        return self.options[int(u * len(self.options))]

    def __str__(self) -> str:
        return " | ".join(str(option) for option in self.options)


Space = Mapping[str, Range | Choice]


def trials(space: Space, count: int, seed: int) -> list[dict[str, Setting]]:
    """The first `count` points of a scrambled Sobol sequence over the space.

    Quasi-random rather than adaptive: every optimizer then gets the same budget in the same form, in any order, on any
    number of workers. The first K points of a longer search are the search with K trials.
    """
    if not space:
        return [{} for _ in range(count)]
    from scipy.stats import qmc  # takes longer to import than all else that a card needs

    points = qmc.Sobol(len(space), scramble=True, rng=seed).random_base2(max(count - 1, 1).bit_length())[:count]
    return [
        {name: dimension.at(float(u)) for (name, dimension), u in zip(space.items(), point, strict=True)}
        for point in points
    ]


def edge(dimension: Range | Choice | Setting, value: Setting) -> Side | None:
    """The edge at which a value lies, within 5 % of the range on its own scale; None within, and for what is no range.

    On the scale `"one minus log"` the edge `"high"` is that next to one, where `distance to one = low`.
    """
    if not isinstance(dimension, Range) or isinstance(value, bool) or not isinstance(value, int | float):
        return None
    share = dimension.share(value)
    if EDGE < share < 1 - EDGE:
        return None
    upwards = dimension.scale != "one minus log"
    return "high" if (share > 0.5) == upwards else "low"


def extended(dimension: Range, side: Side) -> Range | None:
    """The range, continued beyond one edge; None if there is nothing beyond.

    By a factor of ten on the logarithmic scales, where a distance to one ends at 1 and at 1e-10. By half of its width
    on the linear one, where values stay positive: below, at most by a factor of ten.
    """
    low, high = dimension.low, dimension.high
    match dimension.scale, side:
        case "log", "low":
            low /= 10
        case "log", "high":
            high *= 10
        case "linear", "low":
            low = max(low - (high - low) / 2, low / 10)
        case "linear", "high":
            high += (high - low) / 2
        case _, "low":  # far from one
            high = min(high * 10, 1.0)
        case _, "high":
            low = max(low / 10, min(low, NEAREST_TO_ONE))
    longer = replace(dimension, low=float(f"{low:.12g}"), high=float(f"{high:.12g}"))  # 0.07, not 0.06999999999999999
    return None if longer == dimension else longer


def read_spaces(path: Path) -> dict[str, dict[str, Range | Choice | Setting]]:
    """Per optimizer, the settings that a TOML file declares: a range, a choice, or a value, which fixes the setting.

    ```toml
    ["my_module:MyOptimizer"]
    lr = [1e-4, 1.0]                                                # a range over its logarithm
    momentum = { low = 0.01, high = 0.5, scale = "one minus log" }  # its distance to one; or "linear", "log"
    nesterov = { one_of = [true, false] }
    weight_decay = 0.01                                             # fixed
    ```

    Raises:
        ValueError: what is wrong, with file, table and key.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:  # of TOML, or of UTF-8
        hint = '; a name with a colon needs quotes, ["module:Class"]' if "table declaration" in str(error) else ""
        raise ValueError(f"{path}: {error}{hint}") from error
    spaces: dict[str, dict[str, Range | Choice | Setting]] = {}
    for optimizer, settings in tables.items():
        if not isinstance(settings, dict):
            raise ValueError(f'{path}: {optimizer}: no optimizer stands above it, as [sgd] or ["module:Class"]')
        space = spaces[optimizer] = {}
        for name, value in settings.items():
            try:
                space[name] = dimension(value)
            except ValueError as error:
                raise ValueError(f"{path}: [{optimizer}] {name}: {error}") from error
        tuned = [name for name, value in space.items() if isinstance(value, Range | Choice)]
        if len(tuned) > MOST_TUNED:
            raise ValueError(
                f"{path}: [{optimizer}] tunes {len(tuned)} settings, {', '.join(tuned)}; "
                f"at most {MOST_TUNED} can be searched with the trials of a race, so fix the others at a value"
            )
    return spaces


def dimension(value: Any) -> Range | Choice | Setting:
    """What a TOML or JSON value says of a setting; `ValueError` if it says nothing.

    Two numbers are a range over its logarithm, a table is `{low, high, scale}` or `{one_of}`, a single value is fixed.
    """
    match value:
        case bool() | str():
            return value
        case int() | float():
            if not math.isfinite(value):
                raise ValueError(f"a value must be finite, got {value}")
            return value
        case [low, high] if _is_number(low) and _is_number(high):
            return Range(float(low), float(high))
        case [*_]:
            raise ValueError(
                "a list is a range and has two numbers, [low, high]; for one of several values write "
                f"{{ one_of = {_in_toml(value)} }}"
            )
        case {"one_of": [_, *_] as options, **rest} if not rest and all(_is_setting(option) for option in options):
            return Choice(tuple(options))
        case {"one_of": _}:
            raise ValueError("one_of takes a list of values, { one_of = [true, false] }, and nothing beside it")
        case {"low": low, "high": high, **rest} if _is_number(low) and _is_number(high) and not rest.keys() - {"scale"}:
            scale: Any = rest.get("scale", "log")
            if scale not in get_args(Scale):
                raise unknown("scale", str(scale), get_args(Scale))
            return Range(float(low), float(high), scale)
        case {}:
            raise ValueError(
                f'a table is {{ low = 0.1, high = 10, scale = "log" }} or {{ one_of = [...] }}, got {_in_toml(value)}'
            )
    raise ValueError(f"a setting is a number, a string or true or false, got {value}")


def as_plain(dimension: Range | Choice | Setting) -> Any:
    """The dimension as a value for JSON: `dimension(as_plain(d)) == d`."""
    match dimension:
        case Range(low, high, scale):
            return {"low": low, "high": high, "scale": scale}
        case Choice(options):
            return {"one_of": list(options)}
    return dimension


def _three_digits(value: float) -> float:
    return float(f"{value:.3g}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_setting(value: object) -> bool:
    return isinstance(value, str | bool) or (isinstance(value, int | float) and math.isfinite(value))


def _in_toml(value: object) -> str:
    """As a person would write it, on one line."""
    match value:
        case bool():
            return str(value).lower()
        case str():
            return f'"{value}"'
        case Mapping():
            inner = ", ".join(f"{name} = {_in_toml(part)}" for name, part in value.items())
            return f"{{ {inner} }}"
        case Sequence():
            return f"[{', '.join(_in_toml(part) for part in value)}]"
    return str(value)
