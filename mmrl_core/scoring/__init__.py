"""Running reward functions: threads, time limits, failures."""

from mmrl_core.scoring.alarm import ConstantRewardAlarm
from mmrl_core.scoring.reading import Judgement
from mmrl_core.scoring.runner import RewardRunner

__all__ = ["ConstantRewardAlarm", "Judgement", "RewardRunner"]
