"""Prompts with audio reach the model as the processor's own documentation has it."""

import json
import re

import numpy as np
import pytest
import soundfile
import torch

from mmrl_core.config import DataConfig, PromptConfig, SourceConfig
from mmrl_core.data import PromptSource
from mmrl_core.errors import PolicyError, TaskDataError
from mmrl_core.language_model import (
    LanguageModelOptions,
    LanguageModelPolicy,
    PromptEncoder,
    load_model,
    load_processor,
    media_of,
)
from mmrl_core.media import Audio, load_audio, resample_audio
from mmrl_core.plugins import load_plugins
from mmrl_core.testing import AUDIO_WINDOW_S, TINY_KINDS

RATE = 16000


def noise(seconds, seed=0, rate=RATE):
    samples = np.random.default_rng(seed).standard_normal(round(seconds * rate)).astype(np.float32) / 4
    return Audio(samples, rate)


@pytest.fixture(scope="module")
def make_encoder(tiny_model):
    encoders = {}

    def encoder(kind="qwen2_audio", max_tokens=512):
        if (kind, max_tokens) not in encoders:
            path, options = tiny_model(kind), LanguageModelOptions()
            model = load_model(path, options, torch.float32)
            encoders[kind, max_tokens] = PromptEncoder(load_processor(path, options), model, max_tokens)
        return encoders[kind, max_tokens]

    return encoder


@pytest.fixture(scope="module")
def plain(plain_model, tiny_model):
    return plain_model(tiny_model("qwen2_audio"))


def audio_features(model, media):
    """What the audio tower makes of a prompt's media, [audio tokens, hidden]."""
    from transformers.masking_utils import create_bidirectional_mask

    tower = model.model.audio_tower
    frames, tokens = tower._get_feat_extract_output_lengths(media["feature_attention_mask"].sum(-1))
    width = (media["input_features"].shape[-1] - 2) // 2 + 1
    mask = create_bidirectional_mask(
        config=tower.config,
        inputs_embeds=torch.zeros(len(frames), width, 1),
        attention_mask=(torch.arange(width) < frames[:, None]).long(),
    )
    output = tower(media["input_features"], attention_mask=mask).last_hidden_state
    features = model.model.multi_modal_projector(output)
    return features[torch.arange(features.shape[1]) < tokens[:, None]]


@pytest.mark.parametrize("seconds", [(0.5,), (0.3, 2.1), (0.03,), (AUDIO_WINDOW_S, 0.025, 1.0)])
def test_ids_and_features_are_those_of_the_plain_processor(make_encoder, make_prompt, plain, seconds):
    audios = [noise(length, seed) for seed, length in enumerate(seconds)]
    prompt = make_prompt(str(seconds), "What is it?", audios=audios)
    encoded = make_encoder().encode(prompt)
    expected = plain.inputs(prompt)
    assert torch.equal(encoded.input_ids, expected["input_ids"][0])
    assert encoded.media.keys() == {"input_features", "feature_attention_mask"}
    assert all(torch.equal(value, expected[name]) for name, value in encoded.media.items())
    assert torch.equal(encoded.position_ids, torch.arange(len(encoded))[None])
    assert encoded.next_position == len(encoded) and encoded.image_sizes_px == []


@pytest.mark.parametrize("seconds", [(0.5,), (0.3, 2.1), (AUDIO_WINDOW_S, 0.025, 1.0)])
def test_placeholders_are_as_many_as_the_towers_outputs_and_hold_them(make_encoder, make_prompt, plain, seconds):
    audios = [noise(length, seed) for seed, length in enumerate(seconds)]
    prompt = make_prompt(str(seconds), "What is it?", audios=audios)
    encoded = make_encoder().encode(prompt)
    with torch.no_grad():
        features = audio_features(plain.model, encoded.media)
        places = encoded.input_ids == plain.model.config.audio_token_id
        assert int(places.sum()) == len(features)
        embeddings = plain.model.get_input_embeddings()(encoded.input_ids)
        embeddings[places] = features
        logits = plain.model(inputs_embeds=embeddings[None], position_ids=encoded.position_ids).logits
        expected = plain.model(**plain.inputs(prompt)).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


