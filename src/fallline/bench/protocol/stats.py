"""Statistics of seeds, trials and tasks: intervals, a paired test, and sums over tasks. Numbers in, numbers out."""

import functools
import itertools
import math
import statistics
import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest, bootstrap, norm, t, trim_mean

Array = NDArray[np.float64]

CONFIDENCE = 0.95
ALPHA = 0.05
"""The error rate of a family of claims."""

RESAMPLES = 9999
FEW = 8
"""Below so many numbers the bounds of a bootstrap describe what was seen, and promise nothing."""

MOST_SEEDS = 1000
"""More seeds than this are not worth a proposal."""

EXACT = 14
"""Up to so many differences every flip of the signs is tried."""

BAND_RESAMPLES = 2000


def root_mean_square(values: Iterable[float | None]) -> float | None:
    """The root mean square of the known values; None if none is known."""
    known = [value for value in values if value is not None]
    return math.sqrt(statistics.fmean(value**2 for value in known)) if known else None


def standard_error(differences: Sequence[float]) -> float | None:
    """The standard error of the mean; None of fewer than two numbers."""
    return statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else None


# --- one sample of seeds ---


@dataclass(frozen=True)
class Interval:
    """A mean over seeds (or the statistic named) and its 95 % interval; the bounds are None where there is none."""

    mean: float
    low: float | None
    high: float | None
    count: int

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    @property
    def descriptive(self) -> bool:
        """Whether the numbers are too few for the bounds to mean what they say."""
        return self.count < FEW


def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval | None:
    """The mean and its bias-corrected and accelerated (BCa) interval (Efron, 1987); None of no values.

    Where BCa is not defined (all values but one are equal, say) it is the percentile interval.
    """
    if len(values) == 0:
        return None
    sample = np.asarray(values, dtype=np.float64)
    mean = float(sample.mean())
    if len(sample) < 2:
        return Interval(mean, None, None, len(sample))
    if np.ptp(sample) == 0:
        return Interval(mean, mean, mean, len(sample))
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # BCa warns where it is not defined, and returns NaN
            bounds = bootstrap(
                (sample,), np.mean, confidence_level=confidence, n_resamples=RESAMPLES, method=method, rng=0
            ).confidence_interval
        if np.isfinite(bounds.low) and np.isfinite(bounds.high):
            break
    return Interval(mean, float(bounds.low), float(bounds.high), len(sample))


def band(curves: Array) -> tuple[Array, Array, Array]:
    """Mean and 95 % percentile interval at every point, resampling whole curves, shape (seeds, points)."""
    means = _weights(np.random.default_rng(0), BAND_RESAMPLES, len(curves)) @ curves
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(means, [tail, 100 - tail], axis=0)
    return curves.mean(axis=0), low, high


def share_interval(hits: int, count: int) -> Interval | None:
    """A share and its exact 95 % interval (Clopper & Pearson, 1934); None of nothing."""
    if count == 0:
        return None
    bounds = binomtest(hits, count).proportion_ci(CONFIDENCE, method="exact")
    return Interval(hits / count, float(bounds.low), float(bounds.high), count)


def censored_median(values: Sequence[float]) -> float:
    """The median where inf stands for "not within the horizon"; inf where the median itself is not known."""
    return float(statistics.median(values)) if len(values) else math.inf


# --- is there a difference, and how many seeds would tell ---


def sign_flip(differences: Sequence[float]) -> float:
    """Two-sided p of the paired sign-flip test of the mean (Fisher, 1935); 1 of no differences.

    Every flip is tried up to `EXACT` differences, `RESAMPLES` random ones beyond; these count the flip that was seen
    too, without which p could be 0 (Phipson & Smyth, 2010).
    """
    sample = np.asarray(differences, dtype=np.float64)
    n = len(sample)
    if n == 0:
        return 1.0
    # Flips that tie with what was seen, in exact arithmetic, must count: sums in another order differ by rounding.
    seen = abs(sample.sum()) - 1e-12 * np.abs(sample).sum()
    extreme = np.abs(_signs(n) @ sample) >= seen
    return float(extreme.mean()) if n <= EXACT else float((1 + extreme.sum()) / (1 + len(extreme)))


@functools.lru_cache(maxsize=64)
def _signs(n: int) -> Array:
    """Flips of n signs, one a row: all with the first left as it is (the others mirror them), or random ones."""
    if n > EXACT:
        flips = np.random.default_rng(0).integers(2, size=(RESAMPLES, n))
    else:
        flips = np.arange(2 ** (n - 1))[:, None] >> np.arange(n)[::-1] & 1
    return 1 - 2 * flips.astype(np.float64)


