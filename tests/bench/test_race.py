"""Who runs what, what is kept, and what is never run twice."""

import dataclasses
import sqlite3

import pytest
import torch
from referee import Inline, Referee

from fallline.bench.contenders import get_contender
from fallline.bench.pool import local_pool
from fallline.bench.race import RaceError
from fallline.bench.record import Store, fingerprint, run_key
from fallline.bench.results import results
from fallline.bench.seeds import derive
from fallline.bench.tasks import get_task
from fallline.bench.train import Outcome, Run


def outcomes(store, race):
    """All numbers of a race that do not depend on the clock."""
    return [
        (entry, run, outcome.status, outcome.score, outcome.result, outcome.curve)
        for entry, run, outcome in store.runs(race.id)
    ]


def test_everyone_gets_the_same_trials_and_seeds(store, referee):
    race = referee.race("sgd", "adamw", "koala-v", trials=5, seeds=3)
    runs = list(store.runs(race.id))
    for name in ("sgd", "adamw", "koala-v"):
        mine = [(entry.stage, entry.number) for entry, _, _ in runs if entry.optimizer == name]
        assert sorted(mine) == [("seed", n) for n in range(3)] + [("trial", n) for n in range(5)]
    tried = {str(run.settings) for entry, run, _ in runs if entry.stage == "trial"}
    assert len(tried) == 15


def test_the_best_on_validation_is_confirmed_on_fresh_shared_seeds(store, referee):
    race = referee.race("sgd", "koala-m", trials=6, seeds=3)
    runs = list(store.runs(race.id))
    seeds = {}
    for name in ("sgd", "koala-m"):
        mine = [(entry.stage, run, outcome) for entry, run, outcome in runs if entry.optimizer == name]
        _, best, _ = min((trial for trial in mine if trial[0] == "trial"), key=lambda trial: trial[2].score)
        confirmed = [run for stage, run, _ in mine if stage == "seed"]
        assert all(run.settings == best.settings for run in confirmed)
        assert all(run.test for run in confirmed)
        seeds[name] = [run.seed for run in confirmed]
    assert seeds["sgd"] == seeds["koala-m"]
    trial_seeds = {run.seed for e, run, _ in runs if e.stage == "trial"}
    assert len(set(seeds["sgd"])) == 3
    assert not trial_seeds & set(seeds["sgd"])
    assert all(not outcome.result for e, _, outcome in runs if e.stage == "trial")


def test_nothing_is_run_twice(store, referee):
    first = Inline()
    race = referee.race("sgd", "adamw", executor=first)
    assert len(first.calls) == 2 * (3 + 2)
    again = Inline()
    assert referee.race("sgd", "adamw", executor=again).id == race.id
    assert again.calls == []
    assert referee.progress.done == referee.progress.total == referee.progress.reused == 10
    more = Inline()
    bigger = referee.race("sgd", "adamw", executor=more, trials=4)
    assert sum(not run.test for (run,) in more.calls) == 2  # one more trial each, the rest is there
    assert bigger.id != race.id


