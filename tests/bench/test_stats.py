"""Intervals: what they cover, and what they do where there is little to say."""

import numpy as np
import pytest

from fallline.bench.stats import band, interval


def test_the_interval_covers_the_truth_about_as_often_as_it_says(monkeypatch):
    monkeypatch.setattr("fallline.bench.stats.RESAMPLES", 999)
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
