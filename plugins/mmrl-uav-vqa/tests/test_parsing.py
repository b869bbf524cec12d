"""Answers out of completions: each type, both ways, and hostile texts. Expected values are worked by hand."""

import pytest

from mmrl_uav_vqa.parsing import (
    QUESTION_TYPES,
    answer_text,
    chosen_option,
    has_format,
    normalized_label,
    parse_area,
    parse_count,
    parse_directions,
    parse_yes_no,
    question_type_of,
)


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("<think>two</think><answer>4</answer>", "4"),
        ("<think>two</think>\n<answer>\n 4 \n</answer>\n", "4"),
        ("no tags around <answer>red</answer> it", "red"),
        ("<answer></answer>", ""),
        ("4", None),
        ("", None),
        ("<answer>4", None),
        ("4</answer>", None),
        ("</answer>4<answer>", None),
        ("<answer>3</answer><answer>4</answer>", None),
        ("<think><answer>3</answer></think><answer>4</answer>", None),
        ("<Answer>4</Answer>", None),
        ("<answer>" + "a" * 2049 + "</answer>", None),
        (None, None),
        (4, None),
    ],
)
def test_answer_text_reads_the_only_block(completion, answer):
    assert answer_text(completion) == answer


def test_a_whole_text_is_an_answer_only_if_asked_and_without_answer_tags():
    assert answer_text(" 4 ", untagged="whole_text") == "4"
    assert answer_text("<answer>4", untagged="whole_text") is None
    assert answer_text("<answer>3</answer><answer>4</answer>", untagged="whole_text") is None


@pytest.mark.parametrize(
    ("completion", "holds"),
    [
        ("<think>a</think><answer>b</answer>", True),
        ("<think>a\nb</think> \n <answer>c\nd</answer>\n", True),
        ("<think></think><answer>b</answer>", True),
        ("<think>a</think><answer> </answer>", False),
        ("<think>a</think><answer></answer>", False),
        ("<answer>b</answer>", False),
        ("<answer>b</answer><think>a</think>", False),
        ("<think>a</think> so <answer>b</answer>", False),
        ("well <think>a</think><answer>b</answer>", False),
        ("<think>a</think><answer>b</answer>!", False),
        ("<think>a</think><think>a</think><answer>b</answer>", False),
        ("<think>a</think><answer>b</answer><answer>b</answer>", False),
        ("<think>a<answer>b</think></answer>", False),
        ("<think><answer>b</answer></think>", False),
        ("</think><think><answer>b</answer>", False),
        ("", False),
        (None, False),
    ],
)
def test_the_format_is_one_think_block_then_one_answer_block(completion, holds):
    assert has_format(completion) is holds


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("yes", "yes"),
        ("Yes.", "yes"),
        ("YES, there is one", "yes"),
        ("no", "no"),
        ("No, there is none.", "no"),
        ("true", "yes"),
        ("False", "no"),
        ("\uff59\uff45\uff53", "yes"),  # full-width letters
        (" no\n", "no"),
        ("'yes'", "yes"),
        ("yes no", None),
        ("no, yes", None),
        ("true or false", None),
        ("yes and false", None),
        ("There is no car", None),
        ("I think yes", None),
        ("maybe", None),
        ("yesterday", None),
        ("nope", None),
        ("", None),
        ("1", None),
    ],
)
def test_yes_or_no(text, said):
    assert parse_yes_no(text) == said


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4", 4),
        ("0", 0),
        ("four", 4),
        ("Twenty", 20),
        ("zero", 0),
        ("none", 0),
        ("4.", 4),
        ("4.0", 4),
        ("(4)", 4),
        ("**4**", 4),
        ("1,200", 1200),
        ("1200", 1200),
        ("-4", -4),
        ("4 vehicles", 4),
        ("There are four cars.", 4),
        ("\uff14", 4),  # full-width digit
        ("4.5", None),
        ("4 or 5", None),
        ("4-5", None),
        ("four, maybe 5", None),
        ("twenty-one", None),
        ("one hundred", None),
        ("thirty one cars", None),
        ("Thirty-one.", None),
        ("4e2", None),
        ("12m2", None),
        ("1,20", None),
        ("٤", 4),  # Arabic-Indic
        ("nan", None),
        ("inf", None),
        ("many", None),
        ("", None),
        ("9" * 400, None),
    ],
)
def test_counts(text, count):
    assert parse_count(text) == count


