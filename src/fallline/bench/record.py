"""The records: a SQLite file of runs, each under a key that says what it is, and of the races that they belong to.

A run's key is the hash of all that determines its numbers: settings, seed, horizon, the source of the task, of the loop
and of the optimizer, torch's version. A run that is there need not be run again, whichever race asks for it. One
process writes, the coordinator of the race; any number may read.
"""

import dataclasses
import hashlib
import inspect
import json
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch

import fallline
from fallline.bench import contenders, seeds
from fallline.bench import train as loop
from fallline.bench.tasks import Task
from fallline.bench.train import Outcome, Run

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE runs (
    key TEXT PRIMARY KEY, task TEXT, optimizer TEXT, settings TEXT, seed INTEGER, status TEXT, score REAL,
    outcome TEXT, finished_at TEXT);
CREATE TABLE races (
    id TEXT PRIMARY KEY, task TEXT, design TEXT, setting TEXT, started_at TEXT, used_at TEXT);
CREATE TABLE entries (
    race TEXT REFERENCES races, optimizer TEXT, stage TEXT, number INTEGER, run TEXT,
    PRIMARY KEY (race, optimizer, stage, number));
"""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A run's place in a race: the `number`-th of its stage, `trial` or `seed`, of one optimizer."""

    optimizer: str
    stage: str
    number: int


@dataclasses.dataclass(frozen=True)
class Race:
    """A race as it was written down."""

    id: str
    task: str
    design: dict[str, Any]
    """What was asked for: optimizers, trials, seeds, seed."""

    setting: dict[str, Any]
    """What the report needs and the runs do not tell: spaces, who was left out, command, machine."""

    started_at: str


class Store:
    """The SQLite file. Use as a context manager.

    Raises:
        ValueError: when the file is no such database, or comes from a newer fallline.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._db = sqlite3.connect(path, timeout=30)  # seconds to wait for another coordinator
        try:
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            self._db.execute("PRAGMA journal_mode = WAL")
            if version == 0:
                self._db.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise ValueError(f"{path} is not a database of races: {error}") from error
        if version > SCHEMA_VERSION:
            self._db.close()
            raise ValueError(f"{path} was written by a newer fallline (schema {version}, here {SCHEMA_VERSION})")

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def find(self, key: str) -> Outcome | None:
        """The outcome of a run, if it is there. A failed run counts as not there: it is tried again."""
        row = self._db.execute("SELECT outcome FROM runs WHERE key = ? AND status != 'failed'", (key,)).fetchone()
        return Outcome(**json.loads(row[0])) if row else None

    def add(self, key: str, run: Run, outcome: Outcome) -> None:
        """Write down a run."""
        settings, text = json.dumps(run.settings), json.dumps(dataclasses.asdict(outcome), allow_nan=False)
        row = (key, run.task, run.optimizer, settings, run.seed, outcome.status, outcome.score, text, now())
        with self._db:
            self._db.execute("INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)

    def open_race(self, race: Race) -> None:
        """Write down a race, or find it again and note that it was."""
        row = (race.id, race.task, json.dumps(race.design), json.dumps(race.setting), race.started_at, now())
        with self._db:
            self._db.execute(
                "INSERT INTO races VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET "
                "setting = excluded.setting, used_at = excluded.used_at",
                row,
            )

    def enter(self, race_id: str, entry: Entry, key: str) -> None:
        """Give a run its place in a race."""
        row = (race_id, entry.optimizer, entry.stage, entry.number, key)
        with self._db:
            self._db.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?)", row)

    def last_race(self, task: str | None = None) -> Race | None:
        """The race that was run last, of one task or of any."""
        row = self._db.execute(
            "SELECT id, task, design, setting, started_at FROM races WHERE ? IS NULL OR task = ? "
            "ORDER BY used_at DESC, rowid DESC LIMIT 1",
            (task, task),
        ).fetchone()
        return Race(row[0], row[1], json.loads(row[2]), json.loads(row[3]), row[4]) if row else None

    def runs(self, race_id: str) -> Iterator[tuple[Entry, Run, Outcome]]:
        """The runs of a race, in order."""
        rows = self._db.execute(
            "SELECT entries.optimizer, stage, number, task, settings, seed, outcome "
            "FROM entries JOIN runs ON run = key WHERE race = ? ORDER BY entries.optimizer, stage DESC, number",
            (race_id,),
        )
        for optimizer, stage, number, task, settings, seed, outcome in rows:
            run = Run(task, optimizer, json.loads(settings), seed, test=stage == "seed")
            yield Entry(optimizer, stage, number), run, Outcome(**json.loads(outcome))


def fingerprint(task: Task, optimizer: contenders.AnyOptimizer, make: contenders.Make) -> str:
    """The hash of the code that makes a run's numbers: the task, the loop, the optimizer; torch by its version."""
    members = optimizer.members if isinstance(optimizer, contenders.Team) else (optimizer,)
    parts = [torch.__version__, str(task.steps), str(task.evaluations), inspect.getsource(make)]
    parts += [inspect.getsource(module) for module in (loop, seeds, inspect.getmodule(type(task))) if module]
    parts += [_source(type(member)) for member in members]
    return _hash(parts)


def run_key(run: Run, code: str) -> str:
    """The key of a run, given the `fingerprint` of its code."""
    return _hash([code, json.dumps(dataclasses.asdict(run), sort_keys=True)])


def race_id(design: dict[str, Any], codes: dict[str, str]) -> str:
    """The same command on the same code is the same race."""
    return _hash([json.dumps(design, sort_keys=True), json.dumps(codes, sort_keys=True)])[:16]


def _source(kind: type) -> str:
    """The source behind an optimizer's class: our whole library, as its methods share their base, or its module."""
    package = kind.__module__.partition(".")[0]
    if package == "torch":
        return kind.__qualname__
    if package == "fallline":
        return kind.__qualname__ + library_source()
    module = inspect.getmodule(kind)
    return inspect.getsource(module) if module else kind.__qualname__


@cache
def library_source() -> str:
    """All modules of the library, one after another."""
    folder = Path(fallline.__file__).parent
    return "".join(file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.py")))


def _hash(parts: list[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:  # with its length, so that no two lists of parts run into the same text
        digest.update(f"{len(part)}:{part}".encode())
    return digest.hexdigest()


def now() -> str:
    """The time in UTC, ISO 8601: sorts as text."""
    return datetime.now(UTC).isoformat(timespec="microseconds")
