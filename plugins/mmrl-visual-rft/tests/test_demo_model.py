"""The demo's starting model: loads like a published one, sees what its processor makes, and its tower learns."""

import io

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmrl_core.errors import ConfigError
from mmrl_visual_rft.demo_data import CLASS_WORDS, digit_scenes
from mmrl_visual_rft.demo_model import (
    build_digit_detector,
    build_tokenizer,
    image_patches,
    normalize_patches,
    token_targets,
    tower_features,
)

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


def test_the_model_is_the_published_class(model, processor):
    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert type(processor).__name__ == "Qwen2_5_VLProcessor"
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
    ours = normalize_patches(image_patches(rows[:4]), processor.image_processor)
    both_slices = ours.reshape(4, -1, 3, 1, 14 * 14).expand(-1, -1, -1, 2, -1).reshape(made.shape)
    assert torch.allclose(both_slices, made, rtol=0, atol=1e-6)


def test_the_fast_tower_equals_the_models_own(model, processor, rows):
    inputs = processor.image_processor(images=pictures(rows[:3]), return_tensors="pt")
    with torch.no_grad():
        own = model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output
        patches = normalize_patches(image_patches(rows[:3]), processor.image_processor)
        fast = tower_features(model.model.visual, patches, SIDE_PX)
    assert fast.shape == (3, 16, model.config.text_config.hidden_size)
    assert own.abs().mean() > 0.01
    assert torch.allclose(fast.flatten(0, 1), own, rtol=0, atol=1e-5)


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


def test_same_seed_gives_the_same_weights_and_leaves_the_callers_random_state(tmp_path, cache_dir, model):
    state = torch.random.get_rng_state()
    arguments = dict(tower_steps=2, tower_batch=8, num_scenes=64, cache_dir=cache_dir)
    build_digit_detector(tmp_path / "same", **arguments)
    assert torch.equal(state, torch.random.get_rng_state())
    build_digit_detector(tmp_path / "other", seed=1, **arguments)
    same, other = (AutoModelForImageTextToText.from_pretrained(tmp_path / name) for name in ("same", "other"))
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, same.state_dict()[name]), name
    assert not torch.equal(model.lm_head.weight, other.lm_head.weight)


def test_the_tower_learns_and_the_decoder_is_left_alone(tmp_path, cache_dir):
    lines = []
    arguments = dict(tower_batch=16, num_scenes=64, cache_dir=cache_dir)
    build_digit_detector(tmp_path / "short", tower_steps=1, on_progress=lines.append, **arguments)
    build_digit_detector(tmp_path / "long", tower_steps=15, on_progress=lines.append, **arguments)
    errors = [float(line.rpartition("box off by ")[2].split()[0]) for line in lines]
    assert errors[1] < 0.6 * errors[0]
    short, long = (AutoModelForImageTextToText.from_pretrained(tmp_path / name) for name in ("short", "long"))
    long_weights = long.state_dict()
    for name, weight in short.state_dict().items():
        assert torch.equal(weight, long_weights[name]) != ("visual" in name), name


def test_progress_is_reported(built):
    assert len(built[1]) == 1 and built[1][0].startswith("vision tower step 2/2:")


def test_the_model_generates_from_a_chat(model, processor, rows):
    inputs = tokenize(processor, chat(rows[0]))
    generated = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert generated.shape[1] - inputs["input_ids"].shape[1] in (1, 2, 3)


def test_nothing_is_overwritten_or_left_behind(tmp_path, cache_dir):
    (tmp_path / "notes.txt").write_text("keep")
    with pytest.raises(ConfigError, match="not an empty folder"):
        build_digit_detector(tmp_path, tower_steps=1, num_scenes=64, cache_dir=cache_dir)
    with pytest.raises(ConfigError, match="size_px is 100"):
        build_digit_detector(tmp_path / "model", num_scenes=2, scenes={"size_px": 100}, cache_dir=cache_dir)
    with pytest.raises(ConfigError, match="size_pixels"):
        build_digit_detector(tmp_path / "model", scenes={"size_pixels": 112}, cache_dir=cache_dir)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
