"""What claims.md shows, from benchmarks/records/claims.json: `python docs/claims.py`.

Nothing is measured. `fallline repro --claims --out benchmarks/records` makes the record.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fallline.bench.common.files import fill, markdown
from fallline.papers.claims import METHODS
from fallline.papers.claims.show import measurement, number, tally, with_interval

HERE = Path(__file__).parent
RECORD = HERE.parent / "benchmarks" / "records" / "claims.json"

Record = Mapping[str, Any]

SHOWN = 8
"""So many readings and details of a claim are told one by one; the record has all."""


NOTHING = "Not measured yet: `fallline repro --claims --out benchmarks/records`."


def kept(path: Path = RECORD) -> Record | None:
    """The record, if there is one."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def summary(record: Record | None) -> str:
    """How many hold, and on what they were measured."""
    if record is None:
        return NOTHING
    about, seconds = record["environment"], sum(found["cpu_seconds"] for found in record["claims"])
    machine = f"{about['processor']}, torch {about['torch']}"
    return f"**{tally(record['claims'])}.** {seconds:.0f} seconds of CPU time on one core, {machine}."


def method(record: Record | None, name: str) -> str:
    """A method's table, and a paragraph for each of its claims."""
    if record is None:
        return NOTHING
    mine = [found for found in record["claims"] if found["method"] == name]
    rows = [[f"[`{one['id']}`](#{one['id']})", one["claim"], measurement(one), f"**{one['verdict']}**"] for one in mine]
    head = ["", "Claim", "Our measurement", "Verdict"]
    return "\n\n".join([markdown(head, rows), *(paragraph(one) for one in mine)])


def paragraph(found: Record) -> str:
    """How a claim was tested, what was found, and what is concluded."""
    lines = [
        f"### {found['id']}",
        f"{found['claim']} *Source: {found['source']}.*",
        f"**Tested:** {found['how']} It holds if this is {found['band']}: {found['quantity']}.",
    ]
    if found["readings"]:
        lines.append("**Found:** " + listed([f"{one['name']} {with_interval(one)}" for one in found["readings"]]) + ".")
    numbers = [f"{name} {number(value)}" for name, value in found["details"].items() if isinstance(value, int | float)]
    if numbers:
        lines.append("**Beside it:** " + listed(numbers) + ".")
    end = found["concluded"] or f"{found['why'][:1].upper()}{found['why'][1:]}."
    return "\n\n".join([*lines, f"**{found['verdict'].capitalize()}.** {end}"])


def listed(numbers: Sequence[str]) -> str:
    """The first ones, and how many more there are."""
    more = len(numbers) - SHOWN
    return "; ".join(numbers[:SHOWN]) + (f"; and {more} more in the record" if more > 0 else "")


def main() -> None:
    """Fill the page."""
    record = kept()
    fill(HERE / "claims.md", "summary", summary(record))
    for name in METHODS:
        fill(HERE / "claims.md", name, method(record, name))


if __name__ == "__main__":
    main()
