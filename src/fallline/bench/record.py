"""The records: a SQLite file of runs, each under a key that says what it is, and of the races that they belong to.

A run that is there need not be run again, whichever race asks for it. The coordinator of a race writes; several may at
the same time, and any number may read.
"""

import dataclasses
import json
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fallline.bench.design import CONFIRMING
from fallline.bench.train import Outcome, Run

PATIENCE = 30.0
"""Seconds to wait for another coordinator to have written."""

SCHEMA_VERSION = 2
SCHEMA = """
CREATE TABLE runs (
    key TEXT PRIMARY KEY, task TEXT, optimizer TEXT, settings TEXT, seed INTEGER, status TEXT, score REAL,
    outcome TEXT, finished_at TEXT);
CREATE TABLE races (
    id TEXT PRIMARY KEY, design TEXT, setting TEXT, started_at TEXT, used_at TEXT);
CREATE TABLE entries (
    race TEXT REFERENCES races, task TEXT, optimizer TEXT, stage TEXT, number INTEGER, repeat INTEGER, run TEXT,
    PRIMARY KEY (race, task, optimizer, stage, number, repeat));
"""
# What a race of schema 1 was: one task, the best trial confirmed as it was.
FROM_1 = f"""
ALTER TABLE races RENAME TO races_1; ALTER TABLE entries RENAME TO entries_1; ALTER TABLE runs RENAME TO runs_1;
{SCHEMA}
INSERT INTO runs SELECT * FROM runs_1;
INSERT INTO races SELECT id,
    json_remove(json_set(design, '$.tasks', json_array(task), '$.finalists', 1), '$.task'),
    json_set(setting, '$.contenders', json_object(task, json_extract(setting, '$.contenders')),
        '$.left_out', json_object(task, json_extract(setting, '$.left_out'))),
    started_at, used_at FROM races_1;
INSERT INTO entries SELECT race, task, optimizer, stage, number, 0, run FROM entries_1 JOIN races_1 ON race = id;
DROP TABLE entries_1; DROP TABLE races_1; DROP TABLE runs_1;
"""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A run's place in a race: the `number`-th of its stage (`Stage` in `design.py`), of one optimizer on one task.

    Of the stage `choice`, `number` is the trial's and `repeat` counts its reruns.
    """

    task: str
    optimizer: str
    stage: str
    number: int
    repeat: int = 0


@dataclasses.dataclass(frozen=True)
class Race:
    """A race as it was written down."""

    id: str
    design: dict[str, Any]
    """What was asked for: see `Design`."""

    setting: dict[str, Any]
    """What the report needs and the runs do not tell: tasks, spaces, who was left out, command, machine."""

    started_at: str


@dataclasses.dataclass(frozen=True)
class Merged:
    """What came of a merge."""

    runs: int
    """Runs that are new."""

    races: int
    conflicts: int
    """Runs that both have, with other results; the first file's stay."""


