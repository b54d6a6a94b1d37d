"""Who runs what, what is kept, and what is never run twice."""

import dataclasses

import pytest
import torch
from referee import Inline, Referee

from fallline.bench.common.seeds import derive
from fallline.bench.contenders import get_contender
from fallline.bench.protocol.comparison import baseline
from fallline.bench.protocol.design import Design
from fallline.bench.protocol.records import Place
from fallline.bench.race.coordinator import RaceError, line_up, plan_run
from fallline.bench.race.results import results
from fallline.bench.race.store import Store
from fallline.bench.race.workers import local_pool
from fallline.bench.runs.identity import fingerprint, run_key
from fallline.bench.runs.run import Outcome, Run
from fallline.bench.tasks import get_task


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
    assert sum(not run.test for run, *_ in more.calls) == 2  # one more trial each, the rest is there
    assert bigger.id != race.id


def test_an_interrupted_race_goes_on_as_if_nothing_had_happened(store, referee, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        referee.race("sgd", "koala-m", executor=Inline(interrupt_at=4))
    kept = results(store, store.last_race())
    assert sum(len(entry.trials) for entry in kept.parts[0].entries) == 4
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
    assert [entry.name for entry in found.parts[0].entries] == ["adamw", "sgd"]
    lost = found.parts[0].entries[1]
    assert (lost.failed_trials, lost.chosen, lost.measure("loss"), lost.seeds) == (3, None, None, {})
    assert all(outcome.status == "diverged" for _, outcome in lost.trials.values())
    assert found.missing == 0


def test_what_an_optimizer_raises_is_recorded_and_tried_again(store, referee):
    race = referee.race("sprint:Tired", "sgd")
    tired = results(store, race).part("sprint:Sprint").get("sprint:Tired")
    assert {(outcome.status, outcome.reason) for _, outcome in tired.trials.values()} == {
        ("failed", "ArithmeticError: too tired")
    }
    again = Inline()
    referee.race("sprint:Tired", "sgd", executor=again)
    assert [run.optimizer for run, *_ in again.calls] == ["sprint:Tired"] * 3


def test_what_cannot_run_at_all_says_so_before_the_race(referee):
    executor = Inline()
    with pytest.raises(RaceError, match="sprint:Stubborn cannot run on sprint:Sprint: TypeError: a closure is needed"):
        referee.race("sgd", "sprint:Stubborn", executor=executor)
    assert executor.calls == []


def test_who_cannot_take_part_is_left_out_with_a_reason(store, referee):
    with pytest.raises(RaceError, match=r"no optimizer can race on .*matrices"):
        referee.race("muon", task="bowl")


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


def test_an_outcome_comes_back_as_it_went_in(store):
    run = Run("sprint:Sprint", "sgd", {"lr": 0.1}, seed=2**63 - 1, test=True)
    outcome = Outcome("diverged", 3, "why", None, {}, {"step": [0.0, 1.0], "train loss": [None, 0.1]}, {}, 3, 0.25)
    store.add("key", run, outcome)
    assert store.find("key") == outcome
    assert store.find("another") is None


# --- the stages ---


def test_the_best_three_are_rerun_and_the_best_of_their_means_is_confirmed(store, referee):
    race = referee.race("sgd", "adamw", trials=6, finalists=3, reruns=3, seeds=2)
    assert referee.progress.done == referee.progress.total == 2 * (6 + 9 + 2)
    seeds = {}
    for name in ("sgd", "adamw"):
        mine = [(entry, run, outcome) for entry, run, outcome in store.runs(race.id) if entry.optimizer == name]
        trials = sorted((o.score, e.number) for e, _, o in mine if e.stage == "trial")
        means = {}
        for entry, run, outcome in mine:
            if entry.stage == "choice":
                means.setdefault(entry.number, []).append(outcome.score)
                assert not run.test
                seeds.setdefault(name, set()).add((entry.repeat, run.seed))
        assert set(means) == {number for _, number in trials[:3]}
        best = min(means, key=lambda number: sum(means[number]))
        settings = {e.number: run.settings for e, run, _ in mine if e.stage == "trial"}[best]
        assert all(run.settings == settings for e, run, _ in mine if e.stage == "seed")
        assert results(store, race).parts[0].get(name).chosen == settings
    assert seeds["sgd"] == seeds["adamw"]  # the reruns are paired as well


def test_the_baseline_is_chosen_on_validation_and_is_never_ours():
    def scored(score):
        return Outcome("diverged" if score is None else "finished", steps=1, score=score)

    runs = [
        ("koala-m", True, [scored(0.1)]),
        ("sgd", False, [scored(0.3), scored(0.3)]),
        ("adamw", False, [scored(0.2), scored(None)]),
        ("muon", False, []),
    ]
    assert baseline(None, runs) == "sgd"  # AdamW lost a run
    assert baseline("koala-m", runs) == "koala-m"
    assert baseline(None, runs[:1]) is None
    mine = ("my_module:Mine", False, [scored(0.1), scored(0.1)])
    assert baseline(None, [*runs, mine]) == "sgd"  # it is what is asked about
    assert baseline(None, [runs[0], mine]) == "my_module:Mine"  # there is nobody else
    assert baseline(None, [*runs, ("torch.optim:RAdam", *mine[1:])]) == "torch.optim:RAdam"


def test_shipped_settings_race_on_the_confirming_seeds(store, referee):
    race = referee.race("sgd", "koala-m", tracks=("defaults", "tuned"), seeds=2)
    runs = list(store.runs(race.id))
    assert all(run.settings == {} and run.test for entry, run, _ in runs if entry.stage == "default")
    seeds = {stage: {run.seed for e, run, _ in runs if e.stage == stage} for stage in ("default", "seed")}
    assert seeds["default"] == seeds["seed"]
    found = results(store, race)
    assert [(part.task, part.track) for part in found.parts] == [("sprint:Sprint", t) for t in ("tuned", "defaults")]
    assert found.part("sprint:Sprint", "defaults").get("sgd").chosen == {}
    assert found.missing == 0


def test_who_ships_no_settings_races_tuned_alone(store, referee):
    race = referee.race("sgd", "sprint:Demanding", tracks=("defaults", "tuned"))
    found = results(store, race)
    assert "sprint:Demanding" in found.part("sprint:Sprint", "defaults").left_out
    assert found.part("sprint:Sprint").get("sprint:Demanding").finished
    assert found.missing == 0


def test_one_race_on_several_tasks(store, referee):
    race = referee.race("sgd", "adamw", tasks=("sprint:Sprint", "sprint:Marathon"))
    found = results(store, race)
    assert [part.task for part in found.parts] == ["sprint:Sprint", "sprint:Marathon"]
    assert referee.progress.total == 2 * 2 * 5
    (across,) = found.across
    assert set(across.iqm) == {"sgd", "adamw"}
    baselines = {part.baseline.name for part in found.parts}
    if len(baselines) == 1:
        assert across.iqm[baselines.pop()].mean == pytest.approx(0, abs=20)
    assert store.last_race("sprint:Marathon").id == race.id
    assert store.last_race("digits") is None


def test_a_closure_is_called_and_its_gradient_evaluations_are_paid_for(store, referee):
    race = referee.race("lbfgs", "sgd")
    for entry, _, outcome in store.runs(race.id):
        assert outcome.status == "finished"
        assert len(outcome.curve["step"]) == 5
        if entry.optimizer == "sgd":
            assert outcome.steps == outcome.gradient_evaluations == 40
        else:
            assert outcome.steps < outcome.gradient_evaluations
            assert 40 <= outcome.gradient_evaluations < 40 + 25  # the last step may go over the horizon


def test_undecided_rivals_get_more_seeds_and_nobody_else(store, referee):
    race = referee.race("sgd", "sgd#2", "sprint:Still", seeds=4, until_decided=True, baseline="sgd")
    seeds = {entry.name: len(entry.seeds) for entry in results(store, race).parts[0].entries}
    assert seeds["sgd"] == max(seeds.values())
    assert set(seeds.values()) <= {4, 8, 16}
    words = {entry.name: entry.verdict.word for entry in results(store, race).parts[0].entries if entry.verdict}
    for name, word in words.items():
        assert (seeds[name] == 16) or word not in ("no evidence", "too few seeds")
    assert words["sprint:Still"] == "worse"
    again = Inline()
    referee.race("sgd", "sgd#2", "sprint:Still", seeds=4, until_decided=True, baseline="sgd", executor=again)
    assert again.calls == []


def test_the_last_trials_go_beyond_an_edge_where_the_best_lies_at_one(store, referee):
    spaces = {"sgd": {"lr": [1e-6, 1e-5], "momentum": 0.0, "weight_decay": 0.0}}  # far too small: the top is best
    race = referee.race("sgd", trials=16, spaces=spaces, extend=True)
    entry = results(store, race).parts[0].entries[0]
    tried = {number: settings["lr"] for number, (settings, _) in entry.trials.items()}
    assert all(1e-6 <= tried[n] <= 1e-5 for n in range(12))
    if entry.about["extended"]:
        assert all(1e-5 <= tried[n] <= 1e-4 for n in range(12, 16))
    assert max(tried[n] for n in range(12)) >= 0.95e-5 or not entry.about["extended"]
    assert len(tried) == 16  # they are of the same budget


def test_a_rivals_space_is_part_of_the_race(store, referee):
    plain = referee.race("sgd")
    other = referee.race("sgd", spaces={"sgd": {"lr": [1e-3, 1e-2]}})
    assert plain.id != other.id
    tried = [run.settings["lr"] for entry, run, _ in store.runs(other.id) if entry.stage == "trial"]
    assert all(1e-3 <= lr <= 1e-2 for lr in tried)


def test_a_twin_searches_by_itself(store, referee):
    race = referee.race("sgd", "sgd#2")
    tried = {name: set() for name in ("sgd", "sgd#2")}
    for entry, run, _ in store.runs(race.id):
        if entry.stage == "trial":
            tried[entry.optimizer].add(run.settings["lr"])
    assert not tried["sgd"] & tried["sgd#2"]


def test_loggers_hear_of_what_ran_and_of_nothing_else(store, referee):
    referee.race("sgd")
    assert len(referee.heard) == 5
    referee.race("sgd")
    assert len(referee.heard) == 5


def test_a_variant_is_itself_with_shipped_settings_and_with_tuned_ones():
    both = Design(tasks=("digits",), optimizers=("koala-gradient",), tracks=("tuned", "defaults"), trials=2)
    progress, entrants = line_up(both)
    shipped, tuned = Place("digits", "koala-gradient", "default", 0), Place("digits", "koala-gradient", "trial", 1)
    for place in (shipped, tuned):
        run = plan_run(both, place, entrants["digits", "koala-gradient"], progress.result(place))
        assert run.settings["metric"] == "identity"
        assert (len(run.settings) > 1) == (place is tuned)
