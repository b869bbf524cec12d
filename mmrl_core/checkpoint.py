"""Checkpoints: written aside, renamed when complete, never loaded torn.

checkpoints/step-N/model/           weights (safetensors), config and processor, loadable with from_pretrained
                   frozen/          named frozen policies (safetensors)
                   training.pt      optimiser, random-number generators, plugin state (tensors and plain values)
                   state.json       position of the run; its last line lists every file with its size
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl_core.errors import CheckpointError, HookResultError
from mmrl_core.run import TrainState

if TYPE_CHECKING:
    from mmrl_core.policy import Policy

STATE_FILE = "state.json"


class PluginStates:
    """States of plugins as they are now, to be saved later if a step fails. Nothing of the size of a tensor is copied.

    Containers are copied and tensors shared, so a plugin must not change a tensor in place that it has handed out;
    torch counts such changes, and `unchanged` finds them.
    """

    def __init__(self, states: Mapping[str, Any]) -> None:
        """
        Args:
            states: plugin -> numbers, strings, lists, tuples, dicts and tensors.
        """
        self._tensors: list[tuple[str, Any, int]] = []
        self._states = {name: self._copied(name, state) for name, state in states.items()}

    def _copied(self, plugin: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: self._copied(plugin, item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._copied(plugin, item) for item in value)
        if hasattr(value, "_version"):  # a tensor
            self._tensors.append((plugin, value, value._version))
        return value

    def unchanged(self) -> dict[str, Any]:
        """The states.

        Raises:
            HookResultError: a plugin has since changed a tensor in place, so that its state is lost.
        """
        for plugin, tensor, version in self._tensors:
            if tensor._version != version:
                raise HookResultError(
                    f"plugin {plugin!r} changed a tensor in place that mmrl_save_state had returned, so the state "
                    "before the failed step is lost. Let the hook return a copy of what it changes in place."
                )
        return self._states


def save_checkpoint(
    run: Path,
    state: TrainState,
    policy: Policy,
    optimizer: Any,
    plugin_state: Mapping[str, Any],
    *,
    keep: int,
    generators: dict[str, Any] | None = None,
) -> Path:
    """Write `checkpoints/step-N`; keep the newest `keep` up to it, and none of later steps.

    Checkpoints of later steps are torn, or belong to a run that this one replaces.

    Args:
        optimizer: a torch optimiser, or None between stages.
        plugin_state: plugin name -> what its `mmrl_save_state` returned: plain values and tensors.
        generators: of random numbers, see `generator_states`; default: the present ones.
    """
    import torch

    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".unfinished-*"):
        shutil.rmtree(leftover)
    aside = folder / f".unfinished-step-{state.step}"
    (aside / "model").mkdir(parents=True)
    (aside / "frozen").mkdir()
    policy.save(aside / "model")
    policy.save_frozen(aside / "frozen")
    training = {
        "optimizer": None if optimizer is None else optimizer.state_dict(),
        "generators": generator_states() if generators is None else generators,
        "plugins": dict(plugin_state),
    }
    torch.save(training, aside / "training.pt")
    sizes = {str(path.relative_to(aside)): path.stat().st_size for path in sorted(aside.rglob("*")) if path.is_file()}
    (aside / STATE_FILE).write_text(json.dumps({**asdict(state), "files": sizes}, indent=1))
    for path in [aside, *aside.rglob("*")]:
        _flush(path)
    final = folder / f"step-{state.step}"
    if final.exists():  # the same step of a run that was resumed from before it, or the end of its stage
        trash = folder / f".unfinished-old-{state.step}"
        final.rename(trash)
    aside.rename(final)
    _flush(folder)
    for path in folder.glob(".unfinished-old-*"):
        shutil.rmtree(path)
    found = _checkpoints(run)
    newest = found.index(final) + 1
    for path in found[: max(newest - keep, 0)] + found[newest:]:
        shutil.rmtree(path)
    return final


def load_checkpoint(directory: Path, policy: Policy) -> tuple[TrainState, dict[str, Any]]:
    """Restore weights, frozen policies and generators.

    Returns:
        The run's state; and {"optimizer": state dict or None, "plugins": {name: state}}.

    Raises:
        CheckpointError: the checkpoint is torn or missing.
    """
    import torch

    state = read_state(directory)
    policy.load(directory / "model")
    policy.load_frozen(directory / "frozen")
    training = torch.load(directory / "training.pt", weights_only=True)
    _set_generator_states(training.pop("generators"))
    return state, training


def read_state(directory: Path) -> TrainState:
    """The state of a checkpoint whose files are all there.

    Raises:
        CheckpointError: a file is missing or has another size than when it was written.
    """
    try:
        values = json.loads((directory / STATE_FILE).read_text())
        sizes = values.pop("files")
        state = TrainState(**values)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{directory} is no checkpoint, or a torn one: {error}") from error
    for name, size in sizes.items():
        path = directory / name
        if not path.is_file() or path.stat().st_size != size:
            raise CheckpointError(f"{directory} is torn: {name} should have {size} bytes.")
    return state


def latest_checkpoint(run: Path) -> Path | None:
    """The newest whole checkpoint of a run."""
    for directory in reversed(_checkpoints(run)):
        try:
            read_state(directory)
        except CheckpointError:
            continue
        return directory
    return None


def find_checkpoint(path: Path) -> Path:
    """A checkpoint folder from what a user names: itself, or a run whose newest checkpoint is meant.

    Raises:
        CheckpointError: there is none.
    """
    if (path / STATE_FILE).is_file():
        read_state(path)
        return path
    if (found := latest_checkpoint(path)) is not None:
        return found
    raise CheckpointError(f"{path} holds no whole checkpoint. Give a run folder, or its checkpoints/step-N.")


def _checkpoints(run: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    found = [(int(match[1]), path) for path in run.glob("checkpoints/step-*") if (match := _STEP.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


_STEP = re.compile(r"step-(\d+)")


def generator_states() -> dict[str, Any]:
    import numpy
    import torch

    numpy_state = numpy.random.get_state(legacy=False)
    numpy_state["state"] = {**numpy_state["state"], "key": numpy_state["state"]["key"].tolist()}
    python_state = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": numpy_state,
        "python": [python_state[0], list(python_state[1]), python_state[2]],
    }


def _set_generator_states(states: dict[str, Any]) -> None:
    import numpy
    import torch

    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
    numpy_state = states["numpy"]
    numpy_state["state"]["key"] = numpy.array(numpy_state["state"]["key"], dtype=numpy.uint32)
    numpy.random.set_state(numpy_state)
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))


def _flush(path: Path) -> None:
    """Make a file or folder survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
