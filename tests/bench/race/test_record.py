"""The records: several that write, disks that are full, files that are damaged, older, newer or somebody else's."""

import contextlib
import dataclasses
import functools
import json
import os
import sqlite3
import time
from pathlib import Path

import pytest
from recorded import FAILED, GOOD, LOST, RACE, RUN, fill, race_database, raw
from referee import Inline
from stress import contents, hold

from fallline.bench.protocol.records import Place
from fallline.bench.race import store as record
from fallline.bench.race.results import results
from fallline.bench.race.store import Merged, Store, complaint
from fallline.bench.race.workers import start_method
from fallline.bench.runs.run import Outcome

# Two coordinators


def coordinate(path, go, tasks):
    """In a process of its own: races one after another, once all are ready."""
    with Store(path) as store:
        Path(f"{go}.{os.getpid()}").touch()
        while not go.exists():
            time.sleep(0.001)
        for task in tasks:
            held = hold(store, "sgd", tasks=(task,))
            found = results(store, held)
            assert found.missing == 0
            losses = found.parts[0].get("sgd").losses
            (path.parent / f"{os.getpid()}-{task}.json").write_text(json.dumps(losses))


def test_two_coordinators_on_one_database_do_not_disturb_each_other(tmp_path):
    path, go = tmp_path / "records.sqlite", tmp_path / "go"
    plans = [("sprint:Sprint", "stress:Noisy"), ("sprint:Sprint", "sprint:Poisoned")]
    both = [start_method().Process(target=coordinate, args=(path, go, plan)) for plan in plans]
    for process in both:
        process.start()
    while len(list(tmp_path.glob("go.*"))) < 2 and all(process.is_alive() for process in both):
        time.sleep(0.001)
    go.touch()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    with Store(tmp_path / "undisturbed.sqlite") as store:
        for task in ("sprint:Sprint", "stress:Noisy", "sprint:Poisoned"):
            hold(store, "sgd", tasks=(task,))
    assert contents(path) == contents(tmp_path / "undisturbed.sqlite")
    one, other = tmp_path.glob("*-sprint:Sprint.json")
    assert one.read_text() == other.read_text()
    assert not (tmp_path / "checkpoints").exists()


def test_a_new_database_waits_where_sqlite_refuses_at_once(tmp_path, monkeypatch):
    refusals = []

    class Refusing(sqlite3.Connection):
        def execute(self, query, *values):
            if "journal_mode" in query and len(refusals) < 3:
                refusals.append(query)
                error = sqlite3.OperationalError("database is locked")
                error.sqlite_errorcode = sqlite3.SQLITE_BUSY
                raise error
            return super().execute(query, *values)

    monkeypatch.setattr(sqlite3, "connect", functools.partial(sqlite3.connect, factory=Refusing))
    with Store(tmp_path / "records.sqlite") as store:
        assert store.add("key", RUN, GOOD) == GOOD
    assert len(refusals) == 3


def test_of_two_outcomes_the_first_stays(tmp_path):
    path = tmp_path / "records.sqlite"
    with Store(path) as here, Store(path) as there:
        mine, theirs = dataclasses.replace(GOOD, cpu_seconds=1.0), dataclasses.replace(GOOD, cpu_seconds=2.0)
        assert here.add("key", RUN, mine) == mine
        assert there.add("key", RUN, theirs) == mine
        assert there.add("key", RUN, FAILED) == mine
        assert there.find("key") == mine


def test_a_failed_run_counts_as_not_there_and_gives_way(store):
    assert store.add("key", RUN, FAILED) == FAILED
    assert store.find("key") is None
    assert store.add("key", RUN, LOST) == LOST
    assert store.find("key") == LOST


def test_a_place_in_a_race_can_be_taken_back(store):
    store.open_race(RACE)
    store.add("key", RUN, GOOD)
    first, second = Place("digits", "sgd", "trial", 0), Place("digits", "sgd", "trial", 1)
    for entry in (second, first):
        store.enter("race", entry, "key")
    assert store.entered("race", "digits", "sgd", "trial") == [(first, "key"), (second, "key")]
    store.withdraw("race", first)
    assert store.entered("race", "digits", "sgd", "trial") == [(second, "key")]
    assert store.entered("another", "digits", "sgd", "trial") == []
    assert store.find("key") == GOOD


# What can go wrong with a file


def test_a_full_disk_is_told_in_a_sentence_and_costs_nothing_that_had_finished(tmp_path):
    path = tmp_path / "records.sqlite"
    with Store(path) as store:
        store._db.execute("PRAGMA max_page_count = 12")
        with pytest.raises(ValueError, match=r"the disk is full, and .*records.sqlite cannot grow: make room"):
            hold(store, "sgd", "adamw")
    kept = contents(path)["runs"]
    assert 1 <= len(kept) < 14
    rest = Inline()
    with Store(path) as store:
        hold(store, "sgd", "adamw", executor=rest)
    assert len(rest.calls) == 14 - len(kept)
    with Store(tmp_path / "undisturbed.sqlite") as store:
        hold(store, "sgd", "adamw")
    assert contents(path) == contents(tmp_path / "undisturbed.sqlite")


