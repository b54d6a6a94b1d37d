"""The verdict: how often it errs, how often it finds what is there, and each word where it is due."""

import math
from itertools import combinations

import numpy as np
import pytest

from fallline.bench.protocol.stats import detectable, fewest_seeds, interval, seeds_needed, share_interval, sign_flip
from fallline.bench.protocol.verdict import Pairs, descriptive, judge, matrix, words

CLAIMS = {"better", "worse"}
TENTHS = [-0.10, -0.12, -0.09, -0.11, -0.14, -0.08, -0.10, -0.13, -0.07, -0.11]
"""Ten paired differences, all to one side: the smallest p there is."""


def by_seed(losses):
    return dict(enumerate(losses))


def against(*differences, base=1.0):
    """A pair with these differences; None where mine was lost."""
    mine = [None if one is None else base + one for one in differences]
    return Pairs(by_seed(mine), dict.fromkeys(range(len(differences)), base))


def alone(*differences, margin=0.0, **how):
    return judge({"a": against(*differences)}, margin, **how)["a"]


# --- how often it errs ---


def family(rng, seeds, rivals=5, shape=np.asarray):
    """Losses without a true difference, (1 + rivals, seeds); the seed makes them alike, correlation 0.3."""
    return shape(0.3**0.5 * rng.normal(size=seeds) + 0.7**0.5 * rng.normal(size=(1 + rivals, seeds)))


def pairs_of(losses):
    return {str(i): Pairs(by_seed(row), by_seed(losses[0])) for i, row in enumerate(losses[1:])}


def errs(losses, looks=1):
    return not CLAIMS.isdisjoint(words(pairs_of(losses), margin=0.0, looks=looks).values())


@pytest.mark.parametrize("shape", [np.asarray, np.exp], ids=["normal", "lognormal"])
def test_a_race_without_a_difference_is_called_a_win_in_at_most_one_of_twenty(shape):
    rng = np.random.default_rng(0)
    families = [family(rng, 10, shape=shape) for _ in range(400)]
    assert share_interval(sum(map(errs, families)), 400).low <= 0.05
    # The same simulation convicts a rule that forgets how many rivals it compares.
    unadjusted = sum(any(sign_flip(row - losses[0]) <= 0.05 for row in losses[1:]) for losses in families)
    assert share_interval(unadjusted, 400).low > 0.10


def test_planned_looks_keep_the_error_rate_and_unplanned_ones_do_not():
    rng = np.random.default_rng(1)
    families = [family(rng, 40, shape=np.exp) for _ in range(400)]

    def erred(looks):  # a look after 10, 20 and 40 seeds, until something is claimed
        return sum(any(errs(losses[:, :n], looks) for n in (10, 20, 40)) for losses in families)

    assert share_interval(erred(3), 400).low <= 0.05
    assert share_interval(erred(1), 400).low > 0.05


def test_seeds_that_are_lost_do_not_bend_the_error_rate():
    rng = np.random.default_rng(2)
    for rate in (0.1, 0.5, 0.9):  # by who finished, by both, by who lost the seed
        erred = 0
        for _ in range(300):
            losses = family(rng, 12, rivals=3)
            losses[rng.random(losses.shape) < rate] = math.nan
            erred += errs(losses)
        assert share_interval(erred, 300).low <= 0.05


def test_a_matrix_without_a_difference_errs_in_at_most_one_of_twenty():
    rng = np.random.default_rng(3)
    erred = 0
    for _ in range(100):
        found = matrix({str(i): by_seed(row) for i, row in enumerate(family(rng, 12, rivals=2))}, margin=0.0)
        erred += not CLAIMS.isdisjoint(verdict.word for verdict in found.values())
    assert share_interval(erred, 100).low <= 0.05


# --- how often it finds what is there ---


def test_a_detectable_difference_is_found_four_times_in_five():
    rng = np.random.default_rng(4)
    n = 40
    found = [words({"a": against(*rng.normal(-detectable(1.0, n), 1.0, n))}, margin=0.0)["a"] for _ in range(200)]
    assert set(found) == {"better", "no evidence"}
    assert np.mean([word == "better" for word in found]) == pytest.approx(0.8, abs=0.09)  # three standard errors


