"""benchmarks/beyond.py races, stops and goes on; docs/beyond.py makes of its records what the page shows."""

import contextlib
import itertools
import json
import math
import statistics
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from referee import Inline
from scripts import script

from fallline.bench.contenders import get_contender
from fallline.bench.race.store import Store
from fallline.bench.tasks import get_task

ROOT = Path(__file__).parents[2]
TASKS = ("sprint:Sprint@steps=12", "sprint:Cliff@steps=12", "sprint:Marathon")
ENTRANTS = (("adamw", "ours"), ("sgd", "baseline"), ("sgd#2", "control"))


@pytest.fixture(scope="module")
def page():
    """docs/beyond.py."""
    return script("docs/beyond.py")


@pytest.fixture(scope="module")
def beyond(tmp_path_factory):
    """benchmarks/beyond.py on tasks of a moment, with folders of its own."""
    folder = tmp_path_factory.mktemp("beyond")
    module = script("benchmarks/beyond.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "RECORDS", folder / "kept")
        patch.setattr(module, "WORK", folder / "work")
        patch.setattr(module, "TASKS", TASKS)
        patch.setattr(module, "ENTRANTS", tuple(module.Entrant(*one) for one in ENTRANTS))
        patch.setattr(module, "PARTS", (module.Parts("adamw", direction="sgd", filter="sgd#2"),))
        yield module


@pytest.fixture(scope="module")
def raced(beyond):
    """The first two tasks, raced in two calls, the first of which was over after 24 looks at the clock."""
    designs = [beyond.design_of(task, trials=2, seeds=2) for task in beyond.TASKS[:2]]
    calls = []
    for clock in (itertools.count().__next__, lambda: 0):
        pool = Inline()
        with pytest.MonkeyPatch.context() as patch, Store(beyond.WORK / "fallline.sqlite") as store:
            patch.setattr(beyond, "time", SimpleNamespace(monotonic=clock))
            missing = beyond.all_of(designs, store, pool, 24, jobs=2)
        kept = sorted(path.name for path in beyond.RECORDS.glob("*")) if beyond.RECORDS.exists() else []
        calls.append((missing, pool.calls, kept))
    return calls


def test_the_reference_and_all_parts_race_and_every_optimizer_is_known():
    declared = script("benchmarks/beyond.py")
    names = [entrant.name for entrant in declared.ENTRANTS]
    assert len(set(names)) == len(names)
    assert all(get_contender(name) for name in names)
    parts = [name for one in declared.PARTS for name in (one.both, one.direction, one.filter)]
    assert {declared.REFERENCE, *parts} <= set(names)
    assert all(get_task(name) for name in declared.TASKS)


def test_a_stop_leaves_what_has_run_and_the_next_call_runs_the_rest_alone(beyond, raced):
    (missing, first, kept), (rest, second, all_kept) = raced
    assert missing == {
        TASKS[0]: "no time was left: 24 of 36 runs are done",
        TASKS[1]: "its turn has not come",
    }
    assert (len(first), kept) == (24, [])
    ran = [args[0] for args in first + second]
    assert len({(run.task, run.optimizer, json.dumps(run.settings), run.seed, run.test) for run in ran}) == len(ran)
    assert rest == {}
    assert all_kept == ["beyond-sprint.Cliff.steps.12.json", "beyond-sprint.Sprint.steps.12.json"]


def test_a_record_is_what_the_database_says_and_small(beyond, raced):
    record = json.loads((beyond.RECORDS / "beyond-sprint.Sprint.steps.12.json").read_text(encoding="utf-8"))
    assert record["command"] == (
        "fallline race sprint:Sprint@steps=12 --optimizers 'adamw,sgd,sgd#2' --tracks tuned,defaults"
        " --trials 2 --seeds 2 --seed 0 --out runs/beyond"
    )
    assert record["runs"] == 3 * (2 + 2 * 3 + 2 + 2)
    for name, track in itertools.product((name for name, _ in ENTRANTS), ("tuned", "defaults")):
        stage = "seed" if track == "tuned" else "default"
        with Store(beyond.WORK / "fallline.sqlite") as store:
            runs = [
                (run, outcome)
                for place, run, outcome in store.runs(record["race"])
                if (place.optimizer, place.stage) == (name, stage)
            ]
        one = next(one for one in record["tracks"][track]["entries"] if one["name"] == name)
        assert one["losses"] == pytest.approx([outcome.result["loss"] for _, outcome in runs], rel=1e-5)
        assert one["loss"][0] == pytest.approx(statistics.fmean(one["losses"]), rel=1e-5)
        assert one["state bytes"] == runs[0][1].state_bytes
        assert one.get("settings", {}) == runs[0][0].settings
    tuned = record["tracks"]["tuned"]
    assert tuned["baseline"] == "sgd"  # whoever is better
    assert [one["verdict"] is None for one in tuned["entries"]] == [
        one["name"] == tuned["baseline"] for one in tuned["entries"]
    ]
    mine = next(one for one in record["tracks"]["defaults"]["entries"] if one["name"] == "sgd")["losses"]
    theirs = next(one for one in tuned["entries"] if one["name"] == "adamw")["losses"]
    above = 100 * (statistics.fmean(mine) / statistics.fmean(theirs) - 1)
    assert record["shipped"]["sgd"][0] == pytest.approx(above, rel=1e-4)
    (parts,) = record["parts"]
    assert parts["against"].keys() == {"direction", "filter"}
    assert all(path.stat().st_size < 60_000 for path in beyond.RECORDS.iterdir())


def test_a_call_that_runs_nothing_leaves_the_record_as_it_was(beyond, raced):
    path = beyond.RECORDS / "beyond-sprint.Sprint.steps.12.json"
    before = path.read_text(encoding="utf-8")
    pool = Inline()
    with Store(beyond.WORK / "fallline.sqlite") as store:
        design = beyond.design_of(TASKS[0], trials=2, seeds=2)
        assert beyond.record(design, store, pool, -math.inf, jobs=9) is None  # another machine, and no time
    assert pool.calls == []
    assert path.read_text(encoding="utf-8") == before


def test_when_time_is_over_what_runs_is_waited_for_and_what_queues_is_not(beyond):
    begun, go_on = threading.Event(), threading.Event()

    def run():
        begun.set()
        assert go_on.wait(10)
        return "done"

    with ThreadPoolExecutor(1) as pool:
        until = beyond.Until(pool, math.inf)
        running, queued = until.submit(run), until.submit(run)
        assert begun.wait(10)
        until.deadline = -math.inf
        threading.Timer(0.05, go_on.set).start()
        with pytest.raises(beyond.OutOfTime):
            until.submit(run)
        assert running.done()
        assert running.result() == "done"
        assert queued.cancelled()


def test_the_page_s_tables_are_of_everyone_and_tell_what_has_not_been_run(beyond, raced, page):
    found = page.kept(beyond.RECORDS)
    assert [record["task"] for record in found] == [*TASKS[:2]]
    told = page.places(found)
    assert told["not run"] == "Not raced yet, or not to the end: `sprint:Marathon`."
    assert told["overview"].splitlines()[0] == "|  | **AdamW** | SGD | SGD no. 2 |"
    assert all(told["tasks"].count(f"| {label} |") == 2 for label in ("**AdamW**", "SGD", "SGD no. 2"))
    cliff = rows(told["overview"])[f"`{TASKS[1]}`"]
    assert cliff[1] == "lost"  # every trial of SGD; and its twin, a control, is nobody's baseline
    assert "●" not in "".join(cliff)
    assert page.places([])["overview"] == page.NOTHING


def test_a_task_that_cannot_be_raced_on_is_told_and_the_next_has_its_turn(beyond, raced):
    designs = [beyond.design_of(task, trials=2, seeds=2) for task in ("nowhere", TASKS[0])]
    with Store(beyond.WORK / "fallline.sqlite") as store:
        missing = beyond.all_of(designs, store, Inline(), math.inf, jobs=1)
    assert missing.keys() == {"nowhere"}
    assert "there is no task 'nowhere'" in missing["nowhere"]


# --- on a record of two made up ---


def made_up(task="a", mine=0.9, word="better", shipped=0.5):
    """A record of three on one task."""

    def entry(name, loss, verdict):
        losses = [loss] * 4
        told = {"name": name, "loss": [loss, loss - 0.1, loss + 0.1], "losses": losses, "accuracy": None}
        told |= {"verdict": verdict, "state bytes": 8, "cpu by sgd": 1.0, "alarms": []}
        return told | {"settings": {"lr": 0.1}, "scores": [3.0, 1.0], "lost trials": 0, "best of": [2.0, loss]}

    def verdict(word, difference):
        return {"word": word, "difference": [difference, difference, difference], "p": 0.002, "why": ""}

    entries = [entry("mine", mine, verdict(word, mine - 1)), entry("base", 1.0, None)]
    entries.append(entry("part", 1.25, verdict("worse", 0.25)))
    track = {"baseline": "base", "band": 0.01, "initial": 3.0, "left out": {"gone": "it has no matrices"}}
    roles = {"mine": "ours", "base": "baseline", "gone": "baseline", "part": "control"}
    return {
        "task": task,
        "tasks": ["b", "a"],
        "started": "2026-01-01",
        "summary": "A task",
        "loss": "test loss",
        "command": "fallline race a",
        "environment": dict.fromkeys(("fallline", "torch", "processor", "workers"), "x"),
        "runs": 1,
        "cpu seconds": 1,
        "design": {"trials": 2, "finalists": 3, "reruns": 3, "seeds": 4, "seed": 0},
        "entrants": [{"name": name, "label": name.upper(), "role": role} for name, role in roles.items()],
        "reference": "base",
        "tracks": {"tuned": track | {"entries": entries}, "defaults": track | {"entries": entries}},
        "shipped": {"mine": [shipped, -0.1, 1.1], "base": [2.0, 1.0, 3.0], "part": None},
        "parts": [
            {
                "both": "mine",
                "direction": "base",
                "filter": "part",
                "against": {"direction": verdict(word, mine - 1), "filter": verdict("better", mine - 1.25)},
            }
        ],
    }


def rows(table):
    """The cells of a table's rows, by the first."""
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]
    return {cells[0]: cells[1:] for cells in lines}


