"""The optimiser of a stage, and its learning rate at each step."""

from __future__ import annotations

import math

import torch
from torch import nn

from mmrl_core.config import StageConfig


def make_optimizer(module: nn.Module, stage: StageConfig) -> torch.optim.Optimizer:
    """AdamW over the trained parameters; weight decay spares biases and norms (one-dimensional parameters)."""
    settings = stage.optimizer
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
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
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(stage, step, total)
