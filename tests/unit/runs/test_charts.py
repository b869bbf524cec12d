"""Curves as data: whole, cut where a stage ends, smoothed where they are long, and small however long the run."""

import json
import math

import numpy as np
import pytest

from mmrl_core.runs.charts import MAX_POINTS, SMOOTHED_FROM, Series, Stage, curve, moving_average

STAGES = [Stage("sft", 1, 60), Stage("grpo", 61, 150)]


def logged(num_steps: int, *, first: int = 1) -> Series:
    steps = list(range(first, first + num_steps))
    return Series("", steps, [step % 7 for step in steps])


def test_an_evaluation_is_one_line_with_the_edges_of_its_intervals():
    told = curve(Series("greedy", [0, 60, 150], [0.1, 0.4, 0.6], True, [None, (0.3, 0.5), (0.5, 0.7)]), STAGES)
    assert (told["x"], told["y"], told["measured"]) == ([0, 60, 150], [0.1, 0.4, 0.6], True)
    assert (told["low"], told["high"]) == ([None, 0.3, 0.5], [None, 0.5, 0.7])
    assert "low" not in curve(Series("greedy", [0], [0.1], True, [None]), STAGES)


def test_short_curves_are_as_logged():
    series = logged(SMOOTHED_FROM - 1)
    told = curve(series, STAGES)
    assert told["x"] == list(series.steps) and told["y"] == list(series.values) and "smooth" not in told


def test_long_curves_have_a_moving_average_beside_what_was_logged():
    series = logged(60)
    told = curve(series, STAGES)
    assert told["y"] == list(series.values)
    assert told["smooth"] == pytest.approx(moving_average(series.values), rel=1e-4)


def test_a_training_curve_breaks_where_a_stage_ends():
    told = curve(logged(20, first=51), STAGES)
    cut = told["y"].index(None)
    assert told["x"][:cut] == list(range(51, 61)) and told["x"][cut + 1 :] == list(range(61, 71))
    assert told["x"] == sorted(told["x"])


def test_many_steps_stay_small_and_keep_their_mean():
    series = logged(20_000)
    told = curve(series, [Stage("grpo", 1, 20_000)])
    assert len(told["y"]) <= MAX_POINTS and len(json.dumps(told)) < 40_000
    assert np.mean(told["y"]) == pytest.approx(np.mean(series.values), rel=1e-2)


def test_steps_beyond_a_hundred_thousand_stay_apart():
    assert curve(logged(30, first=1_234_567), [])["x"] == list(range(1_234_567, 1_234_597))


@pytest.mark.parametrize("values", [[0.0], [0.5, 0.5, 0.5], [1e300, -1e300], [1e-300, 2e-300], [1e-6, 3e-6]])
def test_any_finite_numbers_are_json(values: list[float]):
    steps = list(range(1, len(values) + 1))
    for is_measured in (True, False):
        told = curve(Series("", steps, values, is_measured), [])
        assert json.loads(json.dumps(told, allow_nan=False))["y"] == pytest.approx(values)


@pytest.mark.parametrize(
    ("values", "is_flat"), [([1.0], True), ([0.0, 0.0], True), ([1.0, 1.0 + 1e-9], True), ([1.0, 1.001], False)]
)
def test_a_curve_that_would_be_a_flat_line_says_so(values: list[float], is_flat: bool):
    assert Series("", list(range(len(values))), values).is_flat is is_flat


def test_moving_average_is_the_mean_of_a_tenth_around_each_value():
    values = np.arange(100.0) ** 2
    averaged = moving_average(values)
    assert averaged[50] == pytest.approx(values[45:56].mean())
    assert averaged[2] == pytest.approx(values[:5].mean()) and averaged[-3] == pytest.approx(values[-5:].mean())
    assert (averaged[0], averaged[-1]) == (values[0], values[-1])
    assert not any(map(math.isnan, averaged))
