"""The papers' experiments at the size for two cores, run on the real data: `make records`.

    python benchmarks/records.py [--minutes 90] [--only koala-cifar,lodo-bowl] [--jobs 2]

Runs lie in a database under runs/records, so the same command goes on where it was stopped, also by its own budget of
time, which is that of one call. Of every experiment that is complete a small record is put under benchmarks/records;
docs/results.py makes its tables from these. Presets run at CPU scale, the older experiments in their quick form.
"""

import argparse
import json
import time
from pathlib import Path

from rich.console import Console

from fallline.bench.common.files import put
from fallline.bench.race.coordinator import RaceError
from fallline.bench.race.store import Store
from fallline.bench.race.workers import available_cores, local_pool
from fallline.bench.runs.environment import environment
from fallline.bench.tasks.data import MissingData, find
from fallline.papers.experiments import EXPERIMENTS, Design, Experiment, get_experiment
from fallline.papers.experiments.reproduce import Progress, reproduce, slim, write
from fallline.papers.experiments.watch import Watcher
from fallline.papers.records import stem_of

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "benchmarks" / "records"
WORK = ROOT / "runs" / "records"

console = Console(highlight=False)


class OutOfTime(Exception):
    """The budget is spent."""


def in_order() -> list[str]:
    """The older experiments first, which take a minute or two each; then the presets."""
    return sorted(EXPERIMENTS, key=lambda name: get_experiment(name).scaled)


def design_of(experiment: Experiment, name: str) -> Design | None:
    """What is recorded of an experiment; None of a preset that has no version for two cores."""
    if not experiment.scaled:
        return Design(name, quick=True, seeds=experiment.quick_seeds)
    return Design(name, seeds=experiment.seeds, scale="cpu") if experiment.cpu else None


def record(name: str, store: Store, deadline: float, jobs: int) -> str | None:
    """Run an experiment, as far as its runs are not in the store, and keep its record; else why there is none.

    Args:
        name: of `EXPERIMENTS`.
        store: where runs lie.
        deadline: of `time.monotonic`; what is not done then is left for another call.
        jobs: runs at a time.
    """
    experiment = get_experiment(name)
    design = design_of(experiment, name)
    if design is None:
        return experiment.not_run or "it has no version for two cores"
    try:
        for needed in experiment.needs(design):
            find(needed)
    except MissingData as error:
        return str(error)
    done = planned = 0

    def watch(progress: Progress) -> None:
        nonlocal done, planned
        done, planned = len(progress.done), len(progress.planned)
        shown(progress)
        if done < planned and time.monotonic() > deadline:
            raise OutOfTime

    try:
        with Watcher(console) as shown, local_pool(jobs) as pool:
            found = reproduce(experiment, design, store, pool, ahead=jobs, watch=watch)
    except OutOfTime:
        return f"no time was left: {done} of {planned} runs of the stages so far are done"
    except RaceError as error:
        return str(error)
    found["environment"] = environment(jobs)
    write(experiment, found, WORK)
    put(RECORDS / f"{stem_of(name)}.json", json.dumps(slim(experiment, found), indent=None, allow_nan=False) + "\n")
    return None


def main() -> None:
    """Record one after another, and say what was not recorded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=90, help="what this call may take")
    parser.add_argument("--only", default=",".join(in_order()), help="these experiments alone")
    parser.add_argument("--jobs", type=int, default=available_cores(), help="runs at a time")
    asked = parser.parse_args()
    deadline = time.monotonic() + 60 * asked.minutes
    missing: dict[str, str] = {}
    with Store(WORK / "fallline.sqlite") as store:
        for name in asked.only.split(","):
            console.print(f"{name} ...", style="bold")
            if reason := record(name, store, deadline, asked.jobs):
                missing[name] = reason
    for name, reason in missing.items():
        console.print(f"not recorded: {name}: {reason}", soft_wrap=True)


if __name__ == "__main__":
    main()
