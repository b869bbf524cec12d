"""Reading answers: what is read, what is refused, and that hostile text costs neither time nor an exception."""

import doctest
import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl_core.media import Box, BoxConvention
from mmrl_visual_rft import parsing
from mmrl_visual_rft.parsing import (
    MAX_ANSWER_CHARS,
    MAX_NAME_CHARS,
    MAX_OBJECTS,
    answer_text,
    name_words,
    normalised_name,
    parse_boxes,
    parse_detections,
)

# The answer block


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("<think>t</think><answer>a</answer>", "a"),
        ("<think>t</think>\n<answer>\n a \n</answer>\n", "a"),
        # A draft in the thinking is not the answer (published: "draft").
        ("<think>try <answer>draft</answer></think><answer>a</answer>", "a"),
        ("<think>the <answer> tag</think><answer>a</answer>", "a"),
        ("draft: <answer>draft</answer></think><answer>a</answer>", "a"),
        # Of two blocks after the thinking the first counts, as published; so it does in two whole turns.
        ("<think>t</think><answer>a</answer><answer>b</answer>", "a"),
        ("<think>t</think><answer>a</answer><think>t</think><answer>b</answer>", "a"),
        # The closing tag is missing: to the end. A draft before does not replace it.
        ("<think>t</think><answer>a", "a"),
        ("<answer>a", "a"),
        ("<think><answer>draft</answer></think><answer>a", "a"),
        # The only whole block stands in or before the thinking.
        ("<think>t <answer>a</answer></think>", "a"),
        ("<answer>a</answer><think>t</think>", "a"),
        ("<think>t <answer>a</answer>", "a"),
        # No block: all text after the thinking.
        ("a", "a"),
        ("<think>t</think> a ", "a"),
        ("<think>t <answer> t</think> a", "a"),
        ("", ""),
        ("<answer></answer>", ""),
        # Thinking that never ends has no answer.
        ("<think>a", None),
        ("<think>so <answer>a", None),
        # Tags are case sensitive.
        ("<ANSWER>a</ANSWER>", "<ANSWER>a</ANSWER>"),
        ("<answer><answer>a</answer></answer>", "<answer>a"),
        (None, None),
        (3, None),
    ],
)
def test_answer_block(completion: object, answer: str | None) -> None:
    assert answer_text(completion) == answer


def test_an_answer_that_is_too_long_is_none_however_long_the_thinking() -> None:
    assert answer_text("<think>" + "t" * 500_000 + "</think><answer>a</answer>") == "a"
    assert answer_text("<answer>" + "a" * MAX_ANSWER_CHARS + "</answer>") == "a" * MAX_ANSWER_CHARS
    assert answer_text("<answer>" + "a" * (MAX_ANSWER_CHARS + 1) + "</answer>") is None


# Detection answers

ONE = "{'Position': [1, 2, 3, 4], 'Confidence': 0.5}"
TWO = "{'Position': [5, 6, 7, 8], 'Confidence': 0.25}"
BOX_ONE, BOX_TWO = (1.0, 2.0, 3.0, 4.0), (5.0, 6.0, 7.0, 8.0)


def read(answer: str) -> list[tuple[tuple[float, ...], float | None]] | None:
    detections = parse_detections(answer)
    if detections is None:
        return None
    return [((d.box.x1, d.box.y1, d.box.x2, d.box.y2), d.confidence) for d in detections]


@pytest.mark.parametrize(
    "answer",
    [
        f"[{ONE}, {TWO}]",
        f"[{ONE},\n {TWO}\n]",
        f"[\n  {ONE},\n\n  {TWO},\n]\n",
        f"[{ONE}, {TWO},]",  # trailing comma
        f"[{ONE}, {TWO}, ...]",  # ellipsis
        f"[{ONE}, ..., {TWO}]",
        f"[{ONE}, {TWO}, ...",
        f"[{ONE}, {TWO}",  # final bracket missing: both objects are complete
        f"[{ONE}, {TWO}, {{'Position': [9, 9, 9",  # cut off in the third object
        f"[{ONE}, {TWO}, {{'Position': [9, 9, 9, 9], 'Confidence': 0.9",
        f"[{ONE}, {TWO}, {{",
        f"Here they are: [{ONE}, {TWO}]. It's all I see, isn't it?",  # prose, apostrophes
        f"The set {{a, b}} has two: [{ONE}, {TWO}]",  # braces without a key are prose
        f"```json\n[{ONE}, {TWO}]\n```".replace("'", '"'),
        f"[{ONE}, {TWO}]".replace("'", '"'),
        f"[{ONE.replace(chr(39), chr(34))}, {TWO}]",
        f"[[{ONE}, {TWO}]]",
        f"{ONE} {TWO}",  # no list at all
        f"{ONE}\n{TWO}",
        f"[{ONE[:-1]}, 'Label': 'the man's dog'}}, {TWO}]",  # apostrophe in an extra string
        f"[{ONE[:-1]}, 'Label': {{'name': 'dog'}}}}, {TWO}]",  # nested extra
        f"[{{'Confidence': 0.5, 'Position': [1, 2, 3, 4]}}, {TWO}]",
        f"[{{'Position': [1.0, 2., +3, 4e0,], 'Confidence': .5}}, {TWO}]",
        f"[{{'Position': [[1, 2, 3, 4]], 'Confidence': 5e-1}}, {TWO}]",
        f"[{{'Position' : [ 1 ,\n2, 3, 4 ] , 'Confidence' : 0.5 }}, {TWO}]",
        # Of a repeated key the last counts.
        f"[{{'Position': [9, 9, 9, 9], 'Position': [1, 2, 3, 4], 'Confidence': 1, 'Confidence': 0.5}}, {TWO}]",
    ],
)
def test_complete_objects_are_read_whatever_surrounds_them(answer: str) -> None:
    assert read(answer) == [(BOX_ONE, 0.5), (BOX_TWO, 0.25)]


