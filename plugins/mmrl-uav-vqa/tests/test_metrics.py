"""Metrics on a few rows, worked by hand."""

import math

import pytest

from mmrl_uav_vqa.metrics import by_type
from mmrl_uav_vqa.views import evidence


def rows(*pairs):
    completions = [f"<answer>{answer}</answer>" for _, _, answer in pairs]
    return completions, [{"question_type": kind, "answer": gold} for kind, gold, _ in pairs]


def test_accuracy_by_type_and_baselines():
    result = by_type(
        *rows(
            ("number", "4", "4"),
            ("number", "4", "6"),
            ("number", "2", "five cars"),
            ("color", "red", "Red."),
        )
    )
    assert result["accuracy"] == 0.5
    assert result["accuracy/number"] == pytest.approx(1 / 3)
    assert result["accuracy/color"] == 1.0
    assert result["mean_type_accuracy"] == pytest.approx(2 / 3)
    assert result["exact"] == 0.25  # "Red." is not "red"
    assert result["most_common"] == 0.75  # 4 for numbers (2 of 3), red for colours (1 of 1)
    assert result["count_error"] == pytest.approx(5 / 3)  # 0, 2, 3
    assert math.isnan(result["yes_as_no"])


def test_confusion_of_yes_and_no():
    result = by_type(
        *rows(("yes_no", "yes", "no"), ("yes_no", "yes", "yes"), ("yes_no", "yes", "maybe"), ("yes_no", "no", "no"))
    )
    assert result["yes_as_no"] == pytest.approx(1 / 3)
    assert result["no_as_yes"] == 0.0


def test_unscored_rows_count_nowhere_else():
    completions = ["<answer>4</answer>", "<answer>4</answer>", "4"]
    samples = [{"answer": "4"}, {"answer": ""}, {"answer": "4"}]
    result = by_type(completions, samples)
    assert result["num_unscored"] == 1.0
    assert result["accuracy"] == result["accuracy/untyped"] == result["readable"] == 0.5


def test_published_areas_are_compared_by_class():
    completions, samples = rows(("area", "37.5m2", "between 10m2 and 100m2"))
    assert by_type(completions, samples)["accuracy"] == 0.0
    assert by_type(completions, samples, area_rule="class")["accuracy"] == 1.0


def test_no_rows_give_nan():
    assert math.isnan(by_type([], [])["accuracy"])


def test_the_view_draws_gold_evidence_only():
    sample = {"answer": "2", "evidence": [[0, 0, 100, 100], [200, 200, 300, 300]]}
    assert evidence("<answer>9</answer>", sample) == [
        {"box": [0, 0, 100, 100], "label": "2", "kind": "gold"},
        {"box": [200, 200, 300, 300], "label": "", "kind": "gold"},
    ]
    assert evidence("", {}) == []
