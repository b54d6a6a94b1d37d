"""Names that people type: what they stand for, or which one they may have meant."""

import difflib
import importlib
from collections.abc import Iterable, Mapping
from typing import Any


def make(kind: str, name: str, paths: Mapping[str, str], base: type) -> Any:
    """An instance of the class that a name stands for, or of `package.module:Class`; `ValueError` if there is none."""
    module_name, colon, class_name = paths.get(name, name).partition(":")
    if not colon:
        raise unknown(kind, name, paths)
    try:
        made = getattr(importlib.import_module(module_name), class_name)()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"the {kind} {name!r} cannot be imported: {error}") from error
    except Exception as error:  # whatever a module of somebody's own, or its class, may raise
        raise ValueError(f"the {kind} {name!r} cannot be imported: {type(error).__name__}: {error}") from error
    if not isinstance(made, base):
        public = f"{base.__module__.rpartition('.')[0]}.{base.__qualname__}"
        raise ValueError(f"{name!r} is no {kind}: it must be a subclass of {public}")
    return made


def unknown(kind: str, name: str, known: Iterable[str]) -> ValueError:
    """The error for a name that nothing has, with the nearest that something has."""
    choices = sorted(set(known))
    lower = {choice.lower(): choice for choice in choices}
    near = [lower[match] for match in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.6)]
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(choices)}."
    return ValueError(f"there is no {kind} {name!r}; {hint}")


def needed(name: str, what: str, *, extra: str) -> Any:
    """A package that only some need, imported; `ValueError` with what to install where it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ValueError(f'{what} needs {name}: pip install "fallline[{extra}]"') from None
