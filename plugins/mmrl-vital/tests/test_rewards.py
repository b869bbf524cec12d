"""Rewards of VITAL against numbers worked by hand, and ROUGE against the rouge-score package.

Most spans here lie on G = [2, 8], 6 s long. With eps = 1e-4 s the published IoU of [4, 10] with it is
4 / ((6 + eps) + (6 + eps) - 4 + eps) = 4 / 8.0003.
"""

import doctest
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrl_core.errors import TaskDataError
from mmrl_core.scoring import score_each
from mmrl_vital import rewards
from mmrl_vital.parsing import MAX_ANSWER_CHARS
from mmrl_vital.rewards import (
    TASKS,
    format,
    free_form,
    grounded_qa,
    iou,
    iou_chapters,
    iou_short,
    multiple_choice,
    numerical,
    ocr,
    regression,
    task,
)

Reward = Callable[..., list[float | None]]
GOLDS: dict[str, Any] = {  # for each task a gold as data sets write it
    "temporal_grounding": [2.0, 8.0],
    "temporal_grounding_short": "From 2.0 to 8.0 seconds.",
    "temporal_grounding_chapters": "[2.0, 8.0]",
    "multiple_choice": "B",
    "numerical": "-12.5",
    "regression": 250,
    "ocr": "NO parking",
    "free_form": "The man opens the door.",
    "grounded_qa": "From 2.0 to 8.0 seconds. (B)",
    "grounded_qa_short": "From 2.0 to 8.0 seconds. The man opens the door.",
    "grounded_qa_chapters": "<answer>B, from 2.0 to 8.0 seconds</answer>",
}
CALL = "<think>a</think><tool_call>{}</tool_call><think>b</think>"


def answered(answer: object, thinking: str = "x") -> str:
    return f"<think>{thinking}</think><answer>{answer}</answer>"


def one(reward: Reward, completion: Any, gold: Any, options: Any = None, **keywords: Any) -> float | None:
    (value,) = reward([completion], [{"ground_truth": gold, "options": options}], **keywords)
    return value


def test_docstring_examples() -> None:
    results = doctest.testmod(rewards)
    assert results.attempted >= 14 and results.failed == 0


@pytest.mark.parametrize("name", TASKS)
def test_gold_scores_the_maximum_and_nothing_scores_zero(name: str) -> None:
    reward, maximum = TASKS[name]
    assert GOLDS.keys() == TASKS.keys()
    assert one(reward, answered(GOLDS[name]), GOLDS[name]) == maximum
    assert one(reward, answered(""), GOLDS[name]) == 0.0
    assert one(reward, "", GOLDS[name]) == 0.0
    assert one(reward, None, GOLDS[name]) == 0.0


@pytest.mark.parametrize("name", TASKS)
def test_quirk_only_the_answer_block_counts(name: str) -> None:
    reward, _ = TASKS[name]
    gold = GOLDS[name].replace("<answer>", "").replace("</answer>", "") if isinstance(GOLDS[name], str) else GOLDS[name]
    call = f'<tool_call>{{"arguments": {{"start_time": 2.0, "end_time": 8.0}}, "note": "{gold}"}}</tool_call>'
    assert one(reward, f"<think>{gold}</think>{call}", GOLDS[name]) == 0.0
    assert one(reward, f"<think>{gold}</think>{call}<think>{gold}</think><answer>?</answer>", GOLDS[name]) == 0.0


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("sample", [{}, {"ground_truth": None}, {"ground_truth": ""}, None])
def test_a_row_without_gold_is_unscored(name: str, sample: Any) -> None:
    reward, _ = TASKS[name]
    assert reward([answered("B")], [sample]) == [None]


@pytest.mark.parametrize("name", [name for name in TASKS if name != "ocr"])  # to which "?" is a word
def test_a_gold_that_cannot_be_read_is_an_error_that_says_what_is_expected(name: str) -> None:
    with pytest.raises(TaskDataError, match="the gold has to be"):
        TASKS[name][0]([answered("B")], [{"ground_truth": "?"}])


@pytest.mark.parametrize("reward", [*(reward for reward, _ in TASKS.values()), task, format])
def test_lengths_must_agree(reward: Reward) -> None:
    with pytest.raises(ValueError):
        reward(["a", "b"], [{}])
    assert reward([], []) == []