def test_audio_at_another_rate_is_resampled_to_the_models(make_encoder, make_prompt, plain):
    audio = noise(0.5, rate=44100)
    encoded = make_encoder().encode(make_prompt("high", "What is it?", audios=[audio]))
    resampled = Audio(resample_audio(audio.samples, 44100, RATE), RATE)
    expected = plain.inputs(make_prompt("low", "What is it?", audios=[resampled]))
    assert torch.equal(encoded.media["input_features"], expected["input_features"])
    assert torch.equal(encoded.input_ids, expected["input_ids"][0])


def test_prompts_are_kept_by_text_and_audio(make_encoder, make_prompt):
    encoder = make_encoder()
    first = encoder.encode(make_prompt("one", "What is it?", audios=[noise(0.5)]))
    assert encoder.encode(make_prompt("one", "What is it?", audios=[noise(0.5)])) is first
    assert encoder.encode(make_prompt("two", "What is it?", audios=[noise(0.5, 1)])) is not first
    assert encoder.encode(make_prompt("one", "What else is it?", audios=[noise(0.5)])) is not first


def test_a_prompt_without_audio_has_no_media(make_encoder, make_prompt):
    encoded = make_encoder().encode(make_prompt("text", "What is it?"))
    assert encoded.media == {} and torch.equal(encoded.position_ids, torch.arange(len(encoded))[None])


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gemma3_text"])
def test_text_is_opened_once_and_positions_count_up(make_encoder, make_prompt, plain_model, tiny_model, kind):
    prompt = make_prompt("text", "What is it?")
    encoded = make_encoder(kind).encode(prompt)
    assert torch.equal(encoded.input_ids, plain_model(tiny_model(kind)).inputs(prompt)["input_ids"][0])
    bos = TINY_KINDS[kind].control.bos
    opening = make_encoder(kind).tokenizer.convert_tokens_to_ids(bos) if bos else None
    assert encoded.input_ids.tolist().count(opening) == (bos is not None)
    assert torch.equal(encoded.position_ids, torch.arange(len(encoded))[None])


def test_audio_beyond_the_models_window_is_refused_and_not_cut(make_encoder, make_prompt):
    prompt = make_prompt("long", "What is it?", audios=[noise(0.5), noise(AUDIO_WINDOW_S + 0.1)])
    with pytest.raises(TaskDataError, match=r"'long' holds an audio of 4\.1 s, and the model hears 4 s.*max_audio_s"):
        make_encoder().encode(prompt)
    with pytest.raises(TaskDataError, match=r"over model\.max_prompt_tokens=64"):
        make_encoder(max_tokens=64).encode(make_prompt("p", "What is it?", audios=[noise(2.0)]))


@pytest.mark.parametrize(
    ("kind", "media"), [("qwen2", "audios"), ("qwen2_vl", "audios"), ("qwen2", "images"), ("qwen2_audio", "images")]
)
def test_media_that_the_model_does_not_take_are_refused(make_encoder, make_prompt, make_picture, kind, media):
    items = {"audios": [noise(0.5)], "images": [make_picture(0)]}
    with pytest.raises(TaskDataError, match=f"'odd' holds {media}, but the model takes none. Take out prompt.{media}"):
        make_encoder(kind).encode(make_prompt("odd", "What is it?", **{media: items[media]}))


def test_media_of_a_prompt_in_the_order_of_its_messages(make_prompt, make_picture):
    pictures, audios = [make_picture(0), make_picture(1)], [noise(0.5), noise(0.25, rate=44100)]
    media = media_of(make_prompt("p", "text", images=pictures, audios=audios).messages)
    assert media.images == pictures and media.videos == []
    assert [(len(samples), rate) for samples, rate in media.audios] == [(8000, 16000), (11025, 44100)]


@pytest.mark.parametrize("kind", TINY_KINDS)
def test_the_config_decides_the_class(tiny_model, kind):
    path, options = tiny_model(kind), LanguageModelOptions(attention="eager")  # Gemma 2 has no other
    model = load_model(path, options, torch.float32)
    processor = load_processor(path, options)
    assert type(model).__name__ == model.config.architectures[0]
    assert hasattr(processor, "image_processor") == hasattr(model.config, "vision_config")
    assert hasattr(processor, "feature_extractor") == hasattr(model.config, "audio_config")


def test_attention_that_would_leave_out_softcaps_is_refused(tiny_model):
    with pytest.raises(PolicyError, match=r"gemma2.*caps its attention logits.*Set model\.attention to 'eager'"):
        load_model(tiny_model("gemma2"), LanguageModelOptions(), torch.float32)


