"""Options that several commands take, and what they are read into."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fallline.bench.common.names import unknown
from fallline.bench.common.spaces import as_plain, read_spaces
from fallline.bench.contenders import TEAM, contenders, get_contender, spelled
from fallline.bench.protocol.design import TRACKS, Design
from fallline.bench.tasks import get_task, make_sure

OutOption = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where records and report lie.")]
TasksArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[TASK]...",
        help="What to race on: names of [b]fallline list[/b], my_task.py, package.module:Class.",
        show_default="digits",
    ),
]
OptimizersOption = Annotated[
    str,
    typer.Option(
        metavar="A,B,C",
        help="Who races: names of [b]fallline list[/b], any of torch.optim, package.module:Class; [b]all[/b] for the "
        "whole list; NAME@SCHEDULE under another schedule.",
        show_default="those marked * there",
    ),
]
USUAL = ",".join(TEAM)
TracksOption = Annotated[
    str, typer.Option(metavar="A,B", help="With settings [b]tuned[/b] for the task, and with shipped [b]defaults[/b].")
]
SpacesOption = Annotated[
    Path | None, typer.Option(metavar="FILE.toml", help="Search spaces of your optimizers, and changes to others.")
]
JobsOption = Annotated[
    int | None, typer.Option(min=1, help="Runs at a time, one thread each.", show_default="one a core")
]
DeviceOption = Annotated[str, typer.Option(metavar="cpu|cuda", help="Where models train.")]


def checked_tasks(names: Sequence[str]) -> tuple[str, ...]:
    """The tasks' names, once each, every one known to be a task."""
    plain = [Path(name).as_posix() if ".py" in name else name for name in names]  # ./my_task.py is my_task.py
    try:
        for name in plain:
            make_sure(get_task(name))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="TASK") from error
    return tuple(dict.fromkeys(plain))


def checked_names(optimizers: str) -> tuple[str, ...]:
    """The optimizers' names, every one known to be an optimizer."""
    names = [name.strip() for name in optimizers.split(",") if name.strip()]
    names = [spelled(name) for name in names]
    names = [one for name in names for one in (contenders() if name == "all" else (name,))]
    try:
        if not names:
            raise ValueError("name at least one optimizer.")
        for name in names:
            get_contender(name)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--optimizers") from error
    return tuple(dict.fromkeys(names))


def checked_tracks(tracks: str) -> tuple[str, ...]:
    """The tracks' names."""
    names = tuple(dict.fromkeys(name.strip() for name in tracks.split(",") if name.strip()))
    for name in names:
        if name not in TRACKS:
            raise typer.BadParameter(str(unknown("track", name, TRACKS)), param_hint="--tracks")
    if not names:
        raise typer.BadParameter("name at least one track.", param_hint="--tracks")
    return names


def plain_spaces(path: Path | None) -> dict[str, dict[str, Any]]:
    """What a file says of search spaces, as plain values."""
    if path is None:
        return {}
    try:
        found: dict[str, dict[str, Any]] = {}
        for written, changes in read_spaces(path).items():
            name = spelled(written)
            get_contender(name)  # or there is no such optimizer
            if name in found:
                raise ValueError(f"{path}: [{written}] changes {name}, which another table has changed")
            found[name] = {setting: as_plain(value) for setting, value in changes.items()}
        return found
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error), param_hint="--spaces") from error


def existing(path: Path) -> Path:
    """A database that is there."""
    if not path.exists():
        raise ValueError(f"there is no file {path}")
    return path


def command_line(design: Design) -> str:
    """The command that makes this race, every choice written out."""
    words = ["fallline race", *map(shlex.quote, design.tasks), "--optimizers", shlex.quote(",".join(design.optimizers))]
    words += ["--tracks", ",".join(design.tracks)] if design.tracks != ("tuned",) else []
    words += ["--finalists", str(design.finalists)] if design.finalists != Design.finalists else []
    words += ["--trials", str(design.trials), "--seeds", str(design.seeds), "--seed", str(design.seed)]
    words += ["--baseline", shlex.quote(design.baseline)] if design.baseline else []
    words += ["--until-decided"] if design.until_decided else []
    words += ["--extend"] if design.extend else []
    words += ["--spaces FILE.toml"] if design.spaces else []
    words += ["--device", design.device] if design.device != "cpu" else []
    return " ".join(words)
