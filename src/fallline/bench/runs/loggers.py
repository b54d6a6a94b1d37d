"""Where the numbers of a run go while it trains: lines of JSON, TensorBoard, Weights & Biases, trackio.

The loggers of `fallline.bench.race.loggers` are told of a run when it is over; these, every so many steps.
"""

import importlib
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any, Protocol

from fallline.bench.common.files import append, put
from fallline.bench.common.names import unknown
from fallline.bench.race.loggers import PROJECT, library, plain

Scalars = Mapping[str, float]


class Log(Protocol):
    """Someone who is told numbers; any of these may raise, and the run goes on without that log."""

    def write(self, step: int, scalars: Scalars) -> None:
        """What was seen at a step."""

    def close(self) -> None:
        """Nothing more comes."""


class Jsonl:
    """One JSON object a look, one a line."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], step: int) -> None:
        self.path = folder / "log.jsonl"
        keep_until(self.path, step)

    def write(self, step: int, scalars: Scalars) -> None:
        """Append a line."""
        append(self.path, json.dumps({"step": step, **plain(scalars)}))

    def close(self) -> None:
        """Nothing: the file is closed after each line."""


class TensorBoard:
    """Events in the folder `tensorboard`, on the disk after each look."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(folder / "tensorboard", purge_step=step + 1 if step else None)
        if not step:
            self.writer.add_text("settings", "\n".join(f"- {name}: {value}" for name, value in settings.items()))

    def write(self, step: int, scalars: Scalars) -> None:
        """Write a point of each curve."""
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        """Close the file."""
        self.writer.close()


class Tracker:
    """A run of Weights & Biases or of trackio."""

    def __init__(self, package: str, folder: Path, settings: Mapping[str, Any], step: int) -> None:
        with redirect_stdout(io.StringIO()):  # trackio's lines would tear the display
            self.package = library(package)
            more = {"dir": str(folder)} if package == "wandb" else {}
            project = os.environ.get("WANDB_PROJECT", PROJECT)
            self.package.init(project=project, name=folder.name, config=plain(settings), **more)

    def write(self, step: int, scalars: Scalars) -> None:
        """Log what was seen."""
        with redirect_stdout(io.StringIO()):
            self.package.log(dict(scalars), step=step)

    def close(self) -> None:
        """Finish the run."""
        with redirect_stdout(io.StringIO()):
            self.package.finish()


LOGS: dict[str, Callable[[Path, Mapping[str, Any], int], Log]] = {
    "jsonl": Jsonl,
    "tensorboard": TensorBoard,
    "wandb": lambda *arguments: Tracker("wandb", *arguments),
    "trackio": lambda *arguments: Tracker("trackio", *arguments),
}


class Logs:
    """Several logs as one. One that fails is complained about, once, and dropped."""

    def __init__(self, logs: Iterable[Log], complain: Callable[[str], None]) -> None:
        self.logs, self.complain = list(logs), complain

    def write(self, step: int, scalars: Scalars) -> None:
        """Tell each log."""
        for log in self.logs[:]:
            try:
                log.write(step, scalars)
            except Exception as error:
                self.logs.remove(log)
                with suppress(Exception):
                    log.close()
                self.complain(
                    f"the log {type(log).__name__} has failed and is written no more; the run goes on "
                    f"({type(error).__name__}: {error})"
                )

    def close(self) -> None:
        """Close each log."""
        for log in self.logs:
            with suppress(Exception):
                log.close()


def checked(names: str) -> list[str]:
    """The names in a list with commas; `ValueError` for one that no log has, or whose package is missing."""
    asked = list(dict.fromkeys(name.strip().lower() for name in names.split(",") if name.strip()))
    for name in asked:
        if name not in LOGS:
            raise unknown("log", name, LOGS)
        package = {"jsonl": "json", "tensorboard": "torch.utils.tensorboard"}.get(name, name)
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ValueError(f"the log {name!r} needs its package: pip install {name} ({error})") from error
    return asked


def open_logs(
    names: str, folder: Path, settings: Mapping[str, Any], step: int, complain: Callable[[str], None]
) -> Logs:
    """The logs that a user names.

    Args:
        names: of `LOGS`, with commas between them.
        folder: where those that write files may do so.
        settings: of the run.
        step: after which it begins; what an interrupted run has written beyond is removed.
        complain: called with a sentence if one fails.

    Raises:
        ValueError: there is no such log, its package is missing, or it cannot start.
    """
    opened: list[Log] = []
    for name in checked(names):
        try:
            opened.append(LOGS[name](folder, settings, step))
        except Exception as error:  # whatever a package may raise
            raise ValueError(f"the log {name!r} cannot start: {type(error).__name__}: {error}") from error
    return Logs(opened, complain)


def keep_until(path: Path, step: int) -> None:
    """Remove the lines of a file of JSON lines that come after a step: they will be written again.

    With them go lines that were cut short, or are none.
    """
    if path.exists():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        put(path, "".join(line for line in lines if line.endswith("\n") and _is_until(line, step)))


def _is_until(line: str, step: int) -> bool:
    try:
        return bool(json.loads(line)["step"] <= step)
    except (ValueError, LookupError, TypeError, RecursionError):
        return False
