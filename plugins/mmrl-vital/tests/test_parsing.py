"""Reading spans, letters and numbers: each expectation is what a person reads in the text."""

import doctest
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrl_vital import parsing
from mmrl_vital.parsing import (
    MAX_ANSWER_CHARS,
    MAX_SECONDS,
    answer_text,
    parse_choice,
    parse_number,
    parse_span,
    parse_spans,
    split_span,
)

# Pieces that hostile or clumsy completions are made of; plain random text would hardly ever hold a number pair.
PIECES = [
    "<think>", "</think>", "<answer>", "</answer>", "<tool_call>", "</tool_call>", " ", "\n", ",", "-", "−", "to",
    "and", "1", "2.5", "1:05", "99", "9" * 400, "1e9", "1e999", "s", "min", "h", "秒", "到", "½", "/", "0", "(", ")",
    ".", ":", "A", "B", "b", "I", "answer is ", "Option ", "From ", "é", "\x00", "\u0301", "Ｂ", "[", "]", "{", '"',
    "%", "+",
]  # fmt: skip
TEXTS = st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=25).map("".join))


def test_docstring_examples() -> None:
    results = doctest.testmod(parsing)
    assert results.attempted >= 6 and results.failed == 0


# Answer block


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("<think>5 to 8</think><answer> 1 to 2 </answer>", "1 to 2"),
        ("<think>a</think><tool_call>{}</tool_call><think>b</think><answer>B</answer>", "B"),
        ("<think>maybe <answer>A</answer></think><answer>B</answer>", "B"),
        ("<answer>A</answer><answer>B</answer>", "A"),
        ("<think>a</think><answer>cut off", "cut off"),
        ("<think>a</think><answer>two\nlines</answer>", "two\nlines"),
        ("no tags at all", "no tags at all"),
        ("", ""),
        ("<answer></answer>", ""),
        # Nothing but thinking or a tool call holds no answer.
        ("<think>from 5 to 8</think>", None),
        ("<think>from 5 to 8", None),
        ("<think>a</think> from 5 to 8", None),
        ('<tool_call>{"arguments": {"start_time": 5, "end_time": 8}}</tool_call>', None),
        ("<think><answer>B</answer></think>", None),
        ("<tool_call><answer>B</answer></tool_call>", None),
        ("B</answer>", None),
        (None, None),
        (3, None),
        ("x" * (MAX_ANSWER_CHARS + 1), None),
    ],
)
def test_answer_text(completion: object, expected: str | None) -> None:
    assert answer_text(completion) == expected


# Spans


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("From 5.0 to 12.5 seconds.", (5, 12.5)),
        ("The event happens in 5 - 12.5 seconds", (5, 12.5)),
        ("[5, 12.5]", (5, 12.5)),
        ('{"start": 5.0, "end": 12.5}', (5, 12.5)),
        ("**5.0** to **12.5**", (5, 12.5)),
        ("between 5 and 12.5", (5, 12.5)),
        ("starts at 5 and ends at 12.5", (5, 12.5)),
        ("5~12.5", (5, 12.5)),
        ("5 – 12.5", (5, 12.5)),
        ("5—12.5", (5, 12.5)),
        ("5->12.5", (5, 12.5)),
        ("5.0 12.5", (5, 12.5)),
        ("5 to 5", (5, 5)),
        (".5 to 1e1", (0.5, 10)),
        # Of several, the last that is in order.
        ("1 to 2, no, 5 to 12.5", (5, 12.5)),
        ("5 to 12.5; not 13 to 2", (5, 12.5)),
        # Not a span.
        ("12.5 to 5", None),
        ("at 5 seconds", None),
        ("5 of 12", None),
        ("100ms to 200ms", None),
        (f"5 to {'9' * 400}", None),
        ("5 to 99999999999 to 8", None),
        ("5 to 12.5" + " " * MAX_ANSWER_CHARS, None),
        ("", None),
        (None, None),
    ],
)
def test_parse_span(text: str | None, expected: tuple[float, float] | None) -> None:
    assert parse_span(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5s to 12.5s", (5, 12.5)),
        ("5.25sec-12.5sec", (5.25, 12.5)),
        ("5 seconds to 12.5 seconds", (5, 12.5)),
        ("the 5-second mark to the 10-second mark", (5, 10)),
        ("1.5min to 2 minutes", (90, 120)),
        ("1 to 2 minutes", (60, 120)),
        ("30 to 2 min", (30, 120)),  # 30 minutes would be after the end
        ("2m30s to 3m", (150, 180)),
        ("1 min 30 s - 2 min 5 s", (90, 125)),
        ("1 minute and 30 seconds to 2 minutes", (90, 120)),
        ("1h to 1h 0m 5s", (3600, 3605)),
        ("between 1 min and 90 s", (60, 90)),  # 90 s is no part of a minute
        ("5分10秒到6分", (310, 360)),
        ("5ſ to 8ſ", (5, 8)),  # a letter that Python takes for an s where case does not count
    ],
)
def test_quirk_units_may_be_glued_to_a_number(text: str, expected: tuple[float, float]) -> None:
    assert parse_span(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1:05 to 1:10.5", (65, 70.5)),
        ("01:02:03 - 01:02:10", (3723, 3730)),
        ("00:05 and 00:12 min", (5, 12)),
        ("0:50 to 70", (50, 70)),
    ],
)
def test_quirk_clock_times_are_not_split(text: str, expected: tuple[float, float]) -> None:
    assert parse_span(text) == expected


