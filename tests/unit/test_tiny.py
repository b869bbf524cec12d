"""Tiny models load through the Auto classes offline and behave like the architectures they are named after."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmrl_core.errors import ConfigError
from mmrl_core.tiny import CONTROL_TOKENS, TINY_KINDS, UNSAMPLED_TOKENS, VOCAB_SIZE, build_tiny

VISION_KINDS = ("qwen2_vl", "qwen2_5_vl")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Directory of each kind, built with seed 0."""
    root = tmp_path_factory.mktemp("tiny")
    for kind in TINY_KINDS:
        build_tiny(kind, root / kind)
    return {kind: root / kind for kind in TINY_KINDS}


def load(kind, directory):
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

    if kind in VISION_KINDS:
        return AutoModelForImageTextToText.from_pretrained(directory), AutoProcessor.from_pretrained(directory)
    return AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)


def chat(processor, *parts):
    return processor.apply_chat_template(
        [{"role": "user", "content": list(parts)}],
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
        return_tensors="pt",
    )


def random_image(width, height):
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return {"type": "image", "image": Image.fromarray(pixels)}


def test_listing_kinds_imports_neither_torch_nor_transformers():
    code = (
        "import sys; from mmrl_core.tiny import TINY_KINDS; "
        "assert all(kind.description for kind in TINY_KINDS.values()); "
        "print([name for name in ('torch', 'transformers', 'tokenizers') if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


@pytest.mark.parametrize("kind", TINY_KINDS)
def test_special_token_ids_agree_between_config_tokenizer_and_generation_config(built, kind):
    model, processor = load(kind, built[kind])
    tokenizer = getattr(processor, "tokenizer", processor)
    ids = dict(zip(CONTROL_TOKENS, tokenizer.convert_tokens_to_ids(list(CONTROL_TOKENS)), strict=True))
    assert len(tokenizer) == VOCAB_SIZE == model.get_output_embeddings().weight.shape[0]
    assert sorted(ids.values()) == list(range(VOCAB_SIZE - len(CONTROL_TOKENS), VOCAB_SIZE))
    text_config = model.config.get_text_config()
    assert tokenizer.eos_token_id == text_config.eos_token_id == ids["<|im_end|>"]
    assert tokenizer.pad_token_id == text_config.pad_token_id == ids["<|endoftext|>"]
    assert model.generation_config.eos_token_id == [ids["<|im_end|>"], ids["<|endoftext|>"]]
    assert model.generation_config.pad_token_id == ids["<|endoftext|>"]
    if kind in VISION_KINDS:
        assert model.config.image_token_id == processor.image_token_id == ids["<|image_pad|>"]
        assert model.config.video_token_id == processor.video_token_id == ids["<|video_pad|>"]
        assert model.config.vision_start_token_id == ids["<|vision_start|>"]
        assert model.config.vision_end_token_id == ids["<|vision_end|>"]


@pytest.mark.parametrize("kind", TINY_KINDS)
@pytest.mark.parametrize("text", ["plain words, 1234.5 {'Position': [1, 2]}\n\n  x", "Grüße, 日本語 🙂", ""])
def test_any_text_survives_tokenizing(built, kind, text):
    _, processor = load(kind, built[kind])
    tokenizer = getattr(processor, "tokenizer", processor)
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_control_tokens_are_one_token_each_and_are_skipped_in_decoded_text(built):
    _, tokenizer = load("qwen2", built["qwen2"])
    ids = tokenizer("".join(CONTROL_TOKENS) + "word").input_ids
    assert tokenizer.convert_ids_to_tokens(ids[: len(CONTROL_TOKENS)]) == list(CONTROL_TOKENS)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "word"


@pytest.mark.parametrize("kind", VISION_KINDS)
def test_chat_template_expands_one_placeholder_per_merged_patch(built, kind):
    _, processor = load(kind, built[kind])
    inputs = chat(processor, random_image(84, 56), {"type": "text", "text": "what?"})
    assert processor.decode(inputs["input_ids"][0]) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        + "<|image_pad|>" * 6  # 3 x 2 squares of 28 x 28 pixels
        + "<|vision_end|>what?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert inputs["image_grid_thw"].tolist() == [[1, 4, 6]]
    assert inputs["pixel_values"].shape == (24, 3 * 2 * 14 * 14)


def test_own_system_message_replaces_the_default_one(built):
    _, tokenizer = load("qwen2", built["qwen2"])
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"


@pytest.mark.parametrize("kind", VISION_KINDS)
def test_images_and_videos_reach_the_logits_and_gradients_reach_every_tower(built, kind):
    model, processor = load(kind, built[kind])
    video = np.random.default_rng(1).integers(0, 255, (4, 56, 84, 3), dtype=np.uint8)
    parts = ({"type": "video", "video": video}, random_image(112, 112), {"type": "text", "text": "what?"})
    inputs = chat(processor, *parts)
    assert inputs["video_grid_thw"].tolist() == [[2, 4, 6]]
    logits = model(**inputs).logits
    assert torch.isfinite(logits).all()
    changed = dict(inputs) | {"pixel_values_videos": -inputs["pixel_values_videos"]}
    assert not torch.allclose(logits[0, -1], model(**changed).logits[0, -1], atol=1e-6)
    logits.float().square().mean().backward()
    without = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    # Key biases shift all attention scores of a query alike, so their gradient is 0 up to rounding in any such model.
    assert [name for name in without if not name.endswith("k_proj.bias")] == []


def test_qwen2_5_vl_has_a_window_attention_block(built):
    config = json.loads((built["qwen2_5_vl"] / "config.json").read_text())["vision_config"]
    assert config["fullatt_block_indexes"] == [1] and config["depth"] == 2


@pytest.mark.parametrize("kind", TINY_KINDS)
def test_media_placeholders_are_never_sampled(built, kind):
    model, processor = load(kind, built[kind])
    tokenizer = getattr(processor, "tokenizer", processor)
    inputs = chat(processor, {"type": "text", "text": "hello"}) if kind in VISION_KINDS else None
    ids = inputs["input_ids"] if inputs else tokenizer("hello there", return_tensors="pt").input_ids
    probabilities = model(input_ids=ids).logits[0].softmax(-1)
    forbidden = tokenizer.convert_tokens_to_ids(list(UNSAMPLED_TOKENS))
    assert probabilities[:, forbidden].max() < 1e-12
    others = [token for token in range(VOCAB_SIZE) if token not in forbidden]
    assert probabilities[:, others].min() > 0.1 / VOCAB_SIZE  # everything else stays likely, as in a random model


@pytest.mark.parametrize("kind", VISION_KINDS)
def test_generation_with_an_image_runs(built, kind):
    model, processor = load(kind, built[kind])
    inputs = chat(processor, random_image(56, 56), {"type": "text", "text": "what?"})
    torch.manual_seed(0)
    completions = model.generate(**inputs, max_new_tokens=6, num_return_sequences=3)
    assert completions.shape[0] == 3 and completions.shape[1] <= inputs["input_ids"].shape[1] + 6


def test_same_seed_gives_the_same_files_and_another_seed_other_weights(built, tmp_path):
    build_tiny("qwen2", tmp_path / "again")
    build_tiny("qwen2", tmp_path / "other", seed=1)
    for file in built["qwen2"].iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name
    weights = [(root / "model.safetensors").read_bytes() for root in (built["qwen2"], tmp_path / "other")]
    assert weights[0] != weights[1]
    tokenizers = [(root / "tokenizer.json").read_bytes() for root in (built["qwen2"], tmp_path / "other")]
    assert tokenizers[0] == tokenizers[1]


def test_building_leaves_the_callers_random_state_alone(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build_tiny("qwen2", tmp_path / "model", seed=9)
    assert torch.equal(torch.rand(3), expected)


def test_a_directory_with_content_is_refused_and_kept(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        build_tiny("qwen2", tmp_path / "model")
    assert [file.name for file in (tmp_path / "model").iterdir()] == ["notes.txt"]


def test_an_empty_directory_and_missing_parents_are_fine(tmp_path):
    (tmp_path / "empty").mkdir()
    build_tiny("qwen2", tmp_path / "empty")
    build_tiny("qwen2", tmp_path / "a" / "b")
    assert (tmp_path / "empty" / "config.json").is_file() and (tmp_path / "a" / "b" / "config.json").is_file()


def test_a_failed_build_leaves_nothing_behind(tmp_path, monkeypatch):
    from mmrl_core.tiny import TinyKind

    def fail(directory: Path) -> None:
        (directory / "config.json").write_text("{}")
        raise RuntimeError("disk full")

    monkeypatch.setitem(TINY_KINDS, "broken", TinyKind("fails", fail))
    with pytest.raises(RuntimeError, match="disk full"):
        build_tiny("broken", tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_kind_names_the_nearest_one(tmp_path):
    with pytest.raises(ConfigError, match=r"'qwen2\.5_vl'\. Did you mean 'qwen2_5_vl'\? Kinds: qwen2, "):
        build_tiny("qwen2.5_vl", tmp_path / "model")
