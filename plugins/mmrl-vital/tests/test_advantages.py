"""Weights of DGRPO against numbers worked by hand, and which rewards decide them."""

import math

import pytest
import torch

from mmrl_core.advantage_stages import group_relative_stage, whiten_stage
from mmrl_core.errors import ConfigError
from mmrl_core.testing import make_reward_view
from mmrl_vital.advantages import difficulty

NAN = math.nan


def view(components, group_ids, *, weights=None, totals=None, trajectory_ids=None):
    return make_reward_view(totals, group_ids, components=components, weights=weights, trajectory_ids=trajectory_ids)


def weights_of(scored, **options):
    return difficulty(torch.ones(len(scored.rewards)), scored, **options).tolist()


def test_always_succeeding_group_weighs_half_and_always_failing_group_one():
    # The specification's reading: w = 0.5 + 0.5 * (1 - mean task reward).
    rewards = view({"iou": [1.0, 1.0, 0.0, 0.0], "format": [1.0, 1.0, 1.0, 1.0]}, [3, 3, 1, 1])
    assert weights_of(rewards) == [0.5, 0.5, 1.0, 1.0]
    assert weights_of(rewards, rule="published") == [0.5, 0.5, 1.0, 1.0]


def test_weight_by_hand():
    # means (0.2 + 0.6) / 2 = 0.4 and (1 + 0.9 + 0.5) / 3 = 0.8: w = 0.5 + 0.5 * 0.6 = 0.8 and 0.5 + 0.5 * 0.2 = 0.6;
    # with minimum 0.2: 0.2 + 0.8 * 0.6 = 0.68 and 0.2 + 0.8 * 0.2 = 0.36
    rewards = view({"iou": [0.2, 1.0, 0.6, 0.9, 0.5]}, [7, 9, 7, 9, 9])
    assert weights_of(rewards) == pytest.approx([0.8, 0.6, 0.8, 0.6, 0.6])
    assert weights_of(rewards, minimum=0.2) == pytest.approx([0.68, 0.36, 0.68, 0.36, 0.36])
    assert weights_of(rewards, minimum=1) == [1.0] * 5


def test_published_weight_by_hand_and_its_saturation_with_tools():
    # Totals 1.6 and 1.0: mu = 1.3, d = 0.7, (1 + 0.7) / 2 = 0.85. Totals 2.5 and 2.1 (format 1, tool bonus 1, task 0.5
    # and 0.1): mu = 2.3, d = clip(-0.3) = 0, 1 / 2. Totals 0 and 0.4: mu = 0.2, d = clip(1.8) = 1, 1.
    totals = torch.tensor([1.6, 1.0, 2.5, 2.1, 0.0, 0.4])
    task = [0.6, 0.0, 0.5, 0.1, 0.0, 0.4]
    rewards = view({"task": task, "format": [1.0, 1.0, 2.0, 2.0, 0.0, 0.0]}, [0, 0, 1, 1, 2, 2], totals=totals)
    assert weights_of(rewards, rule="published") == pytest.approx([0.85, 0.85, 0.5, 0.5, 1.0, 1.0])
    # The task alone: means 0.3, 0.3 and 0.2, so the group with tools is as hard as the first.
    assert weights_of(rewards) == pytest.approx([0.85, 0.85, 0.85, 0.85, 0.9, 0.9])


def test_rewards_called_format_do_not_count_unless_they_are_named():
    rewards = view({"iou": [0.0, 0.0], "vital/format": [1.0, 1.0], "format": [1.0, 1.0]}, [0, 0])
    assert weights_of(rewards) == [1.0, 1.0]
    assert weights_of(rewards, rewards=["vital/format"]) == [0.5, 0.5]


