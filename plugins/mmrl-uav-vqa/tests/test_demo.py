"""The demo's scenes and starting model: answers follow from what is drawn, splits are apart, answers are one token."""

import io
import re
from collections import Counter

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmrl_core.errors import TaskDataError
from mmrl_core.testing import normalize_patches, picture_patches
from mmrl_uav_vqa.demo_data import COLOUR_NAMES, PLACES, aerial_scenes
from mmrl_uav_vqa.demo_model import build_aerial_reader, build_tokenizer, token_targets
from mmrl_uav_vqa.rewards import accuracy


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("rows")


@pytest.fixture(scope="module")
def rows(cache_dir):
    return aerial_scenes("train", num_rows=80, cache_dir=cache_dir)


@pytest.fixture(scope="module")
def built(tmp_path_factory, cache_dir):
    directory = tmp_path_factory.mktemp("models") / "reader"
    lines = []
    build_aerial_reader(
        directory, tower_steps=2, tower_batch=8, num_scenes=80, cache_dir=cache_dir, on_progress=lines.append
    )
    return directory, lines


def answer_from_objects(row):
    cars = [thing for thing in row["objects"] if thing["kind"] == "car"]
    (house,) = [thing for thing in row["objects"] if thing["kind"] == "house"]
    if row["question_type"] == "number":
        return str(len(cars))
    if row["question_type"] == "color":
        return house["color"]
    if row["question_type"] == "location":
        return PLACES[house["place"]]
    return "yes" if any(car["color"] == "red" for car in cars) else "no"


def test_answers_follow_from_what_is_drawn(rows):
    assert [row["answer"] for row in rows] == [answer_from_objects(row) for row in rows]
    assert Counter(row["question_type"] for row in rows) == dict.fromkeys(("color", "number", "yes_no", "location"), 20)


