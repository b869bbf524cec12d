"""The policy's weights and files as vLLM takes them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmrl_core.errors import PolicyError
from mmrl_core.language_model.engines.base import Sampler
from mmrl_core.support import is_shared, whole, whole_on_first


def merged_weights(
    policy: Sampler, *, adapters: bool = True, held: Mapping[str, Tensor] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """The policy's weights under the names they are saved with, adapters merged into copies or left out, one at a time.

    Args:
        held: all weights, where processes share them; default: those of the model, each gathered when its turn comes.

    Raises:
        PolicyError: an adapter belongs to weights that are saved in another form.
    """
    from transformers.core_model_loading import revert_weight_conversion

    base = policy.model.base
    weights: dict[str, Tensor] = {}
    adapted: dict[Tensor, Any] = {}  # weight -> the layer that adapts it; a tensor is equal to itself only as a key
    for name, weight in (base.state_dict() if held is None else held).items():
        layer_name, inner, rest = name.rpartition(".base_layer.")
        if inner:
            name = f"{layer_name}.{rest}"
            if rest not in ("weight", "bias"):
                raise PolicyError("model.lora adapts experts, which vLLM cannot merge here. Use rollout.engine=hf.")
            if rest == "weight":
                adapted[weight] = base.get_submodule(layer_name)
        if ".lora_" not in name:
            weights[name] = weight
    saved = revert_weight_conversion(base, weights)
    if not adapted.keys() <= set(saved.values()):
        raise PolicyError("model.lora adapts weights that vLLM takes in another form only. Use rollout.engine=hf.")
    head, embedding = base.get_output_embeddings(), base.get_input_embeddings().weight
    tied = head is not None and head.weight is embedding
    for name, weight in saved.items():
        if tied and name.endswith("lm_head.weight"):  # saved once, as the embedding; vLLM ties them by the config
            continue
        if adapters and (layer := adapted.get(weight)) is not None:
            with torch.no_grad():
                weight = weight + sum(layer.get_delta_weight(adapter) for adapter in layer.active_adapters)
        # transformers saves Qwen2-Audio with one "model." too many, where the published weights have none.
        yield name.replace("language_model.model.model.", "language_model.model."), whole(weight)


def sent_weights(
    policy: Sampler, *, adapters: bool = True, held: Mapping[str, Tensor] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """`merged_weights` in the type that the policy computes in."""
    dtype = computed_dtype(policy)
    return ((name, weight.to(dtype)) for name, weight in merged_weights(policy, adapters=adapters, held=held))


def held_weights(policy: Sampler) -> dict[str, Tensor] | None:
    """Where processes share the weights, all of them in the first one's memory; every process asks. None elsewhere."""
    weights = policy.model.base.state_dict(keep_vars=True)
    return whole_on_first(weights) if any(map(is_shared, weights.values())) else None


def computed_dtype(policy: Sampler) -> torch.dtype:
    """Type of the numbers that the policy computes in."""
    with policy.autocast():
        mixed = torch.is_autocast_enabled(policy.model.device.type)
    return torch.bfloat16 if mixed else policy.model.base.get_input_embeddings().weight.dtype


def model_files(policy: Sampler) -> dict[str, bytes]:
    """Config, tokenizer and processor as the policy uses them, pixel limits included."""
    with tempfile.TemporaryDirectory(prefix="mmrl-vllm-") as name:
        folder = Path(name)
        policy.model.base.config.save_pretrained(folder)
        policy.encoder.processor.save_pretrained(folder)
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
