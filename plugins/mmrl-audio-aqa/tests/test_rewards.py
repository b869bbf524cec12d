"""Rewards, with the cases of the published system and those in which it is mended."""

import doctest
import importlib

import pytest

from mmrl_audio_aqa.rewards import accuracy, format, mmau_match
from mmrl_core.errors import TaskDataError
from mmrl_core.plugins import load_plugins

SOLUTION = "<answer>Yacht consignment</answer>"
AVQA = {
    "solution": SOLUTION,
    "multi_choice": ["motorboat", "Yacht consignment", "Sailboat set sail", "Consignment car"],
}


def test_docstrings():
    for name in ("metrics", "parsing", "prompts", "rewards", "views"):
        result = doctest.testmod(importlib.import_module(f"mmrl_audio_aqa.{name}"))
        assert result.attempted and not result.failed


# Without the options of the question: the published rule.
PUBLISHED = [
    ("<answer>Yacht consignment</answer>", 1),
    ("<answer> Yacht consignment </answer>", 1),
    ("<think>the water</think>\n<answer>Yacht consignment</answer>", 1),
    ("<answer>Yacht consignment</answer><answer>motorboat</answer>", 1),
    ("<answer>motorboat</answer><answer>Yacht consignment</answer>", 0),
    ("<think><answer>Yacht consignment</answer></think><answer>motorboat</answer>", 1),
    ("<answer>yacht consignment</answer>", 0),
    ("<answer>Yacht consignment.</answer>", 0),
    ("<answer>'Yacht consignment'</answer>", 0),
    ("<answer>B</answer>", 0),
    ("<answer>B. Yacht consignment</answer>", 0),
    ("<answer>Yacht</answer>", 0),
    ("<answer>Yacht\nconsignment</answer>", 0),
    ("<answer>motorboat</answer>", 0),
    ("", 0),
]


@pytest.mark.parametrize(("completion", "expected"), PUBLISHED)
def test_without_options_the_text_of_the_solution_is_right(completion, expected):
    assert accuracy([completion], [{"solution": SOLUTION}]) == [expected]
    assert accuracy([completion], [AVQA], match="text") == [expected]


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("<answer>Yacht consignment</answer>", 1),
        ("<answer>yacht consignment.</answer>", 1),
        ("<answer>B</answer>", 1),
        ("<answer>B. Yacht consignment</answer>", 1),
        ("<answer>\nYacht consignment\n</answer>", 1),
        ("<answer>Yacht\nconsignment</answer>", 1),
        ("<answer>C</answer>", 0),
        ("<answer>A. Yacht consignment</answer>", 0),
        ("<answer>Yacht</answer>", 0),
        ("<answer>Consignment car</answer>", 0),
        ("<answer></answer>", 0),
        ("Yacht consignment", 0),
        (None, 0),
    ],
)
def test_with_options_letter_or_text_of_the_right_one_is_right(completion, expected):
    assert accuracy([completion], [AVQA]) == [expected]


def test_untagged_text_counts_only_if_asked_for():
    assert accuracy(["Yacht consignment "], [{"solution": SOLUTION}]) == [0.0]
    assert accuracy(["Yacht consignment "], [{"solution": SOLUTION}], untagged=True) == [1.0]
    assert accuracy(["Yacht consignment", "It is B"], [AVQA] * 2, untagged=True) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("gold", "other"), [("Channel 2", "Track 2"), ("at 3:00", "at 3:30"), ("C", "C#"), ("2", "two")]
)  # the symbolic step of the published code gives the first two 1.0
def test_different_options_that_share_a_number_differ(gold, other):
    for row in ({"solution": gold}, {"solution": gold, "choices": [other, gold]}):
        assert accuracy([f"<answer>{other}</answer>", f"<answer>{gold}</answer>"], [row] * 2) == [0.0, 1.0]


@pytest.mark.parametrize(
    "sample",
    [{}, {"solution": None}, {"solution": "<answer> </answer>"}],
)
def test_a_row_without_gold_is_unscored(sample):
    assert accuracy(["<answer>dog</answer>"], [sample]) == [None]


def test_a_gold_that_is_none_of_the_options_is_an_error():
    with pytest.raises(TaskDataError, match="one of the options"):
        accuracy(["<answer>dog</answer>"], [{"solution": "dog", "choices": ["cat", "cow"]}])


def test_an_unknown_match_is_an_error():
    with pytest.raises(ValueError, match="substring"):
        accuracy([], [], match="substring")