def test_a_disk_that_is_full_from_the_start(tmp_path, monkeypatch):
    connect = sqlite3.connect

    def small(*args, **more):
        db = connect(*args, **more)
        db.execute("PRAGMA max_page_count = 1")
        return db

    monkeypatch.setattr(sqlite3, "connect", small)
    with pytest.raises(ValueError, match="the disk is full"):
        Store(tmp_path / "records.sqlite")


def spoil(path, how):
    """Damage a database."""
    sound = path.read_bytes()
    if how == "its header is overwritten":
        path.write_bytes(b"no database " * 10 + sound[120:])
    elif how == "it is a text":
        path.write_bytes(b"this is a text, and rather a long one at that" * 50)
    elif how == "it is cut off":
        path.write_bytes(sound[: len(sound) // 2])
    elif how == "it is of another program":
        path.unlink()
        raw(path, "CREATE TABLE bookmarks (place TEXT)")
    elif how == "it is of another program, with a version":
        path.unlink()
        raw(path, "CREATE TABLE bookmarks (place TEXT)")
        raw(path, "PRAGMA user_version = 1")
    elif how == "it is of an early fallline":
        raw(path, "PRAGMA user_version = 1")
    elif how == "it is newer":
        raw(path, "PRAGMA user_version = 99")


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("its header is overwritten", "is not a database of races"),
        ("it is a text", "is not a database of races"),
        ("it is cut off", r"is damaged \(database disk image is malformed\): move it away to begin anew"),
        ("it is of another program", "is not a database of races, but of another program"),
        ("it is of another program, with a version", "is not a database of races, but of another program"),
        (
            "it is of an early fallline",
            r"was written by an early fallline \(schema 1, here 2\).*move it away",
        ),
        ("it is newer", r"was written by a newer fallline \(schema 99, here 2\): pip install"),
    ],
)
@pytest.mark.parametrize("read_only", [False, True])
def test_a_file_that_is_no_good_is_told_in_a_sentence_and_left_as_it_is(tmp_path, how, told, read_only):
    path = tmp_path / "records.sqlite"
    race_database(path)
    spoil(path, how)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=told) as caught:
        Store(path, read_only=read_only)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["records.sqlite"]


def test_damage_that_comes_while_a_file_is_open_is_told_in_a_sentence_too(tmp_path, monkeypatch):
    path = tmp_path / "records.sqlite"
    race_database(path)
    page = raw(path, "PRAGMA page_size")[0][0]
    whole = path.read_bytes()
    path.write_bytes(whole[:page] + b"\xff" * (len(whole) - page))  # all pages but the first
    monkeypatch.setattr(Store, "_check_whole", lambda self: None)  # it was whole then
    with Store(path) as store:
        for look in (store.races, lambda: list(store.runs("race")), lambda: store.find("key")):
            with pytest.raises(ValueError, match=r"records.sqlite is damaged"):
                look()
        with pytest.raises(ValueError, match=r"records.sqlite is damaged"):
            store.add("key", RUN, GOOD)


def test_a_folder_in_the_place_of_the_file(tmp_path):
    for read_only in (False, True):
        with pytest.raises(ValueError, match=r"cannot be opened .*may it be read and written"):
            Store(tmp_path, read_only=read_only)


def test_a_file_that_may_not_be_written_to(tmp_path):
    path = tmp_path / "records.sqlite"
    race_database(path)
    with Store(path) as store:
        store._db.execute("PRAGMA query_only = ON")
        with pytest.raises(ValueError, match=r"records.sqlite may not be written to"):
            store.add("key", RUN, GOOD)
        assert store.last_race() is not None


@pytest.mark.parametrize("writable", [True, False])
def test_reading_leaves_nothing_behind(tmp_path, monkeypatch, writable):
    path = tmp_path / "records.sqlite"
    race_database(path)
    before = path.read_bytes()
    if not writable:
        monkeypatch.setattr(os, "access", lambda *_: False)
    with Store(path, read_only=True) as store:
        assert results(store, store.last_race()).missing == 0
        with pytest.raises(ValueError, match="may not be written to"):
            store.add("key", RUN, GOOD)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["records.sqlite"]
    with pytest.raises(ValueError, match="cannot be opened"):
        Store(tmp_path / "none.sqlite", read_only=True)


def test_reading_sees_what_another_has_just_written(tmp_path):
    path = tmp_path / "records.sqlite"
    with Store(path) as store, Store(path, read_only=True) as reader:
        store.add("key", RUN, GOOD)
        assert reader.find("key") == GOOD


def test_a_database_that_another_keeps_busy(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "PATIENCE", 0.05)
    path = tmp_path / "records.sqlite"
    with Store(path) as store, contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(ValueError, match=r"has been kept busy by another process for 0.05 seconds"):
            store.add("key", RUN, GOOD)