# Temporal grounding


@pytest.mark.parametrize(
    ("answer", "plain", "short", "chapters"),
    [
        ("2 to 8", 1.0, 1.0, 1.0),
        # 4 / 8.0003 = 0.4999813; (0.4999813 - 0.2) / 0.6; 2 x.
        ("4 to 10", 0.49998125, 0.49996875, 0.9999625),
        # Inside: 5 / (5 + 6 - 5 + 3 eps) = 5 / 6.0003 = 0.8332917, above 0.8.
        ("2 to 7", 0.83329167, 1.0, 1.0),
        # 1 / (1 + 6 - 1 + 3 eps) = 1 / 6.0003 = 0.1666583, below 0.2.
        ("2 to 3", 0.16665833, 0.0, 0.33331667),
        # 2 / (2 + 6 - 2 + 3 eps) = 2 / 6.0003 = 0.3333167; (0.3333167 - 0.2) / 0.6 = 0.2221944.
        ("6 to 8", 0.33331667, 0.22219444, 0.66663333),
        ("8 to 10", 0.0, 0.0, 0.0),
        ("20 to 30", 0.0, 0.0, 0.0),
        ("8 to 2", 0.0, 0.0, 0.0),
        ("5 to 5", 0.0, 0.0, 0.0),
        ("I cannot tell", 0.0, 0.0, 0.0),
        ("0:02 - 0:08", 1.0, 1.0, 1.0),
    ],
)
def test_grounding_worked_by_hand(answer: str, plain: float, short: float, chapters: float) -> None:
    completion = answered(answer)
    assert one(iou, completion, [2, 8]) == pytest.approx(plain, abs=1e-8)
    assert one(iou_short, completion, [2, 8]) == pytest.approx(short, abs=1e-8)
    assert one(iou_chapters, completion, [2, 8]) == pytest.approx(chapters, abs=1e-8)


def test_of_several_gold_spans_the_best_counts() -> None:
    golds = [[100, 200], [2, 8], [4, 9]]
    assert one(iou, answered("2 to 8"), golds) == 1.0
    assert one(iou, answered("4 to 10"), golds) == pytest.approx(5 / 6.0003)  # with [4, 9]


def test_a_gold_without_length_is_met_by_the_same_instant_and_an_inverted_one_is_refused() -> None:
    assert one(iou, answered("5 to 5"), [5, 5]) == 1.0
    assert one(iou, answered("4 to 6"), [5, 5]) == pytest.approx(0.0, abs=1e-4)
    with pytest.raises(TaskDataError, match="the end not before the start"):
        one(iou, answered("5 to 6"), [6, 5])


# Question answering


def test_multiple_choice() -> None:
    assert one(multiple_choice, answered("Answer: B"), "B") == 1.0
    assert one(multiple_choice, answered("Answer: A"), "B") == 0.0
    assert one(multiple_choice, answered("b"), "<answer>B. a dog</answer>") == 1.0
    assert one(multiple_choice, answered("a dog"), "B", ["a cat", "a dog"]) == 1.0
    assert one(multiple_choice, answered("B"), "a dog", ["a cat", "a dog"]) == 1.0
    with pytest.raises(TaskDataError, match="the letter or text of an option"):
        one(multiple_choice, answered("B"), "E", ["A", "B"])


def test_naming_every_option_is_no_choice() -> None:
    assert one(multiple_choice, answered("A, B, C, D"), "A", ["A", "B", "C", "D"]) == 0.0


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        ("12.5", "12.5", 1.0),
        ("12.54", 12.5, 1.0),  # both 12.5
        ("12.4", 12.0, 0.5),  # 12.4 and 12.0; both 12
        ("11.4", 12, 0.0),
        ("-3", "3", 0.0),  # quirk: the sign of an integer was lost
        ("1,200", "1200", 1.0),
        ("3/4", "0.75", 1.0),
        ("2 dogs", "2", 1.0),
        ("none", "2", 0.0),
    ],
)
def test_numerical_worked_by_hand(answer: str, gold: Any, expected: float) -> None:
    assert one(numerical, answered(answer), gold) == expected


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        ("75", 100, 0.75),  # 1 - 25 / 100
        ("125", "100", 0.75),
        ("-100", 100, 0.0),
        ("300", 100, 0.0),
        ("-90", -100, 0.9),
        ("0", 0, 1.0),  # quirk: 0 as published
        ("1", 0, 0.0),
        ("1e308", -1e308, 0.0),
        ("?", 100, 0.0),
    ],
)
def test_regression_worked_by_hand(answer: str, gold: Any, expected: float) -> None:
    assert one(regression, answered(answer), gold) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        ("no parking any time", "no parking any time", 1.0),
        ("No parking any time", "no parking any time", 0.75),  # one of four replaced
        ("parking any time", "no parking any time", 0.75),  # one missing
        ("please no parking any time", "no parking any time", 0.75),  # one too many
        ("any parking", "parking any", 0.0),  # two edits of two
        ("a b c d e", "x", 0.0),
        ("b c x d", "a b c d", 0.5),  # a missing, x too many
    ],
)
def test_ocr_worked_by_hand(answer: str, gold: str, expected: float) -> None:
    assert one(ocr, answered(answer), gold) == expected


