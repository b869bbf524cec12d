"""The core's own answer to every behaviour hook. It is asked last, after the plugins a run enables."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmrl_core import losses
from mmrl_core.advantages import overlong_penalty, varying_groups
from mmrl_core.errors import HookResultError
from mmrl_core.hookspecs import hookimpl
from mmrl_core.registry import call_with_options
from mmrl_core.types import LossInputs, Prompt, RewardView, RolloutGroup, Scores

if TYPE_CHECKING:
    from mmrl_core.trainer import Trainer

REFERENCE = "reference"
"""Name of the frozen policy that KL penalties are taken to."""


class CoreBehaviour:
    """What a step does unless a plugin decides otherwise; the `algorithm` section of the config chooses among it."""

    @hookimpl
    def mmrl_prompts(self, prompts: Sequence[Prompt]) -> Sequence[Prompt]:
        return prompts

    @hookimpl
    def mmrl_rollout(self, run: Trainer, prompts: Sequence[Prompt]) -> Sequence[RolloutGroup]:
        strategy = run.stage.rollout.strategy
        function = run.load("strategy", strategy)
        options: dict[str, Any] = dict(strategy.options)
        hooks = (run.hooks.mmrl_after_rollout, run.hooks.mmrl_score)
        as_sampled = all(len(hook.get_hookimpls()) == 1 for hook in hooks)  # else what is scored is known only later
        if as_sampled and "on_group" in inspect.signature(function).parameters:
            options["on_group"] = run.rewards.start
        if run.environment is not None:
            options["environment"] = run.environment
        return call_with_options(
            function, run.policy, prompts, run.stage.group_size, run.sampling(), options=options, name=strategy.name
        )

    @hookimpl
    def mmrl_after_rollout(self, groups: Sequence[RolloutGroup]) -> Sequence[RolloutGroup]:
        return groups

    @hookimpl
    def mmrl_score(self, run: Trainer, groups: Sequence[RolloutGroup]) -> Scores:
        return run.rewards.score(groups)

    @hookimpl
    def mmrl_shape_rewards(self, run: Trainer, groups: Sequence[RolloutGroup], scores: Scores) -> Scores:
        algorithm = run.stage.algorithm
        if algorithm.overlong is not None:
            limit = algorithm.overlong.max_length or run.stage.rollout.max_tokens
            lengths = torch.tensor([rollout.num_actions for group in groups for rollout in group.rollouts])
            penalty = overlong_penalty(lengths, limit, algorithm.overlong.cache)
            scores = scores.with_component("overlong", penalty)
        if algorithm.kl.place == "reward" and algorithm.kl.coefficient > 0:
            scores = scores.with_component("kl", -algorithm.kl.coefficient * self._kl_of_rollouts(run, groups))
        return scores

    def _kl_of_rollouts(self, run: Trainer, groups: Sequence[RolloutGroup]) -> Tensor:
        """Sum over a rollout's tokens of the KL estimate to the reference [N], under the weights that sampled it."""
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        rows = [row for rollout in rollouts for row in rollout.rows]
        with torch.no_grad():
            sampled = run.policy.logprobs(rows).logprobs
        reference = run.policy.logprobs(rows, frozen=REFERENCE).logprobs
        divergence = losses.kl_estimate(sampled, reference, run.stage.algorithm.kl.estimator)
        mask = run.masks(rows)["loss_mask"]
        owner = torch.tensor([index for index, rollout in enumerate(rollouts) for _ in rollout.rows])
        by_row = (divergence.cpu() * mask).sum(1)
        return torch.zeros(len(rollouts)).index_add(0, owner, by_row)

    @hookimpl
    def mmrl_select_groups(self, run: Trainer, groups: Sequence[RolloutGroup], scores: Scores) -> Sequence[bool]:
        rule = run.stage.algorithm.dynamic_sampling
        if rule is None:
            return [True] * len(groups)
        metric = scores.totals if rule.reward is None else scores.components[rule.reward]
        sizes = torch.tensor([len(group.rollouts) for group in groups])
        group_ids = torch.arange(len(groups)).repeat_interleave(sizes)
        varies = varying_groups(metric, group_ids)  # [N], equal within a group
        return [bool(part[0]) for part in varies.split(sizes.tolist())]

    @hookimpl
    def mmrl_extend_groups(
        self, groups: Sequence[RolloutGroup], scores: Scores
    ) -> tuple[Sequence[RolloutGroup], Scores]:
        return groups, scores

    @hookimpl
    def mmrl_compute_advantages(self, run: Trainer, view: RewardView) -> Tensor:
        advantages = view.rewards
        for stage in run.stage.algorithm.advantage:
            function = run.load("advantage", stage)
            options: dict[str, Any] = dict(stage.options)
            if "reduce_sum" in inspect.signature(function).parameters:
                options["reduce_sum"] = run.reduce_sum
            advantages = call_with_options(function, advantages, view, options=options, name=stage.name)
            check_advantages(advantages, view, f"advantage stage {stage.name!r}")
        return torch.where(advantages.isnan(), 0.0, advantages)  # NaN: unscored, and no stage has said so

    @hookimpl
    def mmrl_policy_loss(self, run: Trainer, inputs: LossInputs) -> tuple[Tensor, Mapping[str, Tensor]]:
        algorithm = run.stage.algorithm
        correction = algorithm.importance_correction
        kl = algorithm.kl
        return losses.policy_loss(
            inputs,
            surrogate=run.load("loss", algorithm.loss),
            surrogate_options=algorithm.loss.options,
            aggregation=algorithm.aggregate,
            max_length=algorithm.max_length or run.stage.rollout.max_tokens,
            kl_coefficient=kl.coefficient if kl.place == "loss" else 0.0,
            kl_estimator=kl.estimator,
            kl_times_ratio=kl.times_ratio,
            entropy_coefficient=algorithm.entropy_coefficient,
            importance_level=None if correction is None else correction.level,
            importance_mode="mask" if correction is None else correction.mode,
            importance_max=math.inf if correction is None else correction.maximum,
            importance_min=0.0 if correction is None else correction.minimum,
            off_policy_threshold=algorithm.off_policy_threshold,
        )

    @hookimpl
    def mmrl_refresh_policies(self, run: Trainer) -> None:
        step = run.state.stage_step + 1  # that ends
        for name, refresh in run.stage.algorithm.frozen_policies.items():
            if refresh.rule != "never" and step % refresh.every_steps == 0:
                run.policy.refresh(name, refresh.decay if refresh.rule == "moving_average" else 0.0)


