"""Rewards of GUI-R1 and UI-R1: worked cases of the published rules, and their mended quirks."""

import pytest

from mmrl_core.errors import TaskDataError
from mmrl_gui import rewards

CLICK = {"action": "click", "gt_bbox": [10, 20, 30, 40], "input_text": "no input text"}
SCROLL = {"action": "scroll", "gt_bbox": [-0.1, -0.1], "input_text": "UP"}
TYPE = {"action": "type", "gt_bbox": [-0.1, -0.1], "input_text": "blue suede shoes"}


def answer(body, thinking="x"):
    return f"<think>{thinking}</think><answer>{body}</answer>"


def act(name, point=(-100, -100), text="no input text"):
    return answer(f"[{{'action': '{name}', 'point': {list(point)}, 'input_text': '{text}'}}]")


def one(reward, completion, sample, **options):
    return reward([completion], [sample], **options)[0]


def accuracy(completion, sample, **options):
    return one(rewards.gui_r1_accuracy, completion, sample, **{"solution_convention": "absolute_px", **options})


# GUI-R1: accuracy


@pytest.mark.parametrize(
    ("point", "expected"),
    [((20, 30), 1.0), ((10, 20), 1.0), ((30, 40), 1.0), ((9, 30), 0.0), ((20, 41), 0.0), ((-100, -100), 0.0)],
)
def test_a_click_has_to_lie_in_the_box_edges_included(point, expected):
    assert accuracy(act("click", point), CLICK) == expected


def test_strict_edges_are_a_miss_as_released():
    assert accuracy(act("click", (10, 30)), CLICK, edges="strict") == 0.0
    assert accuracy(act("click", (11, 30)), CLICK, edges="strict") == 1.0


@pytest.mark.parametrize(("x", "expected"), [(200 + 139, 1.0), (200 + 141, 0.0)])
def test_a_gold_point_without_image_size_takes_140_pixels(x, expected):
    assert accuracy(act("click", (x, 300)), CLICK | {"gt_bbox": [200, 300]}) == expected


@pytest.mark.parametrize(("point", "expected"), [((240, 300), 0.0), ((227, 300), 1.0), ((200, 355), 1.0)])
def test_a_gold_point_with_image_size_takes_14_percent_of_each_side(point, expected):
    # 200 x 400: 0.14 is 28 px across and 56 px down
    sample = CLICK | {"gt_bbox": [200, 300], "resized_width_px": 200, "resized_height_px": 400}
    assert accuracy(act("click", point), sample) == expected


def test_gold_in_shares_means_the_same_place_in_every_convention():
    sample = CLICK | {"gt_bbox": [0.25, 0.5, 0.5, 1.0], "resized_width_px": 280, "resized_height_px": 140}
    # x 70..140 and y 70..140 of 280 x 140 pixels; x 250..500 and y 500..1000 per mille
    for convention, inside, outside in [
        ("absolute_px", (100, 100), (100, 60)),
        ("per_mille", (357, 714), (357, 428)),
        ("unit", (0.357, 0.714), (0.357, 0.428)),
    ]:
        options = {"completion_convention": convention, "solution_convention": "unit"}
        assert accuracy(act("click", inside), sample, **options) == 1.0
        assert accuracy(act("click", outside), sample, **options) == 0.0
    without_size = CLICK | {"gt_bbox": [0.25, 0.5, 0.5, 1.0]}
    with pytest.raises(TaskDataError, match="lacks the size of the picture"):
        accuracy(act("click", (100, 100)), without_size, solution_convention="unit")
    assert accuracy(act("click", (300, 700)), without_size, solution_convention="unit", **PER_MILLE) == 1.0


PER_MILLE = {"completion_convention": "per_mille"}


def test_a_wrong_name_is_wrong_and_case_makes_no_difference():
    assert accuracy(act("long_press", (20, 30)), CLICK) == 0.0
    assert accuracy(act("CLICK", (20, 30)), CLICK) == 1.0


def test_a_missing_point_does_not_hit_a_target_at_the_corner():
    corner = CLICK | {"gt_bbox": [0, 0, 50, 50]}
    assert accuracy(answer("[{'action': 'click'}]"), corner) == 0.0
    assert accuracy(act("click", (0, 0)), corner) == 1.0


def test_directions_are_equal_but_for_case():
    assert accuracy(act("scroll", text="up"), SCROLL) == 1.0
    assert accuracy(act("scroll", text="upwards"), SCROLL) == 0.0
    assert accuracy(act("scroll", text="down"), SCROLL) == 0.0


