"""What hooks and stages return, checked: a wrong type, shape or value is a `HookResultError` that says whose it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmrl_core.errors import HookResultError
from mmrl_core.types import LossInputs, RewardView, RolloutGroup, Scores


def check_scores(scores: Any, groups: Sequence[RolloutGroup], source: str) -> None:
    """Raises HookResultError unless a hook scored each rollout of the groups."""
    if not isinstance(scores, Scores):
        raise HookResultError(f"{source} returned {type(scores).__name__}; expected Scores.")
    expected = (sum(len(group.rollouts) for group in groups),)
    for name, values in {"totals": scores.totals, **scores.components}.items():
        if tuple(values.shape) != expected:
            raise HookResultError(f"{source} returned {name!r} of shape {tuple(values.shape)}; expected {expected}.")
    for name, parts in {**scores.token_rewards, **scores.step_rewards}.items():
        if len(parts) != expected[0]:
            raise HookResultError(f"{source} returned {name!r} for {len(parts)} rollouts; expected {expected[0]}.")


def check_groups(result: Any, source: str) -> None:
    """Raises HookResultError unless a hook returned groups of rollouts, none empty, and scores of just these."""
    if not isinstance(result, tuple) or len(result) != 2:
        raise HookResultError(f"{source} returned {type(result).__name__}; expected a tuple of groups and Scores.")
    groups, scores = result
    if not groups or not all(group.rollouts for group in groups):
        raise HookResultError(f"{source} returned {'a group without rollouts' if groups else 'no groups'}.")
    check_scores(scores, groups, source)


def check_advantages(advantages: Any, view: RewardView, source: str) -> None:
    """Raises HookResultError unless a hook or stage returned a floating [B] or [B, T] tensor without infinities."""
    allowed = (tuple(view.rewards.shape), tuple(view.mask.shape))
    if not isinstance(advantages, Tensor) or tuple(advantages.shape) not in allowed:
        got = tuple(advantages.shape) if isinstance(advantages, Tensor) else type(advantages).__name__
        raise HookResultError(f"{source} returned {got}; expected a tensor {allowed[0]} or {allowed[1]}.")
    if not advantages.is_floating_point() or not bool(torch.isfinite(advantages).all()):
        raise HookResultError(f"{source} returned numbers that are not floating or not finite.")


def check_choices(chosen: Any, groups: Sequence[RolloutGroup], source: str) -> None:
    """Raises HookResultError unless a hook chose for each group whether it is trained on."""
    if not isinstance(chosen, Sequence) or len(chosen) != len(groups):
        got = f"{len(chosen)} choices" if isinstance(chosen, Sequence) else type(chosen).__name__
        raise HookResultError(f"{source} returned {got} for {len(groups)} groups.")


def check_loss(result: Any, source: str) -> None:
    """Raises HookResultError unless a hook returned a scalar loss with gradient, and metrics."""
    if not isinstance(result, tuple) or len(result) != 2 or result[0].dim() != 0 or not result[0].requires_grad:
        raise HookResultError(f"{source} must return a scalar that has a gradient, and metrics.")


def check_token_losses(result: Any, inputs: LossInputs, source: str) -> None:
    """Raises HookResultError unless a surrogate returned token losses [B, T] and a mapping of metrics."""
    expected = tuple(inputs.logprobs.shape)
    if not isinstance(result, tuple) or len(result) != 2 or not hasattr(result[1], "items"):
        raise HookResultError(f"{source} must return token losses {expected} and a mapping of metrics.")
    losses = result[0]
    if not isinstance(losses, Tensor) or tuple(losses.shape) != expected:
        got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise HookResultError(f"{source} returned losses {got}; expected {expected}, one for each token.")
