"""Values that a file holds, held against the types that are expected of them: what a stranger wrote is judged here."""

import dataclasses
import functools
import json
import math
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

WORDS = {float: "a number", int: "a whole number", str: "a text", bool: "true or false", types.NoneType: "null"}
LARGEST = 2**63
"""Whole numbers lie below it: neither SQLite nor Parquet has room for more."""


class Misfit(ValueError):
    """What is wrong with a value, and where in it."""


def decoded(text: object, kind: Any, name: str) -> Any:
    """What a JSON text says, if it is of a kind; see `check`."""
    if not isinstance(text, str):
        raise Misfit(f"{name} is {shown(text)}, and not a text")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # also for a number of so many digits, and lists within lists without end
        raise Misfit(f"{name} is not JSON") from None
    check(value, kind, name)
    return value


def read(path: Path, kind: Any) -> Any:
    """What a file of JSON says, if it is of a kind; else `Misfit`, which names the file."""
    try:
        return decoded(path.read_text(encoding="utf-8"), kind, str(path))
    except OSError as error:
        raise Misfit(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise Misfit(f"{path} is not UTF-8 text") from None


def check(value: Any, kind: Any, name: str) -> None:
    """That a value, as JSON has them, is of a kind.

    Args:
        value: what is there.
        kind: a type, of numbers, texts, lists, mappings, dataclasses and typed dictionaries. A dataclass stands for the
            mapping of its fields, of which those with a default may be missing, and no others may be there; a typed
            dictionary may have more. Numbers are finite, and texts can be written as UTF-8.
        name: of the value.

    Raises:
        Misfit: it is not.
    """
    if (allowed := _simple(kind)) is not None:
        if not isinstance(value, tuple(allowed)) or (isinstance(value, bool) and bool not in allowed):
            raise Misfit(f"{name} is {shown(value)}, and not {_words(kind)}")
        if not _sound(value):
            raise Misfit(f"{name} is {shown(value)}, which is out of bounds")
        return
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):  # of one kind and null
        if value is not None:
            check(value, next(one for one in inner if one is not types.NoneType), name)
    elif kind is Any:
        _check_any(value, name)
    elif origin is Literal:
        if not isinstance(value, str) or value not in inner:
            raise Misfit(f"{name} is {shown(value)}, and none of {', '.join(map(str, inner))}")
    elif origin in (list, tuple):
        _check_list(value, inner, name)
    else:
        if not isinstance(value, dict):
            raise Misfit(f"{name} is {shown(value)}, and not a mapping")
        if origin in (dict, Mapping):
            for key, one in value.items():
                check(key, str, f"a name in {name}")
                check(one, inner[1], f"{name}.{key}")
        else:
            _check_fields(value, kind, name)


def shown(value: object) -> str:
    """A value in a few letters."""
    match value:
        case None:
            return "null"
        case dict():
            return "a mapping"
        case list() | tuple():
            return "a list"
        case bytes():
            return "bytes"
        case float() if not math.isfinite(value):
            return "no finite number"
        case int() if abs(value) >= LARGEST:
            return "a very large number"
    text = repr(value) if isinstance(value, str) else str(value).lower()
    text = text.encode(errors="backslashreplace").decode()
    return text if len(text) <= 40 else f"{text[:39]}…"


def _check_list(value: Any, inner: tuple[Any, ...], name: str) -> None:
    if not isinstance(value, list | tuple):
        raise Misfit(f"{name} is {shown(value)}, and not a list")
    every = inner[0] if len(inner) == 1 or inner[1] is ... else None
    if every is None and len(value) != len(inner):
        raise Misfit(f"{name} has {len(value)} values, and not {len(inner)}")
    if (allowed := _simple(every)) and set(map(type, value)) <= allowed and all(map(_sound, value)):
        return  # a curve has many numbers
    for i, one in enumerate(value):
        check(one, every or inner[i], f"{name}[{i}]")


def _check_fields(value: Mapping[str, Any], kind: Any, name: str) -> None:
    known, required = _fields(kind)
    for field in required - value.keys():
        raise Misfit(f"{name} has no {field}")
    for field, one in value.items():
        if field in known:
            check(one, known[field], f"{name}.{field}")
        elif not is_typeddict(kind):
            raise Misfit(f"{name} has a {shown(field)}, which this version of fallline does not know")


@functools.cache
def _fields(kind: Any) -> tuple[dict[str, Any], set[str]]:
    """The kinds of a dataclass's or a typed dictionary's fields, and those that must be there."""
    hints = get_type_hints(kind)
    if is_typeddict(kind):
        return hints, set(kind.__required_keys__)
    return hints, {
        field.name
        for field in dataclasses.fields(kind)
        if field.default is field.default_factory is dataclasses.MISSING
    }


@functools.cache
def _simple(kind: Any) -> frozenset[type] | None:
    """The types of a number, a text, a truth value or one of several such; None for what has parts."""
    if kind in WORDS:
        return frozenset((int, float) if kind is float else (kind,))
    if get_origin(kind) in (Union, types.UnionType):
        parts = [_simple(one) for one in get_args(kind)]
        found = [part for part in parts if part is not None]
        return frozenset().union(*found) if len(found) == len(parts) else None
    return None


def _sound(value: Any) -> bool:
    """Whether a number is finite, and a text such that it can be written."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, str):
        return value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value)
    return value is None or -LARGEST <= value < LARGEST


def _check_any(value: Any, name: str) -> None:
    if isinstance(value, dict):
        for key, one in value.items():
            check(key, str, f"a name in {name}")
            _check_any(one, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for i, one in enumerate(value):
            _check_any(one, f"{name}[{i}]")
    else:
        check(value, float | str | bool | None, name)


def _words(kind: Any) -> str:
    parts = get_args(kind) or (kind,)
    words = [word for one, word in WORDS.items() if one in parts]
    return " or ".join(words)
