"""Logging: what comes of each run, told to TensorBoard, Weights & Biases, trackio, or a file of JSON lines.

A logger is any class with the three methods of `Logger`; one of your own goes by `package.module:Class`. The
coordinator of a race calls it when a run is over: the runs are trained in other processes, and come back whole.
"""

import importlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from urllib.parse import quote

from fallline.bench.common.files import append
from fallline.bench.common.names import unknown
from fallline.bench.protocol.records import Place, Race
from fallline.bench.runs.loggers import PROJECT, Several, TensorBoard, Tracked, library, plain
from fallline.bench.runs.run import Outcome, Run

Point = tuple[int, dict[str, float]]
"""A step and what was measured at it."""


@runtime_checkable
class Logger(Protocol):
    """Someone who is told what comes of a race; any of these may raise, and the race goes on without that logger."""

    def run_finished(self, race: Race, entry: Place, run: Run, outcome: Outcome) -> None:
        """A run was trained, or lost: called once for each that this command trained, not for those in the records."""

    def race_finished(self, race: Race, summary: Mapping[str, Mapping[str, float]]) -> None:
        """All runs are known: `summary` holds the mean final losses, by task and by the label of the optimizer."""

    def close(self) -> None:
        """Nothing more comes, be it that the race has ended or that it was stopped."""


class Logging(Several[Logger]):
    """Several loggers as one. Use as a context manager."""

    failed = "the logger {} has failed and logs no more; the race goes on ({})"

    def __init__(self, loggers: Iterable[Logger] = (), complain: Callable[[str], None] | None = None) -> None:
        super().__init__(loggers, complain or (lambda message: warnings.warn(message, RuntimeWarning, stacklevel=2)))

    def run_finished(self, race: Race, entry: Place, run: Run, outcome: Outcome) -> None:
        """Tell each logger."""
        self.each(lambda logger: logger.run_finished(race, entry, run, outcome))

    def race_finished(self, race: Race, summary: Mapping[str, Mapping[str, float]]) -> None:
        """Tell each logger."""
        self.each(lambda logger: logger.race_finished(race, summary))

    def __enter__(self) -> "Logging":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Jsonl:
    """One JSON object a run, one a line, in `log.jsonl`: `pandas.read_json("log.jsonl", lines=True)` reads it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "log.jsonl"

    def run_finished(self, race: Race, entry: Place, run: Run, outcome: Outcome) -> None:
        """Append a line."""
        place = {"race": race.id, **asdict(entry), "settings": plain(run.settings), "seed": run.seed}
        line = json.dumps({**place, **asdict(outcome)}, allow_nan=False)
        append(self._path, line)

    def race_finished(self, race: Race, summary: Mapping[str, Mapping[str, float]]) -> None:
        """Nothing: every line is a run."""

    def close(self) -> None:
        """Nothing: the file is closed after each line."""


class Events:
    """A folder of events a run, `tensorboard/<race>/<run>`: curves, score and result, and settings for HPARAMS."""

    def __init__(self, folder: Path) -> None:
        importlib.import_module("torch.utils.tensorboard")  # if it is missing, say so before the race
        self._folder = folder / "tensorboard"

    def run_finished(self, race: Race, entry: Place, run: Run, outcome: Outcome) -> None:
        """Write the events of one run."""
        from torch.utils.tensorboard.summary import hparams

        settings = plain({"task": entry.task, "optimizer": entry.optimizer, "stage": entry.stage, **run.settings})
        _, start, end = hparams(settings, {})
        log = self._log(race.id, quote(run_name(entry), safe=""))
        try:
            # Not `SummaryWriter.add_hparams`: it adds a list of columns to each run, and TensorBoard shows those of the
            # first list that it finds, no other optimizer's settings. Without such lists it shows every column.
            log.summary(start)
            for step, values in points(outcome):
                log.write(step, values)
            if not outcome.lost:
                log.summary(end)  # "success"; without it, "unknown"
        finally:
            log.close()

    def race_finished(self, race: Race, summary: Mapping[str, Mapping[str, float]]) -> None:
        """Write a table of the mean losses, under TEXT."""
        rows = ["| task | optimizer | mean loss |", "|---|---|---|"]
        for task, losses in summary.items():
            rows += [f"| {task} | {label} | {loss:.6g} |" for label, loss in losses.items()]
        log = self._log(race.id)
        log.writer.add_text("mean loss", "\n".join(rows))
        log.close()

    def close(self) -> None:
        """Nothing: each run's file is closed after it."""

    def _log(self, *names: str) -> TensorBoard:
        path = self._folder.joinpath(*names)
        for old in path.glob("events.out.tfevents.*"):  # of a run that was lost and tried again: two would be one curve
            old.unlink()
        return TensorBoard(path)


