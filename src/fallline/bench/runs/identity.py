"""What a run is: the hash of all that determines its numbers.

Settings, seed and horizon; the source of the task, of the loop and of the optimizer; the data's checksum; the versions
of torch and of the packages that a task is made with. A run under a known key need not be run again.
"""

import ast
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping, Set
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fallline
from fallline.bench import contenders
from fallline.bench.common import seeds
from fallline.bench.contenders import schedules
from fallline.bench.runs import loop
from fallline.bench.runs import run as outcomes
from fallline.bench.runs.run import Run
from fallline.bench.tasks import Task
from fallline.bench.tasks._file import files_of, reading


def fingerprint(
    task: Task, optimizer: contenders.AnyOptimizer, make: contenders.Make, schedule: tuple[Any, ...] = ()
) -> str:
    """The hash of the code and the data that make a run's numbers; torch by its version.

    Args:
        task: on which.
        optimizer: what `make` makes.
        make: how the optimizer is made.
        schedule: how its rates run down.
    """
    members = optimizer.members if isinstance(optimizer, contenders.Team) else (optimizer,)
    parts = [torch.__version__, str(task.steps), str(task.evaluations), checksum(task), inspect.getsource(make)]
    parts += [repr(schedule), *map(inspect.getsource, (outcomes, loop, schedules, seeds))]
    parts += sources(type(task))
    for member in members:
        parts += _optimizer_source(type(member))
    return digest(parts)


def run_key(run: Run, code: str) -> str:
    """The key of a run, given the `fingerprint` of its code."""
    return digest([code, json.dumps(dataclasses.asdict(run), sort_keys=True)])


def race_id(*parts: Any) -> str:
    """The same command on the same code, data and spaces is the same race."""
    return digest([json.dumps(part, sort_keys=True) for part in parts])[:16]


def _optimizer_source(kind: type) -> list[str]:
    """The source behind an optimizer's class: our whole library, as its methods share their base; its own module."""
    ours = [library_source()] if "fallline" in map(_package, kind.__mro__) else []
    return [kind.__qualname__, *ours, *([] if _package(kind) in ("torch", "fallline") else sources(kind))]


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]


@cache
def library_source() -> str:
    """All modules of the library, one after another."""
    folder = Path(fallline.__file__).parent
    apart = (folder / "bench", folder / "papers")
    files = (file for file in sorted(folder.rglob("*.py")) if not any(map(file.is_relative_to, apart)))
    return "".join(file.read_text(encoding="utf-8") for file in files)


@cache
def sources(kind: type) -> list[str]:
    """The source of a class's module, and of all that it imports as far as that is no installed package.

    Installed packages go by their versions. What is imported is read from the text, so that it does not matter what
    has been loaded by now; modules go by their places in their folder, so that it does not matter where that lies.
    """
    first = sys.modules.get(kind.__module__)
    if first is None or getattr(first, "__file__", None) is None:  # typed into an interpreter
        return [kind.__qualname__]
    file = Path(str(first.__file__))
    home = file.parent
    if "." in kind.__module__ and _package(kind) != "fallline":  # whose tasks do not depend on all of it
        home = (home, *home.parents)[kind.__module__.count(".") - (file.name != "__init__.py")]
    homes = (home, Path(__file__).parents[1] / "tasks" / "networks")
    found: dict[str, str] = {}
    queue = [(kind.__module__, file)]
    while queue:
        name, file = queue.pop()
        place = file.relative_to(home).as_posix() if file.is_relative_to(home) else name
        if place in found:
            continue
        loaded = getattr(sys.modules.get(name), "__source__", None)  # of a task's file, as it was when it was read
        content = loaded if isinstance(loaded, bytes) else file.read_bytes()
        found[place] = hashlib.sha256(content).hexdigest()
        for other in _imports(name, file, content):
            package = other.partition(".")[0]
            there = _file(other)
            if there is None or package in sys.stdlib_module_names:
                continue
            if package == "fallline" and (there.name == "__init__.py" or not any(map(there.is_relative_to, homes))):
                continue
            if package != "fallline" and {"site-packages", "dist-packages"} & set(there.parts):
                found[package] = _version(package)
            else:
                queue.append((other, there))
    return [kind.__qualname__, *(f"{name} {text}" for name, text in sorted(found.items()))]


