"""Distributions of the initial latent, and the network that predicts what they are worth.

A distribution is a module: `distribution(embedding) -> (mean, log_std)`, each of latent shape. All of them start at
N(0, I) exactly, so that an untrained policy is the unchanged pipeline.

The standard deviation has a lower bound, since latents that lose their norm give poor pictures:
std = min_std + (1 - min_std) * exp(raw), where `raw` is what is trained. A clamp would hold the bound too, but an entry
that reached it would have no gradient to leave it; here the gradient becomes small and never 0. With min_std 0, raw is
the log of the standard deviation.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmrl_core.errors import PolicyError

if TYPE_CHECKING:
    from mmrl_find.pipeline import PromptEmbedding


class NoiseDistribution(nn.Module):
    """What the distributions share: the shape of a latent, and the bound of the standard deviation.

    Attributes:
        slots: prompt text -> index of its parameters, where prompts have parameters of their own.

    Raises:
        PolicyError: min_std is not in [0, 1).
    """

    def __init__(self, latent_shape: Sequence[int], min_std: float) -> None:
        super().__init__()
        if not 0.0 <= min_std < 1.0:
            raise PolicyError(f"min_std is {min_std}; it has to be 0 or more and below 1, where training starts.")
        self.latent_shape = tuple(latent_shape)
        self.min_std = min_std
        self.slots: dict[str, int] = {}

    def log_std(self, raw: Tensor) -> Tensor:
        """log(min_std + (1 - min_std) * exp(raw)); 0 where raw is 0."""
        return torch.log(self.min_std + (1.0 - self.min_std) * raw.exp())


class PerPromptNoise(NoiseDistribution):
    """A mean and a standard deviation for each prompt text, as FIND has them.

    Prompts get a slot each when they are first trained; any other prompt has N(0, I). Each slot is a parameter pair of
    its own, without gradient in a step that its prompt is not part of, so that AdamW leaves it alone.
    """

    def __init__(self, latent_shape: Sequence[int], min_std: float, num_prompts: int) -> None:
        super().__init__(latent_shape, min_std)
        self.mean = nn.ParameterList(torch.zeros(*latent_shape) for _ in range(num_prompts))
        self.raw_std = nn.ParameterList(torch.zeros(*latent_shape) for _ in range(num_prompts))

    def forward(self, embedding: PromptEmbedding) -> tuple[Tensor, Tensor]:
        """Mean and log std [*latent_shape]; with gradient enabled, a prompt without a slot is given one.

        Raises:
            PolicyError: all slots are taken.
        """
        slot = self.slots.get(embedding.text)
        if slot is None:
            if not torch.is_grad_enabled():
                zeros = torch.zeros_like(self.mean[0])
                return zeros, zeros.clone()
            slot = len(self.slots)
            if slot == len(self.mean):
                raise PolicyError(
                    f"no room for prompt {embedding.text!r}: num_prompts is {slot}. Set it to the number of different "
                    "prompts that are trained, or distribution to amortised."
                )
            self.slots[embedding.text] = slot
        return self.mean[slot], self.log_std(self.raw_std[slot])


class SharedNoise(NoiseDistribution):
    """One mean and one standard deviation for all prompts."""

    def __init__(self, latent_shape: Sequence[int], min_std: float) -> None:
        super().__init__(latent_shape, min_std)
        self.mean = nn.Parameter(torch.zeros(*latent_shape))
        self.raw_std = nn.Parameter(torch.zeros(*latent_shape))

    def forward(self, embedding: PromptEmbedding) -> tuple[Tensor, Tensor]:
        """Mean and log std [*latent_shape]."""
        return self.mean, self.log_std(self.raw_std)


class AmortisedNoise(NoiseDistribution):
    """Mean and standard deviation computed from the prompt's embedding, for any prompt: an MLP, its last layer zero.

    Two hidden layers; parameters: about 2 * hidden_size * D for a latent of D entries.
    """

    def __init__(self, latent_shape: Sequence[int], min_std: float, embedding_size: int, hidden_size: int) -> None:
        super().__init__(latent_shape, min_std)
        self.layers = _mlp(embedding_size, hidden_size, hidden_size, 2 * prod(latent_shape))
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, embedding: PromptEmbedding) -> tuple[Tensor, Tensor]:
        """Mean and log std [*latent_shape]."""
        vector = embedding.vector.to(next(self.parameters()))
        mean, raw = self.layers(vector).view(2, *self.latent_shape)
        return mean, self.log_std(raw)


class ValueNetwork(nn.Module):
    """Predicts the mean reward of a distribution: V(mean, std, prompt), an MLP with three hidden layers.

    Source: FIND, arXiv:2407.19453 (dynamic reward calibration), sizes of its public code.
    """

    def __init__(self, latent_shape: Sequence[int], embedding_size: int, hidden_size: int) -> None:
        super().__init__()
        self.layers = _mlp(2 * prod(latent_shape) + embedding_size, hidden_size, hidden_size, hidden_size, 1)

    def forward(self, mean: Tensor, log_std: Tensor, vector: Tensor) -> Tensor:
        """Predicted reward [B] of distributions: mean and log_std [B, *latent_shape], vector [B, E]."""
        features = torch.cat([mean.flatten(1), log_std.exp().flatten(1), vector], dim=1)
        value: Tensor = self.layers(features).squeeze(1)
        return value


def _mlp(*sizes: int) -> nn.Sequential:
    layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1])  # none after the last
