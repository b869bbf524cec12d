"""D3S: dynamic dual-level down-sampling (arXiv:2509.22115), an update on what carries signal."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import replace

import torch
from torch import Tensor

from mmrl_core import hookimpl
from mmrl_core.config.numbers import Count, Share
from mmrl_core.run import Run
from mmrl_core.types import LOSS_MASK, Batch


class D3S:
    """Train on the rollouts whose advantages vary most, and of these on the tokens with the most |A| * entropy.

    Both shares grow linearly over the first steps of a stage. The rollouts kept maximise the variance of the advantages
    over the whole batch (of a process); the published variant D3S-I does so within each prompt.

    Args:
        samples_from, samples_to: share of the rollouts kept in the first step, and after `steps`.
        tokens_from, tokens_to: share of the tokens of these.
        steps: length of the schedule.
        within_groups: choose within each group (D3S-I).

    A loss that compares the answers of a prompt (DRPO, TRPA) needs `within_groups`, or few of its pairs are kept; its
    scores and lengths are then those of the tokens kept.

    The published ends of the schedule are unknown; the defaults are ours, unverified. Rounding up is ours too.

    Source: arXiv:2509.22115, read in a secondary description.
    """

    def __init__(
        self,
        *,
        samples_from: Share = 0.25,
        samples_to: Share = 1.0,
        tokens_from: Share = 0.2,
        tokens_to: Share = 1.0,
        steps: Count = 100,
        within_groups: bool = False,
    ) -> None:
        self._samples = samples_from, samples_to
        self._tokens = tokens_from, tokens_to
        self._steps = steps
        self._within_groups = within_groups

    @hookimpl(wrapper=True)
    def mmrl_batch(self, run: Run, batch: Batch) -> Generator[None, Batch, Batch]:
        batch = yield
        share = min(run.state.stage_step / self._steps, 1.0)
        samples, tokens = (start + (end - start) * share for start, end in (self._samples, self._tokens))
        batch = self._most_varied(batch, samples)
        return informative_tokens(batch, tokens)

    def _most_varied(self, batch: Batch, share: float) -> Batch:
        if share >= 1:
            return batch
        trajectories, of_row = batch.trajectory_ids.unique(return_inverse=True)
        by_row = batch.advantages.sum(1) / batch.mask.sum(1).clamp(min=1)
        num_rows = of_row.bincount().to(by_row.dtype)
        advantages = torch.zeros(len(trajectories)).index_add(0, of_row, by_row) / num_rows
        groups = torch.zeros(len(trajectories), dtype=torch.int64).index_copy(0, of_row, batch.group_ids)
        chosen: list[int] = []
        for group in groups.unique() if self._within_groups else [None]:
            members = torch.arange(len(trajectories)) if group is None else (groups == group).nonzero()[:, 0]
            number = max(1, math.ceil(share * len(members)))
            chosen += members[most_varied(advantages[members], number)].tolist()
        return batch.select(torch.isin(of_row, torch.tensor(chosen)).nonzero()[:, 0])


def most_varied(values: Tensor, number: int) -> Tensor:
    """Indices of the `number` values whose variance is largest, ascending: some smallest and some largest ones.

    >>> most_varied(torch.tensor([1.5, -0.5, -0.4, -0.6, 0.1, 0.2, -1.2, 0.9]), 4)
    tensor([0, 3, 6, 7])
    """
    ordered, order = values.double().sort(stable=True)
    best, chosen = -1.0, order[:number]
    for smallest in range(number + 1):
        index = torch.cat([torch.arange(smallest), torch.arange(len(values) - (number - smallest), len(values))])
        variance = float(ordered[index].var(correction=0))
        if variance > best + 1e-12:
            best, chosen = variance, order[index]
    return chosen.sort().values


def informative_tokens(batch: Batch, share: float) -> Batch:
    """The batch trained on the `share` of its trained tokens with the largest |advantage| * entropy alone."""
    trained = batch.mask
    number = math.ceil(share * int(trained.sum()))
    if share >= 1 or not number:
        return batch
    weight = torch.where(trained, batch.advantages.abs() * batch.columns["entropy"], -1.0)
    kept = torch.zeros(trained.numel(), dtype=torch.bool)
    kept[weight.flatten().sort(descending=True, stable=True).indices[:number]] = True
    mask = trained & kept.view_as(trained)
    return replace(batch, masks={**batch.masks, LOSS_MASK: mask}, advantages=batch.advantages * mask)