def test_the_overview_marks_and_counts_each_verdict(page):
    told = rows(page.overview([made_up("b"), made_up("a", mine=1.0, word="practically equal")]))
    assert told["`b`"] == ["0.9000 ▲", "1.000 ●", "–", "1.250 ▼"]
    assert told["`a`"] == ["1.000 =", "1.000 ●", "–", "1.250 ▼"]
    assert told["better / tie / worse / open"] == ["1 / 1 / 0 / 0", "0 / 0 / 0 / 0", "0 / 0 / 0 / 0", "0 / 0 / 2 / 0"]
    means = [cell.split()[0] for cell in told["loss by the best baseline's"]]
    assert means == ["0.950", "1.000", "–", "1.250"]


def test_at_a_glance_are_ours_untuned_then_everyone_tuned_without_the_controls(page):
    record = made_up()
    record["tracks"]["defaults"] = {"entries": [{"name": "mine", "loss": [2.0, 1.0, 3.0]}]}
    told = [line.strip("| ").split(" | ") for line in page.at_a_glance([record]).splitlines()[2:]]
    assert told == [
        ["**MINE**, untuned", "2.000"],
        ["**MINE**", "0.9000&nbsp;▲"],
        ["BASE", "1.000&nbsp;●"],
        ["GONE", "–"],
    ]


