"""An experiment of a paper as data, and what makes runs and numbers of it.

An experiment has `Case`s, the problems, each with its `Entry`s, the optimizers with their settings. Most are training
tasks of the benchmark, at the published size (`full`) and at one for two cores (`cpu`). At full scale the published
setting runs on every seed. A published setting may not fit a run of a hundredth of the length, so at CPU scale a few
trials around it are run, the same number for every optimizer, and the best is confirmed on fresh seeds.

An experiment with a problem that no task has overrides `run`, and has one size.
"""

import dataclasses
import inspect
import json
import math
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from fallline.bench.common.names import unknown
from fallline.bench.common.seeds import derive
from fallline.bench.common.spaces import Choice, Range, Setting, Space
from fallline.bench.contenders import get_contender
from fallline.bench.protocol.search import Search
from fallline.bench.protocol.stats import interval
from fallline.bench.race.coordinator import RaceError, code_behind
from fallline.bench.report.looks import Line
from fallline.bench.runs.checkpoint import Checkpoint
from fallline.bench.runs.loop import train
from fallline.bench.runs.run import Outcome, Run
from fallline.bench.tasks import get_task
from fallline.papers.experiments._case_page import CasePage
from fallline.papers.experiments.page import Page
from fallline.papers.records import Record, Scale

MEASURES = {"accuracy": "%", "error": "%", "loss": "nats", "perplexity": ""}
"""What a published number may be, with its unit; all are made from `loss` and `accuracy` of `Outcome.result`."""

QUICK = {"steps": "10", "evaluations": "2"}
"""What `--quick` makes of a task: enough to see that all of it works."""

WORD = r"[\w-]+"
"""A word in the name of a case."""

OWN = "repro:"
"""How the task of a run begins whose problem is an experiment's own."""

TRIAL_SEED = 0
"""The seed of all trials; the confirming seeds are 1, 2, 3, ..., the same for every optimizer."""

Done = tuple[Run, Outcome]
Stages = Generator[list[Run], list[Done], None]
Settings = dict[str, Setting]


@dataclass(frozen=True)
class Design:
    """What is asked for."""

    experiment: str
    quick: bool = False
    seeds: int = 8
    optimizers: tuple[str, ...] = ()
    """The contenders that take part; empty for all, or with `quick` for those that matter."""

    scale: Scale | None = None
    """The size, of an experiment that has two."""

    cases: tuple[str, ...] = ()
    """Parts of the names of the cases to run; empty for all."""

    trials: int | None = None
    """The number of settings to try of each contender, instead of the experiment's own."""

    device: str = "cpu"
    """The device that models train on."""


@dataclass(frozen=True)
class Entry:
    """An optimizer in a case, with its settings."""

    label: str
    """Its name in tables; unique within the case."""

    optimizer: str
    """A contender's name, with its schedule: `sgd@step-0.1-0.3-0.6-0.9`."""

    settings: Mapping[str, Setting] = field(default_factory=dict)
    """The published setting, all of it; empty where there is none and everything is searched."""

    search: Mapping[str, float | Range | Choice] = field(default_factory=dict)
    """What the trials vary at CPU scale: a factor f means [value / f, value * f], evenly over the logarithm."""

    source: str = ""
    """Where the setting is from: paper and table; or `not published: ` and what was chosen."""

    line: Line | None = None
    """Its look; without one the page finds one."""

    quick: bool = True
    """Whether it takes part in a quick run when no contender is named."""

    def __post_init__(self) -> None:
        for name, width in self.search.items():
            value = self.settings.get(name)
            if isinstance(width, Range | Choice):
                continue
            if isinstance(value, bool | str | None) or value <= 0 or width <= 1:
                raise ValueError(
                    f"{self.label}: the factor {width:g} is about a positive {name}, not about {value!r}, and is over "
                    "1; for other settings give a Range or a Choice"
                )

    @property
    def space(self) -> Space:
        """The space that the trials search."""
        return {
            name: width if isinstance(width, Range | Choice) else around(float(self.settings[name]), width)
            for name, width in self.search.items()
        }

    def candidates(self, count: int, seed: int) -> list[Settings]:
        """The published setting first, if there is one, then others from the space: `count` in all.

        Where nothing is searched there is only the published setting.
        """
        published = dict(self.settings)
        if not self.search or (published and count == 1):
            return [published]
        return Search.drawn(self.space, count, seed, shared=published, first=published or None).plan


