"""What a key of another framework's config is called here. The pages docs/coming_from_*.md show the tables.

Each key says where its value goes; a default is that of the other framework, which an imported task writes out where it
differs from ours. Those of TRL's GRPO and of EasyR1's actor were compared with their code; the others (transformers'
Trainer, verl, ms-swift, the rest of EasyR1) are unverified. What another version calls otherwise is listed as unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

UNSET: Any = object()
"""Default of a key that has none."""

PRECISIONS = {"bfloat16": "bfloat16", "bf16": "bfloat16", "float32": "float32", "fp32": "float32", "auto": "auto"}


@dataclass(frozen=True)
class Key:
    """A key of another framework.

    Attributes:
        here: our key, dotted, `stage.` for the one stage; "" where there is none.
        default: theirs.
        note: what becomes of it, for the pages; of a key without counterpart why, for the import too.
        direct: whether the value goes there as it is, through `values`; else with others, see `translate.py`.
        values: theirs -> ours; None: the same.
        counts: whether a value other than the default changes what is learnt, so that the import speaks of it.
    """

    here: str = ""
    default: Any = UNSET
    note: str = ""
    direct: bool = True
    values: Mapping[Any, Any] | None = None
    counts: bool = True


def made(here: str, default: Any = UNSET, note: str = "") -> Key:
    """A key whose value is translated together with others."""
    return Key(here, default, note, direct=False)


def missing(why: str, default: Any = UNSET) -> Key:
    """A key without a counterpart."""
    return Key("", default, why)


def machine(note: str = "how it is run, not what is learnt") -> Key:
    """A key of the machinery: an import does without it."""
    return Key("", UNSET, note, counts=False)


SIZES = "prompts a step = per_device_train_batch_size x processes x steps_per_generation / num_generations"

TRAINER = {
    "per_device_train_batch_size": made("stage.prompts_per_step", 8, SIZES),
    "gradient_accumulation_steps": made("stage.prompts_per_step", 1, "of the weights' update; memory is micro_batch_*"),
    "steps_per_generation": made("algorithm.updates_per_rollout", None, "divided by gradient_accumulation_steps"),
    "generation_batch_size": made("stage.prompts_per_step", None, "divided by num_generations"),
    "num_processes": made("stage.prompts_per_step", 1, "of accelerate, or `--processes`"),
    "num_generations": Key("stage.group_size", 8),
    "num_iterations": Key("algorithm.epochs_per_rollout", 1),
    "max_completion_length": Key("rollout.max_tokens", 256),
    "max_steps": made("stage.steps", -1, "theirs are updates, ours rollouts"),
    "num_train_epochs": made("stage.epochs", 3.0),
    "learning_rate": Key("optimizer.lr", 1e-6),
    "weight_decay": Key("optimizer.weight_decay", 0.0, "ours leaves biases and norms alone, as theirs"),
    "adam_beta1": made("optimizer.betas", 0.9),
    "adam_beta2": made("optimizer.betas", 0.999),
    "adam_epsilon": Key("optimizer.eps", 1e-8),
    "max_grad_norm": Key("optimizer.max_grad_norm", 1.0),
    "lr_scheduler_type": made("optimizer.schedule", "linear", "constant, constant_with_warmup, linear, cosine"),
    "lr_scheduler_kwargs": made("optimizer.final_lr_ratio", None, "min_lr_rate"),
    "warmup_steps": made("optimizer.warmup_steps", 0, "a share below 1 needs the number of steps"),
    "warmup_ratio": made("optimizer.warmup_steps", 0.0, "needs the number of steps"),
    "seed": Key("seed", 42),
    "temperature": Key("rollout.temperature", 1.0),
    "top_p": Key("rollout.top_p", 1.0),
    "top_k": made("rollout.top_k", 0, "-1 and null are 0"),
    "epsilon": made("algorithm.loss.clip_low", 0.2),
    "epsilon_high": made("algorithm.loss.clip_high", None, "that of epsilon; with cispo it is loss.cap"),
    "delta": made("algorithm.loss.ratio_cap", None),
    "beta": Key("algorithm.kl.coefficient", 0.0),
    "loss_type": made("algorithm.loss, algorithm.aggregate", "dapo", "[names](algorithms.md#names-elsewhere)"),
    "importance_sampling_level": made("algorithm.loss.ratio", "token"),
    "scale_rewards": made("algorithm.advantage", "group", "group_relative, divide_by_std"),
    "reward_weights": made("rewards", None, "weight of each"),
    "reward_funcs": made("rewards", None, "as names of functions in `--rewards FILE.py`, or dotted paths"),
    "mask_truncated_completions": Key("algorithm.mask_truncated", False),
    "sync_ref_model": made("algorithm.frozen_policies", False),
    "ref_model_mixup_alpha": made("algorithm.frozen_policies", 0.6, "decay is 1 - alpha"),
    "ref_model_sync_steps": made("algorithm.frozen_policies", 512),
    "use_vllm": made("rollout.engine", False, "vllm"),
    "vllm_mode": made("rollout.engine", "server", "colocate is colocated; a server of ours is started by the run"),
    "vllm_importance_sampling_correction": made("algorithm.importance_correction", True, "with use_vllm"),
    "vllm_importance_sampling_mode": made("algorithm.importance_correction", "sequence_mask"),
    "vllm_importance_sampling_cap": made("algorithm.importance_correction", 3.0),
    "chat_template_kwargs": Key("prompt.template", None),
    "gradient_checkpointing": Key("model.gradient_checkpointing", True),
    "save_steps": made("checkpoint.every_steps", 500),
    "save_strategy": made("checkpoint.every_steps", "steps", "a stage's end always has a checkpoint"),
    "save_total_limit": made("checkpoint.keep", None, "ours keeps 2"),
    "eval_strategy": made("data.held_out", "no", "with another value the test split is held out"),
    "eval_steps": made("eval.every_steps", None),
    "report_to": made("log.trackers", None),
    "run_name": made("name", None),
    "attn_implementation": made("model.attention", None, "sdpa unless set"),
    "lora_alpha": made("model.lora.alpha", 32),
    "min_p": missing("no min-p sampling"),
    "repetition_penalty": missing("no penalty on repetition; logprobs would not be those of the policy", 1.0),
    "generation_kwargs": missing("no further options of sampling"),
    "top_entropy_quantile": missing("no choice of tokens by their entropy", 1.0),
    "max_tool_calling_iterations": missing("tools are `rollout.tools`, of our own form"),
    "reward_model_name_or_path": missing("no reward models; a reward of your own may load one"),
    "load_in_4bit": missing("no training on quantised weights", False),
    "load_in_8bit": missing("no training on quantised weights", False),
    "optim": missing("AdamW alone", "adamw_torch_fused"),
    "freeze_llm": made("model.freeze", False, "language"),
}
"""What TRL and ms-swift share: the arguments of transformers' Trainer, and those of GRPO."""

