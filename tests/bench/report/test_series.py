"""The series of the figures: what the page and the prints paint is computed once, and from the records."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest

from fallline.bench.protocol.comparison import Comparison, ContenderResult
from fallline.bench.protocol.search import Search
from fallline.bench.report import figures, prints, series
from fallline.bench.runs.run import Outcome


def test_seconds_are_interpolated_and_a_seed_that_is_over_keeps_its_last_loss():
    runs = [
        Outcome("finished", 2, curve={"train loss": [4.0, 2.0, 0.0]}, times={"cpu seconds": [0.0, 1.0, 2.0]}),
        Outcome("finished", 2, curve={"train loss": [4.0, 2.0, 0.0]}, times={"cpu seconds": [0.0, 2.0, 4.0]}),
    ]
    entry = ContenderResult("sgd", {"label": "SGD", "ours": False}, seeds=dict(enumerate(runs)))
    grid, values = series.courses(entry, "train loss", "CPU seconds")
    assert (grid[0], grid[-1]) == (0, 4)
    assert np.allclose(np.diff(grid), grid[1])
    assert values[0] == pytest.approx(np.maximum(4 - 2 * grid, 0))
    assert values[1] == pytest.approx(4 - grid)


def test_points_without_a_number_are_left_out_and_long_curves_thinned():
    steps = [float(i) for i in range(1001)]
    values = [None, *(1 / step for step in steps[1:])]
    runs = [Outcome("finished", 1000, curve={"step": steps, "train loss": values}) for _ in range(2)]
    entry = ContenderResult("sgd", {"label": "SGD", "ours": False}, seeds=dict(enumerate(runs)))
    x, drawn = series.courses(entry, "train loss", "steps")
    assert len(x) == series.POINTS
    assert (x[0], x[-1]) == (1, 1000)
    assert drawn == pytest.approx(np.stack([1 / x, 1 / x]))
    assert series.courses(entry, "validation loss", "steps") is None
    assert series.courses(entry, "train loss", "wall seconds") is None


def panel(rates, ranges=(1e-3, 1.0), extended=None):
    """An entry whose trials had these learning rates; negative: the trial failed."""
    about = {"label": "SGD", "ours": False, "ranges": {"lr": {"low": ranges[0], "high": ranges[1], "scale": "log"}}}
    about["extended"] = {"lr": {"low": extended[0], "high": extended[1], "scale": "log"}} if extended else {}
    trials = {
        i: ({"lr": abs(rate)}, Outcome("finished", 9, score=1.0) if rate > 0 else Outcome("diverged", 9, "why"))
        for i, rate in enumerate(rates)
    }
    return ContenderResult("sgd", about, search=Search(trials=trials))


def comparison(*entries):
    """A comparison of these entries."""
    return Comparison("hill", {"steps": 9, "held_out": True, "floor": None}, "tuned", list(entries), {})


def test_learning_rates_are_shaded_where_every_trial_failed():
    def failed(*rates, **there):
        entry = panel(rates, **there)
        return series.sensitivity(comparison(entry), entry).failed_stretches

    assert failed(0.01, 0.1) == []
    assert failed(0.01, -0.1, 0.9) == []  # one among those that finished is not for the learning rate's sake
    ((low, high),) = failed(0.01, -0.25, 0.04)
    assert (low, high) == pytest.approx((0.1, 1.0))  # half-way to the next, and up to the end of the range
    (stretch,) = failed(0.001, -0.01, -0.1, 1.0)
    assert stretch == pytest.approx((math.sqrt(1e-5), math.sqrt(0.1)))
    assert failed(-0.01, -0.1) == [(1e-3, 1.0)]
    first, last = failed(-0.002, 0.008, 0.1, -1.6, extended=(1e-3, 10.0))
    assert first == pytest.approx((1e-3, 0.004))
    assert last == pytest.approx((0.4, 10.0))
    assert failed(0.01, -0.1, 0.1) == []  # a rate at which one finished
    assert failed(0.01, -0.1, 0.1, -0.5)[0][0] == pytest.approx(math.sqrt(0.05))


def test_failed_stretches_end_half_way_to_a_trial_that_finished():
    failed = {1e-3: True, 1e-2: True, 1e-1: False, 1.0: True, 10.0: False, 100.0: True}
    left, right = series.failed_stretches(failed, (1e-4, 1e3))
    assert left == pytest.approx((1e-4, math.sqrt(1e-2 * 1e-1)))
    assert right == pytest.approx((math.sqrt(10.0 * 100.0), 1e3))
    assert series.failed_stretches({1.0: True}, (0.1, 10)) == [(0.1, 10)]
    assert series.failed_stretches({1.0: False}, (0.1, 10)) == []
    assert series.failed_stretches({0.0: False, 1.0: True}, (0, 2)) == [(0.5, 2)]  # a setting that can be zero


RATES = {
    "sgd": (-0.003, -0.01, -0.04, 0.08, 0.2, -0.25, -0.9),
    "adamw": (0.002, -0.01, -0.03, 0.1, 0.5),
    "koala-m": (-0.01, -0.1),
    "muon": (0.01, 0.1),
    "lodo": (0.02, -0.3, 0.3, -2.0),
}


def test_the_page_and_the_prints_shade_the_same_stretches():
    ranges = {"extended": (1e-3, 10.0)}
    entries = [dataclasses.replace(panel(r, **(ranges if n == "lodo" else {})), name=n) for n, r in RATES.items()]
    for entry in entries:
        entry.about = {**entry.about, "label": entry.name}
    part = comparison(*entries)
    printed = {axes.get_title(): axes for axes in prints.sensitivity(SimpleNamespace(parts=[part]), part).axes}
    counts = {}
    for entry in entries:
        drawn = figures.sensitivity(part, entry)["layout"]
        page = [(shape["x0"], shape["x1"]) for shape in drawn["shapes"] if shape["fillcolor"] == "@warn/15"]
        boxes = [patch.get_bbox() for patch in printed[entry.name].patches]
        assert [end for box in boxes for end in (box.x0, box.x1)] == pytest.approx([end for one in page for end in one])
        assert printed[entry.name].get_xlim() == pytest.approx([10**end for end in drawn["xaxis"]["range"]])
        assert printed[entry.name].get_ylim() == pytest.approx(tuple(drawn["yaxis"]["range"]))
        counts[entry.name] = len(page)
    assert counts == {"sgd": 2, "adamw": 1, "koala-m": 1, "muon": 0, "lodo": 1}


def test_an_extension_of_the_range_is_shaded_and_shown_whole():
    entry = panel([0.01, 0.5, 4.0], extended=(1e-3, 10.0))
    figure = figures.sensitivity(comparison(entry), entry)
    (shade,) = figure["layout"]["shapes"]
    assert (shade["x0"], shade["x1"]) == (1.0, 10.0)
    low, high = figure["layout"]["xaxis"]["range"]
    assert low < -3
    assert high > 1


@pytest.mark.parametrize("ends", [(0.11, 2.3), (1e-7, 1e9), (0.5, 0.6), (3e-4, 0.09)])
def test_round_values_lie_within_and_are_few(ends):
    low, high = map(math.log10, ends)
    values = series.round_values(low, high, 6)
    assert len(values) <= 6
    assert all(ends[0] <= value <= ends[1] for value in values)
    assert len(values) >= 2 or high - low < 0.3
