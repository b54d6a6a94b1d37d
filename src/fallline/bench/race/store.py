"""The records: a SQLite file of runs, each under a key that says what it is, and of the races that they belong to.

A run that is there need not be run again, whichever race asks for it. The coordinator of a race writes; several may at
the same time, and any number may read.
"""

import dataclasses
import functools
import json
import os
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from fallline.bench.common.plain import LARGEST, Misfit, check, decoded, shown
from fallline.bench.common.spaces import Setting, dimension
from fallline.bench.protocol.design import CONFIRMATION, CONFIRMING, DEFAULTS, SELECTION, TRACKS, TRIAL, Design
from fallline.bench.protocol.records import About, Place, Race
from fallline.bench.runs.run import Outcome, Run

T = TypeVar("T")

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


@dataclasses.dataclass(frozen=True)
class Merged:
    """The outcome of a merge."""

    runs: int
    """Runs that are new."""

    races: int
    conflicts: int
    """Runs that both have, with other results; the first file's stay."""

    skipped: int = 0
    """Rows that cannot be read."""


# What a row must hold. Every command reads rows by these three functions, and by no other way.

RUN = {
    "key": str,
    "task": str,
    "optimizer": str,
    "settings": str,
    "seed": int,
    "status": str,
    "score": float | None,
    "outcome": str,
    "finished_at": str,
}
RACE = {"id": str, "design": str, "setting": str, "started_at": str, "used_at": str}
ENTRY = {"race": str, "task": str, "optimizer": str, "stage": str, "number": int, "repeat": int, "run": str}
TABLES: dict[str, dict[str, Any]] = {"runs": RUN, "races": RACE, "entries": ENTRY}
"""Tables, their columns, and what a cell holds."""


@dataclasses.dataclass(frozen=True)
class Kept:
    """A run as it was written down."""

    key: str
    task: str
    optimizer: str
    settings: dict[str, Setting]
    seed: int
    outcome: Outcome


def _cells(row: tuple[Any, ...], columns: dict[str, Any]) -> tuple[Any, ...]:
    for (name, kind), value in zip(columns.items(), row, strict=True):
        check(value, kind, name)
    return row


def read_run(row: tuple[Any, ...]) -> Kept:
    """A row of `runs`; `Misfit` where it cannot be used."""
    key, task, optimizer, settings, seed, status, score, outcome, _ = _cells(row, RUN)
    held = decoded(settings, dict[str, Setting | None], "settings")
    came = Outcome(**decoded(outcome, Outcome, "outcome"))
    if (came.status, came.score) != (status, score):
        raise Misfit("its columns status and score are not those of its outcome")
    if (came.score is None) != came.lost or (came.lost and came.result):
        raise Misfit(f"outcome is {status}, with {'no' if came.score is None else 'a'} score")
    for name in ("steps", "gradient_evaluations", "cpu_seconds", "wall_seconds", "state_bytes"):
        if getattr(came, name) < 0:
            raise Misfit(f"outcome.{name} is negative")
    if "gradient evaluations" in came.curve:  # experiments of papers write down other things
        check_raced(came)
    return Kept(key, task, optimizer, held, seed, came)


def check_same(kept: Kept, task: str, optimizer: str) -> None:
    """That a run is one of this optimizer on this task."""
    if (kept.task, kept.optimizer) != (task, optimizer):
        raise Misfit(f"its run is of {shown(kept.optimizer)} on {shown(kept.task)}")


def check_raced(outcome: Outcome, test: bool = False) -> None:
    """That an outcome is as a race writes it down; `test` says whether it should have a final loss."""
    if len({*map(len, outcome.curve.values()), *map(len, outcome.times.values())}) > 1:
        raise Misfit("outcome.curve has more numbers of one measure than of another")
    if outcome.curve and "step" not in outcome.curve:
        raise Misfit("outcome.curve has no step")
    for name in ("step", "gradient evaluations"):
        if any(count is not None and not 0 <= count < LARGEST for count in outcome.curve.get(name, ())):
            raise Misfit(f"outcome.curve.{name} counts to what is no number of steps")
    if test and not outcome.lost and "loss" not in outcome.result:
        raise Misfit("its run has finished, and has no final loss")


