"""Running reward functions: threads, time limits, failures; reading gold answers and the marks of texts."""

from mmrl_core.scoring.alarm import ConstantRewardAlarm
from mmrl_core.scoring.gold import gold_text, score_each, unusable_gold, unwrapped
from mmrl_core.scoring.marks import bare_text, plain_text
from mmrl_core.scoring.reading import Judgement
from mmrl_core.scoring.runner import RewardRunner

__all__ = [
    "ConstantRewardAlarm",
    "Judgement",
    "RewardRunner",
    "bare_text",
    "gold_text",
    "plain_text",
    "score_each",
    "unusable_gold",
    "unwrapped",
]