def test_the_seeds_needed_settle_it_mostly():
    rng = np.random.default_rng(5)
    n = seeds_needed(0.5, 1.0, 0.0, 10)
    found = [words({"a": against(*rng.normal(0.5, 1.0, n))}, margin=0.0)["a"] for _ in range(200)]
    assert 0.65 <= np.mean([word == "worse" for word in found]) <= 0.9


# --- each word ---


def test_better_and_worse():
    found = judge({"a": against(*TENTHS), "b": against(*(-one for one in TENTHS))}, margin=0.01)
    assert (found["a"].word, found["b"].word) == ("better", "worse")
    better = found["a"]
    assert better.difference == interval(np.asarray(TENTHS) + 1.0 - 1.0)
    assert (better.p, better.adjusted) == (2**-9, 2**-8)
    assert better.why == "p 0.00391 after Holm"
    assert (better.needed, better.margin) == (None, 0.01)
    assert better.detectable == pytest.approx(detectable(np.std(TENTHS, ddof=1), 10, alpha=0.025))
    assert alone(*TENTHS).why == "p 0.00195"  # nothing to adjust for


def test_practically_equal():
    found = alone(*TENTHS, margin=0.2)  # a difference beyond doubt, and of no account
    assert found.word == "practically equal"
    assert found.difference.excludes_zero
    assert found.why == "the interval lies within ±0.2"
    assert found.needed is None
    assert alone(*[0.0] * 10, margin=0.01).word == "practically equal"
    assert alone(*[0.0] * 10, margin=0.0).word == "no evidence"  # a band of nought holds nothing


def test_the_whole_interval_must_lie_in_the_band():
    found = alone(*TENTHS)
    edge = -found.difference.low
    assert abs(found.difference.mean) < edge
    assert alone(*TENTHS, margin=edge * 1.001).word == "practically equal"
    assert alone(*TENTHS, margin=edge * 0.999).word == "better"


def test_equality_needs_an_interval_and_not_the_test():
    small = [one / 100 for one in TENTHS]
    many = {str(i): against(*small[:8]) for i in range(20)}  # the test takes 10 seeds against 20 rivals
    assert fewest_seeds(0.05, 20) == 10
    assert {verdict.word for verdict in judge(many, margin=0.02).values()} == {"practically equal"}
    few = alone(*small[:7], margin=0.02)
    assert few.word == "too few seeds"
    assert few.difference.descriptive
    assert few.why == "the interval lies within ±0.02, but 7 seeds cannot claim that; 8 can"
    assert few.needed == 8


def test_no_evidence():
    found = alone(0.3, -0.2, 0.1, -0.4, 0.5, -0.1, 0.2, 0.4, -0.3, 0.1, margin=0.05)
    assert found.word == "no evidence"
    assert found.why == f"p {found.p:.3g}"
    values = np.array([0.3, -0.2, 0.1, -0.4, 0.5, -0.1, 0.2, 0.4, -0.3, 0.1])
    assert found.needed == seeds_needed(values.mean(), values.std(ddof=1), 0.05, 10)
    assert found.needed > 10


def test_the_interval_must_exclude_zero_too():
    found = alone(0.4, 1.4, -1.3, 1.4, 1.1, 1.5, 1.3, 1.3)  # the test is content, the long tail is not
    assert found.word == "no evidence"
    assert found.p <= 0.05
    assert found.difference.low < 0 < found.difference.high
    assert found.why == "the interval holds zero, at p 0.0469"


def test_what_one_rival_shows_the_many_dilute():
    nearly = against(*TENTHS[:7], 0.1, -0.2, -0.1)
    assert judge({"a": nearly}, margin=0.0)["a"].word == "better"
    noise = np.random.default_rng(6).normal(size=(9, 10))
    found = judge({"a": nearly} | {str(i): against(*row) for i, row in enumerate(noise)}, margin=0.0)["a"]
    assert found.word == "no evidence"
    assert found.adjusted == 10 * found.p
    assert found.why == f"p {found.adjusted:.3g} after Holm"


def test_too_few_seeds():
    found = judge({str(i): against(*TENTHS[:5]) for i in range(6)}, margin=0.0)["0"]
    assert found.word == "too few seeds"
    assert found.why == "5 seeds cannot reach p 0.05 against 6 rivals; 8 can"
    assert (found.p, found.needed) == (2**-4, 8)
    assert found.difference.descriptive
    assert alone(*TENTHS[:5]).why == "5 seeds cannot reach p 0.05 against 1 rival; 6 can"
    assert alone(*TENTHS[:6]).word == "better"


