"""The policy of a checkpoint or a model outside of training, and its held-out metrics."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mmrl_core.checkpoint import find_checkpoint
from mmrl_core.config import RunConfig, check_components
from mmrl_core.evaluation import Evaluator, Log
from mmrl_core.plugins import Plugins, load_plugins
from mmrl_core.policy import make_policy
from mmrl_core.runs import peak_memory_mib, weights_mib

if TYPE_CHECKING:
    from mmrl_core.policy import Policy


def evaluate_checkpoint(
    config: RunConfig, checkpoint: Path | None, limit: int | None = None, *, log_all: Log | None = None
) -> dict[str, float]:
    """Metrics of a checkpoint of a run, or of a model folder in transformers' format, and the memory that it took.

    `memory/weights_mib` is what the model's parameters and buffers occupy, `memory/peak_mib` the most that was in use:
    by torch on a GPU, else by the whole process.

    Args:
        checkpoint: folder of a run, a checkpoint, a model or an adapter, or a GGUF file; None: the config's model.
        limit: evaluate only the first rows.
        log_all: see `Evaluator.evaluate`.

    Raises:
        CheckpointError: there is no whole checkpoint.
        ConfigError: the config names what is not installed, or options that it does not take.
    """
    plugins = load_plugins()
    policy = open_policy(config, checkpoint, plugins)
    try:
        policy.check_start(config.eval.max_tokens or config.rollout.max_tokens)
        metrics = Evaluator(config, plugins, limit=limit).evaluate(policy, log_all=log_all)
        peak = peak_memory_mib(next(policy.module.parameters()).device)
        return metrics | {"memory/weights_mib": weights_mib(policy.module), "memory/peak_mib": peak}
    finally:
        policy.close()


def open_policy(config: RunConfig, checkpoint: Path | None, plugins: Plugins) -> Policy:
    """The policy of a checkpoint, for `evaluate_checkpoint`, which says what is raised; close it after use."""
    from accelerate import Accelerator

    from mmrl_core.starting_model import starting_model

    check_components(config, plugins)
    entry = plugins.registry.get("policy", config.model.policy.name)
    weights = None if checkpoint is None else _weights(checkpoint)
    needs_base = weights is None or entry.load().needs_base(weights)
    path = starting_model(config, plugins.registry) if weights is None or needs_base else weights
    policy = make_policy(config, plugins.registry, path=path, device=Accelerator().device)
    if weights is not None and needs_base:
        policy.load(weights)
    return policy


def _weights(path: Path) -> Path:
    """The folder of the weights that a run, a checkpoint, a model or an adapter stands for."""
    is_model = path.is_file() or any((path / name).is_file() for name in ("config.json", "adapter_config.json"))
    return path if is_model else find_checkpoint(path) / "model"