def smallest_p(n: int) -> float:
    """The smallest p that the sign-flip test of n differences can give."""
    return 2.0 ** (1 - max(n, 1))


def fewest_seeds(alpha: float, comparisons: int = 1) -> int:
    """The fewest seeds with which the sign-flip test can reach `alpha` after Holm's adjustment."""
    return next(n for n in itertools.count(1) if smallest_p(n) * comparisons <= alpha)


def sign_test(mine: int, theirs: int) -> float:
    """Two-sided p of the sign test, where so many pairs point to one side and so many to the other."""
    return float(binomtest(mine, mine + theirs).pvalue) if mine + theirs else 1.0


def holm(ps: Sequence[float]) -> list[float]:
    """The p-values adjusted for their number, in their order (Holm, 1979)."""
    adjusted = [0.0] * len(ps)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda place: ps[place])):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = highest
    return adjusted


def detectable(sd: float, n: int, alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest mean difference that n > 1 pairs of this standard deviation find with this power.

    With Student's quantiles: 3.15 sd / sqrt n for 10 pairs. The normal ones' 2.8 flatter few seeds: the sign-flip test
    finds a difference of that size in 70 % of samples of 10.
    """
    return float(t.ppf(1 - alpha / 2, n - 1) + t.ppf(power, n - 1)) * sd / math.sqrt(n)


def seeds_needed(
    mean: float, sd: float, margin: float, n: int, alpha: float = 0.05, rivals: int = 1, power: float = 0.8
) -> int | None:
    """How many seeds in total would settle a difference that n seeds did not, were it just as it looks.

    Settled means found by the test, at the level that Holm asks of the first of `rivals`, or shown to lie within
    the margin. None where more than `MOST_SEEDS` are needed.
    """
    wanted = bisect_left(
        range(MOST_SEEDS + 1), -abs(mean), lo=2, key=lambda n: -detectable(sd, n, alpha / rivals, power)
    )
    if abs(mean) < margin:
        within = (float(norm.ppf(1 - alpha / 2)) * sd / (margin - abs(mean))) ** 2
        wanted = min(wanted, max(FEW, math.ceil(min(within, MOST_SEEDS + 1))))
    total = max(wanted, fewest_seeds(alpha, rivals), n + 1)
    return total if total <= MOST_SEEDS else None


# --- trials: what tuning bought ---


def expected_best(scores: Sequence[float], validations: Sequence[float] | None = None) -> Array:
    """The expected score of the best of K trials, drawn without replacement from these N, for K = 1..N.

    The lowest wins, by its validation where given; ties are broken at random. A diverged trial counts inf, and so
    does each K at which the best can be one.
    """
    found = _lost_as_inf(scores)
    if validations is None:
        ranked = np.sort(found)
    else:
        order, places = np.unique(_lost_as_inf(validations), return_inverse=True)
        fair = np.array([found[places == place].mean() for place in range(len(order))])
        ranked = fair[np.sort(places)]
    best: Array = _best_of(ranked[None])[0]
    return best


def expected_best_band(scores: Sequence[float], validations: Sequence[float] | None = None) -> tuple[Array, Array]:
    """The 95 % percentile band of `expected_best`, low and high, resampling trials."""
    found = _lost_as_inf(scores)
    ranks = found if validations is None else _lost_as_inf(validations)
    picks = np.random.default_rng(0).integers(len(found), size=(BAND_RESAMPLES, len(found)))
    order = np.argsort(ranks[picks], axis=1, kind="stable")  # among ties the first comes first, and that is at random
    return _bounds(_best_of(np.take_along_axis(found[picks], order, axis=1)))


def _lost_as_inf(values: Sequence[float]) -> Array:
    found = np.asarray(values, dtype=np.float64)
    return np.where(np.isnan(found), np.inf, found)


def _best_of(ranked: Array) -> Array:
    """The expectation over which trial is the best of K; rows of N scores, best first, to rows over K = 1..N."""
    count = ranked.shape[1]
    tries = np.arange(1, count + 1)
    # The chance that the i-th is the best of K is C(N-1-i, K-1) / C(N, K): K/N for the first, then a product of
    # shares, which cannot overflow.
    i = np.arange(count - 1)[:, None]
    shares = np.maximum(0, count - i - tries) / (count - 1 - i)
    chances = np.cumprod(np.vstack([tries[None] / count, shares]), axis=0)
    lost = np.isinf(ranked)
    best = np.where(lost, 0.0, ranked) @ chances
    last = np.where(lost.any(axis=1), count - lost.argmax(axis=1), 0)  # the largest K whose best can be lost
    best[tries[None] <= last[:, None]] = np.inf
    return best


# --- over tasks, after Agarwal et al. (2021) ---


def iqm(scores_by_task: Sequence[ArrayLike]) -> Array:
    """The mean of the middle half of all scores, tasks pooled; seeds are the last axis."""
    pooled = np.concatenate([np.asarray(scores, dtype=np.float64) for scores in scores_by_task], axis=-1)
    trimmed: Array = trim_mean(pooled, 0.25, axis=-1)
    return trimmed


def stratified_interval(
    scores_by_task: Sequence[Sequence[float]], statistic: Callable[[Sequence[Array]], Array] = iqm
) -> Interval:
    """A statistic over tasks and its 95 % percentile interval, resampling seeds within each task.

    `statistic` takes one array a task, seeds last, and keeps the axes before: it sees all resamples in one call.
    """
    rng = np.random.default_rng(0)
    tasks = _tasks(scores_by_task)
    resampled = [scores[rng.integers(len(scores), size=(BAND_RESAMPLES, len(scores)))] for scores in tasks]
    return _around(float(statistic(tasks)), statistic(resampled), sum(len(scores) for scores in tasks))


def performance_profile(ratios_by_task: Sequence[Sequence[float]], taus: Sequence[float]) -> tuple[Array, Array, Array]:
    """The share of runs with a ratio of at most tau (inf: missed), averaged over tasks, and its 95 % percentile band.

    The band resamples tasks, and the seeds of each (Dolan & Moré, 2002; the band of Agarwal et al. keeps the tasks).
    """
    rng = np.random.default_rng(0)
    tasks = _tasks(ratios_by_task)
    hits = [(ratios[:, None] <= np.asarray(taus)).astype(np.float64) for ratios in tasks]
    mean = np.mean([hit.mean(axis=0) for hit in hits], axis=0)
    chosen = rng.integers(len(tasks), size=(BAND_RESAMPLES, len(tasks)))
    shares = np.empty((*chosen.shape, len(taus)))
    for number, hit in enumerate(hits):
        here = chosen == number
        shares[here] = _weights(rng, int(here.sum()), len(hit)) @ hit
    low, high = _bounds(shares.mean(axis=1))
    return mean, low, high


def probability_of_improvement(x_by_task: Sequence[Sequence[float]], y_by_task: Sequence[Sequence[float]]) -> Interval:
    """How probably a run of x has a LOWER score than one of y on the same task, ties half, averaged over tasks.

    This is Mann and Whitney's U as a share of all pairs of runs; the 95 % percentile interval resamples the seeds of
    both within each task.
    """
    rng = np.random.default_rng(0)
    mean, resampled, count = 0.0, np.zeros(BAND_RESAMPLES), 0
    for x, y in zip(_tasks(x_by_task), _tasks(y_by_task), strict=True):
        wins = (x[:, None] < y) + 0.5 * (x[:, None] == y)
        mean += float(wins.mean()) / len(x_by_task)
        drawn = (_weights(rng, BAND_RESAMPLES, len(x)) @ wins) * _weights(rng, BAND_RESAMPLES, len(y))
        resampled += drawn.sum(axis=1) / len(x_by_task)
        count += min(len(x), len(y))
    return _around(mean, resampled, count)


def _tasks(scores_by_task: Sequence[Sequence[float]]) -> list[Array]:
    tasks = [np.asarray(scores, dtype=np.float64) for scores in scores_by_task]
    if not tasks or not all(len(scores) for scores in tasks):
        raise ValueError("a statistic over tasks needs a task, and a run of each")
    return tasks


def _weights(rng: np.random.Generator, times: int, count: int) -> Array:
    """What each of `count` numbers weighs in a resample's mean, shape (times, count)."""
    return rng.multinomial(count, np.full(count, 1 / count), size=times) / count


def _bounds(resampled: Array) -> tuple[Array, Array]:
    """The 95 % percentile bounds over the first axis; none is interpolated, since some may be infinite."""
    tail = (1 - CONFIDENCE) / 2
    return np.quantile(resampled, tail, axis=0, method="lower"), np.quantile(
        resampled, 1 - tail, axis=0, method="higher"
    )


def _around(value: float, resampled: Array, count: int) -> Interval:
    low, high = _bounds(resampled)
    return Interval(value, float(low), float(high), count)
