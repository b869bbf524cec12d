"""Configs of TRL, verl, EasyR1 and ms-swift as tasks: what keys are called here, and how values translate."""

from mmrl_core.peers.files import NAMES, TABLES
from mmrl_core.peers.importing import imported
from mmrl_core.peers.keys import UNSET, Key
from mmrl_core.peers.names import ADVANTAGES, HEAD, LOSSES, OPTIONS, TEXT, Named
from mmrl_core.peers.task import default_of

__all__ = [
    "ADVANTAGES",
    "HEAD",
    "LOSSES",
    "NAMES",
    "OPTIONS",
    "TABLES",
    "TEXT",
    "UNSET",
    "Key",
    "Named",
    "default_of",
    "imported",
]
