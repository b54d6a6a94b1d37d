"""`fallline new`."""

import os
import shlex
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from fallline.bench.cli.terminal import console, readable_errors
from fallline.bench.common.files import put


class What(StrEnum):
    """What `fallline new` writes."""

    task = "task"


def new(
    what: Annotated[What, typer.Argument(metavar="task", help="What to write.")],
    path: Annotated[Path, typer.Argument(metavar="[FILE.py]", help="Where.")] = Path("my_task.py"),
) -> None:
    """Write a task of your own to start from: a file that runs as it is.

    [b]Examples[/b]

    fallline new task

    fallline race my_task.py --trials 5
    """
    with readable_errors():
        new_task(path)
        console.print(f"Written: {path}. It runs as it is: fallline race {shlex.quote(str(path))}", soft_wrap=True)


def new_task(path: Path) -> None:
    """Write a task that runs as it is, with comments that say what to change.

    Raises:
        ValueError: the file is there already, or cannot be written, or would be no Python file.
    """
    if path.suffix != ".py":
        raise ValueError(f"a task is a Python file, as my_task.py; got {path}")
    template = (files("fallline.bench.cli") / "task.py.txt").read_text(encoding="utf-8")
    if os.path.lexists(path):
        raise ValueError(f"{path} is there already, and is left as it is; give another name")
    try:
        path.parent.stat()  # a folder that is misspelled is not made
        put(path, template.replace("FILE", path.as_posix(), 1))
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror or error}") from error
