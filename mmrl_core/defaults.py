"""The core's own answer to every behaviour hook. It is asked last, after the plugins that a run enables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmrl_core import losses
from mmrl_core.advantages import overlong_penalty, varying_groups
from mmrl_core.batching import masks_of
from mmrl_core.hookspecs import hookimpl
from mmrl_core.loss_inputs import LossInputs
from mmrl_core.plugins.hook_results import check_advantages, check_rollouts
from mmrl_core.policy import REFERENCE
from mmrl_core.policy_loss import policy_loss
from mmrl_core.types import LOSS_MASK, Batch, Prompt, RewardView, RolloutGroup, Scores

if TYPE_CHECKING:
    from mmrl_core.run import Run


class CoreBehaviour:
    """What a step does unless a plugin decides otherwise; the `algorithm` section of the config chooses among it."""

    @hookimpl
    def mmrl_prompts(self, prompts: Sequence[Prompt]) -> Sequence[Prompt]:
        return prompts

    @hookimpl
    def mmrl_rollout(self, run: Run, prompts: Sequence[Prompt]) -> Sequence[RolloutGroup]:
        given = {}
        if run.environment is not None:
            given["environment"] = run.environment
        if not (run.is_overridden("mmrl_rollout") or run.is_overridden("mmrl_score")):  # else it is known later
            given["on_group"] = run.rewards.start
        strategy = run.stage.rollout.strategy
        groups = run.call("strategy", strategy, run.policy, prompts, run.stage.group_size, run.sampling(), **given)
        check_rollouts(groups, prompts, f"rollout strategy {strategy.name!r}")
        return groups

    @hookimpl
    def mmrl_score(self, run: Run, groups: Sequence[RolloutGroup]) -> Scores:
        return run.rewards.score(groups)

    @hookimpl
    def mmrl_revise_groups(
        self, groups: Sequence[RolloutGroup], scores: Scores
    ) -> tuple[Sequence[RolloutGroup], Scores]:
        return groups, scores

    @hookimpl
    def mmrl_shape_rewards(self, run: Run, groups: Sequence[RolloutGroup], scores: Scores) -> Scores:
        algorithm = run.stage.algorithm
        if algorithm.overlong is not None:
            limit = algorithm.overlong.max_length or run.stage.rollout.max_tokens
            lengths = torch.tensor([rollout.num_actions for group in groups for rollout in group.rollouts])
            scores = scores.with_component("overlong", overlong_penalty(lengths, limit, algorithm.overlong.cache))
        if algorithm.kl.place == "reward" and algorithm.kl.coefficient > 0:
            scores = scores.with_component("kl", -algorithm.kl.coefficient * _kl_of_rollouts(run, groups))
        return scores

    @hookimpl
    def mmrl_select_groups(self, run: Run, groups: Sequence[RolloutGroup], scores: Scores) -> Sequence[bool]:
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
    def mmrl_compute_advantages(self, run: Run, view: RewardView) -> Tensor:
        advantages = view.rewards
        for stage in run.stage.algorithm.advantage:
            advantages = run.call("advantage", stage, advantages, view, reduce_sum=run.reduce_sum)
            check_advantages(advantages, view, f"advantage stage {stage.name!r}")
        return torch.where(advantages.isnan(), 0.0, advantages)  # NaN: unscored, and no stage has said so

    @hookimpl
    def mmrl_batch(self, batch: Batch) -> Batch:
        return batch

    @hookimpl
    def mmrl_policy_loss(self, run: Run, inputs: LossInputs) -> tuple[Tensor, Mapping[str, Tensor]]:
        loss = run.current(run.stage.algorithm.loss)
        algorithm = run.stage.algorithm.model_copy(update={"loss": loss})
        entry = run.registered("loss", loss)
        max_length = algorithm.max_length or run.stage.rollout.max_tokens
        unit = entry.details.get("unit", "token")
        return policy_loss(inputs, algorithm, entry.function(), max_length=max_length, unit=unit)


def _kl_of_rollouts(run: Run, groups: Sequence[RolloutGroup]) -> Tensor:
    """Sum over a rollout's tokens of the KL estimate to the reference [N], under the weights that sampled it."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    rows = [row for rollout in rollouts for row in rollout.rows]
    with torch.no_grad():
        sampled = run.policy.logprobs(rows).logprobs
    reference = run.policy.logprobs(rows, frozen=REFERENCE).logprobs
    divergence = losses.kl_estimate(sampled, reference, run.stage.algorithm.kl.estimator)
    owner = torch.tensor([index for index, rollout in enumerate(rollouts) for _ in rollout.rows])
    by_row = (divergence.cpu() * masks_of(rows)[LOSS_MASK]).sum(1)
    return torch.zeros(len(rollouts)).index_add(0, owner, by_row)