@dataclass(frozen=True)
class Case:
    """A problem of an experiment."""

    name: str
    """Such as `CIFAR-10, ResNet-18, 100 epochs`; unique within the experiment."""

    task: str
    """A task with its options, `cifar10-resnet18@epochs=100,batch=128`; of an experiment's own problem `repro:NAME`."""

    entries: tuple[Entry, ...]
    measure: str = "accuracy"
    """The measure of the published numbers: a name of `MEASURES`."""

    published: Mapping[str, float] = field(default_factory=dict)
    """Numbers of the paper by an entry's label, in the measure's unit."""

    source: str = ""
    """Where they are from: paper and table."""

    trial_task: str = ""
    """The task on which the settings are tried, if it is another: cases that share it share their trials."""

    def __post_init__(self) -> None:
        labels = [entry.label for entry in self.entries]
        if len(set(labels)) < len(labels):
            raise ValueError(f"{self.name}: two of its entries have one label, among {', '.join(labels)}")
        for label in self.published:
            if label not in labels:
                raise unknown(f"entry of {self.name} for a published number,", label, labels)
        if self.measure not in MEASURES:
            raise unknown("measure", self.measure, MEASURES)

    @property
    def own(self) -> bool:
        """Whether its problem is the experiment's own, and no task of the benchmark."""
        return self.task.startswith(OWN)


@dataclass(frozen=True)
class Tuning:
    """The search for an entry's settings, and the runs that confirm what it chose."""

    case: Case
    entry: Entry
    candidates: Sequence[Run]
    """A trial of each setting. A setting without a rival is chosen untried."""

    seeds: Sequence[int]
    """The seeds of the confirming runs."""

    @property
    def trials(self) -> Sequence[Run]:
        """The runs that choose; none where there is one candidate."""
        return self.candidates if len(self.candidates) > 1 else ()

    def tried(self, outcomes: Mapping[str, Outcome]) -> list[Outcome]:
        """The outcomes of the trials."""
        return [outcomes[identity(run)] for run in self.trials]

    def chosen(self, outcomes: Mapping[str, Outcome]) -> Settings | None:
        """The setting with the lowest score on validation data; None if every trial was lost."""
        plan = [dict(run.settings) for run in self.candidates]
        if not self.trials:
            return plan[0]
        search = Search(plan=plan, count=len(plan))
        for number, outcome in enumerate(self.tried(outcomes)):
            search.add(number, outcome)
        return search.chosen

    def confirming(self, outcomes: Mapping[str, Outcome]) -> list[Run]:
        """The chosen setting on the confirming seeds, and then on the test set; none if every trial was lost."""
        settings, run = self.chosen(outcomes), self.candidates[0]
        if settings is None:
            return []
        best = dataclasses.replace(run, task=self.case.task, settings=settings, test=True)
        return [dataclasses.replace(best, seed=seed) for seed in self.seeds]


@dataclass(frozen=True)
class Tuned:
    """A search with what came of it."""

    entry: Entry
    case: Case
    settings: Settings | None
    """The chosen setting; None if every trial was lost."""

    tried: Sequence[Outcome]
    final: Sequence[Done]
    """The confirming runs, by seed."""

    @property
    def kept(self) -> list[Outcome]:
        """The outcomes of the confirming runs that finished."""
        return [outcome for _, outcome in self.final if not outcome.lost]

    @property
    def lost(self) -> int:
        """The number of confirming runs that did not finish."""
        return len(self.final) - len(self.kept)

    @property
    def lost_trials(self) -> int:
        """The number of trials that did not finish."""
        return sum(outcome.lost for outcome in self.tried)

    def measure(self, name: str) -> dict[str, Any] | None:
        """The interval of a result over the seeds, ready for JSON; None without a value."""
        return estimate([outcome.result[name] for outcome in self.kept if name in outcome.result])


