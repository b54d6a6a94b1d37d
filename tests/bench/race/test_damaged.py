"""Databases that somebody has spoiled: every command reads what is sound in them, and says what is not."""

import contextlib
import copy
import json
import math
import os
import re
import shutil
import sqlite3
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from recorded import GOOD, RACE, RUN, fill, raw
from referee import Inline
from stress import contents, hold
from terminal import call

from fallline.bench.cli.race import show
from fallline.bench.cli.report import write_report
from fallline.bench.protocol.studies import studies
from fallline.bench.race.results import results
from fallline.bench.race.store import TABLES, Merged, Store
from fallline.bench.report import export, figures
from fallline.bench.report.luck import studies_table, studies_words
from fallline.bench.report.prints import draw

TASKS, TRACKS = ("sprint:Sprint", "stress:Noisy"), ("tuned", "defaults")
ODD_CELLS = some.sampled_from(
    [
        *(None, b"\xff\xfe", b'"\xed\xa0\x80"', "", "text", "null", "[]", "{}", "[1, 2]", "NaN", '{"loss": 1e400}'),
        *("1" * 5000, "[" * 100_000, "a\0b", -1, 0, 0.5, 2**63 - 1, math.inf, -math.inf, "true", "bowl"),
    ]
)
ODD_VALUES = some.one_of(
    some.sampled_from([None, True, "", "text", "a\0b", "\ud800", "<b>", [], [1], [[]], {}, {"a": 1}, {"": None}]),
    some.sampled_from([0, -1, 1, 2**63, -(10**400), 0.0, -0.5, 1e308, -1e308, 5e-324, math.inf, -math.inf, math.nan]),
    some.floats(),
    some.integers(-5, 50),
    some.text(max_size=5),
)


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


def everything(path, folder, drawn=True):
    """All that reads a database; each is done, or refused in a sentence."""
    refused = []

    def attempt(work):
        try:
            work()
        except ValueError as error:
            refused.append(error)

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
            if drawn:
                draw(one)
            attempt(lambda one=one: figures.picture(one))
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
    assert {type(error) for error in refused} <= {ValueError}
    assert not any("\n" in sentence for sentence in [*told, *map(str, refused)])
    return told, refused


