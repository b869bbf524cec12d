"""Evaluation with weights of 8 bits or of float16: what is computed, what it takes in memory, what is refused."""

import pytest
import torch
from safetensors.torch import load_file

from mmrl_core.cli import evaluate_checkpoint
from mmrl_core.cli.dry_run import check_run
from mmrl_core.errors import ConfigError
from mmrl_core.language_model import LanguageModelPolicy
from mmrl_core.types import Sampling

KINDS = ("qwen2", "qwen2_5_vl", "qwen2_audio")


def rounded(weight):
    """A matrix as 8 bits keep it: one scale for each row, values -128..127."""
    scale = (weight.abs().amax(1, keepdim=True) / 127.5).clamp_min(1e-12)  # a row may be 0
    return (weight * (1 / scale)).round().clamp(-128, 127) * scale


def is_quantized(name, weight):
    """Matrices of linear layers, the output layer apart; patch and time embeddings are convolutions."""
    is_other = any(part in name for part in ("embed", "lm_head", "conv"))
    return name.endswith(".weight") and weight.dim() == 2 and not is_other


@pytest.mark.parametrize("kind", KINDS)
def test_int8_computes_with_rounded_matrices(tiny_model, plain_model, make_prompt, make_picture, kind):
    path = tiny_model(kind)
    policy = LanguageModelPolicy(path, quantization="int8")
    images = [make_picture(1, 84, 56)] if kind == "qwen2_5_vl" else []
    prompt = make_prompt("one", "what is this", images)
    (group,) = policy.rollout([prompt], 3, Sampling(max_tokens=6, temperature=1.0, seed=1))
    plain = plain_model(path)
    with torch.no_grad():
        for name, module in plain.model.named_modules():
            if isinstance(module, torch.nn.Linear) and not name.endswith("lm_head"):
                module.weight.copy_(rounded(module.weight))
        rows = [rollout.rows[0] for rollout in group.rollouts]
        exact, expected = ([model.logprobs(prompt, row.action) for row in rows] for model in (plain_model(path), plain))
    for row, logprobs in zip(rows, expected, strict=True):
        torch.testing.assert_close(row.sampler_logprobs, logprobs, rtol=0, atol=1e-4)
    assert (torch.cat(exact) - torch.cat(expected)).abs().max() > 1e-3  # or else the rounding would not be seen


def test_eval_tells_the_memory_of_the_weights(make_config, base_config, tiny_model):
    values = base_config("qwen2_5_vl")
    values["data"]["held_out"] = values["data"]["train"]
    values["eval"] = {"temperatures": [0], "limit": 2}
    path = tiny_model("qwen2_5_vl")
    found = {}
    for name, settings in {
        "float32": {},
        "float16": {"precision": "float16"},
        "int8": {"quantization": "int8"},
        "both": {"precision": "float16", "quantization": "int8"},
    }.items():
        config = make_config(values | {"model": {"path": str(path), **settings}})
        found[name] = evaluate_checkpoint(config, path)
    weights = load_file(path / "model.safetensors")
    quantized = {name: weight for name, weight in weights.items() if is_quantized(name, weight)}
    others = sum(weight.numel() for weight in weights.values()) - sum(weight.numel() for weight in quantized.values())
    int8 = sum(weight.numel() + 4 * len(weight) for weight in quantized.values())  # a float32 scale for each row
    total = others + sum(weight.numel() for weight in quantized.values())
    expected = {"float32": 4 * total, "float16": 2 * total, "int8": 4 * others + int8, "both": 2 * others + int8}
    for name, num_bytes in expected.items():
        # Buffers, such as rotary frequencies and the zero points of scales, come on top.
        assert num_bytes <= found[name]["memory/weights_mib"] * 2**20 < num_bytes + 0.05 * expected["float32"], name
        assert found[name]["memory/peak_mib"] > found[name]["memory/weights_mib"]


def test_what_cannot_be_trained_is_refused(make_config, make_trainer, base_config):
    values = base_config("qwen2") | {"rewards": [], "stages": [{"kind": "sft", "steps": 1}]}
    for settings, message in (
        ({"quantization": "int8"}, r"model\.quantization: weights of 8 bits cannot be trained"),
        ({"precision": "float16"}, r"model\.precision: gradients and updates of float16 weights vanish"),
    ):
        refused = values | {"model": values["model"] | settings}
        with pytest.raises(ConfigError, match=message):
            make_trainer(refused)
        with pytest.raises(ConfigError, match=message):
            check_run(make_config(refused))
    with pytest.raises(ConfigError, match="'quantization' is of whole models; take 'lora' out"):
        make_config(values | {"model": values["model"] | {"quantization": "int8", "lora": {"rank": 2}}})
