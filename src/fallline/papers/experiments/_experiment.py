"""What an experiment is: runs in stages, numbers from them, and a page that shows the numbers."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from typing import Any, ClassVar, Literal

from fallline.bench.runs.checkpoint import Checkpoint
from fallline.bench.runs.run import Outcome, Run
from fallline.papers.experiments.page import Page

Scale = Literal["cpu", "full"]


@dataclasses.dataclass(frozen=True)
class Design:
    """What is asked for."""

    experiment: str
    quick: bool = False
    seeds: int = 8
    optimizers: tuple[str, ...] = ()
    """Who takes part; empty for everyone, or with `quick` for those that matter."""

    scale: Scale | None = None
    """At which size, of an experiment that has two."""

    cases: tuple[str, ...] = ()
    """Parts of the names of the cases that are run; empty for all."""

    trials: int | None = None
    """Settings that are tried of each, instead of the experiment's own number."""

    device: str = "cpu"
    """Where models train."""


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
    cpu_time: ClassVar[str] = "not measured"
    """Of the whole experiment as published, on two cores; a time that nobody has measured says so."""

    gpu_time: ClassVar[str] = "not measured"
    """The same on a GPU."""

    not_run: ClassVar[str] = ""
    """Why there is no record of it, if there is a reason."""

    @abstractmethod
    def stages(self, design: Design) -> Stages:
        """Yields the runs of a stage, and is sent what came of them: a later stage may choose by an earlier one.

        All that determines a run is in it, the number of steps too. `Run.test` is false for runs that only choose.
        """

    @abstractmethod
    def run(self, run: Run) -> Outcome:
        """Run once, in a worker. What it raises is a failed run, and the experiment goes on."""

    def resume(self, run: Run, checkpoint: Checkpoint) -> Outcome:
        """Run once, going on from a checkpoint if there is one; by default without any."""
        return self.run(run)

    @abstractmethod
    def code(self) -> Sequence[Any]:
        """The functions, classes and modules behind a run's numbers; the library is always among them.

        A run whose code has changed is run again.
        """

    def identity(self, run: Run) -> str | None:
        """The code and the data behind this run, where that differs from run to run; None: all is in `code`."""
        return None

    @abstractmethod
    def results(self, design: Design, done: Sequence[Done]) -> dict[str, Any]:
        """The numbers that the page prints, ready for JSON."""

    @abstractmethod
    def page(self, record: Record) -> Page:
        """The page, from nothing but what the JSON file holds."""

    def needs(self, design: Design | None = None) -> tuple[str, ...]:
        """The sets of data that its runs read; without a design those of all runs that it can make."""
        return ()

    def rows(self, design: Design) -> Callable[[Run], str]:
        """Under which name whoever watches sees a run."""
        return lambda run: run.optimizer