MACHINERY = (
    *("logging_", "log_", "hub_", "push_to", "dataloader_", "ddp_", "fsdp", "deepspeed", "torch_compile", "tf32"),
    *("per_device_eval_", "save_only", "save_safe", "load_best", "metric_for", "overwrite_", "output_dir", "disable_"),
    *("bf16", "fp16", "do_", "use_liger", "vllm_", "dataset_num_proc", "remove_unused", "ds3_", "group_by", "wandb"),
    *("resume_", "average_tokens", "torch_empty", "callbacks", "benchmarks", "num_completions_to_print", "async_gen"),
    *("sleep_level", "offload_", "move_model_", "multi_turn_", "use_transformers_paged", "cache_implementation"),
    *("gradient_checkpointing_kwargs", "include_", "eval_on", "eval_accum", "trackio", "config", "train_dataloader"),
)
"""How keys of TRL and ms-swift begin that are of the machinery."""

TRL: dict[str, Key] = TRAINER | {
    "model_name_or_path": Key("model.path"),
    "model_revision": Key("model.revision", "main", values={"main": None}),
    "trust_remote_code": Key("model.trust_remote_code", False),
    "dtype": made("model.precision", None),
    "torch_dtype": made("model.precision", None),
    "use_peft": made("model.lora", False),
    "lora_r": made("model.lora.rank", 16),
    "lora_target_modules": made("model.lora.target_modules", None, "all-linear unless set"),
    "lora_dropout": missing("adapters have no dropout: a policy and its own samples would differ", 0.05),
    "dataset_name": Key("data.train.path"),
    "dataset_config": Key("data.train.subset", None),
    "dataset_train_split": Key("data.train.split", "train", values={"train": None}),
    "dataset_test_split": made("data.held_out.split", "test"),
    "dataset_prompt_column": made("prompt.text", None, "of open-r1"),
    "system_prompt": Key("prompt.system", None, "of open-r1"),
    "max_prompt_length": made("model.max_prompt_tokens", None, "longer ones are set aside, never cut"),
    "multi_objective_aggregation": made("algorithm.advantage", "sum_then_normalize"),
    "use_bias_correction_kl": Key("algorithm.kl.times_ratio", False),
    "entropy_coef": Key("algorithm.entropy_coefficient", 0.0),
    "off_policy_mask_threshold": Key("algorithm.off_policy_threshold", None),
    "sapo_temperature_pos": made("algorithm.loss.positive", 1.0),
    "sapo_temperature_neg": made("algorithm.loss.negative", 1.05),
    "shuffle_dataset": missing("rows are always shuffled, anew in each epoch", True),
    "num_generations_eval": missing("evaluation samples eval.samples times at eval.temperatures"),
    "dataset_streaming": machine("rows are read one at a time anyway"),
}