def in_a_folder(database, folder, name="spoiled.sqlite"):
    """A fresh copy of a database."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return Path(shutil.copy(database, folder / name))


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=some.data())
def test_whatever_stands_in_the_cells_everyone_reads_the_rest(races, tmp_path, data):
    path = in_a_folder(races, tmp_path / "here")
    data.draw(spoiling(path))
    everything(path, path.parent)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=some.data())
def test_whatever_bytes_are_lost_the_file_is_read_or_refused(races, tmp_path, data):
    path = in_a_folder(races, tmp_path / "here")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(some.integers(0, 4))):
        start = data.draw(some.integers(0, len(content) - 1))
        odd = data.draw(some.one_of(some.binary(min_size=1, max_size=8), some.just(bytes(4096))))
        content[start : start + len(odd)] = odd
    path.write_bytes(content[: data.draw(some.one_of(some.just(None), some.integers(0, len(content))))])
    everything(path, path.parent, drawn=False)


def test_a_sound_database_is_read_without_a_word(races, tmp_path):
    assert everything(in_a_folder(races, tmp_path / "here"), tmp_path / "here") == ([], [])


# One judgement on a row


LARGE = json.dumps({"status": "finished", "steps": 10**400, "score": 0.5})
FAULTS = [
    ("settings", "lr 0.1", "settings is not JSON"),
    ("settings", "[1]", "settings is a list, and not a mapping"),
    ("settings", '{"lr": NaN}', "settings.lr is no finite number, which is out of bounds"),
    ("settings", '{"lr": [0.1]}', "settings.lr is a list, and not a number or a text or true or false or null"),
    ("settings", "[" * 100_000, "settings is not JSON"),
    ("settings", None, "settings is null, and not a text"),
    ("settings", b"\xff\xfe", "settings is bytes, and not a text"),
    ("seed", "first", "seed is 'first', and not a whole number"),
    ("score", math.inf, "score is no finite number, which is out of bounds"),
    ("score", 0.25, "its columns status and score are not those of its outcome"),
    ("status", "diverged", "its columns status and score are not those of its outcome"),
    ("outcome", "{}", "outcome has no st[a-z]+"),
    ("outcome", LARGE, "outcome.steps is a very large number, which is out of bounds"),
    ("outcome", '{"status": "won", "steps": 3}', "outcome.status is 'won', and none of finished, diverged, failed"),
    ("outcome", '{"status": "finished", "steps": 3, "colour": "red"}', "outcome has a 'colour', which this version .*"),
    ("outcome", '{"status": "finished", "steps": 3, "score": 1e400}', "outcome.score is no finite number, .*"),
    ("outcome", '{"status": "finished", "steps": "3"}', "outcome.steps is '3', and not a whole number"),
    ("finished_at", None, "finished_at is null, and not a text"),
    ("optimizer", b"sgd", "optimizer is bytes, and not a text"),
]


@pytest.mark.parametrize(("column", "cell", "why"), FAULTS)
def test_a_run_that_cannot_be_read_is_not_there_for_anyone(tmp_path, column, cell, why):
    path = fill(tmp_path / "spoiled.sqlite", a=GOOD, b=GOOD)
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute(f"UPDATE runs SET {column} = ? WHERE key = 'a'", (cell,))
    told = []
    sentence = rf"\S+ has a row that cannot be read and was left out: row 1 of runs \({why}\)"
    with Store(path, read_only=True, complain=told.append) as store:  # a report
        assert [entry.number for entry, _, _ in store.runs("race")] == [1]
    with Store(tmp_path / "merged.sqlite", complain=told.append) as store:
        assert store.merge(path) == Merged(runs=1, races=1, conflicts=0, skipped=1)
        assert [entry.number for entry, _, _ in store.runs("race")] == [1]
    with Store(path, complain=told.append) as store:  # a race that goes on
        assert store.find("a", RUN) is None
        assert store.find("b", RUN) == GOOD
        assert store.add("a", RUN, GOOD) == GOOD
    assert len(told) == 3
    assert all(re.fullmatch(sentence, one) for one in told), told
    with Store(path) as store:  # without a warning: it has been run again
        assert store.find("a", RUN) == GOOD


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("optimizer = 'lion'", "optimizer is 'lion', and none of its race's"),
        ("task = 'moon'", "task is 'moon', and none of its race's"),
        ("stage = 'final'", "stage is 'final', and none of its race's"),
        ("stage = 'default'", "stage is 'default', and none of its race's"),
        ("number = 20", "number 20, repeat 0 is no trial of its race"),
        ("number = 'two'", "number is 'two', and not a whole number"),
        ("repeat = 1", "number 0, repeat 1 is no trial of its race"),
        ("run = 'none'", "its run is not there"),
        ("run = NULL", "run is null, and not a text"),
    ],
)
def test_an_entry_of_what_is_not_in_its_race_is_left_out_by_all(tmp_path, change, why):
    path = fill(tmp_path / "spoiled.sqlite", a=GOOD, b=GOOD)
    raw_write(path, f"UPDATE entries SET {change} WHERE run = 'a'")
    told = []
    with Store(path, read_only=True, complain=told.append) as store:
        assert [entry.number for entry, _, _ in store.runs("race")] == [1]
    with Store(tmp_path / "merged.sqlite", complain=told.append) as store:
        assert store.merge(path) == Merged(runs=2, races=1, conflicts=0, skipped=1)
        assert raw(tmp_path / "merged.sqlite", "SELECT number FROM entries") == [(1,)]
    assert [re.sub(r"^\S+ ", "", one) for one in told] == 2 * [
        f"has a row that cannot be read and was left out: row 1 of entries ({why})"
    ]


def raw_write(path, query, *values):
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute(query, values)


def test_names_that_are_not_known_here_are_no_fault(tmp_path):
    """Another machine's tasks and optimizers are names: they come along."""
    path = fill(tmp_path / "elsewhere.sqlite", a=GOOD)
    for table, column in (("runs", "settings"), ("runs", "optimizer"), ("entries", "optimizer"), ("races", "design")):
        raw_write(path, f"UPDATE {table} SET {column} = replace({column}, 'sgd', 'theirs:Own')")
    raw_write(path, "UPDATE races SET setting = replace(setting, '\"sgd\":', '\"theirs:Own\":')")
    with Store(tmp_path / "merged.sqlite") as store:
        assert store.merge(path) == Merged(runs=1, races=1, conflicts=0)
        assert [entry.optimizer for entry, _, _ in store.runs("race")] == ["theirs:Own"]


