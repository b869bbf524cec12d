"""Small helpers that know nothing of training: files written whole, names imported late, packages of an extra."""

from mmrl_core.support.extras import need
from mmrl_core.support.files import finite, remove_unfinished, writes_to, written_aside
from mmrl_core.support.lazy import lazy_names
from mmrl_core.support.lock import LOCK_FILE, FolderLock, locked_folder
from mmrl_core.support.stopping import Interrupted, Stopping

__all__ = [
    "LOCK_FILE",
    "FolderLock",
    "Interrupted",
    "Stopping",
    "finite",
    "lazy_names",
    "locked_folder",
    "need",
    "remove_unfinished",
    "writes_to",
    "written_aside",
]
