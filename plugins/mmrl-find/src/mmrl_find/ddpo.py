"""DDPO: the denoiser itself as a policy whose actions are the denoising steps. What FIND is compared with.

A step of DDIM with eta > 0 draws x_{t-1} from a Gaussian whose mean comes from the denoiser and whose standard
deviation is fixed. So its density is known, and no gradient has to pass through the sampler, the decoder or the reward.
"""

from __future__ import annotations

import functools
import json
import math
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmrl_core.config import LoraConfig
from mmrl_core.errors import CheckpointError, PolicyError
from mmrl_core.loss_inputs import TokenStats
from mmrl_core.policy import PolicyBase
from mmrl_core.run import derive_seed
from mmrl_core.types import LOSS_MASK, Prompt, Rollout, RolloutGroup, Row, Sampling
from mmrl_find.pipeline import FrozenPipeline, Generated
from mmrl_find.policy import diffusion_prompt

Conditioning = dict[str, Any]
"""Arguments of the denoiser besides latents and time: name -> tensor, or name -> name -> tensor."""

MIN_STD = 1e-3
"""Steps with less noise than this are not trained. The last one has none at all where the final alpha is 1, so that it
has no density; just above 0, float32 latents hold too few digits of the noise to tell the density."""

METADATA = "ddpo.json"
LORA_WEIGHTS = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True)
class DenoisingObservation:
    """What the steps of a rollout are taken from.

    Attributes:
        latent: float32 [*latent_shape], the initial noise. FIND's action is given here, not chosen.
        conditioning: what the denoiser reads of the prompt, one object for its whole group: [k, ...] each, k = 2 with
            classifier-free guidance (without the prompt, with it), else 1.
    """

    latent: Tensor
    conditioning: Conditioning = field(repr=False)


class DDIMSteps:
    """The Gaussians of DDIM's steps, for any selection of steps at once, which diffusers' own `step` cannot do.

    With alpha the cumulative product at a step, alpha' the one after it, and e the predicted noise:

        std  = eta * sqrt((1 - alpha') / (1 - alpha) * (1 - alpha / alpha'))
        mean = sqrt(alpha') * (x - sqrt(1 - alpha) * e) / sqrt(alpha) + sqrt(1 - alpha' - std^2) * e

    Args:
        scheduler: of the pipeline, its timesteps set.

    Raises:
        PolicyError: the scheduler bounds latents by their quantiles (`thresholding`).

    Source: DDIM, arXiv:2010.02502, equations 12 and 16.
    """

    def __init__(self, scheduler: DDIMScheduler) -> None:
        config = scheduler.config
        if config.thresholding:
            raise PolicyError(
                "the scheduler's thresholding makes the mean of a step depend on its quantiles; unset it."
            )
        self.timesteps = scheduler.timesteps.cpu()
        previous = self.timesteps - config.num_train_timesteps // len(self.timesteps)
        alphas = scheduler.alphas_cumprod.double().cpu()
        self._alpha = alphas[self.timesteps]
        self._next_alpha = torch.where(
            previous < 0, float(scheduler.final_alpha_cumprod), alphas[previous.clamp(min=0)]
        )
        self._prediction = config.prediction_type
        self._clip = config.clip_sample_range if config.clip_sample else math.inf

    def __len__(self) -> int:
        return len(self.timesteps)

    def std(self, eta: float) -> Tensor:
        """float64 [T] of each step.

        Raises:
            PolicyError: eta asks for more noise than a step may have.
        """
        variance = (1 - self._next_alpha) / (1 - self._alpha) * (1 - self._alpha / self._next_alpha)
        std = eta * variance.clamp(min=0).sqrt()
        if bool((std.square() > 1 - self._next_alpha + 1e-9).any()):
            raise PolicyError(
                f"eta times temperature is {eta:g}, more noise than a step may have. Set it to 1 or less."
            )
        return std

    def mean(self, steps: Tensor, predicted: Tensor, latents: Tensor, eta: float) -> Tensor:
        """Mean of x_{t-1}.

        Args:
            steps: int64 [n] on CPU, 0 for the first step.
            predicted: [n, *latent_shape], what the denoiser returned, after guidance.
            latents: [n, *latent_shape], x_t, in the precision of the result.
        """
        alpha, next_alpha, std = (
            table[steps].to(latents).view(-1, *[1] * (latents.dim() - 1))
            for table in (self._alpha, self._next_alpha, self.std(eta))
        )
        predicted = predicted.to(latents.dtype)
        if self._prediction == "epsilon":
            noise, clean = predicted, (latents - (1 - alpha).sqrt() * predicted) / alpha.sqrt()
        elif self._prediction == "v_prediction":
            noise = alpha.sqrt() * predicted + (1 - alpha).sqrt() * latents
            clean = alpha.sqrt() * latents - (1 - alpha).sqrt() * predicted
        else:
            noise, clean = (latents - alpha.sqrt() * predicted) / (1 - alpha).sqrt(), predicted
        clean = clean.clamp(-self._clip, self._clip)
        return next_alpha.sqrt() * clean + (1 - next_alpha - std.square()).clamp(min=0).sqrt() * noise


