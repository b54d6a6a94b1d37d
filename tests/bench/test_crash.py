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
from collections import deque
from concurrent.futures import BrokenExecutor, Executor, Future
from pathlib import Path

import pytest
from referee import Inline
from stress import contents, hold

from fallline.bench import pool as pools
from fallline.bench.design import Design
from fallline.bench.pool import Renewed, local_pool, take_turn, visible_devices
from fallline.bench.race import DEATHS, RaceError, race, work_off
from fallline.bench.record import Store
from fallline.bench.results import results
from fallline.bench.train import Outcome, Run

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")

KILLS = 10
PATIENCE = 120.0
"""Seconds after which a test gives up; it depends on no other time."""


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