def test_objects_stand_in_places_of_their_own(rows):
    for row in rows:
        places = [thing["place"] for thing in row["objects"]]
        assert len(set(places)) == len(places)
        for thing in row["objects"]:
            x1, y1, x2, y2 = thing["box_px"]
            middle = (x1 + x2) / 2, (y1 + y2) / 2
            centre = 28 * (thing["place"] % 3) + 14, 28 * (thing["place"] // 3) + 14
            assert all(abs(a - b) <= 6 for a, b in zip(middle, centre, strict=True))


def test_paint_is_where_the_box_is_and_of_its_colour(rows):
    """The middle of a car's box shows its paint: the strongest channel of red and blue, all of white, not blue of
    yellow."""
    for row in rows:
        picture = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
        assert picture.size == (84, 84)
        for thing in row["objects"]:
            if thing["kind"] == "car":
                x1, y1, x2, y2 = thing["box_px"]
                red, green, blue = picture.getpixel(((x1 + x2) // 2, (y1 + y2) // 2))
                seen = {
                    "red": red > green + 60 and red > blue + 60,
                    "blue": blue > red + 60 and blue > green + 60,
                    "white": min(red, green, blue) > 150,
                    "yellow": min(red, green) > 120 and blue < 110,
                }
                assert seen[thing["color"]], (row["image_id"], thing, (red, green, blue))


def test_loose_answers_err_as_described(cache_dir):
    rows = aerial_scenes("train", num_rows=80, wrong_label_share=1.0, cache_dir=cache_dir)
    for row in rows:
        if row["question_type"] == "number":
            assert row["loose_answer"] == str(max(0, int(row["answer"]) - 1))
        elif row["question_type"] == "yes_no":
            assert row["loose_answer"] == "no"
        elif row["question_type"] == "color":
            following = {"red": "blue", "blue": "white", "white": "yellow", "yellow": "red"}
            assert row["loose_answer"] == following[row["answer"]]
        else:
            halves = {"top left": "left", "bottom left": "left", "top right": "right", "bottom right": "right"}
            assert row["loose_answer"] == halves.get(row["answer"], row["answer"])
    right = aerial_scenes("train", num_rows=8, wrong_label_share=0.0, cache_dir=cache_dir)
    assert all(row["loose_answer"] == row["answer"] for row in right)


def test_gold_answers_earn_everything_and_evidence_is_what_was_asked_for(rows):
    assert accuracy([f"<answer>{row['answer']}</answer>" for row in rows], rows) == [1.0] * len(rows)
    for row in rows:
        counts = {"number": row["answer"], "yes_no": None, "color": "1", "location": "1"}
        if (count := counts[row["question_type"]]) is not None:
            assert len(row["evidence"]) == int(count)


def test_splits_share_no_part_of_a_photograph(cache_dir, rows):
    held_out = aerial_scenes("held_out", num_rows=40, cache_dir=cache_dir)
    last = {}
    for row in rows:
        last[row["photo"]["name"]] = max(last.get(row["photo"]["name"], 0), row["photo"]["box_px"][2])
    assert all(row["photo"]["box_px"][0] >= last.get(row["photo"]["name"], 0) for row in held_out)


def test_a_set_starts_with_the_rows_of_a_shorter_one_and_seeds_differ(cache_dir, rows):
    assert aerial_scenes("train", num_rows=12, cache_dir=cache_dir) == rows[:12]
    assert aerial_scenes("train", num_rows=12, seed=1, cache_dir=cache_dir) != rows[:12]


def test_a_stage_asks_its_own_types(cache_dir):
    rows = aerial_scenes("train", num_rows=80, question_types=["location"], replay_types=["color"], cache_dir=cache_dir)
    # 20 of location; a tenth of the whole replayed: 20 / 9 rounded
    assert Counter(row["question_type"] for row in rows) == {"location": 20, "color": 2}


@pytest.mark.parametrize(
    ("split", "options"),
    [("test", {}), ("train", {"num_rows": 0}), ("train", {"brightness": 0}), ("train", {"wrong_label_share": 2})],
)
def test_wrong_options_are_refused(tmp_path, split, options):
    with pytest.raises(TaskDataError, match="aerial_scenes"):
        aerial_scenes(split, **{"num_rows": 4, "cache_dir": tmp_path} | options)


def test_each_answer_is_one_token():
    tokenizer = build_tokenizer()
    for answer in (*PLACES, *COLOUR_NAMES, "yes", "no", *"012345"):
        text = f"<think></think><answer>{answer}</answer>"
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert len(ids) == 3
        assert tokenizer.decode(ids) == text


def test_targets_name_what_stands_in_each_token(rows):
    targets = token_targets(rows[:1])[0]
    expected = torch.full((9,), 8)
    for thing in rows[0]["objects"]:
        expected[thing["place"]] = 4 * (thing["kind"] == "house") + COLOUR_NAMES.index(thing["color"])
    assert torch.equal(targets, expected)


def test_the_tower_is_trained_on_the_processors_pixels(built, rows):
    processor = AutoProcessor.from_pretrained(built[0])
    pictures = [Image.open(io.BytesIO(row["image"]["bytes"])) for row in rows[:2]]
    pixels = processor.image_processor(images=pictures, return_tensors="pt")
    assert pixels["image_grid_thw"].tolist() == [[1, 6, 6]] * 2
    ours = normalize_patches(picture_patches([row["image"]["bytes"] for row in rows[:2]]), processor.image_processor)
    both_frames = pixels["pixel_values"].view(2, 36, 3, 2, 14 * 14)  # a still image fills both temporal slices
    torch.testing.assert_close(ours.view(2, 36, 3, 14 * 14), both_frames[:, :, :, 0], atol=1e-5, rtol=0)


def test_the_model_is_small_and_answers_something(built, rows):
    directory, lines = built
    assert re.fullmatch(r"vision tower step 2/2: [\d.]+% of things right, [\d.]+% of places", lines[-1])
    model = AutoModelForImageTextToText.from_pretrained(directory)
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000
    processor = AutoProcessor.from_pretrained(directory)
    picture = Image.open(io.BytesIO(rows[0]["image"]["bytes"]))
    parts = [{"type": "image", "image": picture}, {"type": "text", "text": rows[0]["question"]}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": parts}],
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
        return_tensors="pt",
    )
    generated = model.generate(**inputs, max_new_tokens=4)
    assert inputs["input_ids"].shape[1] < 24 < generated.shape[1] + 24
