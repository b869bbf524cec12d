"""Held-out evaluation: the task's rewards and the benchmark's own metrics, greedy and at temperatures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mmrl_core.checkpoint import find_checkpoint
from mmrl_core.config import RunConfig
from mmrl_core.environment import make_environment
from mmrl_core.errors import ConfigError
from mmrl_core.plugins import Plugins, call_with_options, load_plugins
from mmrl_core.policy import make_policy
from mmrl_core.rewards import RewardRunner
from mmrl_core.tasks import PromptSource
from mmrl_core.types import Prompt, Rollout, RolloutGroup, Sampling, Scores
from mmrl_core.yaml_config import check_components

if TYPE_CHECKING:
    from mmrl_core.policy import Policy

ROLLOUTS_SHOWN = 12
"""Held-out prompts whose rollouts are written, the same at each evaluation."""

EVALUATION_SEED = 20_260_101
"""Sampling at a temperature draws the same randomness at each evaluation."""


class Evaluator:
    """Evaluates a policy on a task's held-out rows, as often as asked; the rows are read once."""

    def __init__(self, config: RunConfig, plugins: Plugins, *, limit: int | None = None) -> None:
        self._config = config
        self._plugins = plugins
        self._limit = limit or config.eval.limit
        self._prompts: list[Prompt] | None = None
        self._environment = make_environment(config.rollout, config.data, plugins) if self.enabled else None
        self.num_set_aside = 0

    @property
    def enabled(self) -> bool:
        return self._config.data.held_out is not None

    def evaluate(
        self,
        policy: Policy,
        *,
        log: Callable[[Sequence[RolloutGroup], Scores, float], Any] | None = None,
    ) -> dict[str, float]:
        """Metrics of the held-out rows.

        Args:
            policy: evaluated with the weights it has.
            log: given the first groups and their scores at each temperature.

        Returns:
            `greedy/reward/total`, `greedy/reward/<name>`, `greedy/<metric>`, `greedy/completion_tokens`, and the same
            under `t<temperature>`; `num_prompts`, `set_aside`. Unscored completions are left out of reward means.

        Raises:
            ConfigError: the task has no held-out rows.
        """
        prompts = self._load()
        config = self._config
        runner = RewardRunner(self._plugins, config.rewards)
        strategy = config.rollout.strategy
        rollout = self._plugins.registry.get("strategy", strategy.name).load()
        options = dict(strategy.options)
        if self._environment is not None:
            options["environment"] = self._environment
        metrics: dict[str, float] = {}
        for temperature in config.eval.temperatures:
            groups: list[RolloutGroup] = []
            sampling = Sampling(
                max_tokens=config.eval.max_tokens or config.rollout.max_tokens,
                temperature=temperature,
                seed=EVALUATION_SEED,
            )
            for start in range(0, len(prompts), config.eval.batch_size):
                part = prompts[start : start + config.eval.batch_size]
                groups += call_with_options(rollout, policy, part, 1, sampling, options=options, name=strategy.name)
            scores = runner.score(groups)
            prefix = "greedy" if temperature == 0 else f"t{temperature:g}"
            measured = {"reward/total": _mean(scores.totals)} if len(scores.components) > 1 else {}
            measured |= {f"reward/{name}": _mean(values) for name, values in scores.components.items()}
            measured |= self._benchmark_metrics(groups)
            measured |= mean_outcomes([group.rollouts[0] for group in groups])
            measured["completion_tokens"] = sum(g.rollouts[0].num_actions for g in groups) / len(groups)
            metrics |= {f"{prefix}/{name}": value for name, value in measured.items()}
            if log is not None:
                log(groups[:ROLLOUTS_SHOWN], _first(scores, ROLLOUTS_SHOWN), temperature)
        if self._environment is not None:
            self._environment.close()
        return {**metrics, "num_prompts": float(len(prompts)), "set_aside": float(self.num_set_aside)}

    def _benchmark_metrics(self, groups: Sequence[RolloutGroup]) -> dict[str, float]:
        completions = [group.rollouts[0].completion for group in groups]
        samples = [{**group.prompt.sample, **group.rollouts[0].outcome} for group in groups]
        metrics: dict[str, float] = {}
        for metric in self._config.eval.metrics:
            function = self._plugins.registry.get("metric", metric.name).load()
            metrics |= call_with_options(function, completions, samples, options=metric.options, name=metric.name)
        return metrics

    def _load(self) -> list[Prompt]:
        if self._prompts is None:
            held_out = self._config.data.held_out
            if held_out is None:
                raise ConfigError(f"task {self._config.name!r} has no data.held_out to evaluate on.")
            source = PromptSource(
                self._plugins,
                held_out,
                self._config.prompt,
                self._config.data,
                name="held_out",
                environment=self._environment,
            )
            number = min(len(source), self._limit or len(source))
            found = [source.prompt(index) for index in range(number)]
            self._prompts = [prompt for prompt in found if prompt is not None]
            self.num_set_aside = number - len(self._prompts)
            if not self._prompts:
                raise ConfigError(f"no held-out row of task {self._config.name!r} can be read.")
        return self._prompts


def evaluate_checkpoint(config: RunConfig, checkpoint: Path, limit: int | None = None) -> dict[str, float]:
    """Metrics of a checkpoint of a run, or of a model folder in transformers' format.

    Args:
        checkpoint: run folder, checkpoint folder, or model folder.
        limit: evaluate only the first rows.

    Raises:
        CheckpointError: there is no whole checkpoint.
        ConfigError: the config names what is not installed, or options that it does not take.
    """
    from accelerate import Accelerator

    from mmrl_core.model_path import starting_model

    plugins = load_plugins()
    device = Accelerator().device
    check_components(config, plugins)
    plain_model = (checkpoint / "config.json").is_file()
    weights = checkpoint if plain_model else find_checkpoint(checkpoint) / "model"
    policy_class = plugins.registry.get("policy", config.model.policy.name).load()
    path = starting_model(config, plugins) if policy_class.needs_base(weights) else weights
    policy = make_policy(config, plugins, path=path, device=device)
    try:
        if path is not weights:
            policy.load(weights)
        return Evaluator(config, plugins, limit=limit).evaluate(policy)
    finally:
        policy.close()


def mean_outcomes(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Means of the numbers among what happened in the rollouts, `outcome/<name>`."""
    values: dict[str, list[float]] = {}
    for rollout in rollouts:
        for name, value in rollout.outcome.items():
            if isinstance(value, int | float):
                values.setdefault(f"outcome/{name}", []).append(float(value))
    return {name: sum(numbers) / len(numbers) for name, numbers in values.items()}


def _mean(values: torch.Tensor) -> float:
    return float(values.nanmean()) if bool((~values.isnan()).any()) else float("nan")


def _first(scores: Scores, count: int) -> Scores:
    return Scores(
        totals=scores.totals[:count],
        components={name: values[:count] for name, values in scores.components.items()},
        weights=scores.weights,
    )
