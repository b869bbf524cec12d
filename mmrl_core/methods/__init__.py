"""What methods need beyond losses of tokens: losses of scores, statistics of the policy, sampling again in a step."""

from mmrl_core.methods.resampling import Resampler, revised
from mmrl_core.methods.scores import ScoreInputs, score_weights
from mmrl_core.methods.statistics import LOGPROBS, add_statistics, told, top_probability

__all__ = [
    "LOGPROBS",
    "Resampler",
    "ScoreInputs",
    "add_statistics",
    "revised",
    "score_weights",
    "told",
    "top_probability",
]
