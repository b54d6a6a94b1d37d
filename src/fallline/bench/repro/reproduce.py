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
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path

import torch

from fallline.bench import seeds, spaces
from fallline.bench.files import put
from fallline.bench.identity import library_source, run_key
from fallline.bench.race import RaceError, work_off
from fallline.bench.record import Store, now
from fallline.bench.repro import Design, Done, Experiment, Record, get_experiment
from fallline.bench.repro.page import render
from fallline.bench.train import Outcome, Run


@dataclasses.dataclass
class Progress:
    """How far an experiment has come, for whoever watches."""

    design: Design
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
    progress = Progress(design)
    code = fingerprint(experiment)
    stages = experiment.stages(design)
    runs = next(stages)
    while True:
        progress.stage += 1
        progress.planned += runs
        done = run_stage(design.experiment, runs, code, store, pool, progress, ahead=ahead, watch=watch)
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
    code: str,
    store: Store,
    pool: Executor,
    progress: Progress,
    *,
    ahead: int,
    watch: Watch,
) -> list[Done]:
    """The runs of one stage, in their order, with what came of them."""
    outcomes: dict[int, Outcome] = {}

    def settle(place: int, run: Run, key: str, outcome: Outcome, known: bool) -> None:
        progress.reused += known
        outcomes[place] = outcome
        progress.done.append((run, outcome))

    work_off(
        deque(range(len(runs))),
        lambda place: (runs[place], run_key(runs[place], code)),
        lambda run, key: pool.submit(attempt, name, run),
        store,
        settle,
        lambda: watch(progress),
        ahead=ahead,
    )
    return [(run, outcomes[place]) for place, run in enumerate(runs)]


def attempt(name: str, run: Run) -> Outcome:
    """Run once; whatever is raised is the run's result, and the experiment goes on."""
    experiment = get_experiment(name)
    clock = time.process_time()
    try:
        outcome = experiment.run(run)
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
    stem = f"repro-{record['experiment'].replace(':', '.')}"
    return put(folder / f"{stem}.json", text), put(folder / f"{stem}.html", page)


def command_line(design: Design) -> str:
    """The command that does this again."""
    chosen = f" --optimizers {shlex.quote(','.join(design.optimizers))}" if design.optimizers else ""
    return f"fallline repro {design.experiment}{' --quick' if design.quick else ''}{chosen} --seeds {design.seeds}"