WORDS = st.lists(st.sampled_from("abcd"), max_size=12)


@given(WORDS, WORDS.filter(bool))
def test_edit_distance_is_that_of_the_plain_table(words: list[str], gold: list[str]) -> None:
    row = list(range(len(gold) + 1))
    for i, word in enumerate(words, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(gold, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    expected = max(0.0, 1 - row[-1] / len(gold))
    assert one(ocr, answered(" ".join(words)), " ".join(gold)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("gold", "answer", "expected"),
    [
        # rouge-score 0.1.2, use_stemmer=True: mean of the F of rouge1, rouge2, rougeL (in brackets).
        ("The man opens the door", "A man opened the doors quickly", 0.7070707070707068),  # 8/11, 2/3, 8/11
        ("A dog is running in the park", "the dog runs through a park", 0.4102564102564102),  # 10/13, 0, 6/13
        ("She used the knife to cut carrots", "using a knife", 0.26666666666666666),  # 2/5, 0, 2/5
        ("The man opens the door", "", 0.0),
        ("The man opens the door", "!?", 0.0),
    ],
)
def test_free_form_is_that_of_the_rouge_score_package(gold: str, answer: str, expected: float) -> None:
    assert one(free_form, answered(answer), gold) == pytest.approx(expected, abs=1e-12)


def test_free_form_gold_of_one_word_scores_one() -> None:
    assert one(free_form, answered("Yes."), "yes") == 1.0
    # Two words for one: ROUGE-1 = ROUGE-L = 2 * 1 / (2 + 1).
    assert one(free_form, answered("yes sir"), "yes") == pytest.approx(2 / 3)


def test_quirk_free_form_counts_letters_of_other_scripts() -> None:
    assert one(free_form, answered("男人开门"), "男人开门") == 1.0
    # 3 of 4 characters in common and 2 of 3 pairs: (3/4 + 2/3 + 3/4) / 3.
    assert one(free_form, answered("男人开窗"), "男人开门") == pytest.approx((3 / 4 + 2 / 3 + 3 / 4) / 3)
    assert one(free_form, answered("собака"), "кошка") > 0.0
    assert one(free_form, answered("abc"), "男人开门") == 0.0


# Grounded question answering


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("From 2.0 to 8.0 seconds. (B)", 2.0),
        ("(B) 2 to 8", 2.0),
        ("B", 1.0),
        ("From 2 to 8 seconds", 1.0),
        ("From 2 to 8 seconds. (A)", 1.0),
        ("From 4 to 10 seconds. Option B", 1.49998125),  # 4 / 8.0003 + 1
        ("From 20 to 30. (A)", 0.0),
    ],
)
def test_quirk_grounded_qa_is_the_sum_of_both_parts(answer: str, expected: float) -> None:
    assert one(grounded_qa, answered(answer), "From 2.0 to 8.0 seconds. (B)") == pytest.approx(expected, abs=1e-8)
    assert one(grounded_qa, answered(answer), {"span": [2, 8], "answer": "B"}) == pytest.approx(expected, abs=1e-8)


def test_grounded_qa_with_a_text_as_gold() -> None:
    gold = {"span": [[2, 8], [20, 30]], "answer": "The man opens the door"}
    assert one(grounded_qa, answered("A man opened the doors quickly, 20 to 30"), gold) == pytest.approx(1.707070707)
    assert one(grounded_qa, answered("between 2 and 8: the man opens the door"), gold) == 2.0


