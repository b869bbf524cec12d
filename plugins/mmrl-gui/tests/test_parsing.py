"""Answers are read in Python's and JSON's spelling, and nothing in them is evaluated."""

import ast
import json

import pytest

from mmrl_core.media import BoxConvention, Point
from mmrl_gui.actions import ACTION_SETS, ACTIONS, action_name
from mmrl_gui.parsing import action_answer, answer_text, coordinates, parse_actions, parse_literal, stated_text

PX = BoxConvention.ABSOLUTE_PX


def first(body):
    actions = parse_actions(f"<answer>{body}</answer>")
    return actions[0] if actions else None


VALUES = [
    [{"action": "click", "point": [3, -4.5], "input_text": 'it\'s "so"'}],
    {"a": [1, 2, [3]], "b": {}, "c": None, "d": True},
    ["\\", "a\nb", "ünï", ""],
    [0.5, 1e3, -7, 10**20],
    [],
]


@pytest.mark.parametrize("value", VALUES)
def test_literals_are_read_as_python_and_json_read_them(value):
    assert parse_literal(repr(value)) == ast.literal_eval(repr(value)) == value
    assert parse_literal(json.dumps(value, ensure_ascii=False)) == json.loads(json.dumps(value)) == value


@pytest.mark.parametrize(
    "text", ["", "[1", "[1 2]", "{1: 2}", "[1]]", "[print()]", "1+1", "'a", "[,]", "[" * 50, "NaN", "9" * 500]
)
def test_what_is_no_literal_is_refused(text):
    with pytest.raises(ValueError):
        parse_literal(text)


@pytest.mark.parametrize(
    "body",
    [
        "[{'action': 'click', 'point': [3, 4]}]",
        '[{"action": "click", "point": [3, 4]}]',
        '```json\n{"action": "click",\n "point": [3, 4]}\n```',
        "{'action' : 'Click', 'coordinate': (3,4),}",
        "[{'action': 'click', 'point': ['3', ' 4 ']}]",
        "I click: [{'action': 'click', 'point': [3.0, 4]}] (the button)",
        "[{'action': 'click', 'point': [3, 4]}",
        "[see {x}] [{'action': 'click', 'point': [3, 4]}]",
        "[{'action': click, 'point': [3, 4]}]",  # UI-R1's second pattern
    ],
)
def test_an_action_is_read_in_any_spelling(body):
    assert first(body).name == "click"
    assert first(body).point == Point(3, 4, PX)


@pytest.mark.parametrize("point", ["[3]", "[3, 4, 5]", "[-100, -100]", "'3, 4'", "[NaN, 1]", "[True, 1]", "[1e999, 1]"])
def test_what_is_no_place_is_no_point(point):
    action = first(f"[{{'action': 'click', 'point': {point}}}]")
    assert action is None or action.point is None


def test_a_missing_name_is_no_name():
    assert parse_literal("{'action': None, 'x': 1}") == parse_literal('{"action": null, "x": 1}')
    assert first("[{'action': None, 'point': [3, 4]}]") is None


def test_texts_keep_apostrophes_and_the_filler_is_none():
    assert first("""[{'action': 'type', 'input_text': "it's"}]""").text == "it's"
    assert first("[{'action': 'type', 'input_text': 'No Input Text'}]").text is None
    assert first("[{'action': 'scroll', 'direction': 'down'}]").text == "down"
    assert first("[{'action': 'type', 'input_text': 2024}]").text == "2024"
    assert [stated_text(value) for value in (None, True, float("nan"), 10**400, " ")] == [None] * 5


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("<answer>a</answer>", "a"),
        ("<answer>a</answer> <answer>b</answer>", "b"),
        ("<think><answer>a</answer></think>", None),
        ("<think>no end <answer>a</answer>", "a"),
        ("<answer>a", None),
        ("a", None),
        (None, None),
        ("<answer>" + "a" * 9000 + "</answer>", None),
    ],
)
def test_the_last_whole_block_after_the_thinking_is_the_answer(completion, expected):
    assert answer_text(completion) == expected


def test_answers_are_read_back():
    given = [("click", (3, 4), None), ("type", None, "it's \\ \n"), ("scroll", None, "up")]
    actions = parse_actions(f"<answer>{action_answer(given)}</answer>")
    assert [(action.name, action.text) for action in actions] == [
        ("click", None),
        ("type", "it's \\"),  # blanks around a text are no part of it
        ("scroll", "up"),
    ]
    assert [action.point for action in actions] == [Point(3, 4, PX), None, None]


def test_names_have_one_spelling():
    assert [action_name(text) for text in ("Tap", "navigate_back", "INPUT_TEXT", "fly", " ", 3)] == [
        *("click", "press_back", "type", "fly", None, None)
    ]
    for name, offered in ACTION_SETS.items():
        assert all(action_name(action) in ACTIONS for action in offered), name


def test_coordinates_are_finite_numbers():
    assert coordinates((1, "2.5")) == [1, 2.5]
    for wrong in (None, "12", [None], [float("nan")], [float("inf")], [10**400], [True], [[1]]):
        assert coordinates(wrong) is None
