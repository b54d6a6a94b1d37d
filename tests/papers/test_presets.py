"""Experiments that train tasks: their runs, what they choose and show, how the command and the records treat them."""

import contextlib
import json
import math
import time
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from browser import Reader
from referee import Inline
from scripts import script
from terminal import call

from fallline.bench.common.spaces import Choice, Range
from fallline.bench.protocol.stats import interval
from fallline.bench.race.store import Store
from fallline.bench.runs.loop import train
from fallline.bench.runs.run import Outcome, Run
from fallline.papers import experiments as repro
from fallline.papers import repro as command
from fallline.papers.experiments import Case, Design, Entry, Experiment, listing, reproduce
from fallline.papers.experiments._experiment import deviations_at, measured, shortened

SGD = Entry(
    "SGD", "sgd@step-0.1-0.5", {"lr": 0.1, "momentum": 0.9}, {"lr": 10, "momentum": Range(0.05, 0.5, "one minus log")}
)
KOALA = Entry("KOALA-M", "koala-m", {"lr": 1.0, "qv": 0.01}, {"lr": 3})
FIXED = Entry("Adam", "adam@constant", {"lr": 0.001}, source="not published: torch's default")


class Tiny(Experiment):
    """Points in four dimensions."""

    name: ClassVar[str] = "test_presets:Tiny"
    summary: ClassVar[str] = "points in four dimensions, three optimizers"
    paper: ClassVar[str] = "Nobody, On Points, 2020"
    deviations: ClassVar[tuple[str, ...]] = ("CPU scale: it is short.", "Full scale: it is long.", "Points: real ones.")
    full: ClassVar[tuple[Case, ...]] = (
        Case("Points-10, long", "sprint:Sprint", (SGD, KOALA), published={"SGD": 93.5}, source="table 1"),
    )
    cpu: ClassVar[tuple[Case, ...]] = (
        Case(
            "Points-10, short",
            "sprint:Sprint@steps=24,evaluations=3",
            (SGD, KOALA, FIXED),
            published={"SGD": 93.5},
            source="table 1",
        ),
        Case("Points-100, short", "sprint:Sprint@steps=16,evaluations=2", (SGD, KOALA), "perplexity"),
    )
    trials: ClassVar[int] = 4
    seeds: ClassVar[int] = 2


class Explosive(Tiny):
    """All trials of one of its optimizers are lost."""

    name: ClassVar[str] = "test_presets:Explosive"
    cpu: ClassVar[tuple[Case, ...]] = (
        Case("Points", "sprint:Sprint@steps=8", (KOALA, Entry("SGD", "sgd@constant", {"lr": 1e30}, {"lr": 2}))),
    )


@pytest.fixture(scope="module")
def pools():
    """The pool is replaced by this process. Returns those that were opened."""
    opened = []

    @contextlib.contextmanager
    def here(jobs):
        opened.append(Inline())
        yield opened[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "local_pool", here)
        yield opened


@pytest.fixture(scope="module")
def tiny(pools, tmp_path_factory):
    """The folder of the CPU scale, its record, its page, and what the terminal said."""
    out = tmp_path_factory.mktemp("out")
    code, told = call("repro", Tiny.name, "--out", str(out))
    assert code == 0, told
    return out, *files(out), told


def files(out, stem="repro-test_presets.Tiny"):
    record = json.loads((out / f"{stem}.json").read_text(encoding="utf-8"))
    return record, (out / f"{stem}.html").read_text(encoding="utf-8")


def runs(record, **wanted):
    return [one for one in record["runs"] if all(one["run"][name] == value for name, value in wanted.items())]


# --- the plan ---