class Denoiser(nn.Module):
    """The denoiser with the density of its steps: `module(rows, needs)` of the policy.

    Attributes:
        unet: the pipeline's.
        eta: of the logprobs: the option times the temperature.
        counters: "denoiser_update_evals", samples through the denoiser forward and backward (what gradient
            checkpointing computes again is not counted), and "denoiser_evals" of passes without gradient.
    """

    def __init__(self, pipeline: FrozenPipeline, steps: DDIMSteps, *, mean_logprob: bool, recompute: bool) -> None:
        super().__init__()
        self.unet: Any = pipeline.pipe.unet  # an nn.Module of diffusers'
        self.steps = steps
        self.eta = pipeline.eta
        self.counters: Counter[str] = Counter()
        self._guidance, self._batch_size = pipeline.guidance, pipeline.batch_size
        self._mean_logprob, self._recompute = mean_logprob, recompute

    def stochastic(self, eta: float) -> Tensor:
        """bool [T], steps that have a density."""
        return self.steps.std(eta) >= MIN_STD

    def forward(self, rows: Sequence[Row], needs: Collection[str] = ()) -> TokenStats:
        """Logprobs [B, T] of the steps of B rows, 0 for those without a density, which are not computed."""
        if needs:
            raise PolicyError(
                f"find/ddpo does not know {', '.join(sorted(needs))}: the spread of its steps is fixed, and it has no "
                "value network. Use a loss that reads logprobs, such as clipped, without an entropy bonus."
            )
        weight = next(self.unet.parameters())
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        kept = self.stochastic(self.eta).nonzero()[:, 0]  # [K]
        befores = [torch.cat([row.observation.latent[None], row.action[:-1]])[kept] for row in rows]
        latents = torch.cat(befores).to(weight.device, dtype)  # [B * K, *latent_shape]
        actions = torch.cat([row.action[kept] for row in rows]).to(weight.device, dtype)
        steps = kept.repeat(len(rows))
        conditioning = [row.observation.conditioning for row in rows for _ in kept]
        parts = []
        for start in range(0, len(steps), self._batch_size):
            part = slice(start, start + self._batch_size)
            arguments = (latents[part], actions[part], steps[part], _joined(conditioning[part], weight))
            if self._recompute and torch.is_grad_enabled():
                parts.append(checkpoint(self._logprobs, *arguments, use_reentrant=False, preserve_rng_state=False))
            else:
                parts.append(self._logprobs(*arguments))
        name = "denoiser_update_evals" if torch.is_grad_enabled() else "denoiser_evals"
        self.counters[name] += len(steps) * len(conditioning[0]["encoder_hidden_states"])
        logprobs = torch.cat(parts).view(len(rows), -1)
        return TokenStats(
            logprobs.new_zeros(len(rows), len(self.steps)).index_copy(1, kept.to(weight.device), logprobs)
        )

    def _logprobs(self, latents: Tensor, actions: Tensor, steps: Tensor, conditioning: Conditioning) -> Tensor:
        """[n] of n steps; conditioning is [k * n, ...], all without the prompt first."""
        copies = len(conditioning["encoder_hidden_states"]) // len(latents)
        times = self.steps.timesteps[steps].to(latents.device).repeat(copies)
        repeated = latents.repeat(copies, *[1] * (latents.dim() - 1))
        predicted = self.unet(repeated, times, **conditioning, return_dict=False)[0]
        if copies == 2:
            without, given = predicted.chunk(2)
            predicted = without + self._guidance * (given - without)
        return self.density(actions, steps, predicted, latents, self.eta)

    def density(self, actions: Tensor, steps: Tensor, predicted: Tensor, latents: Tensor, eta: float) -> Tensor:
        """Log density [n] of n actions; mean or sum over their entries.

        Args:
            actions: [n, *latent_shape], x_{t-1}.
            steps: int64 [n] on CPU, with noise.
            predicted, latents: see `DDIMSteps.mean`.
        """
        std = self.steps.std(eta)[steps].to(latents).view(-1, *[1] * (latents.dim() - 1))
        distances = (actions - self.steps.mean(steps, predicted, latents, eta)) / std
        entries = (-0.5 * distances.square() - std.log() - 0.5 * math.log(2 * math.pi)).flatten(1)
        # A sum is of the order of D, where float32 would round away the differences that a ratio is made of.
        return entries.mean(1) if self._mean_logprob else entries.sum(1, dtype=torch.float64)


