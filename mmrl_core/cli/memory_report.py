"""What a dry run prints of the memory of a run: the estimate, whether it fits, and what would make it fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmrl_core.cli.memory import (
    GIB,
    RESERVED,
    Estimate,
    estimate,
    longest_prompt,
    num_processes,
    policy_class,
    sizes_of,
)
from mmrl_core.config import RunConfig, ShardingConfig, StageConfig
from mmrl_core.errors import MMRLError
from mmrl_core.plugins import Plugins
from mmrl_core.support import ModelSizes, PromptSizes


def memory_lines(config: RunConfig, plugins: Plugins, path: str | Path) -> list[str]:
    """The estimate of a run and, where its hardware is named, whether it fits and what would make it fit.

    Args:
        config: the resolved config.
        path: of the model that it starts from. Its weights are not read.

    Returns:
        Lines to print; one that says why there is no estimate; none if the policy has no sizes.
    """
    if not hasattr(policy_class(config, plugins), "sizes"):
        return []
    try:
        prompts = [longest_prompt(config, stage, plugins, path) for stage in config.stages]
        return _lines(config, prompts, lambda other: sizes_of(other, plugins, path))
    except MMRLError as error:
        return [f"memory: not estimated: {error}"]


def _lines(config: RunConfig, prompts: Sequence[PromptSizes], sized: Callable[[RunConfig], ModelSizes]) -> list[str]:
    sizes = sized(config)
    found = [estimate(config, stage, sizes, prompt) for stage, prompt in zip(config.stages, prompts, strict=True)]
    lines = [
        line
        for stage, prompt, item in zip(config.stages, prompts, found, strict=True)
        for line in _stage_lines(config, stage, prompt, item)
    ]
    if config.hardware is None:
        return lines
    peak = max(item.peak for item in found)
    limit = config.hardware.memory_gib * GIB * (1 - RESERVED)
    devices = f"{config.hardware.memory_gib:g} GiB of a device, of which {RESERVED:.0%} stay free"
    if peak <= limit:
        return [*lines, f"memory: fits {devices}"]
    return [*lines, f"memory: does not fit {devices}", *_what_would_fit(config, prompts, sized, limit)]


def _stage_lines(config: RunConfig, stage: StageConfig, prompt: PromptSizes, found: Estimate) -> list[str]:
    items = {
        "weights": found.weights,
        "optimiser": found.optimizer,
        "frozen policies": found.frozen,
        "engine": found.engine,
        "bfloat16 weights of a pass": found.cast,
        "gathered": found.gathered,
    }
    otherwise = "without" if config.model.policy.options.get("gradient_checkpointing") else "with"
    held = ", ".join(f"{name} {_gib(value)}" for name, value in items.items() if value)
    lines = [
        f"memory of a process in stage {stage.name or stage.kind}, estimated: peak {_gib(found.peak)} GiB",
        f"  {held}",
        f"  update: {_gib(found.update)}, with gradients {_gib(found.gradients)}; activations of {found.tokens} tokens "
        f"{_gib(found.activations)} ({_gib(found.activations_otherwise)} {otherwise} gradient_checkpointing), "
        f"logits {_gib(found.logits)}",
    ]
    if stage.kind == "grpo":
        gathered = f", gathered weights {_gib(found.gathered_to_sample)}" if found.gathered_to_sample else ""
        sampled = f", with keys and values {_gib(found.keys)}, logits {_gib(found.sampling)}{gathered}"
        lines.append(
            f"  rollout: {_gib(found.rollout)}{sampled if found.keys else ''}, prompts of {prompt.tokens} tokens"
        )
    if found.loading == found.peak:
        lines.append(f"  loading: {_gib(found.loading)}, the whole model before it is shared")
    return lines


def _gib(number: float) -> str:
    return f"{number / GIB:.3g}"


# What would make it fit


def _with_options(config: RunConfig, **options: Any) -> RunConfig:
    policy = config.model.policy
    changed = type(policy)(**{"name": policy.name, **policy.options, **options})
    return config.model_copy(update={"model": config.model.model_copy(update={"policy": changed})})


def _with_stages(config: RunConfig, **values: Any) -> RunConfig:
    return config.model_copy(update={"stages": [stage.model_copy(update=values) for stage in config.stages]})


def _small_passes(config: RunConfig) -> tuple[str, RunConfig]:
    return "micro_batch_rows: 1", _with_stages(config, micro_batch_rows=1)


def _checkpointing(config: RunConfig) -> tuple[str, RunConfig]:
    return "model.gradient_checkpointing: true", _with_options(config, gradient_checkpointing=True)


def _half(config: RunConfig) -> tuple[str, RunConfig] | None:
    if config.model.policy.options.get("precision") != "float32":
        return None
    return "model.precision: bfloat16_mixed", _with_options(config, precision="bfloat16_mixed")


def _sharding(config: RunConfig) -> tuple[str, RunConfig] | None:
    if config.sharding is not None or num_processes(config) == 1:
        return None
    return "sharding: {}", config.model_copy(update={"sharding": ShardingConfig()})


def _adapters(config: RunConfig) -> tuple[str, RunConfig] | None:
    if config.model.policy.options.get("lora") is not None:
        return None
    word = "model.lora: {rank: 16} with model.precision: bfloat16"
    return word, _with_options(config, lora={"rank": 16}, precision="bfloat16")


def _fewer_prompts(config: RunConfig) -> tuple[str, RunConfig]:
    prompts = num_processes(config)
    return f"prompts_per_step: {prompts}", _with_stages(config, prompts_per_step=prompts)


KNOBS: tuple[Callable[[RunConfig], tuple[str, RunConfig] | None], ...] = (
    _small_passes,
    _checkpointing,
    _half,
    _sharding,
    _adapters,
    _fewer_prompts,
)
"""What makes a run smaller, in the order of what it costs: each says what to set, and sets it."""


def _what_would_fit(
    config: RunConfig, prompts: Sequence[PromptSizes], sized: Callable[[RunConfig], ModelSizes], limit: float
) -> list[str]:
    """The peak with each knob alone, and with as many of them as it takes, the cheapest first."""

    def peak(other: RunConfig) -> float:
        sizes = sized(other)
        pairs = zip(other.stages, prompts, strict=True)
        return max(estimate(other, stage, sizes, prompt).peak for stage, prompt in pairs)

    before = peak(config)
    alone, words, together = [], [], config
    fits = "  no change that is known here makes it fit"
    for knob in KNOBS:
        changed = knob(config)
        if changed is None or (reached := peak(changed[1])) >= before:
            continue
        alone.append(f"{changed[0]}: {_gib(reached)}")
        if not fits.startswith("  fits"):
            word, together = knob(together) or changed
            words.append(word)
            if (reached := peak(together)) <= limit:
                fits = f"  fits in {_gib(reached)} GiB with {' and '.join(words)}"
    return [f"  peak with one change alone: {'; '.join(alone)}", fits] if alone else [fits]