@pytest.mark.parametrize(
    "confidence",
    [
        "'high'", "'0.9'", '"0.9"', "NaN", "Infinity", "-Infinity", "1e400", "None", "null", "True", "95%", "0x1",
        "1_0", "٠.٩", "１",
    ],
)  # fmt: skip
def test_a_confidence_that_is_no_finite_number_leaves_the_box(confidence: str) -> None:
    assert read(f"[{{'Position': [1, 2, 3, 4], 'Confidence': {confidence}}}]") == [(BOX_ONE, None)]


def test_a_missing_or_empty_confidence_leaves_the_box() -> None:
    assert read("[{'Position': [1, 2, 3, 4]}]") == [(BOX_ONE, None)]
    assert read("[{'Position': [1, 2, 3, 4], 'Confidence': }]") == [(BOX_ONE, None)]
    assert read("[{'Position': [1, 2, 3, 4], 'confidence': 0.5}]") == [(BOX_ONE, None)]


def test_a_confidence_outside_0_to_1_is_kept_as_written() -> None:
    assert read("[{'Position': [1, 2, 3, 4], 'Confidence': -3}]") == [(BOX_ONE, -3.0)]
    assert read("[{'Position': [1, 2, 3, 4], 'Confidence': 95}]") == [(BOX_ONE, 95.0)]


@pytest.mark.parametrize(
    "bad",
    [
        "{'Confidence': 0.5}",
        "{'position': [1, 2, 3, 4], 'confidence': 0.5}",
        "{'Position': [1, 2, 3], 'Confidence': 0.5}",
        "{'Position': [1, 2, 3, 4, 5], 'Confidence': 0.5}",
        "{'Position': [], 'Confidence': 0.5}",
        "{'Position': 1, 'Confidence': 0.5}",
        "{'Position': '1, 2, 3, 4', 'Confidence': 0.5}",
        "{'Position': ['1', '2', '3', '4'], 'Confidence': 0.5}",
        "{'Position': [[1, 2], [3, 4]], 'Confidence': 0.5}",
        "{'Position': [1, 2, 3, None], 'Confidence': 0.5}",
        "{'Position': [1, 2, 3, NaN], 'Confidence': 0.5}",
        "{'Position': [1, 2, 3, Infinity], 'Confidence': 0.5}",
        "{'Position': [1, 2, 3, 1e400], 'Confidence': 0.5}",
        "{'Position': [1, 2, 3, 1e308], 'Confidence': 0.5}",
        "{'Position': [1, 2, 3, " + "9" * 400 + "], 'Confidence': 0.5}",
        "{'Position': [1, 2, 3, ４], 'Confidence': 0.5}",
        "{'Position': [1, 2, 3, 1_0], 'Confidence': 0.5}",
        "{'Position': [1 2 3 4], 'Confidence': 0.5}",
        "{'Position': [1, 2, 3, 4, 'Confidence': 0.5}",
        "{'Position': [__import__('os'), 2, 3, 4], 'Confidence': 0.5}",
    ],
)
def test_an_object_without_a_position_of_four_numbers_spoils_the_answer(bad: str) -> None:
    assert read(f"[{bad}]") is None
    assert read(f"[{ONE}, {bad}]") is None
    assert read(f"[{bad}, {ONE}]") is None


@pytest.mark.parametrize(
    "answer",
    [
        "No Objects", "no objects", "'No Objects'", '"No Objects".', "No Objects.", "['No Objects']", "[]", " [ ]\n",
        "NO OBJECT",
    ],
)  # fmt: skip
def test_no_objects_is_an_answer(answer: str) -> None:
    assert read(answer) == []