def test_texts_need_an_f1_of_one_half():
    assert accuracy(act("type", text="Blue shoes"), TYPE) == 1.0  # 0.8
    assert accuracy(act("type", text="blue and yellow"), TYPE) == 0.0  # 1/3
    assert accuracy(act("type", text="blue and yellow"), TYPE, text_threshold=0.3) == 1.0
    assert accuracy(act("type"), TYPE) == 0.0
    assert accuracy(act("type", text="1999"), TYPE | {"input_text": 2024}) == 0.0  # a gold text may be a number
    assert accuracy(act("type", text="2024"), TYPE | {"input_text": 2024}) == 1.0


@pytest.mark.parametrize(
    ("predicted", "gold", "expected"),
    [
        ("blue suede shoes", "Blue shoes", 0.8),  # p 2/3, r 1
        ("[blue]", "blue", 1.0),
        ("b", "blue", 0.0),  # published: 1
        ("红色鞋", "红色的鞋", 6 / 7),  # characters: 3 of 3, 3 of 4
        ("", "blue", 0.0),
        ("", "", 0.0),
    ],
)
def test_text_f1(predicted, gold, expected):
    assert rewards.text_f1(predicted, gold) == pytest.approx(expected)


def test_actions_without_argument_are_right_by_name_the_slash_included():
    for name in ("complete", "close/delete", "press_back"):
        assert accuracy(act(name), {"action": name, "gt_bbox": [-0.1, -0.1], "input_text": "no input text"}) == 1.0


def test_every_pointing_action_needs_its_point_and_open_app_its_text():
    assert accuracy(act("long_press", (99, 99)), CLICK | {"action": "long_press"}) == 0.0
    app = {"action": "open_app", "gt_bbox": [], "input_text": "Clock"}
    assert accuracy(act("open_app", text="Maps"), app) == 0.0
    assert accuracy(act("open_app", text="clock"), app) == 1.0


def test_of_several_actions_the_first_counts_or_none():
    several = answer("[{'action': 'click', 'point': [20, 30]}, {'action': 'click', 'point': [99, 99]}]")
    assert accuracy(several, CLICK) == 1.0
    assert accuracy(several, CLICK, several="reject") == 0.0


def test_the_sum_of_the_paper_gives_partial_credit():
    assert accuracy(act("click", (99, 99)), CLICK, mode="sum") == 0.5
    assert accuracy(act("scroll", (20, 30)), CLICK, mode="sum") == 0.5
    assert accuracy(act("click", (20, 30)), CLICK, mode="sum") == 1.0


@pytest.mark.parametrize("gold", [{}, {"action": ""}, {"action": None}, CLICK | {"gt_bbox": None}])
def test_rows_without_gold_are_unscored(gold):
    assert accuracy(act("click", (20, 30)), gold) is None
    assert one(rewards.gui_r1, act("click", (20, 30)), gold) is None


@pytest.mark.parametrize(
    ("gold", "expected"),
    [
        (CLICK | {"gt_bbox": [1, 2, 3]}, "a box of four numbers or a point of two"),
        (CLICK | {"gt_bbox": "left"}, "a box of four numbers or a point of two"),
        (CLICK | {"action": ["click", "type"]}, "the name of an action"),
        (CLICK, "beyond the picture in the convention 'unit'"),
    ],
)
def test_gold_that_cannot_be_used_is_an_error_that_says_what_is_expected(gold, expected):
    with pytest.raises(TaskDataError, match=expected):
        one(rewards.gui_r1, act("click", (20, 30)), gold)


@pytest.mark.parametrize("point", ["'[20, 30]'", '"(20, 30)"', "['20', '30']", "{'x': 20, 'y': 30}"])
def test_quoted_coordinates_are_read(point):
    assert accuracy(answer(f"[{{'action': 'click', 'point': {point}, 'input_text': ''}}]"), CLICK) == 1.0


def test_an_answer_before_the_thinking_counts_and_one_inside_it_does_not():
    block = "<answer>[{'action': 'click', 'point': [20, 30]}]</answer>"
    assert accuracy(f"{block}<think>There it is.</think>", CLICK) == 1.0
    assert accuracy(f"<think>Maybe {block}</think>", CLICK) == 0.0
    assert accuracy(f"{block}<think>no</think>{block.replace('20', '9')}", CLICK) == 0.0


