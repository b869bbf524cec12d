"""Searches over initial noise without gradients: what FIND has to beat at equal cost.

Each takes `generate(latents, prompts, seeds)` as `FrozenPipeline.generate` and `score(generated, prompt)`, makes
exactly `budget` images of one prompt, and returns the best latent. A seed fixes all that is drawn; `batch_size` changes
no draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmrl_core.errors import ConfigError, RewardError

if TYPE_CHECKING:
    from mmrl_find.pipeline import Generated

Generate = Callable[[Tensor, Sequence[str], Sequence[int]], Sequence["Generated"]]
Score = Callable[[Sequence["Generated"], str], Sequence[float | None]]


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        latent: float32 [*latent_shape], the best initial noise.
        seed: of the denoising that the reward was seen with; matters with eta > 0 only.
        reward: of that image, in units of the score.
        history: (images made, best reward so far) after each batch; -inf while nothing was scored.
        mean, std: float32 [*latent_shape], the Gaussian that the cross-entropy method ended with, to be tried on fresh
            noise; None of the others.
    """

    latent: Tensor
    seed: int
    reward: float
    history: tuple[tuple[int, float], ...]
    mean: Tensor | None = None
    std: Tensor | None = None


class _Evaluation:
    """Generates, scores, and remembers the best."""

    def __init__(
        self, generate: Generate, score: Score, prompt: str, *, budget: int, seed: int, batch_size: int
    ) -> None:
        for name, value in (("budget", budget), ("batch_size", batch_size)):
            if value < 1:
                raise ConfigError(f"{name} is {value}; a search needs 1 or more.")
        self._generate, self._score, self._prompt = generate, score, prompt
        self._budget, self._batch_size = budget, batch_size
        self.noise = torch.Generator().manual_seed(seed)
        self._seeds = torch.Generator().manual_seed(
            seed
        )  # its own, so that the noise is that of any run with this seed
        self._best: tuple[float, Tensor, int] | None = None
        self.history: list[tuple[int, float]] = []
        self.num_images = 0

    @property
    def left(self) -> int:
        """Images that may still be made."""
        return self._budget - self.num_images

    def rewards(self, latents: Tensor) -> Tensor:
        """float64 [n] of latents [n, *latent_shape]; -inf where an image was not scored."""
        rewards = []
        seeds = torch.randint(2**31, (len(latents),), generator=self._seeds).tolist()
        for start in range(0, len(latents), self._batch_size):
            part, its_seeds = latents[start : start + self._batch_size], seeds[start : start + self._batch_size]
            scores = self._score(self._generate(part, [self._prompt] * len(part), its_seeds), self._prompt)
            for latent, seed, value in zip(part, its_seeds, scores, strict=True):
                reward = -math.inf if value is None or math.isnan(value) else float(value)
                rewards.append(reward)
                if reward > (-math.inf if self._best is None else self._best[0]):
                    self._best = reward, latent.clone(), seed
            self.num_images += len(part)
            self.history.append((self.num_images, -math.inf if self._best is None else self._best[0]))
        return torch.tensor(rewards, dtype=torch.float64)

    def result(self, mean: Tensor | None = None, std: Tensor | None = None) -> SearchResult:
        if self._best is None:
            raise RewardError(f"none of the {self.num_images} images of {self._prompt!r} could be scored.")
        reward, latent, seed = self._best
        return SearchResult(latent, seed, reward, tuple(self.history), mean, std)


def best_of_n(
    generate: Generate,
    score: Score,
    prompt: str,
    latent_shape: Sequence[int],
    *,
    budget: int,
    seed: int = 0,
    batch_size: int = 8,
) -> SearchResult:
    """The best of `budget` latents from N(0, I).

    Raises:
        ConfigError: budget or batch_size is below 1.
        RewardError: no image could be scored.

    Source: random search of Ma et al., arXiv:2501.09732.
    """
    evaluation = _Evaluation(generate, score, prompt, budget=budget, seed=seed, batch_size=batch_size)
    evaluation.rewards(torch.randn(budget, *latent_shape, generator=evaluation.noise))
    return evaluation.result()


