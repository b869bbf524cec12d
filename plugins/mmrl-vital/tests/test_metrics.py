"""Metrics against numbers worked by hand."""

import math

import pytest

from mmrl_vital.metrics import accuracy, grounded_qa, temporal_grounding


def answers(*texts):
    return [f"<think>from 0 to 100, A</think><answer>{text}</answer>" for text in texts]


# Temporal grounding


def test_grounding_by_hand():
    # Gold 10..20. Answers: 10..20 IoU 1; 10..13 IoU 3/10; 15..25 IoU 5/15; 5..25 IoU 10/20; 10..17 IoU 7/10; 30..40 0.
    texts = ["from 10 to 20", "from 10 to 13", "from 15 to 25", "from 5 to 25", "from 10 to 17", "from 30 to 40"]
    found = temporal_grounding(answers(*texts), [{"ground_truth": [10, 20]}] * 6)
    assert found["mIoU"] == pytest.approx((1 + 0.3 + 1 / 3 + 0.5 + 0.7) / 6)
    assert [found[name] for name in ("R@0.3", "R@0.5", "R@0.7")] == [5 / 6, 3 / 6, 2 / 6]


@pytest.mark.parametrize(
    ("threshold", "text", "gold"),
    [("0.3", "1.1 to 4.1", [1.1, 11.1]), ("0.5", "3.2 to 8.2", [3.2, 13.2]), ("0.7", "22.2 to 29.2", [22.2, 32.2])],
)
def test_an_overlap_of_exactly_the_threshold_reaches_it(threshold, text, gold):
    # In floats each of these quotients falls short of its threshold by some 1e-16.
    assert temporal_grounding(answers(text), [{"ground_truth": gold}])[f"R@{threshold}"] == 1.0


def test_unreadable_answers_count_as_zero():
    found = temporal_grounding(
        [*answers("from 0 to 10", "no idea", "from 9 to 3"), ""], [{"ground_truth": [0, 10]}] * 4
    )
    assert (found["mIoU"], found["R@0.3"], found["readable"], found["num_unscored"]) == (0.25, 0.25, 0.25, 0.0)


def test_thinking_earns_nothing():
    found = temporal_grounding(["<think>from 0 to 10</think><answer>unsure</answer>"], [{"ground_truth": [0, 10]}])
    assert found["mIoU"] == 0.0


@pytest.mark.parametrize("gold", [[8, 3], None, "soon", [], [1], ["a", "b"], [math.nan, 3]])
def test_rows_with_broken_gold_are_skipped_and_counted(gold):
    rows = [{"ground_truth": gold}, {"ground_truth": [0, 10]}]
    found = temporal_grounding(answers("from 0 to 10", "from 0 to 5"), rows)
    assert (found["mIoU"], found["readable"], found["num_unscored"]) == (0.5, 1.0, 1.0)


def test_the_best_of_several_gold_spans_counts():
    # 20..26 with 0..10: 0; with 18..26: 6/8; with 20..40: 6/20
    rows = [{"ground_truth": [[0, 10], [18, 26], [20, 40]]}]
    assert temporal_grounding(answers("from 20 to 26"), rows)["mIoU"] == pytest.approx(0.75)


def test_without_rows_grounding_is_undefined():
    assert all(math.isnan(value) for name, value in temporal_grounding([], []).items() if name != "num_unscored")


# Accuracy


def test_accuracy_by_task():
    rows = [
        {"task": "multiple_choice", "ground_truth": "B"},
        {"task": "multiple_choice", "ground_truth": "C", "options": ["a cat", "a dog", "an owl"]},
        {"task": "numerical", "ground_truth": "2.0"},
        {"task": "numerical", "ground_truth": 2.0},
        {"task": "free_form", "ground_truth": "a dog"},
        {"ground_truth": "B"},
    ]
    # 2.04 rounds to 2.0; 1.6 rounds to 2 only as an integer, which is no right answer.
    found = accuracy(answers("B", "an owl", "2.04", "1.6", "a dog", "B"), rows, by="task")
    assert found == {
        "accuracy": 0.75,
        "accuracy/multiple_choice": 1.0,
        "accuracy/numerical": 0.5,
        "num_unscored": 2.0,
    }


def test_accuracy_by_another_column_leaves_rows_without_it_out_of_the_parts():
    rows = [
        {"task": "multiple_choice", "ground_truth": "A", "duration_class": name} for name in ("long", "short", None)
    ]
    found = accuracy(answers("A", "B", "A"), rows, by="duration_class")
    assert found == {"accuracy": 2 / 3, "accuracy/long": 1.0, "accuracy/short": 0.0, "num_unscored": 0.0}