@pytest.mark.parametrize(
    ("column", "change", "why"),
    [
        ("design", "'none'", "design is not JSON"),
        ("design", "json_remove(design, '$.tasks')", "design has no tasks"),
        ("design", "json_set(design, '$.tracks', json_array('wild'))", "design.tracks has 'wild', and there are .*"),
        ("design", "json_set(design, '$.trials', 0)", "design.trials is 0, and less than 1"),
        ("design", "json_set(design, '$.trials', '20')", "design.trials is '20', and not a whole number"),
        ("design", "json_set(design, '$.wings', 2)", "design has a 'wings', which this version .*"),
        ("setting", "json_remove(setting, '$.contenders.digits')", "setting.contenders has nobody on 'digits'"),
        (
            "setting",
            "json_remove(setting, '$.contenders.digits.sgd.label')",
            "setting.contenders.digits.sgd has no label",
        ),
        (
            "setting",
            "json_set(setting, '$.contenders.digits.sgd.ranges.lr', json_array(2, 1))",
            ".* a range that is none.*",
        ),
        ("started_at", "NULL", "started_at is null, and not a text"),
    ],
)
def test_a_race_that_cannot_be_read_is_not_there_and_is_written_anew(tmp_path, column, change, why):
    path = fill(tmp_path / "spoiled.sqlite", a=GOOD)
    raw_write(path, f"UPDATE races SET {column} = {change}")
    told = []
    with Store(path, read_only=True, complain=told.append) as store:
        assert store.last_race() is None
        assert list(store.runs("race")) == []
    assert re.fullmatch(rf"\S+ has a row that cannot .*: row 1 of races \({why}\)", *told), told
    with Store(tmp_path / "merged.sqlite", complain=told.append) as store:
        assert store.merge(path) == Merged(runs=1, races=0, conflicts=0, skipped=2)  # its entry too
    assert "row 1 of entries (its race is not there, or cannot be read)" in told[1]
    sound = fill(tmp_path / "sound.sqlite", a=GOOD)
    with Store(path, complain=told.append) as store:
        assert store.merge(sound).races == 1
    with Store(path) as store:
        assert store.last_race() == RACE_AS_READ
    raw_write(path, f"UPDATE races SET {column} = {change}")
    with Store(path, complain=told.append) as store:
        store.open_race(RACE)
    with Store(path) as store:
        assert store.last_race() == RACE_AS_READ
        assert len(list(store.runs("race"))) == 1


with warnings.catch_warnings():
    RACE_AS_READ = type(RACE)(
        RACE.id, json.loads(json.dumps(RACE.design)), {"command": "", "environment": {}, **RACE.setting}, "then"
    )


def test_a_thousand_rows_are_one_warning(tmp_path):
    path = tmp_path / "spoiled.sqlite"
    with Store(path) as store, store.writing():
        store.open_race(RACE)
        for number in range(1000):
            store.add(str(number), RUN, GOOD)
    raw_write(path, "UPDATE runs SET settings = 'none' WHERE rowid > 2")
    raw_write(path, "UPDATE runs SET seed = 'none' WHERE rowid = 2")
    with pytest.warns(UserWarning, match="999 rows") as caught, Store(tmp_path / "merged.sqlite") as store:
        assert store.merge(path) == Merged(runs=1, races=1, conflicts=0, skipped=999)
    assert [str(one.message) for one in caught] == [
        f"{path} has 999 rows that cannot be read and were left out: row 2 of runs (seed is 'none', and not a whole "
        "number); rows 3, 4, 5, 6, 7 and 993 more of runs (settings is not JSON)"
    ]


def test_what_cannot_be_written_down_is_a_failed_run(store):
    odd = GOOD.__class__("finished", 3, score=math.inf)
    told = store.add("key", RUN, odd)
    assert (told.status, told.steps) == ("failed", 3)
    assert told.reason == "what came of it cannot be written down: score is no finite number, which is out of bounds"
    assert store.add("key", RUN, GOOD) == GOOD
    told = store.add("other", RUN, GOOD.__class__("failed", 0, "no file \udcff"))
    assert told.reason == "no file \\udcff"
    assert raw(store.path, "SELECT status FROM runs WHERE key = 'other'") == [("failed",)]


