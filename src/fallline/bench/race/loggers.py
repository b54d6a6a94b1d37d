"""Logging: what comes of each run, told to TensorBoard, Weights & Biases, trackio, or a file of JSON lines.

A logger is any class with the three methods of `Logger`; one of your own goes by `package.module:Class`. The
coordinator of a race calls it when a run is over: the runs are trained in other processes, and come back whole.
"""

import importlib
import io
import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, redirect_stdout, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable
from urllib.parse import quote

from fallline.bench.common.files import append
from fallline.bench.common.names import unknown
from fallline.bench.protocol.records import Place, Race
from fallline.bench.runs.run import Outcome, Run

if TYPE_CHECKING:
    from torch.utils.tensorboard import FileWriter

PROJECT = "fallline"
"""The project at Weights & Biases (unless WANDB_PROJECT names another) and in trackio."""

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


class Logging:
    """Several loggers as one. One that fails is complained about, once, and dropped. Use as a context manager."""

    def __init__(self, loggers: Iterable[Logger] = (), complain: Callable[[str], None] | None = None) -> None:
        self.loggers = list(loggers)
        self._complain = complain or (lambda message: warnings.warn(message, RuntimeWarning, stacklevel=2))

    def run_finished(self, race: Race, entry: Place, run: Run, outcome: Outcome) -> None:
        """Tell each logger."""
        self._tell(lambda logger: logger.run_finished(race, entry, run, outcome))

    def race_finished(self, race: Race, summary: Mapping[str, Mapping[str, float]]) -> None:
        """Tell each logger."""
        self._tell(lambda logger: logger.race_finished(race, summary))

    def close(self) -> None:
        """Close each logger, once."""
        self._tell(lambda logger: logger.close())
        self.loggers = []

    def __enter__(self) -> "Logging":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tell(self, call: Callable[[Logger], None]) -> None:
        for logger in self.loggers[:]:
            try:
                call(logger)
            except Exception as error:
                self.loggers = [other for other in self.loggers if other is not logger]
                with suppress(Exception):
                    logger.close()
                name, reason = type(logger).__name__, f"{type(error).__name__}: {error}"
                self._complain(f"the logger {name} has failed and logs no more; the race goes on ({reason})")


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


class TensorBoard:
    """A folder of events a run, `tensorboard/<race>/<run>`: curves, score and result, and settings for HPARAMS."""

    def __init__(self, folder: Path) -> None:
        importlib.import_module("torch.utils.tensorboard")  # if it is missing, say so before the race
        self._folder = folder / "tensorboard"

    def run_finished(self, race: Race, entry: Place, run: Run, outcome: Outcome) -> None:
        """Write the events of one run."""
        from torch.utils.tensorboard.summary import hparams, scalar

        settings = plain({"task": entry.task, "optimizer": entry.optimizer, "stage": entry.stage, **run.settings})
        _, start, end = hparams(settings, {})
        with self._writer(race.id, quote(run_name(entry), safe="")) as writer:
            # Not `SummaryWriter.add_hparams`: it adds a list of columns to each run, and TensorBoard shows those of the
            # first list that it finds, no other optimizer's settings. Without such lists it shows every column.
            writer.add_summary(start)
            for step, values in points(outcome):
                for name, value in values.items():
                    writer.add_summary(scalar(name, value), step)
            if not outcome.lost:
                writer.add_summary(end)  # "success"; without it, "unknown"

    def race_finished(self, race: Race, summary: Mapping[str, Mapping[str, float]]) -> None:
        """Write a table of the mean losses, under TEXT."""
        from torch.utils.tensorboard.summary import text

        rows = ["| task | optimizer | mean loss |", "|---|---|---|"]
        for task, losses in summary.items():
            rows += [f"| {task} | {label} | {loss:.6g} |" for label, loss in losses.items()]
        with self._writer(race.id) as writer:
            writer.add_summary(text("mean loss", "\n".join(rows)))

    def close(self) -> None:
        """Nothing: each run's file is closed after it."""

    def _writer(self, *names: str) -> "closing[FileWriter]":
        from torch.utils.tensorboard import FileWriter

        path = self._folder.joinpath(*names)
        for old in path.glob("events.out.tfevents.*"):  # of a run that was lost and tried again: two would be one curve
            old.unlink()
        return closing(FileWriter(path))


