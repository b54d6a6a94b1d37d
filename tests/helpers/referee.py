"""Holding races in a test: an executor that needs no other process, and someone who asks for races."""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import torch

from fallline.bench.protocol.design import Design
from fallline.bench.protocol.progress import RaceProgress
from fallline.bench.protocol.records import Place, Race
from fallline.bench.race.coordinator import race
from fallline.bench.race.store import Store
from fallline.bench.runs.run import Outcome, Run


class Inline(Executor):
    """Runs at once, here. Counts, and at a given run is interrupted as by Ctrl-C."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.calls: list[Any] = []
        self.interrupt_at = interrupt_at

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        if len(self.calls) == self.interrupt_at:
            raise KeyboardInterrupt
        self.calls.append(args)
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


class Referee:
    """Holds races on one set of records."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.progress: RaceProgress | None = None
        self.heard: list[Place] = []

    def race(
        self, *optimizers: str, task: str = "sprint:Sprint", executor: Executor | None = None, **design: Any
    ) -> Race:
        """Small unless asked otherwise: three trials, one of which is confirmed as it is on two seeds."""
        small = {"tasks": (task,), "trials": 3, "finalists": 1, "seeds": 2}
        asked = Design(**(small | design), optimizers=optimizers)
        about = {"command": "fallline race", "environment": {"torch": torch.__version__}}
        executor = executor or Inline()
        return race(asked, self.store, executor, max_pending=2, about=about, on_progress=self.watch, on_run=self.hear)

    def hear(self, race: Race, entry: Place, run: Run, outcome: Outcome) -> None:
        self.heard.append(entry)

    def watch(self, progress: RaceProgress) -> None:
        self.progress = progress