@pytest.mark.parametrize(
    ("completion", "plain", "thinking"),
    [
        ("<answer>a</answer>", 1, 0),
        ("<answer></answer>", 1, 0),  # as published
        ("<answer>a\nb</answer>", 1, 0),
        (" <answer>a</answer>\n", 1, 0),  # published: 0
        ("<think>x</think><answer>a</answer>", 0, 1),
        ("<think>x\ny</think>\n\n<answer>a</answer>\n", 0, 1),  # published: 0 for the last line break
        ("<think></think><answer>a</answer>", 0, 1),
        ("<answer>a</answer><answer>b</answer>", 0, 0),  # published: 1
        ("<answer>a</answer> text <answer>b</answer>", 0, 0),  # published: 1
        ("<answer><answer>a</answer></answer>", 0, 0),  # published: 1
        ("<think>x</think><think>y</think><answer>a</answer>", 0, 0),
        ("<think><answer>a</answer></think><answer>b</answer>", 0, 0),
        ("<think>x</think> so <answer>a</answer>", 0, 0),
        ("<answer>a</answer><think>x</think>", 0, 0),
        ("</think><think><answer>a</answer>", 0, 0),
        ("<Answer>a</Answer>", 0, 0),
        ("<answer>a</answer>.", 0, 0),
        ("<answer>a", 0, 0),
        ("</answer><answer>", 0, 0),
        ("a", 0, 0),
        ("", 0, 0),
        (None, 0, 0),
    ],
)
def test_format_is_one_answer_block_after_the_thinking_that_was_asked_for(completion, plain, thinking):
    assert format([completion], [{}]) == [plain]
    assert format([completion], [{"thinking": True}]) == [thinking]
    assert format([completion], [{}], thinking=True) == [thinking]
    assert format([completion], [{"thinking": True}], thinking=False) == [plain]


@pytest.mark.parametrize(
    ("completion", "answer", "choices", "expected"),
    [
        ("Man", "Man", ["Man", "Woman"], 1),
        ("<answer>It is a man.</answer>", "Man", ["Man", "Woman"], 1),
        ("woman", "Man", ["Man", "Woman"], 0),
        ("Man, not woman", "Man", ["Man", "Woman"], 0),
        ("", "Man", ["Man", "Woman"], 0),
        ("?!", "Man", ["Man", "Woman"], 0),
        ("A", "Man", ["Man", "Woman"], 0),
        ("major C", "C major", ["C major", "D major"], 1),  # order does not matter
        ("C", "C#", ["C#", "D"], 1),  # nor do signs
        ("dog bark", "dog", ["dog", "dog bark"], 0),  # "bark" is a word of a wrong option alone
        ("dog bark", "dog bark", ["dog", "dog bark"], 1),  # all words of the wrong option are the answer's
        ("snake_case", "snake", ["snake", "case"], 0),  # "_" is a letter
        ("two  TWO", "Two", ["Two", "three"], 1),
        ("<think>woman</think><answer>man</answer>", "Man", ["Man", "Woman"], 1),  # only the block counts
        ("answer: man", "Man", ["Man"], 1),
        (None, "Man", ["Man", "Woman"], 0),
    ],
)
def test_mmau_compares_sets_of_words(completion, answer, choices, expected):
    assert mmau_match([completion], [{"answer": answer, "choices": choices}]) == [expected]


def test_mmau_reads_positions_and_skips_rows_without_answer():
    rows = [{"answer": 1, "multi_choice": ["dog", "cat"]}, {"answer": None, "choices": ["dog"]}, {"answer": "dog"}]
    assert mmau_match(["cat"] * 3, rows) == [1.0, None, None]


def test_lengths_must_agree():
    for reward in (accuracy, format, mmau_match):
        with pytest.raises(ValueError):
            reward(["a"], [])


def test_everything_that_is_registered_is_found_under_its_name():
    registry = load_plugins().registry
    assert registry.get("reward", "audio_aqa/accuracy").load() is accuracy
    assert registry.get("reward", "audio_aqa/format").load() is format
    assert registry.get("reward", "audio_aqa/mmau_match").load() is mmau_match
    kinds = ("reward", "source", "metric", "model", "view")
    entries = [entry for kind in kinds for entry in registry.entries(kind) if entry.id.startswith("audio_aqa/")]
    assert len(entries) == 9
    assert all(entry.load().__doc__ for entry in entries)