@pytest.mark.parametrize(
    "text", ["从5秒到12.5秒。", "从第5秒至12.5秒", "在5到12.5之间", "５．０～１２．５秒", "視頻5.0到12.5秒"]
)
def test_quirk_letters_of_other_scripts_do_not_hide_numbers(text: str) -> None:
    assert parse_span(text) == (5, 12.5)


@pytest.mark.parametrize("text", ["from 5\nto 12.5", "5.0\n12.5", "Start: 5.0\nEnd: 12.5", "Start: 5 s\n\nEnd: 12.5 s"])
def test_quirk_span_over_two_lines(text: str) -> None:
    assert parse_span(text) == (5, 12.5)


def test_quirk_minus_signs_are_kept_and_told_from_dashes() -> None:
    assert parse_span("-5 to 10") == (-5, 10)
    assert parse_span("from −10 to −5") == (-10, -5)
    assert parse_span("5 -10") == parse_span("5-10") == parse_span("5--10") == (5, 10)
    assert parse_span("clip-5 to 10") == (5, 10)


@pytest.mark.parametrize(
    "text",
    ["Clip 2, from 5 to 12.5", "2 people, 3 dogs: 5 to 12.5", "events 2 and 5 to 12.5", "from 5 to 12.5, 20 frames"],
)
def test_quirk_other_numbers_do_not_shift_the_pairs(text: str) -> None:
    assert parse_span(text) == (5, 12.5)


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("From 5.0 to 12.5 seconds. (B)", "(B)"),
        ("(B) from 5 to 12.5", "(B)"),
        ("B [5, 12.5]", "B"),
        ("Between 5 and 12.5 s: the man sits down.", "the man sits down."),
        ("5-12.5", ""),
    ],
)
def test_split_span_leaves_the_answer(text: str, rest: str) -> None:
    assert split_span(text) == ((5, 12.5), rest)


@pytest.mark.parametrize(
    ("gold", "expected"),
    [
        ([5, 12.5], [(5, 12.5)]),
        ((5, 12), [(5, 12)]),
        ("[5, 12.5]", [(5, 12.5)]),
        ("(5, 12.5)", [(5, 12.5)]),
        ("From 5 to 12.5", [(5, 12.5)]),
        ("<answer>From 5.0 to 12.5 seconds.</answer>", [(5, 12.5)]),
        ([[1, 2], [5, 12.5]], [(1, 2), (5, 12.5)]),
        ("[[1, 2], [5, 12.5]]", [(1, 2), (5, 12.5)]),
        ([[1, 2], [5, 4], "x"], [(1, 2)]),
        ([5, 5], [(5, 5)]),
        ([5, 4], []),
        ([[1, 2]], [(1, 2)]),
        ({"span": [1, 2], "answer": "B"}, [(1, 2)]),
        ([5, math.nan], []),
        ([5, math.inf], []),
        ([0, 10**400], []),
        ([False, True], []),
        ([1, 2, 3], []),
        ("__import__('os').getcwd()", []),
        ("[" * 60_000, []),
        ("5", []),
        (7, []),
        (None, []),
        ({}, []),
    ],
)
def test_parse_spans_reads_literals_only(gold: object, expected: list[tuple[float, float]]) -> None:
    assert parse_spans(gold) == expected


# Choices


