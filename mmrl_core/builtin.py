"""What the core itself registers. Import strings only: nothing here imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmrl_core.registry import Registry


def mmrl_register(registry: Registry) -> None:
    """The core's entries; in configs their names stand without namespace."""
    add = registry.add
    add(
        "source",
        "rows",
        "mmrl_core.data.sources:rows",
        "rows of a hub data set or of local parquet, JSONL, JSON, CSV, images",
    )

    stages = {
        "group_relative": "(reward - group mean) / (group std + eps): GRPO; without the division Dr. GRPO",
        "group_mean": "reward - group mean",
        "leave_one_out": "reward - mean of the others: RLOO",
        "discounted_returns": "discounted return of each token: REINFORCE++",
        "whiten": "zero mean and unit variance over all trained tokens",
        "normalise_each_reward": "each reward normalised in its group, then the weighted sum",
        "normalise_over_batch": "zero mean and unit variance over the step's trajectories",
    }
    for name, description in stages.items():
        add("advantage", name, f"mmrl_core.advantages:{name}_stage", description)

    losses = "mmrl_core.losses"
    # idle_at_zero: a row whose advantages are all 0 has no gradient, so that it may be left out
    idle = {"idle_at_zero": True}
    add("loss", "clipped", f"{losses}:clipped", "clipped ratio, by token (PPO, GRPO) or sequence (GSPO, RLOO)", **idle)
    add("loss", "cispo", f"{losses}:cispo", "clipped importance weight without gradient, times logprob: CISPO", **idle)
    add("loss", "reinforce", f"{losses}:reinforce", "-advantage * logprob, no ratio", **idle)
    add("loss", "nll", f"{losses}:nll", "-logprob: supervised fine-tuning")

    add(
        "policy",
        "language_model",
        "mmrl_core.language_model.policy:LanguageModelPolicy",
        "transformers text, image or video model",
    )
    add("engine", "hf", "mmrl_core.language_model.engines.hf:HFEngine", "samples with the training weights, in process")
    add(
        "engine",
        "vllm",
        "mmrl_core.language_model.engines.vllm:VLLMEngine",
        "samples through vLLM, in process or in a server",
    )
    add("strategy", "single_turn", "mmrl_core.conversation.turns:single_turn", "one completion for each prompt")
    add(
        "strategy",
        "multi_turn",
        "mmrl_core.conversation.turns:multi_turn",
        "conversations with an environment, such as tools",
    )
    add(
        "environment",
        "tools",
        "mmrl_core.conversation.environment:ToolEnvironment",
        "does the calls of tools, within limits",
    )
    add(
        "model",
        "tiny",
        "mmrl_core.testing.tiny:build_tiny",
        "small random-weight model of a real architecture, see `mmrl tiny`",
    )
