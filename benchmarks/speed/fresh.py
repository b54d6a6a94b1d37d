"""What only a new process can tell: the seconds of a first step, with and without compiler caches; temporaries."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speed.methods import Method

CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "XDG_CACHE_HOME", "FALLLINE_CACHE")
"""Environment variables that say where compiled code is kept."""

HERE = str(Path(__file__).parents[1])
"""Where this package is imported from."""

PATIENCE = 900.0
"""Seconds until a process is given up."""


@dataclass(frozen=True)
class Fresh:
    """What new processes told of a method."""

    cold: float | None = None
    """Seconds of the first step, nothing cached."""

    warm: float | None = None
    """The same with the caches that the first process left; None if it left none."""

    temporaries: int | None = None
    """Bytes at the peak of later steps, beyond parameters, gradients and state; None where the system does not tell."""

    failure: str | None = None
    """Why a process told nothing."""


def fresh(method: Method, task: dict[str, Any], files: Sequence[Path], first: bool = True) -> Fresh:
    """Start a method in a new process with empty caches, and where those are filled then in another.

    Args:
        method: which.
        task: `set`, `dtype`, `device`, `threads`.
        files: which define more methods, it may be.
        first: whether anybody wants the seconds; else there is one process, with the caches as they are.
    """
    task = {**task, "method": method.name, "files": [str(path.resolve()) for path in files]}
    if not first:
        try:
            return Fresh(temporaries=ask(task, {})["temporaries"])
        except RuntimeError as error:
            return Fresh(failure=str(error))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        caches = {name: str(Path(folder, name.lower())) for name in CACHES}
        told: dict[str, Any] = {}
        try:
            cold = told = ask(task, caches)
            filled = any(path.is_file() for path in Path(folder).rglob("*"))
            warm = told = ask(task, caches) if filled else {**cold, "seconds": None}
        except RuntimeError as error:
            return Fresh(cold=told.get("seconds"), failure=str(error))
    return Fresh(cold["seconds"], warm["seconds"], warm["temporaries"])


def ask(task: dict[str, Any], environment: dict[str, str]) -> dict[str, Any]:
    """What a new process finds: see `speed.alone`.

    Raises:
        RuntimeError: it failed, or took more than a quarter of an hour.
    """
    path = os.pathsep.join(filter(None, [HERE, os.environ.get("PYTHONPATH")]))
    env = {**os.environ, **environment, "PYTHONPATH": path}
    command = [sys.executable, "-m", "speed.alone", json.dumps(task)]
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"no first step within {PATIENCE:.0f} seconds") from None
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
