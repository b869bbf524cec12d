"""The memory estimate of a dry run, held against the bytes of real tensors."""

import re

import pytest
import torch

from mmrl_core.cli import estimate, longest_prompt, memory_lines, sizes_of
from mmrl_core.language_model import LanguageModelPolicy
from mmrl_core.plugins import load_plugins
from mmrl_core.support import PromptSizes
from mmrl_core.types import Prompt, Sampling

GRPO = {"kind": "grpo", "steps": 1, "prompts_per_step": 4, "group_size": 4}


@pytest.fixture
def run(base_config, make_config, rewards_file):
    """`run(kind, model options, **keys)` -> config of a run with one stage that samples 40 tokens."""

    def made(kind="qwen2", model=None, stage=GRPO, **keys):
        base = base_config(kind)
        model = {**base["model"], **(model or {})}
        rollout = keys.pop("rollout", {"max_tokens": 40})
        return make_config(
            {
                **base,
                "model": model,
                "rollout": rollout,
                "rewards": [f"{rewards_file}:spread"],
                "stages": [stage],
                **keys,
            }
        )

    return made


def estimated(config, prompt=None):
    plugins, path = load_plugins(), config.model.path
    prompt = prompt or longest_prompt(config, config.stages[0], plugins, path)
    return estimate(config, config.stages[0], sizes_of(config, plugins, path), prompt)


@pytest.mark.parametrize("options", [{}, {"lora": {"rank": 4}}, {"lora": {"rank": 4}, "precision": "bfloat16"}])
@pytest.mark.parametrize("kind", ["qwen2", "qwen2_audio", "qwen3_vl_moe"])
def test_weights_are_those_of_the_model_that_is_loaded(kind, options, tiny_model):
    sizes = LanguageModelPolicy.sizes(tiny_model(kind), **options)
    policy = LanguageModelPolicy(tiny_model(kind), **options)
    parameters = list(policy.module.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    assert sizes.parameters == sum(parameter.numel() for parameter in parameters)
    assert sizes.weights == sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    assert sizes.trained == sum(parameter.numel() * parameter.element_size() for parameter in trained)


@pytest.mark.parametrize("options", [{}, {"lora": {"rank": 4}}])
def test_activations_are_what_backward_keeps(run, options):
    """Within a tenth, in one pass of 4 prompts x 4 completions."""
    config = run(model=options)
    policy = LanguageModelPolicy(config.model.path, **options)
    found = estimated(config)
    prompts = policy_prompts(config, policy, 4)
    groups = policy.rollout(prompts, 4, Sampling(max_tokens=40, temperature=1.0, seed=0))
    rows = [row for group in groups for rollout in group.rollouts for row in rollout.rows]
    own = {parameter.untyped_storage().data_ptr() for parameter in policy.module.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy.logprobs(rows)
    tokens = policy.num_tokens(rows)
    logits = (
        sum(row.num_actions for row in rows) * policy.model.base.config.vocab_size * 4
    )  # a third of what is counted
    measured = sum(size for size, _ in kept.values()) - logits
    assert found.activations * tokens / found.tokens == pytest.approx(measured, rel=0.1)


def policy_prompts(config, policy, number):
    from mmrl_core.config import parts_of
    from mmrl_core.data import training_mixture

    (source,) = training_mixture(load_plugins(), parts_of(config.stages[0]), None, policy.prompt_length).sources
    return [source.prompt(index) for index in range(number)]


def test_keys_and_values_are_those_that_sampling_holds(run):
    config = run()
    policy = LanguageModelPolicy(config.model.path)
    prompts = [
        Prompt(id=word, messages=[{"role": "user", "content": [{"type": "text", "text": word}]}], sample={})
        for word in ("red", "cat", "dog", "two")
    ]
    observations = [policy.encoder.encode(prompt) for prompt in prompts]
    found = estimated(config, PromptSizes(max(map(len, observations))))
    with torch.no_grad():
        decoding, _ = policy.model.start_decoding([item for item in observations for _ in range(4)])
        for _ in range(39):
            policy.model.decode(decoding, torch.ones(16, dtype=torch.long))
    stores = [*decoding._prompts.values(), *decoding._own.values()]
    assert found.keys == sum(tensor.numel() * 4 for pair in stores for tensor in pair)


def test_a_reference_processes_that_share_and_those_that_do_not(run):
    alone = estimated(run(algorithm={"kl": {"coefficient": 0.1}}))
    assert alone.frozen == alone.weights == alone.gradients == alone.optimizer / 2
    hardware = {"memory_gib": 80, "devices": 4}
    copies = estimated(run(hardware=hardware, model={"precision": "float32"}))
    assert (copies.weights, copies.gradients) == (alone.weights, 2 * alone.weights)
    shared = estimated(run(hardware=hardware, model={"precision": "float32"}, sharding={}))
    assert shared.weights == shared.gradients == shared.optimizer / 2 == alone.weights / 4
    assert shared.loading == shared.gathered_to_sample == alone.weights


def test_what_does_not_fit_says_what_would_and_that_does(run):
    few = {**GRPO, "prompts_per_step": 16, "group_size": 8}
    config = run(stage=few, model={"precision": "float32"}, hardware={"memory_gib": 1})
    before = estimated(config)
    limit_gib = 0.6 * before.peak / 2**30
    config = run(stage=few, model={"precision": "float32"}, hardware={"memory_gib": limit_gib})
    lines = memory_lines(config, load_plugins(), config.model.path)
    assert any("does not fit" in line for line in lines)
    (words,) = re.findall(r"fits in [\d.]+ GiB with (.*)", "\n".join(lines))
    assert words == "micro_batch_rows: 1"
    smaller = run(
        stage={**few, "micro_batch_rows": 1}, model={"precision": "float32"}, hardware={"memory_gib": limit_gib}
    )
    assert estimated(smaller).peak <= 0.9 * limit_gib * 2**30
    assert any("memory: fits" in line for line in memory_lines(smaller, load_plugins(), config.model.path))


def test_vllm_beside_the_training_has_its_memory_and_its_weights(run):
    found = estimated(run(rollout={"max_tokens": 40, "engine": {"name": "vllm", "memory_gib": 2}}))
    assert found.engine == 2 * 2**30 + found.weights
    assert found.keys == 0
    elsewhere = {"name": "vllm", "mode": "server", "gpus": "1", "memory_gib": 2}
    assert estimated(run(rollout={"max_tokens": 40, "engine": elsewhere})).engine == 0
