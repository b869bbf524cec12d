"""`mmrl train --dry-run`: everything that can be refused before the first step, without training."""

from __future__ import annotations

from mmrl_core.config import RunConfig
from mmrl_core.errors import ConfigError, TaskDataError
from mmrl_core.metrics import check_trackers
from mmrl_core.model_path import starting_model
from mmrl_core.plugins import load_plugins
from mmrl_core.rewards import RewardRunner
from mmrl_core.tasks import PromptSource
from mmrl_core.yaml_config import check_components

PROMPTS_ENCODED = 8
"""Training prompts encoded by a dry run, to find over-long ones and show their lengths."""


def check_run(config: RunConfig) -> list[str]:
    """Check a run as `mmrl train` would start it: components, plugins, data, rewards, model, prompt lengths.

    Returns:
        Lines that say what will be done.

    Raises:
        MMRLError: what would stop the run.
    """
    from accelerate import Accelerator

    plugins = load_plugins()
    check_components(config, plugins)
    check_trackers(config.log.trackers)
    plugins.hooks(config.plugins).hook.mmrl_configure(config=config)
    if not config.stages:
        raise ConfigError(f"task {config.name!r} has no stages, so there is nothing to train. Use a recipe or a demo.")
    policy_class = plugins.registry.get("policy", config.model.policy).load()
    path = starting_model(config, plugins)
    policy = policy_class(config.model, path=path, device=Accelerator().device)
    parameters = list(policy.module.parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    lines = [
        f"model {path}: {sum(p.numel() for p in parameters):,} parameters, {trained:,} trained",
        *policy.describe(),
    ]
    for stage in config.stages:
        if stage.data.train is None:
            raise ConfigError(f"stage {stage.name or stage.kind!r} has no data.train, so there is nothing to train on.")
        source = PromptSource(plugins, stage.data.train, stage.prompt, stage.data, name="train")
        if stage.kind == "grpo" and not stage.rewards:
            raise ConfigError(f"stage {stage.name or stage.kind!r} has no rewards, so there is nothing to learn from.")
        RewardRunner(plugins, stage.rewards)
        prompts = [source.prompt(index) for index in range(min(PROMPTS_ENCODED, len(source)))]
        sound = [prompt for prompt in prompts if prompt is not None]
        if not sound:
            raise TaskDataError(
                f"none of the first {len(prompts)} rows can be read:\n{source.set_aside.describe(len(prompts))}"
            )
        lengths = [length for length in map(policy.prompt_length, sound) if length is not None]
        steps = f"{stage.steps} steps" if stage.steps else f"{stage.epochs:g} epochs"
        group = f" x {stage.group_size} completions" if stage.kind == "grpo" else ""
        lines.append(
            f"stage {stage.name or stage.kind}: {steps} of {stage.prompts_per_step} prompts{group}, {len(source)} rows"
            + (
                f", {len(prompts) - len(sound)} of the first {len(prompts)} set aside"
                if len(sound) < len(prompts)
                else ""
            )
            + (f", prompts of {min(lengths)} to {max(lengths)} tokens" if lengths else "")
        )
        if len(sound) < len(prompts):
            lines.append(source.set_aside.describe(len(prompts)))
    return lines
