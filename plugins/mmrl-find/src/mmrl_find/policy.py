"""The noise policy: a Gaussian over the initial latent of a frozen diffusion pipeline.

A rollout is one decision, the latent; what follows, denoising and decoding, is the environment. `NoisePolicy` is the
`Policy`; `NoiseModel` the module that is trained, whose forward gives the density of latents.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmrl_core.errors import CheckpointError, PolicyError
from mmrl_core.loss_inputs import TokenStats
from mmrl_core.policy import PolicyBase
from mmrl_core.run import derive_seed
from mmrl_core.types import Prompt, Rollout, RolloutGroup, Row, Sampling
from mmrl_find.distribution import AmortisedNoise, NoiseDistribution, PerPromptNoise, SharedNoise, ValueNetwork
from mmrl_find.pipeline import FrozenPipeline, Generated, PromptEmbedding

logger = logging.getLogger(__name__)

Reduction = Literal["mean", "sum"]
Distribution = Literal["per_prompt", "shared", "amortised"]

EXTRAS = ("prior_kl", "prior_quadratic", "value", "baseline")
"""What a loss may ask for besides the entropy; see `NoiseModel.forward`."""


@dataclass(frozen=True, eq=False)
class NoiseObservation:
    """What a latent was drawn on.

    Attributes:
        embedding: of the prompt.
        mean, log_std: float32 [*latent_shape] on CPU, of the distribution at that time, before the temperature.
    """

    embedding: PromptEmbedding
    mean: Tensor
    log_std: Tensor


def gaussian_logprobs(latents: Tensor, mean: Tensor, log_std: Tensor, reduction: Reduction) -> Tensor:
    """Log density [B] of latents under independent Gaussians, all [B, *latent_shape].

    Args:
        reduction: "mean" over the D entries of a latent, as published: a ratio of such densities is that of one entry,
            as the geometric mean. "sum" is the log density itself, in float64: it is of the order of D, where float32
            would round away the differences that a ratio is made of.
    """
    scaled = (latents - mean) * (-log_std).exp()
    return _reduce(-0.5 * scaled.square() - log_std - 0.5 * math.log(2 * math.pi), reduction)


def prior_kl(mean: Tensor, log_std: Tensor, reduction: Reduction) -> Tensor:
    """KL(N(mean, std^2), N(0, I)) [B] in nats, of distributions [B, *latent_shape]; "mean" is per entry."""
    return _reduce(0.5 * (mean.square() + (2 * log_std).exp() - 1) - log_std, reduction)


def prior_quadratic(mean: Tensor, log_std: Tensor) -> Tensor:
    """Mean over entries of mean^2 + (std - 1)^2 [B]: the published stand-in for the KL."""
    return _reduce(mean.square() + (log_std.exp() - 1).square(), "mean")


def _reduce(values: Tensor, reduction: Reduction) -> Tensor:
    """[B, *latent_shape] -> [B]."""
    flat = values.flatten(1)
    return flat.mean(1) if reduction == "mean" else flat.sum(1, dtype=torch.float64)


class NoiseModel(nn.Module):
    """The module that is trained. Parameters: `distribution.*`, and `value.*` of the value network.

    Attributes:
        temperature: factor of the standard deviation in densities and entropy; the distances to N(0, I) and the value
            network see the distribution without it.
    """

    def __init__(self, distribution: NoiseDistribution, value: ValueNetwork | None, reduction: Reduction) -> None:
        super().__init__()
        self.distribution = distribution
        self.value = value
        self.reduction = reduction
        self.temperature = 1.0

    def forward(
        self, rows: Sequence[Row], needs: Collection[str] = (), distribution: NoiseDistribution | None = None
    ) -> TokenStats:
        """Log densities [B, 1] of the rows' latents, and what else is asked for, each [B, 1].

        Args:
            needs: "entropy"; "prior_kl" and "prior_quadratic", distances to N(0, I); "value", the value network's
                prediction for the distribution that the row was drawn from; "baseline", its prediction for the present
                one, without gradient.
            distribution: to ask instead of the trained one.

        Raises:
            PolicyError: an unknown need, a need of a value network that is not there, or more prompts than slots.
        """
        if unknown := set(needs) - {"entropy", *EXTRAS}:
            raise PolicyError(f"the noise policy cannot compute {', '.join(sorted(unknown))}.")
        if self.value is None and (missing := {"value", "baseline"}.intersection(needs)):
            raise PolicyError(f"the loss needs {' and '.join(sorted(missing))}: set value_network to true.")
        distribution = distribution or self.distribution
        found = {row.observation.embedding.text: row.observation.embedding for row in rows}
        parameters = {text: distribution(embedding) for text, embedding in found.items()}
        means, log_stds = zip(*(parameters[row.observation.embedding.text] for row in rows), strict=True)
        mean, log_std = torch.stack(means), torch.stack(log_stds)  # [B, *latent_shape]
        latents = torch.stack([row.action for row in rows]).to(mean)
        acting_log_std = log_std + math.log(self.temperature)
        extras: dict[str, Tensor] = {}
        if "prior_kl" in needs:
            extras["prior_kl"] = prior_kl(mean, log_std, self.reduction)[:, None]
        if "prior_quadratic" in needs:
            extras["prior_quadratic"] = prior_quadratic(mean, log_std)[:, None]
        if self.value is not None and {"value", "baseline"}.intersection(needs):
            vectors = torch.stack([row.observation.embedding.vector for row in rows]).to(mean)
            if "value" in needs:
                drawn_mean = torch.stack([row.observation.mean for row in rows]).to(mean)
                drawn_log_std = torch.stack([row.observation.log_std for row in rows]).to(mean)
                extras["value"] = self.value(drawn_mean, drawn_log_std, vectors)[:, None]
            if "baseline" in needs:
                with torch.no_grad():
                    extras["baseline"] = self.value(mean, log_std, vectors)[:, None]
        entropy = None
        if "entropy" in needs:
            entropy = _reduce(acting_log_std + 0.5 * math.log(2 * math.pi * math.e), self.reduction)[:, None]
        return TokenStats(gaussian_logprobs(latents, mean, acting_log_std, self.reduction)[:, None], entropy, extras)


class NoisePolicy(PolicyBase):
    """A Gaussian over the initial latents of a frozen diffusion pipeline, as a `Policy`.

    Args:
        path, device, revision: of the pipeline, see `FrozenPipeline`.
        distribution: "per_prompt" trains a Gaussian for each prompt text, "shared" one for all prompts, "amortised" a
            network from a prompt's embedding to its Gaussian, which also serves prompts that were not trained.
        num_prompts: how many prompts "per_prompt" has room for.
        hidden_size: of the network of "amortised", and of the value network.
        min_std: lower bound of the standard deviation; see `mmrl_find.distribution`. Published: 1e-4.
        logprob: how log densities, entropies and KLs are reduced over the D entries of a latent; see
            `gaussian_logprobs`.
        value_network: whether to train a value network, which the loss `find/find` asks for.
        scheduler, num_steps, guidance, eta, height, width, num_frames, batch_size, precision, safety_checker: see
            `FrozenPipeline`.

    The temperature of sampling is a factor of the standard deviation, in sampling and densities alike; at 0 a latent is
    the mean. The noise of a rollout depends on the seed, the prompt's id, and how many rollouts of this prompt came
    before it, so that two policies, or two settings of the pipeline, are compared on the same noise.

    A rollout's outcome has "flagged" (the picture is black, see `Generated`) and "latent_norm", |z| / sqrt(D): pictures
    degrade when it leaves the neighbourhood of 1.

    Raises:
        PolicyError: the pipeline cannot be loaded, or an option does not fit.

    Source: FIND, arXiv:2407.19453. quirk: its public code takes the ratio to the distribution at the start of the run,
    and saves mean and std alone; here a latent is kept with the distribution it was drawn from, and what is saved says
    for which prompts and which pipeline it is.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        device: torch.device | str = "cpu",
        revision: str | None = None,
        distribution: Distribution = "per_prompt",
        num_prompts: int = 64,
        hidden_size: int = 256,
        min_std: float = 0.5,
        logprob: Reduction = "mean",
        value_network: bool = True,
        scheduler: str | None = None,
        num_steps: int = 50,
        guidance: float = 7.5,
        eta: float = 0.0,
        height: int | None = None,
        width: int | None = None,
        num_frames: int = 16,
        batch_size: int = 8,
        precision: str = "auto",
        safety_checker: bool = False,
    ) -> None:
        if num_prompts < 1 or hidden_size < 1 or logprob not in ("mean", "sum"):
            raise PolicyError(
                f"num_prompts is {num_prompts}, hidden_size {hidden_size} and logprob {logprob!r}; they have to be 1 "
                "or more, and mean or sum."
            )
        self.pipeline = FrozenPipeline(
            path,
            scheduler=scheduler,
            num_steps=num_steps,
            guidance=guidance,
            eta=eta,
            height=height,
            width=width,
            num_frames=num_frames,
            batch_size=batch_size,
            precision=precision,
            safety_checker=safety_checker,
            revision=revision,
            device=device,
        )
        shape, embedding_size = self.pipeline.latent_shape, self.pipeline.embedding_size
        noise: NoiseDistribution
        if distribution == "per_prompt":
            distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
            if distributed and torch.distributed.get_world_size() > 1:
                raise PolicyError("distribution per_prompt trains in one process: others would have other prompts.")
            noise = PerPromptNoise(shape, min_std, num_prompts)
        elif distribution == "shared":
            noise = SharedNoise(shape, min_std)
        elif distribution == "amortised":
            noise = AmortisedNoise(shape, min_std, embedding_size, hidden_size)
        else:
            raise PolicyError(f"distribution is {distribution!r}; it can be per_prompt, shared or amortised.")
        value = ValueNetwork(shape, embedding_size, hidden_size) if value_network else None
        self._model = NoiseModel(noise, value, logprob).to(device)
        super().__init__(self._model)
        self.counters = self.pipeline.counters
        self._frozen_noise: dict[str, NoiseDistribution] = {}
        self._must_match: dict[str, Any] = {  # of a saved policy; the rest says how its pictures were made
            "pipeline": type(self.pipeline.pipe).__name__,
            "latent_shape": list(shape),
            "distribution": distribution,
            "num_prompts": num_prompts if distribution == "per_prompt" else None,
            "min_std": min_std,
            "value_network": value_network,
            "hidden_size": hidden_size if distribution == "amortised" or value_network else None,
        }
        self._pictures: dict[str, Any] = {
            "path": str(path),
            "scheduler": type(self.pipeline.pipe.scheduler).__name__,
            "num_steps": num_steps,
            "guidance": guidance,
            "eta": eta,
        }
        self.publish_weights()

    # Acting

    def prepare(self, prompts: Sequence[Prompt]) -> None:
        super().prepare(prompts)
        for prompt in prompts:
            self.pipeline.embed(diffusion_prompt(prompt))

    def publish_weights(self) -> None:
        # A copy: the next step may be sampled while this one updates the parameters.
        self._acting = deepcopy(self._model.distribution).requires_grad_(False)

    @torch.no_grad()
    def rollout(
        self,
        prompts: Sequence[Prompt],
        group_size: int,
        sampling: Sampling,
        on_group: Callable[[RolloutGroup], None] | None = None,
    ) -> list[RolloutGroup]:
        if sampling.top_p != 1.0 or sampling.top_k:
            raise PolicyError("top_p and top_k cut off tokens, which a noise policy has not. Leave them out.")
        texts = [diffusion_prompt(prompt) for prompt in prompts]
        rows: list[Row] = []
        seeds: list[int] = []
        drawn: Counter[str] = Counter()  # a prompt that comes twice goes on counting
        for prompt, text in zip(prompts, texts, strict=True):
            embedding = self.pipeline.embed(text)
            mean, log_std = (values.float().cpu() for values in self._acting(embedding))
            observation = NoiseObservation(embedding, mean, log_std)
            for _ in range(group_size):
                identity = (sampling.seed, prompt.id, drawn[prompt.id])
                rows.append(self._draw(prompt, drawn[prompt.id], observation, sampling.temperature, identity))
                seeds.append(derive_seed(*identity, "denoising"))
                drawn[prompt.id] += 1
        latents = torch.stack([row.action for row in rows])
        repeated = [text for text in texts for _ in range(group_size)]
        outputs: list[Generated] = []
        groups: list[RolloutGroup] = []
        for batch in self.pipeline.generate_batches(latents, repeated, seeds):
            outputs += batch
            while len(outputs) >= (len(groups) + 1) * group_size and len(groups) < len(prompts):
                own = slice(len(groups) * group_size, (len(groups) + 1) * group_size)
                rollouts = [_rollout(row, output) for row, output in zip(rows[own], outputs[own], strict=True)]
                groups.append(RolloutGroup(prompts[len(groups)], rollouts))
                if on_group is not None:
                    on_group(groups[-1])
        return groups

    def _draw(
        self, prompt: Prompt, number: int, observation: NoiseObservation, temperature: float, identity: tuple[Any, ...]
    ) -> Row:
        """A latent and its log density; at temperature 0 there is no density."""
        generator = torch.Generator().manual_seed(derive_seed(*identity))
        noise = torch.randn(self.pipeline.latent_shape, generator=generator)
        latent, logprob = observation.mean.clone(), None
        if temperature > 0:
            log_std = observation.log_std + math.log(temperature)
            latent = observation.mean + log_std.exp() * noise
            logprob = gaussian_logprobs(latent[None], observation.mean[None], log_std[None], self._model.reduction)
        return Row(
            prompt_id=prompt.id,
            trajectory_id=f"{prompt.id}/{number}",
            observation=observation,
            action=latent,
            num_actions=1,
            sampler_logprobs=logprob,
        )

    # Densities

    def logprobs(self, rows: Sequence[Row], *, needs: Collection[str] = (), frozen: str | None = None) -> TokenStats:
        if frozen is None:
            stats: TokenStats = self.module(rows, needs)
            return stats
        with torch.no_grad():
            return self._model(rows, needs, self._frozen_noise[frozen])

    def freeze(self, name: str) -> None:
        self._frozen_noise[name] = deepcopy(self._model.distribution).requires_grad_(False)

    @torch.no_grad()
    def refresh(self, name: str, decay: float) -> None:
        frozen, trained = self._frozen_noise[name], self._model.distribution
        for old, new in zip(frozen.parameters(), trained.parameters(), strict=True):
            old.lerp_(new, 1 - decay)
        frozen.slots = dict(trained.slots)  # those that were free are at N(0, I), as their prompts were

    def set_temperature(self, temperature: float) -> None:
        self._model.temperature = temperature

    # What else the trainer asks

    def describe(self) -> list[str]:
        kept, pictures, shape = self._must_match, self._pictures, self.pipeline.latent_shape
        room = f" for up to {kept['num_prompts']} prompts" if kept["num_prompts"] else ""
        dtype = str(self.pipeline.pipe.unet.dtype).removeprefix("torch.")
        return [
            f"initial noise: {kept['distribution']}{room}, latents {'x'.join(map(str, shape))}, std at least "
            f"{kept['min_std']:g}, log densities are the {self._model.reduction} over {math.prod(shape)} entries",
            f"pictures: {kept['pipeline']} in {dtype}, {pictures['scheduler']}, {pictures['num_steps']} steps, "
            f"guidance {pictures['guidance']:g}, eta {pictures['eta']:g}, {self.pipeline.batch_size} at a time",
        ]

    def prompt_length(self, prompt: Prompt) -> int | None:
        diffusion_prompt(prompt)
        return None

    # Saving

    @staticmethod
    def needs_base(directory: Path) -> bool:
        """Always: what is saved is noise for a pipeline."""
        return True

    def save(self, directory: Path) -> None:
        """noise.safetensors holds the parameters; noise.json whose they are, and how pictures were made from them."""
        settings = {**self._must_match, **self._pictures, "prompts": list(self._model.distribution.slots)}
        _write(directory, "noise", settings, self._model.state_dict())

    def load(self, directory: Path) -> None:
        """Restore what `save` wrote. How pictures are made may differ, and is said in a warning; the rest has to fit.

        Raises:
            CheckpointError: the folder holds no noise policy, or one of another kind or shape.
        """
        settings, weights = _read(directory, "noise")
        for name, value in self._must_match.items():
            if settings.get(name) != value:
                raise CheckpointError(
                    f"{directory}: the noise policy was saved with {name}={settings.get(name)!r}; now it is {value!r}."
                )
        for name, value in self._pictures.items():
            if name != "path" and settings.get(name) != value:
                logger.warning("noise that was trained with %s=%r is used with %r.", name, settings.get(name), value)
        self._model.load_state_dict(weights)
        self._model.distribution.slots = {text: slot for slot, text in enumerate(settings["prompts"])}
        self.publish_weights()

    def save_frozen(self, directory: Path) -> None:
        for name, frozen in self._frozen_noise.items():
            _write(directory, name, list(frozen.slots), frozen.state_dict())

    def load_frozen(self, directory: Path) -> None:
        self._frozen_noise = {}
        for path in sorted(directory.glob("*.safetensors")):
            prompts, weights = _read(directory, path.stem)
            self.freeze(path.stem)
            self._frozen_noise[path.stem].load_state_dict(weights)
            self._frozen_noise[path.stem].slots = {text: slot for slot, text in enumerate(prompts)}


