"""What the core itself registers. Import strings only: nothing here imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmrl_core.plugins.registry import Registry


LANGUAGE_MODEL_KEYS = (
    "trust_remote_code",
    "precision",
    "quantization",
    "attention",
    "chat_template",
    "freeze",
    "lora",
    "router_aux_loss",
    "gradient_checkpointing",
    "min_pixels",
    "max_pixels",
    "max_prompt_tokens",
    "blind_check",
    "feature_cache",
)
"""Options of the policy `language_model`, all of which have a short form: `model.lora` is `model.policy.lora`."""


def mmrl_register(registry: Registry) -> None:
    """The core's entries; a config names them without namespace."""
    _register_arithmetic(registry)
    add = registry.add
    add(
        "source",
        "rows",
        "mmrl_core.data.sources:rows",
        "rows of a hub data set or of local parquet, JSONL, JSON, CSV, images",
    )

    pay = {"shape": "step", "maximum": None}
    add("reward", "environment", "mmrl_core.scoring.environment:environment", "what the environment paid", **pay)

    add(
        "policy",
        "language_model",
        "mmrl_core.language_model.policy:LanguageModelPolicy",
        "transformers model of text, images, videos or audio",
        model_keys=LANGUAGE_MODEL_KEYS,
        options="mmrl_core.language_model.options:LanguageModelOptions",
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
        "mmrl_core.testing.models.tiny:build_tiny",
        "small random-weight model of a real architecture, see `mmrl tiny`",
    )


def _register_arithmetic(registry: Registry) -> None:
    """Advantage stages, losses and statistics."""
    add = registry.add
    stages = {
        "group_relative": "(reward - group mean) / (group std + eps): GRPO; without the division Dr. GRPO",
        "group_mean": "reward - group mean",
        "leave_one_out": "reward - mean of the others: RLOO",
        "discounted_returns": "discounted return of each token: REINFORCE++",
        "whiten": "zero mean and unit variance over all trained tokens",
        "normalise_each_reward": "each reward normalised in its group, then the weighted sum",
        "normalise_over_batch": "zero mean and unit variance over the step's trajectories",
    }
    base = ("group_relative", "group_mean", "leave_one_out", "discounted_returns", "normalise_each_reward")
    for name, description in stages.items():
        # Each of these starts from the rewards; after another one it would undo it, or compare what was compared.
        details: dict[str, Any] = {"claims": ("advantage.base",)} if name in base else {}
        if name == "discounted_returns":  # plain returns, whose baseline is that of the whole batch
            details["baseline"] = "own"
        add("advantage", name, f"mmrl_core.advantage_stages:{name}_stage", description, **details)

    losses = "mmrl_core.losses"
    # idle_at_zero: a row whose advantages are all 0 has no gradient, so that it may be left out
    idle = {"idle_at_zero": True}
    add("loss", "clipped", f"{losses}:clipped", "clipped ratio, by token (PPO, GRPO) or sequence (GSPO, RLOO)", **idle)
    add("loss", "cispo", f"{losses}:cispo", "clipped importance weight without gradient, times logprob: CISPO", **idle)
    add("loss", "reinforce", f"{losses}:reinforce", "-advantage * logprob, no ratio", **idle)
    add("loss", "nll", f"{losses}:nll", "-logprob: supervised fine-tuning")

    add(
        "statistic",
        "top_probability",
        "mmrl_core.methods:top_probability",
        "probability of the likeliest token, high where the policy is sure",
    )
