"""Makers of what stages, losses and hooks read, for tests: say what the test is about and leave the rest out.

Each returns the real type of `mmrl_core.types`. What is left out gets the plainest value that keeps the promises of the
type. Lists of numbers become float32 tensors unless `dtype` says otherwise; float tensors are taken as they are, with
their gradient. Anything else is a TypeError, and sizes that disagree are a ValueError, before the test goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmrl_core.loss_inputs import BatchTotals, LossInputs
from mmrl_core.types import Prompt, RewardView, Rollout, RolloutGroup, Row, Scores

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Floats = Tensor | Sequence[Any]  # numbers, nested as the shape says
    Ints = Tensor | Sequence[int]


def make_reward_view(
    rewards: Floats | None = None,
    group_ids: Ints | None = None,
    *,
    components: Mapping[str, Floats] | None = None,
    weights: Mapping[str, float] | None = None,
    token_rewards: Floats | None = None,
    trajectory_ids: Ints | None = None,
    mask: Tensor | Sequence[Sequence[bool]] | None = None,
    dtype: torch.dtype | None = None,
) -> RewardView:
    """What an advantage stage reads, for B rows.

    Args:
        rewards: [B], NaN = unscored. Default: the weighted sum of the components.
        group_ids: [B]. Default: all rows are of one group.
        components: name -> [B]. Default: none.
        weights: name -> weight in the total. Default: 1.0 for each component.
        token_rewards: [B, T]. Default: each reward on the last trained token of its trajectory, 0 where unscored.
        trajectory_ids: [B]. Default: each row is a trajectory of its own.
        mask: bool [B, T]. Default: one trained token in each row.
        dtype: of lists of numbers. Default: float32.

    Raises:
        TypeError: something is neither numbers nor a float tensor; or neither rewards nor components are given.
        ValueError: sizes disagree; the message names what has which.

    >>> make_reward_view([1.0, 0.0, 0.0], [7, 7, 9]).token_rewards
    tensor([[1.],
            [0.],
            [0.]])
    """
    import torch

    columns = {name: _floats(f"components[{name!r}]", values, dtype) for name, values in (components or {}).items()}
    scale = dict.fromkeys(columns, 1.0) if weights is None else dict(weights)
    totals = _totals(rewards, columns, scale, dtype, "rewards")
    num_rows = len(totals)
    groups = _ints("group_ids", [0] * num_rows if group_ids is None else group_ids)
    trajectories = _ints("trajectory_ids", range(num_rows) if trajectory_ids is None else trajectory_ids)
    trained = _mask([[True]] * num_rows if mask is None else mask)
    vectors = {"rewards": totals, "group_ids": groups, "trajectory_ids": trajectories}
    vectors |= {f"components[{name!r}]": values for name, values in columns.items()}
    _check_shapes((num_rows,), vectors)
    if len(trained) != num_rows:
        raise ValueError(f"mask has {len(trained)} rows, rewards have {num_rows}")
    if token_rewards is None:
        placed = torch.zeros(trained.shape, dtype=totals.dtype)
        for trajectory in trajectories.unique():
            tokens = (trained & (trajectories == trajectory)[:, None]).nonzero()
            if len(tokens):
                row, token = tokens[-1].tolist()
                placed[row, token] = totals[row].nan_to_num(0.0)
    else:
        placed = _floats("token_rewards", token_rewards, dtype)
        _check_shapes(tuple(trained.shape), {"mask": trained, "token_rewards": placed})
    return RewardView(totals, columns, scale, placed, groups, trajectories, trained)


def make_loss_inputs(
    logprobs: Floats,
    *,
    old_logprobs: Floats | None = None,
    advantages: Floats | None = None,
    mask: Tensor | Sequence[Sequence[bool]] | None = None,
    totals: BatchTotals | None = None,
    sampler_logprobs: Floats | None = None,
    ref_logprobs: Floats | None = None,
    entropy: Floats | None = None,
    extras: Mapping[str, Floats] | None = None,
    rewards: Floats | None = None,
    dtype: torch.dtype | None = None,
) -> LossInputs:
    """What a policy loss reads, for B rows of T tokens.

    Args:
        logprobs: [B, T]. A tensor that requires its gradient keeps it.
        old_logprobs: [B, T]. Default: `logprobs` without gradient, as on-policy.
        advantages: [B, T], or [B] for rows whose trained tokens all have the same. Default: 0.
        mask: bool [B, T]. Default: all tokens are trained.
        totals: default: the counts of `mask`, as of a step with this micro-batch alone.
        sampler_logprobs, ref_logprobs, entropy, rewards: [B, T], and [B] for rewards. Default: None.
        extras: name -> [B, T]. Default: none.
        dtype: of lists of numbers. Default: float32.

    Raises:
        TypeError: something is neither numbers nor a float tensor.
        ValueError: sizes disagree; the message names what has which.

    >>> make_loss_inputs([[-1.0, -2.0]], advantages=[0.5]).advantages
    tensor([[0.5000, 0.5000]])
    """
    import torch

    current = _floats("logprobs", logprobs, dtype)
    trained = torch.ones(current.shape, dtype=torch.bool) if mask is None else _mask(mask)
    given = {
        "old_logprobs": current.detach() if old_logprobs is None else old_logprobs,
        "advantages": torch.zeros_like(current, requires_grad=False) if advantages is None else advantages,
        "sampler_logprobs": sampler_logprobs,
        "ref_logprobs": ref_logprobs,
        "entropy": entropy,
        **{f"extras[{name!r}]": values for name, values in (extras or {}).items()},
    }
    made: dict[str, Any] = {name: _floats(name, values, dtype) for name, values in given.items() if values is not None}
    if made["advantages"].dim() == 1:
        made["advantages"] = made["advantages"][:, None] * trained  # [B] -> [B, T]
    _check_shapes(_matrix("logprobs", current), {"logprobs": current, "mask": trained, **made})
    of_rows: dict[str, Any] = {} if rewards is None else {"rewards": _floats("rewards", rewards, dtype)}
    _check_shapes((len(current),), of_rows)
    of_tokens: dict[str, Any] = {name: made.pop(f"extras[{name!r}]") for name in extras or {}}
    return LossInputs(
        logprobs=current,
        mask=trained,
        totals=BatchTotals(float(trained.sum()), float(len(trained))) if totals is None else totals,
        extras=of_tokens,
        **made,
        rewards=of_rows.get("rewards"),
    )


def make_group(
    completions: Sequence[Any],
    *,
    num_actions: Sequence[int | Sequence[int]] | None = None,
    prompt: Prompt | None = None,
) -> RolloutGroup:
    """Rollouts of one prompt, with rows whose actions are zeros and whose observation is None.

    Args:
        completions: what rewards read, one for each rollout.
        num_actions: of each rollout the length of its row, or the lengths of its rows. Default: one row of one action.
        prompt: default: `Prompt("p", [], {})`.

    Raises:
        TypeError: completions are a single text, or lengths are no whole numbers.
        ValueError: there are more or fewer lengths than completions.

    >>> [rollout.num_actions for rollout in make_group(["a", "b"], num_actions=[3, [2, 2]]).rollouts]
    [3, 4]
    """
    import torch

    if isinstance(completions, str):
        raise TypeError(f"completions are a list, one for each rollout, not the text {completions!r}")
    lengths = [1] * len(completions) if num_actions is None else list(num_actions)
    if len(lengths) != len(completions):
        raise ValueError(f"{len(completions)} completions, but lengths of {len(lengths)} rollouts in num_actions")
    prompt = Prompt("p", [], {}) if prompt is None else prompt
    rollouts = []
    for number, (completion, length) in enumerate(zip(completions, lengths, strict=True)):
        sizes = [length] if isinstance(length, int) else list(length)
        if wrong := [size for size in sizes if not isinstance(size, int)]:
            raise TypeError(f"num_actions are whole numbers, not {wrong[0]!r}")
        rows = [
            Row(
                prompt_id=prompt.id,
                trajectory_id=f"{prompt.id}/{number}",
                observation=None,
                action=torch.zeros(size, dtype=torch.int64),
                num_actions=size,
                step_index=index,
                done=index == len(sizes) - 1,
            )
            for index, size in enumerate(sizes)
        ]
        rollouts.append(Rollout(rows, completion))
    return RolloutGroup(prompt, rollouts)


def make_scores(
    components: Mapping[str, Floats] | None = None,
    *,
    totals: Floats | None = None,
    weights: Mapping[str, float] | None = None,
    token_rewards: Mapping[str, Sequence[Floats]] | None = None,
    step_rewards: Mapping[str, Sequence[Sequence[float]]] | None = None,
    failures: Mapping[str, int] | None = None,
    dtype: torch.dtype | None = None,
) -> Scores:
    """Rewards of N rollouts.

    Args:
        components: name -> [N], unweighted, NaN = unscored. Default: none.
        totals: [N]. Default: the weighted sum of the components.
        weights: name -> weight. Default: 1.0 for each component.
        token_rewards: name -> one list of numbers for each rollout. Default: none.
        step_rewards: name -> one list for each rollout. Default: none.
        failures: reward name -> count. Default: none.
        dtype: of lists of numbers. Default: float32.

    Raises:
        TypeError: something is neither numbers nor a float tensor; or neither totals nor components are given.
        ValueError: sizes disagree; the message names what has which.

    >>> make_scores({"iou": [1.0, 0.5], "format": [0.0, 1.0]}, weights={"iou": 1.0, "format": 0.2}).totals
    tensor([1.0000, 0.7000])
    """
    columns = {name: _floats(f"components[{name!r}]", values, dtype) for name, values in (components or {}).items()}
    scale = dict.fromkeys(columns, 1.0) if weights is None else dict(weights)
    total = _totals(totals, columns, scale, dtype, "totals")
    _check_shapes(
        (len(total),), {"totals": total, **{f"components[{name!r}]": values for name, values in columns.items()}}
    )
    of_tokens = {
        name: [_floats(f"token_rewards[{name!r}]", values, dtype) for values in rewards]
        for name, rewards in (token_rewards or {}).items()
    }
    of_steps = {name: [list(values) for values in rewards] for name, rewards in (step_rewards or {}).items()}
    counts = {name: len(values) for name, values in of_tokens.items()}
    counts |= {name: len(values) for name, values in of_steps.items()}
    for name, count in counts.items():
        if count != len(total):
            raise ValueError(f"{name!r} has rewards of {count} rollouts, totals have {len(total)}")
    return Scores(total, columns, scale, of_tokens, of_steps, dict(failures or {}))


def _totals(
    given: Floats | None,
    components: Mapping[str, Tensor],
    weights: Mapping[str, float],
    dtype: torch.dtype | None,
    name: str,
) -> Tensor:
    if given is not None:
        return _floats(name, given, dtype)
    if not components:
        raise TypeError(f"give {name} or components: nothing says how many there are")
    if missing := [component for component in components if component not in weights]:
        raise ValueError(f"weights have no {missing[0]!r}, so {name} cannot be summed up from the components")
    import torch

    return torch.stack([weights[component] * values for component, values in components.items()]).sum(0)


def _floats(name: str, values: Floats, dtype: torch.dtype | None) -> Tensor:
    import torch

    if isinstance(values, torch.Tensor):
        if not values.is_floating_point():
            raise TypeError(f"{name}: a tensor of floats is needed, not of {values.dtype}")
        return values
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TypeError(f"{name}: a list of numbers or a tensor of floats is needed, not {values!r}")
    return torch.tensor(values, dtype=dtype or torch.float32)


def _ints(name: str, values: Ints) -> Tensor:
    import torch

    made = values if isinstance(values, torch.Tensor) else torch.tensor(values)
    if made.dtype != torch.int64:
        raise TypeError(f"{name}: whole numbers are needed, not {made.dtype}")
    return made


def _mask(values: Tensor | Sequence[Sequence[bool]]) -> Tensor:
    import torch

    made = values if isinstance(values, torch.Tensor) else torch.tensor(values)
    if made.dtype != torch.bool or made.dim() != 2:
        raise TypeError(f"mask: bools [B, T] are needed, not {made.dtype} of shape {tuple(made.shape)}")
    return made


def _check_shapes(shape: tuple[int, ...], tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != shape:
            first = next(iter(tensors))
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; with {first} it must be {shape}")


def _matrix(name: str, tensor: Tensor) -> tuple[int, ...]:
    if tensor.dim() != 2:
        raise ValueError(f"{name} are [B, T], not of shape {tuple(tensor.shape)}")
    return tuple(tensor.shape)
