"""`mmrl train --dry-run`: everything that can be refused before the first step, without training."""

from __future__ import annotations

from functools import partial

from mmrl_core.cli.memory_report import memory_lines
from mmrl_core.config import (
    RunConfig,
    StageConfig,
    check_components,
    check_trainable,
    longest_completion,
    parts_of,
)
from mmrl_core.conversation import make_environment
from mmrl_core.data import training_mixture
from mmrl_core.errors import ConfigError
from mmrl_core.plugins import Plugins, load_plugins
from mmrl_core.policy import Policy, make_policy
from mmrl_core.runs import check_trackers
from mmrl_core.starting_model import starting_model
from mmrl_core.testing import check_task

PROMPTS_ENCODED = 8
"""Training prompts of a task encoded by a dry run, to find over-long ones and show their lengths."""


def check_run(config: RunConfig) -> list[str]:
    """Check a run as `mmrl train` would start it: what `mmrl check` looks at, then the model and the prompts' lengths.

    Returns:
        Lines that say what was checked, what will be done, and which rows are set aside.

    Raises:
        MMRLError: what would stop the run, or make its rewards wrong; every finding on a line.
    """
    from accelerate import Accelerator

    check_trainable(config)
    plugins = load_plugins()
    check_components(config, plugins)
    policy_class = plugins.registry.get("policy", config.model.policy.name).load()
    policy_class.check_trainable(config.model.policy.options)
    check_trackers(config.log.trackers)
    plugins.hooks(config.plugins).hook.mmrl_configure(config=config)
    findings = check_task(config, plugins)
    wrong = [finding for finding in findings if not finding.ok]
    if any(not finding.tolerable for finding in wrong):
        raise ConfigError("\n".join(finding.what for finding in wrong))
    path = starting_model(config, plugins.registry, progress=partial(print, flush=True))
    print(*memory_lines(config, plugins, path), sep="\n", flush=True)  # before the weights, which may be too large here
    policy = make_policy(config, plugins.registry, path=path, device=Accelerator().device)
    try:
        policy.check_start(longest_completion(config))
        parameters = list(policy.module.parameters())
        trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        lines = [
            f"model {path}: {sum(p.numel() for p in parameters):,} parameters, {trained:,} trained",
            *policy.describe(),
        ]
        for stage in config.stages:
            lines += _stage_lines(stage, plugins, policy)
    finally:
        policy.close()
    checked = [f"{'doubtful' if finding.doubtful else 'checked'}: {finding.what}" for finding in findings if finding.ok]
    return [*checked, *lines, *(f"set aside: {finding.what}" for finding in wrong), "nothing was trained or written"]


def _stage_lines(stage: StageConfig, plugins: Plugins, policy: Policy) -> list[str]:
    """What a stage will do, and of a mixture what each part has."""
    parts = parts_of(stage)
    mixture = training_mixture(plugins, parts, make_environment(stage.rollout, parts, plugins), policy.prompt_length)
    told: list[str] = []
    for source in mixture.sources:
        found = [source.prompt(index) for index in range(min(PROMPTS_ENCODED, len(source)))]
        lengths = [policy.prompt_length(prompt) for prompt in found if prompt is not None]
        tokens = [length for length in lengths if length is not None]
        told.append(f"{len(source)} rows" + (f", prompts of {min(tokens)} to {max(tokens)} tokens" if tokens else ""))
    steps = f"{stage.steps} steps" if stage.steps else f"{stage.epochs:g} epochs"
    group = f" x {stage.group_size} completions" if stage.kind == "grpo" else ""
    method = f" ({stage.algorithm.method})" if stage.algorithm.method else ""
    line = f"stage {stage.name or stage.kind}{method}: {steps} of {stage.prompts_per_step} prompts{group}, "
    if not stage.mixture:
        return [line + told[0]]
    shares = [part.weight / sum(mixture.weights) for part in parts]
    of_parts = zip(parts, shares, told, strict=True)
    return [
        f"{line}{len(mixture)} rows",
        *(f"  part {part.name}: {share:.1%} of the prompts, {what}" for part, share, what in of_parts),
    ]
