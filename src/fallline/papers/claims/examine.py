"""Measures claims one after the other, and keeps what was found."""

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypedDict

from fallline.bench.common.files import put
from fallline.bench.common.plain import Misfit, read
from fallline.bench.runs.environment import environment
from fallline.papers.claims import CLAIMS
from fallline.papers.claims._claim import Claim, Effort, Measured, Reading, Verdict, verdict, worst

FILE = "claims.json"

Found = dict[str, Any]
"""One claim of the JSON file: see `examined`."""

FAILED: Literal["failed"] = "failed"
"""In the place of a verdict, where measuring raised an error."""


class Kept(TypedDict):
    """What a record of claims must have; there is more in it."""

    quick: bool
    claims: list["Identified"]


class Identified(TypedDict):
    """A claim in it."""

    id: str


def begun(effort: Effort, command: str) -> dict[str, Any]:
    """What the JSON file holds before the first claim is measured."""
    return {"command": command, "quick": effort.quick, "environment": environment(1), "claims": []}


def examined(claim: Claim, effort: Effort) -> Found:
    """One claim with its measurement and verdict, ready for JSON; the headline is the worst reading.

    An error is kept in the place of a verdict, so that the others go on.
    """
    started, start, criterion = datetime.now(UTC), time.process_time(), claim.criterion
    about = {
        "id": claim.id,
        "started_at": started.isoformat(timespec="seconds"),
        "method": claim.method,
        "claim": claim.sentence,
        "source": claim.source,
        "how": claim.how,
        "quantity": criterion.quantity,
        "band": criterion.band,
    }
    word: Verdict | Literal["failed"]
    try:
        measured = claim.measure(effort)
        word, why = verdict(criterion, measured)
    except Exception as error:  # whatever an optimizer, a record or the mathematics may raise
        word, why, measured = FAILED, f"{type(error).__name__}: {error}", Measured()
    headline = worst(criterion, measured.readings) if measured.readings else None
    concluded = {"holds": claim.if_holds, "does not hold": claim.if_not}.get(word, "")
    return about | {
        "verdict": word,
        "why": why,
        "concluded": concluded,
        "headline": as_json(headline) if headline else None,
        "readings": [as_json(reading) for reading in measured.readings],
        "details": dict(measured.details),
        "cpu_seconds": round(time.process_time() - start, 1),
    }


def as_json(reading: Reading) -> dict[str, Any]:
    """A reading; without bounds where nothing is random."""
    bounds = {"low": reading.low, "high": reading.high, "count": reading.count} if reading.random else {}
    return {"name": reading.name, "value": reading.value, **bounds}


def keep(record: dict[str, Any], out: Path) -> Path:
    """Write the record, whole or not at all; claims that were measured before, as quickly, and not now stay in it.

    What stands there and is no such record stays too, under another name: it may be all that there is.
    """
    path = out / FILE
    found = {one["id"]: one for one in record["claims"]}
    if path.is_file():
        try:
            before = read(path, Kept)
        except Misfit:
            path.replace(path.with_suffix(".unread.json"))
            before = record
        if before["quick"] == record["quick"]:
            found = {one["id"]: one for one in before["claims"]} | found
    order = [claim.id for claim in CLAIMS if claim.id in found]
    record = {**record, "claims": [found[name] for name in order]}
    return put(path, json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
