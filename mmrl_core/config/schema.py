"""The schema of a task config: pydantic models, unknown keys refused, every key read somewhere.

A task *definition* has `data`, `prompt`, `rewards`, `eval`; a *recipe* extends one with `model`, `stages`, `algorithm`,
`rollout`, `optimizer`. Both are YAML of this schema, read by `mmrl_core.config.load_config`. The top of the
file holds the defaults of every stage; a stage overrides them under the same keys.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, PrivateAttr, field_validator, model_validator

from mmrl_core.config.algorithm import AlgorithmConfig, Environment, OptimizerConfig, RolloutConfig, Tool
from mmrl_core.config.component import Component, Registered, Strict
from mmrl_core.config.numbers import (
    Count,
    Epochs,
    EvaluationTemperature,
    Factor,
    PositiveFactor,
    Seconds,
    Seed,
)
from mmrl_core.config.rows import DataConfig, PromptConfig, SourceConfig, VideoConfig
from mmrl_core.errors import ConfigError

__all__ = [
    "STAGE_SECTIONS",
    "AlgorithmConfig",
    "CheckpointConfig",
    "Component",
    "DataConfig",
    "EvalConfig",
    "HardwareConfig",
    "LogConfig",
    "LoraConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PartConfig",
    "PluginConfig",
    "PromptConfig",
    "RewardConfig",
    "RolloutConfig",
    "RunConfig",
    "ShardingConfig",
    "SourceConfig",
    "StageConfig",
    "Strict",
    "VideoConfig",
    "check_trainable",
    "parts_of",
]


class RewardConfig(Component):
    weight: Factor = Field(1.0, description="factor in the total; 0 only reports it")
    label: str | None = Field(None, description="name in metrics, if one reward is used twice")
    timeout_s: Seconds = Field(60.0, description="a group not scored after this many seconds is unscored")
    isolate: bool = Field(
        False, description="run it in a process of its own, which may crash, or hold the interpreter, without the run"
    )
    stop_on_failure: bool = Field(
        False, description="end the run when this reward fails; else completions are unscored"
    )
    style: Literal["trl", "trl_text", "verl", "swift", "easyr1"] | None = Field(
        None, description="framework that it was written for, and is called as; default: ours, (completions, samples)"
    )
    columns: dict[str, str] = Field(
        {}, description="with a style: what it calls a column -> what the data call it, such as {solution: answer}"
    )
    result: str | None = Field(
        None, description="with a style: entry of the dict it returns; default: score (verl), overall (easyr1)"
    )

    @model_validator(mode="after")
    def _of_a_style(self) -> Self:
        if self.style is None and (self.columns or self.result):
            raise ValueError(f"'{'columns' if self.columns else 'result'}' is for rewards with a 'style'; set it")
        return self

    @property
    def key(self) -> str:
        return self.label or self.name.rpartition(":")[2]


Reward = Annotated[RewardConfig, Registered("reward")]
Metric = Annotated[Component, Registered("metric")]


class LoraConfig(Strict):
    rank: Count = Field(16, description="rank of the adapters")
    alpha: PositiveFactor = Field(32.0, description="adapters are scaled by alpha / rank")
    target_modules: list[str] | str = Field(
        "all-linear",
        description="list of parts (all-linear: linear layers of the text decoder; vision, audio, projector) and of "
        "names of layers, such as q_proj or experts; or one part; or a regular expression of whole names",
    )


class ModelConfig(Strict):
    """The model that is trained, and the policy that acts with it.

    Options of the policy `language_model` may be written here too, as in `model: {lora: {rank: 16}}`, which is short
    for `model: {policy: {lora: {rank: 16}}}`. See [LanguageModelOptions](#languagemodeloptions-modelpolicy).

    A LoRA adapter stands for the model that its `adapter_config.json` names, with the adapter: trained on under the
    same `lora`, merged into the weights without.
    """

    path: str | None = Field(
        None, description="model folder, GGUF file, checkpoint step-N, LoRA adapter's folder, or hub name"
    )
    build: Annotated[Component, Registered("model")] | None = Field(
        None, description="registered builder of a starting model, instead of a path"
    )
    policy: Annotated[Component, Registered("policy")] = Field(
        Component(name="language_model"), description="registered policy, with its options"
    )
    revision: str | None = Field(None, description="hub revision")

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.path is not None and self.build is not None:
            raise ValueError("'path' and 'build' are both set; set one")
        return self


class EvalConfig(Strict):
    metrics: list[Metric] = Field([], description="benchmark metrics on the held-out rows")
    every_steps: Count | None = Field(None, description="also within stages; default: before and after each")
    limit: Count | None = Field(None, description="evaluate only the first held-out rows")
    temperatures: list[EvaluationTemperature] = Field([0.0], description="metrics at each; 0 is greedy")
    samples: Count = Field(
        1, description="completions of each prompt at temperatures above 0; with more than one, pass@k and maj@k"
    )
    pass_reward: str | None = Field(
        None, description="reward whose maximum makes a sample pass; default: the first one of the task"
    )
    batch_size: Count = Field(64, description="completions generated at a time")
    max_tokens: Count | None = Field(None, description="default: rollout.max_tokens")


class CheckpointConfig(Strict):
    every_steps: Count | None = Field(100, description="steps between checkpoints; a stage's end always has one")
    keep: Count = Field(2, description="newest checkpoints kept")


class ShardingConfig(Strict):
    processes: Count | None = Field(
        None, description="share among as many neighbours, such as those of one machine; default: among all"
    )


class HardwareConfig(Strict):
    """What a run is meant for. Only the estimate of `mmrl train --dry-run` reads it."""

    memory_gib: PositiveFactor = Field(description="memory of a device, GiB")
    devices: Count = Field(1, description="devices, with a process for each")


class LogConfig(Strict):
    trackers: list[str] = Field([], description="accelerate trackers: tensorboard, wandb, ...")
    rollouts_every_steps: Count = Field(10, description="steps between written rollouts")
    rollouts_per_step: Count = Field(4, description="groups written then")
    view: Annotated[Component, Registered("view")] | None = Field(
        None, description="registered view that draws on the media of a rollout"
    )


class PartConfig(Strict):
    """A task of a mixture, of which a run draws prompts by weight.

    What it does not set, a part takes from its task, or else from the section that holds the mixture: `data`, `prompt`,
    `rewards`; `tools` and `environment` from `rollout`; `metrics` from `eval`. A resolved config has it filled, with
    `task` null.
    """

    task: str | None = Field(
        None, description="task id or path of a .yaml to take from; null: nowhere; without: the mixture's section"
    )
    name: str = Field(description="of the part, in metrics and ids of prompts; default: the task's, without its plugin")
    weight: PositiveFactor = Field(1.0, description="its share of the prompts is the weight over the sum of all")
    data: DataConfig = Field(DataConfig(), description="its rows")
    prompt: PromptConfig = Field(PromptConfig(), description="how its rows become prompts")
    rewards: list[Reward] = Field([], description="what completions of its prompts are scored by, and no others")
    target: str | None = Field(None, description="sft: completion to learn, as a template; default: the stage's")
    tools: list[Tool] = Field([], description="tools that its prompts may call")
    environment: Environment | None = Field(None, description="environment that answers it; default with tools: tools")
    metrics: list[Metric] = Field([], description="benchmark metrics on its held-out rows")

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.task is not None:
            raise ValueError(f"task {self.task!r} is not filled in: read the config with load_config")
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise ValueError(f"a part's name is made of letters, digits, '_', '-' and '.'; got {self.name!r}")
        if self.name in ("reward", "outcome"):  # greedy/reward/... are metrics of the whole mixture
            raise ValueError(f"a part cannot be called {self.name!r}: metrics of the whole mixture are")
        if self.data.train is None:
            raise ValueError(f"part {self.name!r} of the mixture has no data.train, so there is nothing to draw")
        return self


def _different_names(mixture: list[PartConfig]) -> list[PartConfig]:
    names = [part.name for part in mixture]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two parts of the mixture are called {twice[0]!r}; give one of them a 'name'")
    return mixture


Parts = Annotated[list[PartConfig], AfterValidator(_different_names)]


class StageConfig(Strict):
    kind: Literal["sft", "grpo"] = Field(description="sft: imitate answers; grpo: learn from rewards")
    name: str | None = Field(None, description="default: the kind, numbered where several stages would share it")
    steps: Count | None = Field(None, description="steps; or set epochs")
    epochs: Epochs | None = Field(None, description="passes over the training rows")
    prompts_per_step: Count = Field(8, description="prompts of one step, over all processes")
    group_size: Count = Field(8, description="completions of a prompt (grpo)")
    micro_batch_tokens: Count = Field(
        16384, description="tokens of one forward and backward pass, a group's prompt counted once; bounds memory"
    )
    micro_batch_rows: Count | None = Field(None, description="at most so many rows in one pass, too")
    target: str | None = Field(None, description="sft: completion to learn, as a template; default: prompt.answer")
    mixture: Parts = Field([], description="tasks to train on at once, by weight; inherits the top level")
    data: DataConfig = Field(DataConfig(), description="rows to train on; inherits the top level")
    prompt: PromptConfig = Field(PromptConfig(), description="how a row becomes a prompt; inherits the top level")
    rewards: list[Reward] = Field([], description="what completions are scored by; inherits the top level")
    rollout: RolloutConfig = Field(RolloutConfig(), description="how the policy samples; inherits the top level")
    algorithm: AlgorithmConfig = Field(
        AlgorithmConfig(), description="rewards to advantages to loss; inherits the top level"
    )
    optimizer: OptimizerConfig = Field(OptimizerConfig(), description="AdamW and its schedule; inherits the top level")

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("set exactly one of 'steps' and 'epochs'")
        if self.kind == "grpo" and (mute := [part.name for part in self.mixture if not part.rewards]):
            raise ValueError(f"part {mute[0]!r} of the mixture has no rewards, so there is nothing to learn from")
        rule = self.algorithm.dynamic_sampling
        if rule is not None and rule.reward is not None and self.mixture:
            raise ValueError("dynamic_sampling.reward is of one task, and this is a mixture: leave it out")
        if rule is not None and rule.reward not in (None, *(reward.key for reward in self.rewards)):
            known = ", ".join(reward.key for reward in self.rewards)
            raise ValueError(f"dynamic_sampling.reward {rule.reward!r} is none of the stage's rewards: {known}")
        if self.kind == "grpo" and self.algorithm.updates_per_rollout > self.prompts_per_step:
            raise ValueError(
                f"updates_per_rollout={self.algorithm.updates_per_rollout} disjoint parts cannot be made of "
                f"prompts_per_step={self.prompts_per_step} groups"
            )
        if self.kind == "grpo" and self.rollout.steps_ahead:
            self._check_steps_ahead()
        return self

    def num_steps(self, num_rows: int) -> int:
        """Its length in steps, on data of so many rows."""
        if self.steps is not None:
            return self.steps
        return max(1, math.ceil((self.epochs or 1) * num_rows / self.prompts_per_step))

    def _check_steps_ahead(self) -> None:
        """Raises ValueError where rollouts cannot be older than the weights they train."""
        if self.algorithm.importance_correction is None and self.algorithm.old_logprobs == "trainer":
            raise ValueError(
                "rollout.steps_ahead samples with weights one update old: set algorithm.importance_correction, or "
                "algorithm.old_logprobs to 'sampler'"
            )
        if self.algorithm.dynamic_sampling is not None:
            raise ValueError(
                "rollout.steps_ahead and dynamic_sampling exclude each other: it draws again within a step"
            )
        if self.rollout.engine.name == "hf" and not self.rollout.engine.options.get("copy"):
            raise ValueError(
                "rollout.steps_ahead samples beside the training, so the engine needs weights of its own: "
                "set rollout.engine to {name: hf, copy: true}, or to vllm"
            )


class PluginConfig(Component):
    """A plugin whose behaviour hooks fire, or a registered behaviour with its options.

    The list adds up over `extends` and the command line. A name that is listed again merges its options, and
    `enabled: false` takes it out.
    """

    name: str = Field(description="name of an installed plugin, id of a behaviour, or path/to/file.py:class")
    enabled: bool = Field(True, description="false: leave out what a file that is extended has")


class RunConfig(Strict):
    """A whole task config, presets merged and stages filled in."""

    name: str = Field(description="of the task; runs are named by it")
    version: Count = Field(1, description="raise it when prompts, data or rewards change")
    description: str = Field("", description="shown in the report")
    seed: Seed = Field(0, description="of sampling, data order and built models")
    plugins: list[Annotated[PluginConfig, Registered("behaviour")]] = Field(
        [], description="plugins and registered behaviours whose hooks fire, the first one asked first; adds up"
    )
    model: ModelConfig = Field(ModelConfig(), description="the model that is trained")
    mixture: Parts = Field([], description="tasks to train on at once, by weight")
    data: DataConfig = Field(DataConfig(), description="rows to train on")
    prompt: PromptConfig = Field(PromptConfig(), description="how a row becomes a prompt")
    rewards: list[Reward] = Field([], description="what completions are scored by")
    rollout: RolloutConfig = Field(RolloutConfig(), description="how the policy samples")
    algorithm: AlgorithmConfig = Field(AlgorithmConfig(), description="rewards to advantages to loss")
    optimizer: OptimizerConfig = Field(OptimizerConfig(), description="AdamW and its schedule")
    eval: EvalConfig = Field(EvalConfig(), description="held-out metrics")
    checkpoint: CheckpointConfig = Field(CheckpointConfig(), description="when checkpoints are written")
    log: LogConfig = Field(LogConfig(), description="trackers and written rollouts")
    sharding: ShardingConfig | None = Field(
        None, description="several processes share weights, gradients and optimiser; default: each has all of them"
    )
    hardware: HardwareConfig | None = Field(
        None, description="devices that the run is meant for, for the estimate of `mmrl train --dry-run` alone"
    )
    stages: list[StageConfig] = Field([], description="training stages, in order; none in a task definition")
    process_timeout_s: Seconds = Field(
        3600.0, description="of several processes, the longest wait for another, as while the first one scores"
    )
    _origins: dict[tuple[str | int, ...], str] = PrivateAttr(default_factory=dict)

    @field_validator("plugins")
    @classmethod
    def _enabled(cls, plugins: list[PluginConfig]) -> list[PluginConfig]:
        return [plugin for plugin in plugins if plugin.enabled]

    def __eq__(self, other: object) -> bool:
        """Whether all keys are equal. Where they were written does not count."""
        return isinstance(other, RunConfig) and dict(self) == dict(other)

    def where(self, *path: str | int) -> str:
        """Where a value was written, "file:line" or "command line"; for a default, where its section was.

        >>> config.where("stages", 0, "group_size")  # doctest: +SKIP
        'my_run.yaml:8'
        """
        while path and path not in self._origins:
            path = path[:-1]
        return self._origins.get(path, "config")


def longest_completion(config: RunConfig) -> int:
    """Most tokens of a completion that the stages of a run sample, or its evaluations; 0 if none is sampled."""
    sampled = [stage.rollout.max_tokens for stage in config.stages if stage.kind == "grpo"]
    if any(part.data.held_out is not None for part in parts_of(config)):
        sampled.append(config.eval.max_tokens or config.rollout.max_tokens)
    return max(sampled, default=0)


STAGE_SECTIONS = ("mixture", "data", "prompt", "rewards", "rollout", "algorithm", "optimizer")
"""Sections that a stage inherits from the top and may override, key by key."""


def parts_of(section: RunConfig | StageConfig) -> list[PartConfig]:
    """What a section draws from: the parts of its mixture, or else itself as the only part, which has no name."""
    if section.mixture:
        return list(section.mixture)
    return [
        PartConfig.model_construct(
            name="",
            data=section.data,
            prompt=section.prompt,
            rewards=section.rewards,
            tools=section.rollout.tools,
            environment=section.rollout.environment,
            metrics=section.eval.metrics if isinstance(section, RunConfig) else [],
        )
    ]


def check_trainable(config: RunConfig) -> None:
    """Refuse a config without stages, rows or rewards to train on. The policy checks its options itself.

    Raises:
        ConfigError: says what is missing.
    """
    if not config.stages:
        raise ConfigError(f"task {config.name!r} has no stages, so there is nothing to train. Use a recipe or a demo.")
    for stage in config.stages:
        name = stage.name or stage.kind
        parts = parts_of(stage)
        if any(part.data.train is None for part in parts):
            raise ConfigError(f"stage {name!r} has no data.train, so there is nothing to train on.")
        if stage.kind == "grpo" and not all(part.rewards for part in parts):
            raise ConfigError(f"stage {name!r} has no rewards, so there is nothing to learn from.")