@pytest.mark.parametrize(
    ("text", "square_metres", "has_unit"),
    [
        ("120", 120.0, False),
        ("120.5", 120.5, False),
        ("0", 0.0, False),
        ("1,250", 1250.0, False),
        ("120m2", 120.0, True),
        ("120 m2", 120.0, True),
        ("120 m\u00b2", 120.0, True),
        ("120 m^2", 120.0, True),
        ("120 sq m", 120.0, True),
        ("120 sq. m.", 120.0, True),
        ("120 sqm", 120.0, True),
        ("120 sq. meters", 120.0, True),
        ("120 square meters", 120.0, True),
        ("120 Square Metres", 120.0, True),
        ("2 ha", 20_000.0, True),
        ("0.5 hectares", 5000.0, True),
        ("0.001 km2", 1000.0, True),
        ("3 sq km", 3e6, True),
    ],
)
def test_areas(text, square_metres, has_unit):
    area = parse_area(text)
    assert area is not None
    assert area.square_metres == pytest.approx(square_metres)
    assert area.has_unit is has_unit


@pytest.mark.parametrize(
    "text", ["12 cars", "about 12", "between 10m2 and 100m2", "m2", "-5 m2", "1e9", "nan", "", "1,20 m2", "9" * 400]
)
def test_what_is_no_area(text):
    assert parse_area(text) is None


@pytest.mark.parametrize(
    ("text", "directions"),
    [
        ("top left", {"top", "left"}),
        ("upper left", {"top", "left"}),
        ("left top", {"top", "left"}),
        ("Top-Left", {"top", "left"}),
        ("topleft", {"top", "left"}),
        ("upperright", {"top", "right"}),
        ("in the lower right corner of the image", {"bottom", "right"}),
        ("the right-hand side", {"right"}),
        ("center", {"center"}),
        ("centre", {"center"}),
        ("middle", {"center"}),
        ("left center", {"left", "center"}),
        ("bottom_left.", {"bottom", "left"}),
    ],
)
def test_directions(text, directions):
    assert parse_directions(text) == directions


@pytest.mark.parametrize("text", ["left of the road", "not left", "left or right", "near", "", "the corner", "lefty"])
def test_what_is_no_direction(text):
    assert parse_directions(text) is None


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Red", "red"),
        ("  a   Parking_lot. ", "parking lot"),
        ("the T-shaped", "t shaped"),
        ("an apple", "apple"),
        ("\uff32\uff25\uff24!", "red"),
        ("theatre", "theatre"),
        ("a", "a"),
        ("the", "the"),
        ("", ""),
    ],
)
def test_labels(text, label):
    assert normalized_label(text) == label


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("A", "red"),
        ("(b)", "blue"),
        ("B.", "blue"),
        ("b) Blue", "blue"),
        ("blue", "blue"),
        ("B. red", "B. red"),
        ("C", "C"),
        ("", ""),
    ],
)
def test_letters_stand_for_options(text, chosen):
    assert chosen_option(text, ["red", "blue"]) == chosen


def test_an_option_that_is_a_letter_is_itself():
    options = ["B", "A"]  # the letters on two roofs
    assert [chosen_option(text, options) for text in ("A", "B", "(A) B")] == ["A", "B", "B"]


@pytest.mark.parametrize(
    ("name", "question_type"),
    [
        ("Number", "number"),
        ("object counting", "number"),
        ("Y/N", "yes_no"),
        ("yes-no", "yes_no"),
        ("Areas", "area"),
        ("Locat.", "location"),
        ("colour", "color"),
        ("Trans.", "transportation"),
        ("Transportation Recognition", "transportation"),
        ("sport", "sports"),
        ("spatial scene inference", "scene"),
        ("weather", None),
        ("", None),
        (None, None),
        (3, None),
    ],
)
def test_names_of_types(name, question_type):
    assert question_type_of(name) == question_type


def test_every_type_goes_by_its_own_name():
    assert [question_type_of(name) for name in QUESTION_TYPES] == list(QUESTION_TYPES)
