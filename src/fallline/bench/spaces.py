"""Search spaces: what a setting may be, and the quasi-random trials drawn from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from scipy.stats import qmc

Setting = float | str
"""A value of a hyperparameter."""


@dataclass(frozen=True)
class Range:
    """An interval of positive numbers, `low` to `high`.

    `scale="log"` spreads the trials evenly over the logarithm, `"linear"` over the value. `"one minus log"` is for
    momenta: the *distance to one* lies between `low` and `high`, evenly over its logarithm.
    """

    low: float
    high: float
    scale: Literal["log", "linear", "one minus log"] = "log"

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high:
            raise ValueError(f"a range needs 0 < low < high, got low={self.low!r}, high={self.high!r}")

    def at(self, u: float) -> float:
        """The value at `u` in [0, 1), to three significant digits: what a report prints is then what ran."""
        if self.scale == "linear":
            return _three_digits(self.low + u * (self.high - self.low))
        value = _three_digits(self.low * (self.high / self.low) ** u)
        return value if self.scale == "log" else round(1 - value, 12)

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
    points = qmc.Sobol(len(space), scramble=True, rng=seed).random_base2(max(count - 1, 1).bit_length())[:count]
    return [
        {name: dimension.at(float(u)) for (name, dimension), u in zip(space.items(), point, strict=True)}
        for point in points
    ]


def _three_digits(value: float) -> float:
    return float(f"{value:.3g}")
