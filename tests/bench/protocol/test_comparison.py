"""What is made of records: targets, alarms, best-of-K, costs, on runs written by hand."""

import itertools
import math

import pytest

from fallline.bench.common.spaces import Range, as_plain
from fallline.bench.protocol.analysis import analyse, first_hit, over_tasks
from fallline.bench.protocol.comparison import ContenderResult, compare
from fallline.bench.protocol.design import Design
from fallline.bench.protocol.search import Search
from fallline.bench.report.words import verdicts
from fallline.bench.runs.run import Outcome
from fallline.bench.tasks import get_task

TASK = {"summary": "by hand", "steps": 100, "held_out": True, "floor": None, "equivalence": None, "reference": None}


def outcome(score=None, loss=None, curve=(2.0, 1.0, 0.5), cpu=1.0, wall=1.0, status="finished"):
    """A run whose validation losses are given, measured every 10 gradient evaluations."""
    points = {
        "step": [10.0 * i for i in range(len(curve))],
        "gradient evaluations": [10.0 * i for i in range(len(curve))],
        "validation loss": list(curve),
    }
    result = {} if loss is None else {"loss": loss}
    last = curve[-1] if score is None and status == "finished" else score
    spent = {"gradient_evaluations": 100, "cpu_seconds": cpu, "wall_seconds": wall}
    return Outcome(status, 20, "", last, result, points, state_bytes=8, **spent)


def entry(name, losses, *, trials=(0.5, 0.6, 0.7), ours=False, lr=0.1, ranges=None, **how):
    """An optimizer with these final losses; None where a seed was lost."""
    about = {"label": name.upper(), "ours": ours, "ranges": ranges or {}, "extended": {}, "excuse": ""}
    made = ContenderResult(name, about, search=Search(count=3, top=3, repeats=3))
    for number, score in enumerate(trials):
        settings = {"lr": lr if number == 0 else lr * 1.5}
        lost = score is None
        made.trials[number] = settings, outcome(score, status="diverged" if lost else "finished")
    made.search.reruns = trials and {0: {i: outcome(trials[0]) for i in range(3)}}
    lost = outcome(status="diverged")
    made.seeds = {n: lost if loss is None else outcome(loss=loss, **how) for n, loss in enumerate(losses)}
    return made


def part(*entries, task="hand", track="tuned", about=TASK, **design):
    asked = Design((task,), tuple(e.name for e in entries), tracks=(track,), trials=3, seeds=8, **design)
    for one in entries:
        one.track = track
    return analyse(asked, compare(asked, task, track, about, entries))


SEEDS = [0.50, 0.51, 0.52, 0.49, 0.48, 0.50, 0.51, 0.49]


def test_the_band_is_a_hundredth_of_the_way_or_the_tasks_own():
    found = part(entry("sgd", SEEDS), entry("mine", [x - 0.1 for x in SEEDS], ours=True))
    assert found.initial == 2.0
    assert found.margin == pytest.approx(0.01 * (2.0 - 0.4))
    own = part(entry("sgd", SEEDS), about={**TASK, "equivalence": 0.3})
    assert own.margin == 0.3


def test_the_baseline_is_compared_with_and_the_best_comes_first():
    found = part(entry("sgd", SEEDS), entry("mine", [x - 0.1 for x in SEEDS], ours=True), entry("still", [2.0] * 8))
    assert [e.name for e in found.entries] == ["mine", "sgd", "still"]
    assert found.baseline.name == "sgd"
    assert found.baseline.verdict is None
    assert found.get("mine").verdict.word == "better"
    assert found.get("mine").verdict.difference.mean == pytest.approx(-0.1)
    assert found.get("still").verdict.word == "worse"
    assert set(found.matrix) == {(a, b) for a in ("mine", "sgd", "still") for b in ("mine", "sgd", "still") if a != b}


def test_who_loses_seeds_comes_last_and_is_never_better():
    found = part(entry("sgd", SEEDS), entry("mine", [0.1] * 7 + [None], ours=True))
    assert [e.name for e in found.entries] == ["sgd", "mine"]
    assert found.get("mine").verdict.word == "no evidence"
    assert [alarm.kind for alarm in found.get("mine").alarms] == ["lost"]


