"""The step benchmark: whom it measures, in which order, and what it makes of the numbers. No test takes a time."""

import dataclasses
import json
import random
import re
import subprocess
import sys
from math import inf, prod
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from scripts import script
from torch import nn
from typer.testing import CliRunner

import fallline
import speed
from speed import METHODS, Method, Words
from speed import fresh as fresh_module
from speed import timing as timing_module
from speed.alone import temporaries
from speed.command import app
from speed.counts import Counts, count
from speed.fresh import Fresh, ask, fresh
from speed.ground import Stepper, lay
from speed.methods import all_methods, chosen
from speed.record import as_record, write
from speed.results import Part, Times, ratios, times
from speed.run import Plan, Seen, batches, least, measure, row
from speed.shapes import SETS, elements, get_set
from speed.tables import tables, words
from speed.timing import COPY, Runner, Turn, order, turns

BY_NAME = {method.name: method for method in METHODS}
EAGER = [method for method in METHODS if method.mode == "eager" and not method.apart]
CPU = torch.device("cpu")


def call(*arguments, application=app):
    result = CliRunner().invoke(application, list(arguments), env={"COLUMNS": "80", "NO_COLOR": "1"})
    return result.exit_code, result.output


def flat(output):
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", output).split())


QUICK = ("--set", "tiny", "--rounds", "3", "--steps", "1")


# --- parameter sets ---


def counted(modules):
    return sorted(tuple(p.shape) for module in modules for p in module.parameters())


def test_resnet18_has_the_shapes_of_its_layers():
    with torch.device("meta"):
        layers = [nn.Conv2d(3, 64, 3, bias=False), nn.BatchNorm2d(64), nn.Linear(512, 10)]
        for before, after in ((64, 64), (64, 128), (128, 256), (256, 512)):
            layers += [nn.Conv2d(before, after, 3, bias=False), *(nn.BatchNorm2d(after) for _ in range(4))]
            layers += [nn.Conv2d(after, after, 3, bias=False) for _ in range(3)]
            layers += [nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after)] if before != after else []
    assert sorted(get_set("resnet18")) == counted(layers)
    assert (len(get_set("resnet18")), elements(get_set("resnet18"))) == (62, 11_173_962)


def test_gpt2_has_the_shapes_of_torch_s_transformer():
    with torch.device("meta"):
        block = nn.TransformerEncoderLayer(768, 12, 4 * 768)
        whole = [nn.Embedding(50_257, 768), nn.Embedding(1_024, 768), *[block] * 12, nn.LayerNorm(768)]
    assert sorted(get_set("gpt2")) == counted(whole)
    assert (len(get_set("gpt2")), elements(get_set("gpt2"))) == (148, 124_439_808)


def test_the_two_extremes_are_what_they_are_called():
    assert (len(get_set("many")), elements(get_set("many"))) == (1_000, 10_000_000)
    assert (len(get_set("one")), elements(get_set("one"))) == (1, 50_000_000)
    assert "tiny" not in SETS
    with pytest.raises(ValueError, match="no parameter set 'resnet'; did you mean resnet18"):
        get_set("resnet")


# --- methods ---


def test_the_words_are_those_of_the_issue():
    expected = {
        "sgd-fused": 5,
        "sgd-foreach": 5,
        "adamw-fused": 7,
        "adamw-foreach": 7,
        "coolmomentum": 5,
        "coolmomentum-skip": 6,
        "koala-v": 4,
        "koala-v-decay": 5,
        "koala-m": 8,
        "koala-m-decay": 9,
        "koala-m-fixed": 6,
        "koala-pp": 10,
        "koala-metric": 14,
        "arturo": 20,
        "arturo-newton-fused": 36,
    }
    for name, total in expected.items():
        for form in [name] if name in BY_NAME else [f"{name}-fused", f"{name}-eager"]:
            assert BY_NAME[form].words.total == total, form
    assert {method.name for method in METHODS if method.words is None} == {
        "lodo-fused",
        "lodo-eager",
        "koala-orthogonal-fused",
        "koala-orthogonal-eager",
    }
    assert Words(weights=3, state=4).bytes(weight=2, state=4) == 22


def test_every_target_lies_above_its_floor_or_is_one_for_each_word():
    for method in METHODS:
        if method.mode == "fused" and method.target:
            assert method.target >= method.words.total / BY_NAME[method.against].words.total
        if method.mode == "eager" and method.target:
            assert (method.against, method.target) == ("adamw-foreach", method.words.total / 7)
    fused = {method.name: (method.against, method.target) for method in METHODS if method.mode == "fused"}
    assert fused["coolmomentum-fused"] == ("sgd-fused", 1.05)
    assert fused["arturo-fused"] == ("adamw-fused", 3.3)
    assert fused["arturo-newton-fused"] == ("adamw-fused", 5.9)
    assert BY_NAME["arturo-eager"].target is None