def test_trials_are_the_published_setting_and_others_around_it():
    tried = SGD.candidates(9, seed=3)
    assert tried[0] == SGD.settings
    assert len(tried) == 9
    rates = np.array([one["lr"] for one in tried[1:]])
    assert ((rates >= 0.01) & (rates <= 1)).all()
    assert ((np.log10(rates) < -1).sum(), (rates > 0.1).sum()) == (4, 4)  # even over the logarithm, about the published
    assert all(0.5 <= one["momentum"] <= 0.95 for one in tried[1:])
    assert KOALA.candidates(5, seed=0)[1]["qv"] == 0.01
    assert FIXED.candidates(5, seed=0) == [FIXED.settings]


def test_everyone_gets_the_same_trials_and_the_best_on_validation_goes_on_to_fresh_seeds(tiny):
    _, record, _, _ = tiny
    for case in Tiny.cpu:
        for entry in case.entries:
            mine = runs(record, task=case.task, optimizer=entry.optimizer)
            tried = [one for one in mine if not one["run"]["test"]]
            final = [one for one in mine if one["run"]["test"]]
            assert len(tried) == (4 if entry.search else 0)
            assert {one["run"]["seed"] for one in tried} <= {0}
            assert sorted(one["run"]["seed"] for one in final) == [1, 2]
            best = min(tried, key=lambda one: one["outcome"]["score"])["run"]["settings"] if tried else FIXED.settings
            assert all(one["run"]["settings"] == best for one in final)
            assert not any(one["outcome"]["result"] for one in tried)  # the test set was not looked at


def test_the_runs_are_those_of_the_training_loop(tiny):
    _, record, _, _ = tiny
    one = runs(record, test=True)[0]
    again = train(Run(**one["run"]))
    assert again.result == one["outcome"]["result"]
    assert again.curve == one["outcome"]["curve"]


def test_at_full_scale_the_published_setting_runs_alone(pools, tmp_path):
    code, told = call("repro", Tiny.name, "--scale", "full", "--seeds", "2", "--out", str(tmp_path))
    assert code == 0, told
    record, page = files(tmp_path, "repro-test_presets.Tiny-full")
    wanted = [(entry.optimizer, dict(entry.settings), seed, True) for entry in (SGD, KOALA) for seed in (1, 2)]
    asked = [tuple(one["run"][k] for k in ("optimizer", "settings", "seed", "test")) for one in record["runs"]]
    assert sorted(asked, key=str) == sorted(wanted, key=str)
    assert "It is long." in page
    assert "It is short." not in page
    assert record["command"] == "fallline repro test_presets:Tiny --scale full --seeds 2"


def test_quick_is_a_few_steps_of_the_published_setting(pools, tmp_path):
    code, told = call("repro", Tiny.name, "--quick", "--cases", "points-10", "--out", str(tmp_path))
    assert code == 0, told
    record, _ = files(tmp_path)
    assert {one["run"]["task"] for one in record["runs"]} == {"sprint:Sprint@steps=10,evaluations=2"}
    assert len(record["runs"]) == 3
    assert all(one["outcome"]["steps"] == 10 for one in record["runs"])
    assert shortened("a-b@epochs=5,batch=128,init=xavier") == "a-b@batch=128,init=xavier,steps=10,evaluations=2"


def test_an_optimizer_whose_trials_are_all_lost_is_told_of(pools, tmp_path):
    code, told = call("repro", Explosive.name, "--out", str(tmp_path))
    assert code == 0, told
    record, _ = files(tmp_path, "repro-test_presets.Explosive")
    lost = record["results"]["cases"][0]["entries"][1]
    assert (lost["lost trials"], lost["chosen"], lost["result"], lost["seeds"]) == (4, None, None, 0)
    assert "every trial lost" in told


def test_what_is_wrong_in_a_preset_is_told_when_it_is_written():
    with pytest.raises(ValueError, match="the factor 10 is about a positive weight_decay"):
        Entry("SGD", "sgd", {"weight_decay": 0.0}, {"weight_decay": 10})
    with pytest.raises(ValueError, match="one label"):
        Case("a", "digits", (SGD, SGD))
    with pytest.raises(ValueError, match="did you mean SGD"):
        Case("a", "digits", (SGD,), published={"SGDM": 1.0})
    with pytest.raises(ValueError, match="no measure 'perplexty'"):
        Case("a", "digits", (SGD,), "perplexty")
    with pytest.raises(ValueError, match="one name"):
        type("Twice", (Experiment,), {"full": (), "cpu": (Tiny.cpu[0], Tiny.cpu[0])})


