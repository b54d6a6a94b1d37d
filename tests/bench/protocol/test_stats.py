"""Intervals and tests: what they cover, what they promise, and what they do where there is little to say."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from fallline.bench.protocol.stats import (
    EXACT,
    RESAMPLES,
    _signs,
    band,
    censored_median,
    detectable,
    expected_best,
    expected_best_band,
    fewest_seeds,
    holm,
    interval,
    iqm,
    performance_profile,
    probability_of_improvement,
    seeds_needed,
    share_interval,
    sign_flip,
    sign_test,
    smallest_p,
    stratified_interval,
)


def test_the_interval_covers_the_truth_about_as_often_as_it_says(monkeypatch):
    monkeypatch.setattr("fallline.bench.protocol.stats.RESAMPLES", 999)
    draws = np.random.default_rng(0).normal(3.0, 1.0, size=(300, 20))
    found = [interval(list(row)) for row in draws]
    covered = np.mean([one.low <= 3.0 <= one.high for one in found])
    assert 0.90 <= covered <= 0.97  # the bootstrap of 20 numbers is known to fall a little short of 95 %
    width = np.mean([one.high - one.low for one in found])
    assert width == pytest.approx(2 * 1.96 / 20**0.5, rel=0.1)


def test_a_skewed_sample_has_a_skewed_interval():
    values = [0.1] * 4 + [0.12] * 4 + [0.2, 2.3]
    found = interval(values)
    assert found.mean == pytest.approx(np.mean(values))
    assert found.high - found.mean > 1.5 * (found.mean - found.low)
    assert found == interval(values)  # the resampling has a seed


def test_little_to_say():
    assert interval([]) is None
    assert (interval([2.0]).mean, interval([2.0]).low) == (2.0, None)
    assert (interval([2.0, 2.0]).low, interval([2.0, 2.0]).high) == (2.0, 2.0)
    nearly = interval([1.0] * 9 + [1.0 + 1e-12])  # where BCa is hardly defined
    assert nearly.low == pytest.approx(1.0)
    assert nearly.high == pytest.approx(1.0)


def test_zero_inside_or_outside():
    assert interval([0.9, 1.0, 1.1, 1.05]).excludes_zero
    assert interval([-0.9, -1.0, -1.1, -1.05]).excludes_zero
    assert not interval([-1.0, 1.0, -0.5, 0.6]).excludes_zero
    assert not interval([1.0]).excludes_zero


def test_the_band_is_that_of_the_mean():
    curves = np.random.default_rng(1).normal([1.0, 2.0, 3.0], 0.5, size=(400, 3))
    mean, low, high = band(curves)
    assert mean == pytest.approx(curves.mean(axis=0))
    assert high - low == pytest.approx(np.full(3, 2 * 1.96 * 0.5 / 20), rel=0.15)
    alone, low, high = band(curves[:1])
    assert (low == alone).all()
    assert (high == alone).all()


def test_few_seeds_only_describe():
    assert interval(range(7)).descriptive
    assert not interval(range(8)).descriptive


def test_more_confidence_is_wider():
    values = np.random.default_rng(2).normal(size=12)
    narrow, wide = interval(values), interval(values, confidence=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high
    assert wide.mean == narrow.mean


# --- the test of a difference ---


@pytest.mark.parametrize("n", range(2, 11))
def test_the_sign_flip_p_is_scipys(n):
    rng = np.random.default_rng(n)
    for sample in (rng.normal(0.4, 1.0, n), rng.exponential(size=n) - 1.0, rng.integers(-3, 4, n) / 10):
        theirs = scipy.stats.permutation_test(
            (sample,), np.mean, permutation_type="samples", vectorized=True, n_resamples=np.inf
        )
        assert sign_flip(sample) == pytest.approx(theirs.pvalue, abs=1e-12)


def test_flips_that_tie_in_exact_arithmetic_count():
    # Multiples of 0.1, whose floating-point sums depend on the order; counted here in whole numbers.
    tenths = [1, 2, 3, -3, 7, -1, 4, 2]
    flipped = [abs(sum(np.multiply(signs, tenths))) for signs in itertools.product((1, -1), repeat=len(tenths))]
    assert sign_flip([one / 10 for one in tenths]) == np.mean([one >= abs(sum(tenths)) for one in flipped])


def test_the_smallest_p():
    assert [smallest_p(n) for n in (1, 5, 6, 8, 10)] == [1.0, 0.0625, 0.03125, 0.0078125, 0.001953125]
    assert all(sign_flip([0.3] * n) == smallest_p(n) for n in range(1, EXACT + 1))
    assert sign_flip([]) == sign_flip([0.0] * 6) == sign_flip([1.0, -1.0]) == 1.0


def test_random_flips_agree_with_all_flips(monkeypatch):
    samples = np.random.default_rng(3).normal(0.4, 1.0, size=(20, 12))
    exact = [sign_flip(sample) for sample in samples]
    monkeypatch.setattr("fallline.bench.protocol.stats.EXACT", 10)
    _signs.cache_clear()
    drawn = [sign_flip(sample) for sample in samples]
    _signs.cache_clear()
    assert drawn != exact
    assert drawn == pytest.approx(exact, abs=4 * 0.5 / RESAMPLES**0.5)


def test_random_flips_never_give_nought():
    assert sign_flip([1.0] * 40) == 1 / (RESAMPLES + 1)
    assert sign_flip([1.0, 1.3] * 20) == sign_flip([1.0, 1.3] * 20)


@pytest.mark.parametrize(("comparisons", "fewest"), [(1, 6), (6, 8), (7, 9), (28, 11)])
def test_the_fewest_seeds_that_can_tell(comparisons, fewest):
    assert fewest_seeds(0.05, comparisons) == fewest
    assert smallest_p(fewest) * comparisons <= 0.05 < smallest_p(fewest - 1) * comparisons


def test_the_sign_test():
    assert sign_test(0, 0) == sign_test(3, 3) == 1.0
    assert sign_test(8, 0) == sign_test(0, 8) == smallest_p(8)
    assert sign_test(1, 7) == pytest.approx(2 * (1 + 8) / 2**8)


def test_holm_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04, times 4, 3, 2, 1: 0.02, 0.03, 0.06 and 0.04, which may not fall below 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.3]) == [0.3]
    assert holm([]) == []


def test_holm_is_the_closed_test_of_bonferroni():
    # By closure: a hypothesis is rejected where each set of hypotheses that holds it is (Marcus et al., 1976).
    for seed in range(20):
        ps = list(np.random.default_rng(seed).uniform(0, 0.5, size=5).round(1 + seed % 3))  # with ties
        sets = [chosen for size in range(1, 6) for chosen in itertools.combinations(range(5), size)]
        closed = [max(min(1.0, len(s) * min(ps[j] for j in s)) for s in sets if i in s) for i in range(5)]
        assert holm(ps) == pytest.approx(closed)


def test_what_seeds_can_detect():
    assert detectable(1.0, 1_000_000) == pytest.approx(2.8016e-3, abs=1e-6)  # the normal quantiles' sum
    assert detectable(0.0046, 10) == pytest.approx(0.0046 * (2.2622 + 0.8834) / 10**0.5, abs=1e-6)
    assert detectable(1.0, 25, alpha=0.01, power=0.9) == pytest.approx((2.7969 + 1.3178) / 5, abs=1e-4)


def test_a_detectable_difference_is_found_four_times_in_five():
    rng = np.random.default_rng(4)
    for n in (10, 40):
        samples = rng.normal(detectable(1.0, n), 1.0, (800, n))
        assert np.mean([sign_flip(d) <= 0.05 for d in samples]) == pytest.approx(0.8, abs=0.045)  # 3 standard errors


def test_how_many_seeds_would_settle_it():
    # Found: ((2.035 + 0.853) / 0.5)^2 = 33.4; within the band: (1.96 * 1 / (2 - 0.5))^2 = 1.7, and at least 8.
    assert seeds_needed(0.5, 1.0, 0.0, 10) == seeds_needed(-0.5, 1.0, 0.3, 10) == 34
    assert seeds_needed(0.5, 1.0, 0.9, 10) == 25
    assert seeds_needed(0.5, 1.0, 2.0, 5) == 8
    assert seeds_needed(0.5, 1.0, 2.0, 10) == 11  # as many as there were did not do
    assert seeds_needed(5.0, 1.0, 0.0, 5, rivals=7) == 9  # what Holm asks
    many = seeds_needed(0.5, 1.0, 0.0, 10, rivals=7)
    assert detectable(1.0, many, 0.05 / 7) <= 0.5 < detectable(1.0, many - 1, 0.05 / 7)
    assert seeds_needed(0.0, 1.0, 0.0, 10) is None
    assert seeds_needed(0.05, 1.0, 0.0, 10) is None
    assert seeds_needed(0.0, 0.0, 1.0, 8) == 9
    n = seeds_needed(0.1, 1.0, 0.0, 10)
    assert detectable(1.0, n) <= 0.1 < detectable(1.0, n - 1)


# --- trials ---


def best_by_enumeration(scores, validations):
    """The mean score over every subset of K trials, of the one whose validation is lowest; ties share."""
    curve = []
    for tries in range(1, len(scores) + 1):
        means = []
        for chosen in itertools.combinations(range(len(scores)), tries):
            lowest = min(validations[i] for i in chosen)
            means.append(np.mean([scores[i] for i in chosen if validations[i] == lowest]))
        curve.append(np.mean(means))
    return curve


def test_the_best_of_k_is_that_of_all_subsets():
    rng = np.random.default_rng(5)
    for n in range(1, 9):
        scores = rng.normal(size=n)
        validations = scores + rng.normal(size=n)
        ties = rng.integers(3, size=n).astype(float)
        assert expected_best(scores) == pytest.approx(best_by_enumeration(scores, scores))
        assert expected_best(scores, validations) == pytest.approx(best_by_enumeration(scores, validations))
        assert expected_best(scores, ties) == pytest.approx(best_by_enumeration(scores, ties))


def test_a_diverged_trial_weighs_while_it_can_be_the_best():
    scores = [3.0, math.inf, 1.0, math.nan]
    assert expected_best(scores) == pytest.approx([math.inf, math.inf, 0.75 * 1 + 0.25 * 3, 1.0])
    scores, validations = [3.0, math.inf, 1.0, 2.0], [0.1, 0.2, 0.3, 0.4]
    assert expected_best(scores, validations) == pytest.approx(best_by_enumeration(scores, validations))
    low, high = expected_best_band([1.0, math.inf, 2.0, 3.0])
    assert not np.isnan([low, high]).any()
    assert (low <= high).all()


def test_the_best_of_a_thousand_does_not_overflow():
    curve = expected_best(np.arange(1000.0))
    assert curve[[0, -1]] == pytest.approx([499.5, 0.0])
    assert curve == pytest.approx(1001 / np.arange(2, 1002) - 1)  # the mean minimum of K from 0..N-1
    assert (np.diff(curve) < 0).all()


def test_the_band_of_the_best_of_k_covers_it():
    rng = np.random.default_rng(6)
    truth = [0.5, 1 / 6]  # of one, and of five, from the uniform distribution
    bands = [expected_best_band(rng.uniform(size=40)) for _ in range(100)]
    covered = np.mean([(low[[0, 4]] <= truth) & (truth <= high[[0, 4]]) for low, high in bands], axis=0)
    assert (covered >= 0.88).all()
    scores = rng.uniform(size=20)
    for low, high in (expected_best_band(scores), expected_best_band(scores, scores)):
        assert (low <= expected_best(scores)).all()
        assert (expected_best(scores) <= high).all()
    assert np.array_equal(expected_best_band(scores), expected_best_band(scores, scores))


# --- over tasks: the definitions of Agarwal et al. (2021), written out ---


def tasks(seed, *counts, shift=0.0):
    rng = np.random.default_rng(seed)
    return [list(rng.lognormal(place / 3 + shift, 0.5, size=n)) for place, n in enumerate(counts)]


def test_the_iqm_is_the_mean_of_the_middle_half():
    scores = tasks(7, 8, 8, 8)
    pooled = sorted(itertools.chain.from_iterable(scores))
    assert iqm(scores) == pytest.approx(np.mean(pooled[6:18]))
    assert iqm(scores) == pytest.approx(scipy.stats.trim_mean(np.array(scores), 0.25, axis=None))
    assert iqm([[1.0, 2.0, 3.0], [math.inf]]) == 2.5


def test_the_stratified_interval_resamples_within_tasks():
    scores = tasks(8, 10, 6, 10)
    found = stratified_interval(scores, iqm)
    rng = np.random.default_rng(99)
    drawn = [iqm([rng.choice(task, size=len(task)) for task in scores]) for _ in range(4000)]
    assert found.mean == pytest.approx(float(iqm(scores)))
    assert [found.low, found.high] == pytest.approx(np.percentile(drawn, [2.5, 97.5]), rel=0.03)
    assert found.count == 26
    assert found == stratified_interval(scores)
    # Seeds that agree leave nothing to resample, however far the tasks lie apart.
    alike = stratified_interval([[1.0] * 5, [9.0] * 5])
    assert alike.low == alike.mean == alike.high == 5.0


def test_the_performance_profile_is_the_share_of_runs():
    ratios = [[1.0, 1.5, 2.0, math.inf], [1.0, 3.0], [math.inf, math.inf, 2.0]]
    taus = [0.5, 1.0, 2.0, 3.0, 1e9]
    mean, low, high = performance_profile(ratios, taus)
    by_hand = [np.mean([sum(ratio <= tau for ratio in task) / len(task) for task in ratios]) for tau in taus]
    assert mean == pytest.approx(by_hand)
    assert (low <= mean + 1e-12).all()
    assert (mean <= high + 1e-12).all()
    assert (np.diff(low) >= 0).all()
    assert (np.diff(high) >= 0).all()


def test_the_band_of_the_profile_is_over_tasks_and_seeds():
    ratios = tasks(9, 10, 7, 10, 10)
    _, low, high = performance_profile(ratios, [1.0, 2.0])
    rng = np.random.default_rng(98)
    drawn = []
    for _ in range(4000):
        chosen = [ratios[i] for i in rng.integers(4, size=4)]
        resampled = [rng.choice(task, size=len(task)) for task in chosen]
        drawn.append([np.mean([np.mean(task <= tau) for task in resampled]) for tau in (1.0, 2.0)])
    assert np.array([low, high]) == pytest.approx(np.percentile(drawn, [2.5, 97.5], axis=0), abs=0.02)


def test_the_probability_of_improvement_is_mann_whitneys():
    x, y = tasks(10, 8, 5, 10), tasks(11, 8, 6, 9, shift=0.3)
    x[0][2] = y[0][4] = y[0][5] = 1.25  # a tie
    found = probability_of_improvement(x, y)
    # scipy's U counts the pairs in which its first sample is larger: ours is the one that is lower.
    by_scipy = [scipy.stats.mannwhitneyu(b, a).statistic / (len(a) * len(b)) for a, b in zip(x, y, strict=True)]
    assert found.mean == pytest.approx(np.mean(by_scipy))
    assert probability_of_improvement(y, x).mean == pytest.approx(1 - found.mean)
    assert probability_of_improvement(x, x).mean == pytest.approx(0.5)
    assert probability_of_improvement([[1.0, 2.0]], [[3.0, math.inf]]).mean == 1.0
    rng = np.random.default_rng(97)
    drawn = []
    for _ in range(3000):
        pairs = [(rng.choice(a, len(a)), rng.choice(b, len(b))) for a, b in zip(x, y, strict=True)]
        drawn.append(np.mean([np.mean((a[:, None] < b) + 0.5 * (a[:, None] == b)) for a, b in pairs]))
    assert [found.low, found.high] == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.02)


def test_a_task_without_runs_has_no_statistic():
    for call in (stratified_interval, lambda scores: performance_profile(scores, [1.0])):
        with pytest.raises(ValueError, match="a run of each"):
            call([[1.0], []])


# --- shares and medians ---


def test_an_exact_share():
    assert share_interval(0, 0) is None
    none = share_interval(0, 10)
    assert (none.mean, none.low, none.count) == (0.0, 0.0, 10)
    assert none.high == pytest.approx(1 - 0.025**0.1)  # closed form: (1 - p)^10 = 2.5 %
    some = share_interval(3, 20)
    assert scipy.stats.binom.sf(2, 20, some.low) == pytest.approx(0.025)
    assert scipy.stats.binom.cdf(3, 20, some.high) == pytest.approx(0.025)


def test_a_median_that_may_be_censored():
    inf = math.inf
    assert censored_median([3.0, inf, 1.0]) == 3.0
    assert censored_median([1.0, 2.0, 4.0, inf]) == 3.0
    assert censored_median([1.0, 2.0, inf, inf]) == inf
    assert censored_median([inf]) == censored_median([]) == inf
