"""Finding plugins, keeping what they provide, and attributing hooks to them.

`registry.py` and `hook_results.py` are needed by the lowest floors and may be imported by themselves.
"""

from mmrl_core.plugins.discovery import Plugin, Plugins, TaskEntry, is_behaviour, load_plugins, presets
from mmrl_core.plugins.hook_calls import attribute_hooks
from mmrl_core.plugins.registry import CORE, KINDS, Entry, Kind, Registry, check_options, install_hint
from mmrl_core.plugins.reward_styles import GOLD_COLUMNS, PEERS, sign_of_style, styled

__all__ = [
    "CORE",
    "GOLD_COLUMNS",
    "KINDS",
    "PEERS",
    "Entry",
    "Kind",
    "Plugin",
    "Plugins",
    "Registry",
    "TaskEntry",
    "attribute_hooks",
    "check_options",
    "install_hint",
    "is_behaviour",
    "load_plugins",
    "presets",
    "sign_of_style",
    "styled",
]
