"""Typed rewards: what is right, what is wrong, and what is unscored. Expected values are worked by hand."""

import math

import pytest

from mmrl_core.errors import TaskDataError
from mmrl_core.testing import HOSTILE
from mmrl_uav_vqa.metrics import by_type
from mmrl_uav_vqa.rewards import accuracy, area_class, format, gold_kind


def score(answer, gold, question_type=None, **options):
    sample = {"answer": gold} | ({} if question_type is None else {"question_type": question_type})
    sample |= options.pop("sample", {})
    return accuracy([f"<think>so</think><answer>{answer}</answer>"], [sample], **options)[0]


@pytest.mark.parametrize(
    ("question_type", "gold", "answer", "reward"),
    [
        ("number", "4", "4", 1.0),
        ("number", "4", "four vehicles", 1.0),
        ("number", "4", "5", 0.0),
        ("number", "4", "4 or 5", 0.0),
        ("number", "four", "4", 1.0),
        ("number", "many", "Many", 1.0),
        ("count", "4", "4", 1.0),
        ("yes_no", "yes", "Yes, two.", 1.0),
        ("yes_no", "yes", "no", 0.0),
        ("yes_no", "yes", "yes or no", 0.0),
        ("Yes/No", "no", "No", 1.0),
        ("area", "120m2", "120 square meters", 1.0),
        ("area", "120m2", "126", 1.0),  # error 6 / 120 = 0.05
        ("area", "120m2", "127", 0.0),
        ("area", "2m2", "2.1", 1.0),  # 0.05, which floats miss by a hair
        ("area", "0m2", "0", 1.0),
        ("area", "0m2", "1", 0.0),
        ("area", "1 ha", "10,000 m2", 1.0),
        ("area", "large", "Large", 1.0),
        ("location", "top left", "upper-left corner", 1.0),
        ("location", "top left", "left top", 1.0),
        ("location", "top left", "top", 0.0),
        ("location", "top left", "top right", 0.0),
        ("location", "left", "left or right", 0.0),
        ("location", "near the road", "Near the road.", 1.0),
        ("color", "red", "Red.", 1.0),
        ("color", "red", "red or blue", 0.0),
        ("color", "red", "reddish", 0.0),
        ("color", "grey", "gray", 1.0),
        ("sports", "tennisorsoccer", "tennis or soccer", 1.0),
        ("scene", "parking lot", "the parking-lot", 1.0),
        ("shape", "rectangle", "square", 0.0),
        ("size", "small", "a small", 1.0),
        ("transportation", "car", "cars", 0.0),
        ("other", "car", "Car", 1.0),
    ],
)
def test_an_answer_is_compared_by_the_type_of_its_question(question_type, gold, answer, reward):
    assert score(answer, gold, question_type) == reward


@pytest.mark.parametrize(
    ("gold", "kind"),
    [
        ("yes", "yes_no"),
        ("4", "number"),
        ("four", "number"),
        ("120m2", "area"),
        ("120 m2", "area"),
        ("upper left", "location"),
        ("red", "label"),
        ("two red cars", "label"),
    ],
)
def test_without_a_type_the_gold_answer_decides(gold, kind):
    assert gold_kind(gold, None) == gold_kind(gold, "other") == kind


def test_a_number_in_the_thinking_or_without_tags_earns_nothing():
    gold = {"question_type": "number", "answer": "4"}
    completions = ["<think>4</think><answer>5</answer>", "4", "<answer>3</answer><answer>4</answer>", "<answer>4"]
    assert accuracy(completions, [gold] * 4) == [0.0, 0.0, 0.0, 0.0]
    assert accuracy(["4"], [gold], untagged="whole_text") == [1.0]


def test_the_answer_counts_where_only_the_format_is_broken():
    gold = {"question_type": "number", "answer": "4"}
    assert accuracy(["<answer>4</answer> and more"], [gold]) == [1.0]
    assert format(["<answer>4</answer> and more"], [gold]) == [0.0]


def test_soft_counts_pay_by_relative_error_and_never_more_than_half():
    # max(0, 1 - |p - t| / max(1, t)): 1 - 1/4 = 0.75, cut to 0.5; 1 - 3/4 = 0.25; 1 - 5/4 < 0; t = 0: 1 - 1/1 = 0
    soft = [score(answer, "4", "number", soft_counts=True) for answer in ("4", "3", "1", "9")]
    assert soft == [1.0, 0.5, 0.25, 0.0]
    assert score("1", "0", "number", soft_counts=True) == 0.0


def test_count_tolerance_widens_what_is_right():
    assert [score(answer, "10", "number", count_tolerance=1) for answer in ("9", "10", "11", "12")] == [1, 1, 1, 0]


def test_linear_areas_fall_to_nothing_at_half_the_truth():
    # (0.5 - e) / 0.45 beyond e = 0.05: e = 0.275 gives 0.5
    values = [score(answer, "1000m2", "area", area_rule="linear") for answer in ("1050", "1275", "725", "1500", "2000")]
    assert values == pytest.approx([1.0, 0.5, 0.5, 0.0, 0.0])


