"""Sampling again within a step, for groups that are revised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mmrl_core.plugins.hook_results import check_groups, check_rollouts, check_scores
from mmrl_core.run import derive_seed
from mmrl_core.types import Prompt, RolloutGroup, Sampling, Scores

if TYPE_CHECKING:
    from mmrl_core.run import SteppingRun


class Resampler:
    """What `mmrl_revise_groups` samples with. It is made for one call of the hook, and of no use after it.

    Processes need not call its methods equally often: where weights are sharded each has all of them meanwhile.

    Attributes:
        stage_step: steps of the stage before the one that the groups are for. `run.state` may be a step behind, where
            the groups are sampled ahead.
    """

    def __init__(self, run: SteppingRun, sampling: Sampling, stage_step: int) -> None:
        self._run = run
        self._sampling = sampling
        self._num_calls = 0
        self.stage_step = stage_step

    def sample(self, prompts: Sequence[Prompt], group_size: int) -> list[RolloutGroup]:
        """Rollouts by the strategy and with the settings of the stage, under the weights that sampled the step.

        Args:
            prompts: any, or none. One that differs from a prompt of the step needs an id of its own, as the ids of its
                trajectories are made from it.
            group_size: rollouts of each.

        Returns:
            A group for each prompt, in order. The seed is made of that of the step's rollouts, which differs between
            steps, rounds and processes, and of the number of calls so far.
        """
        self._num_calls += 1
        if not prompts:
            return []
        run, strategy = self._run, self._run.stage.rollout.strategy
        given: dict[str, Any] = {} if run.environment is None else {"environment": run.environment}
        sampling = replace(self._sampling, seed=derive_seed("revise", self._sampling.seed, self._num_calls))
        groups = run.call("strategy", strategy, run.policy, prompts, group_size, sampling, **given)
        check_rollouts(groups, prompts, f"rollout strategy {strategy.name!r}")
        return list(groups)

    def score(self, groups: Sequence[RolloutGroup]) -> Scores:
        """Their scores, made as those of the step are; at least one group."""
        scores: Scores = self._run.hooks.mmrl_score(run=self._run, groups=groups)
        check_scores(scores, groups, self._run.source("mmrl_score"))
        return scores


def revised(
    run: SteppingRun, groups: Sequence[RolloutGroup], scores: Scores, sampling: Sampling, stage_step: int
) -> tuple[Sequence[RolloutGroup], Scores]:
    """Groups and scores as plugins revise them; without such a plugin nothing is called."""
    if not run.is_overridden("mmrl_revise_groups"):
        return groups, scores
    resampler = Resampler(run, sampling, stage_step)
    with run.clock("revise"), run.policy.acting():
        result = run.hooks.mmrl_revise_groups(run=run, groups=groups, scores=scores, resampler=resampler)
    check_groups(result, run.source("mmrl_revise_groups"))
    return result[0], result[1]
