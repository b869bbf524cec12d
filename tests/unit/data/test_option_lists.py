"""Options as files store them: lists, and lists that stand as one text."""

import numpy as np
import pytest

from mmrl_core.data import labelled_options, read_options, read_texts
from mmrl_core.errors import TaskDataError

LEFT_RIGHT = ["left", "right"]


@pytest.mark.parametrize(
    "stored",
    [
        ["left", "right"],
        ("left ", " right"),
        np.array(["left", "right"]),
        {"A": "left", "B": "right"},
        {"A": "left", "B": "right", "C": None},
        {"text": ["left", "right"], "label": ["A", "B"]},
        '["left", "right"]',
        "['left', 'right']",
        "('left', 'right')",
        '{"A": "left", "B": "right"}',
        "A. left\nB. right",
        " (A) left\r\n (B) right\n",
        "a) left\nb) right",
        "1. left\n2. right",
        "A: left, B: right",
        "A. left B. right",
        "A．left\nB．right",
        "【A】left\n【B】right",
    ],
)
def test_every_form_of_two_options_is_read(stored):
    assert read_options(stored) == LEFT_RIGHT


@pytest.mark.parametrize("stored", [None, "", " \n", [], float("nan"), "[]"])
def test_nothing_stored_is_no_options(stored):
    assert read_options(stored) is None


@pytest.mark.parametrize(
    "stored",
    [
        "left; right",
        "left",
        "left\nright",
        "A. left",
        "['left']",
        "['left' 'right']",  # as numpy prints it; Python would join the two
        "['left'\n 'right' 'up']",
        '["left", ["right"]]',
        '["left", null]',
        "__import__('os').getcwd()",
        "[" * 100_000,
        "1.5 m, 2.5 m",
        ["left"],
        ["left", None],
        ["left", " "],
        [["left"], ["right"]],
        {"left": 1},
        {"B": "left", "C": "right"},
        3,
        b"left",
    ],
)
def test_anything_else_is_refused_and_the_message_names_the_column_and_what_is_expected(stored):
    with pytest.raises(TaskDataError, match=r"choices is .*two or more options: a list of texts, the JSON or Python"):
        read_options(stored, "choices")


def test_numbers_are_options_and_labels_within_a_line_belong_to_it():
    assert read_options([2, 3.5, "4"]) == ["2", "3.5", "4"]
    assert labelled_options("A. go to B. now\nB. wait\nfor it\nC. stop") == ["go to B. now", "wait\nfor it", "stop"]
    assert labelled_options("Which? A. left B. right") is None
    assert read_options(["A. left", "B. right"]) == ["A. left", "B. right"]  # a list keeps its labels
    assert read_options(["left"], least=1) == ["left"]


def test_a_list_of_texts_may_be_one_text():
    assert [read_texts(stored, "aliases") for stored in ("car", ["car"], "['car']", '["car", "auto"]', None, "")] == [
        *[["car"]] * 3,
        ["car", "auto"],
        None,
        None,
    ]
    with pytest.raises(TaskDataError, match="aliases"):
        read_texts(3, "aliases")