class Experiment:
    """An experiment of a paper. A subclass gives the contents; this class runs and shows them."""

    name: ClassVar[str]
    summary: ClassVar[str]
    """One sentence: the problem, who takes part."""

    paper: ClassVar[str]
    """The citation."""

    full: ClassVar[tuple[Case, ...]] = ()
    """The cases as published."""

    cpu: ClassVar[tuple[Case, ...]] = ()
    """The cases for two cores, if there is such a version; and those of an experiment that has one size."""

    deviations: ClassVar[tuple[str, ...]] = ()
    """What differs from the paper, a sentence each; those of one scale begin with `CPU scale: ` or `Full scale: `."""

    contenders: ClassVar[tuple[str, ...]]
    """The names that a design may choose from: the labels of all entries."""

    trials: ClassVar[int] = 5
    """The number of settings to try of each entry, the published one among them; at full scale it is 1."""

    quick_trials: ClassVar[int] = 1
    seeds: ClassVar[int] = 3
    """The number of seeds on which the chosen setting is confirmed."""

    full_seeds: ClassVar[int] = 1
    quick_seeds: ClassVar[int] = 1
    run_seconds: ClassVar[float] = 60.0
    """The time of a run at CPU scale, on one core, that the cases are made for."""

    cpu_time: ClassVar[str] = "not measured"
    """The time of the whole experiment as published, on two cores; one that was not measured says so."""

    gpu_time: ClassVar[str] = "not measured"
    """The same on a GPU."""

    not_run: ClassVar[str] = ""
    """Why there is no record of it, if there is a reason."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Check the contents, as far as the class has them."""
        super().__init_subclass__(**arguments)
        for cases in (cls.full, cls.cpu):
            names = [case.name for case in cases]
            if len(set(names)) < len(names):
                raise ValueError(f"two cases of {cls.__name__} have one name, among {'; '.join(names)}")
        cls.contenders = tuple(dict.fromkeys(entry.label for case in (*cls.full, *cls.cpu) for entry in case.entries))

    @property
    def scaled(self) -> bool:
        """Whether it trains tasks of the benchmark, whose cases, sizes, trials and devices can be chosen."""
        return not any(case.own for case in (*self.full, *self.cpu))

    # --- what is asked for ---

    def cases(self, design: Design) -> tuple[Case, ...]:
        """The cases of a design, with the entries that it names and, if it is quick, only a few steps.

        Raises:
            ValueError: when none are meant, and why.
        """
        every = self.full if design.scale == "full" else self.cpu
        if not every:
            only = "full" if self.full else "cpu"
            raise ValueError(f"{self.name} has no cases at this scale; there is --scale {only}")
        chosen = [case for case in every if not design.cases or any(meant(part, case, every) for part in design.cases)]
        if not chosen:
            names = "; ".join(case.name for case in every)
            raise ValueError(f"no case of {self.name} is called {' or '.join(design.cases)}; there are {names}")
        narrowed = [self.narrowed(case, design) for case in chosen]
        found = tuple(case for case in narrowed if case.entries)
        if not found:
            raise ValueError(f"{', '.join(design.optimizers)}: not in {'; '.join(case.name for case in chosen)}")
        return found

    @staticmethod
    def narrowed(case: Case, design: Design) -> Case:
        """A case with the entries that a design names and, if it is quick, only a few steps."""
        named = design.optimizers
        entries = tuple(one for one in case.entries if (one.label in named if named else one.quick or not design.quick))
        labels = {one.label for one in entries}
        published = {label: value for label, value in case.published.items() if label in labels}
        found = dataclasses.replace(case, entries=entries, published=published)
        if not design.quick or case.own:
            return found
        trial_task = shortened(case.trial_task) if case.trial_task else ""
        return dataclasses.replace(found, task=shortened(case.task), trial_task=trial_task)

    def tries(self, design: Design) -> int:
        """The number of settings to try of each entry."""
        usual = self.quick_trials if design.quick else 1 if design.scale == "full" else self.trials
        return design.trials or usual

    def tunings(self, design: Design) -> list[Tuning]:
        """The searches of a design: one for each entry, all from the same seed, confirmed on fresh seeds."""
        seeds = range(TRIAL_SEED + 1, TRIAL_SEED + 1 + design.seeds)
        count, draw = self.tries(design), derive("preset", self.name)

        def trial(case: Case, entry: Entry, settings: Settings) -> Run:
            task = case.trial_task or case.task
            return Run(task, entry.optimizer, settings, TRIAL_SEED, test=False, device=design.device)

        return [
            Tuning(case, entry, [trial(case, entry, one) for one in entry.candidates(count, draw)], seeds)
            for case in self.cases(design)
            for entry in case.entries
        ]

    def beside(self, case: Case) -> Case | None:
        """The case whose published numbers stand beside ours: itself, or of the published size the nearest by its name.

        None where no case has numbers for one of its entries in its measure.
        """
        labels = {entry.label for entry in case.entries}
        if case.published or any(case.name == one.name for one in self.full):
            return case if case.published else None
        others = [one for one in self.full if one.measure == case.measure and labels & one.published.keys()]
        named = set(re.findall(WORD, case.name.lower()))
        return max(others, key=lambda one: len(named & set(re.findall(WORD, one.name.lower()))), default=None)

    def needs(self, design: Design | None = None) -> tuple[str, ...]:
        """The data sets that its tasks read; without a design those of all runs that it can make."""
        cases = self.cases(design) if design else (*self.full, *self.cpu)
        return tuple(dict.fromkeys(name for case in cases if not case.own for name in get_task(case.task).needs))

    def estimate(self, design: Design) -> float:
        """The seconds on one core that a design at CPU scale is made to take."""
        tunings = self.tunings(design)
        return self.run_seconds * (len(trials(tunings)) + design.seeds * len(tunings))

    def rows(self, design: Design) -> Callable[[Run], str]:
        """The name under which a run is shown while it runs: case and label; of an own problem the optimizer."""
        names: dict[tuple[str, str], list[str]] = {}
        for case in self.cases(design):
            for entry in case.entries:
                for task in set() if case.own else {case.task, case.trial_task or case.task}:
                    names.setdefault((task, entry.optimizer), []).append(f"{case.name}: {entry.label}")
        return lambda run: " / ".join(names.get((run.task, run.optimizer), [run.optimizer]))

    # --- running ---

    def stages(self, design: Design) -> Stages:
        """Yields the trials, all on validation data, and is sent what came of them; then the best of each.

        All that determines a run is in it. A search with one candidate has no trials.
        """
        tunings = self.tunings(design)
        tried = trials(tunings)
        outcomes = by_identity((yield tried) if tried else [])
        yield distinct([run for tuning in tunings for run in tuning.confirming(outcomes)])

    def run(self, run: Run) -> Outcome:
        """Run once, in a worker. What it raises is a failed run, and the experiment goes on."""
        return train(run)

    def resume(self, run: Run, checkpoint: Checkpoint) -> Outcome:
        """Run once, going on from a checkpoint if there is one; a `run` of a subclass has none."""
        return train(run, checkpoint) if type(self).run is Experiment.run else self.run(run)

    def code(self) -> Sequence[Any]:
        """The functions, classes and modules behind a run's numbers that no task or optimizer is known to have.

        The library is always among them. A run whose code has changed is run again.
        """
        return ()

    def identity(self, run: Run) -> str | None:
        """The code and the data behind this run, as in a race; None for an own problem: all is in `code`.

        Raises:
            RaceError: an entry's optimizer cannot be made with its settings.
        """
        if not self.scaled:
            return None
        try:
            behind = code_behind(run)
        except (TypeError, ValueError) as error:
            raise RaceError(f"{self.name}: {run.optimizer} on {run.task} cannot be made: {error}") from error
        return "\0".join([behind, *(inspect.getsource(part) for part in (type(self).run, *self.code()))])

    # --- what came of it ---

    def tuned(self, design: Design, done: Sequence[Done]) -> list[Tuned]:
        """Every search with what came of it."""
        outcomes = by_identity(done)
        return [
            Tuned(
                tuning.entry,
                tuning.case,
                tuning.chosen(outcomes),
                tuning.tried(outcomes),
                [(run, outcomes[identity(run)]) for run in tuning.confirming(outcomes)],
            )
            for tuning in self.tunings(design)
        ]

    def results(self, design: Design, done: Sequence[Done]) -> dict[str, Any]:
        """The numbers that the page prints, ready for JSON.

        By case and entry: what was chosen from how many trials, and the measure with its interval over seeds.
        """
        tuned = self.tuned(design, done)
        return {
            "scale": design.scale or "cpu",
            "summary": self.summary,
            "paper": self.paper,
            "deviations": [*deviations_at(self.deviations, design.scale or "cpu")],
            "full scale": {"gpu": self.gpu_time, "cpu": self.cpu_time},
            "trials": self.tries(design),
            "cases": [
                {
                    "name": case.name,
                    "task": case.task,
                    "steps": get_task(case.task).steps,
                    "measure": case.measure,
                    "unit": MEASURES[case.measure],
                    "trial task": case.trial_task or case.task,
                    "beside": beside.name if (beside := self.beside(case)) else None,
                    "source": beside.source if beside else case.source,
                    "entries": [self.result(one) for one in tuned if one.case == case],
                }
                for case in self.cases(design)
            ],
        }

    def result(self, tuned: Tuned) -> dict[str, Any]:
        """The numbers of an entry."""
        entry, case, tried, kept = tuned.entry, tuned.case, tuned.tried, tuned.kept
        values = [measured(case, outcome) for outcome in kept]
        return {
            "label": entry.label,
            "optimizer": entry.optimizer,
            "ours": get_contender(entry.optimizer).ours,
            "settings": dict(entry.settings),
            "source": entry.source,
            "searched": {name: str(dimension) for name, dimension in entry.space.items()},
            "trials": len(tried),
            "lost trials": tuned.lost_trials,
            "published setting's score": tried[0].score if tried else None,
            "best score": min((one.score for one in tried if one.score is not None), default=None),
            "chosen": tuned.settings,
            "seeds": len(tuned.final),
            "lost seeds": tuned.lost,
            "values": values,
            "result": estimate(values),
            "published": beside.published.get(entry.label) if (beside := self.beside(case)) else None,
            "cpu seconds": mean([outcome.cpu_seconds for outcome in kept]),
            "wall seconds": mean([outcome.wall_seconds for outcome in kept]),
        }

    def page(self, record: Record) -> Page:
        """The page, from nothing but what the JSON file holds.

        A table and the learning curves of each case; settings; what differs from the paper.
        """
        return CasePage(record).page()