# GUI-R1: format and total


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (act("click", (1, 2)), 1.0),
        (act("click", (1, 2)) + "\n", 1.0),
        (act("click", (1, 2)).replace("</think>", "</think> \n "), 1.0),
        (answer('[{"action": "click", "point": [1, 2], "input_text": "no input text"}]'), 1.0),
        (answer("{'action': 'click', 'point': [1, 2], 'input_text': 'x'}"), 1.0),
        ("so: " + act("click", (1, 2)), 0.0),
        (act("click", (1, 2)) + act("click", (1, 2)), 0.0),
        (act("click", (1, 2)).replace("<think>x</think>", ""), 0.0),
        (answer("[]"), 0.0),
        (answer("click"), 0.0),
        (act("click", (1.5, 2)), 0.0),
        (act("click", (1, 2, 3)), 0.0),
        (answer("[{'action': 'click', 'point': [True, 2], 'input_text': 'x'}]"), 0.0),
        (answer("[{'action': 'click', 'point': ['1', '2'], 'input_text': 'x'}]"), 0.0),
        (answer("[{'action': 'click', 'point': [1, 2]}]"), 0.0),
        (act("type"), 0.0),
        (act("type", text="red"), 1.0),
        (act("type", text=""), 1.0),  # as published: only the filler is refused
        (act("open_app"), 0.0),
        (act("scroll", text="up"), 1.0),
        (act("scroll", text="UP"), 0.0),
        (act("scroll", text="upwards"), 0.0),
        (answer("__import__('os').getcwd()"), 0.0),
    ],
)
def test_gui_r1_format(completion, expected):
    assert one(rewards.gui_r1_format, completion, {}) == expected


def test_thinking_may_quote_an_answer():
    completion = act("click", (20, 30)).replace("x</think>", "not <answer>[{'action': 'wait'}]</answer></think>")
    assert accuracy(completion, CLICK) == 1.0
    assert one(rewards.gui_r1_format, completion, CLICK) == 1.0


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (act("click", (20, 30)), 1.0),
        (act("click", (99, 30)), 0.2),
        (act("click", (20, 30)).removeprefix("<think>x</think>"), 0.8),
        ("", 0.0),
    ],
)
def test_the_total_is_four_fifths_accuracy_and_one_fifth_format(completion, expected):
    score = one(rewards.gui_r1, completion, CLICK, solution_convention="absolute_px")
    assert score == pytest.approx(expected)


# UI-R1

TARGET = {"solution": "<answer>[{'action': 'click', 'coordinate': [100, 200, 300, 260]}]</answer>", "scale": [2.0, 4.0]}
BACK = {"solution": "<answer>[{'action': 'navigate_back', 'coordinate': [0, 0, 0, 0]}]</answer>", "scale": [1.0, 1.0]}


def click(*points, thinking="<think>x</think>"):
    items = ", ".join(f"{{'action': 'click', 'coordinate': {list(point)}}}" for point in points)
    return f"{thinking}<answer>[{items}]</answer>"


@pytest.mark.parametrize(
    ("point", "expected"),
    # x 50..150 and y 50..65 of the resized picture
    [((100, 60), 1.0), ((50, 50), 1.0), ((150, 65), 1.0), ((49, 60), 0.0), ((200, 230), 0.0), ((100, 66), 0.0)],
)
def test_the_point_is_scaled_to_the_original_and_edges_count(point, expected):
    assert one(rewards.ui_r1_coord, click(point), TARGET) == expected
    assert one(rewards.ui_r1_coord_efficient, click(point), TARGET) == expected


def test_points_keep_their_fractions_after_scaling():
    # 100.6 * 1.001 = 100.7, which whole pixels would cut to 100
    sample = {"solution": "<answer>[{'action': 'click', 'coordinate': [100.5, 0, 200, 9.5]}]</answer>", "scale": [1, 1]}
    assert one(rewards.ui_r1_coord, click((100.6, 9)), sample) == 1.0


def test_the_size_that_the_processor_made_comes_before_the_column_scale():
    sample = TARGET | {"width": 1000, "height": 1000, "resized_width_px": 100, "resized_height_px": 100}
    assert one(rewards.ui_r1_coord, click((20, 22)), sample) == 1.0  # (200, 220)
    assert one(rewards.ui_r1_coord, click((100, 60)), sample) == 0.0
    assert one(rewards.ui_r1_coord, click((200, 220)), sample, completion_convention="per_mille") == 1.0


def test_each_sample_of_a_batch_has_its_own_scale():
    samples = [TARGET, TARGET | {"scale": [1.0, 1.0]}]
    assert rewards.ui_r1_coord([click((100, 60))] * 2, samples) == [1.0, 0.0]
    assert rewards.ui_r1_coord([click((200, 230))] * 2, samples) == [0.0, 1.0]


def test_other_actions_are_right_by_name():
    completion = "<think>x</think><answer>[{'action': 'navigate_back'}]</answer>"
    assert [one(reward, completion, BACK) for reward in (rewards.ui_r1_action, rewards.ui_r1_coord)] == [1.0, 1.0]
    assert [one(reward, click((0, 0)), BACK) for reward in (rewards.ui_r1_action, rewards.ui_r1_coord)] == [0.0, 0.0]


