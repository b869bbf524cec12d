"""What a checkpoint holds besides weights: random-number generators, and states as they were before a step."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmrl_core.errors import HookResultError
from mmrl_core.run import TrainState


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


@dataclass(frozen=True)
class Snapshot:
    """All of a run but its weights and optimiser, as it was; a checkpoint of it can be written while these stand."""

    state: TrainState
    plugins: PluginStates
    generators: dict[str, Any]


def generator_states() -> dict[str, Any]:
    """Of all random-number generators, as tensors and plain values."""
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


def set_generator_states(states: dict[str, Any]) -> None:
    """Go on from what `generator_states` returned."""
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