CHOOSES_B = [
    "B", "b", "(B)", "(b)", "B.", "B) the dog", "B: the dog", "**B**", "\\boxed{B}", "Ｂ", "选B", "答案是B。", "It's B",
    "Answer: B", "The answer is B", "the answer is b.", "Option B", "I think B", "My choice: B",
    "B, because A is wrong", "The correct option is B", "Option A is wrong. The answer is B", "A man rides, so B",
]  # fmt: skip


@pytest.mark.parametrize("text", CHOOSES_B)
def test_quirk_the_letter_counts_and_not_the_first_capital(text: str) -> None:
    assert parse_choice(text) == "B"
    assert parse_choice(text, ["A", "B", "C", "D"]) == "B"


@pytest.mark.parametrize(
    "text", ["", "Because", "none of them", "A or B", "A, B, C, D", "A and B", "answer: A. answer: B", None]
)
def test_no_choice(text: str | None) -> None:
    assert parse_choice(text) is None


def test_letters_are_restricted_to_the_options() -> None:
    assert parse_choice("I") == "I"
    assert parse_choice("I", ["A", "B"]) is None
    assert parse_choice("E", ["A. cat", "B. dog"]) is None
    assert parse_choice("C or B", ["A", "B"]) == "B"


def test_an_options_text_names_its_letter() -> None:
    assert parse_choice("A dog.", ["A. a cat", "B. a dog"]) == "B"
    assert parse_choice("no", ["Yes", "No"]) == "B"
    assert parse_choice("a dog", ["(C) a cat", "(D) a dog"]) == "D"


# Numbers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("42", 42),
        ("-5", -5),
        ("−5", -5),
        ("-0.5", -0.5),
        ("+7", 7),
        ("x=-2", -2),
        ("-$3", -3),
        ("10-5", 10),
        ("covid-19", 19),
        ("1,234.5", 1234.5),
        ("1,234,567", 1_234_567),
        ("1,23", 1),
        ("1.5e-3", 0.0015),
        ("2E3", 2000),
        ("3/4", 0.75),
        ("-1 / 4", -0.25),
        ("½", 0.5),
        ("50%", 50),
        (".5", 0.5),
        ("5.", 5),
        ("5.2kg", 5.2),
        ("约12个", 12),
        ("２４", 24),
        ("1/0", None),
        ("1e999", None),
        ("9" * 400, None),
        ("nan", None),
        ("", None),
        (None, None),
    ],
)
def test_quirk_full_grammar_of_numbers(text: str | None, expected: float | None) -> None:
    assert parse_number(text) == expected


# Anything


@given(TEXTS)
def test_any_text_is_read_without_error_and_numbers_are_finite(text: str) -> None:
    answer_text(text)
    span, _ = split_span(text)
    # A merged time adds less than an hour to its limit.
    assert span is None or -MAX_SECONDS <= span[0] <= span[1] <= MAX_SECONDS + 3600
    assert all(start <= end and math.isfinite(end - start) for start, end in parse_spans(text))
    assert parse_choice(text) in {None, *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"}
    assert parse_choice(text, ["A. x", "B. y"]) in {None, "A", "B"}
    number = parse_number(text)
    assert number is None or math.isfinite(number)


@given(st.floats(0, 9999), st.floats(0, 9999))
def test_a_span_written_with_two_decimals_is_read_back(a: float, b: float) -> None:
    start, end = sorted((round(a, 2), round(b, 2)))
    assert parse_span(f"From {start:.2f} to {end:.2f} seconds.") == (start, end)


REPEATED = [
    "9", "1,", "111,", "1:11:", "1 to ", "1 ", "-", "1-", "1e", ".1", "1/", "answer is a", "(", " ", "A ",
    "a\u0301\u0316", "<answer>", "<think>", "</think>",
]  # fmt: skip


# At quadratic cost some of these take minutes, and the suite's own time limit ends the test.
@pytest.mark.parametrize("piece", REPEATED)
def test_long_hostile_text_is_read_in_linear_time(piece: str) -> None:
    text = (piece * MAX_ANSWER_CHARS)[:MAX_ANSWER_CHARS]
    answer_text(piece * 100_000)
    span = parse_span(text)
    assert span is None or span[0] <= span[1]
    assert parse_choice(text, ["A", "B"]) in {None, "A", "B"}
    number = parse_number(text)
    assert number is None or math.isfinite(number)
