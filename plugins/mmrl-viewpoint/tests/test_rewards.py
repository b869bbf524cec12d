"""Rewards: the published rule, and what is done better."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl_core.errors import RewardError
from mmrl_viewpoint.parsing import answer_text, is_formatted, lettered, numbers, option_letter
from mmrl_viewpoint.rewards import accuracy, format, score

GOOD = "<think>The camera went left.</think> <answer>B</answer>"
OPTIONS = ["A: to the right", "B: to the left", "C: nowhere"]

# The published rules, written down from their description: a full match of a think and an answer block, and the first
# answer block.
PUBLISHED_FORMAT = re.compile(r"^\s*<think>.*?</think>\s*<answer>.*?</answer>\s*$", re.DOTALL | re.IGNORECASE)
PUBLISHED_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (GOOD, 1.0),
        (f"\n {GOOD} \n", 1.0),
        ("<THINK>a</THINK><Answer>B</Answer>", 1.0),
        ("<think>a</think><answer>A</answer>", 0.5),  # well formed, wrong
        ("<answer>B</answer>", 0.5),  # right, without thinking
        ("<think>a</think><answer>b</answer>", 0.5),  # letters are compared as they are
        ("<think>a</think><answer>B.</answer>", 0.5),
        ("<think>a</think><answer>(B)</answer>", 0.5),
        ("<think>a</think><answer>B. left</answer>", 0.5),
        ("<think>a</think><answer>option B</answer>", 0.5),
        ("B", 0.0),
        ("", 0.0),
        ("<think>a</think><answer>B</answer><answer>A</answer>", 1.0),  # the first block counts, the form holds
        ("<think>a</think><answer>A</answer><answer>B</answer>", 0.5),
        ("<think><answer>B</answer></think><answer>A</answer>", 1.0),  # an answer inside the thinking counts
        ("<think>a</think><answer><answer>B</answer></answer>", 0.5),  # nested: the form holds, the text does not
        ("<think>a</think> so <answer>B</answer>", 0.5),  # prose in between costs the form
        (f"{GOOD}<|im_end|>", 0.5),  # and so does what comes after
        ("<think>a</think><answer> B </answer>", 1.0),
        ("<think>a</think><answer></answer>", 0.5),
        ("<think>a</think><answer>B", 0.0),
    ],
)
def test_score_by_the_published_rule(completion, expected):
    assert score([completion], [{"ground_truth": "B"}], exact=True) == [expected]


@pytest.mark.parametrize("answer", ["B", "B.", "(B)", "B。", "【B】", "Ｂ", " “B” "])
def test_punctuation_around_a_letter_does_not_matter_without_options_either(answer):
    assert accuracy([f"<answer>{answer}</answer>"] * 2, [{"ground_truth": gold} for gold in "BA"]) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("B", True),
        ("b", True),
        ("(B)", True),
        ("B.", True),
        ("B. to the left", True),
        ("B: To  the left.", True),
        ("to the left", True),
        ("A", False),
        ("to the right", False),
        ("B. to the right", False),
        ("A or B", False),
        ("to the left or to the right", False),
        ("", False),
    ],
)
def test_letter_and_text_of_an_option_are_one_answer(answer, right):
    row = {"ground_truth": "B", "options": OPTIONS}
    completion = f"<answer>{answer}</answer>"
    assert accuracy([completion], [row]) == [float(right)]
    assert accuracy([completion], [row], exact=True) == [float(answer == "B")]
    assert accuracy([completion], [row | {"ground_truth": "to the left"}]) == [float(right)]


def test_no_answer_never_equals_a_gold_none():
    assert accuracy(["", "no tags", "<answer></answer>"], [{"ground_truth": "None"}] * 3) == [0.0, 0.0, 0.0]


def test_blanks_around_the_gold_answer_do_not_count():
    assert accuracy(["<answer>B</answer>"] * 2, [{"ground_truth": " B\n"}, {"ground_truth": "B"}]) == [1.0, 1.0]


def test_an_empty_or_missing_gold_answer_is_unscored():
    assert accuracy(["<answer></answer>"], [{"ground_truth": ""}]) == [None]
    assert accuracy([GOOD], [{}]) == [None] and score([GOOD], [{"ground_truth": None}]) == [None]


def test_other_weights():
    wrong = "<think>a</think><answer>A</answer>"
    scores = score([GOOD, wrong, "<answer>B</answer>"], [{"ground_truth": "B"}] * 3, format_weight=0.1)
    assert scores == pytest.approx([1.0, 0.1, 0.9])
    with pytest.raises(RewardError, match=r"format_weight is 1\.5"):
        score([GOOD], [{}], format_weight=1.5)


TAGS = ["<think>", "</think>", "<answer>", "</answer>", "</ANSWER>", " ", "\n", "B", "x", "\x1c", "<answer", "K"]


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(TAGS), max_size=10).map("".join))
def test_linear_scans_agree_with_the_published_patterns(text):
    assert is_formatted(text) == (PUBLISHED_FORMAT.fullmatch(text.strip()) is not None)
    found = PUBLISHED_ANSWER.search(text)
    assert answer_text(text) == (found[1].strip() if found else None)


@pytest.mark.parametrize(
    "hostile",
    [
        "<think></think><answer>" * 20_000,
        "<think>" + "</think> <answer></answer>" * 20_000 + "x",
        "<think>" + "</think>" + " " * 200_000,
        "<answer>" * 100_000,
        "9" * 200_000,
    ],
)
def test_long_hostile_texts_are_read_in_linear_time(hostile):
    assert score([hostile], [{"ground_truth": "B", "options": OPTIONS}])[0] in (0.0, 0.5)
    assert all(abs(number) < float("inf") for number in numbers(hostile))


def test_completions_that_are_no_text_score_0():
    assert score([None, 3], [{"ground_truth": "B"}] * 2) == [0.0, 0.0]
    assert format([None], [{}]) == [0.0]


def test_options_get_letters():
    expected = {"A": "to the right", "B": "to the left", "C": "nowhere"}
    texts = list(expected.values())
    assert lettered(texts) == lettered(OPTIONS) == lettered(expected) == expected
    assert lettered([f"({letter}) {text}" for letter, text in expected.items()]) == expected
    assert lettered("to the right") == lettered(None) == lettered(["x"] * 27) == {}
    assert lettered(["A cat", "B"]) == {"A": "A cat", "B": "B"}  # no labels


def test_options_that_look_alike_are_no_answer():
    assert option_letter("two", ["two", "two", "one"]) is None
    assert option_letter("B", ["B", "A"]) == "B"  # the letter goes before the text
    assert option_letter("3.", ["2", "3"]) == "B"
    assert option_letter(None, ["2"]) is None
