"""Workers and coordinators that are killed: the records are in the end those of an undisturbed race."""

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from concurrent.futures import BrokenExecutor, Executor, Future
from multiprocessing.sharedctypes import Value
from pathlib import Path

import pytest
import torch
from referee import Inline
from stress import contents, hold

from fallline.bench.protocol.design import Design
from fallline.bench.race.coordinator import DEATHS, Checkpoints, RaceError, attempt, race, work_off
from fallline.bench.race.results import results
from fallline.bench.race.store import Store
from fallline.bench.race.workers import Renewed, local_pool, take_turn, visible_devices
from fallline.bench.runs.run import Outcome, Run

KILLS = 10
PATIENCE = 300.0
"""Seconds after which a test gives up; nothing else in it depends on time."""

needs_sigkill = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")


def until(condition):
    """Wait for something; what it is, once it is so."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)
    return found


class Killer(threading.Thread):
    """Sends SIGKILL to a random worker of a pool, at random points, so many times."""

    def __init__(self, pool, folder, seed):
        super().__init__(daemon=True)
        self.pool, self.folder, self.random = pool, folder, random.Random(seed)
        self.kills = self.in_mid_run = 0
        self.over = False

    def written(self):
        """The checkpoints that are there, as they are now."""
        found = {}
        for path in self.folder.glob("*.pt"):
            with contextlib.suppress(OSError):
                found[path.name] = path.stat().st_mtime_ns
        return found

    def run(self):
        last = {}
        while self.kills < KILLS:
            for _ in range(self.random.randint(1, 5)):  # so many more measurements
                last = until(lambda seen=last: self.over or ((now := self.written()) != seen and now))
            if self.over:
                return
            workers = list((self.pool._inner._processes or {}).copy())
            with contextlib.suppress(IndexError, ProcessLookupError):
                os.kill(self.random.choice(workers), signal.SIGKILL)
                self.kills += 1
                self.in_mid_run += bool(self.written())


@needs_sigkill
def test_a_race_whose_workers_are_killed_ends_with_the_records_of_an_undisturbed_one(tmp_path):
    asked = {"tasks": ("stress:Long",), "trials": 4, "finalists": 2, "reruns": 1, "seeds": 3}
    with Store(tmp_path / "undisturbed" / "records.sqlite") as store:
        there = hold(store, "sgd", "koala-m", **asked)
    with Store(tmp_path / "killed" / "records.sqlite") as store, local_pool(2) as pool:
        killer = Killer(pool, tmp_path / "killed" / "checkpoints", seed=1)
        killer.start()
        here = hold(store, "sgd", "koala-m", executor=pool, **asked)
        killer.over = True
        killer.join()
        found = results(store, here)
    assert killer.kills == KILLS
    assert killer.in_mid_run > 0
    assert found.missing == 0
    assert here.id == there.id
    assert contents(tmp_path / "killed" / "records.sqlite") == contents(tmp_path / "undisturbed" / "records.sqlite")
    assert not (tmp_path / "killed" / "checkpoints").exists()


def stored(path):
    """How many runs a database holds, which another process may be writing."""
    with contextlib.suppress(sqlite3.OperationalError), contextlib.closing(sqlite3.connect(path)) as db:
        return db.execute("SELECT count(*) FROM runs").fetchone()[0]
    return 0


def session(leader):
    """The processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, *fields = stat.read_text().rpartition(")")[2].split()
            if fields[2] == str(leader) and state != "Z":
                found.append(stat.parent.name)
    return found


