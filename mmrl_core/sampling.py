"""Prompts -> rollout -> score -> revise: the groups that a step begins with, sampled now or a step ahead."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmrl_core.data import PromptStream
from mmrl_core.methods import revised
from mmrl_core.plugins.hook_results import check_prompts, check_rollouts, check_scores
from mmrl_core.run import derive_seed
from mmrl_core.types import Prompt, RolloutGroup, Sampling, Scores

if TYPE_CHECKING:
    from mmrl_core.data import Draw, Mixture
    from mmrl_core.run import SteppingRun


@dataclass(frozen=True)
class SampledGroups:
    """What one round of sampling gave, and the draw that its prompts came from."""

    draw: Draw
    groups: Sequence[RolloutGroup]
    scores: Scores


class GroupSampler:
    """Samples the groups of a stage, each step's when it is asked for or, with `rollout.steps_ahead`, a step early.

    What is sampled ahead is one record, which changes nothing of the run's state before it is taken.
    """

    def __init__(self, run: SteppingRun, source: Mixture) -> None:
        self._run = run
        self.source = source
        self._stream = PromptStream(self._draw_from, run.policy.prepare)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mmrl-sampler")
        self._ahead: Future[SampledGroups] | None = None
        self._first_step = run.state.step - run.state.stage_step
        self._now = (0, 0)  # step, and round of dynamic sampling within it, of the rollout under way

    def next(self, round_index: int = 0) -> tuple[Sequence[RolloutGroup], Scores]:
        """Groups with their scores: what was sampled ahead, or else sampled now with the present weights."""
        run = self._run
        if self._ahead is not None:
            with run.clock("wait"):
                sampled, self._ahead = self._ahead.result(), None
        else:
            run.publish_weights()
            sampled = self._sample(*self._prompts(run.state.position), run.state.step, round_index)
        run.advance(sampled.draw)
        return sampled.groups, sampled.scores

    def start_ahead(self) -> None:
        """Begin to sample the next step in a thread, with the weights before this step's update."""
        run = self._run
        run.publish_weights()
        draw, prompts = self._prompts(run.state.position)
        self._ahead = self._thread.submit(self._sample, draw, prompts, run.state.step + 1, 0)

    def draw(self) -> list[Prompt]:
        """The next prompts of this process in the data's order, without sampling (supervised stages)."""
        with self._run.clock("data"):
            drawn = self._stream.take(self._run.state.position)
        self._run.advance(drawn)
        return drawn.prompts

    def settings(self) -> Sampling:
        """How the rollout under way samples; the seed differs between steps, rounds and processes."""
        run, rollout = self._run, self._run.stage.rollout
        return Sampling(
            max_tokens=rollout.max_tokens,
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            top_k=rollout.top_k,
            seed=derive_seed(run.config.seed, "rollout", *self._now, run.accelerator.process_index),
        )

    def close(self) -> None:
        """Wait for what is under way and forget it. May be called more than once."""
        self._stream.close()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _draw_from(self, position: int) -> Draw:
        run = self._run
        process, num_processes = run.accelerator.process_index, run.accelerator.num_processes
        count = run.stage.prompts_per_step
        return self.source.draw(position, count, run.config.seed, rank=process, world_size=num_processes)

    def _prompts(self, position: int) -> tuple[Draw, Sequence[Prompt]]:
        with self._run.clock("data"):
            drawn = self._stream.take(position)
            prompts = self._run.hooks.mmrl_prompts(run=self._run, prompts=drawn.prompts)
        check_prompts(prompts, self._run.source("mmrl_prompts"))
        return drawn, prompts

    def _sample(self, draw: Draw, prompts: Sequence[Prompt], step: int, round_index: int) -> SampledGroups:
        """prompts -> rollout -> score -> revise; with `steps_ahead` in the sampling thread."""
        run = self._run
        self._now = step, round_index
        with run.clock("rollout"), run.policy.acting():
            groups = run.hooks.mmrl_rollout(run=run, prompts=prompts)
        check_rollouts(groups, prompts, run.source("mmrl_rollout"))
        with run.clock("rewards"):
            scores = run.hooks.mmrl_score(run=run, groups=groups)
        check_scores(scores, groups, run.source("mmrl_score"))
        groups, scores = revised(run, groups, scores, self.settings(), step - self._first_step)
        return SampledGroups(draw, groups, scores)
