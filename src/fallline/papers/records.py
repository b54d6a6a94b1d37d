"""The records of experiments: their files, and what was run, in words. Experiments, claims and pages share them."""

from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import fallline

RECORDS = Path("benchmarks") / "records"
"""Where a checkout keeps its records."""

Record = dict[str, Any]
"""What the JSON file of an experiment holds: see `reproduce.compose`."""

Scale = Literal["cpu", "full"]


class Known(TypedDict):
    """What the list says of a record; there is more in it."""

    design: "Asked"
    reused: int
    cpu_seconds: float
    seconds: float
    environment: dict[str, str]
    started_at: str


class Asked(TypedDict):
    """Of its design."""

    quick: bool
    optimizers: list[str]
    scale: NotRequired[str | None]
    cases: NotRequired[list[str]]


def folder() -> Path | None:
    """Where a checkout keeps its records: here, or beside the package; None where there is none."""
    for root in (Path(), Path(fallline.__file__).parents[2]):
        if (root / RECORDS).is_dir():
            return root / RECORDS
    return None


def stem_of(name: str, scale: Scale | None = None) -> str:
    """How the files of an experiment are called; at full scale others than at the small one."""
    return f"repro-{name.replace(':', '.')}{'-full' if scale == 'full' else ''}"


def measured(record: Record) -> str:
    """The time by the clock, unless runs were taken over from before; then that of the processors."""
    if record["reused"]:
        return f"{minutes(record['cpu_seconds'])} of CPU time, measured"
    return f"{minutes(record['seconds'])} on {cores(record)}, measured"


def cores(record: Record) -> str:
    """So many as ran at a time."""
    count = record["environment"]["workers"].partition(" ")[0]
    return f"{count} core{'' if count == '1' else 's'}"


def minutes(seconds: float) -> str:
    """As people say it: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 60:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def how(record: Record) -> str:
    """At which scale, and whether all of it."""
    design = record["design"]
    words = ["quick"] if design["quick"] else []
    words += [f"{design['scale']} scale"] if design.get("scale") else []
    words += ["in part"] if design.get("cases") or design["optimizers"] else []
    return ", ".join(words) or "whole"
