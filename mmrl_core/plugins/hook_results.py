"""What hooks, stages, losses, strategies, metrics and policies return, checked before a step reads it.

A wrong type, shape or value is a `HookResultError` that says whose it is. Nothing is broadcast: a loss of one number
where one for each token is expected would give a wrong gradient, and no error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from mmrl_core.errors import HookResultError
from mmrl_core.loss_inputs import LossInputs, TokenStats
from mmrl_core.types import Batch, Prompt, RewardView, Rollout, RolloutGroup, Row, Scores


def _kind(value: Any) -> str:
    """A value in few words, for a message: the shape of a tensor, the length of a list, the name of its type."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return "None" if value is None else f"a {type(value).__name__}"


def _is_listed(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


# Prompts and rollouts


def check_prompts(prompts: Any, source: str) -> None:
    """Raises HookResultError unless a hook returned prompts, at least one."""
    if not _is_listed(prompts) or not all(isinstance(prompt, Prompt) for prompt in prompts):
        raise HookResultError(f"{source} returned {_kind(prompts)}; expected a list of Prompt.")
    if not prompts:
        raise HookResultError(f"{source} returned no prompt; a step needs one.")


def check_rollouts(groups: Any, prompts: Sequence[Prompt], source: str) -> None:
    """Raises HookResultError unless a strategy or hook returned a group of rollouts for each prompt, none empty."""
    if not _is_listed(groups) or not all(isinstance(group, RolloutGroup) for group in groups):
        raise HookResultError(f"{source} returned {_kind(groups)}; expected a list of RolloutGroup.")
    if len(groups) != len(prompts):
        raise HookResultError(f"{source} returned {len(groups)} groups for {len(prompts)} prompts.")
    for group in groups:
        sound = group.rollouts and all(isinstance(item, Rollout) and item.rows for item in group.rollouts)
        if not sound:
            raise HookResultError(
                f"{source} returned a group without rollouts, or a rollout without rows, for prompt {group.prompt.id}."
            )


def check_groups(result: Any, source: str) -> None:
    """Raises HookResultError unless a hook returned groups of rollouts, none empty, and scores of just these."""
    if not isinstance(result, tuple) or len(result) != 2:
        raise HookResultError(f"{source} returned {_kind(result)}; expected a tuple of groups and Scores.")
    groups, scores = result
    if not _is_listed(groups) or not all(isinstance(group, RolloutGroup) for group in groups):
        raise HookResultError(f"{source} returned {_kind(groups)} as groups; expected a list of RolloutGroup.")
    if not groups or not all(group.rollouts for group in groups):
        raise HookResultError(f"{source} returned {'a group without rollouts' if groups else 'no groups'}.")
    check_scores(scores, groups, source)


# Scores and advantages


def check_scores(scores: Any, groups: Sequence[RolloutGroup], source: str) -> None:
    """Raises HookResultError unless a hook scored each rollout of the groups: float [N], NaN or finite."""
    if not isinstance(scores, Scores):
        raise HookResultError(f"{source} returned {_kind(scores)}; expected Scores.")
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    expected = (len(rollouts),)
    for name, values in {"totals": scores.totals, **scores.components}.items():
        if not isinstance(values, Tensor) or tuple(values.shape) != expected:
            got = f"of shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"as {_kind(values)}"
            raise HookResultError(f"{source} returned {name!r} {got}; expected {expected}.")
        if not values.is_floating_point() or bool(values.isinf().any()):
            raise HookResultError(f"{source} returned {name!r} with numbers that are not floating, or infinite.")
    sizes = {"token_rewards": [r.num_actions for r in rollouts], "step_rewards": [len(r.rows) for r in rollouts]}
    for name, parts in {**scores.token_rewards, **scores.step_rewards}.items():
        if len(parts) != expected[0]:
            raise HookResultError(f"{source} returned {name!r} for {len(parts)} rollouts; expected {expected[0]}.")
    for field, of_rollouts in sizes.items():
        for name, parts in getattr(scores, field).items():
            if (found := [len(part) for part in parts]) != of_rollouts:
                at = next(n for n, size in enumerate(of_rollouts) if found[n] != size)
                raise HookResultError(
                    f"{source} returned {name!r} with {found[at]} numbers for rollout {at}; expected {of_rollouts[at]}."
                )


def check_choices(chosen: Any, groups: Sequence[RolloutGroup], source: str) -> None:
    """Raises HookResultError unless a hook chose for each group, by a bool, whether it is trained on."""
    if not _is_listed(chosen) or len(chosen) != len(groups):
        got = f"{len(chosen)} choices" if _is_listed(chosen) else _kind(chosen)
        raise HookResultError(f"{source} returned {got} for {len(groups)} groups.")
    for choice in chosen:  # indices of the groups to keep would be taken for choices
        if not isinstance(choice, bool) and str(getattr(choice, "dtype", "")) not in ("bool", "torch.bool"):
            raise HookResultError(f"{source} returned {_kind(choice)} for a group; expected True or False.")


def check_advantages(advantages: Any, view: RewardView, source: str) -> None:
    """Raises HookResultError unless a hook or stage returned a floating [B] or [B, T] tensor without infinities."""
    allowed = (tuple(view.rewards.shape), tuple(view.mask.shape))
    if not isinstance(advantages, Tensor) or tuple(advantages.shape) not in allowed:
        got = tuple(advantages.shape) if isinstance(advantages, Tensor) else _kind(advantages)
        raise HookResultError(f"{source} returned {got}; expected a tensor {allowed[0]} or {allowed[1]}.")
    if not advantages.is_floating_point() or not bool(torch.isfinite(advantages).all()):
        raise HookResultError(f"{source} returned numbers that are not floating or not finite.")
    if advantages.requires_grad:
        raise HookResultError(f"{source} returned advantages with a gradient; detach them.")


def check_batch(batch: Any, source: str) -> None:
    """Raises HookResultError unless a hook returned a batch with a row, all of whose tensors fit its rows."""
    if not isinstance(batch, Batch):
        raise HookResultError(f"{source} returned {_kind(batch)}; expected a Batch.")
    if not len(batch):
        raise HookResultError(f"{source} returned a batch without rows; an update needs one.")
    shape = tuple(batch.mask.shape)
    named: dict[str, Tensor | None] = {"advantages": batch.advantages, **batch.masks, **batch.columns}
    named |= {"old_logprobs": batch.old_logprobs, "sampler_logprobs": batch.sampler_logprobs, **batch.frozen_logprobs}
    if shape[0] != len(batch):
        raise HookResultError(f"{source} returned a mask {shape} for {len(batch)} rows.")
    for name, values in named.items():
        if values is not None and (not isinstance(values, Tensor) or tuple(values.shape) != shape):
            raise HookResultError(f"{source} returned {name!r} as {_kind(values)}; expected {shape}.")
    if not bool(torch.isfinite(batch.advantages).all()):
        raise HookResultError(f"{source} returned advantages that are not finite.")


# Logprobs and losses


def check_token_stats(stats: Any, rows: Sequence[Row], source: str) -> None:
    """Raises HookResultError unless a policy returned logprobs of the rows [B, T], T the most actions of a row."""
    expected = (len(rows), max(row.num_actions for row in rows))
    if not isinstance(stats, TokenStats):
        raise HookResultError(f"{source} returned {_kind(stats)}; expected TokenStats.")
    for name, values in {"logprobs": stats.logprobs, "entropy": stats.entropy}.items():
        if values is None and name == "entropy":
            continue
        if not isinstance(values, Tensor) or tuple(values.shape) != expected or not values.is_floating_point():
            raise HookResultError(f"{source} returned {name} as {_kind(values)}; expected floating {expected}.")
    for name, value in stats.penalties.items():
        if not isinstance(value, Tensor) or value.dim() != 0 or not value.is_floating_point():
            raise HookResultError(f"{source} returned the penalty {name} as {_kind(value)}; expected a scalar.")


def check_loss(result: Any, source: str) -> None:
    """Raises HookResultError unless a hook returned a scalar loss with gradient, and metrics."""
    loss = _loss_and_metrics(result, "a scalar that has a gradient", source)
    if not isinstance(loss, Tensor) or loss.dim() != 0 or not loss.requires_grad:
        without = " without a gradient" if isinstance(loss, Tensor) and not loss.requires_grad else ""
        raise HookResultError(f"{source} returned the loss {_kind(loss)}{without}; expected a scalar with a gradient.")


def check_score_loss(result: Any, source: str) -> None:
    """Raises HookResultError unless a loss of scores returned a finite scalar with a gradient, and metrics."""
    loss = _loss_and_metrics(result, "a scalar computed from inputs.scores", source)
    if not isinstance(loss, Tensor) or loss.dim() != 0 or not loss.requires_grad:
        without = " without a gradient" if isinstance(loss, Tensor) and not loss.requires_grad else ""
        raise HookResultError(
            f"{source} returned the loss {_kind(loss)}{without}; expected a scalar computed from inputs.scores."
        )
    if not bool(torch.isfinite(loss)):
        raise HookResultError(f"{source} returned the loss {float(loss.detach())}, which is no finite number.")


def check_token_losses(result: Any, inputs: LossInputs, source: str, unit: str = "token") -> None:
    """Raises HookResultError unless a surrogate returned losses of tokens [B, T] or of rows [B], and single numbers."""
    expected = tuple(inputs.logprobs.shape)[: 2 if unit == "token" else 1]
    losses = _loss_and_metrics(result, f"{unit} losses {expected}", source)
    if not isinstance(losses, Tensor) or tuple(losses.shape) != expected:
        got = tuple(losses.shape) if isinstance(losses, Tensor) else _kind(losses)
        raise HookResultError(f"{source} returned losses {got}; expected {expected}, one for each {unit}.")
    if not losses.is_floating_point():
        raise HookResultError(f"{source} returned losses of {losses.dtype}; expected floating numbers.")
    if inputs.logprobs.requires_grad and torch.is_grad_enabled() and not losses.requires_grad:
        raise HookResultError(
            f"{source} returned losses without a gradient, so that nothing would be learnt: compute them from "
            "inputs.logprobs, and detach nothing but ratios and weights."
        )


def _loss_and_metrics(result: Any, expected: str, source: str) -> Any:
    """The loss of a pair (loss, metrics); raises HookResultError if it is none, or a metric is no single number."""
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], Mapping):
        got = f"a pair with {_kind(result[1])}" if isinstance(result, tuple) and len(result) == 2 else _kind(result)
        raise HookResultError(
            f"{source} returned {got}; expected a pair: {expected}, and a mapping of metrics, which may be empty."
        )
    for name, value in result[1].items():
        single = value.numel() == 1 if isinstance(value, Tensor) else isinstance(value, Real)
        if not isinstance(name, str) or not single:
            raise HookResultError(f"{source} returned the metric {name!r} as {_kind(value)}; expected one number.")
    return result[0]


# Evaluation


def check_measured(measured: Any, source: str) -> None:
    """Raises HookResultError unless a benchmark metric returned a mapping of names to single numbers."""
    if not isinstance(measured, Mapping):
        raise HookResultError(f"{source} returned {_kind(measured)}; expected a mapping {{name: number}}.")
    for name, value in measured.items():
        number = value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value
        if not isinstance(name, str) or not isinstance(number, Real):
            raise HookResultError(f"{source} returned {name!r} as {_kind(value)}; expected one number.")
