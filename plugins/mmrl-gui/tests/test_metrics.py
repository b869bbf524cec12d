"""Benchmark metrics by hand."""

import math

import pytest

from mmrl_core.errors import ConfigError
from mmrl_gui.metrics import grounding, steps
from mmrl_gui.views import actions

SIZE = {"resized_width_px": 1000, "resized_height_px": 500}


def act(name, point=(-100, -100), text="no input text"):
    return f"<answer>[{{'action': '{name}', 'point': {list(point)}, 'input_text': '{text}'}}]</answer>"


def row(action="click", box=(0.1, 0.1, 0.2, 0.2), text="no input text", **columns):
    return {"action": action, "gt_bbox": list(box) if box else None, "input_text": text, **SIZE, **columns}


def test_grounding_by_platform_and_type():
    samples = [
        row(platform="mobile", ui_type="text"),
        row(platform="mobile", ui_type="icon"),
        row(platform="web", ui_type="text"),
        row(platform="web", ui_type="text"),
    ]
    # the box is 100..200 x 50..100 pixels
    completions = [act("click", (100, 50)), act("click", (99, 50)), act("scroll", (150, 75)), "?"]
    assert grounding(completions, samples) == {
        "accuracy": 0.5,
        "macro_accuracy": pytest.approx((1 + 0 + 0.5) / 3),
        "readable": 0.75,
        "num_unscored": 0.0,
        "accuracy/icon": 0.0,
        "accuracy/mobile": 0.5,
        "accuracy/mobile/icon": 0.0,
        "accuracy/mobile/text": 1.0,
        "accuracy/text": pytest.approx(2 / 3),
        "accuracy/web": 0.5,
        "accuracy/web/text": 0.5,
    }


def test_rows_without_box_are_unscored():
    result = grounding([act("click", (1, 1))], [row(box=None)])
    assert result["num_unscored"] == 1.0
    assert math.isnan(result["accuracy"])


STEPS = [
    (act("click", (150, 75)), row()),  # right
    (act("click", (300, 75)), row()),  # right name, 0.15 from the centre
    (act("click", (280, 75)), row()),  # right name, out of the box, 0.13 from the centre
    (act("long_press", (150, 75)), row()),  # wrong name, right place
    (act("type", text="blue shoes"), row("type", None, "blue suede shoes")),  # F1 0.8
    (act("type", text="blue sky"), row("type", None, "blue sea")),  # F1 0.5, edits 2 of 8
    (act("scroll", text="up"), row("scroll", None, "DOWN")),
    (act("wait"), row("wait", None)),
    ("?", row("wait", None)),
]


@pytest.mark.parametrize(
    ("rule", "kind", "place", "success"),
    [
        ("default", 7 / 9, 2 / 4, 4 / 9),  # 1, 5, 6, 8
        ("os_atlas", 7 / 9, 2 / 3, 4 / 9),  # 1, 3, 5, 8: an F1 of one half is not above it
        ("gui_odyssey", 7 / 9, 2 / 3, 5 / 9),  # 1, 3, 5, 6, 8: 5 by 6 edits of 16
        ("gui_r1", 7 / 9, 3 / 4, 5 / 7),  # places 1, 3, 4; texts 5, 6; of 4 places and 3 texts
        ("ui_r1", 7 / 9, 3 / 4, 5 / 9),  # 1, 3, 5, 6, 8
    ],
)
def test_steps_by_the_rule_of_each_benchmark(rule, kind, place, success):
    completions, samples = zip(*STEPS, strict=True)
    result = steps(completions, samples, rule=rule)
    assert [result[key] for key in ("type", "grounding", "step_success")] == pytest.approx([kind, place, success])
    assert result["readable"] == pytest.approx(8 / 9)


def test_ui_r1_measures_by_the_width_in_either_direction():
    def places(point, **options):
        samples = [row(box=(0.5, 0.5), resized_width_px=1080, resized_height_px=2400)]
        rules = ("ui_r1", "default")
        return [steps([act("click", point)], samples, rule=rule, **options)["grounding"] for rule in rules]

    # the gold point is (540, 1200); 0.14 of the sides is 151.2 and 336 pixels
    assert places((540, 1351)) == [1.0, 1.0]
    assert places((540, 1352)) == [0.0, 1.0]
    assert places((692, 1200)) == [0.0, 0.0]
    assert places((9.9e149, 1200), completion_convention="per_mille") == [0.0, 0.0]  # too far for a coordinate


def test_gui_r1_leaves_hotkeys_out_of_its_step_success():
    samples = [row("hotkey", None, "ctrl c"), row("type", None, "red")]
    completions = [act("hotkey", text="alt"), act("type", text="red")]
    assert steps(completions, samples, rule="gui_r1")["step_success"] == 1.0
    assert steps(completions, samples)["step_success"] == 0.5


def test_odyssey_counts_a_text_in_the_other_and_half_of_the_edits():
    def success(text, gold):
        return steps([act("type", text=text)], [row("type", None, gold)], rule="gui_odyssey")["step_success"]

    assert success("shoes", "blue suede shoes") == 1.0
    assert success("kitten", "sitting") == 1.0  # 3 edits of 7
    assert success("kitten", "mountain") == 0.0


def test_steps_by_a_column():
    samples = [row("wait", None, kind="a"), row("wait", None, kind="b")]
    result = steps([act("wait"), "?"], samples, by="kind")
    assert (result["step_success/a"], result["step_success/b"]) == (1.0, 0.0)


def test_rows_without_gold_are_unscored_and_unknown_rules_refused():
    assert steps(["?"], [row(box=None)])["num_unscored"] == 1.0
    assert steps(["?"], [{}])["num_unscored"] == 1.0
    with pytest.raises(ConfigError, match="no rule is called 'aitw'"):
        steps([], [], rule="aitw")


def test_the_view_draws_gold_and_answer_in_thousandths():
    assert actions(act("click", (150, 75)), row()) == [
        {"box": pytest.approx([100, 100, 200, 200]), "label": "click", "kind": "gold"},
        {"point": pytest.approx([150, 150]), "label": "click", "kind": "predicted"},
    ]
    assert actions(act("wait"), row("wait", None)) == []
    assert actions(act("click", (150, 75)), {"action": "click", "gt_bbox": [0.5, 0.5]}) == [
        {"point": [500.0, 500.0], "label": "click", "kind": "gold"}
    ]
    assert actions("?", {}) == []