class Tracker:
    """A tracked run for each run, at Weights & Biases or in trackio; a race is a group."""

    def start(self, race: Race, name: str, stage: str, config: dict[str, Any]) -> Tracked:
        """Begin a tracked run."""
        raise NotImplementedError

    def replay(self, race: Race, name: str, stage: str, config: dict[str, Any], points: Iterable[Point]) -> None:
        """Log a tracked run from beginning to end."""
        log = self.start(race, name, stage, config)
        try:
            for step, values in points:
                log.write(step, values)
        finally:
            log.close()

    def run_finished(self, race: Race, entry: Place, run: Run, outcome: Outcome) -> None:
        """Log a run, its settings and its place as the configuration."""
        about = {"seed": run.seed, "status": outcome.status, "reason": outcome.reason}
        config = plain({**run.settings, **asdict(entry), **about})
        self.replay(race, run_name(entry), entry.stage, config, points(outcome))

    def race_finished(self, race: Race, summary: Mapping[str, Mapping[str, float]]) -> None:
        """Log the mean losses as a run of their own, the race's design as its configuration."""
        losses = {f"{task}/{label}": loss for task, row in summary.items() for label, loss in row.items()}
        if losses:
            self.replay(race, "summary", "summary", race.design, [(0, losses)])

    def close(self) -> None:
        """Nothing: each tracked run is finished by now."""


class Wandb(Tracker):
    """Weights & Biases. Asks for the key before the race, unless WANDB_MODE makes it needless."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)  # where there is none, wandb takes a temporary one
        self._folder = folder
        wandb = library("wandb")
        if wandb.setup().settings.mode != "offline":
            wandb.login()

    def start(self, race: Race, name: str, stage: str, config: dict[str, Any]) -> Tracked:
        """Begin a run. It is silent, and takes no part in what the coordinator prints."""
        place = os.environ.get("WANDB_DIR", self._folder)
        how: dict[str, Any] = {"reinit": "finish_previous", "settings": {"silent": True, "console": "off"}}
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        return Tracked("wandb", project, name, config, dir=place, group=race.id, job_type=stage, **how)


class Trackio(Tracker):
    """trackio, which keeps its records on this machine unless told otherwise."""

    def __init__(self, folder: Path) -> None:
        library("trackio")

    def start(self, race: Race, name: str, stage: str, config: dict[str, Any]) -> Tracked:
        """Begin a run."""
        return Tracked("trackio", PROJECT, name, config, group=race.id, auto_log_cpu=False, auto_log_gpu=False)


LOGGERS: dict[str, Callable[[Path], Logger]] = {
    "jsonl": Jsonl,
    "tensorboard": Events,
    "wandb": Wandb,
    "trackio": Trackio,
}
"""The loggers that have a name; each is also the name of the package that it needs, if any."""


def open_loggers(names: str, folder: Path) -> list[Logger]:
    """The loggers that a user names.

    Args:
        names: names of `LOGGERS` or `package.module:Class`, with commas between them.
        folder: where those that write files may do so; a class is called with it.

    Raises:
        ValueError: there is no such logger, its library is missing, or it cannot start.
    """
    asked = [name.strip() for name in names.split(",") if name.strip()]
    asked = [name if ":" in name else name.lower() for name in asked]
    return [_open(name, folder) for name in dict.fromkeys(asked)]


def _open(name: str, folder: Path) -> Logger:
    if ":" not in name and name not in LOGGERS:
        raise unknown("logger", name, LOGGERS)
    try:
        logger = LOGGERS[name](folder) if name in LOGGERS else _class(name)(folder)
    except Exception as error:  # whatever a library may raise, or a class of somebody's own
        remedy = f"; pip install {name} brings it" if name in LOGGERS and isinstance(error, ImportError) else ""
        raise ValueError(f"the logger {name!r} cannot start: {type(error).__name__}: {error}{remedy}") from error
    if not isinstance(logger, Logger):
        raise ValueError(f"{name!r} is no logger: it lacks a method of {__name__}.Logger")
    return logger


def _class(name: str) -> Any:
    module_name, _, class_name = name.partition(":")
    return getattr(importlib.import_module(module_name), class_name)


def run_name(entry: Place) -> str:
    """A name for a run that no other run of its race has: task, optimizer, stage and number."""
    numbers = [entry.number, entry.repeat] if entry.stage == "choice" else [entry.number]
    return "-".join([entry.task, entry.optimizer, entry.stage, *map(str, numbers)])


def points(outcome: Outcome) -> Iterator[Point]:
    """The curve of a run point by point, what was not measured left out; at its end whether it was lost, the score and
    the result."""
    last = outcome.steps
    names = [name for name in outcome.curve if name != "step"]
    columns = [outcome.curve[name] for name in ("step", *names)] if outcome.curve else []
    for step, *values in zip(*columns, strict=True):
        measured = {name: value for name, value in zip(names, values, strict=True) if value is not None}
        if step is not None and measured:
            last = max(last, int(step))  # a run may have got lost before the point at which it was seen
            yield int(step), measured
    score = {} if outcome.score is None else {"score": outcome.score}
    result = {f"result/{name}": value for name, value in outcome.result.items()}
    yield last, {"lost": float(outcome.lost), **score, **result}
