"""Metrics, by hand."""

import math

import pytest

from mmrl_viewpoint.metrics import accuracy, circular_accuracy, omni3d


def answers(*texts):
    return [f"<think>a</think><answer>{text}</answer>" for text in texts]


def test_accuracy_by_type():
    rows = [{"ground_truth": letter, "question_type": kind} for letter, kind in ("Ax", "Bx", "Ay", "Cy", "Ay")]
    result = accuracy(answers("A", "A", "A", "C", "B"), rows)
    assert result["accuracy"] == 3 / 5
    assert (result["accuracy/x"], result["accuracy/y"]) == (1 / 2, 2 / 3)
    assert result["mean_over_types"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert result["formatted"] == 1.0 and result["num_unscored"] == 0


def test_rows_without_gold_are_left_out_and_counted():
    result = accuracy(["<answer>A</answer>", "A"], [{}, {"ground_truth": "A"}], by=None)
    assert result["accuracy"] == 0.0 and result["num_unscored"] == 1 and result["formatted"] == 0.0
    assert math.isnan(accuracy([], [])["accuracy"])


def test_a_question_counts_only_if_right_under_all_rotations():
    groups = ["1", "1", "1", "2", "2", "2", None]
    rows = [{"ground_truth": letter, "circular_group": group} for letter, group in zip("ACBABCA", groups, strict=True)]
    result = circular_accuracy(answers("A", "C", "B", "A", "A", "A", "A"), rows)
    # question 1 is right three times, question 2 once of three times (always "A"), the last by itself
    assert result["circular_accuracy"] == pytest.approx(2 / 3)
    assert result["accuracy"] == pytest.approx(5 / 7)
    assert result["num_questions"] == 3


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("2.0", 1.0),
        ("2.2", 0.8),  # 0.1 is below 0.5 to 0.15: eight of ten
        ("1.5 meters", 0.5),  # 0.25 is below 0.5 to 0.3: five
        ("1.0", 0.0),  # 0.5 is not below 0.5
        ("-2", 0.0),
        ("no idea", 0.0),
        ("1e999", 0.0),
        ("9" * 1000, 0.0),
    ],
)
def test_mean_relative_accuracy(answer, expected):
    row = {"ground_truth": "2.0", "answer_type": "float"}
    assert omni3d(answers(answer), [row])["number"] == pytest.approx(expected)


def test_open_answers_by_kind():
    rows = [
        {"ground_truth": "yes", "answer_type": "str"},
        {"ground_truth": "Table", "answer_type": "str"},
        {"ground_truth": "3", "answer_type": "int"},
        {"ground_truth": 4, "answer_type": "int"},
        {"ground_truth": "?", "answer_type": "int"},
    ]
    result = omni3d(answers("Yes.", "chair", "3 chairs", "5", "1"), rows)
    assert [result[name] for name in ("yes_no", "choice", "count")] == [1.0, 0.0, 0.5]
    assert result["mean"] == 0.5 and result["num_unscored"] == 1 and math.isnan(result["number"])