@needs_sigkill
def test_a_race_whose_coordinator_is_killed_goes_on_with_the_same_command(tmp_path):
    command = [sys.executable, "-m", "fallline.bench.cli.app", "race", "sprint:Marathon", "--optimizers", "sgd"]
    command += ["--trials", "4", "--seeds", "2", "--jobs", "2", "--no-report", "--out", str(tmp_path / "killed")]
    path = os.pathsep.join([str(Path(__file__).parents[2] / "helpers"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    database = tmp_path / "killed" / "fallline.sqlite"
    coordinator = subprocess.Popen(
        command, env=environment, cwd=tmp_path, start_new_session=True, stdout=subprocess.DEVNULL
    )
    try:
        until(lambda: coordinator.poll() is not None or (database.exists() and stored(database) >= 3))
        assert coordinator.poll() is None
    finally:
        coordinator.kill()
    coordinator.wait()
    until(lambda: not session(coordinator.pid))  # its workers do not outlive it
    before = contents(database)["runs"]
    assert 3 <= len(before) < 15

    calls = []
    for path in (database, tmp_path / "undisturbed.sqlite"):
        with Store(path) as store:
            executor, design = Inline(), Design(("sprint:Marathon",), ("sgd",), trials=4, seeds=2)
            race(design, store, executor, max_pending=2, about={"environment": {}}, on_progress=lambda progress: None)
            calls.append(len(executor.calls))
    assert calls == [15 - len(before), 15]
    assert contents(database) == contents(tmp_path / "undisturbed.sqlite")


@needs_sigkill
def test_who_always_takes_its_worker_along_is_lost_and_the_others_race(tmp_path):
    with Store(tmp_path / "records.sqlite") as store:
        with local_pool(2) as pool:
            held = hold(store, "sgd", "stress:Killing", executor=pool, trials=2)
        found = results(store, held)
    killing, sgd = (found.parts[0].get(name) for name in ("stress:Killing", "sgd"))
    assert len(sgd.finished) == 2
    assert found.missing == 0
    for _, outcome in killing.trials.values():
        assert outcome.status == "failed"
        assert "its worker process died 3 times" in outcome.reason


def test_an_optimizer_that_leaves_python_is_lost_and_not_the_worker(tmp_path):
    with Store(tmp_path / "records.sqlite") as store:
        found = results(store, hold(store, "sgd", "stress:Leaving", trials=2))
    reasons = {outcome.reason for _, outcome in found.parts[0].get("stress:Leaving").trials.values()}
    assert reasons == {"SystemExit: enough"}


class Stage(Executor):
    """Runs nothing: what becomes of the runs in hand is decided at each tick."""

    def __init__(self):
        self.hands = {}
        self.submitted = Counter()
        self.together = []
        """The keys that were in hand at each tick."""

    def submit(self, key):
        future = Future()
        self.submitted[key] += 1
        self.hands[key] = future
        return future

    def tick(self):
        if self.hands:
            self.together.append(sorted(self.hands))
            self.act()

    def act(self):
        raise NotImplementedError

    def finish(self, key):
        self.hands.pop(key).set_result(Outcome("finished", 1, score=1.0))

    def fail(self, key, error):
        self.hands.pop(key).set_exception(error)


def play(store, stage, keys, ahead=3, reached=lambda key: None):
    """Work runs off on a stage; what came of them, in order."""
    checkpoints = Checkpoints(store)
    checkpoints.reached = reached
    came = []
    work_off(
        deque(keys),
        lambda key: (Run("task", "optimizer", {}, 0), key),
        lambda run, checkpoint: stage.submit(checkpoint.path.stem),
        store,
        lambda key, run, same, outcome, known: came.append((key, outcome.status)),
        stage.tick,
        checkpoints,
        max_pending=ahead,
    )
    return came


class Breaking(Stage):
    """Some runs break the pool; its futures hear of it one after the other."""

    def __init__(self, deadly):
        super().__init__()
        self.deadly, self.broken = deadly, False

    def act(self):
        self.broken = bool(self.hands) and (self.broken or bool(set(self.deadly) & set(self.hands)))
        key = next(iter(self.hands))
        if self.broken:
            self.fail(key, BrokenExecutor("abruptly"))
            self.broken = bool(self.hands)
        else:
            self.finish(key)


@pytest.mark.parametrize("deadly", ["a", "b", "f"])
def test_of_several_runs_in_a_broken_pool_only_the_one_to_blame_is_given_up(store, deadly):
    stage = Breaking([deadly])
    came = play(store, stage, "abcdef")
    assert sorted(came) == [(key, "failed" if key == deadly else "finished") for key in "abcdef"]
    assert stage.submitted.pop(deadly) == 1 + DEATHS
    assert max(stage.submitted.values()) <= 2


def test_a_suspect_is_alone_until_it_is_done(store):
    stage = Breaking(["b"])
    play(store, stage, "abcdefgh")
    first = next(place for place, hands in enumerate(stage.together) if "b" in hands)
    assert len(stage.together[first]) == 3
    assert all(hands == ["b"] for hands in stage.together[first + 3 :] if "b" in hands)


def test_a_run_that_dies_but_comes_further_each_time_is_not_given_up(store):
    deaths = 0

    class Preempted(Stage):
        def act(self):
            nonlocal deaths
            if deaths == 5 * DEATHS:
                self.finish("a")
            else:
                deaths += 1
                self.fail("a", BrokenExecutor())

    assert play(store, Preempted(), "a", reached=lambda key: deaths // 2) == [("a", "finished")]


def test_a_run_that_the_executor_blames_goes_again_beside_others(store):
    class Cluster(Stage):
        def act(self):
            if "b" in self.hands:
                self.fail("b", ChildProcessError("killed four workers"))
            else:
                self.finish(next(iter(self.hands)))

    stage = Cluster()
    came = play(store, stage, "abc")
    assert came == [("b", "failed"), ("a", "finished"), ("c", "finished")]
    assert stage.together[:DEATHS] == [["a", "b", "c"]] * DEATHS


def test_a_run_that_was_cancelled_goes_again(store):
    class Cancelling(Stage):
        def act(self):
            if len(self.together) == 1:
                for future in self.hands.values():
                    future.cancel()
                    future.set_running_or_notify_cancel()
                self.hands.clear()
            else:
                self.finish(next(iter(self.hands)))

    assert sorted(play(store, Cancelling(), "abc")) == [(key, "finished") for key in "abc"]


def test_a_race_whose_workers_all_die_ends_with_a_sentence(store):
    stage = Breaking("abcdef")
    with pytest.raises(RaceError, match=r"worker processes die one after another.*the same command.*abruptly"):
        play(store, stage, "abcdef")


def test_what_a_worker_says_of_the_race_ends_it_and_what_has_finished_is_kept(store):
    class Complaining(Stage):
        def act(self):
            self.finish("a")
            self.finish("c")
            self.fail("b", RaceError("this worker lacks a file"))

    with pytest.raises(RaceError, match="lacks a file"):
        play(store, Complaining(), "abc")
    assert store.find("a")
    assert store.find("c")
    assert not store.find("b")


def test_one_run_in_two_places_is_run_once(store):
    class Slow(Stage):
        def act(self):
            if len(self.together) > 1:  # when both places have been looked at
                self.finish(next(iter(self.hands)))

    stage = Slow()
    assert sorted(play(store, stage, "aabab")) == [(key, "finished") for key in "aaabb"]
    assert stage.submitted == {"a": 1, "b": 1}


def test_a_broken_executor_is_made_anew():
    class Brittle(Inline):
        def submit(self, fn, /, *args, **kwargs):
            if self.calls:
                raise BrokenExecutor
            return super().submit(fn, *args, **kwargs)

    made = []
    pool = Renewed(lambda: made.append(Brittle()) or made[-1])
    assert [pool.submit(abs, -n).result() for n in range(3)] == [0, 1, 2]
    assert len(made) == 3


TASK = """
import torch
from fallline.bench.tasks import Task

class Mine(Task):
    steps = 5
    held_out = False

    def model(self):
        return torch.nn.Linear(1, 1)

    def batches(self, order):
        while True:
            yield torch.randn(4, 1, generator=order)

    def losses(self, model, batch):
        return model(batch).square().squeeze(1)
"""


@pytest.mark.parametrize(
    ("change", "told"), [("edited", "has other code or data"), ("gone", "cannot run sgd on .*mine")]
)
def test_a_task_that_changes_in_mid_race_ends_it(store, tmp_path, change, told):
    file = tmp_path / "mine.py"
    file.write_text(TASK)

    class Meddling(Inline):
        def submit(self, fn, /, *args, **kwargs):
            if len(self.calls) == 2 and change == "edited":
                file.write_text(TASK.replace("square()", "abs()"))
            elif len(self.calls) == 2:
                file.unlink()
            return super().submit(fn, *args, **kwargs)

    with pytest.raises(RaceError, match=told):
        hold(store, "sgd", executor=Meddling(), tasks=(str(file),))
    assert len(contents(store.path)["runs"]) == 2


@pytest.mark.parametrize(
    ("optimizer", "told"),
    [
        ("sgd", "has other code or data for sgd on sprint:Sprint than this race began with"),
        ("nowhere:Mine", "cannot run nowhere:Mine on sprint:Sprint: No module named 'nowhere'"),
        ("stress:Mine@linear", "cannot run stress:Mine@linear on sprint:Sprint: module 'stress' has no attribute"),
        ("stress:Wide@constant#2", "has other code or data"),
    ],
)
def test_a_worker_says_that_it_has_not_the_code_of_the_race(optimizer, told):
    with pytest.raises(RaceError, match=told):
        attempt(Run("sprint:Sprint", optimizer, {"lr": 0.1}, 0), "another code")


def test_a_choice_that_a_second_attempt_overrules_leaves_no_runs_of_the_first_in_the_race(tmp_path):
    asked = {"trials": 4, "finalists": 2, "reruns": 2, "seeds": 2}
    with Store(tmp_path / "undisturbed.sqlite") as store:
        held = hold(store, "sgd", **asked)
        best = results(store, held).parts[0].get("sgd").chosen

    class Unlucky(Inline):
        def submit(self, fn, /, run, *args, **kwargs):
            if run.settings == best:
                return super().submit(lambda *_: Outcome("failed", 0, "out of memory"), run)
            return super().submit(fn, run, *args, **kwargs)

    with Store(tmp_path / "twice.sqlite") as store:
        first = hold(store, "sgd", executor=Unlucky(), **asked)
        assert results(store, first).parts[0].get("sgd").chosen not in (best, None)
        assert hold(store, "sgd", **asked).id == first.id
    once, twice = contents(tmp_path / "undisturbed.sqlite"), contents(tmp_path / "twice.sqlite")
    assert twice["entries"] == once["entries"]
    assert len(twice["runs"]) > len(once["runs"])  # runs are kept; they may serve again


@pytest.mark.parametrize(
    ("said", "devices"),
    [
        ("0,1", ("0", "1")),
        (" 2 , GPU-8f6a ", ("2", "GPU-8f6a")),
        ("", ()),
        ("-1", ()),
        ("0,-1,1", ("0",)),
        ("MIG-0a/1/0", ("MIG-0a/1/0",)),
    ],
)
def test_devices_are_those_that_the_environment_names(monkeypatch, said, devices):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", said)
    assert visible_devices() == devices


def test_devices_are_all_there_are_unless_some_are_named(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert visible_devices() == ("0", "1", "2")


def test_workers_take_turns_by_device(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "as it was")
    turn, seen = Value("i", 0), []
    take_turn(turn, ())
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "as it was"
    for _ in range(5):
        take_turn(turn, ("4", "7"))
        seen.append(os.environ["CUDA_VISIBLE_DEVICES"])
    assert seen == ["7", "4", "7", "4", "7"]


def devices_of_a_worker():
    return os.environ.get("CUDA_VISIBLE_DEVICES"), torch.get_num_threads()


def test_a_local_worker_sees_one_device_and_has_one_thread(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6")
    with local_pool(1) as pool:
        assert pool.submit(devices_of_a_worker).result() == ("6", 1)
