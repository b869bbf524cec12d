"""The demo's screens show what their rows say, and its starting model reads and writes them in few tokens."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmrl_core.errors import ConfigError, TaskDataError
from mmrl_gui.demo_data import FOCUSED, LABELS, WORDS, theme_colours, widget_screens
from mmrl_gui.demo_model import CLASSES, build_screen_reader, token_targets
from mmrl_gui.parsing import parse_actions
from mmrl_gui.rewards import gui_r1, gui_r1_accuracy

CLICK = "<think></think><answer>[{'action': 'click', 'point': [56, 100], 'input_text': 'no input text'}]</answer>"


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def rows(cache_dir):
    return widget_screens("train", num_rows=80, cache_dir=cache_dir)


def picture(row):
    return np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")).astype(int)


def test_gold_answers_score_the_maximum(rows):
    answers = [f"<think></think>{row['answer']}" for row in rows]
    assert gui_r1(answers, rows, solution_convention="unit") == [1.0] * len(rows)


def test_the_four_kinds_take_turns_and_need_different_actions(rows):
    assert [row["kind"] for row in rows[:4]] == ["press", "scroll", "focus", "write"]
    for row in rows:
        shown = [button["label"] for button in row["buttons"]]
        verb, _, target = row["instruction"].partition(" ")
        expected = {
            "press": ("press", target in shown, "click", "None"),
            "scroll": ("press", target in set(LABELS) - set(shown), "scroll", "None"),
            "focus": ("write", target in WORDS, "click", "None"),
            "write": ("write", target in WORDS, "type", FOCUSED),
        }[row["kind"]]
        assert (verb, True, row["action"], row["history"]) == expected
    directions = {(row["input_text"], row["at_end"]) for row in rows if row["kind"] == "scroll"}
    assert directions == {("up", True), ("down", False)}


def test_widgets_lie_where_the_boxes_say(rows):
    for row in rows[:12]:
        pixels = picture(row)
        background = pixels[0, 0]
        boxes = [button["box_px"] for button in row["buttons"]] + [row["field_px"], row["bar_px"]]
        is_inside = np.zeros(pixels.shape[:2], bool)
        for x1, y1, x2, y2 in boxes:
            assert pixels[y1:y2, x1:x2].std() > 5  # a border and a text at least
            is_inside[y1:y2, x1:x2] = True
        assert (pixels[~is_inside] == background).all()


def test_boxes_do_not_overlap(rows):
    for row in rows:
        covered = np.zeros((row["height"], row["width"]), int)
        for x1, y1, x2, y2 in [button["box_px"] for button in row["buttons"]] + [row["field_px"], row["bar_px"]]:
            covered[y1:y2, x1:x2] += 1
        assert covered.max() == 1


def test_the_hasty_user_clicks_too_low_and_at_times_does_not_scroll(rows):
    scores = {kind: [] for kind in ("press", "scroll", "focus", "write")}
    for row in rows:
        (action,) = parse_actions(row["demonstration"])
        (score,) = gui_r1_accuracy([row["demonstration"]], [row], solution_convention="unit")
        scores[row["kind"]].append(score)
        if row["action"] == "click":
            assert action.name == "click"
            assert action.point.x % 4 == action.point.y % 4 == 0
    means = {kind: sum(values) / len(values) for kind, values in scores.items()}
    assert means["write"] == 1.0
    assert 0.1 < means["press"] < 0.7
    assert 0.45 < means["scroll"] < 1.0  # 20 rows: 0.75 +- 3 standard deviations of 0.1, and not all


def test_rows_are_repeatable_and_longer_sets_start_with_shorter_ones(rows, cache_dir, tmp_path):
    again = widget_screens("train", num_rows=6, cache_dir=tmp_path)
    assert again == rows[:6]
    assert widget_screens("train", num_rows=6, seed=1, cache_dir=cache_dir) != again


def test_splits_share_no_theme():
    themes = [
        theme_colours(f"{split}/{number}")
        for split, count in (("train", 24), ("held_out", 8))
        for number in range(count)
    ]
    assert len({str(theme) for theme in themes}) == 32


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"split": "test"}, "split 'test'"), ({"num_rows": 0}, "num_rows"), ({"max_buttons": 9}, "max_buttons")],
)
def test_wrong_options_are_named(options, reason, tmp_path):
    with pytest.raises(TaskDataError, match=reason):
        widget_screens(**{"split": "train", "num_rows": 1, "cache_dir": tmp_path} | options)
    with pytest.raises(ConfigError, match="28 pixels"):
        widget_screens("train", num_rows=1, size_px=141, cache_dir=tmp_path)


@pytest.fixture(scope="module")
def built(tmp_path_factory, cache_dir):
    directory = tmp_path_factory.mktemp("models") / "reader"
    lines = []
    build_screen_reader(
        directory, tower_steps=2, tower_batch=8, num_screens=80, cache_dir=cache_dir, on_progress=lines.append
    )
    return directory, lines


def test_the_model_is_small_and_was_trained(built):
    model = AutoModelForImageTextToText.from_pretrained(built[0])
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000
    assert len(built[1]) == 1
    assert "step 2/2" in built[1][0]


def test_answers_and_prompts_are_few_tokens_and_round_trip(built, rows):
    tokenizer = AutoProcessor.from_pretrained(built[0]).tokenizer

    def pieces(text):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
        return [tokenizer.decode([token]) for token in ids]

    assert pieces("Task: press Save. Done: None.") == ["Task: press ", "Save", ". Done: None."]
    assert pieces(CLICK)[1:6] == [*("click", "', 'point': [", "56", ", ", "100")]
    for row in rows:
        assert len(pieces(f"<think></think>{row['demonstration']}")) <= 11
        assert len(pieces(row["problem"])) <= 6


def test_the_processor_shows_the_screen_as_it_is(built, rows):
    processor = AutoProcessor.from_pretrained(built[0])
    image = Image.open(io.BytesIO(rows[0]["image"]["bytes"]))
    grid = processor.image_processor(images=[image], return_tensors="pt")["image_grid_thw"]
    assert (grid[0, 1:] * 14).tolist() == [rows[0]["resized_height_px"], rows[0]["resized_width_px"]]


def test_targets_name_the_widget_that_covers_a_token():
    row = {
        "width": 140,
        "buttons": [{"label": "Open", "box_px": [28, 28, 76, 52]}],
        "field_px": [40, 100, 104, 124],
        "bar_px": [126, 0, 140, 140],
        "at_end": True,
    }
    class_ids, centres = token_targets([row])
    names = np.array([*CLASSES, ""])[class_ids[0].view(5, 5)]
    assert names[1].tolist() == ["", "Open", "Open", "", "bar at the end"]
    assert names[3].tolist() == ["", "field", "field", "field", "bar at the end"]
    assert torch.allclose(centres[0, 6], torch.tensor([52 / 140, 40 / 140]))
    assert torch.equal(centres[0, 0], torch.zeros(2))


def test_unknown_options_of_the_screens_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="screens has the key 'colour'"):
        build_screen_reader(tmp_path / "model", screens={"colour": "red"})
