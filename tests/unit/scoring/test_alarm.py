"""The alarm of rewards that teach nothing."""

import json
import math

import torch

from mmrl_core.scoring.alarm import ConstantRewardAlarm

NAN = math.nan


def test_constant_rewards_raise_one_alarm_each() -> None:
    alarm = ConstantRewardAlarm(patience=3)
    constant, varying, unscored = torch.ones(4), torch.arange(4.0), torch.full((4,), NAN)
    told = [alarm.update({"c": constant, "v": varying, "u": unscored}) for _ in range(5)]
    assert [len(messages) for messages in told] == [0, 0, 2, 0, 0]
    assert "reward 'c' was the same for every rollout (now 1) in each of the last 3 steps" in told[2][0]
    assert "reward 'u' was unscored" in told[2][1]


def test_one_varying_step_starts_the_alarm_anew_and_state_survives() -> None:
    alarm = ConstantRewardAlarm(patience=3)
    for values in ([1.0, 1.0], [1.0, 1.0], [0.0, 1.0], [0.0, 0.0], [2.0, NAN], [1.0, 1.0]):
        assert alarm.update({"r": torch.tensor(values)}) == []
    resumed = ConstantRewardAlarm(patience=3)
    resumed.load_state(json.loads(json.dumps(alarm.state())))
    assert len(resumed.update({"r": torch.tensor([5.0, 5.0, NAN])})) == 1
    assert resumed.update({"r": torch.tensor([5.0, 5.0])}) == []
