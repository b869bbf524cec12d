"""Memory of a run, estimated from the model's config. `memory_report.py` prints it.

All numbers are of one process. W is bytes of the weights and Wt of those that are trained, c bytes of a number in
products of matrices (2 in bfloat16), S tokens of a pass, n of them sampled; of a layer h is the width, f what its
products leave.

- weights, gradients, optimiser: W, Wt, 2 Wt; with N processes that share them, a part of N. Processes that do not share
  them hold gradients once more, in the buckets that they exchange.
- frozen policies: Wt each. An engine's own weights: W in its type; vLLM's keys and values: `memory_gib`.
- bfloat16_mixed keeps bfloat16 weights for a pass: 2 bytes a number, with sharding of what is gathered alone.
- gathered, with sharding: what is no layer of the decoder, with its gradient, and two layers; in rollouts all weights.
- activations: S (f c + 8 bytes for each number of a norm, 4 where its weights are not trained) a layer; with
  gradient_checkpointing that of two layers, and S h for each layer. Media towers likewise, if they are trained.
- logits: 3 float32 of the vocabulary for each of min(n, a chunk) tokens: their logprobs, and two gradients.
- keys and values: c for each number of a layer's, of prompts once for their group; room for completions doubles from
  32 tokens.
- sampling: 4 float32 of the vocabulary for each completion; without adapters the projections of queries, keys and
  values once more.

The peak is that of loading (the whole model, before it is shared), of a rollout, or of an update. In a step of one pass
gradients come as activations go; in one of several they are held beside them. Left out: a device's context and what its
allocator leaves unused (`RESERVED`), batches, media of prompts, attention that is not sdpa.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

from mmrl_core.config import RunConfig, StageConfig, parts_of
from mmrl_core.conversation import make_environment
from mmrl_core.data import training_mixture
from mmrl_core.plugins import Plugins
from mmrl_core.support import Layers, ModelSizes, PromptSizes

GIB = 2**30
RESERVED = 0.1
"""Share of a device's memory that an estimate leaves free, for its context and what its allocator cannot use."""

FIRST_ROOM = 32
"""Tokens that there is room for when a completion begins; it doubles when full."""

PROMPTS_READ = 8
"""Training prompts of a part whose longest one stands for all."""


@dataclass(frozen=True)
class Estimate:
    """Bytes that a stage takes in one process. What each is: see the module.

    `activations_otherwise` is what they would be with the other choice of gradient_checkpointing.
    """

    weights: float
    gradients: float
    optimizer: float
    frozen: float = 0
    engine: float = 0
    cast: float = 0
    gathered: float = 0
    gathered_to_sample: float = 0
    activations: float = 0
    activations_otherwise: float = 0
    logits: float = 0
    working: float = 0
    prefill: float = 0
    keys: float = 0
    sampling: float = 0
    loading: float = 0
    tokens: int = 0
    passes: int = 1

    @property
    def kept(self) -> float:
        """What a process holds between the passes of a step, without gradients."""
        return self.weights + self.optimizer + self.frozen + self.engine

    @property
    def rollout(self) -> float:
        return self.kept + self.cast + self.gathered_to_sample + max(self.prefill, self.keys + self.sampling)

    @property
    def update(self) -> float:
        forward = self.cast + self.activations + max(self.logits, self.working)
        backward = self.gradients + self.working
        of_pass = max(forward, backward) if self.passes == 1 else self.gradients + forward
        return self.kept + self.gathered + of_pass

    @property
    def peak(self) -> float:
        return max(self.loading, self.rollout, self.update)


@dataclass(frozen=True)
class Pass:
    """The largest micro-batch of a stage, and how many there are."""

    prompts: int
    rows: int
    count: int


def estimate(config: RunConfig, stage: StageConfig, sizes: ModelSizes, prompt: PromptSizes) -> Estimate:
    """Memory of a stage.

    Args:
        config: that the stage is of.
        stage: with what it inherits.
        sizes: of the model as the config's policy prepares it.
        prompt: the longest one.
    """
    processes = num_processes(config)
    options = config.model.policy.options
    sharded = config.sharding is not None and processes > 1
    share = (config.sharding.processes or processes) if sharded and config.sharding is not None else 1
    completion = _completion(stage, prompt, int(options.get("max_prompt_tokens", 8192)))
    prompts = ceil(stage.prompts_per_step / processes)
    group = stage.group_size if stage.kind == "grpo" else 1
    largest = _largest_pass(stage, prompts, group, prompt.tokens, completion)
    tokens = largest.prompts * prompt.tokens + largest.rows * completion
    layers = sizes.decoder
    layer = _layer_bytes(layers, sizes, tokens)
    of_towers = sum(
        part.count * _layer_bytes(part, sizes, largest.prompts * prompt.tower) for part in sizes.towers if part.trained
    )
    without = layers.count * layer + of_towers
    checkpointed = tokens * layers.hidden * sizes.stream * layers.count + layer
    recomputes = bool(options.get("gradient_checkpointing"))
    mixed = sizes.stream == 4 and sizes.computed == 2
    computes = layers.parameters * sizes.computed
    found = Estimate(
        weights=sizes.weights / share,
        gradients=sizes.trained / share * (1 if sharded or processes == 1 else 2),
        optimizer=2 * sizes.trained / share,
        frozen=_num_frozen(stage) * sizes.trained / share,
        cast=_cast(sizes, checkpointed=recomputes) if mixed and not sharded else 0,
        gathered=_gathered(sizes) if sharded else 0,
        activations=checkpointed if recomputes else without,
        activations_otherwise=without if recomputes else checkpointed,
        logits=min(largest.rows * completion, sizes.chunk) * sizes.vocabulary * 12,
        working=layer + (computes if sharded else 0),
        loading=sizes.weights,
        tokens=tokens,
        passes=largest.count,
    )
    return found if stage.kind == "sft" else _with_rollout(found, stage, sizes, prompt, prompts, completion, sharded)