# --- runs ---


def trials(tunings: Sequence[Tuning]) -> list[Run]:
    """The trials of all searches, each run once."""
    return distinct([run for tuning in tunings for run in tuning.trials])


def identity(run: Run) -> str:
    """A run as a key."""
    return json.dumps(dataclasses.asdict(run), sort_keys=True)


def by_identity(done: Sequence[Done]) -> dict[str, Outcome]:
    """Outcomes by their run."""
    return {identity(run): outcome for run, outcome in done}


def distinct(runs: Sequence[Run]) -> list[Run]:
    """Each run once: cases and entries may share some."""
    return list({identity(run): run for run in runs}.values())


def around(value: float, factor: float) -> Range:
    """From a factor below to a factor above, to three digits."""
    return Range(float(f"{value / factor:.3g}"), float(f"{value * factor:.3g}"))


def shortened(task: str) -> str:
    """A task's name with the options that cut it to a few steps."""
    base, _, text = task.partition("@")
    options = dict(option.split("=", 1) for option in text.split(",") if "=" in option)
    kept = {name: value for name, value in options.items() if name not in {"epochs", *QUICK}}
    return f"{base}@{','.join(f'{name}={value}' for name, value in {**kept, **QUICK}.items())}"


def meant(part: str, case: Case, among: Sequence[Case]) -> bool:
    """Whether a part of a name means this case: as whole words if any case has it so, so CIFAR-10 is not CIFAR-100."""
    words = re.compile(rf"(?<!\w){re.escape(part)}(?!\w)", re.IGNORECASE)
    if any(words.search(other.name) for other in among):
        return words.search(case.name) is not None
    return part.lower() in case.name.lower()


