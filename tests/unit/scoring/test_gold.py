"""Gold answers as data sets store them, and texts in their plainest form."""

import numpy as np
import pytest

from mmrl_core.errors import TaskDataError
from mmrl_core.scoring import bare_text, gold_text, plain_text, score_each, unusable_gold, unwrapped


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ("A", "A"),
        (" A\n", "A"),
        (["A"], "A"),
        ([["A"]], "A"),
        ({"value": "A"}, "A"),
        ([{"value": ["A"]}], "A"),
        (np.array(["A"]), "A"),
        (3, "3"),
        (3.0, "3"),
        (0.5, "0.5"),
        (np.float64(2.5), "2.5"),
        ({"value": 3}, "3"),
        (True, "true"),
        (None, None),
        ("", None),
        (" ", None),
        ([], None),
        (float("nan"), None),
        ({"value": None}, None),
        ('["A"]', "A"),
        ('{"value": 3}', "3"),
        ('{"value": "A"}', "A"),
        ("[3]", "[3]"),  # maybe a text of its own, for a reward that reads texts
        ("[A]", "[A]"),
        ('["A", "B"]', '["A", "B"]'),
        ("[" * 70_000 + "]", "[" * 70_000 + "]"),
    ],
)
def test_a_gold_is_read_out_of_what_is_around_it(stored, expected):
    assert gold_text(stored, "solution") == expected


@pytest.mark.parametrize("stored", [["A", "B"], {"a": 1, "b": 2}, {}, b"A", float("inf"), [[1, 2], [3, 4]]])
def test_a_gold_of_several_or_of_another_kind_says_what_is_expected(stored):
    with pytest.raises(TaskDataError, match=r"solution is .* and the gold has to be a letter"):
        gold_text(stored, "solution", "a letter")


def test_wrappings_end():
    deep = "A"
    for _ in range(50):
        deep = [deep]
    with pytest.raises(TaskDataError):
        gold_text(deep, "solution")
    assert unwrapped([1.5, 4]) == [1.5, 4]


def test_a_metric_goes_on_where_a_gold_cannot_be_read():
    def reward(completions, samples):
        if samples[0]["gold"] == 3:
            raise unusable_gold(3, "gold", "a text")
        return [1.0]

    assert score_each(reward, ["a", "b", "c"], [{"gold": "x"}, {"gold": 3}, {"gold": "y"}]) == [1.0, None, 1.0]


@pytest.mark.parametrize(
    ("text", "plain", "bare"),
    [
        ("B。", "B.", "b"),
        ("【B】", "(B)", "b"),
        ("（Ｂ）．", "(B).", "b"),
        ("「B」", "(B)", "b"),
        ("“B”", '"B"', "b"),
        ("‘it’s’", "'it's'", "it's"),
        ("«oui»", '"oui"', "oui"),
        ("4。", "4.", "4"),
        ("４，５", "4,5", "4,5"),
        ("٤", "4", "4"),
        ("−6 dB", "-6 dB", "-6 db"),
        ("C#！", "C#!", "c#"),
        ("5％", "5%", "5%"),
        ("a\u200bb\u00a0c", "ab c", "ab c"),
        ("红色、蓝色", "红色,蓝色", "红色,蓝色"),
        ("cafe\u0301", "café", "café"),
        ("½", "1⁄2", "1⁄2"),
        ("...", "...", ""),
    ],
)
def test_marks_are_read_by_their_class(text, plain, bare):
    assert (plain_text(text), bare_text(text)) == (plain, bare)


def test_rows_of_combining_marks_take_linear_time():
    # At quadratic cost this takes hours, and the suite's time limit ends it.
    assert len(plain_text("a" + "\u0301\u0323" * 500_000)) == 1_000_001