def zero_order(
    generate: Generate,
    score: Score,
    prompt: str,
    latent_shape: Sequence[int],
    *,
    budget: int,
    num_neighbours: int = 4,
    distance: float = 0.5,
    seed: int = 0,
    batch_size: int = 8,
) -> SearchResult:
    """Hill climbing: tries neighbours of a pivot, and moves to the best of them if it is better.

    Args:
        budget: images in all, the first pivot's included.
        num_neighbours: of each round; the last round has what is left of the budget.
        distance: between a neighbour and the pivot, in units of the pivot's norm, above 0 and at most sqrt(2).

    Raises:
        ConfigError: a number is out of its range.
        RewardError: no image could be scored.

    Source: zero-order search of Ma et al., arXiv:2501.09732. Our choice: neighbours also keep the pivot's norm, because
    images degrade when latents leave the shell of radius sqrt(D) where the model's noise lies.
    """
    if num_neighbours < 1 or not 0 < distance <= math.sqrt(2):
        raise ConfigError(
            f"num_neighbours is {num_neighbours} and distance {distance}; they need at least 1, and 0 < distance <= "
            "sqrt(2), where a neighbour is as good as independent."
        )
    evaluation = _Evaluation(generate, score, prompt, budget=budget, seed=seed, batch_size=batch_size)
    pivot = torch.randn(*latent_shape, generator=evaluation.noise)
    best = evaluation.rewards(pivot[None])[0]
    while evaluation.left:
        candidates = _neighbours(pivot, min(num_neighbours, evaluation.left), distance, evaluation.noise)
        rewards = evaluation.rewards(candidates)
        if rewards.max() > best:
            best, pivot = rewards.max(), candidates[rewards.argmax()]
    return evaluation.result()


def _neighbours(pivot: Tensor, count: int, distance: float, generator: torch.Generator) -> Tensor:
    """[count, *latent_shape] of the pivot's norm, `distance` norms away from it in directions drawn evenly."""
    flat = pivot.flatten().double()
    norm = flat.norm()
    unit = flat / norm
    directions = torch.randn(count, flat.numel(), generator=generator, dtype=torch.float64)
    directions -= (directions @ unit)[:, None] * unit  # tangents of the sphere
    directions /= directions.norm(dim=1, keepdim=True)
    angle = 2 * math.asin(distance / 2)  # a chord of this length spans it
    rotated = norm * (math.cos(angle) * unit + math.sin(angle) * directions)
    return rotated.to(pivot.dtype).view(count, *pivot.shape)


def cross_entropy(
    generate: Generate,
    score: Score,
    prompt: str,
    latent_shape: Sequence[int],
    *,
    budget: int,
    population: int = 16,
    num_elite: int = 4,
    smoothing: float = 0.3,
    min_std: float = 0.5,
    seed: int = 0,
    batch_size: int = 8,
) -> SearchResult:
    """Cross-entropy method: a Gaussian moves towards the best of its own samples.

    mean <- (1 - smoothing) mean + smoothing * mean of the elite, and variances likewise.

    Args:
        population: samples of each generation; what is left of the budget at the end is scored and moves nothing.
        num_elite: best samples that the Gaussian moves towards, 2 or more and fewer than the population.
        smoothing: share of the elite, above 0 and at most 1.
        min_std: lower bound of the standard deviations, as for `find/noise`: below it latents lose their norm.

    Returns:
        With the final mean and std; the best latent is a sample, as in the other searches.

    Raises:
        ConfigError: a number is out of its range.
        RewardError: no image could be scored.

    Source: de Boer et al., A tutorial on the cross-entropy method, Annals of Operations Research 134 (2005). Our
    choice: the elite's variance divides by n - 1; with n, entries that do not matter would shrink in each generation.
    """
    if not 2 <= num_elite < population or not 0 < smoothing <= 1:
        raise ConfigError(
            f"population is {population}, num_elite {num_elite}, smoothing {smoothing}; they need 2 <= num_elite < "
            "population and 0 < smoothing <= 1."
        )
    evaluation = _Evaluation(generate, score, prompt, budget=budget, seed=seed, batch_size=batch_size)
    mean, std = torch.zeros(*latent_shape), torch.ones(*latent_shape)
    while evaluation.left:
        noise = torch.randn(min(population, evaluation.left), *latent_shape, generator=evaluation.noise)
        latents = mean + std * noise
        rewards = evaluation.rewards(latents)
        order = rewards.argsort(descending=True, stable=True)[:num_elite]
        elite = latents[order[rewards[order] > -math.inf]]
        if len(noise) == population and len(elite) == num_elite:
            mean = mean.lerp(elite.mean(0), smoothing)
            std = std.square().lerp(elite.var(0), smoothing).sqrt().clamp(min=min_std)
    return evaluation.result(mean, std)
