"""The papers' claims: a criterion can fail, a broken method is seen, and the page says what the record has."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import ttest_1samp
from scripts import script
from typer.testing import CliRunner

from fallline import LODO, ArTuRO, CoolMomentum, VanillaKOALA
from fallline.bench.cli.root import app
from fallline.papers import claims
from fallline.papers.claims import (
    CLAIMS,
    METHODS,
    Criterion,
    Effort,
    Measured,
    Reading,
    arturo,
    chosen,
    coolmomentum,
    exact,
    examine,
    koala,
    lodo,
    mean_of,
)
from fallline.papers.claims._claim import verdict, worst
from fallline.papers.experiments.lodo_bowl import hessian_error

ROOT = Path(__file__).parents[2]
QUICK = Effort(quick=True)
BAND = Criterion("a number", 1.0, 2.0)


def by_id(name):
    (claim,) = chosen([name])
    return claim


def decided(name, measured):
    """The verdict of a claim's own criterion."""
    return verdict(by_id(name).criterion, measured)[0]


def call(*arguments):
    wide = {"COLUMNS": "200", "NO_COLOR": "1"}
    result = CliRunner().invoke(app, ["repro", "--claims", *map(str, arguments)], env=wide)
    return result.exit_code, result.output


# --- the verdict ---


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (1.2, 1.8, "holds"),
        (1.0, 2.0, "holds"),
        (0.9, 1.5, "not decided"),
        (1.5, 2.1, "not decided"),
        (0.5, 3.0, "not decided"),
        (2.1, 2.2, "does not hold"),
        (0.1, 0.9, "does not hold"),
    ],
)
def test_a_whole_interval_decides(low, high, wanted):
    assert verdict(BAND, Measured([Reading("x", (low + high) / 2, low, high, 5)]))[0] == wanted


def test_one_reading_outside_refutes_and_one_across_the_edge_leaves_it_open():
    inside, across, outside = exact("in", 1.5), Reading("across", 1.9, 1.7, 2.1, 3), exact("out", 2.5)
    assert verdict(BAND, Measured([inside, across]))[0] == "not decided"
    assert "across" in verdict(BAND, Measured([inside, across]))[1]
    assert verdict(BAND, Measured([inside, across, outside]))[0] == "does not hold"
    assert worst(BAND, [across, inside, outside]) is outside
    assert worst(BAND, [inside, across]) is across


def test_without_readings_nothing_is_decided_and_a_reason_overrules_readings():
    assert verdict(BAND, Measured(undecided="no record")) == ("not decided", "no record")
    assert verdict(BAND, Measured([exact("in", 1.5)], undecided="too small"))[0] == "not decided"
    assert verdict(BAND, Measured())[0] == "not decided"


def test_a_number_that_is_not_finite_is_an_error_and_no_verdict():
    with pytest.raises(ArithmeticError, match="not finite"):
        exact("lost", float("nan"))


def test_the_interval_is_students():
    values = [0.3, 1.1, 0.7, 2.0, 0.4]
    found, reference = mean_of("x", values), ttest_1samp(values, 0.0).confidence_interval(0.95)
    np.testing.assert_allclose([found.low, found.high], [reference.low, reference.high], rtol=1e-12)
    with pytest.raises(ValueError, match="two values"):
        mean_of("x", [1.0])


# --- the claims ---


def test_every_claim_is_whole_and_has_a_name_of_its_own():
    assert len({claim.id for claim in CLAIMS}) == len(CLAIMS)
    assert {claim.method for claim in CLAIMS} == set(METHODS)
    for claim in CLAIMS:
        assert all((claim.sentence, claim.source, claim.how, claim.if_holds, claim.if_not)), claim.id
        assert claim.criterion.at_least <= claim.criterion.at_most
        assert np.isfinite([claim.criterion.at_least, claim.criterion.at_most]).any(), f"{claim.id} cannot fail"


