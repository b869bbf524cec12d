"""How large the weights of a module are, and whether they are numbers at all."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mmrl_core.errors import NotFiniteError
from mmrl_core.support.sharding import local, norm_of_shares

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn


NOT_FINITE = "the weights are not finite"


def finite_norm(module: nn.Module, step: int) -> float:
    """The 2-norm of the trained weights taken together, 0 if none is trained. It costs what a gradient's norm costs.

    Every process calls it where the weights are sharded.

    Args:
        step: after which the weights are as they are, for the message.

    Raises:
        NotFiniteError: a weight is NaN or infinite; names the first.
    """
    import torch

    trained = [local(parameter.detach()) for parameter in module.parameters() if parameter.requires_grad]
    if not trained:
        return 0.0
    norms = torch._foreach_norm(trained)
    norm = float(torch.stack([norm.float().to(norms[0].device) for norm in norms]).cpu().double().norm())
    norm = norm_of_shares(module, norm)
    if not math.isfinite(norm):
        hint = "Lower optimizer.lr, and go on from a checkpoint before." if step else "The model is broken."
        raise NotFiniteError(f"after step {step}, {describe_weights(module)}. {hint}")
    return norm


def refuse_broken(module: nn.Module, path: str | Path) -> None:
    """Raise NotFiniteError where a weight of a model that was loaded from a path is NaN or infinite.

    It looks at every weight, so it is for finding out why a model cannot be used.
    """
    if (told := describe_weights(module)).startswith(NOT_FINITE):
        raise NotFiniteError(f"{path}: {told}. The model is broken.")


def describe_weights(module: nn.Module) -> str:
    """A clause that says whether the weights are finite: the first tensor that is not, or the largest weight.

    It looks at every weight, so it is for messages.
    """
    import torch

    largest, where = -1.0, ""
    for name, parameter in module.named_parameters():
        values = local(parameter.detach())
        if type(values) is not torch.Tensor or not values.is_floating_point():  # such as quantised ones
            continue
        if num_broken := int((~values.isfinite()).sum()):
            return f"{NOT_FINITE}, first in {name!r} ({num_broken} of {values.numel()} numbers are NaN or infinite)"
        if values.numel() and (peak := float(values.abs().max())) > largest:
            largest, where = peak, name
    return f"the weights are finite, the largest is {largest:.3g}, in {where!r}"
