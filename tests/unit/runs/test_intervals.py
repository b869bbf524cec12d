"""95 % intervals: known values, coverage on drawn data, and none where nothing can be said."""

import json
import math
import random
from statistics import fmean

import pytest

from mmrl_core.runs.intervals import mean_interval, metric_intervals


def test_a_share_has_wilsons_interval():
    # Worked by hand for 8 of 10: centre (0.8 + 3.8415 / 20) / (1 + 0.38415), reach as in Wilson 1927.
    assert mean_interval([1.0] * 8 + [0.0] * 2) == pytest.approx((0.49016, 0.94331), abs=1e-4)
    assert mean_interval([0.0] * 100) == (0.0, pytest.approx(0.03699, abs=1e-4))
    assert mean_interval([1.0] * 100) == (pytest.approx(0.96301, abs=1e-4), 1.0)


def test_another_mean_has_1_96_standard_errors():
    reach = 1.959964 * 0.645497  # the standard deviation is 1.290994, and four rows halve it
    assert mean_interval([1.0, 2.0, 3.0, 4.0]) == pytest.approx((2.5 - reach, 2.5 + reach), abs=1e-4)


@pytest.mark.parametrize("values", [[], [1.0], [0.2, 0.2, 0.2]])
def test_without_spread_there_is_none(values: list[float]):
    assert mean_interval(values) is None


def intervals_of(rows: list[float], metric):
    return metric_intervals(lambda places: {"m": metric([rows[place] for place in places])}, len(rows))


def test_the_interval_of_a_metric_covers_the_truth_in_95_of_100_samples():
    """Of a root mean square, which is no mean over rows; its truth for the normal distribution is 1."""
    rng = random.Random(0)
    hits = 0
    for _ in range(400):
        rows = [rng.gauss(0, 1) for _ in range(200)]
        low, high = intervals_of(rows, lambda some: math.sqrt(fmean(x * x for x in some)))["m"]
        hits += low < 1 < high
    assert 0.92 < hits / 400 < 0.98


def test_a_metric_that_is_a_share_of_rows_has_wilsons_interval():
    rows = [1.0] + [0.0] * 59
    assert intervals_of(rows, fmean)["m"] == mean_interval(rows)


def test_a_metric_that_is_never_negative_has_no_negative_edge():
    low, high = intervals_of([0.5] + [0.0] * 59, fmean)["m"]
    assert low == 0 < high


@pytest.mark.parametrize(
    "metric",
    [sum, lambda rows: math.nan, lambda rows: 0.123, lambda rows: 1 / (len(rows) - 54)],
    ids=["a sum", "not finite", "no spread", "cannot be measured on a part"],
)
def test_a_metric_of_another_kind_has_none(metric):
    assert intervals_of([float(n % 3) for n in range(60)], metric) == {}


def test_few_rows_have_none():
    assert intervals_of([1.0, 2.0] * 5, fmean) == {}


def test_what_is_found_is_json():
    assert json.dumps(intervals_of([float(n % 3) for n in range(60)], fmean))