def test_claims_are_chosen_by_name_and_by_method():
    assert chosen([]) == CLAIMS
    assert {claim.method for claim in chosen(["lodo"])} == {"lodo"}
    assert [claim.id for claim in chosen(["cool-sgd", "KOALA-kalman"])] == ["koala-kalman", "cool-sgd"]
    with pytest.raises(ValueError, match="did you mean koala-kalman"):
        chosen(["koala-kalmann"])


# --- a method that is broken is seen ---


def test_coolmomentum_is_stable_below_four_and_torchs_rate_is_not():
    assert decided("cool-stability", coolmomentum.stability(QUICK)) == "holds"

    def twice(params, lr, rho_0):
        return CoolMomentum(params, lr=2 * lr, rho_0=rho_0)

    assert coolmomentum.radius(partial(CoolMomentum, rho_0=0.9), 3.99 / 7, 7.0) < 1
    assert coolmomentum.radius(partial(twice, rho_0=0.9), 3.99 / 7, 7.0) > 1


def test_a_temperature_is_measured_and_walkers_that_stay_at_their_start_do_not_have_the_laws():
    measured = coolmomentum.temperature(QUICK)
    assert decided("cool-temperature", measured) == "holds"
    hot = {name: ratio for name, ratio in measured.details.items() if "rho 0.99" in name}
    assert len(hot) == 2
    assert all(ratio != 199 and ratio == pytest.approx(199, rel=0.05) for ratio in hot.values())

    def still(params, lr, rho_0):
        return CoolMomentum(params, lr=1e-9 * lr, rho_0=rho_0)

    def hotter(params, lr, rho_0):
        return CoolMomentum(params, lr=1.1 * lr, rho_0=rho_0)

    start = {reading.name: reading.value for reading in coolmomentum.temperature(QUICK, still).readings}
    assert start["k Var(x), rho 0.9, lr k 0.1"] == pytest.approx(3.0, rel=0.05)
    assert decided("cool-temperature", coolmomentum.temperature(QUICK, hotter)) == "does not hold"


def test_positions_are_the_slower_to_forget_where_the_effective_rate_is_small():
    assert coolmomentum.relaxation(0.01, 0.0, 10.0) == pytest.approx(2 / 0.1)
    assert coolmomentum.relaxation(0.01, 0.99, 10.0) == pytest.approx(1 / 0.01)


def test_the_articles_own_schedule_is_behind_a_quench_in_3000_steps_where_the_linear_one_is_not():
    assert decided("cool-annealing-exponential", by_id("cool-annealing-exponential").measure(QUICK)) == "does not hold"
    assert decided("cool-annealing", by_id("cool-annealing").measure(QUICK)) == "holds"


def test_the_control_of_coolmomentum_bears_what_momentum_allows():
    sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    assert coolmomentum.stiffest(sgd) == pytest.approx(2 * (1 + 0.9) / 0.1, rel=0.01)


def test_a_rate_that_ignores_the_momentum_is_not_sgd():
    def other(params, lr, rho_0, **settings):
        return CoolMomentum(params, lr=1.01 * lr, rho_0=rho_0, **settings)

    assert decided("cool-sgd", coolmomentum.as_sgd(QUICK)) == "holds"
    assert decided("cool-sgd", coolmomentum.as_sgd(QUICK, other)) == "does not hold"


def test_a_filter_of_another_rate_is_no_kalman_filter():
    assert decided("koala-kalman", koala.kalman(QUICK)) == "holds"
    assert decided("koala-kalman", koala.kalman(QUICK, partial(VanillaKOALA, lr=0.9))) == "does not hold"


def test_a_rate_of_three_breaks_the_bound_on_koalas_steps():
    def three(params):
        return VanillaKOALA(params, lr=3.0)

    assert decided("koala-bounded", koala.bounded(Effort(quick=True), [VanillaKOALA])) == "holds"
    three.__name__ = "three"
    assert decided("koala-bounded", koala.bounded(Effort(quick=True), [three])) == "does not hold"


