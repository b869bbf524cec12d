"""The demo's starting model: short prompts and answers, right targets, and a tower that learns."""

import io

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmrl_core.errors import ConfigError, TaskDataError
from mmrl_core.testing import picture_patches
from mmrl_viewpoint.demo_data import rendered_pairs
from mmrl_viewpoint.demo_model import build_pose_reader, build_tokenizer, view_bins


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("rows")


@pytest.fixture(scope="module")
def rows(cache_dir):
    return rendered_pairs("train", num_rows=30, cache_dir=cache_dir)


@pytest.fixture(scope="module")
def built(tmp_path_factory, cache_dir):
    """Folder of a model whose tower was trained for a few steps, and the lines it reported."""
    directory, lines = tmp_path_factory.mktemp("models") / "reader", []
    build_pose_reader(
        directory, tower_steps=2, tower_batch=8, num_pairs=30, cache_dir=cache_dir, on_progress=lines.append
    )
    return directory, lines


@pytest.fixture(scope="module")
def model(built):
    return AutoModelForImageTextToText.from_pretrained(built[0])


@pytest.fixture(scope="module")
def processor(built):
    return AutoProcessor.from_pretrained(built[0])


def inputs_of(processor, row):
    parts = [{"type": "image", "image": Image.open(io.BytesIO(image["bytes"]))} for image in row["images"]]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": row["problem"]}]}]
    return processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt"
    )


def pieces(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    return [tokenizer.decode([token]) for token in ids]


def test_a_prompt_has_both_pictures_in_order_and_a_question_of_one_token(processor, rows):
    inputs = inputs_of(processor, rows[0])
    picture = ["<|vision_start|>", *["<|image_pad|>"] * 4, "<|vision_end|>"]
    assert [processor.tokenizer.decode([token]) for token in inputs["input_ids"][0]] == [
        *["<|im_start|>", "user\n", *picture, *picture, rows[0]["problem"]],
        *["<|im_end|>", "\n", "<|im_start|>", "assistant\n"],
    ]
    assert inputs["image_grid_thw"].tolist() == [[1, 4, 4]] * 2
    files = [image["bytes"] for image in rows[0]["images"]]
    expected = picture_patches(files).flatten(0, 1)[:, : 14 * 14].float()
    shown = inputs["pixel_values"][:, : 14 * 14]  # first channel, first of two equal frames
    assert torch.corrcoef(torch.stack([shown.flatten(), expected.flatten()]))[0, 1] > 0.9999


def test_answers_are_few_tokens_and_round_trip(processor, rows):
    text = "<think>from 70 to 120: more, so left</think> <answer>C</answer>"
    assert pieces(processor.tokenizer, text) == [
        "<think>from ",
        "70",
        " to ",
        "120",
        ": more, so ",
        "left",
        "</think> <answer>",
        "C",
        "</answer>",
    ]
    assert pieces(processor.tokenizer, "<answer>B</answer>") == ["<answer>", "B", "</answer>"]
    for row in rows:
        assert len(pieces(processor.tokenizer, row["answer"])) == 9
    pieces(processor.tokenizer, "Bär, 437.25 <|box|>\n")


def test_the_tokenizer_is_the_same_every_time():
    assert build_tokenizer().get_vocab() == build_tokenizer().get_vocab()


def test_views_fall_into_bins():
    def row(*views):
        names = ("azimuth_deg", "elevation_deg", "distance")
        return {"views": [dict(zip(names, view, strict=True)) for view in views]}

    # 15 bins: azimuth -75..75 by 10 degrees, elevation 8..50 by 2.8 degrees, distance 3.4..6.6 by 0.213
    assert view_bins([row((-75, 8, 3.4), (75, 50, 6.6)), row((-64, 11, 3.7), (0, 29, 5.0))]).tolist() == [
        [0, 0, 0],
        [14, 14, 14],
        [1, 1, 1],
        [7, 7, 7],
    ]


def test_same_seed_gives_the_same_weights(tmp_path, cache_dir, model):
    arguments = dict(tower_steps=2, tower_batch=8, num_pairs=30, cache_dir=cache_dir)
    build_pose_reader(tmp_path / "same", **arguments)
    same = AutoModelForImageTextToText.from_pretrained(tmp_path / "same")
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, same.state_dict()[name]), name
    assert sum(weight.numel() for weight in model.parameters()) < 1_000_000


def test_the_tower_learns_and_says_so(tmp_path, cache_dir, built):
    lines = []
    arguments = dict(tower_batch=16, num_pairs=30, cache_dir=cache_dir, on_progress=lines.append)
    build_pose_reader(tmp_path / "long", tower_steps=150, **arguments)
    before, after = (float(line.partition("off by ")[2].partition("%")[0]) for line in (built[1][0], lines[-1]))
    assert after < 0.6 * before


def test_the_model_generates_from_two_pictures(model, processor, rows):
    inputs = inputs_of(processor, rows[0])
    generated = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert generated.shape[1] - inputs["input_ids"].shape[1] in (1, 2, 3)


def test_wrong_options_are_named_and_leave_nothing_behind(tmp_path):
    with pytest.raises(ConfigError, match="size_px is 60"):
        build_pose_reader(tmp_path / "model", pairs={"size_px": 60})
    with pytest.raises(ConfigError, match="size_pixels"):
        build_pose_reader(tmp_path / "model", pairs={"size_pixels": 56})
    with pytest.raises(TaskDataError, match="mirrored_share is 2"):
        build_pose_reader(tmp_path / "model", pairs={"mirrored_share": 2})
    assert list(tmp_path.iterdir()) == []
