"""Adapters on quantised weights: what is computed is what the dequantised model computes, and runs are like others."""

import json
import sys
from pathlib import Path

import pytest
import torch

from mmrl_core.cli import main
from mmrl_core.config import LoraConfig
from mmrl_core.config.schema import ShardingConfig
from mmrl_core.errors import MissingPackageError, PolicyError
from mmrl_core.language_model import HFEngine, LanguageModelPolicy, VLLMEngine
from mmrl_core.runs import read_metrics
from mmrl_core.types import Sampling

BITS = ("nf4", "int8")
DECODER = {f"{part}_proj" for part in ("q", "k", "v", "o", "gate", "up", "down")}


def dequantised(layer):
    """The matrix that a linear layer multiplies by; None if it is not quantised."""
    weight = layer.weight
    if hasattr(weight, "quant_state"):
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, weight.quant_state)
    return None if type(weight.data) is torch.Tensor else weight.dequantize()


def quantised_layers(policy):
    """Name of a layer, as the transformers model has it -> its matrix."""
    linear = [item for item in policy.model.base.named_modules() if isinstance(item[1], torch.nn.Linear)]
    found = {name.removesuffix(".base_layer"): dequantised(layer) for name, layer in linear}
    return {name: matrix for name, matrix in found.items() if matrix is not None}