@pytest.mark.parametrize("rule", [koala.share, koala.less])
def test_koala_converges_on_what_it_measures_exactly_and_a_filter_that_is_sure_of_itself_does_not(rule):
    task = partial(koala.Regression, 1)
    sure = partial(VanillaKOALA, r=1.0, q=0.0, sigma=0.0)
    assert koala.descend(koala.filtered, task(), None, 100, rule).left < 0.01
    assert koala.descend(sure, task(), None, 100, rule).left > 0.9


def test_the_two_schedules_are_the_papers_targets():
    for rule, target in ((koala.share, lambda loss, k: (1 - 1 / k) * loss), (koala.less, lambda loss, k: loss - 3 / k)):
        weights = [torch.nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2)]
        ruled, told = koala.filtered([weights[0]], lr=1.0), VanillaKOALA([weights[1]], r=1.0, q=1.0)
        for k in range(1, 5):
            rule(ruled, k)
            told.param_groups[0]["target"] = partial(target, k=k)
            for w, optimizer in zip(weights, (ruled, told), strict=True):
                w.grad = k * torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
                optimizer.step(loss=0.7 * k)
        assert not torch.equal(weights[0], torch.ones(3))
        torch.testing.assert_close(*weights, rtol=1e-12, atol=0)


def test_measurements_with_too_short_a_gradient_are_skipped():
    none = koala.descend(koala.filtered, koala.Regression(1), 20, 30, least=1e9)
    assert none.skipped == 30
    assert none.end == none.tail == none.start
    some = koala.descend(koala.filtered, koala.Regression(1), 20, 100, least=0.3)
    assert 0 < some.skipped < 100
    assert some.tail >= some.end


def test_koalas_gradient_stays_above_a_small_g_and_comes_within_a_large_one():
    found = [reading.value for reading in koala.convergence_within(QUICK).readings]
    assert min(found[:2]) > 1 > max(found[2:])


def test_koalas_first_steps_exceed_what_the_variance_allows_without_any_spike():
    bound = partial(koala.lengths_by_bound, VanillaKOALA, 40, lambda loss, P, R: P.sqrt() / 2, lambda step: 1.0)
    plain, spiked = bound(spike=0.0), bound(spike=10.0)
    assert max(plain) > 1.5
    assert max(plain[30:]) < 1.1
    assert plain[:20] == spiked[:20]
    assert plain[20] < 1 < spiked[20] < 10**0.5


def test_what_of_koala_has_the_losss_unit_is_scaled_along():
    found = koala.scale(QUICK)
    assert [reading.name for reading in found.readings][-1] == "VanillaKOALA, r fixed"
    assert decided("koala-loss-scale", found) == "holds"
    assert min(found.details.values()) > 0.01  # where weight_decay is left as it is


def test_the_share_of_impossible_covariances_has_an_interval_over_tensors():
    (found,) = koala.positive(QUICK).readings
    assert found.count == 50
    assert 0 < found.low < found.value < found.high


def test_the_papers_own_table_misses_our_criterion_in_the_cell_that_is_named():
    most, cell = koala.published_gap()
    assert most == pytest.approx(7.29 - 6.28)
    assert cell == "cifar10, resnet50, 100 epochs, Adam"
    assert most > by_id("koala-images").criterion.at_most


def test_koala_plus_plus_is_exact_along_a_line_and_not_without_the_virtual_measurement():
    assert decided("koala-pp-product", koala.products(QUICK)) == "holds"
    other = koala.products(QUICK, lambda w, **s: koala.KOALAPlusPlus(w, **{**s, "sigma": 2 * s["sigma"]}))
    assert decided("koala-pp-product", other) == "does not hold"


def test_arturos_bound_holds_by_our_own_sum_and_the_authors_solver_breaks_it():
    settings = ArTuRO.published("cifar10-cnn")
    assert arturo.most_of_bound(partial(ArTuRO, **settings), 24) == pytest.approx(1, abs=1e-3)
    assert arturo.most_of_bound(partial(ArTuRO, **settings), 24) <= 1 + 1e-9
    assert arturo.most_of_bound(partial(ArTuRO, solver="bisect", **settings), 24) > 1.1


