"""What an experiment is: runs in stages, numbers from them, and a page that shows the numbers."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from typing import Any, ClassVar

from fallline.bench.repro.page import Page
from fallline.bench.train import Outcome, Run


@dataclasses.dataclass(frozen=True)
class Design:
    """What is asked for."""

    experiment: str
    quick: bool = False
    seeds: int = 8
    optimizers: tuple[str, ...] = ()
    """Who takes part; empty for everyone, or with `quick` for those that matter."""


Done = tuple[Run, Outcome]
Stages = Generator[list[Run], list[Done], None]
Record = dict[str, Any]
"""What the JSON file holds: see `reproduce.compose`."""


class Experiment(ABC):
    """One experiment of a paper. A subclass is an experiment: the command asks for no more than this."""

    name: ClassVar[str]
    summary: ClassVar[str]
    """One sentence: the problem, who takes part."""

    contenders: ClassVar[tuple[str, ...]]
    """The names that a design may choose from."""

    seeds: ClassVar[int] = 8
    quick_seeds: ClassVar[int] = 4

    @abstractmethod
    def stages(self, design: Design) -> Stages:
        """Yields the runs of a stage, and is sent what came of them: a later stage may choose by an earlier one.

        All that determines a run is in it, the number of steps too. `Run.test` is false for runs that only choose.
        """

    @abstractmethod
    def run(self, run: Run) -> Outcome:
        """Run once, in a worker. What it raises is a failed run, and the experiment goes on."""

    @abstractmethod
    def code(self) -> Sequence[Any]:
        """The functions, classes and modules behind a run's numbers; the library is always among them.

        A run whose code has changed is run again.
        """

    @abstractmethod
    def results(self, design: Design, done: Sequence[Done]) -> dict[str, Any]:
        """The numbers that the page prints, ready for JSON."""

    @abstractmethod
    def page(self, record: Record) -> Page:
        """The page, from nothing but what the JSON file holds."""
