"""What was measured, as JSON: charts and tables can be made from it later."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, fields
from pathlib import Path
from typing import Any

import torch

from fallline.bench.common.files import put
from fallline.bench.runs.environment import environment
from speed.results import Part, Row
from speed.timing import Turn

SCHEMA = 1
"""Goes up when a reader of older records would misread newer ones."""

UNITS = {
    "seconds": ["times", "ratios' times", "turns", "copy", "fresh.cold", "fresh.warm"],
    "bytes": ["bytes", "largest", "temporaries"],
    "bytes a second": ["bandwidth", "copy_bandwidth"],
    "words a parameter": ["words", "state"],
}
"""Of the fields of a record."""


def machine(device: str, threads: int) -> dict[str, str]:
    """Names and values of the machine and the versions; nothing that tells whose it is."""
    known = {name: value for name, value in environment(1).items() if name != "workers"}
    known["threads"] = str(threads)
    if device == "cuda":
        known["GPU"] = torch.cuda.get_device_name()
        known["CUDA"] = str(torch.version.cuda)
    return known


def as_record(parts: Sequence[Part], about: Mapping[str, str]) -> dict[str, Any]:
    """All numbers of some parts, and the machine that they come from."""
    return {
        "kind": "fallline bench step",
        "schema": SCHEMA,
        "units": UNITS,
        "machine": dict(about),
        "parts": [as_part(part) for part in parts],
    }


def as_part(part: Part) -> dict[str, Any]:
    """A part as plain values; its turns as one list a column, their seconds to four digits."""
    plain = {one.name: getattr(part, one.name) for one in fields(part)}
    plain["rows"] = [as_row(row) for row in part.rows]
    plain["copy"] = {clock: asdict(times) for clock, times in part.copy.items()}
    columns = [one.name for one in fields(Turn)]
    turns = [[float(f"{one:.4g}") if isinstance(one, float) else one for one in astuple(turn)] for turn in part.turns]
    plain["turns"] = dict(zip(columns, map(list, zip(*turns, strict=True)), strict=True))
    return plain


def as_row(row: Row) -> dict[str, Any]:
    """A method as plain values."""
    method = {one.name: getattr(row.method, one.name) for one in fields(row.method) if one.name != "make"}
    words = row.method.words
    return {
        **method,
        "words": asdict(words) if words else None,
        "expected_state": row.method.state,
        "turns": row.turns,
        "times": {clock: asdict(times) for clock, times in row.times.items()},
        "ratios": {clock: asdict(ratio) for clock, ratio in row.ratios.items()},
        "clock": row.clock,
        "floor": row.floor,
        "target": row.target,
        "met": row.met,
        "bytes": row.bytes,
        "bandwidth": row.bandwidth,
        "share": row.share,
        "state": row.state,
        "counts": asdict(row.counts) if row.counts else None,
        "fresh": asdict(row.fresh) if row.fresh else None,
        "temporaries": row.temporaries,
    }


def write(path: Path, parts: Sequence[Part], about: Mapping[str, str], **more: Any) -> Path:
    """Write the record of some parts, and more under other names, whole or not at all; a list of values is a line."""
    text = json.dumps({**as_record(parts, about), **more}, indent=1, allow_nan=False)
    text = re.sub(r"\[\n[^][{}]*\n *\]", lambda found: re.sub(r"\n *", "", found[0]), text)
    return put(path, text + "\n")
