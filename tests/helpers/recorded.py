"""Small databases of records, and their rows as plain SQLite reads them."""

import contextlib
import dataclasses
import sqlite3

from stress import hold

from fallline.bench.contenders import get_contender
from fallline.bench.protocol.design import Design
from fallline.bench.protocol.records import Place, Race
from fallline.bench.race.store import Store
from fallline.bench.runs.run import Outcome, Run

RUN = Run("digits", "sgd", {"lr": 0.1}, seed=1)


RACE = Race(
    "race",
    dataclasses.asdict(Design(("digits",), ("sgd",))),
    {"left_out": {}, "contenders": {"digits": {"sgd": get_contender("sgd").describe()}}},
    "then",
)


GOOD, LOST, FAILED = Outcome("finished", 3, score=0.5), Outcome("diverged", 3), Outcome("failed", 0, "out of memory")


def raw(path, query):
    """What plain SQLite says."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        return db.execute(query).fetchall()


def race_database(path):
    """A database with a race in it."""
    with Store(path) as store:
        hold(store, "sgd")
    assert not path.with_name(f"{path.name}-wal").exists()


def fill(path, **runs):
    """A database of a race, its runs by their keys."""
    with Store(path) as store:
        store.open_race(RACE)
        for number, (key, outcome) in enumerate(runs.items()):
            store.add(key, RUN, outcome)
            store.enter("race", Place("digits", "sgd", "trial", number), key)
    return path