def test_arturos_whole_divergence_is_torchs_and_far_above_the_bound():
    seen = []

    def watched(params, **settings):
        optimizer = ArTuRO(params, **settings)

        def normal():
            pairs = ((p.detach().flatten(), optimizer.state[p]["precision"].flatten()) for p in params)
            mean, precision = (torch.cat(column) for column in zip(*pairs, strict=True))
            return torch.distributions.Normal(mean.clone(), precision.rsqrt())

        optimizer.register_step_post_hook(lambda *_: seen.append(normal()))
        seen.append(normal())
        return optimizer

    settings = ArTuRO.published("cifar10-cnn")
    (first,) = arturo.divergences(partial(watched, **settings), 1)
    # A run of one step is past both cuts of the bound.
    whole = torch.distributions.kl_divergence(seen[1], seen[0]).sum() / (settings["lr"] * arturo.CUT**2)
    assert first.whole == pytest.approx(float(whole), rel=1e-9)
    assert first.mean == pytest.approx(1, abs=1e-3)
    assert decided("arturo-bound-whole", arturo.bound_of_all(QUICK)) == "does not hold"
    assert decided("arturo-bound", arturo.bound(QUICK)) == "holds"


def test_arturos_step_is_scipys_and_a_damped_one_is_not():
    assert decided("arturo-exact", arturo.exactness(QUICK)) == "holds"
    assert decided("arturo-exact", arturo.exactness(QUICK, eta_min=5.0)) == "does not hold"


def test_arturos_default_keeps_the_bound_and_leaves_much_only_where_curvatures_spread():
    found = arturo.exactness_as_shipped(QUICK)
    posed, *training, over = (reading.value for reading in found.readings)
    assert posed > 0.05
    assert 0 < max(training) < 1e-4
    assert over <= 1e-9
    assert decided("arturo-exact-default", found) == "does not hold"


def test_arturos_filter_with_process_noise_is_not_least_squares():
    assert decided("arturo-least-squares", arturo.least_squares(QUICK)) == "holds"

    def drifting(params, **settings):
        return ArTuRO(params, **{**settings, "process_noise": 0.01})

    assert decided("arturo-least-squares", arturo.least_squares(QUICK, drifting)) == "does not hold"


def test_lodos_operator_stays_positive_and_the_residual_one_does_not():
    assert decided("lodo-positive", lodo.positive(QUICK)) == "holds"
    assert decided("lodo-positive", lodo.positive(QUICK, "residual")) == "does not hold"


def test_lodos_epsilon_has_the_unit_of_the_loss_squared():
    assert decided("lodo-loss-scale", lodo.scale(QUICK)) == "holds"
    assert decided("lodo-loss-scale", lodo.scale(QUICK, meta_eps=1e-2)) == "does not hold"


def test_the_gain_is_that_of_the_riccati_equation():
    k, r = torch.tensor([0.5, 2.0], dtype=torch.float64), 0.7
    K = lodo.gain(k, 1.0, r)
    before = (1 + (1 + 4 * r**2 / k**2).sqrt()) / 2  # predicted variance: v² - v - r² / k² = 0 for drift 1
    torch.testing.assert_close(K, before * k / (k**2 * before + r**2))
    torch.testing.assert_close(lodo.gain(k, 1.0, 1e-6), 1 / k)  # without noise the inverse


def test_an_exponent_is_found_and_what_was_not_learned_is_an_error():
    k = torch.logspace(-1, 0, 6, dtype=torch.float64)
    times = torch.stack([100 / k**3, 1000 / k], 1).round().long()
    torch.testing.assert_close(lodo.exponents(k, times), torch.tensor([3.0, 1.0]).double(), atol=0.01, rtol=0)
    with pytest.raises(ArithmeticError, match="not learned in 3 steps"):
        lodo.halving(k, 2, 3, 3)


