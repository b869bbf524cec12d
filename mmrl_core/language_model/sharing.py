"""A language model whose weights several processes share."""

from __future__ import annotations

import torch

from mmrl_core.errors import PolicyError
from mmrl_core.language_model.engines.base import Engine, OtherProgram
from mmrl_core.language_model.engines.hf import HFEngine
from mmrl_core.language_model.module import LanguageModel
from mmrl_core.language_model.options import LanguageModelOptions
from mmrl_core.language_model.towers import TowerUse
from mmrl_core.support import shard


def share_model(
    model: LanguageModel,
    options: LanguageModelOptions,
    engine: Engine,
    computed: torch.dtype | None,
    processes: int | None,
) -> TowerUse:
    """Leave each process its share of the weights: decoder layers are gathered one at a time, the rest for each pass.

    A model that runs its own forward calls its layers as often as its rows differ, so it is gathered whole.

    Args:
        computed, processes: see `shard`.

    Returns:
        What tells the weights of towers that no process has used in an update.

    Raises:
        PolicyError: the weights are quantised, or the rollout engine has no way to them.
    """
    if options.quantization is not None:
        raise PolicyError("sharding: quantised weights cannot be shared. Take sharding or model.quantization out.")
    if isinstance(engine, HFEngine) and engine.copies:
        raise PolicyError("sharding: no process can copy all weights. Take rollout.engine.copy and steps_ahead out.")
    if options.lora is not None and isinstance(engine, OtherProgram):
        raise PolicyError("sharding: an adapter in shares cannot be merged for vLLM. Set rollout.engine to hf.")
    use = TowerUse(model.base)
    layers = [] if model.plain_reason is not None else list(getattr(model.base.get_decoder(), "layers", []))
    shard(model, layers, computed=computed, processes=processes)
    return use