def test_grounded_qa_options_name_a_letter() -> None:
    options = ["a cat", "a dog"]
    assert one(grounded_qa, answered("2 to 8, a dog"), "From 2 to 8. B", options) == 2.0
    assert one(grounded_qa, answered("2 to 8, B"), "From 2 to 8. a dog", options) == 2.0


@pytest.mark.parametrize(("span", "expected"), [("plain", 0.33331667), ("short", 0.22219444), ("chapters", 0.66663333)])
def test_grounded_qa_cuts_the_span_part(span: str, expected: float) -> None:
    value = one(grounded_qa, answered("6 to 8, B"), "From 2 to 8. B", span=span)
    assert value == pytest.approx(1 + expected, abs=1e-8)


def test_grounded_qa_refuses_bad_gold_and_options() -> None:
    for gold in ("(B)", "From 2 to 8.", {"span": [2, 8]}, {"answer": "B"}, {"span": "?", "answer": "B"}, [2, 8]):
        with pytest.raises(TaskDataError, match="a span and an answer"):
            one(grounded_qa, answered("2 to 8, B"), gold)
    with pytest.raises(ValueError, match="'long'"):
        grounded_qa([], [], span="long")


# Format and tool bonus


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("<think>a</think><answer>b</answer>", 1.0),
        (" <think>a</think>\n\n<answer>b</answer>\n", 1.0),
        (f"{CALL}<answer>b</answer>", 1.0),
        ("<think>a</think><tool_call>{}</tool_call><answer>b</answer>", 1.0),
        # quirk: accepted as published.
        ("so <think>a</think><answer>b</answer>", 0.0),
        ("<think>a</think><answer>b</answer> done", 0.0),
        ("<think></think><answer>b</answer>", 0.0),
        ("<think>a</think><answer> \n</answer>", 0.0),
        ("<think>a <answer>c</answer></think><answer>b</answer>", 0.0),
        ("<think>a<think>b</think><answer>c</answer>", 0.0),
        # Refused as published.
        ("<think>a</think> so <answer>b</answer>", 0.0),
        ("<think>a</think><think>b</think><answer>c</answer>", 0.0),
        ("<think>a</think><tool_call>{}</tool_call><tool_call>{}</tool_call><answer>c</answer>", 0.0),
        ("<answer>b</answer>", 0.0),
        ("<answer>b</answer><think>a</think>", 0.0),
        ("<tool_call>{}</tool_call><think>a</think><answer>b</answer>", 0.0),
        (CALL, 0.0),
        ("<think>a</think><b>c</b><answer>b</answer>", 0.0),
        ("<think>a</think><answer>b", 0.0),
        ("<think>a</answer>", 0.0),
        ("<Think>a</Think><answer>b</answer>", 0.0),
        ("", 0.0),
        (None, 0.0),
    ],
)
def test_format(completion: Any, expected: float) -> None:
    assert format([completion], [{}]) == [expected]


@pytest.mark.parametrize(
    ("num_calls", "options", "expected"),
    [
        (0, {}, 1.0),
        (1, {}, 1.5),
        (2, {}, 2.0),
        (5, {}, 2.0),
        (2, {"max_tool_calls": 1}, 1.5),
        (2, {"max_tool_calls": 0}, 1.0),
        (-1, {}, 1.0),
        (None, {}, 1.0),
        ("2", {}, 1.0),
    ],
)
def test_bonus_is_half_for_each_call_up_to_the_limit(num_calls: Any, options: Any, expected: float) -> None:
    completion = f"{CALL}<answer>b</answer>"
    assert format([completion], [{"valid_tool_calls": num_calls}], **options) == [expected]


def test_quirk_no_bonus_without_format() -> None:
    assert format([f"{CALL}b"], [{"valid_tool_calls": 2}]) == [0.0]


def test_quirk_no_bonus_where_the_tool_was_of_no_use() -> None:
    sample = {"valid_tool_calls": 1, "task": "temporal_grounding", "ground_truth": [2, 8]}
    right, half, wrong = (
        f"{CALL}<answer>{span}</answer>" for span in ("2 to 8", "4 to 10", "20 to 30")
    )  # IoU 1, 0.49998, 0
    assert format([right, half, wrong], [sample] * 3) == [1.5, 1.0, 1.0]
    assert format([right, half, wrong], [sample] * 3, useful_from=0.4) == [1.5, 1.5, 1.0]
    assert format([right, half, wrong], [sample] * 3, useful_from=0) == [1.5, 1.5, 1.5]