@pytest.mark.parametrize("text", ["", "A or B", "none of them", "E"])
def test_nothing_is_guessed(text):
    rows = [
        {"task": "multiple_choice", "ground_truth": gold, "options": ["one cat", "a dog", "owls", "rain"]}
        for gold in "ABCD"
    ]
    assert accuracy(answers(text) * 4, rows)["accuracy"] == 0.0


# Grounded question answering


def test_grounded_qa_by_hand():
    rows = [{"ground_truth": {"span": [[0, 10]], "answer": "B"}, "options": ["a cat", "a dog", "an owl"]}] * 5
    texts = [
        "From 0 to 10 seconds, B",  # IoU 1, IoP 1
        "From 0 to 4 seconds, B",  # IoU 0.4, IoP 1
        "From 0 to 20 seconds, a dog",  # IoU 0.5, IoP 0.5
        "From 0 to 10 seconds, C",
        "B",  # no span
    ]
    found = grounded_qa(answers(*texts), rows)
    assert found["accuracy"] == 0.8
    assert found["mIoU"] == pytest.approx((1 + 0.4 + 0.5 + 1 + 0) / 5)
    assert [found[name] for name in ("R@0.3", "R@0.5", "R@0.7")] == [0.8, 0.6, 0.4]
    assert found["accuracy_IoU@0.5"] == pytest.approx(2 / 5)
    assert found["accuracy_IoP@0.5"] == pytest.approx(3 / 5)
    assert found["num_unscored"] == 0.0


def test_each_measure_takes_its_best_of_several_spans():
    # 5..15: with 0..10 IoU 5/15 and IoP 5/10; with 14..24 IoU 1/19
    found = grounded_qa(answers("From 5 to 15, A"), [{"ground_truth": {"span": [[14, 24], [0, 10]], "answer": "A"}}])
    assert found["mIoU"] == pytest.approx(1 / 3)
    assert (found["accuracy_IoU@0.5"], found["accuracy_IoP@0.5"]) == (0.0, 1.0)


def test_gold_may_be_the_published_text():
    found = grounded_qa(answers("From 5 to 12.5 seconds, (C)"), [{"ground_truth": "From 5.0 to 12.5 seconds. (C)"}])
    assert (found["accuracy"], found["mIoU"]) == (1.0, 1.0)


@pytest.mark.parametrize(
    "gold",
    [
        "From 5.0 to 12.5, A man sings to the crowd.",  # free text has no letter
        "B",
        {"span": [9, 3], "answer": "B"},
        {"span": [3, 9]},
        None,
    ],
)
def test_rows_without_gold_span_count_for_accuracy_alone_and_those_without_letter_for_nothing(gold):
    rows = [{"ground_truth": gold}, {"ground_truth": {"span": [0, 10], "answer": "B"}}]
    found = grounded_qa(answers("From 5 to 12.5, A", "From 0 to 10, B"), rows)
    has_letter = gold == "B" or (isinstance(gold, dict) and gold.get("answer") == "B")
    assert (found["accuracy"], found["mIoU"]) == ((0.5, 1.0) if has_letter else (1.0, 1.0))
    assert (found["num_unscored"], found["num_without_span"]) == ((0.0, 1.0) if has_letter else (1.0, 0.0))


def test_an_instant_inside_a_gold_span_has_an_iop_of_1_and_an_iou_of_0():  # as in NExT-GQA's public evaluation
    rows = [{"ground_truth": {"span": [[0, 10], [20, 30]], "answer": "A"}}] * 4
    found = grounded_qa(answers("From 5 to 5, A", "From 30 to 30, A", "From 15 to 15, A", "From 25 to 45, B"), rows)
    assert found["mIoU"] == pytest.approx(5 / 25 / 4)  # of the last alone: 25..30 of 20..45
    assert found["mIoP"] == pytest.approx((1 + 1 + 0 + 5 / 20) / 4)
    assert (found["IoP@0.3"], found["IoP@0.5"]) == (0.5, 0.5)
    assert (found["accuracy"], found["accuracy_IoP@0.5"], found["accuracy_IoU@0.5"]) == (0.75, 0.5, 0.0)


def test_a_gold_without_length_counts_for_accuracy():
    rows = [{"ground_truth": {"span": [[5, 5]], "answer": "A"}}] * 2
    found = grounded_qa(answers("From 5 to 5, A", "From 0 to 10, A"), rows)
    assert (found["accuracy"], found["mIoU"], found["num_unscored"]) == (1.0, 0.5, 0.0)
