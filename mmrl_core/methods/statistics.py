"""What advantage stages, behaviours and losses ask the policy for besides logprobs.

They are registered with ``needs=("entropy", "logprobs", ...)``: "entropy", "logprobs" before the update, the id of a
registered `statistic`, or a quantity of the policy's own. What nobody asks for is not computed.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from mmrl_core.batching import micro_batches, stack_rows
from mmrl_core.config import Component
from mmrl_core.errors import PluginError, PolicyError
from mmrl_core.loss_inputs import Statistic, TokenStats
from mmrl_core.plugins import is_behaviour
from mmrl_core.plugins.hook_results import check_token_stats
from mmrl_core.types import Batch, Row

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmrl_core.run import SteppingRun

LOGPROBS = "logprobs"
ENTROPY = "entropy"


def statistics_asked(run: SteppingRun) -> set[str]:
    """Names that the advantage stages and the behaviours of the run need."""
    entries = [run.registered("advantage", stage) for stage in run.stage.algorithm.advantage]
    entries += [run.registered("behaviour", item) for item in run.config.plugins if is_behaviour(item.name)]
    return {name for entry in entries for name in entry.details.get("needs", ())}


def add_statistics(run: SteppingRun, batch: Batch) -> Batch:
    """What is asked for under the weights before the update, as columns [B, T] by name; one pass for all of them."""
    asked = statistics_asked(run)
    if not asked:
        return batch
    asked.add(LOGPROBS)  # they come anyway, and spare a pass where the loss needs old logprobs
    with run.clock("logprobs"), torch.no_grad():
        passes = run.processes.in_step(list(micro_batches(batch, run.fits_one_pass)))
        found = [(told(run, part.rows, asked, "algorithm.advantage and plugins"), counts) for part, counts in passes]
    answers = [stats for stats, counts in found if counts]
    columns = {name: stack_rows([_of(stats, name).detach().cpu() for stats in answers], batch.mask) for name in asked}
    return replace(batch, columns={**batch.columns, **columns})


def told(run: SteppingRun, rows: Sequence[Row], names: Collection[str], whose: str) -> TokenStats:
    """The policy's answer about rows, with everything in it that was asked for.

    Args:
        whose: needs it, for the message.

    Raises:
        PolicyError: the policy did not give something that it was asked for.
    """
    needs = {_need(run, name) for name in names if name != LOGPROBS}
    stats = run.policy.logprobs(rows, needs=needs)
    policy = run.config.model.policy.name
    check_token_stats(stats, rows, f"logprobs of policy {policy!r}")
    shape = stats.logprobs.shape
    given = {name for name, values in stats.extras.items() if values.shape == shape}
    given |= {LOGPROBS} | ({ENTROPY} if stats.entropy is not None else set())
    if missing := set(names) - given:
        raise PolicyError(
            f"{whose} needs {', '.join(sorted(missing))}, which the policy {policy!r} did not give as {tuple(shape)}."
        )
    return stats


def _need(run: SteppingRun, name: str) -> Statistic | str:
    """The registered statistic of a name; the name itself, if there is none, which may be the policy's own.

    Raises:
        PluginError: it cannot be imported, or names a plugin or file that does not have it.
    """
    try:
        entry = run.registered("statistic", Component(name=name))
    except PluginError:
        if "/" in name or ".py:" in name:
            raise
        return name
    return Statistic(name, entry.function())


def top_probability(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """[n]: probability of the likeliest token, whichever was sampled.

    >>> top_probability(torch.tensor([[0.0, 0.0], [0.0, 100.0]]), torch.tensor([0, 0]))
    tensor([0.5000, 1.0000])
    """
    return (logits.amax(-1) - logits.logsumexp(-1)).exp()


def _of(stats: TokenStats, name: str) -> torch.Tensor:
    if name == LOGPROBS:
        return stats.logprobs
    if name == ENTROPY:
        assert stats.entropy is not None  # `told` has looked
        return stats.entropy
    return stats.extras[name]
