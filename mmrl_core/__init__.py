"""mmrl: reinforcement learning for multimodal models. The public names, loaded when first used."""

from typing import TYPE_CHECKING

from mmrl_core.support import lazy_names

if TYPE_CHECKING:
    from mmrl_core.conversation import Question, Reply, Tool, ToolContext
    from mmrl_core.errors import MMRLError, ToolError
    from mmrl_core.hookspecs import hookimpl
    from mmrl_core.plugins.registry import Registry
    from mmrl_core.types import Batch, Prompt, RewardView, Rollout, RolloutGroup, Row, Sampling, Scores

__all__ = [
    "Batch",
    "MMRLError",
    "Prompt",
    "Question",
    "Registry",
    "Reply",
    "RewardView",
    "Rollout",
    "RolloutGroup",
    "Row",
    "Sampling",
    "Scores",
    "Tool",
    "ToolContext",
    "ToolError",
    "hookimpl",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Batch": "types",
        "MMRLError": "errors",
        "Prompt": "types",
        "Question": "conversation",
        "Registry": "plugins.registry",
        "Reply": "conversation",
        "RewardView": "types",
        "Rollout": "types",
        "RolloutGroup": "types",
        "Row": "types",
        "Sampling": "types",
        "Scores": "types",
        "Tool": "conversation",
        "ToolContext": "conversation",
        "ToolError": "errors",
        "hookimpl": "hookspecs",
    },
)
