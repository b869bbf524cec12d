"""Errors a user can fix. The command line prints them without a traceback and exits with 2.

MMRLError
├── ConfigError       a task config is wrong: file, line, what, nearest valid key
├── PluginError       a plugin cannot be loaded, or lacks what a task names
├── MissingPackageError   an optional package is not installed
├── TaskDataError     a data file or row is wrong
│   ├── MediaError    an image, video or audio file cannot be read
│   └── UnfitPromptError   a row cannot be used: too long, refused by the processor, or without an answer
├── PolicyError       a model cannot be loaded, or cannot do what is asked of it
│   └── NotFiniteError   its weights or logits are NaN or infinite
├── RewardError       a reward is unknown, misdeclared, or failed where the run may not go on
├── ToolError         a tool call of the policy cannot be done; the policy reads why, and the run goes on
├── HookResultError   a hook returned something of the wrong type, shape or value
├── CheckpointError   a checkpoint is torn, missing, or of another run
└── ProcessLostError  one of the processes that train together has ended, or does not answer
"""

from __future__ import annotations

from collections.abc import Iterable


class MMRLError(Exception):
    """Base of every error a user can fix. The message says what is wrong, where, and what to do."""


class ConfigError(MMRLError):
    """A task config is wrong. The message lists every problem found, one a line."""


class PluginError(MMRLError):
    """A plugin failed to load, or no plugin provides a name that is asked for."""


class MissingPackageError(MMRLError):
    """A package of an extra of mmrl-core is not installed; see `mmrl_core.support.extras.need`."""


class TaskDataError(MMRLError):
    """A data file, split, column or row is wrong."""


class MediaError(TaskDataError):
    """An image, video or audio file cannot be read."""


class UnfitPromptError(TaskDataError):
    """A row is too long for the policy, holds what its processor refuses, or nothing to learn; see `data.on_long`."""


class PolicyError(MMRLError):
    """A model or processor cannot be loaded, or cannot do what is asked of it."""


class NotFiniteError(PolicyError):
    """Weights or logits are NaN or infinite; nothing that is trained so may be saved over what is sound."""


class RewardError(MMRLError):
    """A reward failed in a run that does not tolerate it, or is declared wrongly."""


class ToolError(MMRLError):
    """A tool call cannot be done. The policy reads the message; it is not the user's error."""


class HookResultError(MMRLError):
    """A hook or stage returned something of the wrong type, shape or value."""


class CheckpointError(MMRLError):
    """A checkpoint is torn, missing, or does not belong to this run."""


class ProcessLostError(MMRLError):
    """One of the processes that train together has ended, or does not answer. It is printed where it is raised."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint for the end of an error message: the known name nearest to a wrong one, or nothing.

    >>> did_you_mean("group_relativ", ["group_relative", "whiten"])
    " Did you mean 'group_relative'?"
    >>> did_you_mean("gae", ["group_relative", "whiten"])
    ''
    """
    import difflib

    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
