"""The demo's starting model: short prompts and answers, right targets, and a tower that learns."""

import io

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmrl_core.errors import ConfigError
from mmrl_core.testing import CLASS_WORDS, normalize_patches, picture_patches
from mmrl_visual_rft.demo_data import digit_scenes
from mmrl_visual_rft.demo_model import build_digit_detector, build_tokenizer, token_targets

SIDE_PX = 112


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("rows")


@pytest.fixture(scope="module")
def rows(cache_dir):
    return digit_scenes("train", num_rows=64, cache_dir=cache_dir)


@pytest.fixture(scope="module")
def built(tmp_path_factory, cache_dir):
    """Folder of a model whose tower was trained for a few steps, and the lines it reported."""
    directory = tmp_path_factory.mktemp("models") / "detector"
    lines = []
    build_digit_detector(
        directory, tower_steps=2, tower_batch=8, num_scenes=64, cache_dir=cache_dir, on_progress=lines.append
    )
    return directory, lines


@pytest.fixture(scope="module")
def model(built):
    return AutoModelForImageTextToText.from_pretrained(built[0])


@pytest.fixture(scope="module")
def processor(built):
    return AutoProcessor.from_pretrained(built[0])


def pictures(rows):
    return [Image.open(io.BytesIO(row["image"]["bytes"])) for row in rows]


def chat(row):
    parts = [{"type": "image", "image": pictures([row])[0]}, {"type": "text", "text": row["problem"]}]
    return [{"role": "user", "content": parts}]


def tokenize(processor, messages):
    return processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt"
    )


def test_the_model_is_small(model):
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000


def test_a_prompt_is_short_and_has_one_placeholder_for_each_merged_token(processor, rows):
    inputs = tokenize(processor, chat(rows[0]))
    tokens = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0].tolist())
    readable = [processor.tokenizer.convert_tokens_to_string([token]) for token in tokens]
    assert readable == [
        "<|im_start|>",
        "user\n",
        "<|vision_start|>",
        *["<|image_pad|>"] * 16,
        "<|vision_end|>",
        "detect every ",
        rows[0]["category"],
        "<|im_end|>",
        "\n",
        "<|im_start|>",
        "assistant\n",
    ]


def test_pictures_are_not_resized(processor, rows):
    inputs = tokenize(processor, chat(rows[0]))
    assert inputs["image_grid_thw"].tolist() == [[1, SIDE_PX // 14, SIDE_PX // 14]]


def test_the_tower_is_trained_on_the_pixels_that_the_processor_makes(processor, rows):
    made = processor.image_processor(images=pictures(rows[:4]), return_tensors="pt")["pixel_values"]
    ours = normalize_patches(picture_patches([row["image"]["bytes"] for row in rows[:4]]), processor.image_processor)
    both_slices = ours.reshape(4, -1, 3, 1, 14 * 14).expand(-1, -1, -1, 2, -1).reshape(made.shape)
    assert torch.allclose(both_slices, made, rtol=0, atol=1e-6)


def test_token_targets_are_the_largest_digit_over_each_token():
    def digit(class_id, *box_px):
        return {"class_id": class_id, "box_px": box_px, "scan_id": 0}

    row = {"width": 56, "boxes": [digit(3, 0, 0, 28, 28), digit(7, 30, 10, 56, 40), digit(1, 28, 42, 40, 56)]}
    class_ids, boxes = token_targets([row])
    none = len(CLASS_WORDS)
    assert class_ids.tolist() == [[3, 7, none, 7]]  # bottom right: 26 x 12 px of the 7 against 12 x 14 of the 1
    assert boxes[0, 1].tolist() == pytest.approx([30 / 56, 10 / 56, 1.0, 40 / 56])
    assert boxes[0, 2].tolist() == [0.0] * 4


def test_answers_are_few_tokens_and_round_trip(processor):
    def pieces(text):
        ids = processor.tokenizer(text)["input_ids"]
        assert processor.tokenizer.decode(ids) == text
        return [processor.tokenizer.decode([token]) for token in ids]

    one_box = "<think></think><answer>[{'Position': [50, 100, 950, 1000], 'Confidence': 1.0}]</answer>"
    assert pieces(one_box) == [
        "<think></think><answer>[{'Position': [",
        *["50", ", ", "100", ", ", "950", ", ", "1000"],
        "], 'Confidence': ",
        "1.0",
        "}]</answer>",
    ]
    for word in CLASS_WORDS:
        answer = f"<think></think><answer>{word}</answer>"
        assert pieces(answer) == ["<think></think><answer>", word, "</answer>"]
    pieces("Bär, 437.25 <|box|>\n")


def test_the_tokenizer_is_the_same_every_time():
    assert build_tokenizer().get_vocab() == build_tokenizer().get_vocab()


def test_same_seed_gives_the_same_weights(tmp_path, cache_dir, model):
    arguments = dict(tower_steps=2, tower_batch=8, num_scenes=64, cache_dir=cache_dir)
    build_digit_detector(tmp_path / "same", **arguments)
    build_digit_detector(tmp_path / "other", seed=1, **arguments)
    same, other = (AutoModelForImageTextToText.from_pretrained(tmp_path / name) for name in ("same", "other"))
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, same.state_dict()[name]), name
    assert not torch.equal(model.lm_head.weight, other.lm_head.weight)


def test_the_tower_learns(tmp_path, cache_dir):
    lines = []
    arguments = dict(tower_batch=16, num_scenes=64, cache_dir=cache_dir)
    build_digit_detector(tmp_path / "short", tower_steps=1, on_progress=lines.append, **arguments)
    build_digit_detector(tmp_path / "long", tower_steps=15, on_progress=lines.append, **arguments)
    errors = [float(line.rpartition("box off by ")[2].split()[0]) for line in lines]
    assert errors[1] < 0.6 * errors[0]


def test_progress_is_reported(built):
    assert len(built[1]) == 1 and built[1][0].startswith("vision tower step 2/2:")


def test_the_model_generates_from_a_chat(model, processor, rows):
    inputs = tokenize(processor, chat(rows[0]))
    generated = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert generated.shape[1] - inputs["input_ids"].shape[1] in (1, 2, 3)


def test_wrong_options_are_named_and_leave_nothing_behind(tmp_path, cache_dir):
    with pytest.raises(ConfigError, match="size_px is 100"):
        build_digit_detector(tmp_path / "model", num_scenes=2, scenes={"size_px": 100}, cache_dir=cache_dir)
    with pytest.raises(ConfigError, match="size_pixels"):
        build_digit_detector(tmp_path / "model", scenes={"size_pixels": 112}, cache_dir=cache_dir)
    assert list(tmp_path.iterdir()) == []
