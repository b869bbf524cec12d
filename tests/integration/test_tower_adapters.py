"""LoRA on media towers, projectors and experts: where it goes, its gradient, and that plain peft reads it back."""

from __future__ import annotations

import importlib
import json

import numpy as np
import peft
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor

from mmrl_core.errors import PolicyError
from mmrl_core.language_model import LanguageModelPolicy
from mmrl_core.types import Prompt, Sampling

adapter = importlib.import_module("mmrl_core.language_model.adapter")
towers = importlib.import_module("mmrl_core.language_model.towers")
evaluated = importlib.import_module("mmrl_core.cli.evaluated")
vllm_weights = importlib.import_module("mmrl_core.language_model.engines.vllm_weights")

TOWERS = {
    "qwen2_vl": "vision projector",
    "qwen2_5_vl": "vision projector",
    "qwen2_audio": "audio projector",
    "qwen3_vl": "vision projector",
    "qwen3_vl_moe": "vision projector",
    "qwen3_5": "vision projector",
    "qwen2_5_omni": "vision audio projector",
    "qwen3_omni": "vision audio projector",
    "glm46v": "vision projector",
    "gemma3": "vision",
    "gemma4": "vision audio projector",
    "internvl": "vision projector",
    "smolvlm": "vision projector",
    "llava": "vision projector",
    "llava_onevision": "vision projector",
    "mistral3": "vision projector",
    "lfm2_vl": "vision projector",
}
"""Kind of tiny model -> its parts before the decoder that have linear layers. Gemma 3's projector is a bare matrix."""

SAMPLING = Sampling(max_tokens=4, temperature=1.0, top_p=1.0, top_k=0, seed=0)


def prompt(name, *sizes):
    """A prompt with pictures of noise of these sizes."""
    numbers = np.random.default_rng(len(name))
    pictures = [Image.fromarray(numbers.integers(0, 255, (h, w, 3), dtype=np.uint8)) for w, h in sizes]
    content = [*({"type": "image", "image": picture} for picture in pictures), {"type": "text", "text": f"Q {name}"}]
    return Prompt(name, [{"role": "user", "content": content}], {})


PROMPTS = [prompt("a", (112, 84)), prompt("bc"), prompt("def", (60, 140), (84, 84))]


def plain(path, kind):
    loader = AutoModelForMultimodalLM if "audio" in TOWERS[kind] else AutoModelForImageTextToText
    return loader.from_pretrained(path, dtype=torch.float32).eval()


def moved(policy):
    """The policy with adapters that are no longer zero."""
    with torch.no_grad():
        for name, parameter in policy.module.named_parameters():
            if ".lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    return policy


def own_logprobs(model, processor, prompt, action):
    """Logprobs [T] of a completion by transformers and peft alone."""
    pictures = [part["image"] for part in prompt.messages[0]["content"] if part["type"] == "image"]
    text = processor.apply_chat_template(prompt.messages, tokenize=False, add_generation_prompt=True)
    bos = processor.tokenizer.bos_token
    given = {"add_special_tokens": False} if bos is not None and text.startswith(bos) else {}
    outputs = dict(processor(text=[text], return_tensors="pt", **given, **({"images": pictures} if pictures else {})))
    length = outputs["input_ids"].shape[1]
    for name in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
        if name in outputs:
            tail = {"input_ids": action, "attention_mask": torch.ones_like(action)}.get(name, torch.zeros_like(action))
            outputs[name] = torch.cat([outputs[name], tail[None]], 1)
    logits = model(**outputs, use_cache=False).logits[0, length - 1 : -1]
    return logits.log_softmax(-1).gather(-1, action[:, None])[:, 0]


# Where adapters go


@pytest.mark.parametrize("kind", TOWERS)
def test_each_part_is_reached_and_no_other(kind, tiny_model):
    model = plain(tiny_model(kind), kind)
    reached = {part: adapter.target_layers(model, part) for part in TOWERS[kind].split()}
    decoder = adapter.target_layers(model, "all-linear")
    assert decoder == adapter.target_layers(model, ["language"])
    for part, layers in reached.items():
        assert layers and not layers & decoder, part
        assert adapter.target_layers(model, sorted(layers)) == layers  # by their whole names
        assert adapter.target_layers(model, "|".join(layers)) == layers  # by a regular expression
    every = decoder.union(*reached.values())
    assert adapter.target_layers(model, ["all-linear", *reached]) == every
    head = {name for name, module in model.named_modules() if module is model.get_output_embeddings()}
    missed = {name for name, module in model.named_modules() if type(module) is torch.nn.Linear} - every - head
    assert not missed
    with pytest.raises(PolicyError, match=r"'nothing' names no layer .* Names: .*q_proj.*Or a regular expression"):
        adapter.target_layers(model, ["nothing"])


def test_a_name_means_the_decoder_where_it_has_one_and_the_towers_where_it_has_none(tiny_model):
    model = plain(tiny_model("llava"), "llava")
    assert all(".language_model." in name for name in adapter.target_layers(model, ["q_proj"]))
    assert all(".vision_tower." in name for name in adapter.target_layers(model, ["fc1"]))
    assert {name.split(".")[1] for name in adapter.target_layers(model, r".*\.q_proj")} == {
        "language_model",
        "vision_tower",
    }
    for wanted in ("q_proj", "audio", "(", ["model.vision_tower"]):
        with pytest.raises(PolicyError, match=r"model\.lora\.target_modules: "):
            adapter.target_layers(model, wanted)