@pytest.mark.parametrize(
    "answer",
    [
        "", " ", "[", "]", "{}", "[{}]", "[...]", "...", "nothing", "There are objects", "[100, 100, 200, 200]",
        "[5, 'x']", "{'Position': [1, 2, 3",
    ],
)  # fmt: skip
def test_text_without_objects_is_not_an_answer(answer: str) -> None:
    assert read(answer) is None


def test_no_answer_reads_as_none() -> None:
    assert parse_detections(None) is None


def test_too_many_objects_are_not_read() -> None:
    assert len(read(ONE * MAX_OBJECTS) or []) == MAX_OBJECTS
    assert read(ONE * (MAX_OBJECTS + 1)) is None


def test_boxes_carry_the_convention_asked_for() -> None:
    (detection,) = parse_detections(ONE, BoxConvention.ABSOLUTE_PX) or []
    assert detection.box == Box(1, 2, 3, 4, BoxConvention.ABSOLUTE_PX)
    assert parse_boxes("(1,2),(3,4)", BoxConvention.UNIT) == [Box(1, 2, 3, 4, BoxConvention.UNIT)]


# Grounding answers


def corners(answer: str | None) -> list[tuple[float, ...]]:
    return [(box.x1, box.y1, box.x2, box.y2) for box in parse_boxes(answer)]


@pytest.mark.parametrize(
    "answer",
    [
        "(1,2),(3,4)",
        " ( 1 , 2 ) , ( 3 , 4 ) ",
        "(1,\n2),\n(3, 4)",
        "(1,2)(3,4)",
        "(1,2) (3,4)",
        "<|box_start|>(1,2),(3,4)<|box_end|>",
        "the cup is at (1,2),(3,4).",
        "[1, 2, 3, 4]",
        "[[1, 2, 3, 4]]",
        "[[1, 2], [3, 4]]",
        "[1,2],[3,4]",
        "(1, 2, 3, 4)",
        "((1,2),(3,4))",
        "{'bbox_2d': [1, 2, 3, 4]}",
        "(1.0,2.),(3e0,+4)",
        "(1,2),(3,4))",
        "(1,2),(3,4),",
    ],
)
def test_a_box_is_read_in_each_usual_spelling(answer: str) -> None:
    assert corners(answer) == [(1.0, 2.0, 3.0, 4.0)]


@pytest.mark.parametrize(
    "answer",
    [
        None, "", "1,2,3,4", "(1,2)", "(1,2),(3,4", "(1,2),(3)", "[1,2,3]", "[1,2,3,4,5]", "(1 2),(3 4)", "(a,b),(c,d)",
        "(１,２),(３,４)", "(1,2),(3,NaN)", "(1,2),(3,1e400)", "(1,2),(3,1e308)", "(1,2),(3,0x4)", "(1,2),(3,4_0)",
        "(--1,2),(3,4)",
    ],
)  # fmt: skip
def test_what_is_no_box_is_not_read(answer: str | None) -> None:
    assert corners(answer) == []


def test_signs_and_fractions_are_read() -> None:
    assert corners("(-1.5,.5),(+3.25,4e2)") == [(-1.5, 0.5, 3.25, 400.0)]


def test_several_boxes_keep_their_own_corners() -> None:
    expected = [(1.0, 2.0, 3.0, 4.0), (5.0, 6.0, 7.0, 8.0)]
    assert corners("(1,2),(3,4),(5,6),(7,8)") == corners("[1,2,3,4] and [5,6,7,8]") == expected
    assert corners("[[1,2,3,4],[5,6,7,8]]") == expected


def test_the_number_of_boxes_is_bounded() -> None:
    assert len(parse_boxes("(1,2),(3,4)" * (MAX_OBJECTS + 5))) == MAX_OBJECTS


# Names


@pytest.mark.parametrize(
    "text",
    [
        "garden phlox", "Garden Phlox", "garden_phlox", "garden-phlox", "garden–phlox", "  garden\tphlox\n",
        "gardenphlox.", "'Garden Phlox'!", "ｇａｒｄｅｎ　ｐｈｌｏｘ", "garden\u200bphlox", "garden\u00a0phlox",
    ],
)  # fmt: skip
def test_names_compare_without_case_blanks_hyphens_and_end_punctuation(text: str) -> None:
    assert normalised_name(text) == "gardenphlox"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("F/A-18", "f/a18"),  # punctuation inside stays
        ("737.5", "737.5"),
        ("Straße", "strasse"),
        ("ﬁnch", "finch"),
        ("café", "café"),
        ("cafe\u0301", "café"),
        ("C++", "c++"),  # a sign, not punctuation
        ("...", ""),
        ("", ""),
        (None, ""),
        ("\ud800", "\ud800"),
        ("a" * (MAX_NAME_CHARS + 1), ""),
    ],
)
def test_normalised_name(text: str | None, name: str) -> None:
    assert normalised_name(text) == name