def moved(policy):
    """The policy, its adapters no longer at their start."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.module.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.02, generator=generator)
    return policy


def sampled_rows(policy, prompt, count=3):
    (group,) = policy.rollout([prompt], count, Sampling(max_tokens=6, temperature=1.0, seed=1))
    return [rollout.rows[0] for rollout in group.rollouts]


def gradients(module):
    return {name: value.grad for name, value in module.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", ["qwen2", "qwen2_5_vl"])
def test_logprobs_and_gradients_are_those_of_the_dequantised_model(
    kind, bits, tiny_model, plain_model, make_prompt, make_picture, tmp_path
):
    from peft import PeftModel

    path = tiny_model(kind)
    prompt = make_prompt("one", "what is this", [make_picture(1, 84, 56)] if kind == "qwen2_5_vl" else [])
    policy = moved(LanguageModelPolicy(path, quantization=bits, lora=LoraConfig(rank=4)))
    assert policy.model.plain_reason is None and policy.model.lean_decoding  # both proofs hold
    matrices = quantised_layers(policy)
    assert {name.split(".")[-1] for name in matrices} == DECODER and not any("visual" in name for name in matrices)
    assert len(matrices) == 7 * policy.model.base.config.get_text_config().num_hidden_layers

    rows = sampled_rows(policy, prompt)
    found = policy.logprobs(rows).logprobs
    found.sum().backward()
    policy.save(tmp_path)
    plain = plain_model(path)
    rounding = max(
        (plain.model.get_submodule(name).weight - matrix).abs().max().item() for name, matrix in matrices.items()
    )
    assert rounding > 1e-4
    for name, matrix in matrices.items():
        plain.model.get_submodule(name).weight.data = matrix
    plain.model = PeftModel.from_pretrained(plain.model, tmp_path, is_trainable=True)
    expected = [plain.logprobs(prompt, row.action) for row in rows]
    torch.cat(expected).sum().backward()
    for index, (row, logprobs) in enumerate(zip(rows, expected, strict=True)):
        torch.testing.assert_close(found[index, : row.num_actions], logprobs, rtol=0, atol=2e-5)
        torch.testing.assert_close(row.sampler_logprobs, logprobs.detach(), rtol=0, atol=2e-5)
    own, others = gradients(policy.model.model), gradients(plain.model)
    assert own.keys() == others.keys() and len(own) == 2 * len(matrices)
    for name, gradient in own.items():
        assert float((gradient - others[name]).norm() / others[name].norm()) < 1e-4, name


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("precision", ["bfloat16", "bfloat16_mixed"])
def test_short_types_and_recomputed_activations_give_the_gradients_of_float32_roughly(
    bits, precision, tiny_model, make_prompt
):
    prompt, found = make_prompt("one", "what is this"), []
    for settings in ({}, {"precision": precision, "gradient_checkpointing": True}):
        policy = moved(LanguageModelPolicy(tiny_model("qwen2"), quantization=bits, lora=LoraConfig(rank=4), **settings))
        rows = found[0][0] if found else sampled_rows(policy, prompt)
        policy.logprobs(rows).logprobs.sum().backward()
        found.append((rows, torch.cat([gradient.flatten() for gradient in gradients(policy.model.model).values()])))
    (_, exact), (_, rounded) = found
    assert torch.nn.functional.cosine_similarity(exact, rounded, dim=0) > 0.99


@pytest.mark.parametrize("bits", BITS)
def test_frozen_policies_and_copies_share_the_quantised_weights(bits, tiny_model, make_prompt):
    prompt = make_prompt("one", "what is this")
    policy = LanguageModelPolicy(
        tiny_model("qwen2"), quantization=bits, lora=LoraConfig(rank=4), engine=HFEngine(copy=True)
    )
    rows = sampled_rows(policy, prompt)
    before = policy.logprobs(rows).logprobs.detach()
    policy.freeze("reference")
    moved(policy)
    policy.publish_weights()
    after = policy.logprobs(rows).logprobs.detach()
    assert (after - before).abs().max() > 1e-2
    assert torch.equal(policy.logprobs(rows, frozen="reference").logprobs, before)
    (row,) = sampled_rows(policy, prompt, count=1)
    torch.testing.assert_close(row.sampler_logprobs, policy.logprobs([row]).logprobs[0].detach(), rtol=0, atol=2e-5)


@pytest.fixture
def values(base_config, rewards_file):
    base = base_config("qwen2")
    grpo = {"kind": "grpo", "steps": 3, "prompts_per_step": 2, "group_size": 3}
    return base | {
        "rewards": [f"{rewards_file}:spread"],
        "algorithm": {"kl": {"coefficient": 0.1}},
        "checkpoint": {"every_steps": 1, "keep": 5},
        "stages": [grpo],
    }


@pytest.mark.parametrize("bits", BITS)
def test_a_run_goes_on_bit_for_bit_and_its_adapter_fits_the_plain_model(
    bits, values, tiny_model, make_prompt, tmp_path, without_times, capsys
):
    values["model"] |= {"quantization": bits, "lora": {"rank": 4}}
    task = tmp_path / "task.yaml"

    def trained(steps, folder, *arguments):
        values["stages"][0]["steps"] = steps
        task.write_text(json.dumps(values))
        assert main(["train", str(task), "--output", str(tmp_path / folder), *arguments]) == 0, capsys.readouterr().err

    trained(3, "whole")
    trained(1, "parts")
    trained(3, "parts", "--resume")
    whole, parts = ([without_times(record) for record in read_metrics(tmp_path / name)] for name in ("whole", "parts"))
    steps = [[record for record in records if record["kind"] == "step"] for records in (whole, parts)]
    assert steps[0] == steps[1] and steps[0][-1]["kl_ref"] > 0

    adapter, prompt = tmp_path / "whole/checkpoints/step-3/model", make_prompt("one", "what is this")
    assert {path.name for path in adapter.glob("*.safetensors")} == {"adapter_model.safetensors"}
    found = []
    for settings in ({"quantization": bits, "lora": LoraConfig(rank=4)}, {"lora": LoraConfig(rank=4)}, {}):
        policy = LanguageModelPolicy(adapter, **settings)
        assert policy.path == tiny_model("qwen2")
        rows = found[0][0] if found else sampled_rows(policy, prompt)
        found.append((rows, policy.logprobs(rows).logprobs.detach()))
    (_, quantised), (_, plain), (_, merged) = found
    assert 1e-4 < (quantised - plain).abs().max() < 1  # the rounding of the weights
    torch.testing.assert_close(merged, plain, rtol=0, atol=1e-4)


def test_the_preset_for_a_small_gpu_trains(values, run):
    values |= {"extends": ["hardware/one_small_gpu"], "rollout": {"max_tokens": 6}}
    values["stages"][0]["steps"] = 2
    trainer, steps = run(values)
    assert len(quantised_layers(trainer.policy)) == 14 and trainer.policy.precision == "bfloat16"
    assert len(steps) == 2 and all(step["grad_norm"] > 0 for step in steps)


@pytest.mark.parametrize("bits", BITS)
def test_two_processes_learn_what_one_learns(bits, values, tmp_path, start_training, start_ranks):
    values["model"] |= {"quantization": bits, "lora": {"rank": 4}}
    values["stages"] = [{"kind": "sft", "steps": 2, "prompts_per_step": 4}]
    task = tmp_path / "task.yaml"
    task.write_text(json.dumps({key: value for key, value in values.items() if key not in ("rewards", "algorithm")}))
    logs = {"ACCELERATE_USE_CPU": "true", "PROBE_LOG": str(tmp_path / "one.log")}
    processes = [start_training(task, tmp_path / "one", **logs), *start_ranks(task, tmp_path / "two")]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0], Path(tmp_path / "two.0.log").read_text()
    one, two = (
        [record for record in read_metrics(tmp_path / run) if record["kind"] == "step"] for run in ("one", "two")
    )
    assert [record["loss"] for record in two] == pytest.approx([record["loss"] for record in one], rel=1e-5)
    assert one[0]["loss"] != one[1]["loss"]


def test_what_quantised_weights_cannot_do_is_one_sentence(tiny_model, monkeypatch):
    given = {"quantization": "nf4", "lora": LoraConfig(rank=2)}
    with pytest.raises(PolicyError, match=r"^model\.quantization: another program .* Set rollout\.engine to hf\.$"):
        LanguageModelPolicy(tiny_model("qwen2"), engine=VLLMEngine(), **given)
    with pytest.raises(PolicyError, match=r"^sharding: quantised weights cannot be shared\. Take sharding or"):
        LanguageModelPolicy(tiny_model("qwen2"), **given).shard(ShardingConfig())
    for bits, package in (("nf4", "bitsandbytes"), ("int8", "torchao")):
        monkeypatch.setitem(sys.modules, f"{package}.{'nn' if bits == 'nf4' else 'quantization'}", None)
        with pytest.raises(MissingPackageError, match=rf"needs the package {package}.*pip install 'mmrl-core\[quant"):
            LanguageModelPolicy(tiny_model("qwen2"), quantization=bits, lora=LoraConfig(rank=2))