def test_near_the_inverse_the_rate_has_the_cube_and_from_afar_less():
    k = torch.logspace(np.log10(0.5), 0, 4, dtype=torch.float64)
    near = lodo.exponents(k, lodo.halving(k, 4, 200, 1000, left=0.1, **lodo.SGD))
    afar = lodo.exponents(k, lodo.halving(k, 4, 200, 1000, **lodo.SGD))
    assert float(near.mean()) == pytest.approx(3.0, abs=0.15)
    assert float(afar.mean()) < 2.75


def test_steps_are_counted_until_each_direction_has_halved():
    left = torch.tensor([0.8, 0.4])
    halved = lodo.Halved(left)
    assert not halved(torch.tensor([0.5, 0.19]), 10)
    assert halved(torch.tensor([0.39, 0.3]), 10)  # once halved it stays so
    assert halved.times.tolist() == [20, 10]
    short = lodo.learned(lodo.Bowl(0, lodo.EIGENVALUES[2:]), 500, **{**lodo.NETWORK, "lr": 0.5})
    assert short[0] > short[1:].max()
    with pytest.raises(ArithmeticError, match="not learned in 10 steps"):
        lodo.learned(lodo.Bowl(0, lodo.EIGENVALUES), 10, **{**lodo.NETWORK, "lr": 0.5})


def test_the_network_learns_more_of_the_inverse_than_one_rate_can():
    H = lodo.Bowl(0, lodo.EIGENVALUES).hessian
    assert hessian_error(torch.linalg.inv(H), H) < 1e-12
    rates = torch.linspace(0.5, 5, 200, dtype=torch.float64)
    grid = min(hessian_error(rate * torch.eye(5, dtype=torch.float64), H) for rate in rates)
    assert lodo.best_rate(H) == pytest.approx(grid, rel=1e-3)


# --- records ---


def record(values, scale="full", lost=0):
    entries = [{"label": label, "values": found, "lost seeds": lost} for label, found in values.items()]
    return {
        "command": "by hand",
        "started_at": "2020-01-01",
        "design": {"quick": False, "scale": scale, "cases": [], "optimizers": []},
        "results": {"cases": [{"name": "a case", "entries": entries}]},
    }


def arturo_records(folder, **how):
    for name in ("arturo-fmnist", "arturo-cifar"):
        found = record({"arTuRO": [90.1, 91.2, 92.0], "Adam": [95.2, 96.1, 97.1], "SGD": [90.0, 91.0, 92.1]}, **how)
        suffix = "-full" if how.get("scale", "full") == "full" else ""
        (folder / f"repro-{name}{suffix}.json").write_text(json.dumps(found))
    return Effort(quick=True, records=folder)


def test_records_of_whole_trainings_decide_with_paired_seeds(tmp_path):
    effort = arturo_records(tmp_path)
    fast = arturo.as_fast(effort)
    assert decided("arturo-fast", fast) == "does not hold"
    assert fast.readings[0].value == pytest.approx(-5.03333, abs=1e-4)
    assert decided("arturo-general", arturo.as_general(effort)) == "holds"


@pytest.mark.parametrize(("name", "measure"), [("arturo-fast", arturo.as_fast), ("arturo-general", arturo.as_general)])
def test_what_concerns_a_whole_training_is_not_decided_by_less_than_an_epoch(name, measure, tmp_path):
    found = measure(arturo_records(tmp_path, scale="cpu"))
    assert found.readings
    assert decided(name, found) == "not decided"
    assert "under an epoch" in found.undecided


def test_without_a_record_it_says_what_makes_it_and_lost_seeds_decide_nothing(tmp_path):
    none = arturo.as_fast(Effort(records=tmp_path))
    assert decided("arturo-fast", none) == "not decided"
    assert "fallline repro arturo-fmnist" in none.undecided
    assert decided("arturo-fast", arturo.as_fast(arturo_records(tmp_path, lost=1))) == "not decided"


# --- the command ---