def read_race(row: tuple[Any, ...]) -> Race:
    """A row of `races`; `Misfit` where it cannot be used."""
    id, design, setting, started_at, _ = _cells(row, RACE)
    asked = decoded(design, Design, "design")
    about = decoded(setting, About, "setting")
    ready = Design.read(asked)
    for name in ("tasks", "optimizers", "tracks"):
        if not getattr(ready, name):
            raise Misfit(f"design.{name} is empty")
    for track in ready.tracks:
        if track not in TRACKS:
            raise Misfit(f"design.tracks has {shown(track)}, and there are {' and '.join(TRACKS)}")
    for name, least in {"trials": 1, "finalists": 1, "reruns": 0, "seeds": 1, "seed": 0}.items():
        if getattr(ready, name) < least:
            raise Misfit(f"design.{name} is {getattr(ready, name)}, and less than {least}")
    for task in ready.tasks:
        if task not in about["contenders"]:
            raise Misfit(f"setting.contenders has nobody on {shown(task)}")
        for name, contender in about["contenders"][task].items():
            for plain in (*contender.get("ranges", {}).values(), *contender.get("extended", {}).values()):
                try:
                    dimension(plain)
                except ValueError as error:
                    raise Misfit(f"setting.contenders.{task}.{name} has a range that is none: {error}") from None
    return Race(id, asked, {"command": "", "environment": {}, **about}, started_at)


def read_place(row: tuple[Any, ...], race: Race) -> tuple[Place, str]:
    """A row of `entries`, and the key of its run; `Misfit` where it is no place in this race."""
    _, *cells, key = _cells(row, ENTRY)
    place, design = Place(*cells), Design.read(race.design)
    if place.task not in design.tasks:
        raise Misfit(f"task is {shown(place.task)}, and none of its race's")
    if place.optimizer not in race.setting["contenders"][place.task]:
        raise Misfit(f"optimizer is {shown(place.optimizer)}, and none of its race's")
    places: dict[str, tuple[int, int]] = {}
    if "defaults" in design.tracks:
        places |= {DEFAULTS: (design.seeds, 1)}
    if "tuned" in design.tracks:
        places |= {TRIAL: (design.trials, 1), SELECTION: (design.trials, design.reruns_each)}
        places |= {CONFIRMATION: (max(design.looks), 1)}
    if place.stage not in places:
        raise Misfit(f"stage is {shown(place.stage)}, and none of its race's")
    numbers, repeats = places[place.stage]
    if not (0 <= place.number < numbers and 0 <= place.repeat < repeats):
        raise Misfit(f"number {place.number}, repeat {place.repeat} is no {place.stage} of its race")
    return place, key


