"""Where the numbers of a run go: lines of JSON, TensorBoard, Weights & Biases, trackio.

`fallline train` writes to them while a run goes on, a race when a run is over and has come back from its worker.
"""

import importlib
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from fallline.bench.common.files import append, put
from fallline.bench.common.names import unknown

PROJECT = "fallline"
"""The project at Weights & Biases (unless WANDB_PROJECT names another) and in trackio."""

Scalars = Mapping[str, float]


class Closing(Protocol):
    """What has to be closed."""

    def close(self) -> None:
        """Nothing more comes."""


class Log(Closing, Protocol):
    """Takes the numbers of one run; any of these may raise, and the run goes on without that log."""

    def write(self, step: int, scalars: Scalars) -> None:
        """Take what was measured at a step."""


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
    """Events in a folder, on the disk after each look."""

    def __init__(self, folder: Path, step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(folder, purge_step=step + 1 if step else None)

    def summary(self, value: Any) -> None:
        """Write a summary as torch makes it."""
        files: Any = self.writer.file_writer
        files.add_summary(value)

    def write(self, step: int, scalars: Scalars) -> None:
        """Write a point of each curve."""
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        """Close the file."""
        self.writer.close()


class Tracked:
    """A run of Weights & Biases or of trackio, whose interfaces are alike."""

    def __init__(self, package: str, project: str, name: str, config: Mapping[str, Any], **more: Any) -> None:
        with redirect_stdout(io.StringIO()):  # trackio prints lines that would tear the display
            tracker = library(package)
            run = tracker.init(project=project, name=name, config=config, **more)
            # trackio's package stands for the run: what a run's own `finish` ends is ended again at exit.
            self.run = tracker if package == "trackio" else run

    def write(self, step: int, scalars: Scalars) -> None:
        """Log what was measured."""
        with redirect_stdout(io.StringIO()):
            self.run.log(dict(scalars), step=step)

    def close(self) -> None:
        """Finish the run."""
        with redirect_stdout(io.StringIO()):
            self.run.finish()


def _events(folder: Path, settings: Mapping[str, Any], step: int) -> Log:
    log = TensorBoard(folder / "tensorboard", step)
    if not step:
        log.writer.add_text("settings", "\n".join(f"- {name}: {value}" for name, value in settings.items()))
    return log


def _tracked(package: str, folder: Path, settings: Mapping[str, Any]) -> Log:
    more = {"dir": str(folder)} if package == "wandb" else {}
    return Tracked(package, os.environ.get("WANDB_PROJECT", PROJECT), folder.name, plain(settings), **more)


LOGS: dict[str, Callable[[Path, Mapping[str, Any], int], Log]] = {
    "jsonl": Jsonl,
    "tensorboard": _events,
    "wandb": lambda folder, settings, step: _tracked("wandb", folder, settings),
    "trackio": lambda folder, settings, step: _tracked("trackio", folder, settings),
}
"""Logs of `fallline train`, by name: of a folder, the settings, and the step after which the run begins."""

T = TypeVar("T", bound=Closing)


class Several(Generic[T]):
    """Several logs as one. One that fails is complained about, once, and dropped."""

    failed = "the log {} has failed and is written no more; the run goes on ({})"

    def __init__(self, members: Iterable[T], complain: Callable[[str], None]) -> None:
        self.members, self.complain = list(members), complain

    def each(self, call: Callable[[T], None]) -> None:
        """Call something of each."""
        for member in self.members[:]:
            try:
                call(member)
            except Exception as error:
                self.members = [other for other in self.members if other is not member]
                with suppress(Exception):
                    member.close()
                self.complain(self.failed.format(type(member).__name__, f"{type(error).__name__}: {error}"))

    def close(self) -> None:
        """Close each, once."""
        self.each(lambda member: member.close())
        self.members = []


class Logs(Several[Log]):
    """The logs of a run."""

    def write(self, step: int, scalars: Scalars) -> None:
        """Hand the numbers to each log."""
        self.each(lambda log: log.write(step, scalars))


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


def library(name: str) -> Any:
    """A package that offers `init`; `ImportError` without."""
    package = importlib.import_module(name)
    if not hasattr(package, "init"):  # a folder of that name, and wandb leaves one behind, passes for a package
        raise ImportError(f"No package named {name!r}, only a folder")
    return package


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values that every format can hold; what is no text, truth value or finite number is given as text."""

    def holds(value: object) -> bool:
        return value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))

    return {name: value if holds(value) else str(value) for name, value in values.items()}
