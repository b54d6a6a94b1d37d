"""Running an experiment: what the records do not hold is run, then the raw numbers and the page are written.

Runs lie in the race's database, under keys that say all that determines them, so that a command which was interrupted
goes on. The JSON file and the page are made when all is there, and appear whole or not at all.
"""

import dataclasses
import inspect
import json
import shlex
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import torch

from fallline.bench.common import seeds, spaces
from fallline.bench.common.files import put
from fallline.bench.race.coordinator import Checkpoints, RaceError, work_off
from fallline.bench.race.store import Store, now
from fallline.bench.runs.checkpoint import Checkpoint
from fallline.bench.runs.identity import library_source, run_key
from fallline.bench.runs.run import Outcome, Run
from fallline.bench.tasks.data import DataError
from fallline.papers.experiments import Design, Done, Experiment, Record, get_experiment
from fallline.papers.experiments.page import render
from fallline.papers.records import stem_of

LARGEST = 100_000
"""Bytes of a record that is kept for good."""


@dataclasses.dataclass
class Progress:
    """How far an experiment has come, for whoever watches."""

    design: Design
    row: Callable[[Run], str] = lambda run: run.optimizer
    """Under which name a run is shown."""

    stage: int = 0
    planned: list[Run] = dataclasses.field(default_factory=list)
    """The runs of this stage and of those before."""

    done: list[Done] = dataclasses.field(default_factory=list)
    reused: int = 0
    """Runs that were in the records already."""

    @property
    def ran(self) -> int:
        """Runs that were run."""
        return len(self.done) - self.reused


Watch = Callable[[Progress], None]


def reproduce(
    experiment: Experiment, design: Design, store: Store, pool: Executor, *, ahead: int, watch: Watch
) -> Record:
    """Run what the records do not hold, and return the record of the whole.

    Args:
        experiment: what to run.
        design: how much of it.
        store: the records, written by this process alone.
        pool: where the runs run.
        ahead: runs to hand to the pool at a time.
        watch: called with the progress, after each run at least.

    Raises:
        RaceError: a worker died, or no run of a stage has finished.
        KeyboardInterrupt: passed on, when what has finished is written down.
    """
    started_at, clock = now(), time.monotonic()
    progress = Progress(design, experiment.rows(design))
    general = fingerprint(experiment)
    stages = experiment.stages(design)
    runs = next(stages)
    while True:
        progress.stage += 1
        progress.planned += runs
        keys = [run_key(run, experiment.identity(run) or general) for run in runs]
        done = run_stage(design.experiment, runs, keys, store, pool, progress, ahead=ahead, watch=watch)
        if done and all(outcome.lost for _, outcome in done):
            raise RaceError(f"no run has finished; the first: {done[0][1].reason}")
        try:
            runs = stages.send(done)
        except StopIteration:
            break
    record = compose(experiment, design, progress)
    return {**record, "started_at": started_at, "seconds": time.monotonic() - clock}


def run_stage(
    name: str,
    runs: Sequence[Run],
    keys: Sequence[str],
    store: Store,
    pool: Executor,
    progress: Progress,
    *,
    ahead: int,
    watch: Watch,
) -> list[Done]:
    """The runs of one stage, in their order, with what came of them; a run that was stopped goes on where it was."""
    outcomes: dict[int, Outcome] = {}

    def settle(place: int, run: Run, key: str, outcome: Outcome, known: bool) -> None:
        progress.reused += known
        outcomes[place] = outcome
        progress.done.append((run, outcome))

    work_off(
        deque(range(len(runs))),
        lambda place: (runs[place], keys[place]),
        lambda run, checkpoint: pool.submit(attempt, name, run, checkpoint),
        store,
        settle,
        lambda: watch(progress),
        Checkpoints(store),
        max_pending=ahead,
    )
    return [(run, outcomes[place]) for place, run in enumerate(runs)]


