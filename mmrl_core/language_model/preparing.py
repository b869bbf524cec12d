"""A transformers model made ready to sample and to be trained: shared prompts, frozen parts, adapters, layout."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mmrl_core.errors import PolicyError
from mmrl_core.language_model.adapter import add_lora, linear_layers, load_adapter
from mmrl_core.language_model.attention import share_prefix
from mmrl_core.language_model.decode_step import steps_alike
from mmrl_core.language_model.loading import load_model
from mmrl_core.language_model.module import LanguageModel
from mmrl_core.language_model.options import LanguageModelOptions
from mmrl_core.language_model.quantizing import quantize
from mmrl_core.language_model.router import RouterBalance
from mmrl_core.language_model.saving import check_writable
from mmrl_core.language_model.towers import PARTS, freeze_parameters, project_patches

WEIGHT_TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
"""Precision -> type of the weights, where it is not float32."""

COMPUTED = {"bfloat16_mixed": torch.bfloat16}
"""Precision -> type that products are computed in, where it is not that of the weights."""


def chosen_precision(options: LanguageModelOptions, device: torch.device) -> str:
    """`options.precision`, with "auto" decided."""
    if options.precision != "auto":
        return options.precision
    return "float32" if device.type == "cpu" else "bfloat16_mixed"


def prepared_model(
    path: str | Path,
    options: LanguageModelOptions,
    device: torch.device,
    *,
    revision: str | None = None,
    adapter: Path | None = None,
) -> LanguageModel:
    """Load a model, and prepare it as the options say.

    Args:
        path: model folder or hub name.
        options: of the policy.
        device: where the model goes.
        revision: of the hub's model.
        adapter: folder of a LoRA adapter of that model. It is trained on if the options have an adapter, or else
            merged into the weights.

    Raises:
        PolicyError: the model cannot be loaded, or the options do not fit it.
    """
    dtype = WEIGHT_TYPES.get(chosen_precision(options, device), torch.float32)
    base = load_model(path, options, dtype, revision=revision)
    if adapter is not None and options.lora is None:
        base = load_adapter(base, adapter).merge_and_unload().requires_grad_(True)
    project_patches(base)
    freeze_parameters(base, options.freeze)
    of_quantised = ["language"] if options.lora is not None else PARTS
    layers = [base.get_submodule(name) for part in of_quantised for name in linear_layers(base, part)]
    model = base if options.lora is None else add_lora(base, options, adapter, revision)
    if options.quantization is not None:  # last: adapters are put on plain layers, and merged into them
        quantize(model, layers, options.quantization, COMPUTED.get(chosen_precision(options, device), dtype))
    plain_reason = share_prefix(base)
    lean_decoding = plain_reason is None and steps_alike(base)
    if options.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise PolicyError(f"model.freeze={options.freeze} leaves nothing to train.")
    model.train()
    _disable_dropout(model)
    if device.type == "cpu":
        _lay_out_by_columns(model)
    if options.quantization is None or options.lora is not None:
        check_writable(model)
    prepared = LanguageModel(model, plain_reason=plain_reason, lean_decoding=lean_decoding).to(device)
    if options.quantization is not None:  # each process has them from the same file, and they are not to be sent
        fixed = [name for name, parameter in prepared.named_parameters() if not parameter.requires_grad]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(prepared, fixed)
    if options.router_aux_loss:
        prepared.router = RouterBalance(prepared.base, options.router_aux_loss)
    return prepared


def _lay_out_by_columns(model: nn.Module) -> None:
    """Store matrices column by column: with few rows, as in decoding, a CPU multiplies by them 1.4 times as fast."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and type(module.weight) is nn.Parameter:  # not a quantised one
            module.weight.data = module.weight.data.t().contiguous().t()


def _disable_dropout(model: nn.Module) -> None:
    """Dropout would make the logprobs of rollout and update differ for equal weights."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout") and isinstance(module.attention_dropout, float):
            setattr(module, "attention_dropout", 0.0)  # noqa: B010
