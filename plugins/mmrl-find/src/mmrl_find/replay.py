"""Replay: earlier rollouts of a prompt join its group, each with the reward and the distribution it came from."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from mmrl_core import hookimpl
from mmrl_core.errors import ConfigError, PolicyError
from mmrl_core.run import derive_seed
from mmrl_core.runs import prompt_text
from mmrl_core.types import Rollout, RolloutGroup, Scores
from mmrl_find.policy import NoiseObservation

if TYPE_CHECKING:
    from mmrl_core.config import RunConfig
    from mmrl_core.run import Run


class Replay:
    """Adds rollouts of earlier steps to each group, so that an image that was paid for teaches more than once.

    In a config: `plugins: [{name: find/replay, per_prompt: 4}]`, with `algorithm: {old_logprobs: sampler}`. A latent is
    kept together with the distribution and the logprob that it was drawn with, and the reward that it earned. So its
    ratio is to the density that it was drawn from, the value network learns it there, and the clip of the loss ends its
    pull once the policy has gone far enough. Unscored rollouts are not kept; neither are pictures, as no reward is
    computed again. A new stage starts with nothing, because its rewards may be others.

    With several processes each keeps the rollouts of its own prompts; a checkpoint holds those of the main process.

    Args:
        capacity: rollouts kept, over all prompts; the oldest go first.
        per_prompt: rollouts added to each group, as many as there are; drawn without replacement, by a seed that only
            depends on the run's seed, the step and the group.
        max_age: in steps; older rollouts are dropped. None: only capacity limits them.

    Raises:
        ConfigError: an option is no positive number.

    Source: FIND, arXiv:2407.19453 (historical samples; 1000 rows). quirk: the public code always reads the oldest
    reward, with the newest latent and distribution.
    """

    def __init__(self, capacity: int = 1000, per_prompt: int = 4, max_age: int | None = None) -> None:
        for name, value in (("capacity", capacity), ("per_prompt", per_prompt), ("max_age", max_age)):
            if value is not None and value < 1:
                raise ConfigError(f"find/replay: {name} is a number of at least 1, not {value}")
        self.capacity, self.per_prompt, self.max_age = capacity, per_prompt, max_age
        self._stage = 0
        self._kept: list[dict[str, Any]] = []  # oldest first; plain values and tensors, as they are saved

    @hookimpl
    def mmrl_configure(self, config: RunConfig) -> None:
        for index, stage in enumerate(config.stages):
            if stage.kind == "grpo" and stage.algorithm.old_logprobs != "sampler":
                raise ConfigError(
                    f"{config.where('stages', index, 'algorithm', 'old_logprobs')}: find/replay trains on rollouts of "
                    f"earlier steps, whose ratio is to the logprobs that they were sampled with: set "
                    f"algorithm.old_logprobs to sampler (now {stage.algorithm.old_logprobs})"
                )

    @hookimpl
    def mmrl_stage_start(self, run: Run) -> None:
        if run.state.stage != self._stage:
            self._stage, self._kept = run.state.stage, []

    @hookimpl
    def mmrl_extend_groups(
        self, run: Run, groups: Sequence[RolloutGroup], scores: Scores
    ) -> tuple[Sequence[RolloutGroup], Scores]:
        step, parts = run.state.step, scores.split(groups)
        if self.max_age is not None:
            self._kept = [kept for kept in self._kept if kept["step"] >= step - self.max_age]
        extended, extended_scores = [], []
        for index, (group, part) in enumerate(zip(groups, parts, strict=True)):
            of_prompt = [kept for kept in self._kept if kept["prompt"] == prompt_text(group.prompt)]
            generator = random.Random(derive_seed(run.config.seed, "replay", step, index))
            chosen = generator.sample(of_prompt, min(self.per_prompt, len(of_prompt)))
            replayed = [_rollout(group, kept, f"{index}-{number}") for number, kept in enumerate(chosen)]
            extended.append(replace(group, rollouts=[*group.rollouts, *replayed]))
            extended_scores += [part, _scores(part, chosen)]
            run.counts["replayed"] += len(chosen)
        for group, part in zip(groups, parts, strict=True):  # only now, so that nothing is added to itself
            self._keep(step, group, part)
        return extended, Scores.join(extended_scores)

    def _keep(self, step: int, group: RolloutGroup, scores: Scores) -> None:
        for index, rollout in enumerate(group.rollouts):
            row = rollout.rows[0]
            if not isinstance(row.observation, NoiseObservation):
                raise PolicyError("find/replay keeps rollouts of the policy find/noise only; model.policy is another.")
            if scores.totals[index].isnan():
                continue
            kept = {
                "step": step,
                "prompt": prompt_text(group.prompt),
                "latent": row.action.clone(),
                "logprobs": row.sampler_logprobs,
                "mean": row.observation.mean,
                "log_std": row.observation.log_std,
                "reward": float(scores.totals[index]),
                "components": {name: float(values[index]) for name, values in scores.components.items()},
            }
            self._kept.append(kept)
        del self._kept[: max(0, len(self._kept) - self.capacity)]

    @hookimpl
    def mmrl_save_state(self) -> dict[str, Any]:
        return {"stage": self._stage, "kept": list(self._kept)}

    @hookimpl
    def mmrl_load_state(self, state: Mapping[str, Any]) -> None:
        self._stage, self._kept = state["stage"], list(state["kept"])


def _rollout(group: RolloutGroup, kept: Mapping[str, Any], name: str) -> Rollout:
    """A kept latent as a rollout of the group's prompt, with the distribution that it was drawn from."""
    fresh = group.rollouts[0].rows[0]
    row = replace(
        fresh,
        trajectory_id=f"{group.prompt.id}/replay-{name}",
        observation=replace(fresh.observation, mean=kept["mean"], log_std=kept["log_std"]),
        action=kept["latent"],
        sampler_logprobs=kept["logprobs"],
    )
    return Rollout([row], completion=None)


def _scores(fresh: Scores, chosen: Sequence[Mapping[str, Any]]) -> Scores:
    """Scores of kept rollouts. The total has all of a reward; with one action it need not be told apart by token."""
    return Scores(
        totals=torch.tensor([kept["reward"] for kept in chosen]),
        components={name: torch.tensor([kept["components"][name] for kept in chosen]) for name in fresh.components},
        weights=fresh.weights,
        token_rewards={name: [torch.zeros(1) for _ in chosen] for name in fresh.token_rewards},
        step_rewards={name: [[0.0] for _ in chosen] for name in fresh.step_rewards},
    )