def _imports(name: str, file: Path, content: bytes) -> Iterator[str]:
    """The modules that a module's text may import, anywhere in it, each with the packages around it."""
    if file.suffix != ".py":
        return
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):  # what it is not imported for, or it would have failed
        return
    names = [name]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            if node.level and not package:  # a file by itself has no package
                continue
            base = importlib.util.resolve_name(base, package)
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    for one in names:
        parts = one.split(".")
        yield from (".".join(parts[:count]) for count in range(1, len(parts) + 1))


def _file(name: str) -> Path | None:
    """The file of a module, which need not be loaded; None if it has none, or there is no such module."""
    module = sys.modules.get(name)
    if module is not None:
        file = getattr(module, "__file__", None)
        return Path(file) if file else None
    spec = _find(name)
    return Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None


def _find(name: str) -> ModuleSpec | None:
    """A module's whereabouts; nothing is imported for it."""
    parent = name.rpartition(".")[0]
    if not parent:
        return PathFinder.find_spec(name)
    loaded = sys.modules.get(parent)
    around = _find(parent) if loaded is None else loaded.__spec__
    if around is None or around.submodule_search_locations is None:
        return None
    return PathFinder.find_spec(name, list(around.submodule_search_locations))


@cache
def _version(package: str) -> str:
    """An installed package's version, as its distribution says it or, where that has another name, its own text."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        file = _file(package)
        text = file.read_text(encoding="utf-8", errors="replace") if file and file.suffix == ".py" else ""
        if said := re.search(r"""^__version__ *= *["'](.+)["']""", text, re.MULTILINE):
            return said[1]
    names = importlib.metadata.packages_distributions().get(package, ())  # which takes most of a second
    return " ".join(sorted(f"{name} {importlib.metadata.version(name)}" for name in set(names)))


@cache
def checksum(task: Task) -> str:
    """The hash of `task.data()`, and of the files beside the task that it has read."""
    total = hashlib.sha256()
    with reading(task):
        for part in task.data():
            _take_in(total, part)
    for file in files_of(task):
        _take_in(total, [file.name, file])
    return total.hexdigest()


def _take_in(total: Any, part: Any) -> None:
    """Add a part to a hash, after its kind and its size: no two lists of parts then run into the same bytes."""
    if isinstance(part, Tensor):
        part = part.detach().to_dense() if part.layout is not torch.strided else part.detach()
        total.update(f"tensor {part.dtype} {tuple(part.shape)}:".encode())
        total.update(part.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    elif isinstance(part, np.ndarray | np.generic):
        part = np.asarray(part)
        total.update(f"array {part.dtype} {part.shape}:".encode())
        if part.dtype.hasobject:  # its bytes are places in memory
            _take_in(total, part.tolist())
        else:
            total.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8))
    elif isinstance(part, Path) and part.is_dir():
        _take_in(total, {file.relative_to(part).as_posix(): file for file in part.rglob("*") if file.is_file()})
    elif isinstance(part, Path):
        with part.open("rb") as file:
            total.update(b"file:" + hashlib.file_digest(file, "sha256").digest())
    elif isinstance(part, Mapping):
        total.update(f"{len(part)} by name:".encode())
        for name in sorted(part, key=str):
            _take_in(total, str(name))
            _take_in(total, part[name])
    elif isinstance(part, Set):
        _take_in(total, sorted(map(repr, part)))
    elif isinstance(part, tuple | list | range):
        total.update(f"{len(part)} parts:".encode())
        for one in part:
            _take_in(total, one)
    elif isinstance(part, bytes | str | int | float | complex | None):
        content = repr(part).encode()
        total.update(f"plain {len(content)}:".encode() + content)
    elif hasattr(part, "__array__"):  # a data frame, an image
        _take_in(total, np.asarray(part))
    elif dataclasses.is_dataclass(part) and not isinstance(part, type):
        _take_in(total, {field.name: getattr(part, field.name) for field in dataclasses.fields(part)})
    else:  # nothing is known of it, and its text may tell where in memory it lies
        _take_in(total, f"a {type(part).__qualname__}")


def digest(parts: list[str]) -> str:
    """One hash of several texts."""
    total = hashlib.sha256()
    for part in parts:  # with its length, so that no two lists of parts run into the same text
        total.update(f"{len(part)}:{part}".encode())
    return total.hexdigest()