def test_cases_that_are_tried_elsewhere_share_their_trials(pools):
    cases = [Case(n, f"sprint:Sprint@steps={n}", (SGD,), trial_task="sprint:Sprint@steps=9") for n in ("7", "8")]
    preset = type("Shared", (Tiny,), {"cpu": tuple(cases)})()
    design = Design("shared", seeds=1, scale="cpu")
    stages = preset.stages(design)
    tried = next(stages)
    assert [run.task for run in tried] == ["sprint:Sprint@steps=9"] * 4
    outcomes = [Outcome("finished", 9, score=float(n != 2)) for n in range(4)]
    final = stages.send(list(zip(tried, outcomes, strict=True)))
    assert [(run.task, run.settings) for run in final] == [(case.task, tried[2].settings) for case in cases]
    assert preset.estimate(design) == 60 * (4 + 2)


def test_the_numbers_beside_a_small_case_are_those_of_the_nearest_published_one():
    near, far = Tiny.full[0], Case("Points-100, long", "digits", (SGD,), published={"SGD": 80.0})
    preset = type("Two", (Tiny,), {"full": (far, near)})()
    assert preset.beside(Case("Points-10, tiny", "digits", (SGD,))) is near
    assert preset.beside(Case("Points-100, tiny", "digits", (SGD, KOALA))) is far
    assert preset.beside(Case("Points-10, tiny", "digits", (SGD,), "loss")) is None
    assert preset.beside(Case("Points-10, tiny", "digits", (FIXED,))) is None
    assert preset.beside(Case("Points-100, long", "digits", (KOALA,))) is None  # of full size: its own numbers or none


# --- the numbers ---


def test_measures_are_in_the_units_of_the_papers():
    outcome = Outcome("finished", 1, result={"loss": math.log(80), "accuracy": 0.75})
    values = {m: measured(Case("c", "digits", (SGD,), m), outcome) for m in ("accuracy", "error", "loss", "perplexity")}
    assert values == pytest.approx({"accuracy": 75, "error": 25, "loss": math.log(80), "perplexity": 80})
    with pytest.raises(ValueError, match="no accuracy"):
        measured(Case("c", "digits", (SGD,)), Outcome("finished", 1, result={"loss": 1.0}))


def test_the_page_and_the_terminal_show_ours_beside_the_published(tiny):
    _, record, page, told = tiny
    reader = Reader(page)
    for place, case in enumerate(Tiny.cpu):
        rows = {row[0]: row[1:] for row in reader.cells[f"case-{place}"][1:]}
        for entry in case.entries:
            final = runs(record, task=case.task, optimizer=entry.optimizer, test=True)
            found = interval([measured(case, Outcome(**one["outcome"])) for one in final])
            assert rows[entry.label][0].startswith(f"{found.mean:.2f} [" if place == 0 else f"{found.mean:#.4g} [")
            assert rows[entry.label][0].split(" (")[0] in told
            assert rows[entry.label][1] == ("93.5" if (place, entry.label) == (0, "SGD") else "–")
    assert "Points-10, short, test accuracy, at CPU scale: SGD" in told
    assert "As published (table 1): SGD 93.5 %." in told
    assert "Published: no numbers for these." in told
    for sentence in ("It is short.", "Points: real ones."):
        assert sentence in page
        assert sentence in told
    assert "It is long." not in told
    assert "promise nothing" in page
    shown = json.loads(reader.scripts[1])
    line = next(trace for trace in shown["validation-0"]["data"] if trace["name"] == "Adam")
    curves = [one["outcome"]["curve"]["validation loss"] for one in runs(record, optimizer=FIXED.optimizer)]
    assert line["y"] == pytest.approx(np.median(curves, axis=0), rel=1e-2)
    assert repro.get_experiment(Tiny.name).page(record).results  # made from the record alone


