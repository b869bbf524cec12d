"""mmrl: reinforcement learning for multimodal models. The public names, loaded when first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmrl_core.environment import Reply
    from mmrl_core.errors import MMRLError, ToolError
    from mmrl_core.hookspecs import hookimpl
    from mmrl_core.plugins import Registry
    from mmrl_core.tools import Question, Tool, ToolContext
    from mmrl_core.types import Batch, Prompt, RewardView, Rollout, RolloutGroup, Row, Sampling, Scores

_HOMES = {
    "Batch": "types",
    "MMRLError": "errors",
    "Prompt": "types",
    "Question": "tools",
    "Registry": "plugins",
    "Reply": "environment",
    "RewardView": "types",
    "Rollout": "types",
    "RolloutGroup": "types",
    "Row": "types",
    "Sampling": "types",
    "Scores": "types",
    "Tool": "tools",
    "ToolContext": "tools",
    "ToolError": "errors",
    "hookimpl": "hookspecs",
}

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


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"mmrl_core.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'mmrl_core' has no attribute {name!r}")