def test_hardly_any_seeds():
    one = alone(-0.1)
    assert (one.word, one.difference.low, one.detectable, one.needed) == ("too few seeds", None, None, 6)
    assert one.why == "1 seed cannot reach p 0.05 against 1 rival; 6 can"
    none = judge({"a": Pairs({}, by_seed([1.0]))}, margin=0.0)["a"]
    assert (none.word, none.difference, none.p, none.adjusted, none.needed) == ("too few seeds", None, None, None, 6)
    assert judge({}, margin=0.0) == {}


def test_only_seeds_that_both_ran_are_compared():
    mine = by_seed([1.0 + one for one in TENTHS]) | {98: 50.0}
    theirs = dict.fromkeys(range(10), 1.0) | {99: None}
    assert judge({"a": Pairs(mine, theirs)}, margin=0.0) == {"a": alone(*TENTHS)}
    backwards = Pairs(dict(reversed(mine.items())), theirs)
    assert judge({"a": backwards}, margin=0.0) == {"a": alone(*TENTHS)}


def test_more_looks_ask_for_more():
    nearly = [-0.1] * 9 + [0.05]  # as extreme: these signs, those with the last one flipped, and the mirrors of both
    assert sign_flip(nearly) == 4 / 1024
    assert alone(*nearly, looks=3).word == "better"
    strict = alone(*nearly, looks=20)
    assert strict.word == "no evidence"
    assert strict.difference == alone(*nearly).difference  # what is shown stays the 95 % interval
    assert alone(*TENTHS[:7], looks=4).why == "7 seeds cannot reach p 0.013 against 1 rival; 8 can"
    edge = -alone(*TENTHS).difference.low * 1.001
    assert alone(*TENTHS, margin=edge).word == "practically equal"
    assert alone(*TENTHS, margin=edge, looks=10).word == "better"  # the wider interval leaves the band


def test_words_are_those_of_judge():
    rng = np.random.default_rng(7)
    for scale in (0.02, 0.3, 1.0):
        family = {str(i): against(*rng.normal(0.1 * i, scale, 10)) for i in range(-3, 4)}
        for looks in (1, 3):
            found = judge(family, margin=0.05, looks=looks)
            assert words(family, margin=0.05, looks=looks) == {name: verdict.word for name, verdict in found.items()}


# --- seeds that were lost ---


def test_who_loses_more_seeds_is_not_better():
    found = alone(*TENTHS, None, None)
    assert found.word == "no evidence"
    assert found.why == "it failed on 2 of 12 seeds"
    assert (found.p, found.needed) == (2**-9, None)
    assert found.difference.mean < 0
    for lost in (math.nan, math.inf):
        assert alone(*TENTHS, lost, lost) == found


def test_who_loses_more_seeds_may_be_worse():
    assert alone(*(-one for one in TENTHS), None, None).word == "worse"


def test_who_loses_more_seeds_is_not_equal():
    found = alone(*[0.0, 0.001] * 5, None, margin=0.1)
    assert (found.word, found.why) == ("no evidence", "it failed on 1 of 11 seeds")


def test_as_many_lost_on_either_side_change_nothing():
    mine = by_seed([None, 1.0, *(1 + one for one in TENTHS)])
    theirs = by_seed([1.0, None, *[1.0] * 10])
    found = judge({"a": Pairs(mine, theirs)}, margin=0.0)["a"]
    assert found.word == "better"
    assert found.difference.count == 10


def test_a_baseline_that_loses_more_seeds_is_not_better_either():
    mine = by_seed([1.0 - one for one in TENTHS] + [1.0, 1.0])
    theirs = by_seed([1.0] * 10 + [None, None])
    found = judge({"a": Pairs(mine, theirs)}, margin=0.0)["a"]
    assert (found.word, found.why) == ("no evidence", "the other failed on 2 of 12 seeds")


