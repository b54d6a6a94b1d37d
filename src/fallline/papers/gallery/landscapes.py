"""Landscapes of two numbers: what they are, who walks on them, and the search for everyone's settings.

Each optimizer gets the same number of trials on the same landscape from the same start, drawn as those of a race are
(Sobol points of its own space), and the schedules of a race: a cosine, but for CoolMomentum, which cools instead.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fallline import KOALA
from fallline.bench.common.seeds import derive
from fallline.bench.common.spaces import Choice, Range, Setting, Space
from fallline.bench.contenders import CONTENDERS, lr_factor
from fallline.bench.protocol.search import Search
from fallline.bench.race.workers import local_pool
from fallline.bench.runs.run import Outcome

Array = NDArray[np.float64]
Value = Callable[[Any, Any], Any]
Slope = Callable[[float, float], tuple[float, float]]


@dataclass(frozen=True)
class Landscape:
    """A function of two numbers, and the walk on it."""

    name: str
    title: str
    formula: str
    value: Value
    """Of numbers or arrays."""

    slope: Slope
    """Its gradient, written out: a step of the tape would take longer than most optimizers' steps."""

    start: tuple[float, float]
    goal: tuple[float, float]
    """Where the least value lies; it is 0, and every KOALA knows that a loss should become 0."""

    bounds: tuple[tuple[float, float], tuple[float, float]]
    """What a picture shows: of x and of y."""

    levels: tuple[float, ...]
    """Of the contour lines."""

    steps: int
    length: tuple[float, float]
    """The range of learning rates of optimizers that normalise their gradient: shares of the width."""

    rate: tuple[float, float]
    """The same of those that do not: around 1 / curvature."""

    jitter: float = 0.0
    """Noise: every step sees the landscape shifted by a normal draw of this deviation in x and in y."""

    fresh: int = 0
    """Starts on which nothing was tuned, from which the chosen settings walk as well."""


# --- the landscapes ---


def rosenbrock(x: Any, y: Any) -> Any:
    """(1 - x)² + 100 (y - x²)²."""
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def rosenbrock_slope(x: float, y: float) -> tuple[float, float]:
    """Its gradient."""
    off = y - x * x
    return -2 * (1 - x) - 400 * x * off, 200 * off


def rastrigin(x: Any, y: Any) -> Any:
    """x² + y² + 20 - 10 cos 2πx - 10 cos 2πy: about a hundred minima within ±5, one of them 0."""
    return x**2 + y**2 + 20 - 10 * (np.cos(2 * np.pi * x) + np.cos(2 * np.pi * y))


def rastrigin_slope(x: float, y: float) -> tuple[float, float]:
    """Its gradient."""
    turn = 2 * math.pi
    return 2 * x + 10 * turn * math.sin(turn * x), 2 * y + 10 * turn * math.sin(turn * y)


BEND, WAVE, WALL, FALL = 0.8, 1.3, 25.0, 0.1
"""Of the winding valley: how far it swings, how often, how steep its walls are and how flat its floor."""


def valley(x: Any, y: Any) -> Any:
    """½ 25 (y - 0.8 sin 1.3x)² + ½ 0.1 x²."""
    return 0.5 * WALL * (y - BEND * np.sin(WAVE * x)) ** 2 + 0.5 * FALL * x**2


def valley_slope(x: float, y: float) -> tuple[float, float]:
    """Its gradient."""
    off = y - BEND * math.sin(WAVE * x)
    return FALL * x - WALL * off * BEND * WAVE * math.cos(WAVE * x), WALL * off