def test_usefulness_is_a_share_of_the_tasks_maximum() -> None:
    sample = {"valid_tool_calls": 1, "task": "grounded_qa", "ground_truth": "From 2 to 8. (B)"}
    completion = f"{CALL}<answer>B</answer>"  # 1 of 2
    assert format([completion], [sample], useful_from=0.5) == [1.5]
    assert format([completion], [sample], useful_from=0.51) == [1.0]


@pytest.mark.parametrize("extra", [{"task": "ocr"}, {"ground_truth": "b"}, {"task": "unknown", "ground_truth": "b"}])
def test_unknown_usefulness_pays(extra: dict[str, Any]) -> None:
    assert format([f"{CALL}<answer>c</answer>"], [{"valid_tool_calls": 1, **extra}]) == [1.5]


def test_format_options_are_checked() -> None:
    with pytest.raises(ValueError, match="-1"):
        format([], [], max_tool_calls=-1)
    for share in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="useful_from"):
            format([], [], useful_from=share)


# Any task


@pytest.mark.parametrize("name", TASKS)
def test_task_is_the_reward_over_its_maximum(name: str) -> None:
    sample = {"task": name, "ground_truth": GOLDS[name]}
    reward, maximum = TASKS[name]
    completion = answered("From 3 to 8: (B) the man opens a window, NO sign")
    assert task([answered(GOLDS[name])], [sample]) == [1.0]
    (value,) = reward([completion], [sample])
    assert task([completion], [sample]) == [value / maximum]


def test_a_row_without_task_is_unscored_and_an_unknown_task_is_an_error() -> None:
    assert task(["a"] * 2, [{"task": "ocr", "ground_truth": "a"}, {"ground_truth": "a"}]) == [1.0, None]
    for name in ("x", []):
        with pytest.raises(TaskDataError, match="none of temporal_grounding"):
            task(["a"], [{"task": name, "ground_truth": "a"}])


# Anything

PIECES = [
    "<think>", "</think>", "<answer>", "</answer>", "<tool_call>", "</tool_call>", " ", "\n", ",", "-", "to", "and",
    "1", "2.5", "1:05", "9" * 400, "1e308", "-", "/", "0", "A", "B", "I", "yyyyyy", "the door", "门", "é", "\x00", "[",
    "{",
]  # fmt: skip
TEXTS = st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=25).map("".join))


@given(TEXTS, st.sampled_from([*GOLDS.values(), 0, -1e308, 5e-324]), st.integers(0, 5))
def test_any_text_scores_within_range(text: str, gold: Any, num_calls: int) -> None:
    for name, (reward, maximum) in TASKS.items():
        sample = {"task": name, "ground_truth": gold, "valid_tool_calls": num_calls}
        for completion in (text, answered(text)):
            (value,) = score_each(reward, [completion], [sample])
            assert value is None or 0.0 <= value <= maximum
            (value,) = format([completion], [sample])
            assert value is not None and 0.0 <= value <= 2.0


@given(TEXTS)
def test_any_gold_is_scored_or_unscored(text: str) -> None:
    for reward, maximum in TASKS.values():
        for gold in (text, {"span": text, "answer": text}, [text, text]):
            sample = {"ground_truth": gold, "options": [text or "b", "a"]}
            (value,) = score_each(reward, [answered("From 1 to 2.5. B")], [sample])
            assert value is None or 0.0 <= value <= maximum


# At quadratic cost some of these take minutes, and the suite's own time limit ends the test.
@pytest.mark.parametrize(
    "piece", ["a b ", "门", "y", f"{'y' * 64} ", "ings", "<think>a", "<think>a</think><tool_call>b</tool_call>"]
)
def test_long_hostile_text_is_scored_quickly(piece: str) -> None:
    text = (piece * MAX_ANSWER_CHARS)[: MAX_ANSWER_CHARS - 1]
    assert one(ocr, answered(text), "b a " * 4000) is not None
    assert one(free_form, answered(text), "门b " * 4000) is not None
    assert format([piece * 50_000], [{}]) == [0.0]
