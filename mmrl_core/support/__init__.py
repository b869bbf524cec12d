"""Small helpers that know nothing of training: files written whole, late imports, packages of an extra, norms."""

from mmrl_core.support.absent_packages import stand_ins
from mmrl_core.support.blaming import Blaming, blame, blamed
from mmrl_core.support.extras import DISTRIBUTIONS, need
from mmrl_core.support.files import finite, remove_unfinished, writes_to, written_aside
from mmrl_core.support.lazy import lazy_names
from mmrl_core.support.lock import LOCK_FILE, FolderLock, is_held, locked_folder
from mmrl_core.support.model_paths import local_model
from mmrl_core.support.model_sizes import Layers, ModelSizes, PromptSizes
from mmrl_core.support.parent import end_with_parent, kill_when_closed
from mmrl_core.support.processes import Processes, losses_named, make_accelerator, process_lost
from mmrl_core.support.sharding import (
    gathered,
    is_first,
    is_shared,
    laid_out_like,
    load_optimizer,
    load_whole,
    local,
    save_optimizer,
    shard,
    share_weights,
    sharing_in_words,
    swap_weights,
    whole,
    whole_on_first,
)
from mmrl_core.support.stopping import SIGNALS, Interrupted, Stopping
from mmrl_core.support.weights import describe_weights, finite_norm, refuse_broken

__all__ = [
    "DISTRIBUTIONS",
    "LOCK_FILE",
    "SIGNALS",
    "Blaming",
    "FolderLock",
    "Interrupted",
    "Layers",
    "ModelSizes",
    "Processes",
    "PromptSizes",
    "Stopping",
    "blame",
    "blamed",
    "describe_weights",
    "end_with_parent",
    "finite",
    "finite_norm",
    "gathered",
    "is_first",
    "is_held",
    "is_shared",
    "kill_when_closed",
    "laid_out_like",
    "lazy_names",
    "load_optimizer",
    "load_whole",
    "local",
    "local_model",
    "locked_folder",
    "losses_named",
    "make_accelerator",
    "need",
    "process_lost",
    "refuse_broken",
    "remove_unfinished",
    "save_optimizer",
    "shard",
    "share_weights",
    "sharing_in_words",
    "stand_ins",
    "swap_weights",
    "whole",
    "whole_on_first",
    "writes_to",
    "written_aside",
]