LANDSCAPES = {
    one.name: one
    for one in (
        Landscape(
            "rosenbrock",
            "Rosenbrock’s valley",
            "(1 − x)² + 100 (y − x²)²",
            rosenbrock,
            rosenbrock_slope,
            start=(-1.2, 1.6),
            goal=(1.0, 1.0),
            bounds=((-1.75, 1.75), (-0.45, 1.85)),
            levels=tuple(10.0 ** (k / 3) for k in range(-3, 9)),
            steps=150,
            length=(1e-2, 1.0),
            rate=(1e-4, 1e-2),
        ),
        Landscape(
            "rastrigin",
            "Rastrigin’s egg box",
            "x² + y² + 20 − 10 cos 2πx − 10 cos 2πy",
            rastrigin,
            rastrigin_slope,
            start=(-3.4, 2.7),
            goal=(0.0, 0.0),
            bounds=((-4.4, 4.4), (-1.6, 3.4)),
            levels=tuple(float(level) for level in range(4, 60, 6)),
            steps=80,
            length=(1e-2, 3.0),
            rate=(1e-4, 3e-2),
            fresh=8,
        ),
        Landscape(
            "valley",
            "A winding valley, seen through noise",
            "½ 25 (y − 0.8 sin 1.3x)² + ½ 0.1 x²",
            valley,
            valley_slope,
            start=(-4.3, 1.5),
            goal=(0.0, 0.0),
            bounds=((-5.0, 1.6), (-1.75, 1.9)),
            levels=tuple(10.0 ** (k / 3) for k in range(-4, 7)),
            steps=120,
            length=(1e-2, 1.0),
            rate=(1e-3, 1e-1),
            jitter=0.15,
        ),
    )
}

MOMENTUM = Range(0.01, 1.0, "one minus log")
"""The same for all that have one."""


def space(name: str, landscape: Landscape) -> Space:
    """What the trials of a contender search: two or three settings, those of a race without weight decay."""
    length, rate = Range(*landscape.length), Range(*landscape.rate)
    filtering: Space = {"lr": Range(0.1, 3.0), "q": Range(1e-4, 10.0)}
    spaces: dict[str, Space] = {
        "sgd": {"lr": rate, "momentum": MOMENTUM},
        "adamw": {"lr": length, "beta1": MOMENTUM},
        "coolmomentum": {"lr": rate, "rho_0": MOMENTUM, "schedule": Choice(("exponential", "linear"))},
        "koala-v": filtering,
        "koala-m": {"lr": Range(0.1, 3.0), "qv": Range(1e-4, 10.0)},
        "koala-pp": filtering,
        "koala-adam": {"q": Range(1e-4, 10.0), "beta": Range(0.02, 1.0, "one minus log")},
        "arturo": {"lr": Range(1e-3, 10.0), "reg_weight": Range(1e-2, 10.0), "process_noise": Range(1e-3, 10.0)},
        "lodo": {"lr": Range(landscape.rate[0], 1.0), "meta_lr": Range(1e-4, 1e-1), "beta": MOMENTUM},
    }
    return spaces[name]


WALKERS = ("sgd", "adamw", "coolmomentum", "koala-v", "koala-pp", "koala-m", "koala-adam", "arturo", "lodo")
"""Who walks. Muon and Orthogonal KOALA are for matrices, and two numbers are none."""

TRIALS = 16
"""Of each contender on each landscape."""

TAIL = 0.1
"""The score of a trial is its mean loss over this share of its steps, the last."""


# --- a walk ---


@dataclass(frozen=True)
class Walk:
    """What one contender did."""

    name: str
    settings: Mapping[str, Setting]
    way: Array
    """Where it was, the start first: shape (steps + 1, 2). Of a KOALA, the filtered points."""

    losses: Array
    """Without noise, at these points."""

    @property
    def tail(self) -> Array:
        """The losses of the last tenth of the steps."""
        return self.losses[-max(1, round(TAIL * len(self.losses))) :]

    @property
    def score(self) -> float:
        """Mean loss over the last tenth of the steps; infinite where it is lost."""
        return float(self.tail.mean()) if np.isfinite(self.losses).all() else math.inf

    @property
    def outcome(self) -> Outcome:
        """What a search sees of it."""
        steps = len(self.way) - 1
        return Outcome("diverged", steps) if math.isinf(self.score) else Outcome("finished", steps, score=self.score)