@pytest.mark.parametrize("method", EAGER, ids=lambda method: method.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_method_has_the_state_that_it_says_and_keeps_weights_finite_and_gradients_as_they_are(method, dtype):
    ground = lay(((1_000,),), dtype, "cpu")
    gradient = ground.params[0].grad.clone()
    stepper = Stepper(method, ground)
    for _ in range(300):
        stepper.step()
    assert sum(held.numel() for held in stepper.state()) == pytest.approx(method.state * 1_000, abs=2)
    assert stepper.state_bytes() == 4
    assert ground.params[0].isfinite().all()
    assert all(held.isfinite().all() for held in stepper.state())
    assert torch.equal(ground.params[0].grad, gradient)


def test_torch_s_own_state_has_the_parameters_dtype():
    ground = lay(((1_000,),), torch.bfloat16, "cpu")
    for name, state in (("sgd-fused", 1), ("adamw-foreach", 2)):
        stepper = Stepper(BY_NAME[name], ground)
        stepper.step()
        assert stepper.state_bytes() == 2
        assert BY_NAME[name].state == state
        assert sum(held.numel() for held in stepper.state()) // 1_000 == state


def test_the_ground_is_the_same_each_time_and_has_no_zeros():
    one, two = (lay(get_set("tiny"), torch.float32, "cpu", seed=3) for _ in range(2))
    for p, q in zip(one.params, two.params, strict=True):
        assert torch.equal(p, q)
        assert torch.equal(p.grad, q.grad)
        assert (p != 0).all()
    assert one.elements == elements(get_set("tiny")) == sum(map(prod, get_set("tiny")))


def test_only_takes_names_beginnings_and_modes_and_adds_whom_they_are_timed_beside():
    methods = all_methods()

    def names(*only, on="many"):
        return [method.name for method in chosen(methods, only, on)]

    assert names("koala-v-fused") == ["sgd-fused", "koala-v-fused"]
    assert names("koala-v") == [
        "sgd-fused",
        "adamw-foreach",
        "koala-v-fused",
        "koala-v-eager",
        "koala-v-decay-fused",
        "koala-v-decay-eager",
    ]
    assert {methods[name].mode for name in names("fused")} == {"fused"}
    assert names() == names("eager", "fused", "foreach")
    assert not any("lodo" in name for name in names("eager", on="resnet18"))
    assert "lodo-eager" in names("lodo", on="resnet18")
    with pytest.raises(ValueError, match="nothing to measure on many"):
        names("lodo")
    with pytest.raises(ValueError, match="no method 'koala-w'; did you mean"):
        names("koala-w")


# --- turns ---

PAIRS = [(COPY, None), ("a", None), ("b", "a"), ("c", "a"), ("d", "b")]


def test_a_round_has_everybody_once_and_partners_directly_beside_each_other():
    orders = [list(order(PAIRS, seed=0, round_=i)) for i in range(50)]
    for told in orders:
        assert sorted(name for name, beside in told if beside is None) == sorted(name for name, _ in PAIRS)
        for name, against in PAIRS:
            if against is not None:
                assert abs(told.index((name, None)) - told.index((against, name))) == 1
    first = [told[0] for told in orders]
    assert len(set(first)) == 8  # each of five, and each of three for a partner
    assert orders == [list(order(PAIRS, seed=0, round_=i)) for i in range(50)]
    assert orders != [list(order(PAIRS, seed=1, round_=i)) for i in range(50)]


class Ticking:
    """Clocks that go on with the steps taken: 2 seconds of wall time for each, 1 of CPU time."""

    def __init__(self):
        self.steps = 0

    def step(self):
        self.steps += 1

    def perf_counter(self):
        return 2.0 * self.steps

    def process_time(self):
        return 1.0 * self.steps


def test_a_turn_counts_its_steps_alone_and_not_those_that_warm_it_up(monkeypatch):
    clocks = Ticking()
    monkeypatch.setattr(timing_module, "time", clocks)
    runner = Runner(clocks.step, CPU, threads=1, steps=7)
    before = clocks.steps
    assert runner.time(7) == (2.0, 1.0)
    assert clocks.steps - before == 9


def test_as_many_steps_as_a_turn_has_time_for_and_slow_ones_more_seldom(monkeypatch):
    clocks = Ticking()
    monkeypatch.setattr(timing_module, "time", clocks)
    assert Runner(clocks.step, CPU, 1, None).steps == 1  # of 2 seconds each
    assert Runner(clocks.step, CPU, 1, None).every == 6.0 / timing_module.LONG
    monkeypatch.setattr(timing_module, "TURN", 60.0)
    assert Runner(clocks.step, CPU, 1, None).steps == 30
    monkeypatch.setattr(timing_module, "TURN", 1e9)
    assert Runner(clocks.step, CPU, 1, None).steps == timing_module.MOST
    monkeypatch.setattr(timing_module, "LONG", inf)
    assert Runner(clocks.step, CPU, 1, None).every == 1


def test_every_round_has_all_but_the_slow_ones_which_are_in_some(monkeypatch):
    clocks = Ticking()
    monkeypatch.setattr(timing_module, "time", clocks)
    runners = {name: Runner(clocks.step, CPU, 1, 1) for name in (COPY, "a", "b", "c", "d")}
    for name, runner in runners.items():
        runner.every = {"c": 2, "d": 50}.get(name, 1)
    heard = list(turns(runners, PAIRS, 10, 0, lambda _: None))
    own = [turn.method for turn in heard if turn.beside is None]
    assert {name: own.count(name) for name in runners} == {COPY: 10, "a": 10, "b": 10, "c": 5, "d": 3}
    assert [turn.round for turn in heard if turn.beside == "c"] == [turn.round for turn in heard if turn.method == "c"]
    few = [turn.method for turn in turns(runners, PAIRS, 3, 0, lambda _: None) if turn.beside is None]
    assert (few.count("d"), few.count("a")) == (3, 3)


def made(seconds, name, beside=None):
    """Turns with these seconds of wall time, half of them CPU time."""
    return [Turn(name, beside, i, 1, wall, wall / 2) for i, wall in enumerate(seconds)]


def test_a_ratio_is_of_neighbours_so_a_machine_that_slows_down_does_not_matter():
    load = np.array([1.0, 3.0, 2.0, 10.0, 1.5])
    share = np.array([1.1, 1.3, 1.2, 1.1, 1.2])
    method = Method("m", "M", list, "eager", None, 0, against="r")
    heard = made(load * share, "m") + made(load, "r", "m") + made(load / 100, "r") + made(load, "r", "another")
    random.Random(0).shuffle(heard)
    found = ratios(method, heard)
    for clock in ("wall", "cpu"):
        assert found[clock].median == pytest.approx(1.2)
        assert (found[clock].low, found[clock].high) == pytest.approx((1.1, 1.2))
        assert found[clock].of_minima == pytest.approx(1.1 / 0.01)
    assert times(made([3.0, 1.0, 2.0], "m"))["wall"] == Times(minimum=1.0, median=2.0)
    assert ratios(method, made(load, "m")) == {}


def test_floor_bandwidth_and_share_follow_from_bytes():
    plan = Plan("tiny", dtype="bfloat16")
    of_two, of_four = Seen(1.0, 2.0, None), Seen(1.0, 4.0, None)
    sgd, cool = BY_NAME["sgd-fused"], BY_NAME["coolmomentum-fused"]
    moved = {"sgd-fused": least(sgd, of_two, 1_000, 2), "coolmomentum-fused": least(cool, of_four, 1_000, 2)}
    assert moved == {"sgd-fused": 10_000, "coolmomentum-fused": 14_000}
    heard = made([1e-3], "coolmomentum-fused") + made([1e-3], "sgd-fused", "coolmomentum-fused")
    found = row(plan, cool, heard, of_four, moved, copied=7e7, told_apart=None)
    assert found.floor == pytest.approx(1.4)
    assert found.bandwidth == pytest.approx(14_000 / 0.5e-3)  # by CPU time
    assert found.share == pytest.approx(0.4)
    assert (found.target, found.met) == (None, None)  # targets are for float32
    judged = row(Plan("tiny"), cool, heard, of_four, moved, copied=7e7, told_apart=None)
    assert (judged.target, judged.met) == (1.05, True)
    assert row(Plan("tiny", device="cuda"), cool, heard, of_four, moved, 7e7, None).clock == "wall"
    assert Plan("tiny", threads=2).clock == "wall"


def test_what_does_not_fit_into_memory_at_once_is_measured_in_batches_each_with_its_references():
    fitting = batches(METHODS, 1_000, 4, inf)
    assert fitting == [METHODS]
    gigabytes = batches(METHODS[:-2], 124_439_808, 4, 10e9)
    assert len(gigabytes) > 2
    assert {method.name for batch in gigabytes for method in batch} == {method.name for method in METHODS[:-2]}
    for batch in gigabytes:
        names = {method.name for method in batch}
        assert {method.against for method in batch} - {None} <= names
    alone = batches(METHODS, 1_000, 4, 0.0)  # nobody fits: one after another all the same
    assert all(sum(method.against is not None for method in batch) <= 1 for batch in alone)


# --- counts ---


def test_host_reads_are_seen_and_torch_s_own_are_not():
    x, scalar, whole = torch.ones(4), torch.tensor(2.0), torch.tensor([1, 0])

    def reads(step):
        return count(step, CPU).host_reads

    assert reads(lambda: x.add_(1)) == 0
    assert reads(lambda: x.sum().item()) == 1
    assert reads(lambda: bool(x.sum() > 0) and float(scalar)) == 2
    assert reads(lambda: torch.equal(x, x + 1)) == 1
    assert reads(lambda: whole.nonzero()) == 1
    assert reads(lambda: x[whole.repeat(2) > 0]) == 1  # its size is that of nonzero
    assert reads(lambda: torch._foreach_mul_([x, x], scalar)) == 0
    assert reads(torch.optim.AdamW([nn.Parameter(x)], fused=True).step) == 0


def test_operations_are_those_that_compute():
    x, y = torch.ones(2, 3), torch.ones(3, 2)

    def operations(step):
        return count(step, CPU).launches

    assert operations(lambda: x.view(6).t()) == 0
    assert operations(lambda: torch.empty_like(x)) == 0
    assert operations(lambda: x.add_(y.t())) == 1
    assert operations(lambda: torch._foreach_add_([x, x, x], 1.0)) == 3
    assert operations(lambda: torch.zeros_like(x)) == 1


# --- new processes ---

GREEDY = """
import os
from pathlib import Path
import torch
from speed import Method, Words

class Greedy(torch.optim.SGD):
    # Leaves something in a cache; takes 48 MB for a while, and 24 more where something is there already.
    there = None

    def step(self, closure=None):
        if self.there is None:
            cache = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR", "."), "cache")
            self.there = cache.exists()
            if "TORCHINDUCTOR_CACHE_DIR" in os.environ:
                cache.parent.mkdir(parents=True, exist_ok=True)
                cache.write_text("here")
        large = torch.ones((18 if self.there else 12) * 1_000_000)
        small = [torch.ones(100) for _ in range(100)]
        return super().step(closure)

class Broken(torch.optim.SGD):
    def step(self, closure=None):
        raise ArithmeticError("it cannot\\ngo on")

METHODS = [
    Method("greedy", "Greedy", lambda params: Greedy(params, lr=0.0), "plain", Words(3, 0), 0, against="sgd-fused"),
    Method("broken", "Broken", lambda params: Broken(params, lr=0.0), "plain", None, 0),
]
"""


@pytest.fixture
def greedy(tmp_path):
    """A file with methods of somebody's own."""
    path = tmp_path / "greedy.py"
    path.write_text(GREEDY)
    return path


TASK = {"set": "tiny", "dtype": "float32", "device": "cpu", "threads": 1}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system tells no peak of memory")
def test_new_processes_tell_temporaries_and_the_second_has_the_caches_that_the_first_left(greedy, monkeypatch):
    told = fresh(all_methods([greedy])["greedy"], TASK, [greedy])
    assert told.failure is None
    assert told.cold > 0
    assert told.warm > 0
    assert told.temporaries == pytest.approx(72e6, abs=2e6)  # of the second: later steps, beyond what stays


def test_without_first_steps_one_process_uses_the_caches_as_they_are(monkeypatch):
    asked = []
    monkeypatch.setattr(fresh_module, "ask", lambda task, caches: asked.append(caches) or {"temporaries": 7})
    assert fresh(BY_NAME["sgd-fused"], TASK, [], first=False) == Fresh(temporaries=7)
    assert asked == [{}]


def test_where_nothing_was_cached_one_process_tells_all(monkeypatch):
    asked = []
    told = {"seconds": 1.5, "temporaries": 7}
    monkeypatch.setattr(fresh_module, "ask", lambda task, caches: asked.append(task["method"]) or told)
    assert fresh(BY_NAME["sgd-fused"], TASK, []) == Fresh(cold=1.5, warm=None, temporaries=7)
    assert asked == ["sgd-fused"]


def test_a_second_process_that_fails_leaves_what_the_first_told(monkeypatch):
    def ask(task, caches):
        if (note := Path(caches["TRITON_CACHE_DIR"])).exists():
            raise RuntimeError("it ran out of luck")
        note.write_text("")
        return {"seconds": 1.5, "temporaries": 7}

    monkeypatch.setattr(fresh_module, "ask", ask)
    assert fresh(BY_NAME["sgd-fused"], TASK, []) == Fresh(cold=1.5, failure="it ran out of luck")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo Traceback >&2; echo 'ValueError: no such luck' >&2; exit 1", "^ValueError: no such luck$"),
        ("exit 9", "^exit code 9$"),
        ("exec sleep 60", "^no first step within 0 seconds$"),
    ],
)
def test_a_process_that_fails_is_told_by_its_last_line(script, message, tmp_path, monkeypatch):
    stand_in = tmp_path / "python"
    stand_in.write_text(f"#!/bin/sh\n{script}\n")
    stand_in.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    monkeypatch.setattr(fresh_module, "PATIENCE", 0.2 if "sleep" in script else None)
    with pytest.raises(RuntimeError, match=message):
        ask({**TASK, "method": "sgd-fused", "files": []}, {})