def test_what_is_frozen_gets_no_adapter(tiny_model):
    options = {"precision": "float32", "lora": {"rank": 2, "target_modules": ["all-linear", "vision"]}}
    policy = LanguageModelPolicy(tiny_model("qwen2_5_vl"), freeze=["vision"], **options)
    assert adapter.adapted_layers(policy.model.model) == adapter.target_layers(
        plain(tiny_model("qwen2_5_vl"), "qwen2_5_vl"), "all-linear"
    )
    assert towers.towers_frozen(policy.model.base)
    policy = LanguageModelPolicy(tiny_model("qwen2_5_vl"), freeze=["language"], **options)
    assert all(".visual." in name for name in adapter.adapted_layers(policy.model.model))
    options["lora"]["target_modules"] = "vision"
    with pytest.raises(PolicyError, match=r"model\.freeze=\['vision'\] leaves nothing to train for model\.lora"):
        LanguageModelPolicy(tiny_model("qwen2_5_vl"), freeze=["vision"], **options)


def test_a_part_before_the_decoder_that_no_tower_holds_is_the_projector(tiny_model):
    """LLaVA-OneVision's mark of a new line is a parameter of its own: features are not kept while it is trained."""
    model = plain(tiny_model("llava_onevision"), "llava_onevision")
    towers.freeze_parameters(model, ["vision"])
    assert "model.image_newline" in towers.part_parameters(model, "projector") and not towers.towers_frozen(model)
    towers.freeze_parameters(model, ["projector"])
    assert towers.towers_frozen(model)


# What they compute


@pytest.mark.parametrize(
    ("kind", "shared", "targets"),
    [
        ("qwen2_5_vl", True, ["all-linear", "vision"]),
        ("llava", True, ["vision", "projector"]),
        ("gemma3", False, ["q_proj", "vision"]),
        ("qwen3_vl_moe", True, ["all-linear", "vision", "experts"]),
    ],
)
def test_gradients_are_those_of_plain_transformers_and_peft_which_read_it_back(
    kind, shared, targets, tiny_model, tmp_path
):
    lora = {"rank": 2, "alpha": 4, "target_modules": targets}
    policy = moved(LanguageModelPolicy(tiny_model(kind), precision="float32", lora=lora))
    assert (policy.model.plain_reason is None) == shared and not towers.towers_frozen(policy.model.base)
    assert "computed in each pass" in policy.describe()[1]
    groups = policy.rollout(PROMPTS, 2, SAMPLING)
    rows = [rollout.rows[0] for group in groups for rollout in group.rollouts]
    found = policy.logprobs(rows).logprobs
    found.sum().backward()

    policy.save(tmp_path)
    model = peft.PeftModel.from_pretrained(plain(tiny_model(kind), kind), tmp_path, is_trainable=True).eval()
    processor = AutoProcessor.from_pretrained(tmp_path)
    expected = [own_logprobs(model, processor, PROMPTS[place // 2], row.action) for place, row in enumerate(rows)]
    for place, own in enumerate(expected):
        torch.testing.assert_close(found[place, : len(own)], own, atol=1e-5, rtol=0.0)
        torch.testing.assert_close(rows[place].sampler_logprobs, own.detach(), atol=1e-5, rtol=0.0)
    torch.stack([own.sum() for own in expected]).sum().backward()
    trained = {name: value for name, value in policy.model.model.named_parameters() if value.requires_grad}
    reference = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert trained.keys() == reference.keys()
    in_towers = 0
    whole = torch.stack([value.grad.norm() for value in reference.values() if value.grad is not None]).norm()
    for name, value in reference.items():
        if value.grad is None:
            assert trained[name].grad is None, name
            continue
        difference = (trained[name].grad - value.grad).norm()
        assert difference <= 1e-5 * value.grad.norm() + 1e-7 * whole, f"{name}: {difference / value.grad.norm()}"
        in_towers += ("visual" in name or "vision" in name) and float(value.grad.norm()) > 0
    assert in_towers > 4

    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    layers = adapter.adapted_layers(policy.model.model)
    assert adapter.target_layers(plain(tiny_model(kind), kind), evaluated._adapted_layers(settings)) == layers
    again = LanguageModelPolicy(tmp_path, precision="float32", lora=lora | {"target_modules": targets})
    torch.testing.assert_close(again.logprobs(rows).logprobs, found, atol=1e-6, rtol=0.0)
    policy.load(tmp_path)
    if "experts" in targets:
        with pytest.raises(PolicyError, match=r"adapts experts, which vLLM cannot merge"):
            list(vllm_weights.merged_weights(policy))
    else:  # what vLLM gets
        policy.model.base.config.save_pretrained(tmp_path / "merged")
        weights = {name: weight.contiguous() for name, weight in vllm_weights.merged_weights(policy)}
        save_file(weights, tmp_path / "merged" / "model.safetensors", metadata={"format": "pt"})
        own = own_logprobs(plain(tmp_path / "merged", kind), processor, PROMPTS[0], rows[0].action)
        torch.testing.assert_close(own, expected[0], atol=1e-5, rtol=0.0)
    with pytest.raises(PolicyError, match=r"not on the layers that model\.lora\.target_modules"):
        LanguageModelPolicy(tiny_model(kind), precision="float32", lora=lora | {"target_modules": ["k_proj"]}).load(
            tmp_path
        )


@pytest.mark.parametrize("kind", ["qwen3_vl_moe", "qwen3_omni"])
def test_all_linear_leaves_experts_out_and_says_so(kind, tiny_model):
    policy = LanguageModelPolicy(tiny_model(kind), precision="float32", lora={"rank": 2})
    names = adapter.adapted_layers(policy.model.model)
    assert {name.rpartition(".")[2] for name in names} == {"q_proj", "k_proj", "v_proj", "o_proj"} and len(names) == 8
    assert (
        "LoRA adapts 8 layers of the text decoder and 0 of what is before it, no experts "
        "(model.lora.target_modules: experts)" in policy.describe()
    )
    assert "media features are computed once for each prompt" in policy.describe()