def test_a_report_shows_what_was_confirmed_where_the_trial_is_lost(races, tmp_path):
    path = in_a_folder(races, tmp_path / "here")
    with Store(path, read_only=True) as store:
        race = store.last_race()
        whole = results(store, race).part("sprint:Sprint").get("sgd")
    query = (
        "SELECT run FROM entries WHERE (race, task, optimizer, stage, number) = (?, 'sprint:Sprint', 'sgd', 'trial', ?)"
    )
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        (key,) = db.execute(query, (race.id, whole.chosen_trial)).fetchone()
        db.execute("UPDATE runs SET outcome = 'lost' WHERE key = ?", (key,))
    with pytest.warns(UserWarning, match="row .* of runs .outcome is not JSON"), Store(path, read_only=True) as store:
        found = results(store, race).part("sprint:Sprint").get("sgd")
    assert (found.chosen, found.losses) == (whole.chosen, whole.losses)
    assert found.chosen_trial is None
    again = Inline()
    with pytest.warns(UserWarning, match="outcome is not JSON"), Store(path) as store:
        hold(store, "sgd", "adamw", tracks=TRACKS, tasks=TASKS, seed=1, executor=again)
    assert len(again.calls) == 1
    with Store(path, read_only=True) as store:
        assert results(store, race).part("sprint:Sprint").get("sgd").chosen_trial == whole.chosen_trial


# The file as a whole


def torn(path):
    path.write_bytes(path.read_bytes()[:-100])


def unsorted(path):
    """An index that does not find a run which is there."""
    raw_write(path, "PRAGMA writable_schema = ON")
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("PRAGMA writable_schema = ON")
        db.execute(
            "UPDATE sqlite_master SET sql = replace(sql, 'key TEXT PRIMARY KEY', 'key TEXT') WHERE name = 'runs'"
        )
        db.execute("DELETE FROM sqlite_master WHERE name = 'sqlite_autoindex_runs_1'")
    raw_write(path, "DELETE FROM runs WHERE rowid = 1")


WHOLES = {
    "torn": (torn, r"is damaged \(.*\): move it away to begin anew"),
    "page of zeros": (lambda path: zero(path), r"is damaged \(.*\): move it away to begin anew"),
    "no primary key": (unsorted, r"is (damaged|no database of races as this fallline makes them: see its runs)"),
    "column": (
        lambda path: raw_write(path, "ALTER TABLE runs DROP COLUMN seed"),
        "is no database of races as this fallline makes them: see its runs",
    ),
    "more columns": (
        lambda path: raw_write(path, "ALTER TABLE races ADD COLUMN mood TEXT"),
        "is no database of races as this fallline makes them: see its races",
    ),
    "no table": (
        lambda path: raw_write(path, "DROP TABLE entries"),
        "is not a database of races, but of another program",
    ),
    "view": (lambda path: view(path), "is not a database of races, but of another program"),
    "newer": (lambda path: raw_write(path, "PRAGMA user_version = 3"), "was written by a newer fallline"),
    "text": (lambda path: path.write_text("a text " * 1000), "is not a database of races"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "cannot be opened"),
}


def zero(path):
    content = path.read_bytes()
    path.write_bytes(content[:8192] + bytes(4096) + content[12288:])


def view(path):
    raw_write(path, "ALTER TABLE runs RENAME TO old")
    raw_write(path, "CREATE VIEW runs AS SELECT * FROM old")


@pytest.mark.parametrize("how", WHOLES)
def test_a_file_that_is_no_good_is_refused_by_all_commands_alike(tmp_path, monkeypatch, how):
    monkeypatch.chdir(tmp_path)
    spoil, sentence = WHOLES[how]
    Path("runs").mkdir()
    fill(Path("runs/fallline.sqlite"), a=GOOD)
    fill(Path("sound.sqlite"), b=GOOD)
    spoil(Path("runs/fallline.sqlite"))
    before = contents(Path("sound.sqlite"))
    small = ("--optimizers", "sgd", "--trials", "1", "--seeds", "1", "--finalists", "1", "--jobs", "1")
    for words in (
        ("report",),
        ("report", "--format", "md"),
        ("race", "bowl", *small),
        ("merge", "runs/fallline.sqlite", "sound.sqlite"),
        ("merge", "sound.sqlite", "runs/fallline.sqlite"),
    ):
        code, output = call(*words)
        assert code == 1, (words, output)
        assert re.search(f"Error: runs/fallline.sqlite {sentence}", output), (words, output)
    assert contents(Path("sound.sqlite")) == before
    assert sorted(os.listdir("runs")) == ["fallline.sqlite"]


