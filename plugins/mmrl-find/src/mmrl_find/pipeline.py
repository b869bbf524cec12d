"""A frozen diffusers pipeline as the environment of initial-noise policies: latents in, pictures or videos out.

Nothing in it is trained. What matters to a policy is that the same latent and prompt always give the same picture:
fresh noise of stochastic samplers comes from a seed of each picture, not from what else is in the batch.
"""

from __future__ import annotations

import inspect
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from PIL import Image
from torch import Tensor

from mmrl_core.errors import PolicyError
from mmrl_core.support import local_model

SUPPORTED = ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "TextToVideoSDPipeline")
"""Pipelines whose latents, embeddings and outputs are known here: Stable Diffusion 1 and 2, SDXL, ModelScope's."""

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "pndm": "PNDMScheduler",
    "unipc": "UniPCMultistepScheduler",
}
"""Name in a config -> class of diffusers."""

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

EMBEDDINGS = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
"""What the pipelines' `encode_prompt` return, in order, and take back under these names; the last two are SDXL's."""

SIZE_FACTOR_PX = 8
"""The pipelines refuse heights and widths that it does not divide."""


@dataclass(frozen=True)
class PromptEmbedding:
    """A prompt as the text encoder sees it.

    Attributes:
        text: the prompt.
        vector: float32 [E] on CPU, the pooled text embedding: what small networks read.
        conditioning: what the denoiser reads: argument of the pipeline -> [1, ...], on CPU in its precision.
    """

    text: str
    vector: Tensor
    conditioning: Mapping[str, Tensor] = field(repr=False)


@dataclass(frozen=True)
class Generated:
    """What came of a latent.

    Attributes:
        output: RGB picture, or the frames of a video.
        flagged: the output is black because the safety checker refused it or because it held NaN or infinity; it says
            nothing about the latent, so it should get no reward.
    """

    output: Image.Image | list[Image.Image]
    flagged: bool