SWIFT: dict[str, Key] = TRAINER | {
    "rlhf_type": made("stage.kind", "grpo", "grpo alone"),
    "model": Key("model.path"),
    "model_type": machine("found out from the model"),
    "torch_dtype": made("model.precision", "bfloat16"),
    "train_type": made("model.lora", "lora"),
    "tuner_type": made("model.lora", None),
    "lora_rank": made("model.lora.rank", 8),
    "target_modules": made("model.lora.target_modules", "all-linear"),
    "lora_dropout": missing("adapters have no dropout: a policy and its own samples would differ", 0.05),
    "freeze_vit": made("model.freeze", True, "vision, in models that see"),
    "freeze_aligner": made("model.freeze", True, "vision is the tower with its projector"),
    "dataset": made("data.train.path", None, "`#1000` is limit, `:name` subset; names are of ModelScope there"),
    "val_dataset": made("data.held_out.path", None),
    "split_dataset_ratio": made("data.held_out.split", 0.0, "a range: train[99%:]"),
    "system": made("prompt.system", None, "a text, or the file of one"),
    "external_plugins": made("rewards", None, "the file of reward_funcs"),
    "max_length": made("model.max_prompt_tokens", None, "longer ones are set aside, never cut"),
    "truncation_strategy": missing("rows that are too long are set aside (data.on_long)"),
    "max_pixels": Key("model.max_pixels", None, "the environment's MAX_PIXELS too"),
    "advantage_estimator": made("algorithm.advantage", "grpo"),
    "kl_in_reward": made("algorithm.kl.place", False),
    "dynamic_sample": made("algorithm.dynamic_sampling", False),
    "max_resample_times": made("algorithm.dynamic_sampling.max_rounds", 3),
    "overlong_filter": Key("algorithm.mask_truncated", False),
    "soft_max_length": made("algorithm.overlong.max_length", None, "with the reward soft_overlong"),
    "soft_cache_length": made("algorithm.overlong.cache", None, "with the reward soft_overlong"),
    "learning_rate": made("optimizer.lr", None, "1e-4 with LoRA, 1e-5 without"),
    "lr_scheduler_type": made("optimizer.schedule", "cosine"),
    "weight_decay": Key("optimizer.weight_decay", 0.1),
    "adam_beta2": made("optimizer.betas", 0.95),
    "per_device_train_batch_size": made("stage.prompts_per_step", 1, SIZES),
    "max_completion_length": Key("rollout.max_tokens", 512),
    "temperature": Key("rollout.temperature", 0.9),
    "top_p": Key("rollout.top_p", 0.9),
    "top_k": made("rollout.top_k", 50),
    "beta": Key("algorithm.kl.coefficient", 0.04),
    "loss_type": made("algorithm.loss, algorithm.aggregate", "grpo"),
    "vllm_mode": made("rollout.engine", "colocate"),
    "vllm_importance_sampling_correction": made("algorithm.importance_correction", False),
    "quant_method": missing("no training on quantised weights"),
    "quant_bits": missing("no training on quantised weights"),
    "reward_model": missing("no reward models; a reward of your own may load one"),
    "attn_impl": made("model.attention", None),
    "padding_free": machine("rows are packed anyway"),
    "packing": machine("rows are packed anyway"),
    "async_generate": made("rollout.steps_ahead", False),
}