def test_the_command_shows_writes_and_counts_a_refuted_claim_as_a_finding(tmp_path):
    code, output = call("koala-kalman", "koala-bounded-variance", "arturo-fast", "--quick", "--out", tmp_path,
                        "--records", tmp_path)  # fmt: skip
    assert code == 0, output
    assert "1 hold, 1 do not, 1 not decided" in output
    found = json.loads((tmp_path / "claims.json").read_text())
    verdicts = {one["id"]: one["verdict"] for one in found["claims"]}
    assert verdicts == {
        "koala-kalman": "holds",
        "koala-bounded-variance": "does not hold",
        "arturo-fast": "not decided",
    }
    assert found["command"] == "fallline repro --claims koala-kalman koala-bounded-variance arturo-fast --quick"
    assert str(tmp_path) not in json.dumps(found)
    for one in found["claims"][:2]:
        assert one["concluded"] in (by_id(one["id"]).if_holds, by_id(one["id"]).if_not)
        assert one["headline"] in one["readings"]


def test_claims_measured_before_stay_unless_the_effort_was_another(tmp_path):
    def written(record):
        return [one["id"] for one in json.loads(examine.keep(record, tmp_path).read_text())["claims"]]

    def measured(name, quick):
        return {"quick": quick, "claims": [{"id": name, "quick": quick}]}

    assert written(measured("cool-sgd", True)) == ["cool-sgd"]
    assert written(measured("koala-kalman", True)) == ["koala-kalman", "cool-sgd"]
    assert written(measured("koala-kalman", True)) == ["koala-kalman", "cool-sgd"]
    assert written(measured("koala-prior", False)) == ["koala-prior"]


def test_an_error_in_one_claim_is_exit_status_one_and_the_others_go_on(tmp_path, monkeypatch):
    def broken(effort):
        raise RuntimeError("lost its way")

    first = replace(by_id("cool-sgd"), measure=broken)
    mine = (first, by_id("koala-kalman"))
    monkeypatch.setattr(claims, "CLAIMS", mine)
    code, output = call("cool-sgd", "koala-kalman", "--quick", "--out", tmp_path)
    assert code == 1
    assert "1 hold, 0 do not, 0 not decided, 1 failed" in output
    assert "RuntimeError:" in output  # the rest may stand in the next line of its column


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["koala-kalmann"], "did you mean koala-kalman"),
        (["--seeds", "3"], "claims have no such choice"),
        (["--list"], "claims have no such choice"),
        (["--records", "nowhere-at-all"], "is no folder"),
    ],
    ids=["unknown", "seeds", "list", "records"],
)
def test_what_makes_no_sense_is_said(arguments, told):
    code, output = call(*arguments)
    assert code == 2
    assert told in " ".join(output.replace("│", " ").split())


# --- the page ---


@pytest.fixture(scope="module")
def page():
    """docs/claims.py, not run."""
    return script("docs/claims.py")


def test_the_page_says_what_the_record_has(page):
    text, found = (ROOT / "docs" / "claims.md").read_text(), page.kept()
    assert page.summary(found) in text
    for name in METHODS:
        assert page.method(found, name) in text, f"python docs/claims.py fills in {name}"


def test_the_record_is_of_these_claims_measured_whole(page):
    found = page.kept()
    if found is None:
        pytest.skip("benchmarks/records/claims.json is not made yet: fallline repro --claims --out benchmarks/records")
    assert not found["quick"]
    assert found["command"].startswith("fallline repro --claims")
    for claim, one in zip(CLAIMS, found["claims"], strict=True):
        assert (claim.id, claim.sentence, claim.criterion.band) == (one["id"], one["claim"], one["band"])
        kept = [
            Reading(r["name"], r["value"], r.get("low", r["value"]), r.get("high", r["value"])) for r in one["readings"]
        ]
        if one["readings"] and one["verdict"] != "not decided":
            assert verdict(claim.criterion, Measured(kept))[0] == one["verdict"]


def test_examined_keeps_the_worst_reading_in_front():
    found = examine.examined(by_id("koala-kalman"), QUICK)
    assert found["headline"]["value"] == max(reading["value"] for reading in found["readings"])
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert LODO  # what the claims are measured with is the library's
