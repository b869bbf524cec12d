"""Held-out evaluation: the task's rewards and the benchmark's own metrics, greedy and at temperatures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from mmrl_core.config import PartConfig, RunConfig, parts_of
from mmrl_core.conversation import make_environment
from mmrl_core.data import PromptSource, in_turns
from mmrl_core.errors import ConfigError
from mmrl_core.plugins import Plugins
from mmrl_core.plugins.hook_results import check_measured, check_rollouts
from mmrl_core.runs import PASS_TOLERANCE, mean_outcomes
from mmrl_core.scoring import RewardRunner, own_copy, pass_metrics, without_observations
from mmrl_core.types import Prompt, RolloutGroup, Sampling, Scores

if TYPE_CHECKING:
    from mmrl_core.policy import Policy
    from mmrl_core.support import Processes

ROLLOUTS_SHOWN = 12
"""Held-out prompts whose rollouts are written, the same at each evaluation."""

EVALUATION_SEED = 20_260_101
"""Sampling at a temperature draws the same randomness at each evaluation."""

Log = Callable[[Sequence[RolloutGroup], Scores, float], Any]
"""What is given groups, their scores and the temperature that they were sampled at."""


class Evaluator:
    """Evaluates a policy on a task's held-out rows, as often as asked; the rows are read once.

    Several processes share the batches of a sampling; the first of them scores what all have sampled.
    """

    def __init__(
        self, config: RunConfig, plugins: Plugins, *, limit: int | None = None, processes: Processes | None = None
    ) -> None:
        self._config = config
        self._processes = processes
        self._plugins = plugins
        self._limit = limit or config.eval.limit
        self._prompts: list[Prompt] | None = None
        self._parts = [part for part in parts_of(config) if part.data.held_out is not None]
        self._environment = make_environment(config.rollout, parts_of(config), plugins) if self.enabled else None
        self.num_set_aside = 0

    @property
    def enabled(self) -> bool:
        return bool(self._parts)

    def evaluate(
        self,
        policy: Policy,
        *,
        log: Log | None = None,
        log_all: Log | None = None,
    ) -> dict[str, float]:
        """Metrics of the held-out rows.

        Args:
            policy: evaluated with the weights it has.
            log: given the first groups and their scores at each temperature.
            log_all: given all of them.

        Returns:
            `greedy/reward/total`, `greedy/reward/<name>`, `greedy/<metric>`, `greedy/completion_tokens`, and the same
            under `t<temperature>`, with `pass@<k>` where `eval.samples` is above 1, and `maj@<k>` where the reward
            says what an answer is; `num_prompts`, `set_aside`. Unscored completions are left out of reward means. Of a
            mixture: the same of each part, under `greedy/<part>/` and so on, and `greedy/reward/total`, the mean of the
            parts' totals. {} in all processes but the first.

        Raises:
            ConfigError: the task has no held-out rows.
        """
        prompts = self._load(policy)
        config = self._config
        runner = RewardRunner(self._plugins, {part.name: part.rewards for part in self._parts})
        metrics: dict[str, float] = {}
        for temperature in config.eval.temperatures:
            with policy.acting():
                groups = self._sampled(policy, prompts, temperature)
            if self._processes is not None and self._processes.index:
                continue
            scores = runner.score(groups)
            prefix = "greedy" if temperature == 0 else f"t{temperature:g}"
            totals = []
            apart = scores.split(groups)
            for part in self._parts:
                places = [place for place, group in enumerate(groups) if group.prompt.part == part.name]
                of_part = Scores.join([apart[place] for place in places])
                measured = self._measure(part, [groups[place] for place in places], of_part)
                metrics |= {f"{prefix}/{_inside(part, name)}": value for name, value in measured.items()}
                totals.append(_mean(of_part.totals))
            if config.mixture:
                metrics[f"{prefix}/reward/total"] = _mean(torch.tensor(totals))
            if log is not None:
                places = in_turns(prompts, ROLLOUTS_SHOWN)
                log([groups[place] for place in places], Scores.join([apart[place] for place in places]), temperature)
            if log_all is not None:
                log_all(groups, scores, temperature)
        if self._environment is not None:
            self._environment.close()
        return metrics and {**metrics, "num_prompts": float(len(prompts)), "set_aside": float(self.num_set_aside)}

    def _sampled(self, policy: Policy, prompts: Sequence[Prompt], temperature: float) -> list[RolloutGroup]:
        """A group for each prompt, in their order: of one rollout if greedy, else of `eval.samples`."""
        config, strategy = self._config, self._config.rollout.strategy
        rollout = self._plugins.registry.get("strategy", strategy.name)
        given = {} if self._environment is None else {"environment": self._environment}
        max_tokens = config.eval.max_tokens or config.rollout.max_tokens
        sampling = Sampling(max_tokens=max_tokens, temperature=temperature, seed=EVALUATION_SEED)
        processes = self._processes
        index, count = (0, 1) if processes is None else (processes.index, processes.count)
        batches: dict[int, list[RolloutGroup]] = {}  # by the place of the first prompt
        num_samples = 1 if temperature == 0 else config.eval.samples
        size = max(1, config.eval.batch_size // num_samples)
        for start in range(0, len(prompts), size)[index::count]:  # composed as in one process: noise goes by place
            batch = prompts[start : start + size]
            sampled = rollout.call(policy, batch, num_samples, sampling, options=strategy.options, **given)
            check_rollouts(sampled, batch, f"rollout strategy {strategy.name!r}")
            batches[start] = sampled
        if processes is None or count == 1:
            return [group for groups in batches.values() for group in groups]
        bare = [(start, [_without_media(group) for group in groups]) for start, groups in batches.items()]
        everywhere = dict(processes.gather(bare))
        sampled = [group for start in sorted(everywhere) for group in everywhere[start]]
        return [
            replace(group, prompt=replace(prompt, sample=group.prompt.sample))  # which sampling may have added to
            for group, prompt in zip(sampled, prompts, strict=True)
        ]

    def _measure(self, part: PartConfig, groups: Sequence[RolloutGroup], scores: Scores) -> dict[str, float]:
        """Metrics of the groups of a part, with scores of just these; benchmark metrics read the first rollouts."""
        own = {key: scores.components[_inside(part, key)] for key in [reward.key for reward in part.rewards]}
        measured = {"reward/total": _mean(scores.totals)} if len(own) > 1 else {}
        measured |= {f"reward/{name}": _mean(values) for name, values in own.items()}
        measured |= self._benchmark_metrics(part, groups)
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        measured |= mean_outcomes(rollouts)
        measured["completion_tokens"] = sum(rollout.num_actions for rollout in rollouts) / len(rollouts)
        if len(rollouts) > len(groups):
            measured |= self._passes(part, groups, own)
        return measured

    def _passes(
        self, part: PartConfig, groups: Sequence[RolloutGroup], components: Mapping[str, torch.Tensor]
    ) -> dict[str, float]:
        """pass@k and maj@k of the samples of each prompt, by the reward that the config names or the first one."""
        key = self._config.eval.pass_reward or part.rewards[0].key
        named = {reward.key: reward for reward in part.rewards}
        if key not in named:
            raise ConfigError(f"eval.pass_reward {key!r} is no reward of the task; rewards here: {', '.join(named)}.")
        entry = self._plugins.registry.get("reward", named[key].name)
        maximum = entry.details.get("maximum", 1.0)
        if maximum is None:
            raise ConfigError(
                f"pass@k needs to know when a sample is right, but reward {key!r} declares no maximum. Set "
                "eval.pass_reward to one that does, or eval.samples to 1."
            )
        sizes = [len(group.rollouts) for group in groups]
        right = [
            [None if math.isnan(value) else value >= maximum - PASS_TOLERANCE for value in of_group.tolist()]
            for of_group in components[key].split(sizes)
        ]
        answer_of = entry.detail("answer")
        if answer_of is None:
            return pass_metrics(right)
        said = [[answer_of(r.completion, group.prompt.sample) for r in group.rollouts] for group in groups]
        return pass_metrics(right, said)

    def _benchmark_metrics(self, part: PartConfig, groups: Sequence[RolloutGroup]) -> dict[str, float]:
        completions = [group.rollouts[0].completion for group in groups]
        samples = [{**group.prompt.sample, **group.rollouts[0].outcome} for group in groups]
        metrics: dict[str, float] = {}
        for metric in part.metrics:
            entry = self._plugins.registry.get("metric", metric.name)
            # Copies: what a metric writes into its samples, the next one must not read.
            measured = entry.call(own_copy(completions), own_copy(samples), options=metric.options)
            check_measured(measured, f"metric {metric.name!r}")
            metrics |= {name: float(value) for name, value in measured.items()}
        return metrics

    def _load(self, policy: Policy) -> list[Prompt]:
        if self._prompts is None:
            if not self._parts:
                raise ConfigError(f"task {self._config.name!r} has no data.held_out to evaluate on.")
            self._prompts = [prompt for part in self._parts for prompt in self._load_part(part, policy)]
        return self._prompts

    def _load_part(self, part: PartConfig, policy: Policy) -> list[Prompt]:
        source = PromptSource.of_part(self._plugins, part, "held_out", self._environment, policy.prompt_length)
        number = min(len(source), self._limit or len(source))
        found = [source.prompt(index) for index in range(number)]
        prompts = [prompt for prompt in found if prompt is not None]
        self.num_set_aside += number - len(prompts)
        if not prompts:
            of_part = f", part {part.name!r}," if part.name else ""
            why = next(iter(source.set_aside)).reason
            raise ConfigError(f"no held-out row of task {self._config.name!r}{of_part} can be read. The first: {why}")
        return prompts


def _without_media(group: RolloutGroup) -> RolloutGroup:
    """A group as another process gets it, which has the prompt itself."""
    return replace(group, prompt=replace(group.prompt, messages=[]), rollouts=without_observations(group.rollouts))


def _mean(values: torch.Tensor) -> float:
    return float(values.nanmean()) if bool((~values.isnan()).any()) else float("nan")


def _inside(part: PartConfig, name: str) -> str:
    """A name of a part among those of a mixture, as `RewardRunner` has them too."""
    return f"{part.name}/{name}" if part.name else name
