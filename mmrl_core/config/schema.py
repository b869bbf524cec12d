"""The schema of a task config: pydantic models, unknown keys refused, every key read somewhere.

A task *definition* has `data`, `prompt`, `rewards`, `eval`; a *recipe* extends one with `model`, `stages`, `algorithm`,
`rollout`, `optimizer`. Both are YAML of this schema, read by `mmrl_core.config.load_config`. The top of the
file holds the defaults of every stage; a stage overrides them under the same keys.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PrivateAttr,
    field_validator,
    model_validator,
)

from mmrl_core.config.algorithm import AlgorithmConfig, Environment, OptimizerConfig, RolloutConfig, Tool
from mmrl_core.config.component import Component, Registered, Strict
from mmrl_core.errors import ConfigError

__all__ = [
    "STAGE_SECTIONS",
    "AlgorithmConfig",
    "CheckpointConfig",
    "Component",
    "DataConfig",
    "EvalConfig",
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
    "SourceConfig",
    "StageConfig",
    "Strict",
    "VideoConfig",
    "check_trainable",
    "parts_of",
]


class SourceConfig(Component):
    """Where rows come from: a data source and its options."""

    name: str = Field("rows", description="registered data source, or path/to/file.py:function")
    split: str = Field("train", description="split of the source")
    limit: PositiveInt | None = Field(None, description="use only the first rows")


Source = Annotated[SourceConfig, Registered("source")]


class DataConfig(Strict):
    train: Annotated[SourceConfig, Registered("source")] | None = Field(None, description="rows that are trained on")
    held_out: Annotated[SourceConfig, Registered("source")] | None = Field(
        None, description="rows that `eval` scores; never trained on"
    )
    media_root: str | None = Field(
        None,
        description="folder that media paths are relative to, and may not leave; default: that of the data file, or "
        "the one that the source's options name",
    )
    max_image_pixels: int = Field(
        51_380_224,
        ge=1,
        le=178_956_970,
        description="larger images break their row before they are decoded; a JPEG of up to four times as many is "
        "decoded at half its sides",
    )
    image_formats: list[Literal["AVIF", "ICO", "JPEG2000", "PCX", "PPM", "TGA"]] = Field(
        [], description="formats that are opened beside PNG, JPEG, WebP, GIF, BMP and TIFF"
    )
    max_broken: float = Field(0.05, ge=0.0, le=1.0, description="share of rows that may be set aside as broken")


class VideoConfig(Strict):
    """Which frames of a video the model is shown, and how large."""

    fps: PositiveFloat | None = Field(None, description="frames per second; default 2")
    num_frames: int | None = Field(None, ge=2, description="this many frames instead, or all if the video has fewer")
    min_frames: PositiveInt = Field(4, description="at least so many frames, if the video has them")
    max_frames: int = Field(768, ge=2, description="at most so many frames, spread over the whole video")
    min_pixels: PositiveInt | None = Field(None, description="frames are scaled up to this many pixels")
    max_pixels: PositiveInt | None = Field(None, description="frames are scaled down to this many pixels")
    timestamps: bool = Field(False, description="draw its time in seconds on each frame")
    reader: Literal["pyav", "decord", "torchcodec"] = Field(
        "pyav", description="library that decodes; decord for trusted files only"
    )

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if self.fps is not None and self.num_frames is not None:
            raise ValueError("'fps' and 'num_frames' are both set; set one")
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels {self.min_pixels} is more than max_pixels {self.max_pixels}")
        return self


class PromptConfig(Strict):
    """How a row becomes a prompt; braces name data columns."""

    system: str = Field("", description="system message, if any")
    images: list[str] = Field([], description="image columns, such as '{image}'")
    videos: list[str] = Field([], description="video columns")
    video: VideoConfig = Field(VideoConfig(), description="which frames of a video the model is shown")
    audios: list[str] = Field([], description="audio columns")
    max_audio_s: PositiveFloat = Field(600.0, description="longer audio breaks its row; nothing is cut; in seconds")
    text: str = Field("{problem}", description="user message, after the media")
    marks: dict[Literal["image", "video", "audio"], str] = Field(
        {},
        description="the text's mark for each medium, such as {image: '<image>'}; without: media first",
    )
    answer: str = Field("", description="gold completion: trained on by sft stages, checked by `mmrl check`")


class RewardConfig(Component):
    weight: float = Field(1.0, description="factor in the total; 0 only reports it")
    label: str | None = Field(None, description="name in metrics, if one reward is used twice")
    timeout_s: PositiveFloat = Field(60.0, description="a group not scored after this many seconds is unscored")
    stop_on_failure: bool = Field(
        False, description="end the run when this reward fails; else completions are unscored"
    )

    @property
    def key(self) -> str:
        return self.label or self.name.rpartition(":")[2]


Reward = Annotated[RewardConfig, Registered("reward")]
Metric = Annotated[Component, Registered("metric")]


class LoraConfig(Strict):
    rank: PositiveInt = Field(16, description="rank of the adapters")
    alpha: PositiveFloat = Field(32.0, description="adapters are scaled by alpha / rank")
    target_modules: list[str] | str = Field("all-linear", description="module names, or 'all-linear'")


class ModelConfig(Strict):
    """The model that is trained, and the policy that acts with it.

    Options of the policy `language_model` may be written here too, as in `model: {lora: {rank: 16}}`, which is short
    for `model: {policy: {lora: {rank: 16}}}`. See [LanguageModelOptions](#languagemodeloptions-modelpolicy).
    """

    path: str | None = Field(None, description="model folder or hub name")
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
    every_steps: PositiveInt | None = Field(None, description="also within stages; default: before and after each")
    limit: PositiveInt | None = Field(None, description="evaluate only the first held-out rows")
    temperatures: list[NonNegativeFloat] = Field([0.0], description="metrics at each; 0 is greedy")
    batch_size: PositiveInt = Field(64, description="prompts generated for at a time")
    max_tokens: PositiveInt | None = Field(None, description="default: rollout.max_tokens")


class CheckpointConfig(Strict):
    every_steps: PositiveInt | None = Field(100, description="steps between checkpoints; a stage's end always has one")
    keep: PositiveInt = Field(2, description="newest checkpoints kept")


class LogConfig(Strict):
    trackers: list[str] = Field([], description="accelerate trackers: tensorboard, wandb, ...")
    rollouts_every_steps: PositiveInt = Field(10, description="steps between written rollouts")
    rollouts_per_step: PositiveInt = Field(4, description="groups written then")
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
    weight: float = Field(
        1.0, gt=0.0, allow_inf_nan=False, description="its share of the prompts is the weight over the sum of all"
    )
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
    steps: PositiveInt | None = Field(None, description="steps; or set epochs")
    epochs: PositiveFloat | None = Field(None, description="passes over the training rows")
    prompts_per_step: PositiveInt = Field(8, description="prompts of one step, over all processes")
    group_size: PositiveInt = Field(8, description="completions of a prompt (grpo)")
    micro_batch_tokens: PositiveInt = Field(
        16384, description="tokens of one forward and backward pass, a group's prompt counted once; bounds memory"
    )
    micro_batch_rows: PositiveInt | None = Field(None, description="at most so many rows in one pass, too")
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
        if self.kind == "grpo" and self.group_size < 2:
            raise ValueError(
                "group_size is 1: a group of one has no baseline, so every advantage would be 0. "
                "Set group_size to 2 or more"
            )
        return self

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
    version: PositiveInt = Field(1, description="raise it when prompts, data or rewards change")
    description: str = Field("", description="shown in the report")
    seed: NonNegativeInt = Field(0, description="of sampling, data order and built models")
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
    stages: list[StageConfig] = Field([], description="training stages, in order; none in a task definition")
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
