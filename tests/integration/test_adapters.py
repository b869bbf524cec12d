"""LoRA: what is frozen has no adapter, and an adapter that was trained is a model to start from or to evaluate."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from mmrl_core.cli import evaluate_checkpoint
from mmrl_core.config import LoraConfig
from mmrl_core.errors import PolicyError
from mmrl_core.language_model import LanguageModelPolicy
from mmrl_core.runs import read_metrics
from mmrl_core.starting_model import starting_model
from mmrl_core.types import Sampling


def adapted(policy):
    """Names of the modules that have an adapter that is trained."""
    names = [name for name, value in policy.model.model.named_parameters() if value.requires_grad]
    assert all(".lora_" in name for name in names)
    return {name.partition(".lora_")[0].removeprefix("base_model.model.") for name in names}


class TestFreeze:
    @pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"]])
    @pytest.mark.parametrize("kind", ["qwen2", "gemma3_text", "qwen2_5_vl", "qwen2_audio"])
    def test_a_frozen_layer_gets_no_adapter_and_the_others_keep_theirs(self, kind, targets, tiny_model):
        lora = LoraConfig(rank=2, target_modules=targets)
        everything = adapted(LanguageModelPolicy(tiny_model(kind), lora=lora))
        in_first = {name for name in everything if ".layers.0." in name}
        assert in_first and in_first < everything
        assert (
            adapted(LanguageModelPolicy(tiny_model(kind), lora=lora, freeze=["*.layers.0.*"])) == everything - in_first
        )

    def test_the_projector_may_be_frozen_and_the_decoder_adapted(self, tiny_model):
        policy = LanguageModelPolicy(tiny_model("qwen2_audio"), lora=LoraConfig(rank=2), freeze=["projector"])
        assert not any("multi_modal_projector" in name for name in adapted(policy)) and adapted(policy)

    @pytest.mark.parametrize(
        ("kind", "freeze"),
        [("qwen2", ["*"]), ("qwen2", ["language"]), ("qwen2_5_vl", ["language"]), ("qwen2_vl", ["*layers*"])],
    )
    def test_what_leaves_nothing_to_adapt_is_refused(self, kind, freeze, tiny_model):
        with pytest.raises(PolicyError, match=r"model\.freeze=\[.*\] leaves nothing to train for model\.lora"):
            LanguageModelPolicy(tiny_model(kind), lora=LoraConfig(rank=2), freeze=freeze)

    def test_a_frozen_layer_is_not_trained_by_an_adapter_that_is_gone_on_with(self, tiny_model, tmp_path):
        trained(tiny_model("qwen2"), tmp_path)
        policy = LanguageModelPolicy(tmp_path, lora=LoraConfig(rank=2), freeze=["*.layers.0.*"])
        assert adapted(policy) and not any(".layers.0." in name for name in adapted(policy))


def trained(path, folder, **settings):
    """A policy whose adapter has moved, saved in a folder."""
    policy = LanguageModelPolicy(path, lora=LoraConfig(rank=2), **settings)
    with torch.no_grad():
        for parameter in policy.module.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    folder.mkdir(exist_ok=True)
    policy.save(folder)
    return policy


def logprobs(policy, prompt):
    (group,) = policy.demonstrate([prompt], ["a red dog"])
    with torch.no_grad():
        return policy.logprobs([group.rollouts[0].rows[0]]).logprobs


class TestAsAModel:
    @pytest.mark.parametrize("kind", ["qwen2", "gemma3_text", "qwen2_5_vl"])
    def test_an_adapter_goes_on_or_is_merged_into_its_model(self, kind, tiny_model, make_prompt, tmp_path):
        prompt = make_prompt("p", "what is this")
        policy = trained(tiny_model(kind), tmp_path / "adapter")
        expected, plain = logprobs(policy, prompt), logprobs(LanguageModelPolicy(tiny_model(kind)), prompt)
        assert (expected - plain).abs().max() > 1e-2, "the adapter should matter"

        goes_on = LanguageModelPolicy(tmp_path / "adapter", lora=LoraConfig(rank=2))
        assert torch.equal(logprobs(goes_on, prompt), expected) and goes_on.path == tiny_model(kind)
        assert adapted(goes_on) == adapted(policy)

        merged = LanguageModelPolicy(tmp_path / "adapter")
        torch.testing.assert_close(logprobs(merged, prompt), expected, rtol=0, atol=1e-4)
        assert all(parameter.requires_grad for parameter in merged.model.base.get_decoder().parameters())
        merged.save(_made(tmp_path / "merged"))
        again = LanguageModelPolicy(tmp_path / "merged")
        assert torch.equal(logprobs(again, prompt), logprobs(merged, prompt))

        assert goes_on.rollout([prompt], 1, Sampling(max_tokens=2))[0].rollouts[0].rows[0].num_actions
        preview = LanguageModelPolicy.preview(tmp_path / "adapter")
        assert preview.prompt_length(prompt) == policy.prompt_length(prompt)

    def test_it_names_the_model_so_that_it_is_found_from_another_folder(self, tiny_model, tmp_path, monkeypatch):
        monkeypatch.chdir(tiny_model("qwen2").parent)
        trained("qwen2", tmp_path / "adapter")
        monkeypatch.chdir(tmp_path)
        assert LanguageModelPolicy(tmp_path / "adapter").path == tiny_model("qwen2")

    @pytest.mark.parametrize(
        ("lora", "said"),
        [
            (
                LoraConfig(rank=4),
                r"adapter of rank 2 and alpha 32, and model.lora is rank 4, alpha 32. Set",
            ),
            (LoraConfig(rank=2, alpha=1.0), r"model.lora is rank 2, alpha 1"),
        ],
    )
    def test_another_adapter_than_the_options_say_is_refused(self, lora, said, tiny_model, tmp_path):
        trained(tiny_model("qwen2"), tmp_path / "adapter")
        with pytest.raises(PolicyError, match=said):
            LanguageModelPolicy(tmp_path / "adapter", lora=lora)
        with pytest.raises(PolicyError, match=said):
            LanguageModelPolicy(tiny_model("qwen2"), lora=lora).load(tmp_path / "adapter")

    def test_whole_weights_and_adapters_are_not_taken_for_each_other(self, tiny_model, tmp_path):
        trained(tiny_model("qwen2"), tmp_path / "adapter")
        with pytest.raises(PolicyError, match=r"adapter of rank 2 and alpha 32, and model.lora is not set"):
            LanguageModelPolicy(tiny_model("qwen2")).load(tmp_path / "adapter")
        with pytest.raises(PolicyError, match=r"holds a whole model, and model.lora is set. Take model.lora out"):
            LanguageModelPolicy(tiny_model("qwen2"), lora=LoraConfig()).load(tiny_model("qwen2"))

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"base_model_name_or_path": "/gone/model"}, r"adapts /gone/model, which is not here. Put the model there"),
            ({"base_model_name_or_path": None}, r"does not say which model it adapts"),
            (None, r"adapter_config.json cannot be read"),
            ("weights", r"cannot be put on"),
        ],
    )
    def test_a_broken_adapter_is_a_sentence(self, change, said, tiny_model, tmp_path):
        trained(tiny_model("qwen2"), tmp_path / "adapter")
        file = tmp_path / "adapter" / "adapter_config.json"
        if change == "weights":
            (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"torn")
        else:
            file.write_text("{" if change is None else json.dumps(json.loads(file.read_text()) | change))
        with pytest.raises(PolicyError, match=said):
            LanguageModelPolicy(tmp_path / "adapter")


def _made(folder):
    folder.mkdir()
    return folder


@pytest.fixture
def adapter_run(base_config, make_trainer, rewards_file):
    """A run of SFT with an adapter of rank 2 over the tiny Qwen2, its config, and its checkpoint."""
    values = base_config("qwen2") | {"rewards": [f"{rewards_file}:spread"]}
    values["model"] |= {"lora": {"rank": 2}}
    values["data"]["held_out"] = values["data"]["train"] | {"limit": 4}
    values["stages"] = [{"kind": "sft", "steps": 2, "prompts_per_step": 4}]
    trainer = make_trainer(values)
    trainer.run(resume=False)
    return values, trainer.output / "checkpoints" / "step-2"


class TestCheckpoints:
    @pytest.mark.parametrize("kept", ["with its options", "without them", "after its model has moved"])
    def test_an_adapter_is_evaluated_under_its_task_with_or_without_its_options(
        self, kept, adapter_run, make_config, tiny_model, tmp_path
    ):
        values, checkpoint = adapter_run
        (_, after) = [record for record in read_metrics(checkpoint.parents[1]) if record["kind"] == "eval"]
        if kept == "without them":
            values["model"].pop("lora")
        if kept == "after its model has moved":
            values["model"]["path"] = str(shutil.copytree(tiny_model("qwen2"), tmp_path / "moved"))
            checkpoint = Path(shutil.copytree(checkpoint / "model", tmp_path / "adapter"))
            file = checkpoint / "adapter_config.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "/gone"}))
        metrics = evaluate_checkpoint(make_config(values), checkpoint)
        assert metrics["greedy/reward/spread"] == pytest.approx(after["greedy/reward/spread"], abs=1e-5)

    @pytest.mark.parametrize("end", ["", "model"])
    @pytest.mark.parametrize("lora", [{"rank": 2}, None])
    def test_it_is_a_model_to_start_from(self, end, lora, adapter_run, make_trainer, make_config):
        values, checkpoint = adapter_run
        values["model"] |= {"path": str(checkpoint / end), "lora": lora}
        trainer = make_trainer(values)
        assert starting_model(make_config(values), trainer.plugins.registry) == checkpoint / "model"
        trainer.run(resume=False)
        records = [record for record in read_metrics(trainer.output) if record["kind"] == "eval"]
        (_, after) = [record for record in read_metrics(checkpoint.parents[1]) if record["kind"] == "eval"]
        assert records[0]["greedy/reward/spread"] == pytest.approx(after["greedy/reward/spread"], abs=1e-5)
