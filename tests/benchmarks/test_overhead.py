"""The bare loop and the harness, side by side: they must make the same numbers. What they take is not tested."""

import dataclasses

import numpy as np
import pytest
import torch
from rich.console import Console

import harness as module
from harness import (
    CASES,
    End,
    Overhead,
    Watched,
    overhead,
    overhead_table,
    overhead_words,
    side_by_side,
)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(Watched, "steps", 48)
    monkeypatch.setattr(Watched, "evaluations", 4)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("bare_first", [True, False])
def test_both_loops_end_in_the_same_weights_and_losses_to_the_bit(name, bare_first):
    bare, harness = side_by_side(name, CASES[name], bare_first)
    assert bare.agrees(harness)
    assert len(bare.validation_losses) == 5
    assert bare.validation_losses[-1] < bare.validation_losses[0]
    assert sum(w.numel() for w in bare.weights) == 64 * 64 * 2 + 64 * 2 + 64 * 10 + 10
    assert bare.seconds.shape == harness.seconds.shape == (49,)


def test_loops_that_differ_do_not_agree_and_no_time_is_told(monkeypatch):
    bare, harness = side_by_side("sgd", CASES["sgd"])
    off = (bare.weights[0] + 2**-20, *bare.weights[1:])
    assert not dataclasses.replace(bare, weights=off).agrees(harness)
    assert not dataclasses.replace(bare, test_loss=0.0).agrees(harness)
    assert not dataclasses.replace(bare, validation_losses=()).agrees(harness)
    monkeypatch.setattr(module, "lr_factor", lambda *_: 1.0)  # the bare loop forgets the schedule
    with pytest.raises(AssertionError, match="not make the same steps"):
        overhead(repetitions=1, cases={"sgd": CASES["sgd"]})


@pytest.mark.parametrize("broken", ["bare_loop", "harness_loop"])
def test_a_loop_that_fails_does_not_leave_the_other_waiting(monkeypatch, broken):
    def fail(name, settings):
        raise ArithmeticError("no")

    monkeypatch.setattr(module, broken, fail)
    with pytest.raises(ArithmeticError):
        side_by_side("sgd", CASES["sgd"])


def test_the_share_is_of_the_steps_medians():
    bare = np.ones((3, 11))
    harness = np.full((3, 11), 1.02)
    assert Overhead("SGD", bare, harness).share == pytest.approx(0.02)
    harness[1, 4] = 50.0  # somebody else had the core
    found = Overhead("SGD", bare, harness)
    assert found.share == pytest.approx(0.02)
    low, high = found.spread
    assert low <= found.share <= high


def test_the_table_and_the_words_tell_whether_the_aim_is_kept():
    bare = np.full((3, 11), 1e-3)
    found = [Overhead("SGD", bare, 1.02 * bare), Overhead("AdamW", bare, 1.05 * bare)]
    console = Console(width=120, no_color=True)
    with console.capture() as capture:
        console.print(overhead_table(found))
    assert "+2.0%" in capture.get()
    assert "+5.0%" in capture.get()
    assert "misses its aim" in overhead_words(found)[0]
    assert "keeps to its aim" in overhead_words(found[:1])[0]


def test_the_threads_of_torch_are_as_they_were_before():
    threads = torch.get_num_threads()
    found = overhead(repetitions=1, cases={"adamw": CASES["adamw"]})
    assert torch.get_num_threads() == threads
    assert found[0].bare.shape == (1, 49)


def test_an_end_agrees_with_itself():
    end = End((torch.ones(2),), (1.0, None), 0.5, np.zeros(1))
    assert end.agrees(end)