def num_processes(config: RunConfig) -> int:
    """Processes that train: those that were launched, or else those that the config's hardware is for."""
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    return launched if launched > 1 or config.hardware is None else config.hardware.devices


def _completion(stage: StageConfig, prompt: PromptSizes, max_prompt_tokens: int) -> int:
    """Tokens after a prompt: of an answer, of the longest completion, or of the longest conversation."""
    if stage.kind == "sft":
        return prompt.answer + 1 if stage.target is None and prompt.answer else stage.rollout.max_tokens
    if stage.rollout.strategy.name == "single_turn":
        return stage.rollout.max_tokens
    return max(max_prompt_tokens - prompt.tokens, 0) + stage.rollout.max_tokens


def _largest_pass(stage: StageConfig, prompts: int, group: int, prompt: int, completion: int) -> Pass:
    """As `batching.micro_batches` cuts: groups stay whole if they fit."""
    updates = stage.algorithm.updates_per_rollout if stage.kind == "grpo" else 1
    prompts = ceil(prompts / updates)
    most_rows = stage.micro_batch_rows or prompts * group
    groups = min(prompts, stage.micro_batch_tokens // (prompt + group * completion), most_rows // group)
    if groups:
        return Pass(groups, groups * group, ceil(prompts / groups))
    rows = max(1, min(group, most_rows, (stage.micro_batch_tokens - prompt) // completion))
    return Pass(1, rows, prompts * ceil(group / rows))


def _layer_bytes(layers: Layers, sizes: ModelSizes, tokens: int) -> float:
    return tokens * (layers.projections * sizes.computed + (4 if sizes.adapted else 8) * layers.normed)


def _num_frozen(stage: StageConfig) -> int:
    if stage.kind == "sft":
        return 0
    names = set(stage.algorithm.frozen_policies)
    return len(names | {"reference"}) if stage.algorithm.kl.needs_reference else len(names)


def _cast(sizes: ModelSizes, *, checkpointed: bool) -> float:
    """bfloat16 weights of a pass under autocast: it keeps those that are trained, and backward needs the others."""
    fixed = sizes.parameters - sizes.trained_numbers
    return 2 * (sizes.trained_numbers + (min(fixed, sizes.decoder.parameters) if checkpointed else fixed))


def _gathered(sizes: ModelSizes) -> float:
    rest = sizes.parameters - sizes.decoder.count * sizes.decoder.parameters
    return sizes.computed * (rest * (1 if sizes.adapted else 2) + 2 * sizes.decoder.parameters)


def _with_rollout(
    found: Estimate,
    stage: StageConfig,
    sizes: ModelSizes,
    prompt: PromptSizes,
    prompts: int,
    completion: int,
    sharded: bool,
) -> Estimate:
    """With what sampling takes."""
    engine, layers, rows = stage.rollout.engine, sizes.decoder, prompts * stage.group_size
    of_engine = sizes.parameters * sizes.computed
    if engine.name != "hf":
        held = not engine.options.get("address") and not engine.options.get("gpus")
        memory = float(engine.options.get("memory_gib", 4.0)) * GIB + of_engine
        return replace(found, engine=memory if held else 0)
    a_token = layers.count * layers.keys * sizes.computed
    of_prompts = prompts * prompt.tokens * a_token
    room = FIRST_ROOM
    while room < completion:
        room *= 2
    joined = 0 if sizes.adapted else layers.count * layers.hidden * (layers.queries + layers.keys) * sizes.computed
    return replace(
        found,
        engine=sizes.weights if engine.options.get("copy") else 0,
        gathered_to_sample=of_engine if sharded else 0,
        prefill=2 * of_prompts + _layer_bytes(layers, sizes, prompts * prompt.tokens),
        keys=of_prompts + rows * room * a_token,
        sampling=rows * sizes.vocabulary * 16 + joined,
    )


def sizes_of(config: RunConfig, plugins: Plugins, path: str | Path) -> ModelSizes:
    """Sizes of a model as a config's policy would prepare it; from its config alone."""
    import torch

    device = "cuda" if torch.cuda.is_available() or config.hardware is not None else "cpu"  # decides "auto" alone
    model = config.model
    sizes: ModelSizes = policy_class(config, plugins).sizes(
        path, device=device, revision=model.revision, **model.policy.options
    )
    return sizes


def policy_class(config: RunConfig, plugins: Plugins) -> Any:
    """The class of a config's policy. One without `sizes` has no estimate."""
    return plugins.registry.get("policy", config.model.policy.name).load()


def longest_prompt(config: RunConfig, stage: StageConfig, plugins: Plugins, path: str | Path) -> PromptSizes:
    """Of the first prompts of each part, each length by itself."""
    preview = policy_class(config, plugins).preview(path, revision=config.model.revision, **config.model.policy.options)
    parts = parts_of(stage)
    mixture = training_mixture(plugins, parts, make_environment(stage.rollout, parts, plugins), preview.prompt_length)
    found = []
    for source in mixture.sources:
        prompts = [source.prompt(index) for index in range(min(PROMPTS_READ, len(source)))]
        found += [preview.prompt_sizes(prompt) for prompt in prompts if prompt is not None]
    return PromptSizes(
        max((item.tokens for item in found), default=0),
        max((item.answer for item in found), default=0),
        max((item.tower for item in found), default=0),
    )