class Store:
    """The SQLite file. Use as a context manager.

    Whatever goes wrong with the file, here or in a method, is a `ValueError` in one sentence. Rows that cannot be read
    count as not there, and are named in one warning when the file is closed.

    Args:
        path: the file; it is made if it is not there.
        read_only: leave the file as it is.
        complain: called with a sentence on rows that cannot be read; by default it gives a Python warning.

    Raises:
        ValueError: the file is no such database, is damaged, cannot be opened, or comes from a newer fallline
            or a much older one.
    """

    def __init__(self, path: Path, read_only: bool = False, complain: Callable[[str], None] = warnings.warn) -> None:
        self.path, self._complain = path, complain
        self._unread: dict[tuple[str, int], str] = {}
        """The faults of rows that cannot be read, by table and number of the row."""

        with self._told():
            if not read_only:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._db = _read_only(path) if read_only else sqlite3.connect(path, timeout=PATIENCE)
            try:
                version = self._version()
                self._check_whole()
                if not read_only:
                    self._write_ahead()
                elif version == 0:  # an empty file, which stays one
                    self._db.close()
                    self._db = sqlite3.connect(":memory:")
                if version == 0:
                    self._build()
                self._check_tables()
                self._db.text_factory = _text
            except BaseException:
                self._db.close()
                raise

    def _version(self) -> int:
        """The version of the schema; 0 for an empty file. A file of another program is left as it is."""
        version, names = self._db.execute(
            "SELECT user_version, (SELECT json_group_array(name) FROM sqlite_master WHERE type = 'table') "
            "FROM pragma_user_version"
        ).fetchone()
        tables = set(json.loads(names))
        if not tables >= TABLES.keys() if version else tables:
            raise ValueError(f"{self.path} is not a database of races, but of another program")
        if version > SCHEMA_VERSION:
            raise ValueError(
                f"{self.path} was written by a newer fallline (schema {version}, here {SCHEMA_VERSION}): "
                "pip install --upgrade fallline"
            )
        if 0 < version < SCHEMA_VERSION:
            raise ValueError(
                f"{self.path} was written by an early fallline (schema {version}, here {SCHEMA_VERSION}) and is no "
                "longer read: move it away to begin anew"
            )
        return int(version)

    def _check_whole(self) -> None:
        """`ValueError` where pages or indices do not hold together: rows might be missing unnoticed."""
        (page,) = self._db.execute("PRAGMA page_size").fetchone()
        if self.path.stat().st_size % page and not _logged(self.path):
            raise ValueError(damaged(self.path, "its last page is cut off"))
        (said,) = self._db.execute("PRAGMA integrity_check(1)").fetchone()
        if said != "ok":
            raise ValueError(damaged(self.path, said.splitlines()[-1]))

    def _check_tables(self) -> None:
        """`ValueError` where tables have our names and other columns."""
        for table, columns in _columns(self._db).items():
            if columns != _expected()[table]:
                raise ValueError(f"{self.path} is no database of races as this fallline makes them: see its {table}")

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
        """Make the tables: all at once, and once among several coordinators."""
        self._db.execute("BEGIN IMMEDIATE")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        for statement in SCHEMA.split(";") if version == 0 else ():
            self._db.execute(statement)
        self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        self._db.commit()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn errors of SQLite and the system into a sentence."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise ValueError(complaint(error, self.path)) from error

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all that is written within, by other methods too, is written, or nothing of it."""
        if self._db.in_transaction:
            with self._told():
                yield self._db
            return
        with self._told(), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            yield self._db

    def _rows(self, query: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        with self._told():
            yield from self._db.execute(query, values)

    def _read(
        self, table: str, read: Callable[[tuple[Any, ...]], T], where: str = "", *values: Any
    ) -> Iterator[tuple[tuple[Any, ...], T]]:
        """The rows of a table that can be read, as they are and as what they say; the others are noted."""
        for number, *cells in self._rows(f"SELECT rowid, {', '.join(TABLES[table])} FROM {table} {where}", *values):
            row = tuple(cells)
            try:
                yield row, read(row)
            except Misfit as error:
                self._unread[table, number] = str(error)

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()
        if self._unread:
            unread, self._unread = self._unread, {}
            self._complain(left_out(self.path, unread))

    def find(self, key: str, run: Run | None = None) -> Outcome | None:
        """The outcome of a run, if it is there. A failed run counts as not there: it is tried again.

        Args:
            key: of the run.
            run: what it should be; what the records have under its key and is another one, counts as not there too.
        """
        kept = self._kept(key, run)
        return kept.outcome if kept and kept.outcome.status != "failed" else None

    def _kept(self, key: str, run: Run | None = None) -> Kept | None:
        def read(row: tuple[Any, ...]) -> Kept:
            kept = read_run(row)
            if run is not None:
                check_same(kept, run.task, run.optimizer)
                if "gradient evaluations" in kept.outcome.curve:
                    check_raced(kept.outcome, run.test)
                if (kept.settings, kept.seed) != (json.loads(json.dumps(run.settings)), run.seed):
                    raise Misfit("its settings or its seed are not those of its key")
            return kept

        return next((kept for _, kept in self._read("runs", read, "WHERE key = ?", key)), None)

    def add(self, key: str, run: Run, outcome: Outcome) -> Outcome:
        """Write down a run, and return what stands: another coordinator may have been first.

        An outcome that could not be read again is one of a failed run, whose reason says why.
        """
        outcome = dataclasses.replace(outcome, reason=outcome.reason.encode(errors="backslashreplace").decode())
        try:
            read_run(row := _row_of(key, run, outcome))
        except Misfit as error:
            outcome = Outcome("failed", outcome.steps, reason=f"what came of it cannot be written down: {error}")
            row = _row_of(key, run, outcome)
        with self.writing() as db:
            if self.find(key, run) is None:
                db.execute("INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        return self.find(key, run) or outcome

    def open_race(self, race: Race) -> None:
        """Write down a race, or find it again and note that it was."""
        row = (race.id, json.dumps(race.design), json.dumps(race.setting), race.started_at, now())
        with self.writing() as db:
            known = list(self._read("races", read_race, "WHERE id = ?", race.id))
            began = "races.started_at" if known else "excluded.started_at"
            db.execute(
                "INSERT INTO races VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET design = excluded.design, "
                f"setting = excluded.setting, started_at = {began}, used_at = excluded.used_at",
                row,
            )

    def enter(self, race_id: str, place: Place, key: str) -> None:
        """Give a run its place in a race."""
        with self.writing() as db:
            db.execute(
                "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)",
                (race_id, *dataclasses.astuple(place), key),
            )

    def withdraw(self, race_id: str, place: Place) -> None:
        """Take a place in a race back; the run stays."""
        with self.writing() as db:
            db.execute(
                "DELETE FROM entries WHERE (race, task, optimizer, stage, number, repeat) = (?, ?, ?, ?, ?, ?)",
                (race_id, *dataclasses.astuple(place)),
            )

    def entered(self, race_id: str, task: str, optimizer: str, stage: str) -> list[tuple[Place, str]]:
        """The places of a stage that are taken, and the keys of the runs there; none of a race that is not there."""
        where = "WHERE (race, task, optimizer, stage) = (?, ?, ?, ?) ORDER BY number, repeat"
        if (race := self._race(race_id)) is None:
            return []
        read = functools.partial(read_place, race=race)
        return [found for _, found in self._read("entries", read, where, race_id, task, optimizer, stage)]

    def races(self) -> list[Race]:
        """All races, the one that was run last first."""
        return [race for _, race in self._read("races", read_race, "ORDER BY used_at DESC, rowid DESC")]

    def _race(self, race_id: str) -> Race | None:
        return next((race for _, race in self._read("races", read_race, "WHERE id = ?", race_id)), None)

    def last_race(self, task: str | None = None) -> Race | None:
        """The race that was run last, of those with a task or of any."""
        return next((race for race in self.races() if task is None or task in race.design["tasks"]), None)

    def runs(self, race_id: str) -> Iterator[tuple[Place, Run, Outcome]]:
        """The runs of a race, in order; none of a race that is not there."""
        race = self._race(race_id)
        if race is None:
            return

        def read(row: tuple[Any, ...]) -> tuple[Place, Kept | None]:
            place, key = read_place(row, race)
            return place, self._run_of(place, key)

        where = "WHERE race = ? ORDER BY task, optimizer, stage, number, repeat"
        for _, (place, kept) in list(self._read("entries", read, where, race_id)):
            if kept is not None:
                test = place.stage in CONFIRMING
                yield place, Run(place.task, place.optimizer, kept.settings, kept.seed, test=test), kept.outcome

    def _run_of(self, place: Place, key: str) -> Kept | None:
        """The run at a place; None where its own row cannot be read, which has been noted then."""
        kept = self._kept(key)
        if kept is None:
            if not list(self._rows("SELECT 1 FROM runs WHERE key = ?", key)):
                raise Misfit("its run is not there")
            return None
        check_same(kept, place.task, place.optimizer)
        check_raced(kept.outcome, place.stage in CONFIRMING)
        return kept

    def merge(self, other: Path) -> Merged:
        """Take in what another file has, and leave that file as it is. A failed run gives way to one that is not.

        Rows that cannot be read are left out; here they give way to those that can.

        Raises:
            ValueError: there is no such file, or it is no database of races; nothing has been taken in.
        """
        if not other.exists():
            raise ValueError(f"there is no file {other}")
        taken, opened, conflicts = 0, 0, 0
        with Store(other, read_only=True, complain=self._complain) as theirs, self.writing() as db:
            for row, kept in theirs._read("runs", read_run):
                known = self._kept(kept.key)
                if known is None or known.outcome.status == "failed" != kept.outcome.status:
                    db.execute("INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
                    taken += 1
                elif kept.outcome.status != "failed" and _result(known) != _result(kept):
                    conflicts += 1
            there = {race.id: race for race in theirs.races()}
            for row, race in theirs._read("races", read_race):
                if self._race(race.id) is None:
                    db.execute("INSERT OR REPLACE INTO races VALUES (?, ?, ?, ?, ?)", row)
                    opened += 1

            def read(row: tuple[Any, ...]) -> bool:
                if row[0] not in there:
                    raise Misfit("its race is not there, or cannot be read")
                return theirs._run_of(*read_place(row, there[row[0]])) is not None

            for row, whole in theirs._read("entries", read):
                if whole:
                    db.execute(
                        "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET run = excluded.run "
                        "WHERE run NOT IN (SELECT key FROM runs)",
                        row,
                    )
            skipped = len(theirs._unread)
        return Merged(taken, opened, conflicts, skipped)


def _row_of(key: str, run: Run, outcome: Outcome) -> tuple[Any, ...]:
    settings, text = json.dumps(run.settings), json.dumps(dataclasses.asdict(outcome))
    return key, run.task, run.optimizer, settings, run.seed, outcome.status, outcome.score, text, now()


def _result(kept: Kept) -> tuple[str, float | None]:
    return kept.outcome.status, kept.outcome.score


def _text(raw: bytes) -> str | bytes:
    """A text; what is none stays bytes, which fit nowhere."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _columns(db: sqlite3.Connection) -> dict[str, list[tuple[Any, ...]]]:
    """Names of columns, and their places in the primary key, by table."""
    query = "SELECT name, pk FROM pragma_table_info(?)"
    return {table: db.execute(query, (table,)).fetchall() for table in TABLES}


