"""Checkpoints: written aside, renamed when complete, every file with its checksum, never loaded torn or altered.

checkpoints/step-N/model/           weights (safetensors), config and processor, loadable with from_pretrained
                   frozen/          named frozen policies (safetensors)
                   training.pt      optimiser, random-number generators, plugin state (tensors and plain values)
                   state.json       position of the run, its data files, and every file with size and checksum

`writing` and `reading` are those two, `checksums` what both compute, `states` what is kept in memory for a step that
fails, `resuming` what may have changed between a run and its resume, `keeping` when a run is saved and resumed.
"""

from mmrl_core.checkpoint.keeping import Keeper
from mmrl_core.checkpoint.reading import find_checkpoint, latest_checkpoint, load_checkpoint, load_newest, read_state
from mmrl_core.checkpoint.resuming import MAY_CHANGE, refuse_other_run, split_changes
from mmrl_core.checkpoint.states import PluginStates
from mmrl_core.checkpoint.writing import check_space, save_checkpoint

__all__ = [
    "MAY_CHANGE",
    "Keeper",
    "PluginStates",
    "check_space",
    "find_checkpoint",
    "latest_checkpoint",
    "load_checkpoint",
    "load_newest",
    "read_state",
    "refuse_other_run",
    "save_checkpoint",
    "split_changes",
]