def test_where_the_system_tells_no_peak_there_is_none(monkeypatch, tmp_path):
    monkeypatch.setattr("speed.alone.CLEAR", tmp_path / "nowhere" / "clear_refs")
    ground = lay(get_set("tiny"), torch.float32, "cpu")
    assert temporaries(Stepper(BY_NAME["sgd-fused"], ground), ground) is None


HERE = str(Path(speed.__file__).parents[1])
ELSEWHERE = f"""
import sys
sys.path[:0] = {[HERE, str(Path(fallline.__file__).parents[1])]!r}
sys.modules.update(dict.fromkeys(("plotly", "jinja2", "sklearn", "matplotlib", "pyarrow", "distributed")))
import torch, fallline
before = set(sys.modules)
import speed.alone
brought = {{name.partition(".")[0] for name in set(sys.modules) - before}} - set(sys.stdlib_module_names)
assert brought == {{"fallline", "speed"}}, brought
import runpy
sys.argv[1:] = {[*QUICK, "--only", "sgd-fused"]!r}
runpy.run_path({HERE + "/speed"!r}, run_name="__main__")
"""


def test_it_runs_where_nothing_draws_and_first_steps_are_timed_where_nothing_is_imported_that_they_may_need():
    done = subprocess.run([sys.executable, "-c", ELSEWHERE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "SGD, fused" in done.stdout


# --- the command ---

SELECTED = ("--only", "sgd,adamw", "--only", "coolmomentum-eager,koala-pp-eager,arturo-eager")


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What a run prints and writes."""
    path = tmp_path_factory.mktemp("speed") / "records" / "tiny.json"
    code, output = call(*QUICK, *SELECTED, "--dtype", "float32", "--dtype", "bfloat16", "--out", str(path))
    assert code == 0, output
    return output, json.loads(path.read_text())


def test_the_tables_are_complete_and_fit_into_120_columns(told):
    output, _ = told
    for title in (
        "SGD, fused",
        "SGD, foreach",
        "AdamW, fused",
        "AdamW, foreach",
        "CoolMomentum, eager",
        "KOALAPlusPlus, eager",
        "ArTuRO, eager",
    ):
        assert output.count(title) >= 4  # two tables of two dtypes
    for heading in (
        "× reference",
        "[middle half]",
        "floor ",
        "target ",
        "of copy's",
        "cold, s",
        "temporaries",
        "warm, s",
    ):
        assert output.count(heading) == 2
    assert max(map(len, output.splitlines())) <= 120
    assert "tiny: 355 parameters in 6 tensors, bfloat16; cpu, one thread" in flat(output)
    assert "targets are met" in output
    assert "Raw numbers: " in output


def test_the_record_has_all_numbers_and_the_rounds(told):
    _, record = told
    assert (record["kind"], record["schema"]) == ("fallline bench step", 1)
    assert {"fallline", "torch", "Python", "processor", "threads"} <= record["machine"].keys()
    assert [(part["set"], part["dtype"]) for part in record["parts"]] == [("tiny", "float32"), ("tiny", "bfloat16")]
    for part in record["parts"]:
        assert (part["tensors"], part["elements"], part["threads"], part["rounds"]) == (6, 355, 1, 3)
        names = [one["name"] for one in part["rows"]]
        assert names == [
            "sgd-fused",
            "adamw-fused",
            "sgd-foreach",
            "adamw-foreach",
            "coolmomentum-eager",
            "koala-pp-eager",
            "arturo-eager",
        ]
        log = part["turns"]
        assert len({len(column) for column in log.values()}) == 1
        own = [name for name, beside in zip(log["method"], log["beside"], strict=True) if beside is None]
        assert {name: own.count(name) for name in own} == dict.fromkeys([COPY, *names], 3)
        assert all(seconds > 0 for seconds in log["wall"] + log["cpu"])
        for one in part["rows"]:
            assert one["words"]["weights"] + one["words"]["state"] == BY_NAME[one["name"]].words.total
            assert set(one["times"]) == {"wall", "cpu"}
            assert one["times"]["wall"]["minimum"] <= one["times"]["wall"]["median"]
            assert set(one["ratios"]) == ({"wall", "cpu"} if one["against"] else set())
            assert one["bytes"] / one["times"]["cpu"]["median"] == pytest.approx(one["bandwidth"])
            assert one["temporaries"] is None
            assert one["share"] == pytest.approx(one["bandwidth"] / part["copy_bandwidth"])
            assert one["counts"]["launches"] > 0
            assert one["fresh"] is None
        by_name = {one["name"]: one for one in part["rows"]}
        assert by_name["adamw-foreach"]["counts"]["host_reads"] == 2 * 6  # its bias corrections, on the CPU
        assert by_name["coolmomentum-eager"]["counts"]["host_reads"] == 0
    cool, in_half = (part["rows"][4] for part in record["parts"])
    assert (cool["floor"], cool["target"]) == pytest.approx((5 / 7, 5 / 7))
    assert (in_half["floor"], in_half["target"], in_half["met"]) == (pytest.approx(14 / 14), None, None)


def test_the_ratio_of_a_record_is_that_of_its_turns(told):
    _, record = told
    part = record["parts"][0]
    log = [Turn(*one) for one in zip(*part["turns"].values(), strict=True)]
    for one in part["rows"]:
        if one["against"]:
            own = {turn.round: turn.cpu for turn in log if turn.method == one["name"]}
            other = {turn.round: turn.cpu for turn in log if turn.beside == one["name"]}
            assert one["ratios"]["cpu"]["median"] == pytest.approx(
                np.median([own[i] / other[i] for i in range(3)]), rel=1e-3
            )  # the log has four digits


def test_a_file_brings_methods_and_one_that_fails_is_left_out(greedy):
    code, output = call(*QUICK, "--with", str(greedy), "--only", "plain,koala-v-eager")
    assert code == 0
    assert "beside SGD, fused" in output
    assert "Greedy, plain" in output
    assert "broken was left out: ArithmeticError: it cannot go on." in flat(output)
    code, output = call(*QUICK, "--with", str(greedy), "--only", "broken")
    assert code == 1
    assert "Error: nobody could take a step: broken: ArithmeticError" in flat(output)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "resnet"), "no parameter set 'resnet'; did you mean resnet18?"),
        (("--dtype", "float8"), "'float8' is not one of"),
        (("--device", "abacus"), "'abacus' is not one of"),
        (("--device", "cuda"), "finds no CUDA device on this machine"),
        (("--only", "koala-w"), "no method 'koala-w'; did you mean"),
        (("--set", "one", "--only", "lodo"), "nothing to measure on one: lodo is measured elsewhere"),
        (("--threads", "0"), "Invalid value for '--threads'"),
        (("--rounds", "2"), "Invalid value for '--rounds'"),
        (("--out", "."), ". is a folder; name a file in it"),
        (("--out", "file.txt/record.json"), "Invalid value for --out"),
        (("--with", "nowhere.py"), "nowhere.py is no Python file"),
        (("--with", "empty.py"), "empty.py has no list METHODS"),
        (("--with", "wrong.py"), "wrong.py cannot be imported: NameError"),
        (("--with", "twice.py"), "two methods of the name 'sgd-fused'"),
        (("--with", "lonely.py"), "'mine' is timed beside 'nobody', which is none of the others"),
    ],
)
def test_mistakes_are_answered_in_a_sentence_before_anything_is_measured(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("speed.command.measure", None)
    start = "from speed import METHODS, Method\nimport torch\n"
    Path("file.txt").write_text("")
    Path("empty.py").write_text("METHODS = []")
    Path("wrong.py").write_text("METHODS = mine")
    Path("twice.py").write_text(f"{start}METHODS = METHODS[:1]")
    Path("lonely.py").write_text(f"{start}METHODS = [Method('mine', 'M', torch.optim.SGD, 'plain', None, 0, 'nobody')]")
    code, output = call(*arguments)
    assert code == 2
    assert message.replace(" ", "") in flat(output).replace(" ", "")
    assert "Traceback" not in output


def test_checking_a_record_s_place_leaves_no_file_and_spoils_none(tmp_path):
    old = tmp_path / "old.json"
    old.write_text("{}")
    for path in (old, tmp_path / "new.json"):
        assert call("--out", str(path), "--only", "nobody-of-this-name")[0] == 2
    assert old.read_text() == "{}"
    assert sorted(tmp_path.iterdir()) == [old]


# --- tables ---


def synthetic(device="cpu", slow=1.0):
    """A part with all methods, and times that follow their words."""
    methods = [*METHODS, Method("plain", "PlainMomentumKOALA, as the authors have it", list, "plain", Words(9, 9), 2)]
    plan = Plan("gpt2", device=device)
    heard = made([1.0], COPY)
    for method in methods:
        seconds = slow * (method.words.total if method.words else 1_000.0)
        heard += made([seconds], method.name)
        if method.against:
            heard += made([slow * BY_NAME[method.against].words.total], method.against, method.name)
    seen = Seen(385.0, 4.0, Counts(123_456, 1_234))
    told = Fresh(cold=123.4, warm=0.0123, temporaries=12_345_678_901)
    moved = {method.name: least(method, seen, 124_439_808, 4) for method in methods}
    rows = tuple(row(plan, method, heard, seen, moved, 1e9, told) for method in methods)
    copy = times(made([1.0], COPY))
    facts = ("gpt2", "float32", device, 1, 148, 124_439_808, 154_389_504)
    return Part(*facts, plan.clock, 11, 0, rows, copy, 1e9, tuple(heard))


@pytest.mark.parametrize("slow", [1e-6, 1e-2])
def test_no_line_of_a_table_is_broken_or_wider_than_120_columns(slow):
    part = synthetic(slow=slow)
    console = Console(width=120, no_color=True)
    for table in tables(part):
        with console.capture() as capture:
            console.print(table)
        lines = capture.get().splitlines()
        assert max(map(len, lines)) <= 120
        sections = ["by themselves", "beside SGD, fused", "beside AdamW, fused", "beside AdamW, foreach"]
        found = [line.strip() for line in lines if line.strip() in sections]
        assert found == (sections if "floor" in lines[1] else [])
        assert len(lines) == 2 + len(found) + len(part.rows)
        assert "…" not in "".join(line for line in lines if "Plain" not in line)


def test_the_sentences_tell_targets_met_and_missed():
    at_the_floor = synthetic()
    assert "18 of 18 targets are met." in words(at_the_floor)
    rows = []
    for one in at_the_floor.rows:
        worse = {clock: dataclasses.replace(ratio, median=9.0) for clock, ratio in one.ratios.items()}
        rows.append(dataclasses.replace(one, ratios=worse) if one.method.name == "koala-m-fused" else one)
    said = " ".join(words(dataclasses.replace(at_the_floor, rows=tuple(rows), left_out={"x": "it broke"})))
    assert "Missed: MomentumKOALA, fused 9.00 (1.50)." in said
    assert "x was left out: it broke." in said
    below = [
        dataclasses.replace(one, target=0.5) if one.method.name == "koala-m-fused" else one for one in at_the_floor.rows
    ]
    said = " ".join(words(dataclasses.replace(at_the_floor, rows=tuple(below))))
    assert "MomentumKOALA, fused 1.14 (0.50, below its floor of 1.14)" in said


def test_on_a_gpu_launches_are_counted_and_no_target_of_the_cpu_is_told():
    part = synthetic(device="cuda")
    console = Console(width=120, no_color=True)
    with console.capture() as capture:
        console.print(tables(part)[1])
    assert "launched" in capture.get()
    assert all(one.target is None for one in part.rows)
    said = " ".join(words(part))
    assert "targets" not in said
    assert "moves 1.0 GB a second" in said
    assert "0 of 11 fused methods reach 80 % of that" in said
    with console.capture() as capture:
        console.print(tables(part)[0])
    assert capture.get().split("\n")[0].split()[:6] == ["wall", "ms", "wall", "ms", "CPU", "ms"]


def test_a_record_is_plain_json_and_written_whole(tmp_path):
    part = synthetic()
    assert json.loads(json.dumps(as_record([part], {"processor": "x"})))["machine"] == {"processor": "x"}
    path = write(tmp_path / "new" / "record.json", [part], {})
    assert json.loads(path.read_text())["parts"][0]["rows"][0]["fresh"]["temporaries"] == 12_345_678_901
    assert [file.name for file in path.parent.iterdir()] == ["record.json"]


def test_the_threads_of_torch_are_as_they_were_before():
    before = torch.get_num_threads()
    measure(Plan("tiny", threads=before + 1, rounds=3, steps=1, first=False, memory=False), [BY_NAME["sgd-fused"]])
    assert torch.get_num_threads() == before


# --- benchmarks/: what the records become, and what a GPU is asked ---

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def chart():
    """benchmarks/chart.py."""
    return script("benchmarks/chart.py")


@pytest.fixture
def gpu():
    """benchmarks/gpu.py."""
    return script("benchmarks/gpu.py")


def test_the_page_says_what_the_records_say(chart):
    page = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    for place, text in chart.texts(BENCHMARKS / "records").items():
        assert f"<!-- {place} -->\n\n{text}\n\n<!-- end -->" in page, place


def test_a_record_stays_small():
    for path in (BENCHMARKS / "records").iterdir():
        assert path.stat().st_size < 300_000, path


def test_every_word_of_the_page_is_a_tensor_that_a_pass_reads_or_writes(chart):
    counted = {one.name: one.words.total for one in METHODS if one.mode == "fused" and one.words}
    assert {name: len(re.findall(r"[^\W\d_]+[₀₁]*", passes)) for name, passes in chart.PASSES.items()} == counted
    for name, passes in chart.PASSES.items():
        of_weights = sum(word in "pg" for word in re.findall(r"[^\W\d_]+[₀₁]*", passes))
        assert of_weights == BY_NAME[name].words.weights
    assert chart.passes_table().count("\n") == 1 + len(counted)


def as_read(chart, tmp_path, *parts):
    """Parts as the chart reads them from a record."""
    about = {"processor": "a slide rule", "torch": "2", "load at the start": "0"}
    write(tmp_path / "cpu.json", parts, about)
    return chart.read(tmp_path, "cpu*.json")


def test_all_forms_of_a_method_are_told_in_the_time_of_the_one_that_its_fused_form_is_timed_beside(chart, tmp_path):
    parts = as_read(chart, tmp_path, dataclasses.replace(synthetic(), set="resnet18"))
    part = parts[chart.MAIN]
    assert chart.relative(part, "koala-m") == pytest.approx({"fused": 8 / 7, "eager": 8 / 7})
    assert chart.relative(part, "coolmomentum-skip") == pytest.approx({"fused": 6 / 5, "eager": 6 / 5})
    line = next(line for line in chart.time_table(part).splitlines() if line.startswith("| MomentumKOALA |"))
    assert line == "| MomentumKOALA | AdamW | 1.14 | 1.14 [1.14, 1.14] | 1.50 ✓ | 1.14 | – | 4000 | 100% |"
    assert "Fused, 9 of 9 targets are met. Eager, 9 of 9 targets are met." in chart.judged(part)
    assert "MomentumKOALA 1.14, KOALAPlusPlus 1.43" in chart.paragraph(part)
    assert "at most 123 seconds" in chart.paragraph(part)


def test_the_chart_has_a_mark_for_each_form_the_floor_and_the_target(chart, tmp_path):
    parts = as_read(chart, tmp_path, dataclasses.replace(synthetic(), set="resnet18"))
    drawn = chart.figure(parts[chart.MAIN])
    points = [trace for trace in drawn["data"] if trace["x"] != [None] and trace["mode"] != "lines"]
    # Seven methods with fused form, floor and target; an eager form of all but one.
    assert len(points) == 7 * 3 + 6
    of_pp = sorted(trace["x"][0] for trace in points if round(trace["y"][0] - 0.1) == 4)
    assert of_pp == pytest.approx([10 / 7, 10 / 7, 10 / 7, 1.8])
    assert len(drawn["layout"]["yaxis"]["ticktext"]) == 7


def test_without_a_gpu_the_page_says_so_and_gpu_py_too(chart, gpu, tmp_path, monkeypatch):
    assert "Not measured" in chart.gpu_text(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, output = call(application=gpu.app)
    assert code == 1
    assert flat(output).endswith("finds no CUDA device on this machine, and this is for one.")


def test_gpu_py_checks_measures_and_writes_what_the_page_then_tells(chart, gpu, tmp_path, monkeypatch):
    few = [one for one in gpu.methods() if one.name.startswith(("sgd", "adamw", "koala-m-fixed"))]
    assert [one.name for one in few if one.mode == "captured"] == [
        "sgd-captured",
        "adamw-captured",
        "koala-m-fixed-captured",
    ]
    monkeypatch.setattr(gpu, "methods", lambda: few)
    monkeypatch.setattr(gpu, "BOUNDS", {"float32": 1e-4})
    out = tmp_path / "gpu-abacus.json"
    quick = ("--device", "cpu", "--set", "tiny", "--rounds", "3", "--only", "koala-v", "--out", str(out))
    code, output = call(*quick, application=gpu.app)
    assert code == 0, output
    assert "5 of 5 checks passed" in flat(output)
    record = json.loads(out.read_text())
    assert [(part["set"], part["dtype"]) for part in record["parts"]] == [("tiny", "float32"), ("tiny", "bfloat16")]
    assert {row["name"]: row["against"] for row in record["parts"][0]["rows"]}[
        "koala-m-fixed-captured"
    ] == "adamw-captured"
    assert [one["check"] for one in record["checks"]] == list(gpu.CHECKS)
    said = chart.gpu_text(tmp_path)
    assert "| MomentumKOALA, q_rule=fixed, captured | AdamW |" in said
    assert "5 of 5 checks passed." in said


class Careless(torch.optim.Optimizer):
    """Gradient descent with a fault."""

    def __init__(self, params, fault="", fused=False, skip_nonfinite=True):
        super().__init__(params, {"lr": 0.1})
        self.fault, self.fused, self.skipped = fault, fused, torch.tensor(0)

    @torch.no_grad()
    def step(self, closure=None, *, loss=None):
        params = [p for group in self.param_groups for p in group["params"]]
        bad = torch.stack(
            [~p.grad.isfinite().all() for p in params if p.grad is not None] or [torch.tensor(False)]
        ).any()
        self.skipped += bad
        if self.fault == "waits":
            loss.item()
        for p in params:
            if p.grad is not None:
                step = 0.1 * (1.001 if self.fused and self.fault == "differs" else 1.0) * p.grad
                p.sub_(step if self.fault == "nan" else torch.where(bad, 0.0, step))
            elif self.fault == "moves":
                p.mul_(0.9)


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("", set()),
        ("differs", {"fused is eager", "gradients come and go"}),
        ("moves", {"gradients come and go"}),
        ("waits", {"nothing waits"}),
        ("nan", {"a NaN moves nothing"}),
    ],
)
def test_each_check_of_gpu_py_finds_its_fault_and_no_other(gpu, fault, found, monkeypatch):
    monkeypatch.setitem(gpu.CHECKED, "careless", lambda params, **settings: Careless(params, fault=fault, **settings))
    told = gpu.examine("careless", "float32", "cpu")
    assert {one["check"] for one in told if one["error"]} == found


def test_what_was_not_asked_for_is_told_with_what_asks_for_it(told):
    output, _ = told
    assert (
        "Left out, unless asked for: --first, --memory, --set resnet18, --set gpt2, --set many, --set one, --only lodo,"
    )
    assert flat(output).count("--only lodo, --with FILE.py.") == 1
    assert "--dtype" not in flat(output).partition("Left out")[2]