# --- numbers ---


def measured(case: Case, outcome: Outcome) -> float:
    """What the case measures, from the result of a run that finished: percent, nats, or a perplexity.

    Raises:
        ValueError: the task has no such measure.
    """
    result = outcome.result
    if case.measure in ("accuracy", "error"):
        if "accuracy" not in result:
            raise ValueError(f"{case.name}: its task measures no accuracy; the case should ask for its loss")
        return 100 * (result["accuracy"] if case.measure == "accuracy" else 1 - result["accuracy"])
    return math.exp(min(result["loss"], 700.0)) if case.measure == "perplexity" else result["loss"]


def mean(values: Sequence[float]) -> float | None:
    """The mean; None of no values."""
    return sum(values) / len(values) if values else None


def estimate(values: Sequence[float]) -> dict[str, Any] | None:
    """The mean and its interval, ready for JSON; None of no values."""
    found = interval(values)
    return vars(found) if found else None


def deviations_at(deviations: Sequence[str], scale: str) -> list[str]:
    """Those of a scale and those of both, without the words that say which."""
    found = []
    for sentence in deviations:
        about, colon, rest = sentence.partition(": ")
        only = {"cpu scale": "cpu", "full scale": "full"}.get(about.lower()) if colon else None
        if only is None:
            found.append(sentence)
        elif only == scale:
            found.append(rest[:1].upper() + rest[1:])
    return found