def test_a_target_is_reached_where_three_measurements_have_its_mean():
    run = outcome(curve=(2.0, 1.0, 0.9, 0.2, 0.1, 0.1))
    assert first_hit(run, "validation loss", 1.3) == 20
    assert first_hit(run, "validation loss", 0.71) == 30
    assert first_hit(run, "validation loss", 0.41) == 40
    assert first_hit(run, "validation loss", 0.05) == math.inf
    lost = outcome(curve=(2.0, 0.1, 0.1, 0.1), status="diverged")
    assert first_hit(lost, "validation loss", 1.0) == math.inf
    gap = outcome(curve=(2.0, 1.0, None, 0.1, 0.1, 0.1))
    assert first_hit(gap, "validation loss", 0.5) == 50


def test_targets_go_from_the_initial_loss_to_the_baselines_last_and_a_miss_is_censored():
    fast = (2.0, 0.5, 0.5, 0.5, 0.5)
    slow = (2.0, 2.0, 2.0, 1.4, 1.0)
    found = part(entry("sgd", SEEDS, curve=fast), entry("mine", [0.9] * 7 + [None], curve=slow, ours=True))
    assert found.targets == pytest.approx({0.5: 1.25, 0.8: 0.8, 0.95: 0.575, 1.0: 0.5})
    assert found.get("sgd").hits[0.5] == [20.0] * 8
    assert found.get("sgd").time_to(1.0) == 30.0
    assert found.get("mine").hits[0.5] == [math.inf] * 8
    assert found.get("mine").time_to(0.5) == math.inf


def test_a_task_whose_loss_only_grows_has_no_targets():
    found = part(entry("sgd", SEEDS, curve=(0.1, 0.4, 0.5)))
    assert found.targets == {}
    assert found.get("sgd").hits == {}
    assert found.margin == pytest.approx(0.01 * sum(SEEDS) / 8)


def test_a_lost_trial_counts_as_one_that_learned_nothing():
    found = part(entry("sgd", SEEDS, trials=(0.5, None, 9.0, 1.0)))
    best = found.get("sgd").best_of
    assert best.mean[0] == pytest.approx((0.5 + 2.0 + 2.0 + 1.0) / 4)  # the initial loss is 2
    assert best.mean[-1] == 0.5
    assert part(entry("sgd", [], trials=(None, None, None))).entries[0].best_of is None


def test_alarms_name_the_edge_the_slope_and_the_lonely_trial():
    ranges = {"lr": as_plain(Range(0.1, 10.0))}
    at_edge = part(entry("sgd", SEEDS, lr=0.1, ranges=ranges)).get("sgd")
    assert [alarm.kind for alarm in at_edge.alarms] == ["edge"]
    assert "low edge" in at_edge.alarms[0].text
    assert part(entry("sgd", SEEDS, lr=1.0, ranges=ranges)).get("sgd").alarms == []
    pulled = {"lr": 0.1, "weight_decay": 1e-6}
    ranges = {"lr": as_plain(Range(1e-3, 10.0)), "weight_decay": as_plain(Range(1e-6, 1e-2))}
    slack = entry("sgd", SEEDS, ranges=ranges)
    slack.trials[0] = pulled, slack.trials[0][1]
    assert part(slack).get("sgd").alarms == []  # less weight decay than next to none is none
    steep = part(entry("sgd", SEEDS, trials=(0.5, 1.0, 1.5, 2.0), lr=1.0)).get("sgd")
    assert [alarm.kind for alarm in steep.alarms] == ["flat"]
    lonely = part(entry("sgd", SEEDS, trials=(0.5, *[1.9] * 11), lr=1.0)).get("sgd")
    assert "narrow" in {alarm.kind for alarm in lonely.alarms}
    crowd = part(entry("sgd", SEEDS, trials=(0.5, *[0.5] * 11), lr=1.0)).get("sgd")
    assert crowd.alarms == []


def test_a_baseline_below_what_is_known_raises_an_alarm():
    known = {**TASK, "reference": (0.4, "a paper")}
    rival = entry("mine", [0.9] * 8, ours=True)
    found = part(entry("sgd", SEEDS), rival, about=known)
    assert [alarm.kind for alarm in found.get("sgd").alarms] == ["reference"]
    assert found.get("mine").alarms == []
    assert part(entry("sgd", [x - 0.2 for x in SEEDS]), about=known).get("sgd").alarms == []