FAR = 1e6
"""A walk that comes farther than this from the origin is lost, and ended."""


def walk(
    landscape: Landscape, name: str, settings: Mapping[str, Setting], seed: int, start: Sequence[float] | None = None
) -> Walk:
    """One walk with the library's optimizer, or torch's, in float64."""
    contender = CONTENDERS[name]
    start = landscape.start if start is None else start
    point = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))
    plain = {**contender.variant, **settings, "weight_decay": 0.0}
    torch.manual_seed(derive("gallery", seed, "network"))  # LODO draws its network from it
    optimizer: Any = contender.make([point], plain, landscape.steps)
    filters = isinstance(optimizer, KOALA)
    rates = [(group, key, group[key]) for group in optimizer.param_groups for key in contender.rates]
    shifts = np.random.default_rng(derive("gallery", seed, "noise")).normal(0, landscape.jitter, (landscape.steps, 2))
    way = np.full((landscape.steps + 1, 2), np.nan)
    way[0] = start
    for step in range(1, landscape.steps + 1):
        for group, key, rate in rates:
            group[key] = rate * lr_factor(contender.schedule, step, landscape.steps)
        if filters:
            optimizer.predict()
        x, y = (point.detach().numpy() + shifts[step - 1]).tolist()
        point.grad = torch.tensor(landscape.slope(x, y), dtype=torch.float64)
        if filters:
            optimizer.update(landscape.value(x, y))
        else:
            optimizer.step()
        way[step] = point.detach().numpy()
        if not np.abs(way[step]).max() < FAR:
            break
    return Walk(name, settings, way, np.asarray(landscape.value(way[:, 0], way[:, 1])))


@dataclass(frozen=True)
class Found:
    """What the search found for one contender."""

    walk: Walk
    """The best of its trials."""

    fresh: tuple[Walk, ...]
    """Of the same settings, from starts on which nothing was tuned."""

    def arrived(self, landscape: Landscape, within: float = 0.5) -> int:
        """How many of the fresh walks end no farther than this from the goal, in x and in y."""
        return sum(bool((np.abs(one.way[-1] - landscape.goal) < within).all()) for one in self.fresh)


def search(landscape: Landscape, name: str, seed: int, count: int = TRIALS) -> Found:
    """The best of so many trials, which share the noise; and its settings from fresh starts, the same for all."""
    tuning = Search.drawn(space(name, landscape), count, derive("gallery", seed, landscape.name, name))
    walks = [walk(landscape, name, settings, seed) for settings in tuning.plan]
    for number, one in enumerate(walks):
        tuning.add(number, one.outcome)
    chosen = walks[tuning.chosen_trial or 0]  # the first where all are lost
    (left, right), (low, high) = landscape.bounds
    starts = np.random.default_rng(derive("gallery", seed, "starts")).uniform(
        (left, low), (right, high), (landscape.fresh, 2)
    )
    fresh = tuple(walk(landscape, name, chosen.settings, seed, start.tolist()) for start in starts)
    return Found(chosen, fresh)


def search_all(landscape: Landscape, seed: int, jobs: int, count: int = TRIALS) -> list[Found]:
    """The search of everyone; the longest first, so that all workers end together."""
    slowest_first = WALKERS[::-1]
    if jobs == 1:
        return [search(landscape, name, seed, count) for name in slowest_first]
    with local_pool(jobs) as pool:
        waiting = [pool.submit(search_named, landscape.name, name, seed, count) for name in slowest_first]
        return [one.result() for one in waiting]


def search_named(landscape: str, name: str, seed: int, count: int) -> Found:
    """The same in another process, which knows the landscape by its name."""
    return search(LANDSCAPES[landscape], name, seed, count)
