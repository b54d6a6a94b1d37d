"""Where compiled kernels are kept."""

import functools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path


@functools.cache
def folder() -> Path:
    """``$FALLLINE_CACHE``, else ``fallline`` in the user's cache folder, else one for this process; made if need be."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    path = Path(os.environ.get("FALLLINE_CACHE") or Path(base) / "fallline").expanduser()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError:
        return Path(tempfile.mkdtemp(prefix="fallline-"))


def kept(name: str, make: Callable[[Path], object]) -> Path:
    """The file of this name in the folder. Where it is missing, ``make`` writes it to the path that it is given."""
    path = folder() / name
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as place:
            made = Path(place) / name
            make(made)
            made.replace(path)  # in one go: another process finds it whole or not at all
    return path