@functools.cache
def _expected() -> dict[str, list[tuple[Any, ...]]]:
    with closing(sqlite3.connect(":memory:")) as db:
        db.executescript(SCHEMA)
        return _columns(db)


FEW = 5
"""So many rows, and kinds of faults, a warning names."""


def left_out(path: Path, unread: dict[tuple[str, int], str]) -> str:
    """The sentence on rows that cannot be read, by table and number: those with one fault together."""
    alike: dict[tuple[str, str], list[int]] = {}
    for (table, number), why in unread.items():
        alike.setdefault((table, why), []).append(number)
    told = []
    for (table, why), numbers in list(alike.items())[:FEW]:
        numbers.sort()
        some = ", ".join(map(str, numbers[:FEW])) + (f" and {len(numbers) - FEW} more" if len(numbers) > FEW else "")
        told.append(f"row{'s' * (len(numbers) > 1)} {some} of {table} ({why})")
    if len(alike) > FEW:
        told.append(f"and {sum(map(len, list(alike.values())[FEW:]))} more")
    one = len(unread) == 1
    count = "a row that cannot be read and was" if one else f"{len(unread)} rows that cannot be read and were"
    return f"{path} has {count} left out: {'; '.join(told)}"


def damaged(path: Path, how: str) -> str:
    """The sentence on a file whose pages do not hold together."""
    return f"{path} is damaged ({how}): move it away to begin anew; `sqlite3 {path} .recover` may save what is in it"