class FrozenPipeline:
    """A text-to-image or text-to-video pipeline of diffusers, frozen.

    Args:
        path: folder in diffusers' format, or hub name; its class has to be one of `SUPPORTED`.
        scheduler: one of `SCHEDULERS`, made from the config of the pipeline's own; None keeps that.
        num_steps: denoising steps. Some schedulers call the denoiser more often (pndm, heun).
        guidance: weight of classifier-free guidance; 1 or less switches it off.
        eta: fresh noise of DDIM at each step: 0 none, 1 as much as DDPM. FIND publishes 1; with 0 the whole reward is
            due to the latent.
        height, width: of the output, in pixels; None: what the denoiser was trained for.
        num_frames: of a video.
        batch_size: pictures (or videos) denoised at a time. Videos with fresh noise run one by one: diffusers
            takes no generator for each of them.
        precision: "float32", "float16" or "bfloat16"; "auto" is float32 on CPU, else float16. Latents are float32 until
            they are passed to the pipeline.
        safety_checker: run the pipeline's own; Stable Diffusion 1 has one.
        revision: of the hub.
        device: where to run.

    Attributes:
        pipe: the diffusers pipeline.
        latent_shape: of one latent, (C, H, W), or (C, F, H, W) for video.
        embedding_size: E of `PromptEmbedding.vector`.
        counters: "denoiser_evals" (samples through the denoiser: two for each picture and step with guidance) and
            "images" (pictures or videos), since somebody cleared them.

    Raises:
        PolicyError: the pipeline cannot be loaded, or an option does not fit it.
    """

    def __init__(
        self,
        path: str | Path,
        *,
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
        revision: str | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        for name, value in {"num_steps": num_steps, "num_frames": num_frames, "batch_size": batch_size}.items():
            if value < 1:
                raise PolicyError(f"{name} is {value}; it has to be 1 or more.")
        self.device = torch.device(device)
        self.num_steps, self.guidance, self.eta, self.batch_size = num_steps, guidance, eta, batch_size
        self.pipe = _load(path, _dtype(precision, self.device), safety_checker, revision).to(self.device)
        self.is_video = isinstance(self.pipe, diffusers.TextToVideoSDPipeline)
        if scheduler is not None:
            self.pipe.scheduler = _make_scheduler(scheduler, self.pipe.scheduler.config)
        step_options = inspect.signature(self.pipe.scheduler.step).parameters
        if eta and "eta" not in step_options:
            raise PolicyError(
                f"eta is {eta:g}, but {type(self.pipe.scheduler).__name__} does not take it. Set scheduler to ddim, or "
                "leave eta out."
            )
        self._one_by_one = self.is_video and "generator" in step_options and ("eta" not in step_options or eta > 0)
        with _clear_errors(f"num_steps={num_steps} does not fit {type(self.pipe.scheduler).__name__}"):
            self.pipe.scheduler.set_timesteps(num_steps)
        self._size_px = self._output_size(height, width)
        frames = (num_frames,) if self.is_video else ()
        factor = self.pipe.vae_scale_factor
        self.latent_shape = (self.pipe.unet.config.in_channels, *frames, *(side // factor for side in self._size_px))
        encoder = getattr(self.pipe, "text_encoder_2", None) or self.pipe.text_encoder
        self.embedding_size = encoder.config.hidden_size if self._text_is_simple else encoder.config.projection_dim
        self.counters: Counter[str] = Counter()
        self._embeddings: dict[str, PromptEmbedding] = {}
        self._lock = threading.Lock()  # prompts are embedded ahead, in another thread

    @property
    def _text_is_simple(self) -> bool:
        """One text encoder without a projection; SDXL has two, and the pooled embedding is projected."""
        return not isinstance(self.pipe, diffusers.StableDiffusionXLPipeline)

    def _output_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        trained = self.pipe.unet.config.sample_size
        sides = (trained, trained) if isinstance(trained, int) else trained
        factor = self.pipe.vae_scale_factor
        multiple = max(SIZE_FACTOR_PX, factor)  # both are powers of 2
        given = (height, width)
        size = [side * factor if wanted is None else wanted for wanted, side in zip(given, sides, strict=True)]
        if any(side < 1 or side % multiple for side in size):
            raise PolicyError(f"height {size[0]} and width {size[1]} have to be multiples of {multiple} pixels.")
        return size[0], size[1]

    @torch.no_grad()
    def embed(self, prompt: str) -> PromptEmbedding:
        """The prompt's embedding; computed once for each text and kept.

        The text encoder reads its first 77 tokens; diffusers says in a warning what of a longer prompt it leaves out.
        """
        with self._lock:
            if prompt not in self._embeddings:
                self._embeddings[prompt] = self._embed(prompt)
            return self._embeddings[prompt]

    def _embed(self, prompt: str) -> PromptEmbedding:
        pipe = self.pipe
        encoded = pipe.encode_prompt(
            prompt=prompt,
            device=self.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=self.guidance > 1,
        )
        conditioning = {
            name: value.cpu() for name, value in zip(EMBEDDINGS, encoded, strict=False) if value is not None
        }
        if self._text_is_simple:
            tokens = pipe.tokenizer(
                prompt,
                padding="max_length",
                max_length=pipe.tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            )
            pooled = pipe.text_encoder(tokens.input_ids.to(self.device)).pooler_output
        else:
            pooled = conditioning["pooled_prompt_embeds"]
        return PromptEmbedding(prompt, pooled[0].float().cpu(), conditioning)

    def generate(self, latents: Tensor, prompts: Sequence[str], seeds: Sequence[int]) -> list[Generated]:
        """Denoise and decode.

        Args:
            latents: float [n, *latent_shape] at the scale of the standard normal; the pipelines of diffusers multiply
                by the scheduler's `init_noise_sigma` themselves.
            prompts: n texts.
            seeds: n seeds of the fresh noise of stochastic samplers; without effect on the others.

        Returns:
            n outputs, in order. Which pictures share a batch depends on their number alone.

        Raises:
            PolicyError: the shapes do not fit, or all outputs hold NaN or infinity.
        """
        return [output for batch in self.generate_batches(latents, prompts, seeds) for output in batch]

    def generate_batches(
        self, latents: Tensor, prompts: Sequence[str], seeds: Sequence[int]
    ) -> Iterator[list[Generated]]:
        """The same, batch by batch, as they are done."""
        expected = (len(prompts), *self.latent_shape)
        if tuple(latents.shape) != expected or len(seeds) != len(prompts):
            raise PolicyError(
                f"{len(prompts)} prompts need as many seeds, and latents of shape {expected}; got {len(seeds)} seeds, "
                f"and latents of shape {tuple(latents.shape)}. Latents depend on height, width and num_frames."
            )
        num_finite = 0
        size = 1 if self._one_by_one else self.batch_size
        for start in range(0, len(prompts), size):
            part = slice(start, start + size)
            outputs, finite = self._generate_batch(latents[part], prompts[part], seeds[part])
            num_finite += finite
            yield outputs
        if prompts and not num_finite:
            raise PolicyError(
                f"all {len(prompts)} outputs hold NaN or infinity; the pipeline runs in {self.pipe.unet.dtype}. Set "
                "precision to float32 or bfloat16, or use other weights."
            )

    def _generate_batch(
        self, latents: Tensor, prompts: Sequence[str], seeds: Sequence[int]
    ) -> tuple[list[Generated], int]:
        """Outputs of one pass, and how many of them are finite."""
        pipe = self.pipe
        embeddings = [self.embed(prompt) for prompt in prompts]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]  # on CPU: the same noise on every device
        options: dict[str, Any] = {"num_frames": self.latent_shape[1]} if self.is_video else {}
        for name in embeddings[0].conditioning:
            options[name] = torch.cat([embedding.conditioning[name] for embedding in embeddings]).to(self.device)
        height, width = self._size_px
        result = pipe(
            latents=latents.to(self.device, pipe.unet.dtype),
            generator=generators[0] if self._one_by_one else generators,
            num_inference_steps=self.num_steps,
            guidance_scale=self.guidance,
            eta=self.eta,
            height=height,
            width=width,
            output_type="pt",
            **options,
        )
        passes = len(pipe.scheduler.timesteps) * (2 if self.guidance > 1 else 1)
        self.counters.update(denoiser_evals=len(prompts) * passes, images=len(prompts))
        frames = result.frames if self.is_video else result.images[:, None]  # [n, F, 3, H, W] in [0, 1]
        refused = getattr(result, "nsfw_content_detected", None) or [False] * len(prompts)
        finite = frames.isfinite().flatten(1).all(1).tolist()
        outputs = []
        for images, is_finite, is_refused in zip(frames, finite, refused, strict=True):
            pictures = _pil_images(images if is_finite else torch.zeros_like(images))
            output = pictures if self.is_video else pictures[0]
            outputs.append(Generated(output, flagged=bool(is_refused) or not is_finite))
        return outputs, sum(finite)


def _pil_images(images: Tensor) -> list[Image.Image]:
    """RGB pictures of [n, 3, H, W] in [0, 1], rounded as diffusers rounds them."""
    levels = (images.float().cpu().permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    return [Image.fromarray(picture) for picture in levels]


def _dtype(precision: str, device: torch.device) -> torch.dtype:
    if precision == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    if precision not in PRECISIONS:
        raise PolicyError(f"precision is {precision!r}; it can be auto, {', '.join(PRECISIONS)}.")
    return PRECISIONS[precision]


def _load(path: str | Path, dtype: torch.dtype, safety_checker: bool, revision: str | None) -> Any:
    """The pipeline, frozen, in evaluation mode."""
    where = local_model(str(path)) or path
    with _clear_errors(f"{str(path)!r} is no folder or hub name of a diffusers pipeline"):
        name = diffusers.DiffusionPipeline.load_config(where, revision=revision).get("_class_name")
    if name not in SUPPORTED:
        raise PolicyError(f"{str(path)!r} is a {name}, which cannot be used here; supported: {', '.join(SUPPORTED)}.")
    options: dict[str, Any] = {}
    if name == "StableDiffusionPipeline" and not safety_checker:
        options = {"safety_checker": None, "requires_safety_checker": False}
    if name == "StableDiffusionXLPipeline":
        options = {"add_watermarker": False}  # else pictures depend on whether a package for watermarks is installed
    with _clear_errors(f"the pipeline {str(path)!r} cannot be loaded"):
        pipe = getattr(diffusers, name).from_pretrained(where, dtype=dtype, revision=revision, **options)
    if safety_checker and getattr(pipe, "safety_checker", None) is None:
        raise PolicyError(f"safety_checker is set, but the pipeline {str(path)!r} has none. Leave it out.")
    pipe.set_progress_bar_config(disable=True)
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.requires_grad_(False).eval()
    return pipe


def _make_scheduler(name: str, config: Mapping[str, Any]) -> Any:
    if name not in SCHEDULERS:
        raise PolicyError(f"scheduler is {name!r}; it can be {', '.join(SCHEDULERS)}.")
    # Latents are not bounded by 1. Some classes clip to it unless told otherwise, and a config made for another class
    # does not tell.
    clip_sample = config.get("clip_sample", False)
    return getattr(diffusers, SCHEDULERS[name]).from_config(config, clip_sample=clip_sample)


@contextmanager
def _clear_errors(problem: str) -> Iterator[None]:
    """What diffusers, transformers and safetensors raise for missing or damaged files, as one error with its cause."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # safetensors' own error is a plain Exception
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PolicyError(f"{problem}: {reason}") from error
