"""What methods need beyond losses of tokens: losses of scores, and statistics of the policy."""

from mmrl_core.methods.scores import ScoreInputs, score_weights
from mmrl_core.methods.statistics import LOGPROBS, add_statistics, told, top_probability

__all__ = ["LOGPROBS", "ScoreInputs", "add_statistics", "score_weights", "told", "top_probability"]