def test_an_error_without_a_code_is_passed_on_in_its_own_words():
    assert complaint(sqlite3.ProgrammingError("closed"), Path("a.sqlite")) == "a.sqlite cannot be used: closed"
    broken = sqlite3.OperationalError("disk I/O error")
    broken.sqlite_errorcode = sqlite3.SQLITE_IOERR_WRITE
    assert "as on a disk that is full or gone" in complaint(broken, Path("a.sqlite"))


def test_runs_without_times_and_counts_are_read(tmp_path):
    """As databases have them that were made by an early fallline and brought to this schema by a later one."""
    curve = {"step": [0.0, 5.0, 10.0], "train loss": [None, 2.0, 1.0], "validation loss": [3.0, 0.5, 0.5]}
    seed = Outcome("finished", 10, score=0.5, result={"loss": 0.5}, curve=curve)
    with Store(tmp_path / "records.sqlite") as store:
        store.open_race(RACE)
        for stage in ("trial", "seed"):
            for number in range(2):
                store.add(f"{stage} {number}", RUN, seed)
                store.enter("race", Place("digits", "sgd", stage, number), f"{stage} {number}")
        sgd = results(store, RACE).parts[0].get("sgd")
    assert sgd.losses == {0: 0.5, 1: 0.5}
    assert [outcome.wall_seconds for outcome in sgd.seeds.values()] == [0.0, 0.0]
    assert [outcome.times for outcome in sgd.seeds.values()] == [{}, {}]
    assert sgd.hits[0.5] == [10.0, 10.0]  # counted in steps


# Merging


def test_a_merge_takes_in_what_is_new_and_says_how_much(tmp_path):
    other = dataclasses.replace(GOOD, score=0.75)
    one = fill(tmp_path / "one.sqlite", a=GOOD, b=GOOD, c=FAILED, d=GOOD, e=FAILED)
    two = fill(tmp_path / "two.sqlite", a=GOOD, b=other, c=LOST, d=FAILED, e=FAILED, f=GOOD)
    untouched = two.read_bytes()
    with Store(one) as store:
        assert store.merge(two) == Merged(runs=2, races=0, conflicts=1)
        assert store.merge(two) == Merged(runs=0, races=0, conflicts=1)
        assert store.merge(one) == Merged(runs=0, races=0, conflicts=0)
        found = {key: store.find(key) for key in "abcdef"}
        assert found == {"a": GOOD, "b": GOOD, "c": LOST, "d": GOOD, "e": None, "f": GOOD}
        assert len(list(store.runs("race"))) == 6
    assert two.read_bytes() == untouched
    assert sorted(file.name for file in tmp_path.iterdir()) == ["one.sqlite", "two.sqlite"]


def test_two_halves_of_a_race_merge_to_the_whole(tmp_path):
    with Store(tmp_path / "whole.sqlite") as store:
        held = hold(store, "sgd", "adamw")
        whole = results(store, held)
    for half in ("sgd", "adamw"):
        with Store(tmp_path / f"{half}.sqlite") as store:
            hold(store, half)
    with Store(tmp_path / "merged.sqlite") as store:
        assert store.merge(tmp_path / "sgd.sqlite") == Merged(runs=7, races=1, conflicts=0)
        assert store.merge(tmp_path / "adamw.sqlite") == Merged(runs=7, races=1, conflicts=0)
        known = Inline()
        again = hold(store, "sgd", "adamw", executor=known)
        assert known.calls == []
        merged = results(store, again)
    assert again.id == held.id
    for name in ("sgd", "adamw"):
        assert merged.parts[0].get(name).losses == whole.parts[0].get(name).losses
    assert contents(tmp_path / "merged.sqlite")["runs"] == contents(tmp_path / "whole.sqlite")["runs"]


def test_a_merge_with_what_is_not_there_or_no_good_takes_nothing_in(tmp_path):
    one = fill(tmp_path / "one.sqlite", a=GOOD)
    before = contents(one)
    with Store(one) as store:
        with pytest.raises(ValueError, match=r"there is no file .*none.sqlite"):
            store.merge(tmp_path / "none.sqlite")
        assert not (tmp_path / "none.sqlite").exists()
        for how in ("it is a text", "it is cut off", "it is of an early fallline", "it is newer"):
            two = tmp_path / "two.sqlite"
            two.unlink(missing_ok=True)
            race_database(two)
            spoil(two, how)
            with pytest.raises(ValueError, match=r"two.sqlite"):
                store.merge(two)
        rows = tmp_path / "rows.sqlite"
        race_database(rows)
        raw_bytes = rows.read_bytes()
        page = raw(rows, "PRAGMA page_size")[0][0]
        last = len(raw_bytes) - page
        rows.write_bytes(raw_bytes[:last] + b"\xff" * page)  # damage on the way
        with pytest.raises(ValueError, match=r"rows.sqlite is damaged"):
            store.merge(rows)
    assert contents(one) == before