def attempt(name: str, run: Run, checkpoint: Checkpoint | None = None) -> Outcome:
    """Run once; whatever is raised is the run's result, and the experiment goes on.

    Raises:
        RaceError: the data are not there, or not sound: that is no result of this run, and would not be kept as one.
    """
    experiment = get_experiment(name)
    clock = time.process_time()
    try:
        outcome = experiment.resume(run, checkpoint) if checkpoint else experiment.run(run)
    except DataError as error:
        raise RaceError(str(error)) from error
    except Exception as error:
        outcome = Outcome("failed", steps=0, reason=f"{type(error).__name__}: {error}")
    outcome.cpu_seconds = outcome.cpu_seconds or time.process_time() - clock
    return outcome


def fingerprint(experiment: Experiment) -> str:
    """The code that makes the runs' numbers: the library, torch by its version, and what the experiment names."""
    parts = [torch.__version__, library_source()]
    parts += [inspect.getsource(part) for part in (seeds, spaces, *experiment.code())]
    return "\0".join(parts)


def compose(experiment: Experiment, design: Design, progress: Progress) -> Record:
    """The record: what was asked for, the numbers that the page prints, and every run."""
    return {
        "experiment": design.experiment,
        "command": command_line(design),
        "design": dataclasses.asdict(design),
        "results": experiment.results(design, progress.done),
        "reused": progress.reused,
        "cpu_seconds": sum(outcome.cpu_seconds for _, outcome in progress.done),
        "runs": [{"run": dataclasses.asdict(run), "outcome": dataclasses.asdict(out)} for run, out in progress.done],
    }


def write(experiment: Experiment, record: Record, folder: Path) -> tuple[Path, Path]:
    """Write the JSON file and the page made from it: each is there whole or not at all."""
    text = json.dumps(record, allow_nan=False)
    page = render(experiment.page(json.loads(text)), json.loads(text))
    stem = stem_of(record["experiment"], record["design"]["scale"])
    return put(folder / f"{stem}.json", text), put(folder / f"{stem}.html", page)


def slim(experiment: Experiment, record: Record) -> Record:
    """The record without what is large and was not asked for, and with its tables as text: what is kept for good.

    Curves are those of confirmed runs, to four digits; where even they are too much, there are none.
    """
    page = experiment.page(record)
    tables = [
        {"title": title, "head": [*table.head], "rows": [[*row.cells] for row in table.rows]}
        for title, table in page.results
    ]
    runs = sorted(map(light, record["runs"]), key=lambda one: json.dumps(one["run"]))  # in no order of chance
    rounded = {**record, "lead": [*page.lead], "tables": tables, "runs": runs}
    if len(json.dumps(rounded)) <= LARGEST:
        return rounded
    return {**rounded, "runs": [{**one, "outcome": {**one["outcome"], "curve": {}}} for one in rounded["runs"]]}


def light(one: Mapping[str, Any]) -> dict[str, Any]:
    """A run with the curve of a confirmed one alone, to four digits, and without its times."""
    curve = one["outcome"]["curve"] if one["run"]["test"] else {}
    short = {
        name: [float(f"{value:.4g}") if isinstance(value, float) and name != "step" else value for value in values]
        for name, values in curve.items()
    }
    return {"run": one["run"], "outcome": {**one["outcome"], "curve": short, "times": {}}}


def command_line(design: Design) -> str:
    """The command that does this again."""
    words = ["fallline repro", shlex.quote(design.experiment)]
    words += ["--quick"] if design.quick else []
    words += ["--scale", design.scale] if design.scale else []
    words += ["--cases", shlex.quote(",".join(design.cases))] if design.cases else []
    words += ["--optimizers", shlex.quote(",".join(design.optimizers))] if design.optimizers else []
    words += ["--trials", str(design.trials)] if design.trials else []
    words += ["--seeds", str(design.seeds)]
    words += ["--device", design.device] if design.device != "cpu" else []
    return " ".join(words)