def test_the_type_is_right_whatever_the_point_and_the_spelling():
    assert one(rewards.ui_r1_action, click((0, 0)), TARGET) == 1.0
    assert one(rewards.ui_r1_action, '<answer>[{"action" : " Click "}]</answer>', TARGET) == 1.0
    assert one(rewards.ui_r1_action, "<answer>[{'action': 'scroll'}]</answer>", TARGET) == 0.0


def test_no_point_hits_nothing():
    corner = {"solution": "<answer>[{'action': 'click', 'coordinate': [0, 0, 5, 5]}]</answer>", "scale": [1, 1]}
    assert one(rewards.ui_r1_coord, "<answer>[{'action': 'click'}]</answer>", corner) == 0.0
    assert one(rewards.ui_r1_coord, "", corner) == 0.0


def test_several_clicks_count_by_the_first_or_not_at_all():
    both = click((100, 60), (0, 0))
    assert one(rewards.ui_r1_coord, both, TARGET) == 1.0
    assert one(rewards.ui_r1_coord_efficient, both, TARGET) == 0.0
    assert one(rewards.ui_r1_coord, click((0, 0), (100, 60)), TARGET) == 0.0


def test_a_missing_target_is_unscored_and_one_without_box_scale_or_action_an_error():
    completion = click((100, 60))
    no_box = TARGET | {"solution": "<answer>[{'action': 'click', 'coordinate': [0, 0, 0, 0]}]</answer>"}
    with pytest.raises(TaskDataError, match="a click with the box"):
        one(rewards.ui_r1_coord, completion, no_box)
    for text in (completion, ""):
        with pytest.raises(TaskDataError, match="the scale of the screenshot is unknown"):
            one(rewards.ui_r1_coord, text, {"solution": TARGET["solution"]})
    for reward in (rewards.ui_r1_action, rewards.ui_r1_coord):
        assert one(reward, completion, {"scale": [1, 1]}) is None
        with pytest.raises(TaskDataError, match="'nonsense', and the gold has to be an action"):
            one(reward, completion, {"solution": "nonsense", "scale": [1, 1]})


def test_a_target_may_be_data():
    gold = [{"action": "click", "coordinate": [100, 200, 300, 260]}]
    assert one(rewards.ui_r1_coord, click((100, 60)), TARGET | {"solution": gold}) == 1.0


@pytest.mark.parametrize(
    ("completion", "thinking", "nothink"),
    [
        (click((1, 2)), 1.0, 0.0),
        ("\n" + click((1, 2)) + "\n", 1.0, 0.0),
        (click((1, 2), thinking=""), 0.0, 1.0),
        (click((1, 2), thinking="<think> </think>"), 0.0, 0.0),
        ("<think>x</think><answer></answer>", 0.0, 0.0),
        ("<answer>over there</answer>", 0.0, 0.0),
        (click((1, 2)) * 2, 0.0, 0.0),
        ("It is " + click((1, 2), thinking=""), 0.0, 0.0),
    ],
)
def test_ui_r1_formats(completion, thinking, nothink):
    assert one(rewards.ui_r1_format, completion, {}) == thinking
    assert one(rewards.ui_r1_format_nothink, completion, {}) == nothink


# All


@pytest.mark.parametrize(
    "name",
    [
        *("gui_r1_accuracy", "gui_r1", "gui_r1_format", "ui_r1_action", "ui_r1_coord"),
        *("ui_r1_coord_efficient", "ui_r1_format", "ui_r1_format_nothink"),
    ],
)
def test_hostile_completions_score_zero(name):
    sample = CLICK | TARGET | {"gt_bbox": [0.1, 0.2, 0.3, 0.4], "resized_width_px": 280, "resized_height_px": 280}
    hostile = ["", None, "[" * 100_000, answer("[" * 5000), answer("[{'action': 'click', 'point': [NaN, 1e999]}]")]
    hostile += [answer("{" * 5000), answer("[{'action': 'click', 'coordinate': [" + "9" * 4000 + ", 1]}]")]
    hostile += [answer("[{'action': 'click', 'point': [1, 2" + " " * 8000), "<answer>" * 20_000, "\ud800" * 99]
    for completion in hostile:
        assert one(getattr(rewards, name), completion, sample) == 0.0


def test_unknown_options_and_lengths_are_refused():
    for options in ({"mode": "any"}, {"several": "last"}, {"edges": "soft"}, {"completion_convention": "px"}):
        with pytest.raises(ValueError):
            accuracy(act("click", (20, 30)), CLICK, **options)
    with pytest.raises(ValueError):
        rewards.gui_r1_format(["x"], [])
