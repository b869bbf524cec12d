"""The boxes that the report draws."""

import pytest

from mmrl_core.plugins import load_plugins
from mmrl_visual_rft.views import boxes

GOLD = {"solution": "<answer>[{'Position': [100, 200, 300, 400], 'Confidence': 1.0}]</answer>"}
GOLD_SHAPE = {"box": [100.0, 200.0, 300.0, 400.0], "label": "", "kind": "gold"}


def test_gold_comes_before_predicted_with_confidence_as_label():
    completion = "<think>x</think><answer>[{'Position': [1, 2, 3, 4.5], 'Confidence': 0.957}]</answer>"
    predicted = {"box": [1.0, 2.0, 3.0, 4.5], "label": "0.96", "kind": "predicted"}
    assert boxes(completion, GOLD) == [GOLD_SHAPE, predicted]


def test_grounding_answers_are_read():
    sample = {"solution": "<answer> (10,20),(30,40) </answer>"}
    shapes = boxes("<think>a draft (1,1),(2,2)</think><answer>(11,21),(31,41)</answer>", sample)
    assert [(shape["kind"], shape["box"]) for shape in shapes] == [
        ("gold", [10, 20, 30, 40]),
        ("predicted", [11, 21, 31, 41]),
    ]
    assert [shape["label"] for shape in shapes] == ["", ""]


def test_inverted_corners_stay_as_written():
    assert boxes("<answer>(30,40),(10,20)</answer>", {})[0]["box"] == [30, 40, 10, 20]


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "No Objects",
        "<answer>",
        "<answer>[{'Position': [1, 2, 3], 'Confidence': 1}]</answer>",
        "<answer>[{'Position': [1, 2, 3, 4], 'Confidence': 1}, {'Position': 'x'}]</answer>",
        "<answer>[{'Position': [nan, 2, 3, 1e999]}]</answer>",
        "<script>alert(1)</script>",
        "{" * 100_000,
        None,
    ],
)
def test_what_cannot_be_read_draws_nothing(completion):
    assert boxes(completion, GOLD) == [GOLD_SHAPE]


@pytest.mark.parametrize("sample", [{}, {"solution": None}, {"solution": 7}, {"solution": "garden phlox"}])
def test_a_sample_without_gold_boxes_draws_only_the_prediction(sample):
    assert [shape["kind"] for shape in boxes("<answer>(1,2),(3,4)</answer>", sample)] == ["predicted"]


def test_pixels_become_per_mille_of_the_resized_image():
    sample = GOLD | {"resized_width_px": 560, "resized_height_px": 280}
    shapes = boxes("<answer>(56,28),(280,140)</answer>", sample, completion_convention="absolute_px")
    assert shapes == [GOLD_SHAPE, {"box": [100.0, 100.0, 500.0, 500.0], "label": "", "kind": "predicted"}]


def test_pixels_without_image_size_are_left_out():
    assert boxes("<answer>(56,28),(280,140)</answer>", GOLD, completion_convention="absolute_px") == [GOLD_SHAPE]


def test_an_unknown_convention_is_an_error():
    with pytest.raises(ValueError, match="fathoms"):
        boxes("", {}, completion_convention="fathoms")


def test_view_is_found_by_its_registered_name():
    assert load_plugins().registry.get("view", "visual_rft/boxes").load() is boxes
