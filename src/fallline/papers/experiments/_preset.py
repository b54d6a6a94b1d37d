"""A preset: a paper's training experiment as data, at the published size (`full`) and at one for two cores (`cpu`).

A paper gives `Case`s, the problems, each with its `Entry`s, the optimizers with their published settings. `Preset`
makes runs of them: at full scale the published setting on every seed; at CPU scale, where a published setting may not
fit a run of a hundredth of the length, a few trials around it, the same number for everyone, then fresh seeds for the
best.
"""

import dataclasses
import inspect
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from fallline.bench.common.names import unknown
from fallline.bench.common.seeds import derive
from fallline.bench.common.spaces import Choice, Range, Setting, Space, trials
from fallline.bench.contenders import get_contender
from fallline.bench.protocol.search import finalists
from fallline.bench.protocol.stats import interval
from fallline.bench.race.coordinator import RaceError, code_behind
from fallline.bench.runs.checkpoint import Checkpoint
from fallline.bench.runs.loop import train
from fallline.bench.runs.run import Outcome, Run
from fallline.bench.tasks import get_task
from fallline.papers.experiments._experiment import Design, Done, Experiment, Record, Stages
from fallline.papers.experiments._preset_page import PresetPage
from fallline.papers.experiments.page import Page

MEASURES = {"accuracy": "%", "error": "%", "loss": "nats", "perplexity": ""}
"""What a published number may be, with its unit; all are made from `loss` and `accuracy` of `Outcome.result`."""

QUICK = {"steps": "10", "evaluations": "2"}
"""What `--quick` makes of a task: enough to see that all of it works."""

WORD = r"[\w-]+"
"""A word in the name of a case."""

TRIAL_SEED = 0
"""The seed of all trials; the confirming seeds are 1, 2, 3, ..., the same for everyone."""


@dataclass(frozen=True)
class Entry:
    """An optimizer in a case, with the setting that its paper gives."""

    label: str
    """How tables call it; unique within the case."""

    optimizer: str
    """A contender's name, with its schedule: `sgd@step-0.1-0.3-0.6-0.9`."""

    settings: Mapping[str, Setting]
    """The published setting, all of it."""

    search: Mapping[str, float | Range | Choice] = field(default_factory=dict)
    """What the trials vary at CPU scale: a factor f means [value / f, value * f], evenly over the logarithm."""

    source: str = ""
    """Where the setting is from: paper and table; or `not published: ` and what was chosen."""

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
        """What the trials search."""
        return {
            name: width if isinstance(width, Range | Choice) else around(float(self.settings[name]), width)
            for name, width in self.search.items()
        }

    def candidates(self, count: int, seed: int) -> list[dict[str, Setting]]:
        """The published setting first, then others from the space, `count` in all; one where nothing is searched."""
        published = dict(self.settings)
        if count == 1 or not self.search:
            return [published]
        return [published, *({**published, **trial} for trial in trials(self.space, count - 1, seed))]


@dataclass(frozen=True)
class Case:
    """A training problem of a preset."""

    name: str
    """As `CIFAR-10, ResNet-18, 100 epochs`; unique within the preset."""

    task: str
    """A task with its options: `cifar10-resnet18@epochs=100,batch=128`."""

    entries: tuple[Entry, ...]
    measure: str = "accuracy"
    """What the published numbers are: a name of `MEASURES`."""

    published: Mapping[str, float] = field(default_factory=dict)
    """Numbers of the paper by an entry's label, in the measure's unit."""

    source: str = ""
    """Where they are from: paper and table."""

    trial_task: str = ""
    """On which task the settings are tried, where that is another: cases that share it share their trials."""

    def __post_init__(self) -> None:
        labels = [entry.label for entry in self.entries]
        if len(set(labels)) < len(labels):
            raise ValueError(f"{self.name}: two of its entries have one label, among {', '.join(labels)}")
        for label in self.published:
            if label not in labels:
                raise unknown(f"entry of {self.name} for a published number,", label, labels)
        if self.measure not in MEASURES:
            raise unknown("measure", self.measure, MEASURES)