def diffusion_prompt(prompt: Prompt) -> str:
    """The text parts of a prompt's messages, one a line: what the text encoder reads.

    Raises:
        PolicyError: a part is no text.
    """
    parts = [part for message in prompt.messages for part in message["content"]]
    if media := [part["type"] for part in parts if part["type"] != "text"]:
        raise PolicyError(f"prompt {prompt.id} has a part of type {media[0]!r}; a diffusion pipeline reads text only.")
    return "\n".join(part["text"] for part in parts)


def _rollout(row: Row, generated: Generated) -> Rollout:
    norm = float(row.action.double().square().mean().sqrt())
    return Rollout([row], generated.output, outcome={"flagged": generated.flagged, "latent_norm": norm})


def _read(directory: Path, name: str) -> tuple[Any, dict[str, Tensor]]:
    """What was written as `name`.json and `name`.safetensors."""
    try:
        settings = json.loads((directory / f"{name}.json").read_text(encoding="utf-8"))
        return settings, load_file(directory / f"{name}.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{directory} holds no noise policy that can be read: {error}") from error


def _write(directory: Path, name: str, settings: Any, weights: Mapping[str, Tensor]) -> None:
    (directory / f"{name}.json").write_text(json.dumps(settings, indent=1, ensure_ascii=False), encoding="utf-8")
    save_file(dict(weights), directory / f"{name}.safetensors")
