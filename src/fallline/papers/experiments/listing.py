"""What `fallline repro --list` tells of every experiment: its data, its times, whether it was run, and the record."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fallline.bench.common.plain import Misfit, read
from fallline.bench.tasks.data import MissingData, find
from fallline.papers.experiments import EXPERIMENTS, Design, Experiment, get_experiment
from fallline.papers.records import RECORDS, Known, Record, how, measured, minutes, stem_of

CORES = 2
"""For which a time that was not measured is estimated."""


@dataclass(frozen=True)
class Listed:
    """An experiment as it is listed."""

    name: str
    summary: str
    data: str
    cpu: str
    """Its time on a CPU: measured, estimated or unknown, and it says which."""

    gpu: str
    ran: str
    """When and how it was run, with the place of the record; or `not run`, and why if that is known."""


def listed(out: Path, complain: Callable[[str], None] = warnings.warn) -> Iterator[Listed]:
    """Every experiment, with its records under `out` or in a checkout's folder of records.

    A record that cannot be read counts as not there, and `complain` is told of it in a sentence.
    """
    for name in EXPERIMENTS:
        experiment = get_experiment(name)
        found = list(records(name, (out, RECORDS), complain))
        cpu, gpu = cpu_time(experiment, found), gpu_time(experiment)
        yield Listed(name, experiment.summary, data(experiment), cpu, gpu, ran(experiment, found))


def records(name: str, folders: Sequence[Path], complain: Callable[[str], None]) -> Iterator[tuple[Path, Record]]:
    """The records of an experiment, at either scale; of a file in two folders the first."""
    for stem in (stem_of(name), stem_of(name, "full")):
        for folder in folders:
            path = folder / f"{stem}.json"
            if path.is_file():
                try:
                    yield path, read(path, Known)
                except Misfit as error:
                    complain(f"a record cannot be read, and was left out: {error}")
                break


def data(experiment: Experiment) -> str:
    """The sets that it needs, and which of them are not there; first what its CPU scale needs, if it has one."""
    whole = experiment.needs()
    if not experiment.scaled or not experiment.cpu:
        return ", ".join(map(availability, whole)) or "none"
    small = experiment.needs(Design(experiment.name, scale="cpu"))
    more = [name for name in whole if name not in small]
    text = ", ".join(map(availability, small)) or "none"
    return f"{text}; full scale also {', '.join(map(availability, more))}" if more else text


def availability(name: str) -> str:
    """A set of data, and whether it is there."""
    return f"{name} ({'there' if there(name) else 'missing'})"


def there(name: str) -> bool:
    """Whether a set of data is found."""
    try:
        find(name)
    except MissingData:
        return False
    return True


def cpu_time(experiment: Experiment, found: Sequence[tuple[Path, Record]]) -> str:
    """At CPU scale from its record, else as estimated; and at the published size."""
    whole = experiment.cpu_time
    if not experiment.scaled:
        times = [measured(record) for _, record in found if not record["design"]["quick"]]
        return times[0] if times else whole
    times = [measured(record) for _, record in found if is_cpu_scale(record)]
    if not experiment.cpu:
        small = "no CPU scale"
    elif times:
        small = f"CPU scale {times[0]}"
    else:
        wanted = experiment.estimate(Design(experiment.name, seeds=experiment.seeds, scale="cpu"))
        small = f"CPU scale {minutes(wanted / CORES)} on {CORES} cores, estimated"
    return f"{small}; full scale {whole}"


def gpu_time(experiment: Experiment) -> str:
    """Of the whole experiment."""
    return f"full scale {experiment.gpu_time}" if experiment.scaled else experiment.gpu_time


def is_cpu_scale(record: Record) -> bool:
    """Whether a record holds all of the CPU scale: no quick look, and nothing left out."""
    design: dict[str, Any] = record["design"]
    return design.get("scale") == "cpu" and how(record) == "cpu scale"


def ran(experiment: Experiment, found: Sequence[tuple[Path, Record]]) -> str:
    """How it was run, when and with which record."""
    if not found:
        return f"not run{f': {experiment.not_run}' if experiment.not_run else ''}"
    return "; ".join(f"{how(record)}, {record['started_at'][:10]}, {path.as_posix()}" for path, record in found)