class Preset(Experiment):
    """A paper's training experiment. A subclass gives the contents; this class runs and shows them."""

    paper: ClassVar[str]
    """The citation."""

    full: ClassVar[tuple[Case, ...]]
    """As published."""

    cpu: ClassVar[tuple[Case, ...]]
    """For two cores; empty where there is no such version."""

    deviations: ClassVar[tuple[str, ...]] = ()
    """What differs from the paper, a sentence each; those of one scale begin with `CPU scale: ` or `Full scale: `."""

    trials: ClassVar[int] = 5
    """Settings that are tried of each entry at CPU scale, the published one among them; at full scale it is 1."""

    seeds: ClassVar[int] = 3
    """On which the chosen setting is confirmed at CPU scale."""

    full_seeds: ClassVar[int] = 1
    quick_seeds: ClassVar[int] = 1
    run_seconds: ClassVar[float] = 60.0
    """What a run at CPU scale is made to take, on one core."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Check the contents, as far as the class has them."""
        super().__init_subclass__(**arguments)
        for cases in (getattr(cls, "full", ()), getattr(cls, "cpu", ())):
            names = [case.name for case in cases]
            if len(set(names)) < len(names):
                raise ValueError(f"two cases of {cls.__name__} have one name, among {'; '.join(names)}")
        every = [*getattr(cls, "full", ()), *getattr(cls, "cpu", ())]
        cls.contenders = tuple(dict.fromkeys(entry.label for case in every for entry in case.entries))

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
        entries = tuple(one for one in case.entries if not design.optimizers or one.label in design.optimizers)
        labels = {one.label for one in entries}
        published = {label: value for label, value in case.published.items() if label in labels}
        found = dataclasses.replace(case, entries=entries, published=published)
        if not design.quick:
            return found
        trial_task = shortened(case.trial_task) if case.trial_task else ""
        return dataclasses.replace(found, task=shortened(case.task), trial_task=trial_task)

    def tries(self, design: Design) -> int:
        """Settings to try of each entry."""
        return design.trials or (1 if design.quick or design.scale == "full" else self.trials)

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

    def candidates(self, entry: Entry, design: Design) -> list[dict[str, Setting]]:
        """The settings that are tried; all entries draw from the same seed."""
        return entry.candidates(self.tries(design), derive("preset", self.name))

    def needs(self, design: Design | None = None) -> tuple[str, ...]:
        """The union of what its tasks need."""
        cases = self.cases(design) if design else (*self.full, *self.cpu)
        return tuple(dict.fromkeys(name for case in cases for name in get_task(case.task).needs))

    def estimate(self, design: Design) -> float:
        """Seconds of one core that a design at CPU scale is made to take."""
        entries = sum(len(case.entries) for case in self.cases(design))
        return self.run_seconds * (len(self.trial_runs(design)) + design.seeds * entries)

    def rows(self, design: Design) -> Callable[[Run], str]:
        """Case and label."""
        names: dict[tuple[str, str], list[str]] = {}
        for case in self.cases(design):
            for entry in case.entries:
                for task in {case.task, case.trial_task or case.task}:
                    names.setdefault((task, entry.optimizer), []).append(f"{case.name}: {entry.label}")
        return lambda run: " / ".join(names.get((run.task, run.optimizer), [run.optimizer]))

    # --- running ---

    def stages(self, design: Design) -> Stages:
        """The trials, all on one seed and on validation data; then the best of each, on seeds that all share.

        An entry of which one setting alone is tried has no trials.
        """
        tried = self.trial_runs(design)
        done = (yield tried) if tried else []
        outcomes = {identity(run): outcome for run, outcome in done}
        yield distinct(
            [
                run
                for case in self.cases(design)
                for entry in case.entries
                if (settings := self.chosen(case, entry, design, outcomes)) is not None
                for run in final_runs(case, entry, settings, design)
            ]
        )

    def trial_runs(self, design: Design) -> list[Run]:
        """The trials of all entries that have more than one candidate, each run once."""
        return distinct(
            [
                trial_run(case, entry, settings, design)
                for case in self.cases(design)
                for entry in case.entries
                if len(candidates := self.candidates(entry, design)) > 1
                for settings in candidates
            ]
        )

    def chosen(
        self, case: Case, entry: Entry, design: Design, outcomes: Mapping[str, Outcome]
    ) -> dict[str, Setting] | None:
        """The setting with the lowest score on validation data; None if every trial was lost.

        Args:
            case: the problem.
            entry: whose.
            design: what was asked for.
            outcomes: what came of the trials, by `identity`.
        """
        candidates = self.candidates(entry, design)
        if len(candidates) == 1:
            return candidates[0]
        scored = {n: outcomes[identity(trial_run(case, entry, one, design))] for n, one in enumerate(candidates)}
        best = next(iter(finalists(scored, 1)), None)
        return None if best is None else candidates[best]

    def run(self, run: Run, checkpoint: Checkpoint | None = None) -> Outcome:
        """Train."""
        return train(run, checkpoint)

    def resume(self, run: Run, checkpoint: Checkpoint) -> Outcome:
        """Train, going on from a checkpoint if there is one."""
        return self.run(run, checkpoint)

    def code(self) -> Sequence[Any]:
        """What a preset with runs of its own adds to the code behind them."""
        return ()

    def identity(self, run: Run) -> str:
        """As in a race: task, data, loop and optimizer; and what is the preset's own.

        Raises:
            RaceError: an entry's optimizer cannot be made with its settings.
        """
        try:
            behind = code_behind(run)
        except (TypeError, ValueError) as error:
            raise RaceError(f"{self.name}: {run.optimizer} on {run.task} cannot be made: {error}") from error
        return "\0".join([behind, *(inspect.getsource(part) for part in (type(self).run, *self.code()))])

    # --- what came of it ---

    def results(self, design: Design, done: Sequence[Done]) -> dict[str, Any]:
        """By case and entry: what was chosen from how many trials, and the measure with its interval over seeds."""
        outcomes = {identity(run): outcome for run, outcome in done}
        return {
            "scale": design.scale or "cpu",
            "summary": self.summary,
            "paper": self.paper,
            "deviations": [*told_deviations(self.deviations, design.scale or "cpu")],
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
                    "entries": [self.result(case, entry, design, outcomes) for entry in case.entries],
                }
                for case in self.cases(design)
            ],
        }

    def result(self, case: Case, entry: Entry, design: Design, outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
        """The numbers of an entry."""
        candidates = self.candidates(entry, design)
        tried = [outcomes[identity(trial_run(case, entry, one, design))] for one in candidates if len(candidates) > 1]
        settings = self.chosen(case, entry, design, outcomes)
        final = [outcomes[identity(run)] for run in final_runs(case, entry, settings or {}, design)] if settings else []
        kept = [outcome for outcome in final if not outcome.lost]
        values = [measured(case, outcome) for outcome in kept]
        found = interval(values)
        return {
            "label": entry.label,
            "optimizer": entry.optimizer,
            "ours": get_contender(entry.optimizer).ours,
            "settings": dict(entry.settings),
            "source": entry.source,
            "searched": {name: str(dimension) for name, dimension in entry.space.items()},
            "trials": len(tried),
            "lost trials": sum(outcome.lost for outcome in tried),
            "published setting's score": tried[0].score if tried else None,
            "best score": min((one.score for one in tried if one.score is not None), default=None),
            "chosen": settings,
            "seeds": len(final),
            "lost seeds": len(final) - len(kept),
            "values": values,
            "result": vars(found) if found else None,
            "published": beside.published.get(entry.label) if (beside := self.beside(case)) else None,
            "cpu seconds": mean([outcome.cpu_seconds for outcome in kept]),
            "wall seconds": mean([outcome.wall_seconds for outcome in kept]),
        }

    def page(self, record: Record) -> Page:
        """A table and the learning curves of each case; settings; what differs from the paper."""
        return PresetPage(record).page()


# --- runs ---


def trial_run(case: Case, entry: Entry, settings: Mapping[str, Setting], design: Design) -> Run:
    """A trial: the test set stays closed."""
    task = case.trial_task or case.task
    return Run(task, entry.optimizer, dict(settings), TRIAL_SEED, test=False, device=design.device)


def final_runs(case: Case, entry: Entry, settings: Mapping[str, Setting], design: Design) -> list[Run]:
    """The chosen setting on the confirming seeds, and then on the test set."""
    return [
        Run(case.task, entry.optimizer, dict(settings), TRIAL_SEED + 1 + number, test=True, device=design.device)
        for number in range(design.seeds)
    ]


def identity(run: Run) -> str:
    """A run as a key."""
    return json.dumps(dataclasses.asdict(run), sort_keys=True)


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
    """None of no values."""
    return sum(values) / len(values) if values else None


def told_deviations(deviations: Sequence[str], scale: str) -> list[str]:
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
