"""Losses of any sign: a likelihood of a density races as any other loss does, and no number turns round."""

import itertools
import math

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from referee import Referee
from torch import nn

from fallline.bench.common.numbers import difference, number
from fallline.bench.protocol.analysis import analyse, highest_drawn, over_tasks
from fallline.bench.protocol.comparison import ContenderResult, compare, way
from fallline.bench.protocol.design import Design
from fallline.bench.race.results import results
from fallline.bench.race.store import Store
from fallline.bench.report.export import export
from fallline.bench.report.figures import sensitivity
from fallline.bench.report.page import write_page
from fallline.bench.report.words import summary
from fallline.bench.runs.run import RUNAWAY, Outcome, divergence, runaway
from fallline.bench.tasks import Task


class Likelihood(Task):
    """Gaussian likelihood of a small regression, whose loss goes well below 0"""

    steps, evaluations = 200, 6
    sd = 0.01

    def __init__(self):
        random = torch.Generator().manual_seed(0)
        x = torch.randn(768, 4, generator=random)
        y = x @ torch.tensor([0.1, -0.2, 0.05, 0.0]) + self.sd * torch.randn(768, generator=random)
        self.parts = {name: (x[i::3], y[i::3]) for i, name in enumerate(("train", "validation", "test"))}

    def model(self):
        return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))

    def batches(self, order):
        x, y = self.parts["train"]
        while True:
            for batch in torch.randperm(len(x), generator=order).split(64):
                yield x[batch], y[batch]

    def losses(self, model, batch):
        mean, log_variance = model(batch[0]).T
        return 0.5 * (log_variance + (batch[1] - mean).square() / log_variance.exp())

    def evaluate(self, model, split):
        return {"loss": self.losses(model, self.parts[split]).mean().item()}


class Narrower(Likelihood):
    """The same with less noise"""

    sd = 0.003


HERE = "test_below_zero"
GOOD, BAD = "adamw", "adamw#2"


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    """A race on two likelihoods, between AdamW and its twin at rates that are far too small."""
    tasks = tuple(f"{HERE}:{kind.__name__}" for kind in (Likelihood, Narrower))
    small = {"lr": 1e-5, "beta1": 0.9, "weight_decay": 0.01}
    spaces = {GOOD: {"lr": {"low": 0.01, "high": 0.05, "scale": "log"}}, BAD: small}
    with Store(tmp_path_factory.mktemp("race") / "fallline.sqlite") as store:
        design = {"tasks": tasks, "seeds": 8, "baseline": BAD, "spaces": spaces}
        return results(store, Referee(store).race(GOOD, BAD, **design))


def test_a_race_below_zero_has_its_order_and_signs_right(held):
    for part in held.parts:
        good, bad = part.get(GOOD), part.get(BAD)
        assert good.failed_trials == good.failed_seeds == bad.failed_trials == bad.failed_seeds == 0
        assert good.measure("loss").mean < -1 < bad.measure("loss").mean
        assert [entry.name for entry in part.entries] == [GOOD, BAD]
        assert part.way == pytest.approx(part.initial - good.measure("loss").mean)
        assert part.margin == pytest.approx(0.01 * part.way)
        assert good.verdict.word == "better"
        assert good.verdict.difference.mean < -1
        assert all(a > b for a, b in itertools.pairwise(part.targets.values()))
    (across,) = held.across
    assert list(across.iqm) == [GOOD, BAD]
    assert across.iqm[GOOD].mean < -50
    assert across.iqm[BAD].mean == pytest.approx(0, abs=2)
    assert across.improvement[GOOD].mean == 1.0
    assert across.improvement[BAD].mean == 0.5
    told = next(sentence for sentence in summary(held) if "AdamW (" in sentence)
    assert "AdamW (−" in told


