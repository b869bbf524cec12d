"""Makers for tests keep the promises of the types they make, and refuse what cannot be meant."""

import math

import pytest
import torch

from mmrl_core.loss_inputs import BatchTotals
from mmrl_core.rewards import reward_view
from mmrl_core.testing.makers import make_group, make_loss_inputs, make_reward_view, make_scores
from mmrl_core.types import Prompt

NAN = math.nan


def test_a_made_view_equals_that_of_the_rewards():
    """Two rollouts, of which one has two rows and the other is unscored."""
    group = make_group(["a", "b"], num_actions=[[2, 1], 2])
    scores = make_scores({"iou": [0.5, NAN], "format": [1.0, 0.0]}, weights={"iou": 1.0, "format": 2.0})
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    theirs = reward_view(scores, [group], mask)
    ours = make_reward_view(
        components={"iou": [0.5, 0.5, NAN], "format": [1.0, 1.0, 0.0]},
        weights={"iou": 1.0, "format": 2.0},
        trajectory_ids=[0, 0, 1],
        mask=mask,
    )
    for name in ("rewards", "token_rewards", "group_ids", "trajectory_ids", "mask"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), equal_nan=True)
    torch.testing.assert_close(ours.components, theirs.components, equal_nan=True)
    assert ours.weights == theirs.weights
    assert ours.token_rewards.tolist() == [[0.0, 0.0], [2.5, 0.0], [0.0, 0.0]]


def test_a_view_without_more_than_rewards_is_one_group_of_single_rows():
    view = make_reward_view([1.0, NAN], dtype=torch.float64)
    assert view.group_ids.tolist() == [0, 0] and view.trajectory_ids.tolist() == [0, 1]
    assert view.token_rewards.tolist() == [[1.0], [0.0]] and view.rewards.dtype == torch.float64
    assert view.mask.tolist() == [[True], [True]] and view.components == {}


def test_loss_inputs_are_on_policy_and_count_their_mask():
    logprobs = torch.tensor([[-1.0, -2.0], [-3.0, -4.0]], requires_grad=True)
    made = make_loss_inputs(
        logprobs, advantages=[1.0, -1.0], mask=[[True, False], [True, True]], extras={"x": [[0.0] * 2] * 2}
    )
    assert (
        made.logprobs is logprobs and not made.old_logprobs.requires_grad and torch.equal(made.old_logprobs, logprobs)
    )
    assert made.advantages.tolist() == [[1.0, 0.0], [-1.0, -1.0]] and not made.advantages.requires_grad
    assert made.totals == BatchTotals(3, 2) and list(made.extras) == ["x"]
    assert make_loss_inputs(logprobs, totals=BatchTotals(9, 8)).totals == BatchTotals(9, 8)


def test_a_group_has_the_rows_that_it_was_asked_for():
    group = make_group(["a", None], num_actions=[3, [1, 2]], prompt=Prompt("q", [], {"id": 1}))
    assert [[row.num_actions for row in rollout.rows] for rollout in group.rollouts] == [[3], [1, 2]]
    assert [[len(row.action) for row in rollout.rows] for rollout in group.rollouts] == [[3], [1, 2]]
    assert [row.trajectory_id for rollout in group.rollouts for row in rollout.rows] == ["q/0", "q/1", "q/1"]
    assert [(row.step_index, row.done) for row in group.rollouts[1].rows] == [(0, False), (1, True)]
    assert [rollout.completion for rollout in group.rollouts] == ["a", None]


def test_totals_are_the_weighted_sum_unless_they_are_given():
    components = {"iou": [1.0, NAN], "format": [0.5, 1.0]}
    torch.testing.assert_close(make_scores(components).totals, torch.tensor([1.5, NAN]), equal_nan=True)
    made = make_scores(components, totals=[9.0, 8.0], token_rewards={"t": [[1.0], [2.0, 3.0]]}, failures={"iou": 1})
    assert made.totals.tolist() == [9.0, 8.0] and made.failures == {"iou": 1}
    assert [values.tolist() for values in made.token_rewards["t"]] == [[1.0], [2.0, 3.0]]


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: make_reward_view(), TypeError, "give rewards or components"),
        (lambda: make_reward_view("1"), TypeError, "rewards: a list of numbers"),
        (lambda: make_reward_view(torch.tensor([1, 0])), TypeError, "rewards: a tensor of floats"),
        (lambda: make_reward_view([1.0], [0.5]), TypeError, "group_ids: whole numbers"),
        (lambda: make_reward_view([1.0], mask=[[1]]), TypeError, "mask: bools"),
        (
            lambda: make_reward_view([1.0, 0.0], [0]),
            ValueError,
            "group_ids has shape (1,); with rewards it must be (2,)",
        ),
        (lambda: make_reward_view([1.0], mask=[[True]] * 2), ValueError, "mask has 2 rows, rewards have 1"),
        (lambda: make_reward_view([1.0], token_rewards=[[1.0, 0.0]]), ValueError, "token_rewards has shape (1, 2)"),
        (lambda: make_reward_view(components={"a": [1.0]}, weights={"b": 1.0}), ValueError, "weights have no 'a'"),
        (lambda: make_loss_inputs([1.0]), ValueError, "logprobs are [B, T]"),
        (lambda: make_loss_inputs([[1.0]], entropy=[1.0]), ValueError, "entropy has shape (1,)"),
        (lambda: make_loss_inputs([[1.0]], rewards=[1.0, 2.0]), ValueError, "rewards has shape (2,)"),
        (lambda: make_group("ab"), TypeError, "not the text 'ab'"),
        (lambda: make_group(["a"], num_actions=[1, 2]), ValueError, "1 completions, but lengths of 2"),
        (lambda: make_group(["a"], num_actions=[[1.5]]), TypeError, "not 1.5"),
        (lambda: make_scores(), TypeError, "give totals or components"),
        (lambda: make_scores(totals=[1.0], step_rewards={"s": []}), ValueError, "'s' has rewards of 0 rollouts"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(make, error, words):
    with pytest.raises(error) as raised:
        make()
    assert words in str(raised.value)
