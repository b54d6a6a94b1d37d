"""Intervals over seeds, by the bootstrap."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

CONFIDENCE = 0.95
RESAMPLES = 9999


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and its 95 % interval; the bounds are None where fewer than two numbers give none."""

    mean: float
    low: float | None
    high: float | None
    count: int

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def interval(values: Sequence[float]) -> Interval | None:
    """The mean and its bias-corrected and accelerated (BCa) interval (Efron, 1987); None of no values.

    Where BCa is not defined (all values but one are equal, say) it is the percentile interval.
    """
    if not values:
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
                (sample,), np.mean, confidence_level=CONFIDENCE, n_resamples=RESAMPLES, method=method, rng=0
            ).confidence_interval
        if np.isfinite(bounds.low) and np.isfinite(bounds.high):
            break
    return Interval(mean, float(bounds.low), float(bounds.high), len(sample))


def band(curves: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean and 95 % percentile interval at every point, resampling whole curves, shape (seeds, points)."""
    picks = np.random.default_rng(0).integers(len(curves), size=(2000, len(curves)))
    means = curves[picks].mean(axis=1)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(means, [tail, 100 - tail], axis=0)
    return curves.mean(axis=0), low, high
