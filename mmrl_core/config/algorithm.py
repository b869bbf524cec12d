"""The sections `rollout`, `algorithm` and `optimizer` of the schema: what a step does with its prompts."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from mmrl_core.config.component import Component, Registered, Strict
from mmrl_core.config.numbers import (
    Beta,
    Count,
    CountOrZero,
    Epsilon,
    Factor,
    FactorOrZero,
    PositiveFactor,
    SamplingTemperature,
    Share,
)

Tool = Annotated[Component, Registered("tool")]
Environment = Annotated[Component, Registered("environment")]


class RolloutConfig(Strict):
    engine: Annotated[Component, Registered("engine")] = Field(
        Component(name="hf"), description="registered rollout engine, with its options"
    )
    strategy: Annotated[Component, Registered("strategy")] = Field(
        Component(name="single_turn"), description="registered rollout strategy"
    )
    tools: list[Tool] = Field([], description="registered tools that the policy may call; with multi_turn")
    environment: Environment | None = Field(
        None, description="registered environment that answers the policy's turns; default with tools: tools"
    )
    steps_ahead: Literal[0, 1] = Field(
        0, description="1: sample the next step while this one trains, with weights one update old"
    )
    max_tokens: Count = Field(256, description="longest completion, in tokens")
    temperature: SamplingTemperature = Field(1.0, description="sampling temperature; logprobs are taken at it too")
    top_p: float = Field(1.0, gt=0.0, le=1.0, description="nucleus sampling; 1 is off")
    top_k: CountOrZero = Field(0, description="top-k sampling; 0 is off")


class KLConfig(Strict):
    coefficient: FactorOrZero = Field(0.0, description="weight of the penalty; 0 needs no reference policy")
    estimator: Literal["k1", "k2", "k3", "k3_straight_through"] = Field(
        "k3", description="estimate of KL(policy, reference) from the sampled token"
    )
    place: Literal["loss", "reward"] = Field("loss", description="penalty in the loss, or subtracted from the reward")
    to: Literal["reference", "old"] = Field(
        "reference", description="from the reference policy, or from the policy before the step's first update"
    )
    times_ratio: bool = Field(False, description="multiply the loss penalty by the ratio, unbiased off-policy")

    @model_validator(mode="after")
    def _old_is_in_the_loss(self) -> Self:
        if self.to == "old" and self.place == "reward":
            raise ValueError("kl.to 'old' is a penalty on the update, which a reward cannot hold: set kl.place to loss")
        return self

    @property
    def needs_reference(self) -> bool:
        return self.coefficient > 0 and self.to == "reference"


class RefreshConfig(Strict):
    """When a frozen policy takes over the trained weights."""

    rule: Literal["never", "every", "moving_average"] = Field(
        "never", description="never: as at the stage's start; every: copy; moving_average: by decay"
    )
    every_steps: Count = Field(1, description="apply the rule every so many steps")
    decay: Share = Field(0.99, description="moving average: share kept of the frozen weights")


class ImportanceConfig(Strict):
    """Correction for a sampler whose logprobs differ from the trainer's."""

    level: Literal["token", "sequence"] = Field("sequence", description="one weight a token, or a completion")
    mode: Literal["truncate", "mask"] = Field("mask", description="weights out of range: bounded, or set to 0")
    maximum: PositiveFactor = Field(3.0, description="largest weight")
    minimum: FactorOrZero = Field(0.0, description="smallest weight")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum:g} is more than maximum {self.maximum:g}: no weight is in range")
        return self


class DynamicSamplingConfig(Strict):
    """Draw prompts until the step is full of groups whose reward varies (DAPO)."""

    reward: str | None = Field(None, description="reward whose spread counts; default: the total")
    max_rounds: Count = Field(10, description="rounds of drawing; then the step goes on with what there is")


class OverlongConfig(Strict):
    """Linear penalty on the last `cache` tokens before the limit (DAPO)."""

    cache: Count = Field(description="tokens before the limit at which the penalty starts")
    max_length: Count | None = Field(None, description="limit; default: rollout.max_tokens")


class AlgorithmConfig(Strict):
    method: str | None = Field(
        None,
        description="set by presets of whole methods, such as TRPA; of two that are extended side by side, each with "
        "its own, one would undo the other, so they are refused",
    )
    advantage: list[Annotated[Component, Registered("advantage")]] = Field(
        [Component(name="group_relative")], description="advantage stages, in order"
    )
    loss: Annotated[Component, Registered("loss")] = Field(
        Component(name="clipped"), description="policy-loss surrogate"
    )
    old_logprobs: Literal["trainer", "sampler"] = Field(
        "trainer",
        description="ratios are taken to the trainer's logprobs before a step's first update, or to those that each "
        "rollout was sampled with, which rollouts of earlier steps need",
    )
    aggregate: Literal["sequence_mean", "token_mean", "local_token_mean", "constant_length"] = Field(
        "token_mean", description="how token losses become one number"
    )
    max_length: Count | None = Field(None, description="constant_length: L_max; default rollout.max_tokens")
    kl: KLConfig = Field(KLConfig(), description="penalty for leaving the reference policy")
    entropy_coefficient: Factor = Field(0.0, description="weight of the entropy bonus")
    importance_correction: ImportanceConfig | None = Field(
        None, description="correct for a rollout engine whose logprobs differ from the trainer's"
    )
    off_policy_threshold: FactorOrZero | None = Field(
        None,
        description="leave out rows of negative advantage whose mean log-ratio to the sampler falls below minus this",
    )
    dynamic_sampling: DynamicSamplingConfig | None = Field(
        None, description="replace groups whose rewards are all equal"
    )
    overlong: OverlongConfig | None = Field(None, description="penalty near the length limit")
    max_unscored_steps: Count | None = Field(
        5, description="a run whose rewards score no rollout in so many steps in a row ends with their error"
    )
    mask_truncated: bool = Field(False, description="leave truncated completions out of the loss")
    updates_per_rollout: Count = Field(1, description="optimizer steps on each rollout batch, in disjoint parts")
    epochs_per_rollout: Count = Field(1, description="passes over each rollout batch")
    frozen_policies: dict[str, RefreshConfig] = Field({}, description="named frozen policies; 'reference' is the KL's")

    @model_validator(mode="after")
    def _one_correction(self) -> Self:
        if self.old_logprobs == "sampler" and self.importance_correction is not None:
            raise ValueError(
                "with old_logprobs 'sampler' the ratio is taken to the sampler already, so that importance_correction "
                "has nothing to correct: set it to null, or old_logprobs to 'trainer'"
            )
        return self


class OptimizerConfig(Strict):
    lr: PositiveFactor = Field(1e-6, description="peak learning rate")
    lr_scale: dict[str, PositiveFactor] = Field(
        {},
        description="factors of the learning rate for parameters in whose names a regular expression is found; "
        "the first that is found counts",
    )
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="AdamW's decay rates")
    eps: Epsilon = Field(1e-8, description="AdamW's epsilon")
    weight_decay: FactorOrZero = Field(0.0, description="on matrices; biases and norms have none")
    max_grad_norm: PositiveFactor | None = Field(1.0, description="gradients are scaled down to this norm")
    schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="after the warm-up")
    warmup_steps: CountOrZero = Field(0, description="steps in which the learning rate rises to its peak")
    final_lr_ratio: Share = Field(0.0, description="learning rate at the end, as a share of the peak")

    @field_validator("lr_scale")
    @classmethod
    def _expressions(cls, value: dict[str, float]) -> dict[str, float]:
        for pattern in value:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        return value