def test_shipped_settings_are_near_within_one_per_cent_of_the_tuned_reference(page):
    told = rows(page.shipped([made_up("b"), made_up("a", shipped=1.5)]))
    assert told["`b`"] == ["**+0.5 [−0.1, +1.1] ✓**", "+2.0 [+1.0, +3.0]", "–", "lost"]
    assert told["`a`"][0] == "**+1.5 [−0.1, +1.1]**"
    assert told["within 1 %"] == ["1 of 2", "0 of 2", "0 of 0", "0 of 2"]
    assert told["farthest"] == ["+1.5", "+2.0", "–", "–"]


def test_the_whole_stands_beside_its_parts(page):
    told = rows(page.parts([made_up()]))
    assert told["`a`"] == ["0.9000", "1.000", "−10.0 [−10.0, −10.0] ▲", "1.250", "−28.0 [−28.0, −28.0] ▲"]
    assert page.parts([made_up()]).splitlines()[-1].endswith("|  |  | 1 / 0 / 0 / 0 |  | 1 / 0 / 0 / 0 |")


def test_the_trials_needed_are_the_fewest_that_are_expected_to_reach_the_reference(page):
    expected, needed = page.tuning([made_up()]).split("\n\n")[1::2]
    assert rows(expected)["**MINE**"] == ["+100"]  # of one trial; neither 5 nor more were made
    assert [rows(needed)[name] for name in ("**MINE**", "BASE", "GONE", "PART")] == [["2"], ["2"], ["–"], ["> 2"]]


def test_page_and_readme_are_what_the_script_makes_of_the_records(page):
    text = (ROOT / "docs" / "beyond.md").read_text(encoding="utf-8")
    for place, told in page.places(page.kept()).items():
        assert f"<!-- {place} -->\n\n{told}\n\n<!-- end -->" in text
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"<!-- results -->\n\n{page.at_a_glance(page.kept())}\n\n<!-- end -->" in readme


@contextlib.contextmanager
def arguments(*given):
    """A command line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["beyond.py", *given])
        yield


def test_the_command_estimates_in_its_pool_and_races_nothing(beyond, capsys, monkeypatch):
    monkeypatch.setattr(beyond, "local_pool", lambda jobs: contextlib.nullcontext(Inline()))
    monkeypatch.setattr(beyond, "measure", lambda task, name, spaces: SimpleNamespace(run=2.0, wall_per_cpu=1.0))
    with arguments("--estimate", "--only", "sprint:Marathon", "--jobs", "1"):
        beyond.main()
    told = capsys.readouterr().out
    # Three make 50 trials, 9 reruns and two times 10 seeds, each of two seconds and a fifth.
    assert "All: 9:29 min." in told