def check_scores(scores: Any, groups: Sequence[RolloutGroup], hook: str) -> None:
    """Raises HookResultError unless a hook scored each rollout of the groups."""
    if not isinstance(scores, Scores):
        raise HookResultError(f"{hook} returned {type(scores).__name__}; expected Scores.")
    expected = (sum(len(group.rollouts) for group in groups),)
    for name, values in {"totals": scores.totals, **scores.components}.items():
        if tuple(values.shape) != expected:
            raise HookResultError(f"{hook} returned {name!r} of shape {tuple(values.shape)}; expected {expected}.")
    for name, parts in {**scores.token_rewards, **scores.step_rewards}.items():
        if len(parts) != expected[0]:
            raise HookResultError(f"{hook} returned {name!r} for {len(parts)} rollouts; expected {expected[0]}.")


def check_groups(result: Any, hook: str) -> None:
    """Raises HookResultError unless a hook returned groups of rollouts, none empty, and scores of just these."""
    if not isinstance(result, tuple) or len(result) != 2:
        raise HookResultError(f"{hook} returned {type(result).__name__}; expected a tuple of groups and Scores.")
    groups, scores = result
    if not groups or not all(group.rollouts for group in groups):
        raise HookResultError(f"{hook} returned {'a group without rollouts' if groups else 'no groups'}.")
    check_scores(scores, groups, hook)


def check_advantages(advantages: Any, view: RewardView, source: str) -> None:
    """Raises HookResultError unless a hook or stage returned a floating [B] or [B, T] tensor without infinities."""
    allowed = (tuple(view.rewards.shape), tuple(view.mask.shape))
    if not isinstance(advantages, Tensor) or tuple(advantages.shape) not in allowed:
        got = tuple(advantages.shape) if isinstance(advantages, Tensor) else type(advantages).__name__
        raise HookResultError(f"{source} returned {got}; expected a tensor {allowed[0]} or {allowed[1]}.")
    if not advantages.is_floating_point() or not bool(torch.isfinite(advantages).all()):
        raise HookResultError(f"{source} returned numbers that are not floating or not finite.")
