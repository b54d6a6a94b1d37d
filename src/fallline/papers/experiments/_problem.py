"""An experiment with a problem that no task has: runs of its own, of one size, and a page of its own."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from fallline import LODO
from fallline.bench.common.spaces import Setting
from fallline.bench.protocol.stats import Interval
from fallline.bench.report.looks import INK
from fallline.bench.runs.run import Outcome, Run
from fallline.papers.experiments._experiment import Design, Entry, Experiment, Settings, Tuned, Tuning
from fallline.papers.experiments.page import Line, Page, Row, Section, Table
from fallline.papers.records import Record

Make = Callable[[Iterable[Tensor], Mapping[str, Any], torch.Generator], torch.optim.Optimizer]


def lodo(parameters: Iterable[Tensor], settings: Mapping[str, Any], draw: torch.Generator) -> torch.optim.Optimizer:
    """LODO; its network is drawn from the generator."""
    return LODO(parameters, generator=draw, **settings)


def adam(parameters: Iterable[Tensor], settings: Mapping[str, Any], draw: torch.Generator) -> torch.optim.Optimizer:
    """torch's Adam."""
    return torch.optim.Adam(parameters, settings["lr"], betas=(settings["beta1"], settings["beta2"]))


def momentum(parameters: Iterable[Tensor], settings: Mapping[str, Any], draw: torch.Generator) -> torch.optim.Optimizer:
    """torch's SGD, its momentum undampened."""
    return torch.optim.SGD(parameters, **settings)


def rmsprop(parameters: Iterable[Tensor], settings: Mapping[str, Any], draw: torch.Generator) -> torch.optim.Optimizer:
    """torch's RMSprop."""
    return torch.optim.RMSprop(parameters, **settings)


MAKERS: Mapping[str, Make] = {"lodo": lodo, "adam": adam, "momentum": momentum, "rmsprop": rmsprop}
"""By an entry's optimizer, up to the first hyphen: `lodo-sgd` is a LODO."""


def optimizer_of(
    name: str, parameters: Iterable[Tensor], settings: Mapping[str, Any], draw: torch.Generator
) -> torch.optim.Optimizer:
    """The optimizer of an entry."""
    return MAKERS[name.partition("-")[0]](parameters, settings, draw)


def entry(
    line: Line,
    settings: Mapping[str, Setting] | None = None,
    source: str = "",
    *,
    search: Mapping[str, Any] | None = None,
    quick: bool = True,
) -> Entry:
    """An entry that is named as its line is."""
    return Entry(line.name, line.name, settings or {}, search or {}, source, line, quick)


class Problem(Experiment, ABC):
    """A problem of its own. A subclass has one case, whose runs it makes, and a page."""

    seeds: ClassVar[int] = 8
    quick_seeds: ClassVar[int] = 4
    steps: ClassVar[int]
    quick_steps: ClassVar[int]

    @classmethod
    def entries(cls) -> dict[str, Entry]:
        """All entries by their label."""
        return {one.label: one for case in cls.cpu for one in case.entries}

    def length(self, design: Design) -> int:
        """The number of steps of a run."""
        return self.quick_steps if design.quick else self.steps

    def tunings(self, design: Design) -> list[Tuning]:
        """Nothing is searched: every optimizer runs with its setting on the same seeds."""
        steps, seeds = self.length(design), range(design.seeds)
        return [
            Tuning(case, one, [Run(case.task, one.optimizer, {**one.settings, "steps": steps}, 0, test=True)], seeds)
            for case in self.cases(design)
            for one in case.entries
        ]

    @abstractmethod
    def run(self, run: Run) -> Outcome:
        """Run once. All that determines the run is in it, the number of steps too."""

    @abstractmethod
    def code(self) -> Sequence[Any]:
        """The functions, classes and modules behind a run's numbers."""

    @abstractmethod
    def page(self, record: Record) -> Page:
        """The page, from nothing but what the JSON file holds."""


def shown_settings(settings: Mapping[str, Setting] | None) -> Settings:
    """The settings of an optimizer, without the length of the run."""
    return {key: value for key, value in (settings or {}).items() if key != "steps"}


def settings_of(tuned: Tuned) -> Settings:
    """The settings that were confirmed, without the length of the run."""
    return shown_settings(tuned.settings)


def estimated(found: Mapping[str, Any] | None) -> Interval | None:
    """An interval as the record has it."""
    return Interval(**found) if found else None


class ProblemPage(ABC):
    """Builds the page of an own problem from its record."""

    title: ClassVar[str]
    differences_note: ClassVar[str] = (
        "As far as is known: the authors’ program could be read, the body of the paper could not."
    )
    settings_title: ClassVar[str] = "Settings"
    settings_head: ClassVar[tuple[str, str]]
    settings_note: ClassVar[str]
    colours: ClassVar[Mapping[str, tuple[str, str, str]]] = {}
    """Further colours of its figures."""

    def __init__(self, problem: type[Problem], record: Record) -> None:
        self.problem, self.record, self.results = problem, record, record["results"]
        self.entries: dict[str, Any] = self.results["contenders"]
        self.seeds: int = record["design"]["seeds"]
        self.steps: int = self.results["steps"]
        self.lines = {name: one.line or Line(name, name, INK["text"]) for name, one in problem.entries().items()}
        self.names = [name for name in self.lines if self.curves_of(name)]
        """The optimizers with a run that finished."""

    def curves_of(self, name: str) -> dict[str, dict[str, list[float]]]:
        """The curves of an optimizer's confirming runs that finished, by seed."""
        found = {
            one["run"]["seed"]: one["outcome"]["curve"]
            for one in self.record["runs"]
            if one["run"]["optimizer"] == name and one["run"]["test"] and one["outcome"]["status"] == "finished"
        }
        return {str(seed): found[seed] for seed in sorted(found)}

    def page(self) -> Page:
        """All of it."""
        sections = [*self.sections(), self.settings()]
        sections.append(
            Section("How this differs from the paper", self.differences_note, points=self.problem.deviations)
        )
        lines = [self.lines[name] for name in self.names]
        return Page(self.title, self.lead(), sections, lines, self.colours)

    def settings(self) -> Section:
        """The settings of every optimizer, and where they are from."""
        rows = [Row([self.lines[name].label, *self.setting(name)], self.lines[name]) for name in self.listed()]
        table = Table("settings", ["Optimizer", *self.settings_head], rows)
        return Section(self.settings_title, self.settings_note, table)

    def listed(self) -> Sequence[str]:
        """The optimizers whose settings are shown."""
        return self.names

    @abstractmethod
    def lead(self) -> list[str]:
        """The paragraphs at the top."""

    @abstractmethod
    def sections(self) -> Sequence[Section]:
        """The results and figures."""

    @abstractmethod
    def setting(self, name: str) -> tuple[str, str]:
        """The settings of an optimizer, and their origin or space."""
