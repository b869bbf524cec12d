"""Writes checkpoints: aside, with a checksum of every file, and renamed when all of it is on the disk."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl_core.checkpoint.checksums import OWN_CHECKSUM, STATE_FILE, checksum_of_values, described_files
from mmrl_core.checkpoint.reading import FOLDER, SHARES, checkpoints_of
from mmrl_core.checkpoint.states import generator_states
from mmrl_core.errors import CheckpointError
from mmrl_core.run import TrainState
from mmrl_core.support import Processes, remove_unfinished, save_optimizer, writes_to, written_aside

if TYPE_CHECKING:
    from torch import nn

    from mmrl_core.policy import Policy

ADAM_BYTES = 8  # two float32 numbers for each trained one


def save_checkpoint(
    run: Path,
    state: TrainState,
    policy: Policy,
    optimizer: Any,
    plugin_state: Mapping[str, Any],
    *,
    keep: int,
    generators: dict[str, Any] | None = None,
    processes: Processes | None = None,
) -> Path:
    """Write `checkpoints/step-N`; keep the newest `keep` up to it, and none of later steps.

    Checkpoints of later steps are torn, or belong to a run that this one replaces.

    Args:
        optimizer: a torch optimiser, or None between stages.
        plugin_state: plugin name -> what its `mmrl_save_state` returned: plain values and tensors.
        generators: of random numbers, see `generator_states`; default: the present ones.
        processes: that share the weights; the others call `save_share` meanwhile.

    Raises:
        MMRLError: the disk is full, or the folder cannot be written. The checkpoints before are whole.
    """
    folder = run / FOLDER
    final = folder / f"step-{state.step}"
    training = {
        "optimizer": None if optimizer is None or processes is not None else optimizer.state_dict(),
        "generators": generator_states() if generators is None else generators,
        "plugins": dict(plugin_state),
    }
    with writes_to(run, f"the checkpoint of step {state.step}"):
        remove_unfinished(folder)
        # In place of the same step of a run that was resumed from before it, or of the end of its stage.
        with written_aside(final) as aside:
            _write(aside, state, policy, training, optimizer, processes)
        _flush(folder)
        delete_older(final, keep)
        found = checkpoints_of(run)
        for path in found[found.index(final) + 1 :]:
            shutil.rmtree(path)
    return final


def delete_older(newest: Path, keep: int) -> None:
    """Keep the newest `keep` checkpoints up to one, which is one of them, and delete those before."""
    found = checkpoints_of(newest.parents[1])
    for path in found[: max(found.index(newest) + 1 - keep, 0)]:
        shutil.rmtree(path)


def save_share(policy: Policy, optimizer: Any, processes: Processes) -> None:
    """What the other processes of a sharded run do while the first one is in `save_checkpoint`."""
    folder = next(path for path in processes.gather([None]) if path is not None)
    _write_weights(folder, policy, optimizer, processes)


def _write_weights(folder: Path, policy: Policy, optimizer: Any, processes: Processes | None) -> None:
    policy.save(folder / "model")
    policy.save_frozen(folder / "frozen")
    if processes is not None and optimizer is not None:
        save_optimizer(optimizer, folder / SHARES)
        processes.gather([None])  # all have written


def _write(
    folder: Path,
    state: TrainState,
    policy: Policy,
    training: Mapping[str, Any],
    optimizer: Any,
    processes: Processes | None,
) -> None:
    import torch

    (folder / "model").mkdir(parents=True)
    (folder / "frozen").mkdir()
    if processes is not None:
        processes.gather([folder])
    _write_weights(folder, policy, optimizer, processes)
    torch.save(dict(training), folder / "training.pt")
    values = {**asdict(state), "files": described_files(folder)}
    values[OWN_CHECKSUM] = checksum_of_values(values)
    (folder / STATE_FILE).write_text(json.dumps(values, indent=1), encoding="utf-8")
    for path in [folder, *folder.rglob("*")]:
        _flush(path)


def check_space(run: Path, module: nn.Module) -> None:
    """Refuse a disk on which not even the first checkpoint finds room: it has trained weights and optimiser.

    Raises:
        CheckpointError: says how much is missing.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    needed = sum(parameter.numel() * (parameter.element_size() + ADAM_BYTES) for parameter in trained)
    free = shutil.disk_usage(run).free
    if free < needed:
        raise CheckpointError(
            f"a checkpoint takes at least {needed / 1e9:.1f} GB, and {run} has room for {free / 1e9:.1f} GB. Make room "
            "there, or name another --output."
        )


def _flush(path: Path) -> None:
    """Make a file or folder survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
