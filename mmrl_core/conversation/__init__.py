"""Rollouts of one or several turns: strategies, environments, tools."""

from mmrl_core.conversation.environment import Environment, Reply, ToolEnvironment, make_environment
from mmrl_core.conversation.tools import Part, Question, Tool, ToolContext, schema, validated
from mmrl_core.conversation.turns import demonstrate, multi_turn

__all__ = [
    "Environment",
    "Part",
    "Question",
    "Reply",
    "Tool",
    "ToolContext",
    "ToolEnvironment",
    "demonstrate",
    "make_environment",
    "multi_turn",
    "schema",
    "validated",
]
