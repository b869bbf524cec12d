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
from mmrl_core.testing.models.sizes import AUDIO_WINDOW_S, SLIDING_WINDOW
from mmrl_core.testing.models.tiny import TINY_KINDS, build_tiny
from mmrl_core.testing.models.tokenizer import CONTROL_TOKENS, UNSAMPLED_AUDIO_TOKENS, UNSAMPLED_TOKENS, VOCAB_SIZE

VISION_KINDS = ("qwen2_vl", "qwen2_5_vl")
AUDIO_KINDS = ("qwen2_audio",)
OWN_KINDS = ("qwen2", "qwen3", "llama", "gemma2", "gemma3_text", *VISION_KINDS, *AUDIO_KINDS)
"""Kinds looked at from all sides here; those of other families with media are in tests/integration/test_families.py."""

TEXT_KINDS = tuple(kind for kind in OWN_KINDS if kind not in VISION_KINDS + AUDIO_KINDS)
UNSAMPLED = {
    **dict.fromkeys(("qwen2", "qwen3", *VISION_KINDS), UNSAMPLED_TOKENS),
    **dict.fromkeys(AUDIO_KINDS, UNSAMPLED_AUDIO_TOKENS),
}
SAMPLING_RATE = 16000


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Directory of each kind, built with seed 0."""
    root = tmp_path_factory.mktemp("tiny")
    for kind in OWN_KINDS:
        build_tiny(kind, root / kind)
    return {kind: root / kind for kind in OWN_KINDS}


def load(kind, directory):
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoModelForMultimodalLM,
        AutoProcessor,
        AutoTokenizer,
    )

    if kind in VISION_KINDS:
        return AutoModelForImageTextToText.from_pretrained(directory), AutoProcessor.from_pretrained(directory)
    if kind in AUDIO_KINDS:
        return AutoModelForMultimodalLM.from_pretrained(directory), AutoProcessor.from_pretrained(directory)
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


def noise(seconds):
    return np.random.default_rng(0).standard_normal(int(seconds * SAMPLING_RATE)).astype(np.float32) / 4


def audio_chat(processor, text, *audios):
    parts = [*({"type": "audio", "audio": audio} for audio in audios), {"type": "text", "text": text}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True
    )
    return processor(text=[text], audio=list(audios), sampling_rate=SAMPLING_RATE, return_tensors="pt")


def test_listing_kinds_imports_neither_torch_nor_transformers():
    code = (
        "import sys; from mmrl_core.testing import TINY_KINDS; "
        "assert all(kind.description for kind in TINY_KINDS.values()); "
        "print([name for name in ('torch', 'transformers', 'tokenizers') if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


@pytest.mark.parametrize("kind", OWN_KINDS)
def test_special_token_ids_agree_between_config_tokenizer_and_generation_config(built, kind):
    model, processor = load(kind, built[kind])
    tokenizer = getattr(processor, "tokenizer", processor)
    control = TINY_KINDS[kind].control
    ids = dict(zip(control.tokens, tokenizer.convert_tokens_to_ids(list(control.tokens)), strict=True))
    assert len(tokenizer) == VOCAB_SIZE == model.get_output_embeddings().weight.shape[0]
    assert sorted(ids.values()) == list(range(VOCAB_SIZE - len(control.tokens), VOCAB_SIZE))
    text_config = model.config.get_text_config()
    assert tokenizer.eos_token_id == text_config.eos_token_id == ids[control.eos]
    assert tokenizer.pad_token_id == text_config.pad_token_id == ids[control.pad]
    assert tokenizer.bos_token_id == text_config.bos_token_id == ids.get(control.bos)
    assert model.generation_config.eos_token_id == [ids[token] for token in control.stops]
    assert model.generation_config.pad_token_id == ids[control.pad]
    if kind in VISION_KINDS:
        assert model.config.image_token_id == processor.image_token_id == ids["<|image_pad|>"]
        assert model.config.video_token_id == processor.video_token_id == ids["<|video_pad|>"]
        assert model.config.vision_start_token_id == ids["<|vision_start|>"]
        assert model.config.vision_end_token_id == ids["<|vision_end|>"]
    if kind in AUDIO_KINDS:
        assert model.config.audio_token_id == processor.audio_token_id == ids["<|AUDIO|>"]


@pytest.mark.parametrize("kind", OWN_KINDS)
@pytest.mark.parametrize("text", ["plain words, 1234.5 {'Position': [1, 2]}\n\n  x", "Grüße, 日本語 🙂", ""])
def test_any_text_survives_tokenizing(built, kind, text):
    _, processor = load(kind, built[kind])
    tokenizer = getattr(processor, "tokenizer", processor)
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_a_family_with_an_opening_token_writes_it_before_plain_text_and_in_the_chat_template(built, kind):
    _, tokenizer = load(kind, built[kind])
    opening = [] if TINY_KINDS[kind].control.bos is None else [tokenizer.bos_token_id]
    assert tokenizer("word").input_ids == [*opening, *tokenizer("word", add_special_tokens=False).input_ids]
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], return_dict=True).input_ids
    assert rendered.count(tokenizer.bos_token_id) == len(opening) and rendered[: len(opening)] == opening


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


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (
            "qwen3",
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
            "<|im_start|>assistant\nyes<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            "llama",
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nyes<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            "gemma3_text",
            "<bos><start_of_turn>user\nBe brief.\n\nhi<end_of_turn>\n"
            "<start_of_turn>model\nyes<end_of_turn>\n<start_of_turn>model\n",
        ),
    ],
)
def test_chat_templates_have_the_form_of_their_family(built, kind, expected):
    _, tokenizer = load(kind, built[kind])
    messages = [("system", "Be brief."), ("user", " hi" if kind != "qwen3" else "hi"), ("assistant", "yes")]
    messages = [{"role": role, "content": content} for role, content in messages]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == expected


def test_gemma2_refuses_a_system_message(built):
    from jinja2 import TemplateError

    _, tokenizer = load("gemma2", built["gemma2"])
    user = {"role": "user", "content": "hi"}
    assert tokenizer.apply_chat_template([user], tokenize=False) == "<bos><start_of_turn>user\nhi<end_of_turn>\n"
    with pytest.raises(TemplateError, match="System role not supported"):
        tokenizer.apply_chat_template([{"role": "system", "content": "Be brief."}, user])


def test_audio_template_numbers_the_audios_and_expands_a_placeholder_for_each_40_ms(built):
    _, processor = load("qwen2_audio", built["qwen2_audio"])
    inputs = audio_chat(processor, "what?", noise(0.2), noise(0.4))
    assert processor.decode(inputs["input_ids"][0]) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        + "Audio 1: <|audio_bos|>" + "<|AUDIO|>" * 5 + "<|audio_eos|>\n"
        + "Audio 2: <|audio_bos|>" + "<|AUDIO|>" * 10 + "<|audio_eos|>\n"
        + "what?<|im_end|>\n<|im_start|>assistant\n"
    )  # fmt: skip
    assert inputs["input_features"].shape == (2, 32, 100 * AUDIO_WINDOW_S)
    assert inputs["feature_attention_mask"].sum(1).tolist() == [20, 40]


def test_audio_reaches_the_logits_and_gradients_reach_the_tower(built):
    model, processor = load("qwen2_audio", built["qwen2_audio"])
    inputs = audio_chat(processor, "what?", noise(0.5), noise(AUDIO_WINDOW_S))
    logits = model(**inputs).logits
    assert logits.shape[1] == inputs["input_ids"].shape[1] and torch.isfinite(logits).all()
    changed = dict(inputs) | {"input_features": -inputs["input_features"]}
    assert not torch.allclose(logits[0, -1], model(**changed).logits[0, -1], atol=1e-6)
    logits.float().square().mean().backward()
    without = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    # Whether the fixed sinusoids of the tower take a gradient depends on the version of transformers.
    assert [name for name in without if not name.endswith(("k_proj.bias", "embed_positions.weight"))] == []


@pytest.mark.parametrize("kind", ("gemma2", "gemma3_text"))
def test_gemma_has_a_layer_that_sees_a_window_only(built, kind):
    model, tokenizer = load(kind, built[kind])
    ids = tokenizer("count them " * SLIDING_WINDOW, return_tensors="pt").input_ids
    other = ids.clone()
    other[0, 0] = 3
    states = [model(input_ids=one, output_hidden_states=True).hidden_states[1] for one in (ids, other)]
    reached = (states[0] != states[1]).any(-1)[0]
    assert reached.tolist() == [True] * SLIDING_WINDOW + [False] * (ids.shape[1] - SLIDING_WINDOW)
    assert model.config.layer_types == ["sliding_attention", "full_attention"]


@pytest.mark.parametrize("name", ("attn_logit_softcapping", "final_logit_softcapping"))
def test_gemma2_softcaps_change_the_logits(built, name):
    from transformers import AutoModelForCausalLM

    _, tokenizer = load("gemma2", built["gemma2"])
    options = {"attn_implementation": "eager"}
    capped = AutoModelForCausalLM.from_pretrained(built["gemma2"], **options)
    uncapped = AutoModelForCausalLM.from_pretrained(built["gemma2"], **options, **{name: None})
    ids = tokenizer("count the objects in the picture", return_tensors="pt").input_ids
    assert (capped(input_ids=ids).logits - uncapped(input_ids=ids).logits).abs().max() > 1e-5


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


@pytest.mark.parametrize("kind", UNSAMPLED)
def test_media_placeholders_are_never_sampled(built, kind):
    model, processor = load(kind, built[kind])
    tokenizer = getattr(processor, "tokenizer", processor)
    if kind in VISION_KINDS:
        inputs = chat(processor, random_image(56, 56), {"type": "text", "text": "hello"})
    elif kind in AUDIO_KINDS:
        inputs = audio_chat(processor, "hello", noise(1.0))
    else:
        inputs = tokenizer("hello there", return_tensors="pt")
    forbidden = tokenizer.convert_tokens_to_ids(list(UNSAMPLED[kind]))
    text = ~torch.isin(inputs["input_ids"][0], torch.tensor(forbidden))  # what completions follow
    probabilities = model(**inputs).logits[0, text].softmax(-1)
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


def test_generation_with_audio_runs(built):
    model, processor = load("qwen2_audio", built["qwen2_audio"])
    inputs = audio_chat(processor, "what?", noise(1.0))
    torch.manual_seed(0)
    completions = model.generate(**inputs, max_new_tokens=6, num_return_sequences=3)
    assert completions.shape[0] == 3 and completions.shape[1] <= inputs["input_ids"].shape[1] + 6


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_generation_of_text_runs(built, kind):
    model, tokenizer = load(kind, built[kind])
    inputs = tokenizer("what is it? " * 10, return_tensors="pt")
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
    from mmrl_core.testing.models.tiny import TinyKind

    def fail(directory: Path) -> None:
        (directory / "config.json").write_text("{}")
        raise RuntimeError("disk full")

    monkeypatch.setitem(TINY_KINDS, "broken", TinyKind("fails", TINY_KINDS["qwen2"].control, fail))
    with pytest.raises(RuntimeError, match="disk full"):
        build_tiny("broken", tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_kind_names_the_nearest_one(tmp_path):
    with pytest.raises(ConfigError, match=r"'qwen2\.5_vl'\. Did you mean 'qwen2_5_vl'\? Kinds: gemma2, "):
        build_tiny("qwen2.5_vl", tmp_path / "model")