def test_a_report_below_zero_is_rendered(held, tmp_path):
    page = write_page(held, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "% of the way" in page
    assert "<td>nan" not in page.lower()
    (table,) = [path for path in export(held, "md", tmp_path) if path.suffix == ".md"]
    rows = [line for line in table.read_text(encoding="utf-8").splitlines() if line.startswith("| AdamW |")]
    assert all("better −" in row for row in rows[:-1])
    assert "| −" in rows[-1]
    assert {path.suffix for path in export(held, "png", tmp_path)} == {".png"}
    assert {path.suffix for path in export(held, "csv", tmp_path)} == {".csv"}


# --- numbers made by hand ---


def outcome(score, loss, curve, status="finished"):
    """A run with these validation losses."""
    places = [10.0 * i for i in range(len(curve))]
    points = {"step": places, "gradient evaluations": places, "validation loss": list(curve)}
    result = {} if loss is None else {"loss": loss}
    return Outcome(status, 20, "", score, result, points, state_bytes=8, gradient_evaluations=100)


def parts_of(tables, initial, shift, factor):
    """A comparison on each task, whose losses are shifted and multiplied."""

    def moved(value):
        return factor * (value + shift)

    found = []
    for task, table in enumerate(tables):
        entries = []
        for name, losses in zip("abc", table, strict=True):
            one = ContenderResult(
                name, {"label": name, "ours": name == "a", "ranges": {}, "extended": {}, "excuse": ""}
            )
            for i, loss in enumerate(losses):
                curve = [moved(value) for value in (initial, (initial + loss) / 2, loss, loss, loss)]
                one.seeds[i] = outcome(moved(loss), moved(loss), curve)
                one.trials[i] = {"lr": 0.1}, one.seeds[i]
            entries.append(one)
        about = {"summary": "", "steps": 100, "held_out": True, "floor": None}
        asked = Design((f"t{task}",), ("a", "b", "c"), trials=8, seeds=8)
        found.append(analyse(asked, compare(asked, f"t{task}", "tuned", about, entries)))
    return found


# Sixteenths, shifts in whole numbers and factors that are powers of two: every sum and product is exact, and a change
# of one is a mistake in a formula.
LOSS = st.integers(0, 64).map(lambda n: n / 16)
TABLES = st.lists(st.lists(st.lists(LOSS, min_size=8, max_size=8), min_size=3, max_size=3), min_size=2, max_size=2)


# Without shrinking: an example takes a tenth of a second.
@settings(max_examples=25, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(TABLES, st.integers(-1000, 1000), st.sampled_from([0.25, 1.0, 8.0]))
def test_ranks_verdicts_and_aggregates_do_not_change_with_a_constant_or_a_factor(tables, shift, factor):
    plain, moved = parts_of(tables, 8.0, 0, 1), parts_of(tables, 8.0, shift, factor)
    for one, other in zip(plain, moved, strict=True):
        assert [entry.name for entry in other.entries] == [entry.name for entry in one.entries]
        assert other.baseline.name == one.baseline.name
        for entry in one.entries:
            twin = other.get(entry.name)
            assert [alarm.kind for alarm in twin.alarms] == [alarm.kind for alarm in entry.alarms]
            assert twin.hits == entry.hits
            if entry.verdict is not None:
                assert twin.verdict.word == entry.verdict.word
                assert twin.verdict.needed == entry.verdict.needed
                assert twin.verdict.difference.mean == pytest.approx(factor * entry.verdict.difference.mean)
        assert other.way == pytest.approx(factor * one.way)
    before, after = over_tasks(plain), over_tasks(moved)
    assert list(after.iqm) == list(before.iqm)
    for name in before.iqm:
        assert after.iqm[name].mean == pytest.approx(before.iqm[name].mean, abs=1e-6)
        assert after.improvement[name].mean == before.improvement[name].mean


FINITE = st.floats(-1e6, 1e6).filter(lambda x: x == 0 or abs(x) > 1e-6)


@given(st.lists(FINITE, min_size=1, max_size=8), st.floats(1e-3, 1e3))
def test_divergence_is_the_same_at_another_scale_and_no_loss_that_falls_diverges(losses, factor):
    first, lowest = losses[0], min(losses)
    limit = runaway(first, lowest, RUNAWAY)
    assert limit > first
    assert runaway(factor * first, factor * lowest, RUNAWAY) == pytest.approx(factor * limit)
    if lowest > 0:
        assert limit == RUNAWAY * first


@pytest.mark.parametrize(
    ("losses", "now", "lost"),
    [
        ([2.0, 1.0], 1999.0, False),
        ([2.0, 1.0], 2001.0, True),
        ([-92.0, -94.0], -94.0, False),
        ([-92.0, -94.0], 9e4, False),
        ([-92.0, -94.0], 1e5, True),
        ([0.0, 0.5], 0.5, False),  # begins at exactly 0, as the surrogate of PPO
        ([0.0, 0.5, -1.0], 998.0, False),
        ([0.0, 0.5, -1.0], 1000.0, True),
        ([1e-9, -0.02], 0.5, False),
        ([3.0, -4.0], 6e3, False),
        ([3.0, -4.0], 7e3, True),
    ],
)
def test_divergence_of_losses_of_any_sign(losses, now, lost):
    found = divergence(torch.tensor(losses), {"train loss": now})
    assert (found is not None) == lost


def test_the_way_has_a_size_whatever_the_signs():
    assert way(2.0, -4.0) == 6.0
    assert way(-92.0, -94.0) == 2.0
    assert way(None, -94.0) == way(-95.0, -94.0) == 94.0
    assert way(1.0, None) == 0.0


def test_a_difference_has_its_sign_whatever_it_is_taken_from():
    assert difference(99.0, 0.1) == "+99.0"
    assert difference(-99.0, 0.1) == "−99.0"
    assert difference(math.inf, 10.0) == "+inf"
    assert [number(x) for x in (-3.98, -1e-5, 9.9e-5)] == ["−3.98", "−1.00e-05", "9.90e-05"]
    (part, _) = parts_of([[[-4.0 - i / 16 for i in range(8)]] * 3] * 2, 8.0, 0, 1)
    assert part.scale > 0


def test_one_score_in_the_millions_does_not_flatten_the_others_below_zero():
    (part, _) = parts_of([[[-4.0] * 8] * 3] * 2, 8.0, 0, 1)
    assert highest_drawn(part, -4.0, 1e9) == 32.0
    assert highest_drawn(part, -4.0, 1.0) == 1.0
    assert highest_drawn(part, 1.0, 1e9) == 300.0
    entry = part.get("a")
    entry.trials[9] = {"lr": 1.0}, outcome(1e9, None, [8.0, 1e9])
    assert max(y for trace in sensitivity(part, entry)["data"] for y in trace["y"]) < 100
