"""Running reward functions: threads, time limits, failures."""

from mmrl_core.scoring.runner import (
    ConstantRewardAlarm,
    Judgement,
    RewardRunner,
    reward_view,
)

__all__ = [
    "ConstantRewardAlarm",
    "Judgement",
    "RewardRunner",
    "reward_view",
]
