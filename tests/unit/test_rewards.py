"""The arithmetic of rewards: totals of a group, and where the view puts each reward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from mmrl_core.rewards import group_totals, reward_view
from mmrl_core.types import Prompt, Rollout, RolloutGroup, Row, Scores

NAN = math.nan


def group(*completions: str, rows: Sequence[Sequence[int]] = ()) -> RolloutGroup:
    """A group whose n-th rollout has rows of rows[n] actions (default: one row of 2)."""
    rollouts = []
    for n, completion in enumerate(completions):
        sizes = rows[n] if rows else [2]
        of_rollout = [
            Row("p", f"p/{n}", None, torch.zeros(size, dtype=torch.int64), size, step_index=i)
            for i, size in enumerate(sizes)
        ]
        rollouts.append(Rollout(of_rollout, completion))
    return RolloutGroup(Prompt("p", [], {}), rollouts)


def assert_close(actual: torch.Tensor, expected: Sequence[Any]) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float32), equal_nan=True)


def test_reward_view_places_all_four_shapes() -> None:
    # Worked by hand: totals 10 and NaN; of the 10, step rewards are 1 + 2 and token rewards 0.5 + 0 + 1 + 0 + 0.
    groups = [group("a", rows=[[2, 3]]), group("b", rows=[[1]])]
    scores = Scores(
        totals=torch.tensor([10.0, NAN]),
        components={"x": torch.tensor([5.5, NAN])},
        weights={"x": 1.0},
        token_rewards={"t": [torch.tensor([0.5, 0.0, 1.0, 0.0, 0.0]), torch.tensor([9.0])]},
        step_rewards={"s": [[1.0, 2.0], [9.0]]},
    )
    masks = torch.tensor([[True, True, False], [True, True, False], [True, False, False]])
    view = reward_view(scores, groups, masks)
    assert_close(view.rewards, [10.0, 10.0, NAN])
    assert_close(view.components["x"], [5.5, 5.5, NAN])
    assert_close(view.token_rewards, [[0.5, 1.0, 0.0], [1.0, 2.0 + 5.5, 0.0], [0.0, 0.0, 0.0]])
    assert view.group_ids.tolist() == [0, 0, 1] and view.trajectory_ids.tolist() == [0, 0, 1]
    assert view.group_ids.dtype == torch.int64 and view.token_rewards.dtype == torch.float32
    assert view.mask is masks


def test_reward_of_an_untrained_row_passes_to_the_nearest_trained_token() -> None:
    groups = [group("a", rows=[[2, 2, 2]])]
    scores = Scores(torch.tensor([7.0]), {}, {}, step_rewards={"s": [[1.0, 2.0, 3.0]]})
    middle = torch.tensor([[False, False], [True, True], [False, False]])
    assert_close(reward_view(scores, groups, middle).token_rewards, [[0, 0], [0, 7], [0, 0]])
    nothing = torch.zeros(3, 2, dtype=torch.bool)
    assert_close(reward_view(scores, groups, nothing).token_rewards, [[0, 0], [0, 0], [0, 0]])


@pytest.mark.parametrize(
    ("trained_rows", "paid", "expected"),
    [
        ([0, 2], 1, 0),  # the row before it, not the one after
        ([0, 1], 2, 1),  # the nearest before
        ([0, 1, 3], 2, 1),
        ([2, 3], 1, 2),  # none before: the nearest after
        ([1, 3], 3, 3),  # its own
    ],
)
def test_reward_of_an_untrained_row_goes_to_the_row_before_it_rather_than_after(
    trained_rows: list[int], paid: int, expected: int
) -> None:
    masks = torch.zeros(4, 2, dtype=torch.bool)
    masks[trained_rows] = True
    steps = [[1.0 if index == paid else 0.0 for index in range(4)]]
    scores = Scores(torch.tensor([1.0]), {}, {}, step_rewards={"s": steps})
    placed = reward_view(scores, [group("a", rows=[[2, 2, 2, 2]])], masks).token_rewards
    assert placed.nonzero().tolist() == [[expected, 1]]


def test_rewards_do_not_pass_to_another_trajectory() -> None:
    masks = torch.tensor([[True], [False], [True]])
    scores = Scores(torch.tensor([1.0, 2.0, 4.0]), {}, {})
    view = reward_view(scores, [group("a", "b", "c", rows=[[1], [1], [1]])], masks)
    assert_close(view.token_rewards, [[1.0], [0.0], [4.0]])


def test_token_rewards_of_a_view_add_up_to_the_total_after_shaping() -> None:
    generator = torch.Generator().manual_seed(0)
    groups = [group("a", "b", rows=[[3, 1], [4]]), group("c", rows=[[2, 2, 2]])]
    masks = torch.zeros(6, 4, dtype=torch.bool)
    for b, size in enumerate([3, 1, 4, 2, 2, 2]):
        masks[b, :size] = True
    tokens = [torch.randn(size, generator=generator) for size in (4, 4, 6)]
    scores = Scores(torch.tensor([1.0, -2.0, 0.3]), {}, {}, {"t": tokens}, {"s": [[0.1, 0.2], [0.3], [0.1] * 3]})
    view = reward_view(scores, groups, masks)
    sums = torch.zeros(3).index_add(0, view.trajectory_ids, view.token_rewards.sum(1))
    torch.testing.assert_close(sums, scores.totals)
    assert not view.token_rewards[~masks].any()


def test_rounding_of_totals_is_not_a_reward() -> None:
    values = [0.1, 0.2, 0.7]
    scores = Scores(torch.tensor([sum(values) * 3]), {}, {}, {"t": [torch.tensor(values) * 3]})
    view = reward_view(scores, [group("a", rows=[[3]])], torch.ones(1, 3, dtype=torch.bool))
    assert view.token_rewards[0].tolist() == (torch.tensor(values) * 3).tolist()


def test_reward_view_refuses_numbers_that_do_not_agree() -> None:
    scores = Scores(torch.tensor([1.0]), {}, {})
    with pytest.raises(ValueError, match="1 rollouts with 1 rows, but 1 totals and 2 masks"):
        reward_view(scores, [group("a")], torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="3 actions"):
        reward_view(scores, [group("a", rows=[[3]])], torch.ones(1, 2, dtype=torch.bool))


def test_totals_are_weighted_sums_over_the_same_rewards() -> None:
    assert group_totals([1.0, 0.5], [[1.0, 2.0], [10.0, 20.0]], 2) == [6.0, 12.0]
    first, second = group_totals([1.0, 0.5], [[1.0, 2.0], [10.0, None]], 2)
    assert first == 6.0 and math.isnan(second)
    assert all(map(math.isnan, group_totals([], [], 3)))
    assert len(group_totals([], [], 3)) == 3