def test_every_seed_lost_is_worse():
    found = judge({"a": against(*[None] * 10), "b": against(*TENTHS)}, margin=0.1)["a"]
    assert (found.word, found.difference, found.why) == ("worse", None, "it failed on every seed")
    assert (found.p, found.adjusted, found.detectable, found.needed) == (2**-9, 2**-8, None, None)


def test_nearly_every_seed_lost_is_worse_however_well_the_rest_went():
    found = alone(*[None] * 8, -0.5, -0.5)
    assert (found.word, found.why) == ("worse", "it failed on 8 of 10 seeds")
    assert found.p == 2**-7
    assert found.difference.mean == pytest.approx(-0.5)


def test_every_one_of_a_few_seeds_lost_is_too_few():
    found = alone(None, None, None)
    assert found.word == "too few seeds"
    assert found.why == "it failed on every seed; 0 seeds cannot reach p 0.05 against 1 rival; 6 can"
    assert found.needed == 6


def test_seeds_that_are_lost_must_be_run_too():
    """8 of 10 seeds were finished by both; of 9 needed, or more, the same share will be."""
    found = judge({str(i): against(*TENTHS[:8], None, None) for i in range(7)}, margin=0.0)["0"]
    assert found.word == "too few seeds"
    assert found.why == "it failed on 2 of 10 seeds; 8 seeds cannot reach p 0.05 against 7 rivals; 9 can"
    assert found.needed == math.ceil(9 * 10 / 8)


def test_both_lost_every_seed():
    neither = dict.fromkeys(range(10))
    found = judge({"a": Pairs(neither, neither)}, margin=0.1)["a"]
    assert (found.word, found.why, found.p, found.needed) == ("no evidence", "neither finished a seed", None, None)


# --- the matrix ---


def losses_of_four(seeds=12):
    rng = np.random.default_rng(8)
    losses = {name: by_seed(rng.normal(place, 0.3, seeds)) for name, place in (("a", 0), ("b", 0), ("c", 2), ("d", 3))}
    losses["d"] |= {0: None, 1: None}
    return losses


def test_a_matrix_reads_the_same_from_both_sides():
    losses = losses_of_four()
    found = matrix(losses, margin=0.05)
    assert list(found) == [(a, b) for a in losses for b in losses if a != b]
    assert {verdict.word for verdict in found.values()} == {"better", "worse", "no evidence"}
    opposite = {"better": "worse", "worse": "better"}
    for a, b in combinations(losses, 2):
        one, other = found[a, b], found[b, a]
        assert other.word == opposite.get(one.word, one.word)
        assert other.difference.mean == -one.difference.mean
        assert (other.difference.low, other.difference.high) == (-one.difference.high, -one.difference.low)
        assert (other.p, other.adjusted, other.needed) == (one.p, one.adjusted, one.needed)
        assert other.detectable == pytest.approx(one.detectable)
        differences = [losses[a][i] - losses[b][i] for i in losses[a] if None not in (losses[a][i], losses[b][i])]
        assert one.difference == interval(differences)


def test_a_matrix_adjusts_for_all_pairs():
    found = matrix(losses_of_four(), margin=0.05)
    assert found["a", "c"].p == 2**-11
    assert found["a", "c"].adjusted == 6 * 2**-11
    few = matrix(losses_of_four(seeds=7), margin=0.05)["a", "c"]
    assert (few.word, few.why) == ("too few seeds", "7 seeds cannot reach p 0.05 in 6 pairs; 8 can")


def test_a_matrix_says_who_lost_the_seeds():
    found = matrix({"a": by_seed(np.arange(12.0)), "b": dict.fromkeys(range(12), 5.5) | {0: None}}, margin=0.0)
    assert found["a", "b"].why == "the other failed on 1 of 12 seeds"
    assert found["b", "a"].why == "it failed on 1 of 12 seeds"
    gone = matrix({"a": by_seed(np.arange(12.0)), "b": dict.fromkeys(range(12))}, margin=0.0)
    assert (gone["a", "b"].word, gone["a", "b"].why) == ("better", "the other failed on every seed")
    assert (gone["b", "a"].word, gone["b", "a"].why) == ("worse", "it failed on every seed")


def test_a_matrix_of_few_seeds_only_describes():
    assert descriptive(10)
    assert not descriptive(11)
    assert fewest_seeds(0.05, 28) == 11  # the pairs of eight optimizers
