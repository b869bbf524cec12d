"""Every family of models with media: its logprobs and gradients are those of its own forward, on every path.

The truth is computed here from transformers alone: the processor's outputs of one prompt, its completion appended, one
forward. `docs/models.md` is written from the same table.
"""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor

from mmrl_core.errors import PolicyError
from mmrl_core.language_model import LanguageModelPolicy
from mmrl_core.testing import TINY_KINDS, build_tiny
from mmrl_core.types import Prompt, Sampling

IMAGES, VIDEOS, SOUNDS = ("image",), ("image", "video"), ("image", "video", "audio")
FAMILIES = {
    "qwen2_vl": (VIDEOS, True),
    "qwen2_5_vl": (VIDEOS, True),
    "qwen2_audio": (("audio",), True),
    "qwen3_vl": (VIDEOS, True),
    "qwen3_vl_moe": (VIDEOS, True),
    "qwen3_5": (VIDEOS, False),
    "qwen2_5_omni": (SOUNDS, True),
    "qwen3_omni": (SOUNDS, True),
    "glm46v": (VIDEOS, False),
    "gemma3": (IMAGES, False),
    "gemma4": (SOUNDS, False),
    "internvl": (VIDEOS, True),
    "smolvlm": (VIDEOS, True),
    "llava": (IMAGES, True),
    "llava_onevision": (VIDEOS, True),
    "mistral3": (IMAGES, True),
    "lfm2_vl": (IMAGES, False),
}
"""Kind of tiny model -> the media that it takes, and whether completions of a group share their prompt."""


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")

    def build(kind):
        if not (root / kind).exists():
            build_tiny(kind, root / kind)
        return root / kind

    return build


def medium(kind, place):
    numbers = np.random.default_rng(place)
    width, height = [(112, 84), (60, 140), (84, 84)][place]
    if kind == "image":
        return {"type": "image", "image": Image.fromarray(numbers.integers(0, 255, (height, width, 3), dtype=np.uint8))}
    if kind == "audio":
        return {
            "type": "audio",
            "audio": numbers.standard_normal(16000 - 4000 * place).astype("f"),
            "sampling_rate": 16000,
        }
    frames = torch.from_numpy(numbers.integers(0, 255, (4, 3, height, width), dtype=np.uint8))
    about = {"fps": 2.0, "total_num_frames": len(frames), "frames_indices": list(range(len(frames)))}
    return {"type": "video", "video": frames, "metadata": {**about, "video_backend": "pyav"}}


def prompts_of(media):
    """No medium, one of each kind, and two pictures of unequal sizes; every second one with a prefix."""
    cases = [(), *((kind,) for kind in media), *((kind, kind) for kind in media if kind == "image")]
    return [
        Prompt(
            str(case),
            [
                {
                    "role": "user",
                    "content": [*(medium(k, i) for i, k in enumerate(kinds)), {"type": "text", "text": f"Q {case}"}],
                }
            ],
            {},
            prefix="<think>\n" if case % 2 else "",
        )
        for case, kinds in enumerate(cases)
    ]


def plain_logprobs(model, processor, prompt, action):
    """Logprobs [T] of a completion by transformers alone."""
    parts = prompt.messages[0]["content"]
    of = lambda kind: [part for part in parts if part["type"] == kind]  # noqa: E731
    text = processor.apply_chat_template(prompt.messages, tokenize=False, add_generation_prompt=True) + prompt.prefix
    opening = processor.tokenizer.bos_token
    given = {"images": [part["image"] for part in of("image")], "videos": [part["video"] for part in of("video")]}
    if opening is not None and text.startswith(opening):
        given["add_special_tokens"] = False  # as transformers does where it applies the template itself
    if of("video"):
        given |= {"video_metadata": [part["metadata"] for part in of("video")], "do_sample_frames": False}
    if of("audio"):
        given |= {"audio": [part["audio"] for part in of("audio")], "sampling_rate": 16000}
    outputs = dict(
        processor(text=[text], return_tensors="pt", **{name: value for name, value in given.items() if value != []})
    )
    length = outputs["input_ids"].shape[1]
    for name in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
        if name in outputs:
            tail = {"input_ids": action, "attention_mask": torch.ones_like(action)}.get(name, torch.zeros_like(action))
            outputs[name] = torch.cat([outputs[name], tail[None]], 1)
    logits = model(**outputs, use_cache=False).logits[0, length - 1 : -1]
    return logits.log_softmax(-1).gather(-1, action[:, None])[:, 0]


def plain_model(path, kinds):
    loader = AutoModelForMultimodalLM if "audio" in kinds else AutoModelForImageTextToText
    return loader.from_pretrained(path, dtype=torch.float32).eval(), AutoProcessor.from_pretrained(path)


