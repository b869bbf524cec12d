"""The alarm of rewards that teach nothing."""

import json
import math

import torch

from mmrl_core.scoring.alarm import ConstantRewardAlarm, UnscoredRunAlarm

NAN = math.nan


def test_constant_rewards_raise_one_alarm_each() -> None:
    alarm = ConstantRewardAlarm(patience=3)
    constant, varying, unscored = torch.ones(4), torch.arange(4.0), torch.full((4,), NAN)
    told = [alarm.update({"c": constant, "v": varying, "u": unscored}) for _ in range(5)]
    assert [len(messages) for messages in told] == [0, 0, 2, 0, 0]
    assert "reward 'c' was the same for every rollout (now 1) in each of the last 3 steps" in told[2][0].message
    assert "reward 'u' was unscored" in told[2][1].message


def test_one_varying_step_starts_the_alarm_anew_and_state_survives() -> None:
    alarm = ConstantRewardAlarm(patience=3)
    for values in ([1.0, 1.0], [1.0, 1.0], [0.0, 1.0], [0.0, 0.0], [2.0, NAN], [1.0, 1.0]):
        assert alarm.update({"r": torch.tensor(values)}) == []
    resumed = ConstantRewardAlarm(patience=3)
    resumed.load_state(json.loads(json.dumps(alarm.state())))
    assert len(resumed.update({"r": torch.tensor([5.0, 5.0, NAN])})) == 1
    assert resumed.update({"r": torch.tensor([5.0, 5.0])}) == []


def test_a_reward_that_settles_at_its_best_is_learnt_and_one_that_settles_below_is_not() -> None:
    alarm = ConstantRewardAlarm(patience=3)
    learnt, lost = torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0])
    told = alarm.update({"learnt": learnt, "lost": lost})
    for _ in range(6):
        told += alarm.update({"learnt": torch.ones(2), "lost": torch.zeros(2)})
    assert [(one.name, "'lost'" in one.message) for one in told] == [("constant_reward", True)]
    resumed = ConstantRewardAlarm(patience=3)
    resumed.load_state(json.loads(json.dumps(alarm.state())))
    assert resumed.update({"learnt": torch.ones(2)}) == []
    drifting = ConstantRewardAlarm(patience=3)
    values = ([0.0, 1.0], [1.0, 1.0], [2.0, 2.0], [3.0, 3.0])  # equal within each step, so nothing is learnt
    assert [len(drifting.update({"r": torch.tensor(pair)})) for pair in values] == [0, 0, 0, 1]


def test_steps_without_any_score_are_counted_in_a_row() -> None:
    alarm = UnscoredRunAlarm()
    assert [alarm.update(share, 2) for share in (1.0, 0.9, 1.0, 1.0)] == [False, False, False, True]
    message = str(alarm.error(9, {"r": ["raised KeyError: 'gold' (mine.py:3)", "another"], "quiet": []}))
    assert (
        "scored no rollout in the last 2 steps, 8 to 9" in message and "reward 'r' raised KeyError: 'gold'" in message
    )
    assert "left every completion unscored" in str(alarm.error(9, {}))
    resumed = UnscoredRunAlarm()
    resumed.load_state(json.loads(json.dumps(alarm.state())))
    assert resumed.update(1.0, 3) and not resumed.update(1.0, None)
