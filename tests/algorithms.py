"""The policy loss with its options by keyword, as golden files and tables of tests write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmrl_core import losses
from mmrl_core.config import AlgorithmConfig
from mmrl_core.loss_inputs import LossInputs
from mmrl_core.policy_loss import policy_loss as composed_loss


def policy_loss(
    inputs: LossInputs,
    *,
    surrogate: losses.Surrogate = losses.clipped,
    surrogate_options: Mapping[str, Any] | None = None,
    max_length: int | None = None,
    **options: Any,
) -> tuple[Tensor, losses.Metrics]:
    """The loss of an `AlgorithmConfig` made of `options`, see `algorithm_of`."""
    algorithm = algorithm_of(surrogate_options=surrogate_options, **options)
    return composed_loss(inputs, algorithm, surrogate, max_length=max_length)


def algorithm_of(
    *,
    surrogate_options: Mapping[str, Any] | None = None,
    aggregation: str = "token_mean",
    kl_coefficient: float = 0.0,
    kl_estimator: str = "k3",
    kl_times_ratio: bool = False,
    entropy_coefficient: float = 0.0,
    importance_level: str | None = None,
    importance_mode: str = "mask",
    importance_max: float = 3.0,
    importance_min: float = 0.0,
    off_policy_threshold: float | None = None,
) -> AlgorithmConfig:
    importance = {
        "level": importance_level,
        "mode": importance_mode,
        "maximum": importance_max,
        "minimum": importance_min,
    }
    return AlgorithmConfig.model_validate(
        {
            "loss": {"name": "clipped", **(surrogate_options or {})},
            "aggregate": aggregation,
            "kl": {"coefficient": kl_coefficient, "estimator": kl_estimator, "times_ratio": kl_times_ratio},
            "entropy_coefficient": entropy_coefficient,
            "importance_correction": None if importance_level is None else importance,
            "off_policy_threshold": off_policy_threshold,
        }
    )
