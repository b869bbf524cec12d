"""Running reward functions, alarms about what they give; reading gold answers and the marks of texts."""

from mmrl_core.scoring.alarm import Alarm, ConstantRewardAlarm, UnscoredRunAlarm
from mmrl_core.scoring.gold import gold_text, score_each, unusable_gold, unwrapped
from mmrl_core.scoring.isolated import DiedError, IsolatedFunction, without_observations
from mmrl_core.scoring.marks import bare_text, plain_text
from mmrl_core.scoring.own import own_copy
from mmrl_core.scoring.passes import pass_metrics
from mmrl_core.scoring.reading import Judgement
from mmrl_core.scoring.runner import RewardRunner
from mmrl_core.scoring.signature import CALLED_AS, advice

__all__ = [
    "CALLED_AS",
    "Alarm",
    "ConstantRewardAlarm",
    "DiedError",
    "IsolatedFunction",
    "Judgement",
    "RewardRunner",
    "UnscoredRunAlarm",
    "advice",
    "bare_text",
    "gold_text",
    "own_copy",
    "pass_metrics",
    "plain_text",
    "score_each",
    "unusable_gold",
    "unwrapped",
    "without_observations",
]
