"""A task from a file of one's own: `my_task.py`, or `my_task.py:Class` where the file has several."""

import hashlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing.util import get_temp_dir
from pathlib import Path
from types import ModuleType
from typing import Any

from fallline.bench.tasks._task import Task

WHAT_A_TASK_IS = (
    "a task is a subclass of fallline.bench.tasks.Task with `steps`, `model`, `batches` and `losses`; "
    "`fallline new task` writes one to start from"
)


def is_file(name: str) -> bool:
    """Whether a task is named by a file: `my_task.py`, `folder/my_task.py:Class`."""
    return _split(name) is not None


def load_file(name: str) -> Task:
    """The task of a Python file; read once in a process, and again when the file has changed.

    Raises:
        ValueError: in one sentence, what keeps the file from being a task, with its line.
    """
    split = _split(name)
    assert split is not None, name
    path, class_name = Path(split[0]).expanduser().resolve(), split[1]
    try:
        source = path.read_bytes()
    except OSError as error:
        hint = f"; `fallline new task {split[0]}` writes a template" if isinstance(error, FileNotFoundError) else ""
        raise ValueError(f"there is no task {name!r}: {error.strerror or error}{hint}") from error
    return _load(path, class_name, source)


def describe_error(error: BaseException, file: Path) -> str:
    """An exception in one line: the file's line that led to it, its kind, and the first line of what it says."""
    if isinstance(error, SyntaxError):
        where = Path(error.filename or file).name
        return f"{where}, line {error.lineno}: {error.msg}" if error.lineno else f"{where}: {error.msg}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == file]
    said = str(error).strip().splitlines()
    what = f"{type(error).__name__}: {said[0]}" if said else type(error).__name__
    return f"{file.name}, line {lines[-1]}: {what}" if lines else f"{file.name}: {what}"


def _split(name: str) -> tuple[str, str] | None:
    """The path and the class (or "") that a name stands for, if it is that of a file."""
    match = re.fullmatch(r"(.+\.py)(?::(\w+))?", name)
    return (match[1], match[2] or "") if match else None


def files_of(task: Task) -> list[Path]:
    """The files that a task of one's own has read so far from beside it, such as JSON, YAML or text; not its code."""
    module = sys.modules.get(type(task).__module__)
    return sorted(vars(module).get("__read__", ())) if module is not None else []


@contextmanager
def reading(task: Task | ModuleType) -> Iterator[None]:
    """Note which files beside it the task, or its module, opens meanwhile: they belong to what a run is."""
    module = task if isinstance(task, ModuleType) else sys.modules.get(type(task).__module__)
    read = None if module is None else vars(module).get("__read__")
    if read is None:  # no task of a file
        yield
        return
    _watch()
    _READING.append((Path(vars(module)["__file__"]).parent, read))
    try:
        yield
    finally:
        _READING.pop()


_READING: list[tuple[Path, set[Path]]] = []
"""The folders that are watched, and the files that were opened there."""


@cache
def _watch() -> None:
    """An audit hook, which Python cannot take away again: it looks at nothing unless a task is being read."""

    def opened(event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or not _READING or not isinstance(arguments[0], str | bytes):
            return
        folder, read = _READING[-1]
        path = Path(os.fsdecode(arguments[0]))
        mode, flags = arguments[1] or "", arguments[2]
        writes = any(letter in mode for letter in "wax+") or (
            isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
        )
        if writes or path.suffix in (".py", ".pyc", ".so"):
            return
        path = Path(os.path.abspath(path))
        if path.is_relative_to(folder) and path.is_file():
            read.add(path)

    sys.addaudithook(opened)


@cache
def _load(path: Path, class_name: str, source: bytes) -> Task:
    module = _module(path, source)
    kinds = {
        name: kind
        for name, kind in vars(module).items()
        if isinstance(kind, type) and issubclass(kind, Task) and kind.__module__ == module.__name__
    }
    whole = {name: kind for name, kind in kinds.items() if not inspect.isabstract(kind)}
    if class_name and class_name not in kinds:
        has = f"; it has {', '.join(kinds)}" if kinds else f"; {WHAT_A_TASK_IS}"
        raise ValueError(f"{path.name} has no task {class_name!r}{has}")
    asked = [class_name] if class_name else list(whole or kinds)
    if not asked:
        raise ValueError(f"{path.name} has no task: {WHAT_A_TASK_IS}")
    if asked[0] not in whole:
        lacks = ", ".join(sorted(kinds[asked[0]].__abstractmethods__))
        raise ValueError(f"{path.name}: the class {asked[0]} lacks {lacks}; {WHAT_A_TASK_IS}")
    if len(asked) > 1:
        choices = " or ".join(f"{path.name}:{name}" for name in asked)
        raise ValueError(f"{path.name} has several tasks; say which: {choices}")
    kind = whole[asked[0]]
    fill_in(kind, path.stem if len(whole) == 1 else f"{path.stem}:{kind.__name__}")
    try:
        with reading(module):
            return kind()
    except Exception as error:
        raise ValueError(describe_error(error, path)) from error


def fill_in(kind: type[Task], name: str) -> None:
    """Give a class the `name` and the `summary` that its module does not say; the summary is its docstring's start."""

    def says(attribute: str) -> bool:
        return any(attribute in vars(base) for base in kind.__mro__ if base.__module__ == kind.__module__)

    if not says("name"):
        kind.name = name
    if not says("summary"):
        said = (kind.__doc__ or "").strip().splitlines()
        kind.summary = said[0].rstrip(".") if said else f"the task {kind.name}"


def _module(path: Path, source: bytes) -> ModuleType:
    """The file as a module, under a name that every process derives from the path: for pickle, and `inspect`."""
    stem, digest = re.sub(r"\W", "_", path.stem), hashlib.sha256(str(path).encode()).hexdigest()[:12]
    name = f"fallline_file_{stem}_{digest}"
    loaded = sys.modules.get(name)
    if loaded is not None and vars(loaded).get("__source__") == source:
        return loaded
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    vars(module).update(__source__=source, __read__=set())
    if str(path.parent) not in sys.path:  # so that the file finds its neighbours, as when Python runs it
        sys.path.insert(0, str(path.parent))
    sys.modules[name] = module
    try:
        # Not by the spec's loader: its bytecode cache misses a change within a second.
        with reading(module):
            exec(compile(source, path, "exec"), vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ValueError(describe_error(error, path)) from error
    _let_children_import(name, path, source)
    return module


def _let_children_import(name: str, path: Path, source: bytes) -> None:
    """Leave the module where a started process finds it, so that what its file defines can be unpickled there.

    Such a process knows the name alone, and the places in `sys.path`. The folder goes with this process.
    """
    place = Path(get_temp_dir(), hashlib.sha256(bytes(path) + source).hexdigest()[:12])
    place.mkdir(exist_ok=True)
    text = f"__file__, __source__ = {str(path)!r}, {source!r}\nexec(compile(__source__, __file__, 'exec'))\n"
    unfinished = place / f"{name}.{os.getpid()}"
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(place / f"{name}.py")
    others = [entry for entry in sys.path if not Path(entry, f"{name}.py").exists()]
    sys.path[:] = [*others, str(place)]