def _joined(conditioning: Sequence[Conditioning], like: Tensor) -> Conditioning:
    """Of n samples, [k, ...] each, as [k * n, ...] for one pass."""
    joined: Conditioning = {}
    for name, first in conditioning[0].items():
        values = [arguments[name] for arguments in conditioning]
        if isinstance(first, Mapping):
            joined[name] = _joined(values, like)
        else:
            joined[name] = torch.stack(values, 1).flatten(0, 1).to(like)
    return joined


def _of_sample(arguments: Mapping[str, Any], index: int, copies: int) -> Conditioning:
    """Of one sample of a pass, [k * n, ...] -> [k, ...] on CPU; arguments that are no tensors are left out."""
    picked: Conditioning = {}
    for name, value in arguments.items():
        if isinstance(value, Mapping):
            picked[name] = _of_sample(value, index, copies)
        elif isinstance(value, Tensor):
            picked[name] = value.unflatten(0, (copies, -1))[:, index].cpu()
    return picked


@dataclass(frozen=True)
class _Sampled:
    """Of one sample: what the denoiser read, actions [T, *latent_shape] and their logprobs [T]."""

    conditioning: Conditioning
    actions: Tensor
    logprobs: Tensor


class _Recorder:
    """Listens to a pipeline between noise and picture, so that sampling is diffusers' own, whatever the model reads.

    Attributes:
        sampled: of the samples that are done, in order.
    """

    def __init__(self, denoiser: Denoiser, eta: float, num_frames: int | None) -> None:
        self._denoiser, self._eta, self._num_frames = denoiser, eta, num_frames
        self._has_density = denoiser.stochastic(eta).tolist()
        self._conditioning: list[Conditioning] = []
        self._inputs: tuple[Tensor, Mapping[str, Any]] | None = None
        self._steps: list[tuple[Tensor, Tensor]] = []  # of the batch under way
        self.sampled: list[_Sampled] = []

    def see(self, unet: nn.Module, inputs: tuple[Tensor, ...], arguments: Mapping[str, Any]) -> None:
        """A call of the denoiser."""
        self._inputs = inputs[0], arguments

    def add(self, predicted: Tensor, before: Tensor, after: Tensor) -> None:
        """A step of the scheduler."""
        if self._num_frames is not None:  # [n * F, C, H, W] -> [n, C, F, H, W]
            frames = (-1, self._num_frames)
            predicted, before, after = (x.unflatten(0, frames).transpose(1, 2) for x in (predicted, before, after))
        number = len(self._steps)
        if number == 0:
            assert self._inputs is not None
            latents, arguments = self._inputs
            copies = len(latents) // len(before)
            self._conditioning = [_of_sample(arguments, index, copies) for index in range(len(before))]
        logprobs = torch.zeros(len(after))
        if self._has_density[number]:
            steps = torch.full((len(after),), number)
            logprobs = self._denoiser.density(after.float(), steps, predicted, before.float(), self._eta).cpu()
        self._steps.append((after.float().cpu(), logprobs))
        if len(self._steps) == len(self._has_density):
            actions, densities = zip(*self._steps, strict=True)
            done = zip(self._conditioning, torch.stack(actions, 1), torch.stack(densities, 1), strict=True)
            self.sampled += [_Sampled(*of_one) for of_one in done]
            self._steps = []


