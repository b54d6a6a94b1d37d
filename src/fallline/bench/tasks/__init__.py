"""The tasks by name. A task is one class in one file; `get_task` also takes `my_task.py` and `package.module:Class`."""

from functools import cache
from pathlib import Path

from fallline.bench.names import make
from fallline.bench.tasks._check import check
from fallline.bench.tasks._file import fill_in, is_file, load_file
from fallline.bench.tasks._task import Batch, Schedule, Split, Task

TASKS = {
    "bowl": "fallline.bench.tasks.bowl:Bowl",
    "digits": "fallline.bench.tasks.digits:Digits",
}


def get_task(name: str) -> Task:
    """The task of that name, of the file `my_task.py` or `my_task.py:Class`, or of the class `package.module:Class`.

    The same object each time, so that data are read once in a process.

    Raises:
        ValueError: when there is none, and why.
    """
    return load_file(name) if is_file(name) else _named(name)


@cache
def _named(name: str) -> Task:
    if name not in TASKS and Path(f"{name}.py").is_file():
        raise ValueError(f"there is no task {name!r}; did you mean {name}.py?")
    task: Task = make("task", name, TASKS, Task)
    fill_in(type(task), type(task).__name__)
    return task


__all__ = ["TASKS", "Batch", "Schedule", "Split", "Task", "check", "get_task"]
