"""Databases that somebody has spoiled: every command reads what is sound in them, and says what is not."""

import contextlib
import copy
import json
import math
import shutil
import sqlite3
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from referee import Inline
from stress import hold

from fallline.bench import export, report
from fallline.bench.commands import show, write_report
from fallline.bench.prints import draw
from fallline.bench.record import TABLES, Store
from fallline.bench.results import results
from fallline.bench.studies import studies, studies_table, studies_words

TASKS, TRACKS = ("sprint:Sprint", "stress:Noisy"), ("tuned", "defaults")
ODD_CELLS = some.sampled_from(
    [None, b"\xff\xfe", "", "text", "null", "[]", "{}", "[1, 2]", "NaN", '{"loss": 1e400}', "1" * 5000, "[" * 100_000]
    + ["a\0b", '"\ud800"'.encode(errors="surrogatepass"), -1, 0, 0.5, 2**63 - 1, math.inf, -math.inf, "true", "bowl"]
)
ODD_VALUES = some.one_of(
    some.sampled_from([None, True, "", "text", "a\0b", "\ud800", "<b>", [], [1], [[]], {}, {"a": 1}, {"": None}]),
    some.sampled_from([0, -1, 1, 2**63, -(10**400), 0.0, -0.5, 1e308, -1e308, 5e-324, math.inf, -math.inf, math.nan]),
    some.floats(),
    some.integers(-5, 50),
    some.text(max_size=5),
)
SEVERAL = dict(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def nodes(value, path=()):
    """The places of all that stands in a value."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, one in inner:
        yield from nodes(one, (*path, name))


@some.composite
def spoiling(draw, path):
    """What to change in the cells of a database."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        for _ in range(draw(some.integers(1, 3))):
            table = draw(some.sampled_from(list(TABLES)))
            column = draw(some.sampled_from(list(TABLES[table])))
            numbers = [number for (number,) in db.execute(f"SELECT rowid FROM {table}")]
            if not numbers:
                continue
            number = draw(some.sampled_from(numbers))
            (cell,) = db.execute(f"SELECT {column} FROM {table} WHERE rowid = ?", (number,)).fetchone()
            how = draw(some.sampled_from(["cell", "value", "value", "value", "name", "row"]))
            if how == "row":
                db.execute(f"DELETE FROM {table} WHERE rowid = ?", (number,))
                continue
            new = draw(ODD_CELLS)
            if how != "cell":
                with contextlib.suppress(ValueError, TypeError, RecursionError):
                    new = json.dumps(changed(draw, json.loads(cell), how))
            with contextlib.suppress(sqlite3.IntegrityError):
                db.execute(f"UPDATE OR FAIL {table} SET {column} = ? WHERE rowid = ?", (new, number))
        db.commit()
    return path


def changed(draw, value, how):
    """A value with something in it replaced, removed, or more of it."""
    value = copy.deepcopy(value)
    *way, last = draw(some.sampled_from([place for place in nodes(value) if place] or [(None,)]))
    if last is None:
        return draw(ODD_VALUES)
    holder = value
    for name in way:
        holder = holder[name]
    if how == "name":
        if draw(some.booleans()):
            del holder[last]
        elif isinstance(holder, dict):
            holder[draw(some.sampled_from(["task", "loss", "new", "step", "sgd"]))] = draw(ODD_VALUES)
        else:
            holder.append(draw(ODD_VALUES))
    else:
        holder[last] = draw(ODD_VALUES)
    return value


@pytest.fixture(scope="module")
def races(tmp_path_factory):
    """A database of two races, with everything that a database may hold."""
    folder = tmp_path_factory.mktemp("races")
    with Store(folder / "fallline.sqlite") as store:
        for seed in (0, 1):
            hold(store, "sgd", "adamw", tracks=TRACKS, tasks=TASKS, seed=seed)
    return folder / "fallline.sqlite"


def everything(path, folder):
    """All that reads a database; each is done, or refused in a sentence."""
    refused = []

    def attempt(work):
        try:
            return work()
        except ValueError as error:
            assert type(error) is ValueError, repr(error)
            assert "\n" not in str(error)
            refused.append(str(error))

    def read(store):
        return [results(store, race) for race in store.races()]

    def reports():
        with Store(path, read_only=True, complain=told.append) as store:
            found = read(store)
        for one in found:
            show(one)
            write_report(one, folder, found[0])
            for form in ("md", "csv", "parquet"):
                export.export(one, form, folder)
            draw(one)
            attempt(lambda one=one: report.figures.picture(one))
        if alike := [one for one in found if (one.design.tasks, one.design.tracks) == (TASKS, TRACKS)]:
            rows = studies(alike)
            studies_table(rows)
            studies_words(rows)

    def merges():
        with Store(folder / "merged.sqlite", complain=told.append) as store:
            store.merge(path)
            store.merge(path)
            return read(store)

    def going_on():
        with Store(path, complain=told.append) as store:
            held = hold(store, "sgd", "adamw", tracks=TRACKS, tasks=TASKS)
            assert results(store, held).missing == 0

    told = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for work in (reports, merges, going_on):
            attempt(work)
    return told, refused
