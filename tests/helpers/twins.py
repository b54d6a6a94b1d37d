"""Races that nobody has run: a search and its seeds drawn from a distribution that is known."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fallline.bench.common.spaces import Setting
from fallline.bench.contenders import get_contender
from fallline.bench.protocol.analysis import Results, analyse
from fallline.bench.protocol.comparison import ContenderResult, compare
from fallline.bench.protocol.design import Design
from fallline.bench.protocol.records import Place, Race
from fallline.bench.protocol.search import Search
from fallline.bench.race.store import Store
from fallline.bench.runs.run import Outcome, Run

TASK = "valley"
BEST_LR = 0.1
FLOOR = 0.2


@dataclasses.dataclass(frozen=True)
class Valley:
    """The loss of a run: a parabola in log10 lr, what its seed does to everyone, and noise of its own."""

    curvature: float = 0.05
    common: float = 0.01
    noise: float = 0.01
    worse: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """What some optimizers lose in addition, wherever they search."""

    trials: int = 8
    seeds: int = 10
    fixed_lr: float | None = None
    """What all searches find; None if each searches for itself."""

    wall: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Wall seconds of a run; 1 unless given."""

    def truth(self, name: str, lr: float) -> float:
        """The mean loss of a setting."""
        return FLOOR + self.curvature * math.log10(lr / BEST_LR) ** 2 + self.worse.get(name, 0.0)

    def runs(self, design: Design) -> Iterator[tuple[Place, dict[str, Setting], Outcome]]:
        """All runs of a race: trials, reruns of the best, seeds."""
        rng = np.random.default_rng(design.seed)
        days = rng.normal(0, self.common, design.seeds)
        for name in design.optimizers:

            def outcome(lr: float, day: float = 0.0, name: str = name) -> Outcome:
                loss = self.truth(name, lr) + day + rng.normal(0, self.noise)
                curve = {"step": [0.0, 40.0], "gradient evaluations": [0.0, 40.0], "train loss": [None, loss]}
                return Outcome(
                    "finished",
                    steps=40,
                    score=loss,
                    result={"loss": loss},
                    curve={**curve, "validation loss": [2.0, loss]},
                    times={"cpu seconds": [0.0, 1.0], "wall seconds": [0.0, 1.0]},
                    gradient_evaluations=40,
                    cpu_seconds=1.0,
                    wall_seconds=self.wall.get(name, 1.0),
                )

            rates = self.fixed_lr or 10 ** rng.uniform(-3, 0.5, design.trials)
            rates = np.broadcast_to(rates, design.trials).tolist()
            scores = []
            for number, lr in enumerate(rates):
                trial = outcome(lr)
                scores.append(trial.score)
                yield Place(TASK, name, "trial", number), {"lr": lr}, trial
            means = {}
            for number in sorted(range(design.trials), key=scores.__getitem__)[: design.finalists]:
                reruns = [outcome(rates[number]) for _ in range(design.reruns_each)]
                means[number] = np.mean([rerun.score for rerun in reruns])
                for repeat, rerun in enumerate(reruns):
                    yield Place(TASK, name, "choice", number, repeat), {"lr": rates[number]}, rerun
            chosen = rates[min(means, key=lambda number: (means[number], number))]
            for number, day in enumerate(days):
                yield Place(TASK, name, "seed", number), {"lr": chosen}, outcome(chosen, day)

    def race(self, seed: int, *optimizers: str, **design: Any) -> tuple[Design, Race]:
        """What was asked for, and how it is written down."""
        asked = {"trials": self.trials, "seeds": self.seeds, "seed": seed, "baseline": "sgd"} | design
        ready = Design(tasks=(TASK,), optimizers=optimizers or ("sgd", "sgd#2"), **asked)
        # A band of zero: every difference that is sure counts.
        about = {"summary": "", "steps": 40, "held_out": True, "floor": None, "equivalence": 0.0}
        entered = {name: get_contender(name).describe() for name in ready.optimizers}
        setting = {"left_out": {}, "tasks": {TASK: about}, "contenders": {TASK: entered}}
        return ready, Race(f"race {seed}", dataclasses.asdict(ready), setting, "2026-01-01")

    def results(self, seed: int, *optimizers: str, **design: Any) -> Results:
        """A race's results, straight from its runs."""
        asked, race = self.race(seed, *optimizers, **design)
        entries = {
            name: ContenderResult(name, about, search=Search(count=asked.trials, top=asked.finalists))
            for name, about in race.setting["contenders"][TASK].items()
        }
        for place, settings, outcome in self.runs(asked):
            entries[place.optimizer].add(place.stage, place.number, place.repeat, settings, outcome)
        found = compare(asked, TASK, "tuned", race.setting["tasks"][TASK], list(entries.values()))
        return Results(race, asked, [analyse(asked, found)], [], 0)

    def recorded(self, store: Store, seed: int, *optimizers: str, **design: Any) -> Race:
        """The same, written down run by run."""
        asked, race = self.race(seed, *optimizers, **design)
        store.open_race(race)
        for entry, settings, outcome in self.runs(asked):
            key = f"{seed} {dataclasses.astuple(entry)}"
            store.add(key, Run(TASK, entry.optimizer, settings, entry.number), outcome)
            store.enter(race.id, entry, key)
        return race
