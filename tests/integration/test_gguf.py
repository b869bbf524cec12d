"""A model in one GGUF file is the model of the folder it was written from, and is trained, saved and gone on with."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from mmrl_core.cli import evaluate_checkpoint, main
from mmrl_core.config import LoraConfig
from mmrl_core.errors import MissingPackageError, PolicyError
from mmrl_core.language_model import LanguageModelOptions, LanguageModelPolicy, load_model, load_processor
from mmrl_core.runs import read_metrics
from mmrl_core.types import Sampling

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def file(tiny_model, tmp_path_factory):
    """The tiny Qwen2 as a GGUF file without a chat template."""
    return write_gguf(tiny_model("qwen2"), tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def write_gguf(folder, path, architecture="qwen2"):
    import gguf
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    config, writer = model.config, gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    words = json.loads(tokenizer.backend_tokenizer.to_str())
    control = set(tokenizer.all_special_tokens)
    tokens = tokenizer.convert_ids_to_tokens(range(config.vocab_size))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if t in control else gguf.TokenType.NORMAL for t in tokens])
    writer.add_token_merges([" ".join(pair) for pair in words["model"]["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), weight.numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_file_has_the_weights_and_tokens_of_its_folder(file, tiny_model):
    options = LanguageModelOptions()
    one, other = (load_model(path, options, torch.float32) for path in (file, tiny_model("qwen2")))
    ids = torch.arange(40)[None]
    assert torch.equal(one(ids).logits, other(ids).logits)
    read, known = (load_processor(path, options) for path in (file, tiny_model("qwen2")))
    text = "<|im_start|>user\nWhat is 12 + 34?<|im_end|>"
    assert read(text)["input_ids"] == known(text)["input_ids"]


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)])
def test_what_is_saved_of_a_file_reads_back_equal(file, make_prompt, tmp_path, lora):
    policy = LanguageModelPolicy(str(file), lora=lora, chat_template=CHATML)
    with torch.no_grad():
        for weight in policy.module.parameters():
            weight += 0.01 * weight.requires_grad
    sampled = policy.rollout([make_prompt("a", "2 + 2")], 2, Sampling(max_tokens=4, temperature=1.0, seed=1))
    rows = [row for rollout in sampled[0].rollouts for row in rollout.rows]
    policy.save(tmp_path / "model")

    back = LanguageModelPolicy(tmp_path / "model", lora=lora, chat_template=CHATML)
    with torch.no_grad():
        assert torch.equal(policy.logprobs(rows).logprobs, back.logprobs(rows).logprobs)
    if lora is not None:  # the adapter names the file, not the folder that the file is in
        assert back.path == file.absolute()
    if lora is None:
        assert (
            LanguageModelPolicy(tmp_path / "model").encoder.chat.turn_end == "<|im_end|>"
        )  # the template is saved too


def test_a_run_of_a_file_is_evaluated_and_gone_on_with(
    file, base_config, make_config, rewards_file, tmp_path, monkeypatch
):
    from mmrl_core.trainer import Trainer

    values = base_config("qwen2")
    values |= {
        "model": {"path": str(file), "lora": {"rank": 2}, "chat_template": CHATML},
        "rewards": [f"{rewards_file}:spread"],
        "stages": [{"kind": "grpo", "steps": 1, "prompts_per_step": 2, "group_size": 2}],
    }
    values["data"]["held_out"] = values["data"]["train"]

    def run(steps):
        values["stages"][0]["steps"] = steps
        trainer = Trainer(make_config(values), tmp_path / "run")
        try:
            trainer.run(resume=steps > 1)
        finally:
            trainer.close()
        return make_config(values)

    config = run(1)
    measured = evaluate_checkpoint(config, tmp_path / "run", 2)
    monkeypatch.chdir(tmp_path)  # results of a model in one file go to the current folder
    assert main(["eval", str(tmp_path / "task.yaml"), "--checkpoint", str(file), "--limit", "2"]) == 0
    assert [path.suffix for path in sorted((tmp_path / "eval").iterdir())] == [".json", ".jsonl"]
    run(2)
    assert [record["step"] for record in read_metrics(tmp_path / "run") if record["kind"] == "step"] == [1, 2]
    values["model"]["path"] = str(tmp_path / "run/checkpoints/step-1")
    again = evaluate_checkpoint(make_config(values), None, 2)
    assert again["greedy/reward/spread"] == pytest.approx(measured["greedy/reward/spread"], abs=1e-5)


def test_a_file_without_a_template_says_how_to_give_one(file, make_prompt, tmp_path):
    policy = LanguageModelPolicy(str(file))
    with pytest.raises(PolicyError, match=r"set model\.chat_template"):
        policy.encoder.render(make_prompt("a", "2 + 2"))
    (tmp_path / "chat.jinja").write_text(CHATML)
    preview = LanguageModelPolicy.preview(str(file), chat_template=str(tmp_path / "chat.jinja"))
    assert preview.prompt_text(make_prompt("a", "2 + 2")).startswith("<|im_start|>user")
    with pytest.raises(PolicyError, match=r"nowhere\.jinja is neither a Jinja template nor a file"):
        LanguageModelPolicy.preview(str(file), chat_template="nowhere.jinja")


def test_what_cannot_be_read_is_one_sentence(file, tiny_model, tmp_path, monkeypatch):
    unknown = write_gguf(tiny_model("qwen2"), tmp_path / "other.gguf", architecture="nothing")
    with pytest.raises(PolicyError, match=r"other\.gguf' cannot be loaded: .*nothing"):
        LanguageModelPolicy(str(unknown))
    (tmp_path / "torn.gguf").write_bytes(file.read_bytes()[:2000])
    with pytest.raises(PolicyError, match=r"torn\.gguf' cannot be loaded"):
        LanguageModelPolicy(str(tmp_path / "torn.gguf"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"needs the package gguf\. Try: pip install gguf"):
        load_processor(file, LanguageModelOptions())
