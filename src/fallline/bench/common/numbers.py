"""Numbers in words, the same in the terminal, on a page and in a table."""

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

TENTHS = 10.0
"""The scale at which `difference` prints tenths, as for percentages."""


class Estimate(Protocol):
    """A mean with the ends of its interval; None where a single value has none."""

    @property
    def mean(self) -> float: ...
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...


def number(value: float | None, digits: int = 3) -> str:
    """Significant digits with trailing zeros, so that a column of numbers can be compared."""
    if value is None:
        return "–"
    text = f"{value:#.{digits}g}".rstrip(".")
    return f"−{text[1:]}" if text.startswith("-") else text


def difference(value: float | None, scale: float) -> str:
    """A signed difference to something of size `scale`, to the last place that `number` prints of that size."""
    if value is None:
        return "–"
    if abs(value) > 100 * scale:
        return f"{value:+#.3g}".rstrip(".").replace("-", "−")
    places = max(0, 2 - math.floor(math.log10(scale))) if scale > 0 else 3
    return f"{value:+.{places}f}".replace("-", "−")


def spread(value: Estimate | None, scale: float | None = None) -> str:
    """`mean [low, high]`; with a scale, of a difference."""
    if value is None:
        return "–"
    numbers = (value.mean, value.low, value.high)
    mean, low, high = [number(one) if scale is None else difference(one, scale) for one in numbers]
    return mean if value.low is None else f"{mean} [{low}, {high}]"


def clock(seconds: float) -> str:
    """Minutes and seconds, `2:05`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def duration(seconds: float) -> str:
    """Seconds, or minutes and seconds from two minutes on."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{clock(seconds)} min"


def size(count: float) -> str:
    """Bytes with a decimal unit, `1.5 MB`."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def plural(count: int, noun: str) -> str:
    """`1 seed`, `1,000 seeds`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def describe(settings: Mapping[str, object]) -> str:
    """Settings in a line, the learning rate first: `lr 0.1, momentum 0.9`."""
    order = sorted(settings, key=lambda name: (name != "lr", name))
    values = {name: f"{value:g}" if isinstance(value, float) else value for name, value in settings.items()}
    return ", ".join(f"{name} {values[name]}" for name in order)