def test_deviations_are_of_their_scale():
    assert deviations_at(Tiny.deviations, "cpu") == ["It is short.", "Points: real ones."]
    assert deviations_at(Tiny.deviations, "full") == ["It is long.", "Points: real ones."]


# --- the command ---


def test_what_has_run_is_not_run_again_and_more_seeds_are_added(tiny, pools):
    out, _, _, _ = tiny
    code, told = call("repro", Tiny.name, "--seeds", "3", "--cases", "Points-100", "--out", str(out))
    assert code == 0, told
    assert len(pools[-1].calls) == 2  # the third seed of both
    record, _ = files(out)
    assert record["reused"] == 2 * (4 + 2)
    call("repro", Tiny.name, "--out", str(out))  # as the fixture had it
    assert pools[-1].calls == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (Tiny.name, "--cases", "points-1000"),
            "no case of test_presets:Tiny is called points-1000",
        ),
        ((Tiny.name, "--optimizers", "sdg"), "no contender 'sdg'; did you mean SGD?"),
        ((Tiny.name, "--scale", "huge"), "'huge' is not one of"),
        ((Tiny.name, "--device", "abacus"), "invalid value for --device"),
        (("lodo-bowl", "--trials", "3"), "lodo-bowl has no such choice"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(arguments, message, tmp_path):
    code, told = call("repro", *arguments, "--out", str(tmp_path))
    assert code == 2
    assert message.lower() in told.lower()
    assert not list(tmp_path.iterdir())


def test_data_that_are_not_there_are_told_of_before_anything_runs(pools, tmp_path, monkeypatch):
    def absent(name):
        raise listing.MissingData(f"{name} is not here; fallline data get {name}")

    monkeypatch.setattr(Tiny, "needs", lambda self, design=None: ("cifar-10",))
    monkeypatch.setattr(command, "find", absent)
    before = len(pools)
    code, told = call("repro", Tiny.name, "--out", str(tmp_path))
    assert code == 1
    assert "cifar-10 is not here; fallline data get cifar-10" in told
    assert (len(pools), list(tmp_path.iterdir())) == (before, [])


def test_data_that_go_missing_on_the_way_are_no_result_of_a_run(monkeypatch):
    def gone(self, run, checkpoint=None):
        raise listing.MissingData("cifar-10 is not here")

    monkeypatch.setattr(Tiny, "run", gone)
    run = Tiny().tunings(Design(Tiny.name))[0].candidates[0]
    with pytest.raises(reproduce.RaceError, match="cifar-10 is not here"):
        reproduce.attempt(Tiny.name, run)


def test_a_run_goes_on_from_its_checkpoint(tmp_path):
    run = Tiny().tunings(Design(Tiny.name, seeds=1, trials=1))[0].confirming({})[0]
    left = reproduce.Checkpoint(tmp_path / "left.pt", every=0.0)
    outcome = reproduce.attempt(Tiny.name, run, left)
    assert left.path.exists()
    again = reproduce.attempt(Tiny.name, run, left)
    assert (again.curve, again.result) == (outcome.curve, outcome.result)
    saved = outcome.times["cpu seconds"]
    assert again.times["cpu seconds"][: len(saved) - 1] == saved[:-1]  # taken over, not run again


def test_the_list_tells_of_data_times_and_records(tiny, monkeypatch):
    out, record, _, _ = tiny
    monkeypatch.setattr(listing, "EXPERIMENTS", {Tiny.name: "", "coolmomentum-imagenet": ""})
    one, other = listing.listed(out)
    assert one.data == "none"
    assert one.cpu.startswith("CPU scale ")
    assert "measured; full scale not measured" in one.cpu
    assert (out / "repro-test_presets.Tiny.json").as_posix() in one.ran
    assert record["started_at"][:10] in one.ran
    assert other.ran == "not run"
    before = next(iter(listing.listed(out / "elsewhere")))
    # Four searches and one without, a minute a run, on two cores.
    assert before.cpu == f"CPU scale {(4 * (4 + 2) + 2) / 2:.0f} min on 2 cores, estimated; full scale not measured"


# --- what is kept ---


@pytest.fixture
def keeper(monkeypatch, tmp_path):
    """benchmarks/records.py with this process for a pool and folders of its own, and its store."""
    records = script("benchmarks/records.py")
    monkeypatch.setattr(records, "local_pool", lambda jobs: contextlib.nullcontext(Inline()))
    monkeypatch.setattr(records, "RECORDS", tmp_path / "kept")
    monkeypatch.setattr(records, "WORK", tmp_path / "work")
    with Store(tmp_path / "work" / "fallline.sqlite") as store:
        yield records, store


def test_a_kept_record_has_the_tables_and_short_curves_of_confirmed_runs(tiny):
    _, record, page, _ = tiny
    kept = reproduce.slim(repro.get_experiment(Tiny.name), record)
    assert len(json.dumps(kept)) < 100_000
    assert kept["results"] == record["results"]
    assert all(bool(one["outcome"]["curve"]) == one["run"]["test"] for one in kept["runs"])
    shown = {row[0]: row[1:] for row in Reader(page).cells["case-1"][1:]}
    assert {row[0]: row[1:] for row in kept["tables"][1]["rows"]} == shown


def test_choices_may_be_searched_too():
    entry = Entry("SGD", "sgd", {"lr": 0.1, "nesterov": True}, {"nesterov": Choice((True, False))})
    assert {one["nesterov"] for one in entry.candidates(9, seed=0)} == {True, False}


def test_records_stop_when_their_time_is_over_and_go_on_in_another_call(keeper, tmp_path):
    records, store = keeper
    told = records.record(Tiny.name, store, deadline=time.monotonic(), jobs=1)
    assert told == "no time was left: 0 of 16 runs of the stages so far are done"
    assert not (tmp_path / "kept").exists()
    assert records.record(Tiny.name, store, deadline=math.inf, jobs=1) is None
    (path,) = (tmp_path / "kept").iterdir()
    assert path.name == "repro-test_presets.Tiny.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    page = script("docs/results.py").part(record)
    assert "### test_presets:Tiny, cpu scale" in page
    assert page.count("| SGD |") == 2
    assert "- It is short." in page


def test_the_overview_has_the_best_first_and_ours_in_bold():
    def entry(label, mean, ours=False):
        result = None if mean is None else {"mean": mean, "low": mean - 1, "high": mean + 1, "count": 3}
        return {"label": label, "ours": ours, "result": result}

    entries = [entry("SGD", 64.0), entry("KOALA-M", 60.0, ours=True), entry("Adam", None)]
    cases = [{"name": "A", "measure": measure, "unit": "%", "entries": entries} for measure in ("error", "accuracy")]
    found = script("docs/results.py").overview({"one": {"cpu": {"results": {"cases": cases}}}, "none": {}})
    assert found.splitlines()[2:] == [
        "| one | A | error, % | **KOALA-M** 60.00, SGD 64.00, Adam lost |",
        "| one | A | accuracy, % | SGD 64.00, **KOALA-M** 60.00, Adam lost |",
    ]


def test_the_page_of_results_is_what_its_script_makes_and_names_every_experiment():
    results = script("docs/results.py")
    page = (Path(results.__file__).parent / "results.md").read_text(encoding="utf-8")
    found = results.kept()
    assert (results.results(found) or "There are no records yet.") in page
    assert results.unrun(found) in page
    assert results.overview(found) in page
    for name, records in found.items():
        assert f"### {name}, " in page if records else f"| {name} |" in page