class Store:
    """The SQLite file. Use as a context manager.

    Whatever goes wrong with the file, here or in a method, is a `ValueError` in one sentence.

    Args:
        path: the file; it is made if it is not there.
        read_only: leave the file as it is. One of an older schema is read into memory, and brought to this one there.

    Raises:
        ValueError: the file is no such database, cannot be opened, or comes from a newer fallline.
    """

    def __init__(self, path: Path, read_only: bool = False) -> None:
        self.path = path
        if not read_only:
            path.parent.mkdir(parents=True, exist_ok=True)
        with self._told():
            self._db = _read_only(path) if read_only else sqlite3.connect(path, timeout=PATIENCE)
            try:
                version = self._version()
                if read_only and version < SCHEMA_VERSION:
                    self._db = _in_memory(self._db)
                if not read_only:
                    self._write_ahead()
                if version < SCHEMA_VERSION:
                    self._build()
            except BaseException:
                self._db.close()
                raise

    def _version(self) -> int:
        """Of the schema; 0 for an empty file. Nothing is changed in a file that is not ours."""
        version, names = self._db.execute(
            "SELECT user_version, (SELECT json_group_array(name) FROM sqlite_master WHERE type = 'table') "
            "FROM pragma_user_version"
        ).fetchone()
        tables = set(json.loads(names))
        if not tables >= {"runs", "races", "entries"} if version else tables:
            raise ValueError(f"{self.path} is not a database of races, but of another program")
        if version > SCHEMA_VERSION:
            raise ValueError(
                f"{self.path} was written by a newer fallline (schema {version}, here {SCHEMA_VERSION}): "
                "pip install --upgrade fallline"
            )
        return int(version)

    def _write_ahead(self) -> None:
        """Let others read while one writes. Of two that ask for it at once SQLite refuses one without waiting."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def _build(self) -> None:
        """Make the tables, or bring older ones to this schema: all at once, and once among several coordinators."""
        self._db.execute("BEGIN IMMEDIATE")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        for statement in {0: SCHEMA, 1: FROM_1}.get(version, "").split(";"):
            self._db.execute(statement)
        self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        self._db.commit()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What SQLite complains of, as a sentence."""
        try:
            yield
        except sqlite3.Error as error:
            raise ValueError(complaint(error, self.path)) from error

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it is written, or nothing."""
        with self._told(), self._db:
            yield self._db

    def _rows(self, query: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        with self._told():
            yield from self._db.execute(query, values)

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def find(self, key: str) -> Outcome | None:
        """The outcome of a run, if it is there. A failed run counts as not there: it is tried again."""
        found = list(self._rows("SELECT outcome FROM runs WHERE key = ? AND status != 'failed'", key))
        return Outcome(**json.loads(found[0][0])) if found else None

    def add(self, key: str, run: Run, outcome: Outcome) -> Outcome:
        """Write down a run, and return what stands: another coordinator may have been first."""
        settings, text = json.dumps(run.settings), json.dumps(dataclasses.asdict(outcome), allow_nan=False)
        row = (key, run.task, run.optimizer, settings, run.seed, outcome.status, outcome.score, text, now())
        with self._writing() as db:
            db.execute("DELETE FROM runs WHERE key = ? AND status = 'failed'", (key,))
            db.execute("INSERT OR IGNORE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        return self.find(key) or outcome

    def open_race(self, race: Race) -> None:
        """Write down a race, or find it again and note that it was."""
        row = (race.id, json.dumps(race.design), json.dumps(race.setting), race.started_at, now())
        with self._writing() as db:
            db.execute(
                "INSERT INTO races VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET "
                "setting = excluded.setting, used_at = excluded.used_at",
                row,
            )

    def enter(self, race_id: str, entry: Entry, key: str) -> None:
        """Give a run its place in a race."""
        with self._writing() as db:
            db.execute(
                "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)",
                (race_id, *dataclasses.astuple(entry), key),
            )

    def withdraw(self, race_id: str, entry: Entry) -> None:
        """Take a place in a race back; the run stays."""
        with self._writing() as db:
            db.execute(
                "DELETE FROM entries WHERE (race, task, optimizer, stage, number, repeat) = (?, ?, ?, ?, ?, ?)",
                (race_id, *dataclasses.astuple(entry)),
            )

    def entered(self, race_id: str, task: str, optimizer: str, stage: str) -> list[tuple[Entry, str]]:
        """The places of a stage that are taken, and the keys of the runs there."""
        query = (
            "SELECT task, optimizer, stage, number, repeat, run FROM entries "
            "WHERE (race, task, optimizer, stage) = (?, ?, ?, ?) ORDER BY number, repeat"
        )
        return [(Entry(*place), key) for *place, key in self._rows(query, race_id, task, optimizer, stage)]

    def races(self) -> list[Race]:
        """All races, the one that was run last first."""
        rows = self._rows("SELECT id, design, setting, started_at FROM races ORDER BY used_at DESC, rowid DESC")
        return [Race(id, json.loads(design), json.loads(setting), started) for id, design, setting, started in rows]

    def last_race(self, task: str | None = None) -> Race | None:
        """The race that was run last, of those with a task or of any."""
        return next((race for race in self.races() if task is None or task in race.design["tasks"]), None)

    def runs(self, race_id: str) -> Iterator[tuple[Entry, Run, Outcome]]:
        """The runs of a race, in order."""
        rows = self._rows(
            "SELECT entries.task, entries.optimizer, stage, number, repeat, settings, seed, outcome "
            "FROM entries JOIN runs ON run = key WHERE race = ? "
            "ORDER BY entries.task, entries.optimizer, stage, number, repeat",
            race_id,
        )
        for task, optimizer, stage, number, repeat, settings, seed, outcome in rows:
            run = Run(task, optimizer, json.loads(settings), seed, test=stage in CONFIRMING)
            yield Entry(task, optimizer, stage, number, repeat), run, Outcome(**json.loads(outcome))

    def merge(self, other: Path) -> Merged:
        """Take in what another file has, and leave that file as it is. A failed run gives way to one that is not.

        Raises:
            ValueError: there is no such file, or it is no database of races; nothing has been taken in.
        """
        if not other.exists():
            raise ValueError(f"there is no file {other}")
        counts = Merged(0, 0, 0)
        with Store(other, read_only=True) as theirs, self._writing() as db:
            for row in theirs._rows("SELECT * FROM runs"):
                known = db.execute("SELECT status, score FROM runs WHERE key = ?", (row[0],)).fetchone()
                status, score = row[5:7]
                if known is None or (known[0] == "failed" and status != "failed"):
                    db.execute("INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
                    counts = dataclasses.replace(counts, runs=counts.runs + 1)
                elif status != "failed" and known != (status, score):
                    counts = dataclasses.replace(counts, conflicts=counts.conflicts + 1)
            before = db.total_changes
            db.executemany("INSERT OR IGNORE INTO races VALUES (?, ?, ?, ?, ?)", theirs._rows("SELECT * FROM races"))
            counts = dataclasses.replace(counts, races=db.total_changes - before)
            db.executemany(
                "INSERT OR IGNORE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)", theirs._rows("SELECT * FROM entries")
            )
        return counts


def complaint(error: sqlite3.Error, path: Path) -> str:
    """What SQLite complains of, as a sentence that says what can be done."""
    go_on = "what had finished is kept, and the same command goes on from there"
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:  # without the details of extended codes
        case sqlite3.SQLITE_FULL:
            return f"the disk is full, and {path} cannot grow: make room; {go_on}"
        case sqlite3.SQLITE_IOERR:
            return f"{path} cannot be read or written ({error}), as on a disk that is full or gone; {go_on}"
        case sqlite3.SQLITE_CORRUPT:
            return (
                f"{path} is damaged ({error}): move it away to begin anew; `sqlite3 {path} .recover` may save what is "
                "in it"
            )
        case sqlite3.SQLITE_NOTADB:
            return f"{path} is not a database of races"
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            return f"{path} may not be written to ({error})"
        case sqlite3.SQLITE_CANTOPEN:
            return f"{path} cannot be opened ({error}): may it be read and written, and its folder?"
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return f"{path} has been kept busy by another process for {PATIENCE:g} seconds; {go_on}"
        case _:
            return f"{path} cannot be used: {error}"


def _read_only(path: Path) -> sqlite3.Connection:
    """A connection that changes nothing."""
    if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK):
        how = "mode=rw"  # SQLite needs files beside this one, and only a connection that may write clears them away
    else:
        logged = path.with_name(f"{path.name}-wal").exists()  # what is not yet in the file itself
        how = "mode=ro" if logged else "mode=ro&immutable=1"
    db = sqlite3.connect(f"{path.resolve().as_uri()}?{how}", uri=True, timeout=PATIENCE)
    db.execute("PRAGMA query_only = ON")
    return db


def _in_memory(db: sqlite3.Connection) -> sqlite3.Connection:
    """A copy, to be changed at will."""
    copy = sqlite3.connect(":memory:")
    db.backup(copy)
    db.close()
    return copy


def now() -> str:
    """The time in UTC, ISO 8601: sorts as text."""
    return datetime.now(UTC).isoformat(timespec="microseconds")
