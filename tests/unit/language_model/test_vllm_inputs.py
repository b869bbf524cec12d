"""What vLLM is given for a prompt, without vLLM."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mmrl_core.language_model import LanguageModelOptions, PromptEncoder, load_processor
from mmrl_core.language_model.engines import vllm_inputs
from mmrl_core.language_model.engines.vllm_inputs import Converted, inputs_of
from mmrl_core.language_model.observations import Encoded
from mmrl_core.testing import build_tiny
from mmrl_core.types import Prompt

RATE_HZ = 16000
ENCODED = Encoded("key", "media", torch.arange(4), torch.arange(4)[None], 4)
POLICY = SimpleNamespace(encoder=SimpleNamespace(render=lambda prompt: "text"))


def asking(part):
    return Prompt("prompt", [{"role": "user", "content": [part]}], {})


@pytest.fixture
def resampled(monkeypatch):
    """Audio that was resampled, in order."""
    heard = []

    def half(samples, rate_hz, new_rate_hz):
        assert (rate_hz, new_rate_hz) == (2 * RATE_HZ, RATE_HZ)
        heard.append(samples)
        return samples[::2]

    monkeypatch.setattr(vllm_inputs, "resample_audio", half)
    return heard


def test_an_audio_is_resampled_once_for_all_prompts_that_hold_it(resampled):
    audios = [np.arange(8, dtype=np.float32), np.ones(8, dtype=np.float32)]
    prompts = [asking({"type": "audio", "audio": audios[i], "sampling_rate": 2 * RATE_HZ}) for i in (0, 1, 0, 0)]
    converted = Converted(RATE_HZ)
    media = [inputs_of(POLICY, prompt, ENCODED, converted)["multi_modal_data"]["audio"] for prompt in prompts]
    (first, rate_hz), (other, _) = media[0][0], media[1][0]
    assert first.tolist() == [0, 2, 4, 6] and other.tolist() == [1, 1, 1, 1] and rate_hz == RATE_HZ
    assert all(same[0][0] is first for same in media[2:])
    assert len(resampled) == 2


def test_frames_have_their_channels_last_and_are_the_same_object_in_all_prompts():
    frames = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).view(2, 3, 4, 5)
    prompts = [asking({"type": "video", "video": frames, "metadata": {"fps": 2}}) for _ in range(2)]
    converted = Converted(None)
    inputs = [inputs_of(POLICY, prompt, ENCODED, converted) for prompt in prompts]
    ((given, metadata),) = inputs[0]["multi_modal_data"]["video"]
    assert given.shape == (2, 4, 5, 3) and given[1, 2, 3, 0] == frames[1, 0, 2, 3]
    assert metadata == {"fps": 2, "do_sample_frames": False}
    assert inputs[1]["multi_modal_data"]["video"][0][0] is given


def test_a_prompt_with_media_is_given_as_the_text_that_the_trainer_encodes_prefix_and_options_included(tmp_path):
    build_tiny("qwen2_5_vl", tmp_path)
    processor = load_processor(tmp_path, LanguageModelOptions())
    processor.chat_template += "{%- if quiet -%}{{- '[quiet]' -}}{%- endif -%}"
    encoder = PromptEncoder(processor, None, 1000)
    picture = {"type": "image", "image": Image.new("RGB", (56, 56))}
    prompt = replace(asking(picture), prefix="<think>\n", template={"quiet": True})
    observation = encoder.encode(prompt)
    given = inputs_of(SimpleNamespace(encoder=encoder), prompt, observation, Converted(None))["prompt"]
    assert given.endswith("assistant\n[quiet]<think>\n")
    assert processor(text=[given], images=[picture["image"]])["input_ids"][0] == observation.input_ids.tolist()
    text = replace(prompt, messages=asking({"type": "text", "text": "a question"}).messages)
    ids = inputs_of(SimpleNamespace(encoder=encoder), text, encoder.encode(text), Converted(None))
    assert encoder.tokenizer.decode(ids["prompt_token_ids"]).endswith("assistant\n[quiet]<think>\n")


def test_a_prompt_of_text_is_given_as_the_tokens_of_the_trainer():
    prompt = asking({"type": "text", "text": "a question"})
    assert inputs_of(POLICY, prompt, ENCODED, Converted(None)) == {"prompt_token_ids": [0, 1, 2, 3]}