def test_an_empty_file_is_a_database_without_races(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    Path("runs/fallline.sqlite").touch()
    assert "there is no race in runs" in call("report")[1]
    fill(Path("sound.sqlite"), b=GOOD)
    assert call("merge", "sound.sqlite", "runs/fallline.sqlite")[0] == 0
    assert "1 new runs, 1 new races" in call("merge", "runs/fallline.sqlite", "sound.sqlite")[1]


def test_every_command_reads_a_race_with_rows_that_cannot_be_read(races, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = in_a_folder(races, Path("runs"), "fallline.sqlite")
    with Store(path, read_only=True) as store:
        last = store.last_race().id
    first, second, third = raw(path, f"SELECT rowid, run FROM entries WHERE race = '{last}' LIMIT 3")
    raw_write(path, "UPDATE runs SET settings = 'none' WHERE key IN (?, ?)", first[1], second[1])
    spoiled = raw(path, "SELECT rowid FROM runs WHERE settings = 'none' ORDER BY rowid")
    raw_write(path, "UPDATE entries SET stage = 'final' WHERE rowid = ?", third[0])
    for words in (
        ("report",),
        ("report", "--format", "csv"),
        ("report", "--against", str(path)),
        ("merge", "runs/new.sqlite", str(path)),
    ):
        Store(Path("runs/new.sqlite")).__exit__()
        code, output = call(*words)
        assert code == 0, output
        assert output.count("Warning:") == (2 if "--against" in words else 1), output
        runs = " ".join(f"{number}," for (number,) in spoiled).rstrip(",")
        assert f"rows {runs} of runs (settings is not JSON)" in output
        assert f"row {third[0]} of entries (stage is 'final', and none of its race's)" in output


# All or nothing


def test_of_several_sources_one_that_is_no_good_keeps_the_others_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    into, one, other = (fill(Path(f"{name}.sqlite"), **{name: GOOD}) for name in ("into", "one", "other"))
    before = contents(into)
    torn(other)
    code, output = call("merge", str(into), str(one), str(other))
    assert (code, "other.sqlite is damaged" in output) == (1, True)
    assert contents(into) == before
    code, output = call("merge", str(into), str(one), str(one), str(into))
    assert code == 0, output
    assert output.split("races")[:3] == [
        "one.sqlite: 1 new runs, 0 new ",
        ". one.sqlite: 0 new runs, 0 new ",
        ". into.sqlite: 0 new runs, 0 new ",
    ]


@pytest.mark.parametrize("end", [KeyboardInterrupt, MemoryError])
def test_a_merge_that_is_interrupted_takes_nothing_in(tmp_path, monkeypatch, end):
    into, one = fill(tmp_path / "into.sqlite", a=GOOD), fill(tmp_path / "one.sqlite", b=GOOD, c=GOOD)
    before = contents(into)
    with Store(into) as store:
        monkeypatch.setattr(Store, "_race", lambda *_: (_ for _ in ()).throw(end))  # after the runs
        with pytest.raises(end):
            store.merge(one)
    assert contents(into) == before


def test_a_merge_on_a_full_disk_takes_nothing_in(tmp_path):
    into, one = fill(tmp_path / "into.sqlite", a=GOOD), tmp_path / "one.sqlite"
    long = GOOD.__class__("failed", 0, "why " * 2000)
    fill(one, **{f"run {number}": long for number in range(10)})
    before = contents(into)
    with Store(into) as store:
        store._db.execute(f"PRAGMA max_page_count = {2 + into.stat().st_size // 4096}")
        with pytest.raises(ValueError, match=r"the disk is full, and .*into.sqlite cannot grow"):
            store.merge(one)
    assert contents(into) == before
    with Store(into) as store:
        assert store.merge(one).runs == 10


def test_a_failed_write_within_others_takes_all_of_them_back(store):
    def write():
        with store.writing():
            store.add("key", RUN, GOOD)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()
    assert store.find("key") is None