@pytest.mark.parametrize(("name", "rate"), [("a.wav", 16000), ("b.flac", 22050), ("c.mp3", 44100)])
def test_an_audio_file_goes_from_its_row_to_logits(make_encoder, make_prompt, plain, tmp_path, name, rate):
    soundfile.write(tmp_path / name, np.stack([noise(1.0, 1, rate).samples, noise(1.0, 2, rate).samples], 1), rate)
    (tmp_path / "rows.jsonl").write_text(f'{{"sound": "{name}", "question": "What is it?", "gold": "dog"}}\n')
    source = PromptSource(
        load_plugins(),
        SourceConfig(name="rows", path=str(tmp_path / "rows.jsonl")),
        PromptConfig(audios=["{sound}"], text="{question}", answer="{gold}"),
        DataConfig(),
        name="train",
    )
    prompt = source.prompt(0)
    encoded = make_encoder().encode(prompt)
    audio = load_audio(tmp_path / name, root=None, sampling_rate=RATE)
    expected = plain.inputs(make_prompt("plain", "What is it?", audios=[audio]))
    assert prompt.answer == "dog" and prompt.sample == {"question": "What is it?", "gold": "dog"}
    assert torch.equal(encoded.input_ids, expected["input_ids"][0])
    with torch.no_grad():
        logits = plain.model(input_ids=encoded.input_ids[None], **encoded.media).logits
        assert torch.equal(logits, plain.model(**expected).logits)


def test_pictures_between_stretches_of_text_are_encoded_where_they_stand(
    make_encoder, plain_model, tiny_model, make_picture, tmp_path
):
    for name, size in (("one", (56, 56)), ("two", (84, 56))):
        make_picture(len(name), *size).save(tmp_path / f"{name}.png")
    row = {"q": "Is <image> left of <image>?", "images": ["one.png", "two.png"]}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    rows = SourceConfig(name="rows", path=str(tmp_path / "train.jsonl"))
    templates = PromptConfig(images=["{images}"], text="{q}", marks={"image": "<image>"})
    prompt = PromptSource(load_plugins(), rows, templates, DataConfig(), name="train").prompt(0)
    encoded = make_encoder("qwen2_5_vl").encode(prompt)
    expected = plain_model(tiny_model("qwen2_5_vl")).inputs(prompt)
    assert torch.equal(encoded.input_ids, expected["input_ids"][0])
    assert torch.equal(encoded.media["pixel_values"], expected["pixel_values"])
    text = make_encoder("qwen2_5_vl").tokenizer.decode(encoded.input_ids)
    shown = "<|vision_start|>#<|vision_end|>"
    assert f"Is {shown} left of {shown}?" in re.sub(r"(<.image_pad.>)+", "#", text)


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen2_audio"])
def test_a_preview_has_the_text_and_length_that_the_policy_encodes(tiny_model, make_prompt, make_picture, kind):
    media = {"audios": [noise(0.5)]} if kind == "qwen2_audio" else {"images": [make_picture(1, 84, 56)]}
    prompts = [make_prompt("medium", "what is this", **media), make_prompt("text", "a question " * 9)]
    policy = LanguageModelPolicy(tiny_model(kind), max_prompt_tokens=64)
    preview = LanguageModelPolicy.preview(tiny_model(kind), max_prompt_tokens=64)
    assert [preview.prompt_text(prompt) for prompt in prompts] == [policy.encoder.render(prompt) for prompt in prompts]
    assert [preview.prompt_length(prompt) for prompt in prompts] == [policy.prompt_length(prompt) for prompt in prompts]


def test_a_preview_refuses_no_length(tiny_model, make_prompt):
    preview = LanguageModelPolicy.preview(tiny_model("qwen2"), max_prompt_tokens=8)
    assert preview.prompt_length(make_prompt("long", "really " * 20)) > preview.max_prompt_tokens == 8


@pytest.mark.parametrize(("kind", "rate_hz"), [("qwen2_audio", RATE), ("qwen2_5_vl", None), ("qwen2", None)])
def test_the_encoder_names_the_rate_of_the_model_where_it_hears(make_encoder, kind, rate_hz):
    assert make_encoder(kind).audio_rate_hz == rate_hz
