"""What hooks return is checked, with the hook's name, before it is used; and what the core answers by itself."""

from types import SimpleNamespace

import pytest
import torch

from mmrl_core.defaults import CoreBehaviour
from mmrl_core.errors import HookResultError
from mmrl_core.plugins.hook_results import check_groups, check_scores
from mmrl_core.types import Prompt, RewardView, Rollout, RolloutGroup, Row, Scores

ROLLOUT = Rollout([Row("p", "t", None, torch.zeros(1), 1)], "text")
GROUPS = [RolloutGroup(Prompt("p", [], {}), [ROLLOUT] * 2), RolloutGroup(Prompt("q", [], {}), [ROLLOUT])]
EMPTY = RolloutGroup(Prompt("q", [], {}), [])


def scores(count, **fields):
    return Scores(torch.zeros(count), {"iou": torch.zeros(count)}, {"iou": 1.0}, **fields)


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        (GROUPS, "returned a list of 2; expected a tuple of groups and Scores"),
        ((GROUPS, None), "returned None; expected Scores"),
        (([], scores(0)), "returned no groups"),
        (([GROUPS[0], EMPTY], scores(2)), "returned a group without rollouts"),
        ((GROUPS, scores(2)), r"returned 'totals' of shape \(2,\); expected \(3,\)"),
        ((GROUPS, Scores(torch.zeros(3), {"iou": torch.zeros(2)}, {})), r"returned 'iou' of shape \(2,\)"),
        ((GROUPS, scores(3, step_rewards={"turn": [[0.0]] * 2})), "returned 'turn' for 2 rollouts; expected 3"),
    ],
)
def test_unsound_groups_are_refused_by_the_name_of_the_hook(result, problem):
    with pytest.raises(HookResultError, match=f"^mmrl_extend_groups {problem}"):
        check_groups(result, "mmrl_extend_groups")


def test_sound_groups_pass_and_the_core_leaves_them_as_they_are():
    token_rewards = {"brevity": [torch.zeros(1)] * 3}
    answer = CoreBehaviour().mmrl_extend_groups(groups=GROUPS, scores=scores(3, token_rewards=token_rewards))
    assert answer[0] is GROUPS
    check_groups(answer, "mmrl_extend_groups")
    check_scores(answer[1], GROUPS, "mmrl_score")


def test_without_stages_the_advantages_are_the_rewards_and_0_where_unscored():
    rewards = torch.tensor([2.0, float("nan"), -1.0])
    mask = torch.ones(3, 1, dtype=torch.bool)
    view = RewardView(rewards, {}, {}, rewards[:, None], torch.zeros(3), torch.arange(3), mask)
    run = SimpleNamespace(stage=SimpleNamespace(algorithm=SimpleNamespace(advantage=[])))
    assert CoreBehaviour().mmrl_compute_advantages(run, view).tolist() == [2.0, 0.0, -1.0]