def complaint(error: sqlite3.Error | OSError, path: Path) -> str:
    """An error of SQLite or the system as a sentence that says what can be done."""
    if isinstance(error, OSError):
        return f"{path} cannot be opened: {error.strerror or error}"
    go_on = "what had finished is kept, and the same command goes on from there"
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:  # without the details of extended codes
        case sqlite3.SQLITE_FULL:
            return f"the disk is full, and {path} cannot grow: make room; {go_on}"
        case sqlite3.SQLITE_IOERR:
            return f"{path} cannot be read or written ({error}), as on a disk that is full or gone; {go_on}"
        case sqlite3.SQLITE_CORRUPT:
            return damaged(path, str(error))
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
    as_it_is = "mode=ro" if _logged(path) else "mode=ro&immutable=1"
    if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK):
        try:  # SQLite needs files beside this one, and only a connection that may write clears them away
            return _looking(path, "mode=rw")
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF not in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
                raise  # a full disk has no room for them
    return _looking(path, as_it_is)


def _looking(path: Path, how: str) -> sqlite3.Connection:
    db = sqlite3.connect(f"{path.resolve().as_uri()}?{how}", uri=True, timeout=PATIENCE)
    try:
        db.execute("PRAGMA query_only = ON")
        db.execute("SELECT 1 FROM sqlite_master").fetchone()  # only now does it open the file
    except BaseException:
        db.close()
        raise
    return db


def _logged(path: Path) -> bool:
    """Whether something that was written is not yet in the file itself, but in the log beside it."""
    log = path.with_name(f"{path.name}-wal")
    return log.exists() and log.stat().st_size > 0


def now() -> str:
    """The time in UTC, ISO 8601: sorts as text."""
    return datetime.now(UTC).isoformat(timespec="microseconds")