def test_a_reference_is_of_the_tasks_own_horizon():
    bowl = get_task("bowl")
    assert bowl.describe()["reference"] is not None
    assert get_task("bowl@steps=50").describe()["reference"] is None
    assert get_task(f"bowl@steps={2 * bowl.steps}").describe()["reference"] == bowl.reference
    digits = get_task("digits")
    assert digits.resized(batch_size=2 * digits.batch_size).reference is None


def test_too_few_seeds_has_a_reason_for_each():
    lost = entry("lost", [None, *[0.6] * 3], ours=True)
    few = entry("few", [0.7, 0.6, 0.65, 0.61], ours=True)
    found = part(entry("sgd", SEEDS[:4]), few, lost)
    assert {found.get(name).verdict.word for name in ("lost", "few")} == {"too few seeds"}
    (told,) = [sentence for sentence in verdicts(found) if "too few seeds" in sentence]
    for name in ("lost", "few"):
        assert found.get(name).verdict.why in told
    assert found.get("lost").verdict.why != found.get("few").verdict.why
    alike = part(entry("sgd", SEEDS[:4]), few, entry("more", [0.7, 0.6, 0.66, 0.61], ours=True))
    (told,) = [sentence for sentence in verdicts(alike) if "too few seeds" in sentence]
    assert told.count(alike.get("few").verdict.why) == 1


def test_shipped_settings_have_a_baseline_of_their_own():
    mine = entry("mine", [x - 0.1 for x in SEEDS], trials=(), ours=True)
    found = part(entry("sgd", SEEDS, trials=()), mine, track="defaults")
    assert found.baseline.name == "sgd"
    assert all(e.chosen == {} and e.best_of is None for e in found.entries)


def test_wall_time_that_varies_is_not_to_be_trusted():
    assert part(entry("sgd", SEEDS)).steady
    unsteady = entry("sgd", SEEDS)
    for number, run in unsteady.seeds.items():
        run.wall_seconds = 1.0 + 0.2 * number
    assert not part(unsteady).steady


def test_time_is_a_multiple_of_sgds():
    found = part(entry("sgd", SEEDS, cpu=2.0), entry("mine", SEEDS, cpu=6.0, ours=True))
    assert found.get("mine").relative_cpu == pytest.approx(3.0)
    assert found.get("mine").seconds() == pytest.approx(0.06)
    assert found.get("mine").cpu_seconds == pytest.approx(3 + 3 + 8 * 6)  # trials and reruns took a second each


def test_over_tasks_everything_is_relative_to_the_baseline():
    fast, slow = (2.0, 0.5, 0.5, 0.5), (2.0, 2.0, 0.5, 0.5, 0.3)
    parts = [
        part(entry("sgd", SEEDS, curve=slow), entry("mine", [x / 2 for x in SEEDS], curve=fast, ours=True), task=task)
        for task in ("one", "two")
    ]
    across = over_tasks(parts)
    assert across.tasks == ["one", "two"]
    assert across.iqm["mine"].mean == pytest.approx(100 * (0.25 - 0.5) / (2.0 - 0.25), abs=0.5)
    assert across.iqm["sgd"].mean == pytest.approx(0.0, abs=0.5)
    assert across.improvement["mine"].mean == 1.0
    assert across.improvement["sgd"].mean == 0.5
    assert list(across.iqm) == ["mine", "sgd"]
    assert over_tasks(parts[:1]) is None
    profiles = {name: mean for name, (mean, _, _) in across.profiles.items()}
    assert all(0 <= share <= 1 for mean in profiles.values() for share in mean)
    assert all(a <= b for mean in profiles.values() for a, b in itertools.pairwise(mean))


def test_who_is_missing_on_a_task_is_left_out_of_what_is_said_across():
    parts = [
        part(entry("sgd", SEEDS), entry("muon", SEEDS), task="one"),
        part(entry("sgd", SEEDS), task="two"),
    ]
    assert set(over_tasks(parts).iqm) == {"sgd"}


def test_where_a_task_names_its_band_the_way_is_what_that_is_a_hundredth_of():
    """As on the bowl, which begins near its minimum: the little that it falls there is no scale."""
    own, worse = {**TASK, "equivalence": 0.15}, [x + 0.5 for x in SEEDS]
    parts = [part(entry("sgd", SEEDS), entry("mine", worse, ours=True), task=name, about=own) for name in ("a", "b")]
    assert [one.way for one in parts] == pytest.approx([15.0, 15.0])
    assert over_tasks(parts).iqm["mine"].mean == pytest.approx(100 * 0.5 / 15.0, rel=0.05)