def test_name_words() -> None:
    assert name_words("It's a Desert-Rose_2, ＯＫ?") == ("it", "s", "a", "desert", "rose", "2", "ok")
    assert name_words(None) == name_words("a " * MAX_NAME_CHARS) == ()


# Hostile text

MEGABYTE = 1_000_000
HOSTILE = [
    "[", "]", "{", "}", "(", ")", "'", '"', ",", " ", "\n", ":", "9", "-", ".", "e", "\\", "\x00", "\ud800", "１", "ﷺ",
    "<answer>", "</answer>", "<think>", "</think>", "<answer></answer>", "<think><answer>", "{}", "[]", "[[", "{'",
    "{':", "':", "'Position'", "'Position':", "'Position':[", "{'Position': [", "'Confidence':", "{'Confidence': 1",
    ONE, ONE + ",", "{" + ONE, "{'a':1}", "(1", "(1,", "(1,2),", "(1,2),(3", "(1,2),(3,4)", "[1,2,3,", "( ", " ,", " (",
    "1e", "1.", "((((1,1", "' ", "' :", "No Objects ", "rose ", "a-", "._", "'Position' ", "'Position': [1, ",
    "{'Position': [1,2,3,4], ",
]  # fmt: skip


def every_reader(text: str) -> None:
    answer = answer_text(text)
    parse_detections(answer)
    parse_boxes(answer)
    normalised_name(answer)
    name_words(answer)


@pytest.mark.parametrize("piece", HOSTILE)
@pytest.mark.parametrize("size", [MAX_ANSWER_CHARS - 100, MEGABYTE])
def test_garbage_of_any_length_is_read_in_bounded_time(piece: str, size: int) -> None:
    garbage = piece * (size // len(piece))
    # 65,436 characters are all read, a megabyte is refused; both have to be quick, with tags, without and unclosed.
    for text in (garbage, f"<think></think><answer>{garbage}</answer>", f"<answer>{garbage}", f"<think>{garbage}"):
        start = time.process_time()
        every_reader(text)
        assert time.process_time() - start < 0.2


def test_deep_nesting_does_not_recurse() -> None:
    for opening, closing in ("[]", "{}", "()"):
        answer = opening * 30_000 + ONE + closing * 30_000
        every_reader(answer)
    assert read("[" * 30_000 + ONE + "]" * 30_000) == [(BOX_ONE, 0.5)]


@settings(deadline=None)
@given(st.text() | st.lists(st.sampled_from(HOSTILE)).map("".join))
def test_any_text_gives_finite_numbers_or_nothing(text: str) -> None:
    every_reader(text)
    for detection in parse_detections(text) or []:
        box = detection.box
        assert all(map(math.isfinite, (box.x1, box.y1, box.x2, box.y2)))
        assert detection.confidence is None or math.isfinite(detection.confidence)
    for box in parse_boxes(text):
        assert all(map(math.isfinite, (box.x1, box.y1, box.x2, box.y2)))


numbers = st.integers(-10, 2000) | st.floats(-1e6, 1e6)
objects = st.lists(st.tuples(st.lists(numbers, min_size=4, max_size=4), st.floats(0, 1)), min_size=1, max_size=8)


@settings(deadline=None)
@given(objects, st.integers(0, 400))
def test_cutting_an_answer_keeps_exactly_the_complete_objects(
    items: list[tuple[list[float], float]], length: int
) -> None:
    texts = [f"{{'Position': {position!r}, 'Confidence': {confidence!r}}}" for position, confidence in items]
    answer = f"[{', '.join(texts)}]"
    cut = answer[:length]
    complete = [(tuple(map(float, p)), c) for (p, c), text in zip(items, texts, strict=True)]
    ends = [1 + sum(map(len, texts[: index + 1])) + 2 * index for index in range(len(texts))]
    assert (read(cut) or []) == [item for item, end in zip(complete, ends, strict=True) if end <= len(cut)]


@settings(deadline=None)
@given(st.lists(numbers, min_size=4, max_size=4))
def test_a_written_box_is_read_back(values: list[float]) -> None:
    x1, y1, x2, y2 = values
    expected = [tuple(map(float, values))]
    assert corners(f"({x1!r},{y1!r}),({x2!r},{y2!r})") == corners(f"{values!r}") == expected


def test_examples_in_the_docstrings_hold() -> None:
    result = doctest.testmod(parsing)
    assert result.attempted > 0 and result.failed == 0
