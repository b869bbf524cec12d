"""The optimiser of a stage, and its learning rate at each step."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import nn

from mmrl_core.config import StageConfig
from mmrl_core.errors import ConfigError

MAX_SHOWN = 8  # parameters that an error names


def make_optimizer(module: nn.Module, stage: StageConfig) -> torch.optim.Optimizer:
    """AdamW over the trained parameters; weight decay spares biases and norms (one-dimensional parameters).

    Parameters of one factor of `lr_scale` and one weight decay form a group; those without a factor come first, then in
    the order of `lr_scale`.

    Args:
        module: without a wrapper around it, which would change the names of parameters.

    Raises:
        ConfigError: an expression of `lr_scale` is the first to be found in no trained parameter's name.
    """
    settings = stage.optimizer
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    patterns = [None, *settings.lr_scale]
    members: dict[tuple[str | None, bool], list[nn.Parameter]] = {(p, d): [] for p in patterns for d in (True, False)}
    for name, parameter in named:
        pattern = next((pattern for pattern in settings.lr_scale if re.search(pattern, name)), None)
        members[pattern, parameter.dim() > 1].append(parameter)
    for pattern in settings.lr_scale:
        if not members[pattern, True] and not members[pattern, False]:
            names = ", ".join(name for name, _ in named[:MAX_SHOWN])
            raise ConfigError(
                f"optimizer.lr_scale: {pattern!r} applies to no trained parameter; the first expression that is found "
                f"in a name counts. Parameters: {names}{', ...' if len(named) > MAX_SHOWN else ''}."
            )
    groups: list[dict[str, Any]] = [
        {
            "params": parameters,
            "weight_decay": settings.weight_decay if decays else 0.0,
            "lr_scale": 1.0 if pattern is None else settings.lr_scale[pattern],
        }
        for (pattern, decays), parameters in members.items()
        if parameters
    ]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True)


def learning_rate(stage: StageConfig, step: int, total: int) -> float:
    """Learning rate of a step (0 for the first): linear warm-up, then the schedule down to final_lr_ratio."""
    settings = stage.optimizer
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(total - settings.warmup_steps, 1)
    share = {"constant": 1.0, "linear": 1.0 - progress, "cosine": 0.5 * (1.0 + math.cos(math.pi * progress))}
    falling = share[settings.schedule]
    return settings.lr * (settings.final_lr_ratio + (1.0 - settings.final_lr_ratio) * falling)


def set_learning_rate(optimizer: torch.optim.Optimizer, stage: StageConfig, step: int, total: int) -> None:
    """Give each group the learning rate of a step, times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(stage, step, total) * group["lr_scale"]
