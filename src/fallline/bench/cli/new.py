"""A task of one's own to start from: what `fallline new task` writes."""

import os
from importlib.resources import files
from pathlib import Path

from fallline.bench.common.files import put


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
