"""Answers out of completions, and options out of answers."""

import pytest

from mmrl_audio_aqa.parsing import MAX_ANSWER_CHARS, answer_block, chosen_option

OPTIONS = ["motorboat", "Yacht consignment", "Sailboat set sail", "Consignment car"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<answer>a</answer>", "a"),
        ("<think>x</think> <answer> a\nb </answer> end", "a\nb"),
        ("<answer>a</answer><answer>b</answer>", "a"),  # as published: the first
        ("<think><answer>a</answer></think><answer>b</answer>", "a"),  # as published: also in the thinking
        ("<answer></answer>", ""),
        ("<answer>a", None),
        ("</answer>a<answer>", None),
        ("<Answer>a</Answer>", None),
        ("a", None),
        (None, None),
        ("<answer>" * 100_000, None),
    ],
)
def test_the_first_whole_block_is_the_answer(text, expected):
    assert answer_block(text) == expected


@pytest.mark.parametrize(
    "answer",
    ["Yacht consignment", "yacht CONSIGNMENT", "'Yacht consignment'", " Yacht  consignment. ", "B", "b", "(B)", "B.",
     "B: Yacht consignment", "(B) yacht consignment", "b) Yacht consignment", "**B. Yacht consignment**",
     "Ｙacht consignment"],
)  # fmt: skip
def test_an_option_is_named_by_text_letter_or_both(answer):
    assert chosen_option(answer, OPTIONS) == 1


@pytest.mark.parametrize(
    "answer",
    ["", "E", "Z", "yacht", "consignment", "A. Yacht consignment", "A B", "B or C", "motorboat or B", "1", "BB",
     "Yacht consignment, Sailboat set sail", "...", "b" * (MAX_ANSWER_CHARS + 1)],
)  # fmt: skip
def test_anything_else_names_no_option(answer):
    assert chosen_option(answer, OPTIONS) is None


def test_text_counts_before_the_letter():
    notes = ["B", "A", "C", "D"]
    assert [chosen_option(note, notes) for note in notes] == [0, 1, 2, 3]
    assert chosen_option("A. B", notes) == 0


def test_signs_are_part_of_an_option():
    keys = ["C", "C#", "-6 dB", "6 dB"]
    assert [chosen_option(key, keys) for key in ("c#", "C", "-6 db", "6 dB.")] == [1, 0, 2, 3]


def test_options_that_differ_in_case_alone_are_told_apart_by_their_exact_text():
    keys = ["a minor", "A minor", "C"]
    assert [chosen_option(key, keys) for key in ("a minor", "A minor", "A MINOR")] == [0, 1, None]


def test_printed_letters_are_not_part_of_an_option():
    labelled = ["(A) dog", "(B) cat"]
    assert [chosen_option(answer, labelled) for answer in ("cat", "(B) cat", "B", "b. cat", "A. cat")] == [
        1,
        1,
        1,
        1,
        None,
    ]
    assert chosen_option("dog", ["A dog", "B cat"]) is None  # an article is


def test_equal_options_count_as_one():
    assert chosen_option("B", ["dog", "dog", "cat"]) == 0


def test_hostile_answers_are_read_in_linear_time():
    for text in ("(" * MAX_ANSWER_CHARS, "a" + " " * (MAX_ANSWER_CHARS - 2) + "a", "a." * (MAX_ANSWER_CHARS // 2)):
        assert chosen_option(text, OPTIONS) is None
