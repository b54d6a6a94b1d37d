"""The tasks by name. A task is one class in one file; `get_task` also takes `package.module:Class`."""

import importlib
from functools import cache

from fallline.bench.names import unknown
from fallline.bench.tasks._task import Batch, Schedule, Split, Task

TASKS = {
    "bowl": "fallline.bench.tasks.bowl:Bowl",
    "digits": "fallline.bench.tasks.digits:Digits",
}


@cache
def get_task(name: str) -> Task:
    """The task of that name, or of the class `package.module:Class`; `ValueError` when there is none."""
    path = TASKS.get(name, name)
    module_name, colon, class_name = path.partition(":")
    if not colon:
        raise unknown("task", name, TASKS)
    try:
        task = getattr(importlib.import_module(module_name), class_name)()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"the task {name!r} cannot be imported: {error}") from error
    if not isinstance(task, Task):
        raise ValueError(f"{name!r} is no task: it must be a subclass of fallline.bench.tasks.Task")
    return task


__all__ = ["TASKS", "Batch", "Schedule", "Split", "Task", "get_task"]