@pytest.mark.parametrize(
    ("gold", "answer", "reward"),
    [
        ("37.5m2", "between 10m2 and 100m2", 1.0),
        ("37.5m2", "between 10 m2 and 100 m2", 1.0),
        ("37.5m2", "90", 1.0),
        ("37.5m2", "101", 0.0),
        ("37.5m2", "0m2", 0.0),  # right in HRVQA's own code, for every area up to 1000 m2
        ("0m2", "0m2", 1.0),
        ("5000.0m2", "more than 1000m2", 1.0),
    ],
)
def test_areas_by_class(gold, answer, reward):
    assert score(answer, gold, "area", area_rule="class") == reward


def test_class_ends_belong_to_the_class_below():
    assert [area_class(value) for value in (0.0, 0.1, 10.0, 100.0, 1000.0, 1000.1)] == [
        "0m2",
        "between 0m2 and 10m2",
        "between 0m2 and 10m2",
        "between 10m2 and 100m2",
        "between 100m2 and 1000m2",
        "more than 1000m2",
    ]


def test_the_unit_of_the_row_is_that_of_bare_numbers():
    sample = {"unit": "ha"}
    assert score("2", "2", "area", sample=sample) == 1.0
    assert score("20000 m2", "2", "area", sample=sample) == 1.0
    assert score("2 m2", "2", "area", sample=sample) == 0.0


def test_options_and_aliases():
    options = {"options": ["red", "blue"]}
    assert score("(B)", "blue", "color", sample=options) == 1.0
    assert score("blue", "B", "color", sample=options) == 1.0
    assert score("A", "B", "color", sample=options) == 0.0
    assert score("C", "4", "number", sample={"options": [2, 3, 4]}) == 1.0
    assert score("B。", "blue", "color", sample={"options": "A. red\nB. blue"}) == 1.0
    assert score("auto", "car", "transportation", sample={"aliases": ["auto"]}) == 1.0
    assert score("auto", "car", "transportation", aliases={"car": ["auto"]}) == 1.0
    assert score("auto", "car", "transportation") == 0.0


@pytest.mark.parametrize("sample", [{}, {"answer": ""}, {"answer": " "}, {"answer": None}])
def test_a_row_without_gold_is_unscored(sample):
    assert accuracy(["<answer>4</answer>"], [sample]) == [None]


def test_an_unknown_type_is_an_error():
    with pytest.raises(TaskDataError, match="'weather', none of number"):
        accuracy(["<answer>4</answer>"], [{"answer": "4", "question_type": "weather"}])


def test_a_gold_answer_may_be_a_json_number():
    assert score("4", 4, "number") == 1.0


@pytest.mark.parametrize("question_type", ["number", "yes_no", "area", "location", "color"])
def test_hostile_completions_are_finite_and_earn_nothing(question_type):
    gold = {"number": "4", "yes_no": "yes", "area": "12m2", "location": "top left", "color": "red"}[question_type]
    sample = {"question_type": question_type, "answer": gold}
    for rule in ("tolerance", "linear", "class"):
        rewards = accuracy(
            list(HOSTILE.values()), [sample] * len(HOSTILE), area_rule=rule, soft_counts=True, untagged="whole_text"
        )
        assert all(math.isfinite(reward) for reward in rewards)
        assert sum(rewards) == 0.0


@pytest.mark.parametrize("options", [{"count_tolerance": -1}, {"area_rule": "nearest"}, {"untagged": "right"}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError):
        accuracy([], [], **options)


def test_lengths_must_agree():
    for reward in (accuracy, format):
        with pytest.raises(ValueError):
            reward(["a"], [])


@pytest.mark.parametrize(
    ("completion", "gold", "typed", "published"),
    [  # worked by hand from the public evaluation code
        ("yes", "yes", 1.0, 1.0),
        ("Yes.", "yes", 1.0, 1.0),
        ("yes, there is", "yes", 1.0, 0.0),
        ("four", "4", 1.0, 1.0),
        ("twelve", "12", 1.0, 0.0),  # words up to ten
        ("none", "0", 1.0, 1.0),
        ("There are 4 cars.", "4", 1.0, 0.0),
        ("1,200", "1200", 1.0, 1.0),
        ("top-left", "top left", 1.0, 1.0),
        ("left top", "top left", 1.0, 0.0),
        ("upper left", "top left", 1.0, 0.0),
        ("the red", "red", 1.0, 1.0),
        ("fitness or soccer", "fitnessorsoccer", 1.0, 1.0),
        ("37.5m2", "37.5m2", 1.0, 0.0),
        ("between 10m2 and 100m2", "37.5m2", 0.0, 1.0),
        ("0m2", "37.5m2", 0.0, 1.0),
        ("0m2", "1500m2", 0.0, 0.0),
        ("more than 1000m2", "1500m2", 0.0, 1.0),
        ("", "yes", 0.0, 0.0),
    ],
)
def test_the_rule_of_hrvqa_compares_texts_and_ours_what_they_say(completion, gold, typed, published):
    rows = [{"answer": gold}]
    assert accuracy([f"<answer>{completion}</answer>"], rows) == [typed]
    assert accuracy([f"<answer>{completion}</answer>"], rows, rule="hrvqa") == [published]
    assert by_type([f"<answer>{completion}</answer>"], rows, rule="hrvqa")["accuracy"] == published


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="'vqa'"):
        accuracy([], [], rule="vqa")
