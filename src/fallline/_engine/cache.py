"""Where compiled kernels are kept."""

import functools
import os
import tempfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path


@functools.cache
def folder() -> Path:
    """``$FALLLINE_CACHE``, else ``fallline`` in the user's cache folder, else one for this process; made if need be."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    path = Path(os.environ.get("FALLLINE_CACHE") or Path(base) / "fallline")
    try:
        path = path.expanduser().absolute()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except (OSError, RuntimeError):  # of a user without a home
        return spare()


@functools.cache
def spare() -> Path:
    """A folder of this process, for where the usual one cannot be written, or no more."""
    return Path(tempfile.mkdtemp(prefix="fallline-"))


def kept(name: str, suffix: str, make: Callable[[Path], object]) -> Path:
    """The file of this name in the folder. Where it is missing or damaged, ``make`` writes it to the path that it gets.

    A file's name ends in a sum of what it holds: a library that was cut off, by a full disk say, would end the process
    that loads it.

    Raises:
        OSError: no folder can be written.
    """
    for path in sorted(folder().glob(f"{name}-*{suffix}")):
        if path.name == _named(name, suffix, path):
            return path
    try:
        return _made(folder(), name, suffix, make)
    except OSError:  # it is full, or was taken away
        return _made(spare(), name, suffix, make)


def _made(folder: Path, name: str, suffix: str, make: Callable[[Path], object]) -> Path:
    with tempfile.TemporaryDirectory(dir=folder) as place:
        made = Path(place) / f"{name}{suffix}"
        make(made)
        last = _named(name, suffix, made) or made.name
        return made.replace(folder / last)  # in one go: another process finds it whole or not


def _named(name: str, suffix: str, path: Path) -> str | None:
    try:
        return f"{name}-{sha256(path.read_bytes()).hexdigest()[:16]}{suffix}"
    except OSError:
        return None
