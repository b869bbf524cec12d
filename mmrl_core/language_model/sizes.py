"""Sizes of a model from its config alone: it is built on torch's meta device, which holds shapes and no numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmrl_core.language_model.adapter import add_lora
from mmrl_core.language_model.loading import base_and_adapter, model_without_weights
from mmrl_core.language_model.module import LOGIT_CHUNK
from mmrl_core.language_model.options import LanguageModelOptions
from mmrl_core.language_model.preparing import WEIGHT_TYPES, chosen_precision
from mmrl_core.language_model.towers import freeze_parameters
from mmrl_core.support import Layers, ModelSizes


def model_sizes(
    path: str | Path, *, device: torch.device | str = "cpu", revision: str | None = None, **given: Any
) -> ModelSizes:
    """Sizes of a model as the options would prepare it.

    Args:
        path: model folder, of which only the config is read, folder of a LoRA adapter, or hub name.
        device: that it would train on, which decides the precision "auto".
        revision: of the hub's model.
        given: fields of `LanguageModelOptions`.

    Raises:
        PolicyError: the config cannot be read, or the options do not fit the model.
    """
    options = LanguageModelOptions(**given)
    precision = chosen_precision(options, torch.device(device))
    dtype = WEIGHT_TYPES.get(precision, torch.float32)
    base, _ = base_and_adapter(path)
    model = model_without_weights(base, options, dtype, revision=revision)
    freeze_parameters(model, options.freeze)
    decoder = model.get_decoder()
    towers = [(_layers_of(part), part) for part in _towers(model, decoder)]
    of_decoder = _sizes_of(decoder.layers)
    vocabulary = model.config.get_text_config().vocab_size
    adapted: Any = model
    if options.lora is not None:
        with torch.device("meta"):
            adapted = add_lora(model, options, None, revision)
    parameters = list(adapted.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return ModelSizes(
        parameters=sum(parameter.numel() for parameter in parameters),
        weights=_num_bytes(parameters),
        trained=_num_bytes(trained),
        trained_numbers=sum(parameter.numel() for parameter in trained),
        computed=4 if precision == "float32" else 2,
        stream=dtype.itemsize,
        decoder=of_decoder,
        towers=tuple(
            _sizes_of(layers, trained=any(parameter.requires_grad for parameter in part.parameters()))
            for layers, part in towers
            if layers is not None
        ),
        vocabulary=vocabulary,
        chunk=max(1, LOGIT_CHUNK // vocabulary),
        adapted=options.lora is not None,
    )


def _num_bytes(parameters: list[nn.Parameter]) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)


def _towers(model: nn.Module, decoder: nn.Module) -> list[nn.Module]:
    """Outermost modules with layers of their own, outside of the text decoder."""
    found: list[nn.Module] = []
    waiting = [model]
    while waiting:
        module = waiting.pop()
        for child in module.children():
            if child is decoder:
                continue
            holds = any(part is decoder for part in child.modules())
            if not holds and _layers_of(child) is not None:
                found.append(child)
            elif holds:
                waiting.append(child)
    return found


def _layers_of(part: nn.Module) -> nn.ModuleList | None:
    """Its longest list of layers."""
    lists = [module for module in part.modules() if isinstance(module, nn.ModuleList) and len(module) > 0]
    return max(lists, key=len, default=None)


def _sizes_of(layers: nn.ModuleList, *, trained: bool = True) -> Layers:
    layer = layers[-1]  # the first may be without experts
    linear = {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}
    width = {name.rpartition(".")[2]: module.out_features for name, module in linear.items()}
    last = list(linear.values())[-1]
    inner, hidden = last.in_features, last.out_features
    outputs = [module.out_features for module in linear.values()]
    is_gated = outputs.count(inner) > 1 or 2 * inner in outputs
    queries = width.get("q_proj", hidden)
    keys = width.get("k_proj", queries) + width.get("v_proj", queries)
    projections = sum(outputs) + queries + inner * (1 + is_gated) + _of_experts(layer, hidden)
    own_norms = queries + keys // 2 if any("q_norm" in name for name, _ in layer.named_modules()) else 0
    norms = sum(name.endswith(("norm", "norm1", "norm2")) for name, _ in layer.named_children())
    return Layers(
        count=len(layers),
        parameters=sum(parameter.numel() for parameter in layer.parameters()),
        hidden=hidden,
        projections=projections,
        normed=norms * hidden + own_norms,
        queries=queries,
        keys=keys,
        trained=trained,
    )


def _of_experts(layer: nn.Module, hidden: int) -> int:
    """What a token leaves in the experts that it is sent to; their matrices are no linear layers."""
    for module in layer.modules():
        config = getattr(module, "config", None)
        if type(module).__name__.endswith("Experts") and config is not None:
            experts = getattr(config, "num_experts_per_tok", 1)
            return int(experts * (4 * getattr(config, "moe_intermediate_size", hidden) + 2 * hidden))
    return 0
