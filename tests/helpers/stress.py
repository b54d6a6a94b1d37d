"""Runs that draw on every random stream, and optimizers that hide things: what resumes here resumes anywhere."""

import dataclasses
import json
import os
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, ClassVar

import torch
from referee import Inline
from sprint import Sprint
from torch import Tensor, nn

from fallline.bench.protocol.design import Design
from fallline.bench.protocol.progress import RaceProgress
from fallline.bench.protocol.records import Race
from fallline.bench.race.coordinator import race
from fallline.bench.race.store import Store
from fallline.bench.runs.run import Outcome

TIMES = ("times", "cpu_seconds", "wall_seconds")


class Interrupted(Exception):
    """A run was cut short, as by a kill."""


class Noisy(Sprint):
    """Dropout, batch normalisation, batches that are augmented, noise from torch's own generator."""

    steps: ClassVar[int] = 40
    evaluations: ClassVar[int] = 8
    interrupt_at: ClassVar[int | None] = None
    """After so many losses of which a gradient was to be taken."""

    losses_seen: ClassVar[int] = 0

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Tanh(), nn.Linear(8, 3))

    def batches(self, order: torch.Generator) -> Iterator[Any]:
        for batch in super().batches(order):
            yield batch, 0.1 * torch.randn(16, 4, generator=order)

    def losses(self, model: nn.Module, batch: Any) -> Tensor:
        if torch.is_grad_enabled():  # not those of which batch norm's statistics are taken anew
            if Noisy.losses_seen == Noisy.interrupt_at:
                raise Interrupted
            Noisy.losses_seen += 1
        drawn, jitter = batch
        points, labels = self.points(0)
        noise = jitter + 0.1 * torch.randn(16, 4)
        return nn.functional.cross_entropy(model(points[drawn] + noise), labels[drawn], reduction="none")


class Long(Noisy):
    """Many measurements: long enough to be killed between one and the next."""

    steps: ClassVar[int] = 75
    evaluations: ClassVar[int] = 15


class Wide(torch.optim.Optimizer):
    """Its state is more precise than its parameters, and counts: torch casts both when it loads them."""

    def __init__(self, params: Iterable[Tensor], lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state |= {"sum": torch.zeros_like(p, dtype=torch.float64), "count": torch.tensor(0)}
                state["count"] += 1
                state["sum"] += p.grad.double() / 3
                p -= (group["lr"] * state["sum"] / state["count"]).float()


class Hidden(torch.optim.SGD):
    """Counts its steps in an attribute, which no state_dict knows."""

    steps = 0

    def step(self, closure: Any = None) -> None:
        self.steps += 1
        for group in self.param_groups:
            group["lr"] /= self.steps
        super().step(closure)


class Moving(torch.optim.SGD):
    """Keeps a tensor in an attribute."""

    def __init__(self, params: Iterable[Tensor], lr: float = 0.1) -> None:
        super().__init__(params, lr)
        self.drift = [torch.zeros(())]

    def step(self, closure: Any = None) -> None:
        self.drift[0] += 0.01
        for group in self.param_groups:
            group["lr"] /= 1 + self.drift[0].item()
        super().step(closure)


class Secretive(torch.optim.SGD):
    """Has no state that could be saved."""

    @property
    def state_dict(self) -> Any:
        raise AttributeError("state_dict")


class Unspeakable(torch.optim.SGD):
    """Its state cannot be written down."""

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "rule": lambda: None}


class Killing(torch.optim.SGD):
    """Takes its process along at its fifth step."""

    steps = 0

    def step(self, closure: Any = None) -> None:
        self.steps += 1
        if self.steps == 5:
            os._exit(9)
        super().step(closure)


class Leaving(torch.optim.SGD):
    """Asks Python to end at its fifth step."""

    steps = 0

    def step(self, closure: Any = None) -> None:
        self.steps += 1
        if self.steps == 5:
            sys.exit("enough")
        super().step(closure)


def hold(
    store: Store,
    *optimizers: str,
    executor: Executor | None = None,
    watch: Callable[[RaceProgress], None] = lambda progress: None,
    **design: Any,
) -> Race:
    """A race with a checkpoint at every measurement, here unless elsewhere; small unless asked otherwise."""
    small = {"tasks": ("stress:Noisy",), "trials": 3, "finalists": 2, "reruns": 1, "seeds": 2}
    asked = Design(**(small | design), optimizers=optimizers)
    return race(
        asked,
        store,
        executor or Inline(),
        max_pending=4,
        about={"environment": {}},
        on_progress=watch,
        checkpoint_every=0.0,
    )


def numbers(outcome: Outcome) -> dict[str, Any]:
    """All of an outcome that does not depend on the clock."""
    return {name: value for name, value in dataclasses.asdict(outcome).items() if name not in TIMES}


def contents(path: Path) -> dict[str, list[Any]]:
    """All that a database says of runs and their places, but for the clock."""
    db = sqlite3.connect(path)
    try:
        runs = db.execute(
            "SELECT key, task, optimizer, settings, seed, status, score, outcome FROM runs ORDER BY key"
        ).fetchall()
        entries = db.execute("SELECT * FROM entries ORDER BY race, task, optimizer, stage, number, repeat").fetchall()
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    finally:
        db.close()
    return {"runs": [(*run[:-1], numbers(Outcome(**json.loads(run[-1])))) for run in runs], "entries": entries}
