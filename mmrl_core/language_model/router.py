"""The auxiliary loss of a mixture of experts: routers should use all experts alike.

    num_experts * sum over experts of (share of choices that fell on it) * (its mean probability)

Both means are over layers and tokens. A token counts once for each sequence that it is in, so that a prompt that runs
once for its group weighs as much as in a padded batch of whole sequences, and padding weighs nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from mmrl_core.errors import PolicyError


class RouterBalance:
    """Watches the routers of a model, and computes their loss.

    Source: Switch Transformers, arXiv:2101.03961, equations 4 to 6; over several choices and layers as in transformers.
    """

    def __init__(self, model: Any, coefficient: float) -> None:
        """
        Args:
            model: of transformers, without a LoRA wrapper.
            coefficient: what the loss is multiplied by.

        Raises:
            PolicyError: transformers has no such loss for it.
        """
        self._coefficient = coefficient
        config = model.config.get_text_config()
        recorders = [getattr(part, "_can_record_outputs", None) or {} for part in model.get_decoder().modules()]
        recorder = next((item["router_logits"] for item in recorders if "router_logits" in item), None)
        known = hasattr(sys.modules[type(model).__module__], "load_balancing_loss_func")
        if recorder is None or not known:
            raise PolicyError(
                f"model.router_aux_loss: transformers has no such loss for {type(model).__name__}. Take it out."
            )
        self._index = recorder.index
        self._routers = [part for part in model.get_decoder().modules() if isinstance(part, recorder.target_class)]
        experts = ("num_experts", "num_local_experts")
        self._num_experts = next(getattr(config, name) for name in experts if hasattr(config, name))
        self._num_chosen = config.num_experts_per_tok
        self._logits: list[Tensor] = []  # [S, experts] of each layer of the passes that were not weighed yet

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Keep what routers say inside. Layers that run again in the backward pass are not heard twice."""
        self._chosen = self._probability = self._num_tokens = torch.zeros(())

        def keep(module: Any, inputs: Any, output: Any) -> None:
            self._logits.append(output[self._index] if isinstance(output, tuple) else output)

        handles = [router.register_forward_hook(keep) for router in self._routers]
        try:
            yield
        finally:
            self._logits.clear()
            for handle in handles:
                handle.remove()

    def weigh(self, counts: Tensor) -> None:
        """Take in the last pass: [S], how many sequences each of its tokens is in, 0 for padding."""
        for logits in self._logits:
            weights = counts.to(logits.device, torch.float32)
            probabilities = logits.float().softmax(-1).flatten(0, -2)
            chosen = one_hot(probabilities.topk(self._num_chosen).indices, self._num_experts).sum(1).float()
            self._chosen = self._chosen.to(logits.device) + weights @ chosen
            self._probability = self._probability.to(logits.device) + weights @ probabilities
            self._num_tokens = self._num_tokens.to(logits.device) + weights.sum()
        self._logits.clear()

    def loss(self) -> Tensor:
        """The loss of all passes that were weighed, times its coefficient."""
        shares, means = self._chosen / self._num_tokens, self._probability / self._num_tokens
        return self._coefficient * self._num_experts * (shares * means).sum()