def test_an_interrupted_race_goes_on_as_if_nothing_had_happened(store, referee, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        referee.race("sgd", "koala-m", executor=Inline(interrupt_at=4))
    kept = results(store, store.last_race())
    assert sum(len(entry.trials) for entry in kept.entries) == 4
    assert kept.missing == 6
    rest = Inline()
    race = referee.race("sgd", "koala-m", executor=rest)
    assert len(rest.calls) == 6
    with Store(tmp_path / "undisturbed.sqlite") as other:
        assert outcomes(store, race) == outcomes(other, Referee(other).race("sgd", "koala-m"))


def test_a_race_lost_by_one_is_a_result(store, referee):
    race = referee.race("sgd", "adamw", task="sprint:Cliff")
    assert referee.progress.done == referee.progress.total == 3 + 5
    found = results(store, race)
    assert [entry.name for entry in found.entries] == ["adamw", "sgd"]
    lost = found.entries[1]
    assert (lost.lost_trials, lost.chosen, lost.measure("loss"), lost.seeds) == (3, None, None, {})
    assert all(outcome.status == "diverged" for _, outcome in lost.trials.values())
    assert found.missing == 0


def test_what_an_optimizer_raises_is_recorded_and_tried_again(store, referee):
    race = referee.race("sprint:Tired", "sgd")
    tired = next(entry for entry in results(store, race).entries if entry.name == "sprint:Tired")
    assert {(outcome.status, outcome.reason) for _, outcome in tired.trials.values()} == {
        ("failed", "ArithmeticError: too tired")
    }
    again = Inline()
    referee.race("sprint:Tired", "sgd", executor=again)
    assert [run.optimizer for (run,) in again.calls] == ["sprint:Tired"] * 3


def test_what_cannot_run_at_all_says_so_before_the_race(referee):
    executor = Inline()
    with pytest.raises(RaceError, match="sprint:Stubborn cannot run on sprint:Sprint: TypeError: a closure is needed"):
        referee.race("sgd", "sprint:Stubborn", executor=executor)
    assert executor.calls == []
    with pytest.raises(RaceError, match="lbfgs cannot run"):
        referee.race("lbfgs")


def test_who_cannot_take_part_is_left_out_with_a_reason(store, referee):
    with pytest.raises(RaceError, match=r"nobody is left.*matrices"):
        referee.race("muon", task="bowl")


def test_a_worker_that_dies_ends_the_race_with_a_sentence(store, referee):
    referee.race("sgd")
    with local_pool(1) as pool, pytest.raises(RaceError, match=r"a worker process died.*the same command"):
        referee.race("sgd", task="sprint:Deadly", executor=pool)
    assert len(list(store.runs(referee.race("sgd").id))) == 5


def test_a_pool_trains_as_one_process_does(store, referee, tmp_path):
    with local_pool(2) as pool:
        pooled = referee.race("sgd", "koala-m", executor=pool)
    with Store(tmp_path / "other.sqlite") as other:
        assert outcomes(store, pooled) == outcomes(other, Referee(other).race("sgd", "koala-m"))


def test_the_key_tells_apart_what_differs():
    run = Run("sprint:Sprint", "sgd", {"lr": 0.1}, seed=1)
    others = [
        dataclasses.replace(run, settings={"lr": 0.2}),
        dataclasses.replace(run, settings={"lr": 0.1, "momentum": 0.9}),
        dataclasses.replace(run, seed=2),
        dataclasses.replace(run, test=True),
        dataclasses.replace(run, optimizer="adamw"),
        dataclasses.replace(run, task="sprint:Marathon"),
    ]
    keys = [run_key(one, "code") for one in (run, *others)] + [run_key(run, "other code")]
    assert len(set(keys)) == len(keys)
    assert run_key(Run("sprint:Sprint", "sgd", {"lr": 0.1}, seed=1), "code") == keys[0]


def test_the_fingerprint_follows_the_code_and_the_horizon(monkeypatch):
    task, other = get_task("sprint:Sprint"), get_task("sprint:Marathon")
    sgd, koala = get_contender("sgd"), get_contender("koala-v")
    weight = [torch.nn.Parameter(torch.zeros(2, 2))]
    momentum, filtering = torch.optim.SGD(weight, lr=0.1), koala.make(weight, {}, 10)
    marks = {
        fingerprint(task, momentum, sgd.make),
        fingerprint(other, momentum, sgd.make),
        fingerprint(task, filtering, koala.make),
        fingerprint(task, momentum, get_contender("adamw").make),
    }
    assert len(marks) == 4
    before = fingerprint(task, momentum, sgd.make)
    monkeypatch.setattr(torch, "__version__", "0.0.0")
    assert fingerprint(task, momentum, sgd.make) != before


def test_seeds_are_spread_and_stable():
    assert derive(0, "trial", 1) == derive(0, "trial", 1)
    drawn = {derive(race, stage, n) for race in range(3) for stage in ("trial", "seed") for n in range(100)}
    assert len(drawn) == 600
    assert all(0 <= seed < 2**63 for seed in drawn)


def test_records_of_a_newer_fallline_and_files_that_are_none(tmp_path):
    newer = tmp_path / "newer.sqlite"
    with Store(newer):
        pass
    with sqlite3.connect(newer) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(ValueError, match="newer fallline"):
        Store(newer)
    none = tmp_path / "none.sqlite"
    none.write_bytes(b"this is a text, and rather a long one at that" * 50)
    with pytest.raises(ValueError, match="not a database"):
        Store(none)


def test_an_outcome_comes_back_as_it_went_in(store):
    run = Run("sprint:Sprint", "sgd", {"lr": 0.1}, seed=2**63 - 1, test=True)
    outcome = Outcome("diverged", 3, "why", None, {}, {"step": [0.0, 1.0], "train loss": [None, 0.1]}, 3, 0.25, 8)
    store.add("key", run, outcome)
    assert store.find("key") == outcome
    assert store.find("another") is None