def test_components_are_averaged_by_weight_without_unscored_ones():
    # First: (3 * 1 + 1 * 0) / 4 = 0.75. Second: only `choice` scored it, 0.25. Group mean 0.5, weight 0.75.
    # Its total is a number, because the run left the unscored component out.
    components = {"iou": [1.0, NAN], "choice": [0.0, 0.25]}
    rewards = view(components, [0, 0], weights={"iou": 3.0, "choice": 1.0}, totals=[3.0, 0.25])
    assert weights_of(rewards) == pytest.approx([0.75, 0.75])


def test_ranges_map_rewards_to_success():
    # [0.2, 0.8] maps 0.35 to 0.25, 0.1 to 0 and 2.0 to 1: mean 5/12, weight 0.5 + 0.5 * 7/12 = 19/24.
    rewards = view({"iou": [0.35, 0.1, 2.0]}, [0, 0, 0])
    assert weights_of(rewards, ranges={"iou": [0.2, 0.8]}) == pytest.approx([19 / 24] * 3)
    # Without a range values are clipped to 0..1: (0.35 + 0.1 + 1) / 3
    assert weights_of(rewards) == pytest.approx([0.5 + 0.5 * (1 - 1.45 / 3)] * 3)


def test_a_trajectory_of_several_turns_counts_once():
    # Trajectory 5 has three rows and reward 1, trajectory 6 one row and reward 0: mean 0.5, not 0.75.
    rewards = view({"iou": [1.0, 1.0, 1.0, 0.0]}, [0, 0, 0, 0], trajectory_ids=[5, 5, 5, 6])
    assert weights_of(rewards) == pytest.approx([0.75] * 4)
    assert weights_of(rewards, rule="published") == pytest.approx([1.0] * 4)  # mu 0.5


@pytest.mark.parametrize("rule", ["task", "published"])
def test_unscored_trajectories_are_left_out_and_unscored_groups_keep_their_advantages(rule):
    rewards = view({"iou": [1.0, NAN, NAN, NAN], "format": [1.0, 1.0, 1.0, 1.0]}, [0, 0, 1, 1])
    advantages = torch.tensor([2.0, 0.0, -3.0, 3.0])
    assert difficulty(advantages, rewards, rule=rule).tolist() == [1.0, 0.0, -3.0, 3.0]


def test_a_trajectory_whose_total_is_unscored_does_not_count_though_its_component_is_scored():
    rewards = view({"iou": [1.0, 0.0], "ocr": [1.0, NAN]}, [0, 0], totals=[2.0, NAN])
    assert weights_of(rewards) == [0.5, 0.5]


def test_it_follows_stages_that_give_rows_or_tokens():
    rewards = view({"iou": [1.0, 0.0, 1.0, 1.0]}, [0, 0, 1, 1])
    rows = group_relative_stage(rewards.rewards, rewards, eps=0.0)
    # (1 - 0.5) / std of [1, 0], which is sqrt(0.5): +-0.7071; the group's weight is 0.75. Equal rewards give 0.
    assert difficulty(rows, rewards).tolist() == pytest.approx([0.530330, -0.530330, 0.0, 0.0], abs=1e-6)
    tokens = whiten_stage(rows, rewards)
    expected = tokens * torch.tensor([0.75, 0.75, 0.5, 0.5])[:, None]
    torch.testing.assert_close(difficulty(tokens, rewards), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rewards": ["giou"]}, "'giou' is no reward of this run; its rewards: iou, format"),
        ({"ranges": {"giou": [0, 1]}}, "'giou' is no reward"),
        ({"ranges": {"iou": [1, 1]}}, "low < high"),
        ({"rewards": []}, "no task reward of positive weight"),
        ({"minimum": 1.5}, "0..1"),
        ({"rule": "paper"}, "'task' or 'published'"),
    ],
)
def test_wrong_options_are_refused(options, message):
    rewards = view({"iou": [1.0, 0.0], "format": [1.0, 1.0]}, [0, 0])
    with pytest.raises(ConfigError, match=message):
        difficulty(torch.ones(2), rewards, **options)