@pytest.mark.parametrize("kind", FAMILIES)
def test_logprobs_and_gradients_are_those_of_the_own_forward(model_folder, kind):
    media, shared = FAMILIES[kind]
    policy = LanguageModelPolicy(model_folder(kind), precision="float32")
    model, processor = plain_model(model_folder(kind), media)
    assert (policy.model.plain_reason is None) == shared
    prompts = prompts_of(media)
    groups = policy.rollout(prompts, 2, Sampling(max_tokens=5, temperature=1.0, top_p=1.0, top_k=0, seed=3))
    rows = [rollout.rows[0] for group in groups for rollout in group.rollouts]
    stats = policy.logprobs(rows)
    expected = [plain_logprobs(model, processor, prompts[place // 2], row.action) for place, row in enumerate(rows)]
    for place, (row, own) in enumerate(zip(rows, expected, strict=True)):
        found = stats.logprobs[place, : row.num_actions]
        torch.testing.assert_close(found, own, atol=1e-5, rtol=0.0, msg=lambda text, p=place: f"row {p}: {text}")
        torch.testing.assert_close(row.sampler_logprobs, own.detach(), atol=1e-5, rtol=0.0)
    stats.logprobs.sum().backward()
    torch.stack([own.sum() for own in expected]).sum().backward()
    trained = {name: parameter for name, parameter in policy.model.base.named_parameters() if parameter.requires_grad}
    for name, parameter in model.named_parameters():
        if name in trained and parameter.grad is not None and float(parameter.grad.norm()) > 1e-6:
            difference = float((trained[name].grad - parameter.grad).norm() / parameter.grad.norm())
            assert difference < 1e-4, f"{name}: {difference}"


def test_the_table_holds_every_family_with_media_that_can_be_built():
    text = {"qwen2", "qwen3", "llama", "gemma2", "gemma3_text"}
    assert set(FAMILIES) == set(TINY_KINDS) - text


# What is dropped is noticed


@pytest.fixture
def nothing_proven(monkeypatch):
    """A process proves models of one configuration once."""
    monkeypatch.setattr("mmrl_core.language_model.proof._proven", {})


def test_features_that_do_not_reach_the_layers_end_the_shared_prompt(model_folder, nothing_proven, monkeypatch):
    towers = importlib.import_module("mmrl_core.language_model.towers")
    whole = towers._flat
    monkeypatch.setattr(towers, "_flat", lambda output: whole(output)[:, :64])  # without the levels of DeepStack
    policy = LanguageModelPolicy(model_folder("qwen3_vl"), precision="float32")
    assert policy.model.plain_reason.startswith("with an image a shared prompt changes logprobs by ")
    assert max(policy.proof.shared.values()) > 100 * max(policy.proof.own.values())


def test_a_model_that_does_not_see_is_refused_where_a_prompt_has_a_picture(model_folder, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(model_folder("gemma3"), dtype=torch.float32)
    with torch.no_grad():
        model.model.multi_modal_projector.mm_input_projection_weight.zero_()
    model.save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(model_folder("gemma3")).save_pretrained(tmp_path)
    text, picture = prompts_of(("image",))[:2]
    sampling = Sampling(max_tokens=2, temperature=1.0, top_p=1.0, top_k=0, seed=0)
    policy = LanguageModelPolicy(tmp_path, precision="float32")
    assert len(policy.rollout([text], 2, sampling)) == 1
    with pytest.raises(PolicyError, match=r"does not see images.*set model\.blind_check to off"):
        policy.rollout([picture], 2, sampling)
    assert (
        len(LanguageModelPolicy(tmp_path, precision="float32", blind_check="off").rollout([picture], 2, sampling)) == 1
    )


@pytest.mark.parametrize("kind", ["qwen3_vl", "gemma3", "qwen3_5", "internvl"])
def test_adapters_train_on_the_path_of_the_family(model_folder, kind):
    policy = LanguageModelPolicy(model_folder(kind), precision="float32", lora={"rank": 4, "alpha": 8})
    assert (policy.model.plain_reason is None) == FAMILIES[kind][1]
    groups = policy.rollout(
        prompts_of(("image",)), 2, Sampling(max_tokens=4, temperature=1.0, top_p=1.0, top_k=0, seed=0)
    )
    rows = [rollout.rows[0] for group in groups for rollout in group.rollouts]
    found = policy.logprobs(rows).logprobs
    for place, row in enumerate(rows):
        torch.testing.assert_close(found[place, : row.num_actions].detach(), row.sampler_logprobs, atol=1e-5, rtol=0.0)
    found.sum().backward()
    trained = {name: p for name, p in policy.module.named_parameters() if p.requires_grad}
    assert trained and all("lora" in name for name in trained)
    assert sum(float(p.grad.abs().sum()) for p in trained.values() if p.grad is not None) > 0