class Tracker:
    """A tracked run for each run; what Weights & Biases and trackio, whose interfaces are alike, have in common."""

    def start(self, race: Race, name: str, stage: str, config: dict[str, Any]) -> Any:
        """Begin a tracked run: something with `log(values, step=...)` and `finish()`."""
        raise NotImplementedError

    def log(self, race: Race, name: str, stage: str, config: dict[str, Any], points: Iterable[Point]) -> None:
        """Log a tracked run from beginning to end."""
        tracked = self.start(race, name, stage, config)
        try:
            for step, values in points:
                tracked.log(values, step=step)
        finally:
            tracked.finish()

    def run_finished(self, race: Race, entry: Place, run: Run, outcome: Outcome) -> None:
        """Log a run, its settings and its place as the configuration."""
        about = {"seed": run.seed, "status": outcome.status, "reason": outcome.reason}
        config = plain({**run.settings, **asdict(entry), **about})
        self.log(race, run_name(entry), entry.stage, config, points(outcome))

    def race_finished(self, race: Race, summary: Mapping[str, Mapping[str, float]]) -> None:
        """Log the mean losses as a run of their own, the race's design as its configuration."""
        losses = {f"{task}/{label}": loss for task, row in summary.items() for label, loss in row.items()}
        if losses:
            self.log(race, "summary", "summary", race.design, [(0, losses)])

    def close(self) -> None:
        """Nothing: each tracked run is finished by now."""


class Wandb(Tracker):
    """Weights & Biases: a race is a group. Asks for the key before the race, unless WANDB_MODE makes it needless."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)  # where there is none, wandb takes a temporary one
        self._folder = folder
        self._wandb = library("wandb")
        if self._wandb.setup().settings.mode != "offline":
            self._wandb.login()

    def start(self, race: Race, name: str, stage: str, config: dict[str, Any]) -> Any:
        """Begin a run. It is silent, and takes no part in what the coordinator prints."""
        return self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=os.environ.get("WANDB_DIR", self._folder),
            group=race.id,
            job_type=stage,
            name=name,
            config=config,
            reinit="finish_previous",
            settings={"silent": True, "console": "off"},
        )


class Trackio(Tracker):
    """trackio, which keeps its records on this machine unless told otherwise: a race is a group."""

    def __init__(self, folder: Path) -> None:
        self._trackio = library("trackio")

    def start(self, race: Race, name: str, stage: str, config: dict[str, Any]) -> Any:
        """Begin a run, which the package itself stands for: what a run's own `finish` ends is ended again at exit."""
        self._trackio.init(
            project=PROJECT, name=name, group=race.id, config=config, auto_log_cpu=False, auto_log_gpu=False
        )
        return self._trackio

    def log(self, race: Race, name: str, stage: str, config: dict[str, Any], points: Iterable[Point]) -> None:
        """Log a run, without the lines that trackio prints on each: they would tear the display of the race."""
        with redirect_stdout(io.StringIO()):
            super().log(race, name, stage, config, points)


LOGGERS: dict[str, Callable[[Path], Logger]] = {
    "jsonl": Jsonl,
    "tensorboard": TensorBoard,
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


def library(name: str) -> Any:
    """A package that offers `init`; `ImportError` without."""
    package = importlib.import_module(name)
    if not hasattr(package, "init"):  # a folder of that name, and wandb leaves one behind, passes for a package
        raise ImportError(f"No package named {name!r}, only a folder")
    return package


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


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values that every format can hold; what is no text, truth value or finite number is given as text."""

    def holds(value: object) -> bool:
        return value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))

    return {name: value if holds(value) else str(value) for name, value in values.items()}
