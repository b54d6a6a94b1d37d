"""The design of a race: its stages, what is asked for, and the seeds of its runs.

Trials find settings, reruns choose among the best of them, fresh seeds confirm the choice. No decision looks at a test
set. Everyone gets the same number of runs at each stage.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any, Literal

from fallline.bench.common.seeds import derive

Stage = Literal["default", "trial", "choice", "seed"]
"""The name of a stage in the records: see below."""

DEFAULTS: Stage = "default"
"""Runs with the default settings, on the confirming seeds."""

TRIAL: Stage = "trial"
"""Points of the search."""

SELECTION: Stage = "choice"
"""Reruns of the best trials."""

CONFIRMATION: Stage = "seed"
"""Runs with the chosen settings on fresh seeds."""

STAGES: tuple[Stage, ...] = (DEFAULTS, TRIAL, SELECTION, CONFIRMATION)
CONFIRMING: tuple[Stage, ...] = (DEFAULTS, CONFIRMATION)
"""They share their seeds, and they alone look at the test set."""

TRACKS = ("tuned", "defaults")
TRACK_WORDS = {"tuned": "tuned", "defaults": "default settings"}

LOOKS = (1, 2, 4)
"""`--until-decided` judges at these multiples of the seeds, and shares its chance of a false claim among them."""

EXTENSION = 0.25
"""The share of the trials that `--extend` keeps back for ranges whose best lies at an edge."""


@dataclasses.dataclass(frozen=True)
class Design:
    """The design of a race. The same design on the same code and data is the same race."""

    tasks: tuple[str, ...]
    optimizers: tuple[str, ...]
    tracks: tuple[str, ...] = ("tuned",)
    trials: int = 20
    finalists: int = 3
    """Number of best trials to rerun; with 1 the best trial is confirmed as it is."""

    reruns: int = 3
    """Fresh seeds for each finalist, against the luck of the best among many."""

    seeds: int = 10
    seed: int = 0
    """The seed of the whole race: search, weights, order of the data."""

    baseline: str | None = None
    """The baseline to compare against; None: the best in choice that is not ours."""

    until_decided: bool = False
    """Add seeds where there is no verdict yet, up to four times as many."""

    extend: bool = False
    """Move the last quarter of the trials beyond an edge at which the best lies."""

    spaces: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """Changes to search spaces, by optimizer, as plain values."""

    device: str = "cpu"

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> "Design":
        """From what JSON made of it."""
        tuples: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in plain.items()}
        return cls(**tuples)

    @property
    def looks(self) -> tuple[int, ...]:
        """The numbers of seeds at which a verdict is given."""
        return tuple(self.seeds * look for look in LOOKS) if self.until_decided else (self.seeds,)

    @property
    def first_trials(self) -> int:
        """Trials before a look at the edges."""
        return self.trials - math.floor(EXTENSION * self.trials) if self.extend else self.trials

    @property
    def reruns_each(self) -> int:
        """Reruns of a finalist."""
        return self.reruns if self.finalists > 1 else 0


def title(task: str, track: str, tracks: Collection[str]) -> str:
    """The heading of a comparison: its task, and its track where a race has several."""
    return f"{task}, {TRACK_WORDS[track]}" if len(tracks) > 1 else task


def run_seed(design: Design, stage: str, number: int) -> int:
    """The seed of the `number`-th run of a stage, whose optimizer it does not depend on: that makes pairs."""
    return derive(design.seed, CONFIRMATION if stage in CONFIRMING else stage, number)
