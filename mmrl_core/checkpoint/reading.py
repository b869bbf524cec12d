"""Finds and loads checkpoints. One that is torn or altered is passed over, by name, for the one before."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl_core.checkpoint.checksums import OWN_CHECKSUM, STATE_FILE, checksum_of_values, first_fault
from mmrl_core.checkpoint.states import set_generator_states
from mmrl_core.errors import CheckpointError
from mmrl_core.run import TrainState

if TYPE_CHECKING:
    from mmrl_core.policy import Policy

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"
SHARES = "optimizer"
"""Folder of a sharded optimiser in a checkpoint."""
_STEP = re.compile(r"step-(\d+)")


def read_state(directory: Path, *, within: str = "") -> TrainState:
    """The state of a checkpoint whose files are all there, and as they were written.

    Args:
        directory: the checkpoint.
        within: read only the files below it for their checksums: "model/" for whoever needs the weights alone.

    Raises:
        CheckpointError: a file is missing, or has another size or checksum than when it was written.
    """
    try:
        values = json.loads((directory / STATE_FILE).read_text(encoding="utf-8"))
        own = values.pop(OWN_CHECKSUM, None)  # 0.1.0 wrote none
        altered = own is not None and own != checksum_of_values(values)
        files = values.pop("files")
        state = TrainState(**values)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{directory} is no checkpoint, or a torn one: {error}") from error
    if altered:
        raise CheckpointError(f"{directory} is torn: {STATE_FILE} has changed since it was written.")
    if (fault := first_fault(directory, files, within)) is not None:
        raise CheckpointError(f"{directory} is torn: {fault}.")
    return state


def load_checkpoint(directory: Path, policy: Policy) -> tuple[TrainState, dict[str, Any]]:
    """Restore weights, frozen policies and generators.

    Returns:
        The run's state; and {"optimizer": state dict, folder of shares or None, "plugins": {name: state}}.

    Raises:
        CheckpointError: the checkpoint is torn, altered or missing.
    """
    import torch

    state = read_state(directory)
    try:
        training = torch.load(directory / "training.pt", weights_only=True)
    except Exception as error:  # torch and pickle raise anything on what is not theirs
        raise CheckpointError(f"{directory} is torn: training.pt cannot be read: {error}") from error
    if (shares := directory / SHARES).is_dir():
        training["optimizer"] = shares
    policy.load(directory / "model")
    policy.load_frozen(directory / "frozen")
    set_generator_states(training.pop("generators"))
    return state, training


def load_newest(
    run: Path, policy: Policy, told: Callable[[str], None]
) -> tuple[Path, TrainState, dict[str, Any]] | None:
    """Restore the newest whole checkpoint of a run; None if it has written none.

    Args:
        told: called with a line for each checkpoint that is passed over, and why.

    Raises:
        CheckpointError: there are checkpoints, and none is whole.
    """
    faults = []
    for directory in reversed(checkpoints_of(run)):
        try:
            return directory, *load_checkpoint(directory, policy)
        except CheckpointError as error:
            faults.append(str(error))
            told(f"passed over: {error}")
    if faults:
        raise CheckpointError(
            f"no checkpoint in {run / FOLDER} is whole, so there is nothing to resume from. Bring one back from a "
            f"copy, or delete the folder {FOLDER} to start anew.\n" + "\n".join(f"  {fault}" for fault in faults)
        )
    return None


def latest_checkpoint(run: Path, *, within: str = "") -> Path | None:
    """The newest whole checkpoint of a run; `within` as for `read_state`. A warning names each that is passed over."""
    for directory in reversed(checkpoints_of(run)):
        try:
            read_state(directory, within=within)
        except CheckpointError as error:
            logger.warning("passed over: %s", error)
            continue
        return directory
    return None


def find_checkpoint(path: Path) -> Path:
    """A checkpoint folder, with whole weights, from what a user names: itself, or a run whose newest one is meant.

    Raises:
        CheckpointError: there is none.
    """
    if (path / STATE_FILE).is_file():
        read_state(path, within="model/")
        return path
    if (found := latest_checkpoint(path, within="model/")) is not None:
        return found
    raise CheckpointError(f"{path} holds no whole checkpoint. Give a run folder, or its checkpoints/step-N.")


def checkpoints_of(run: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    found = [(int(match[1]), path) for path in run.glob(f"{FOLDER}/step-*") if (match := _STEP.fullmatch(path.name))]
    return [path for _, path in sorted(found)]
