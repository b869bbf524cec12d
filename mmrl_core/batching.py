"""Rows into batches: packing, masks, the parts of a rollout batch, the micro-batches of an update."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from mmrl_core.errors import ConfigError
from mmrl_core.run import derive_seed
from mmrl_core.types import ACTION_MASK, KL_WEIGHT, LOSS_MASK, MASK_NAMES, Batch, RewardView, RolloutGroup, Row


def pack(groups: Sequence[RolloutGroup], *, mask_truncated: bool = False) -> Batch:
    """Rows of all groups in order, padded to one length; advantages and rewards are 0 until they are known.

    Args:
        groups: none without rollouts.
        mask_truncated: leave rows that were cut at a limit out of the loss.
    """
    rows: list[Row] = []
    group_ids: list[int] = []
    trajectory_ids: list[int] = []
    for group_id, group in enumerate(groups):
        for rollout in group.rollouts:
            trajectory_id = trajectory_ids[-1] + 1 if trajectory_ids else 0
            rows += rollout.rows
            group_ids += [group_id] * len(rollout.rows)
            trajectory_ids += [trajectory_id] * len(rollout.rows)
    masks = masks_of(rows)
    if mask_truncated:
        truncated = torch.tensor([row.truncated for row in rows])
        masks[LOSS_MASK] &= ~truncated[:, None]
    logprobs = [row.sampler_logprobs for row in rows]
    known = [values for values in logprobs if values is not None]
    return Batch(
        rows=rows,
        group_ids=torch.tensor(group_ids),
        trajectory_ids=torch.tensor(trajectory_ids),
        masks=masks,
        columns=columns_of(rows),
        advantages=torch.zeros(masks[LOSS_MASK].shape),
        rewards=torch.zeros(len(rows)),
        sampler_logprobs=nn.utils.rnn.pad_sequence(known, batch_first=True) if len(known) == len(rows) else None,
    )


def masks_of(rows: Sequence[Row]) -> dict[str, Tensor]:
    """Named masks bool [B, T] of rows; absent action and loss masks are True over all actions of a row."""
    width = max(row.num_actions for row in rows)
    masks = {}
    for name in MASK_NAMES:
        masks[name] = torch.zeros(len(rows), width, dtype=torch.bool)
        for index, row in enumerate(rows):
            mask = row.masks.get(name)
            masks[name][index, : row.num_actions] = name in (ACTION_MASK, LOSS_MASK) if mask is None else mask
    return masks


def columns_of(rows: Sequence[Row]) -> dict[str, Tensor]:
    """Columns float32 [B, T] of rows, 0 on padding; a column that a row lacks is 0 over its actions, KL_WEIGHT 1."""
    width = max(row.num_actions for row in rows)
    columns = {}
    for name in sorted({name for row in rows for name in row.columns}):
        columns[name] = torch.zeros(len(rows), width)
        for index, row in enumerate(rows):
            columns[name][index, : row.num_actions] = row.columns.get(name, float(name == KL_WEIGHT))
    return columns


def with_advantages(batch: Batch, advantages: Tensor, view: RewardView) -> Batch:
    """The batch with the rewards of the view, and advantages [B] or [B, T], which become 0 where nothing is trained."""
    if advantages.dim() == 1:
        advantages = advantages[:, None].expand(batch.mask.shape)
    advantages = (advantages * batch.mask).float()
    return replace(batch, advantages=advantages, rewards=view.rewards, components=view.components)


def disjoint_parts(batch: Batch, num_parts: int, *seed: object) -> Iterator[Batch]:
    """Parts of whole groups, in a random order that depends only on the seed.

    Raises:
        ConfigError: there are fewer groups than parts.
    """
    if num_parts == 1:
        yield batch
        return
    group_ids = batch.group_ids.unique().tolist()
    random.Random(derive_seed(*seed)).shuffle(group_ids)
    if len(group_ids) < num_parts:
        raise ConfigError(f"updates_per_rollout={num_parts} parts cannot be made of {len(group_ids)} groups.")
    for part in range(num_parts):
        chosen = torch.tensor(group_ids[part::num_parts])
        yield batch.select(torch.isin(batch.group_ids, chosen).nonzero()[:, 0])


def micro_batches(batch: Batch, fits: Callable[[Sequence[Row]], bool]) -> Iterator[Batch]:
    """Batches that fit one pass, in order; a group stays whole if it fits, and a row is never cut."""

    def rows_fit(index: Sequence[int]) -> bool:
        return fits([batch.rows[row] for row in index])

    if rows_fit(range(len(batch))):
        yield batch
        return
    pieces: list[list[int]] = []
    for group_id in batch.group_ids.unique_consecutive():
        members = (batch.group_ids == group_id).nonzero()[:, 0].tolist()
        if pieces and rows_fit(pieces[-1] + members):
            pieces[-1] += members
            continue
        pieces.append([])
        for row in members:
            if pieces[-1] and not rows_fit([*pieces[-1], row]):
                pieces.append([])
            pieces[-1].append(row)
    for piece in pieces:
        yield batch.select(torch.tensor(piece))


def rows_that_move(batch: Batch, *, idle_at_zero: bool) -> Batch:
    """The rows that have a trained token and, with `idle_at_zero`, an advantage that is not 0.

    One row stays in any case, so that every process takes part in every update.
    """
    moves = batch.mask & (batch.advantages != 0) if idle_at_zero else batch.mask
    index = moves.any(1).nonzero()[:, 0]
    index = index if len(index) else torch.tensor([0])
    return batch if len(index) == len(batch) else batch.select(index)


def stack_rows(parts: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Tensors [b, t] of consecutive rows as one [B, T], the shape of the mask; 0 on padding."""
    return torch.cat([nn.functional.pad(part, (0, mask.shape[1] - part.shape[1])) for part in parts])