class DDPOPolicy(PolicyBase):
    """Trains the denoiser of a diffusion pipeline by policy gradient, one action for each denoising step.

    A rollout is one row of T actions: float32 [T, *latent_shape], the latents that the steps arrived at. Use a
    group-relative advantage and the core's `clipped` loss; it sees T "tokens". Actions of steps without noise (see
    `MIN_STD`) are left out by the row's loss mask, and their logprob is 0.

    Source: Black et al., Training diffusion models with reinforcement learning, arXiv:2305.13301 (DDPO_IS). As in the
    public implementation, logprobs are means over the latent's entries, so ratios stay very near 1: its clip range is
    1e-4. Guidance is part of the policy, in sampling and update alike.

    Args:
        path, revision: pipeline in diffusers' format, or hub name and its revision.
        device: where to run.
        lora: train adapters instead of the whole denoiser.
        precision: auto is float32 on a CPU and float32 weights with bfloat16 autocast on a GPU.
        gradient_checkpointing: keep the activations of one pass of `batch_size` samples at a time.
        eta: DDIM's; above 0, because steps without noise have no density. The sampling temperature multiplies it, so
            that temperature 0 is deterministic DDIM.
        logprob: "mean" over the entries of a latent, or their "sum", the true density.
        num_steps, guidance, height, width, num_frames, batch_size, safety_checker: see `FrozenPipeline`.

    Raises:
        PolicyError: the pipeline cannot be loaded, or an option does not fit it.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        device: torch.device | str = "cpu",
        revision: str | None = None,
        lora: LoraConfig | Mapping[str, Any] | None = None,
        precision: Literal["auto", "float32", "bfloat16_mixed"] = "auto",
        gradient_checkpointing: bool = False,
        eta: float = 1.0,
        logprob: Literal["mean", "sum"] = "mean",
        num_steps: int = 50,
        guidance: float = 7.5,
        height: int | None = None,
        width: int | None = None,
        num_frames: int = 16,
        batch_size: int = 8,
        safety_checker: bool = False,
    ) -> None:
        if eta <= 0:
            raise PolicyError(
                f"eta is {eta:g}, but steps without noise have no density. Set it above 0, 1 as published."
            )
        if logprob not in ("mean", "sum"):
            raise PolicyError(f"logprob is {logprob!r}; it can be mean or sum.")
        if precision not in ("auto", "float32", "bfloat16_mixed"):
            raise PolicyError(
                f"model.precision {precision} would round the latents that logprobs are taken of. Set it to "
                "auto, bfloat16_mixed or float32."
            )
        on_gpu = torch.device(device).type != "cpu"
        self._mixed = precision == "bfloat16_mixed" or (precision == "auto" and on_gpu)
        self.pipeline = FrozenPipeline(
            path,
            scheduler="ddim",
            num_steps=num_steps,
            guidance=guidance,
            eta=eta,
            height=height,
            width=width,
            num_frames=num_frames,
            batch_size=batch_size,
            precision="float32",  # of weights and latents; passes run in what autocast says
            safety_checker=safety_checker,
            revision=revision,
            device=device,
        )
        self.path = path
        self._lora = None if lora is None else LoraConfig.model_validate(lora)
        self._eta = eta
        self._facts = {"path": str(path), "num_steps": num_steps, "guidance": guidance, "eta": eta, "logprob": logprob}
        unet = self.pipeline.pipe.unet
        if self._lora is not None:
            _add_lora(unet, self._lora)
        else:
            unet.requires_grad_(True)
        self.denoiser = Denoiser(
            self.pipeline,
            DDIMSteps(self.pipeline.pipe.scheduler),
            mean_logprob=logprob == "mean",
            recompute=gradient_checkpointing,
        )
        if not bool(self.denoiser.stochastic(eta).any()):
            raise PolicyError(f"none of the num_steps={num_steps} denoising steps has noise. Set more of them.")
        super().__init__(self.denoiser, weights=unet)

    def prepare(self, prompts: Sequence[Prompt]) -> None:
        super().prepare(prompts)
        for prompt in prompts:
            self.pipeline.embed(diffusion_prompt(prompt))

    def rollout(
        self,
        prompts: Sequence[Prompt],
        group_size: int,
        sampling: Sampling,
        on_group: Callable[[RolloutGroup], None] | None = None,
    ) -> list[RolloutGroup]:
        """Denoise; see `Policy.rollout`. The completion is a picture, or the frames of a video.

        Initial noise is that of `find/noise` with the same seed: it depends on seed, prompt id and the rollout's number
        among those of the prompt, as does the noise of the steps.
        """
        if sampling.top_p != 1.0 or sampling.top_k:
            raise PolicyError("top_p and top_k cut off tokens, which a diffusion model has not. Leave them out.")
        if threading.current_thread() is not threading.main_thread():
            raise PolicyError("find/ddpo samples with the weights that are trained; take rollout.steps_ahead out.")
        eta = self._eta * sampling.temperature
        drawn: Counter[str] = Counter()  # a prompt that comes twice goes on counting
        identities = []
        for prompt in prompts:
            for _ in range(group_size):
                identities.append((sampling.seed, prompt.id, drawn[prompt.id]))
                drawn[prompt.id] += 1
        generators = [torch.Generator().manual_seed(derive_seed(*identity)) for identity in identities]
        latents = torch.stack([torch.randn(self.pipeline.latent_shape, generator=each) for each in generators])
        texts = [diffusion_prompt(prompt) for prompt in prompts for _ in range(group_size)]
        seeds = [derive_seed(*identity, "denoising") for identity in identities]
        groups: list[RolloutGroup] = []
        outputs: list[Generated] = []
        with self._recording(eta) as recorder, self.autocast():
            for batch in self.pipeline.generate_batches(latents, texts, seeds):
                outputs += batch
                while len(groups) < len(prompts) and len(outputs) >= (len(groups) + 1) * group_size:
                    own = range(len(groups) * group_size, (len(groups) + 1) * group_size)
                    conditioning = recorder.sampled[own[0]].conditioning
                    rollouts = []
                    for index in own:
                        observation = DenoisingObservation(latents[index], conditioning)
                        row = self._row(identities[index], observation, recorder.sampled[index], eta)
                        outcome = {"flagged": outputs[index].flagged}
                        rollouts.append(Rollout([row], outputs[index].output, outcome=outcome))
                    groups.append(RolloutGroup(prompts[len(groups)], rollouts))
                    if on_group is not None:
                        on_group(groups[-1])
        return groups

    def _row(
        self, identity: tuple[int, str, int], observation: DenoisingObservation, sampled: _Sampled, eta: float
    ) -> Row:
        _, prompt_id, number = identity
        return Row(
            prompt_id=prompt_id,
            trajectory_id=f"{prompt_id}/{number}",
            observation=observation,
            action=sampled.actions,
            num_actions=len(sampled.actions),
            sampler_logprobs=sampled.logprobs,
            masks={LOSS_MASK: self.denoiser.stochastic(eta)},
        )

    @contextmanager
    def _recording(self, eta: float) -> Iterator[_Recorder]:
        """While the pipeline generates, with this eta, its steps are recorded."""
        pipe = self.pipeline.pipe
        recorder = _Recorder(self.denoiser, eta, self.pipeline.latent_shape[1] if self.pipeline.is_video else None)
        original = pipe.scheduler.step

        @functools.wraps(original)  # the pipelines look at its signature
        def step(predicted: Tensor, timestep: Any, latents: Tensor, **options: Any) -> Any:
            result = original(predicted, timestep, latents, **options)
            recorder.add(predicted, latents, result[0])
            return result

        hook = pipe.unet.register_forward_pre_hook(recorder.see, with_kwargs=True)
        pipe.scheduler.step = step
        self.pipeline.eta = eta
        try:
            yield recorder
        finally:
            hook.remove()
            del pipe.scheduler.step

    def logprobs(self, rows: Sequence[Row], *, needs: Collection[str] = (), frozen: str | None = None) -> TokenStats:
        """See `Policy.logprobs`."""
        if frozen is None:
            with self.autocast():
                return self.module(rows, needs)
        with self.frozen_weights(frozen), torch.no_grad(), self.autocast():
            return self.denoiser(rows, needs)

    def autocast(self) -> torch.autocast:
        """The precision that forward passes run in."""
        return torch.autocast(self.pipeline.device.type, dtype=torch.bfloat16, enabled=self._mixed)

    def set_temperature(self, temperature: float) -> None:
        """Logprobs are taken at the temperature that is sampled at: it multiplies eta."""
        if temperature <= 0:
            raise PolicyError("rollout.temperature is 0: denoising steps without noise have no density to train.")
        self.denoiser.eta = self._eta * temperature

    def describe(self) -> list[str]:
        trained = int(self.denoiser.stochastic(self._eta).sum())
        weights = sum(value.numel() for _, value in self.trained_parameters())
        return [
            f"a rollout is {len(self.denoiser.steps)} denoising steps, {trained} of them trained; {weights} weights"
        ]

    def prompt_length(self, prompt: Prompt) -> int | None:
        diffusion_prompt(prompt)
        return None

    def take_counters(self) -> dict[str, int]:
        """Work done since the last call: `denoiser_evals` (without gradient), `denoiser_update_evals`, `images`."""
        total = self.pipeline.counters + self.denoiser.counters
        self.pipeline.counters.clear()
        self.denoiser.counters.clear()
        return dict(total)

    @staticmethod
    def needs_base(directory: Path) -> bool:
        """Always: `save` writes the denoiser or its adapter, without the text encoder and the decoder."""
        return True

    def save(self, directory: Path) -> None:
        """The denoiser as `unet/`, or its adapter as the pipeline's `load_lora_weights` reads it; and `ddpo.json`."""
        pipe, unet = self.pipeline.pipe, self.denoiser.unet
        if self._lora is None:
            unet.save_pretrained(directory / "unet")
        else:
            from peft import get_peft_model_state_dict

            pipe.save_lora_weights(
                directory,
                unet_lora_layers=get_peft_model_state_dict(unet),
                unet_lora_adapter_metadata=unet.peft_config["default"].to_dict(),
            )
        facts = {"pipeline": type(pipe).__name__, "lora": self._lora is not None, **self._facts}
        (directory / METADATA).write_text(json.dumps(facts, indent=1))

    def load(self, directory: Path) -> None:
        """Restore what `save` wrote, bit for bit.

        Raises:
            CheckpointError: it is not there, or of another pipeline, or of LoRA where the whole denoiser is trained.
        """
        try:
            facts = json.loads((directory / METADATA).read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{directory} holds no denoiser that find/ddpo saved: {error}") from error
        expected = {"pipeline": type(self.pipeline.pipe).__name__, "lora": self._lora is not None}
        for name, value in expected.items():
            if facts.get(name) != value:
                raise CheckpointError(f"{directory / METADATA} has {name} {facts.get(name)}, but here it is {value}.")
        unet = self.denoiser.unet
        try:
            if self._lora is None:
                unet.load_state_dict(type(unet).from_pretrained(directory / "unet").state_dict())
            else:
                from peft import set_peft_model_state_dict
                from safetensors.torch import load_file

                saved = load_file(directory / LORA_WEIGHTS)
                set_peft_model_state_dict(unet, {name.removeprefix("unet."): value for name, value in saved.items()})
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"the denoiser in {directory} does not fit {self.path}: {error}") from error


def _add_lora(unet: Any, settings: LoraConfig) -> None:
    import peft

    lora = peft.LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=settings.target_modules)
    try:
        unet.add_adapter(lora)
    except ValueError as error:
        raise PolicyError(f"model.lora: {error}") from error
