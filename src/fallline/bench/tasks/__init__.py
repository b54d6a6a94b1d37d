"""The tasks by name. A task is one class in one file; `get_task` also takes `package.module:Class`."""

from functools import cache

from fallline.bench.names import make
from fallline.bench.tasks._task import Batch, Schedule, Split, Task

TASKS = {
    "bowl": "fallline.bench.tasks.bowl:Bowl",
    "digits": "fallline.bench.tasks.digits:Digits",
}


@cache
def get_task(name: str) -> Task:
    """The task of that name, or of the class `package.module:Class`; `ValueError` when there is none."""
    task: Task = make("task", name, TASKS, Task)
    return task


__all__ = ["TASKS", "Batch", "Schedule", "Split", "Task", "get_task"]
