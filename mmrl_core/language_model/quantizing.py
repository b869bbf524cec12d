"""Linear layers with weights of 4 or 8 bits: for adapters that are trained on them, and for evaluation.

With `model.lora` the linear layers of the text decoder are quantised. Its head and embeddings, experts whose matrices
lie side by side, media towers and projectors keep the precision, and so do the adapters. Without `model.lora`, which
is for evaluation, the linear layers of towers and projectors are quantised too.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from mmrl_core.support import need

EXTRA = "quantization"


def quantize(model: nn.Module, layers: Collection[nn.Module], kind: str, computed: torch.dtype) -> None:
    """Replace the weights of linear layers by quantised ones, which are not trained.

    Args:
        model: holds the layers. Changed in place.
        layers: some of its `nn.Linear`s, also those inside adapters.
        kind: "int8", 8 bits and a scale for each row, by torchao; "nf4", 4 bits, a scale for each 64 numbers and
            these scales as 8 bits, by bitsandbytes.
        computed: type that products with weights of 4 bits are computed in; those of 8 bits take that of the input.

    Raises:
        MissingPackageError: the package that quantises is not installed.

    Source: QLoRA, arXiv:2305.14314, section 3, with double quantisation.
    """
    chosen = set(layers)
    if kind == "int8":
        torchao: Any = need("torchao.quantization", EXTRA, "model.quantization: int8")
        settings = torchao.Int8WeightOnlyConfig(set_inductor_config=False)
        torchao.quantize_(model, settings, lambda module, _: module in chosen)
        return
    bitsandbytes: Any = need("bitsandbytes.nn", EXTRA, "model.quantization: nf4")
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if module in chosen:
                setattr(parent, name, _four_bits(module, bitsandbytes, computed))


def _four_bits(linear: Any, bitsandbytes: Any, computed: torch.dtype) -> nn.Module:
    made = bitsandbytes.Linear4bit(
        linear.in_features, linear.out_features, bias=False, compute_dtype=computed, quant_type="nf4", device="meta"
    )
    weight = linear.weight.detach().contiguous()
    made.weight = bitsandbytes.Params4bit(weight, requires_grad=False, quant_type="nf4", module=made)
    made.weight = made.weight.to(weight.device)  # this quantises
    made.bias = linear.bias
    # On some CPUs it would lay its weights out anew in evaluation, in a form that has no gradient in training.
    made.support_avx512bf16_for_cpu = False
    return made.train(linear.training)
