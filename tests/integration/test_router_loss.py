"""The auxiliary loss of routers is that of transformers, for whole sequences, however a batch is laid out."""

from __future__ import annotations

import importlib

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from mmrl_core.errors import PolicyError
from mmrl_core.language_model import LanguageModelPolicy
from mmrl_core.runs import read_metrics
from mmrl_core.types import Sampling

COEFFICIENT = 0.5
SAMPLING = Sampling(max_tokens=6, temperature=1.0, top_p=1.0, top_k=0, seed=0)


@pytest.fixture(scope="module")
def experts_folder(tiny_model, tmp_path_factory):
    """A text model with four experts, of which a token chooses two, with the tokenizer of another."""
    import shutil

    folder = tmp_path_factory.mktemp("experts") / "model"
    shutil.copytree(tiny_model("qwen3"), folder)
    text = AutoModelForCausalLM.from_pretrained(folder).config.to_dict()
    kept = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
    kept += ("eos_token_id", "bos_token_id", "pad_token_id")
    settings = {name: text[name] for name in kept}
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        **settings, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, initializer_range=0.3
    )
    Qwen3MoeForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def rows_of(make_prompt):
    """Two prompts of unequal length with three completions each, one of them left out."""

    def rows(policy):
        prompts = [make_prompt("a", "what is this"), make_prompt("b", "and how many of these are there, if any")]
        groups = policy.rollout(prompts, 3, SAMPLING)
        return [rollout.rows[0] for group in groups for rollout in group.rollouts][:5]

    return rows


def of_transformers(path, rows):
    """The loss, and its gradients by name, of a padded batch of whole sequences."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, experts_implementation="eager").eval()
    sequences = [torch.cat([row.observation.input_ids, row.action[:-1]]) for row in rows]
    ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(ids) for ids in sequences], batch_first=True)
    logits = model(input_ids=ids, attention_mask=mask, output_router_logits=True).router_logits
    loss = COEFFICIENT * load_balancing_loss_func(logits, 4, 2, mask)
    loss.backward()
    return loss.detach(), {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize(
    ("shared", "options"),
    [(True, {}), (False, {}), (True, {"gradient_checkpointing": True})],
    ids=["shared prompt", "own forward", "recomputed activations"],
)
def test_it_is_that_of_transformers_with_its_gradient(shared, options, experts_folder, rows_of):
    policy = LanguageModelPolicy(experts_folder, precision="float32", router_aux_loss=COEFFICIENT, **options)
    assert policy.model.plain_reason is None
    policy.model.plain_reason = None if shared else "a test"
    rows = rows_of(policy)
    loss = policy.logprobs(rows).penalties["router_aux_loss"]
    loss.backward()
    expected, gradients = of_transformers(experts_folder, rows)
    torch.testing.assert_close(loss.detach(), expected, atol=1e-6, rtol=1e-6)
    found = {name: value.grad for name, value in policy.model.base.named_parameters() if value.grad is not None}
    moved = {name: value for name, value in gradients.items() if float(value.norm()) > 1e-6}
    assert {name for name in moved if ".mlp.gate." in name} and {name for name in moved if "embed_tokens" in name}
    for name, value in moved.items():
        assert float((found[name] - value).norm() / value.norm()) < 1e-5, name


@pytest.mark.parametrize("kind", ["qwen3_vl_moe", "qwen3_omni"])
def test_pictures_count_like_words(kind, tiny_model, make_prompt, make_picture):
    policy = LanguageModelPolicy(tiny_model(kind), precision="float32", router_aux_loss=COEFFICIENT)
    (group,) = policy.rollout([make_prompt("a", "what", images=[make_picture(1)])], 1, SAMPLING)
    row = group.rollouts[0].rows[0]
    tail = row.action[:-1]
    ids = torch.cat([row.observation.input_ids, tail])[None]
    types = {name: torch.cat([of, torch.zeros_like(tail)])[None] for name, of in row.observation.token_types.items()}
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **types, **row.observation.media}
    expected = COEFFICIENT * policy.model.base(**inputs, output_router_logits=True, use_cache=False).aux_loss
    found = policy.logprobs([row]).penalties["router_aux_loss"]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_tokens_of_a_prompt_would_weigh_less_if_they_counted_once(experts_folder, rows_of, monkeypatch):
    policy = LanguageModelPolicy(experts_folder, precision="float32", router_aux_loss=COEFFICIENT)
    rows = rows_of(policy)
    packing = importlib.import_module("mmrl_core.language_model.packing").Packing
    monkeypatch.setattr(packing, "num_uses", lambda self: torch.ones(self.num_tokens))
    expected, _ = of_transformers(experts_folder, rows)
    assert abs(policy.logprobs(rows).penalties["router_aux_loss"] - expected) > 1e-4


def test_it_is_off_by_default_and_costs_nothing_where_nothing_is_trained(experts_folder, rows_of):
    policy = LanguageModelPolicy(experts_folder, precision="float32")
    rows = rows_of(policy)
    assert policy.logprobs(rows).penalties == {}
    policy = LanguageModelPolicy(experts_folder, precision="float32", router_aux_loss=COEFFICIENT)
    with torch.no_grad():
        assert policy.logprobs(rows).penalties == {}


def test_a_model_without_experts_is_refused(tiny_model):
    with pytest.raises(PolicyError, match=r"model\.router_aux_loss: transformers has no such loss for Qwen3ForCausal"):
        LanguageModelPolicy(tiny_model("qwen3"), router_aux_loss=0.1)


def test_a_step_adds_it_once_over_all_micro_batches(experts_folder, base_config, make_trainer, rewards_file):
    losses = []
    for coefficient in (0.0, COEFFICIENT):
        values = base_config("qwen2") | {"rewards": [f"{rewards_file}:spread"]}
        values["model"] = {"path": str(experts_folder), "router_aux_loss": coefficient}
        values["stages"] = [{"kind": "sft", "steps": 1, "prompts_per_step": 4, "micro_batch_rows": 2}]
        trainer = make_trainer(values)
        trainer.run(resume=False)
        losses.append(next(record for record in read_metrics(trainer.output) if record["kind"] == "step"))
    off, on = losses
    assert "router_aux_loss" not in off and COEFFICIENT < on["router_aux_loss"] < 4 * COEFFICIENT
    assert on["loss"] - off["loss"] == pytest.approx(on["router_aux_loss"], abs=1e-5)
