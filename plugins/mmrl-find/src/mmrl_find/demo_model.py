"""The demo's starting model: a small Stable Diffusion that draws handwritten digits, though not always the right one.

Classes, file layout, tokenizer and scheduler are those of Stable Diffusion 1; only sizes differ: pictures of 32 x 32
pixels, latents of 4 x 4 x 4. It is trained here, in two to three minutes of one processor: first the autoencoder, then
the denoiser with its text encoder, on the autoencoder's latents.

The pictures are real: 8 x 8 scans of handwritten digits (UCI, Alpaydin and Kaynak 1998) from scikit-learn. Captions of
pictures on the web are often wrong, so a part of these name the digit's look-alike. A pipeline trained on them draws
what the prompt says only now and then, and the initial noise decides when.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from mmrl_core.errors import ConfigError
from mmrl_core.testing import CLASS_WORDS, ink_masks, new_model_folder, scan_ids_by_class

if TYPE_CHECKING:
    import numpy as np
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from torch import Tensor, nn
    from transformers import CLIPTextModel, CLIPTokenizer

PICTURE_PX = 32
SCAN_SCALE = 3  # a scan's pixel is drawn as 3 x 3, which leaves a margin of 4 around its 8 x 8
MODEL_SCANS = (0, 1600)  # range of the shuffled scans that the pipeline learns from; it never sees the others

PHRASINGS = ("a handwritten {}", "the digit {}", "a scan of the digit {}", "the number {} in black ink", "{}")
LOOK_ALIKES = (6, 7, 3, 8, 9, 3, 0, 1, 5, 4)  # the digit that a wrong caption takes each digit for
MAX_TEXT_TOKENS = 16

TEXT_SIZE = 64
LATENT_CHANNELS = 4
VAE_CHANNELS = (8, 16, 32, 64)  # four levels halve the side three times, as Stable Diffusion's
UNET_CHANNELS = (32, 64)
KL_WEIGHT = 1e-3  # of a latent entry's KL to N(0, 1), beside the pixels' squared error; 1e-4 leaves channels uneven

VAE_BATCH = 16
DENOISER_BATCH = 64
ADAM_BETAS = (0.9, 0.98)
WEIGHT_DECAY = 0.01
MAX_GRAD_NORM = 1.0
WARMUP_SHARE = 0.05
FINAL_LR_RATIO = 0.03
PROGRESS_EVERY_STEPS = 100


def build_digits_pipeline(
    directory: str | Path,
    *,
    seed: int = 0,
    vae_steps: int = 400,
    vae_lr: float = 5e-3,
    denoiser_steps: int = 600,
    denoiser_lr: float = 2e-3,
    wrong_captions: float = 0.3,
    dropped_captions: float = 0.1,
    on_progress: Callable[[str], None] | None = None,
) -> None:
    """Write the demo's pipeline in diffusers' format. Uses no network.

    Args:
        directory: made if missing; must be empty. It appears complete or not at all.
        seed: of the weights, the captions and the order of the scans. The caller's random state is left as it was.
        vae_steps, vae_lr: AdamW steps of the autoencoder (16 pictures each) and their peak learning rate (5 % linear
            warm-up, then linear decay to 3 %).
        denoiser_steps, denoiser_lr: the same of the denoiser and the text encoder (64 latents each).
        wrong_captions: share of the scans whose caption names the look-alike, throughout the training.
        dropped_captions: share of captions left empty, new in each step, for classifier-free guidance.
        on_progress: called with one line of text every 100 steps and at the end of each part.

    Raises:
        ConfigError: the directory is not empty, or an option is out of range.
    """
    for name, steps in {"vae_steps": vae_steps, "denoiser_steps": denoiser_steps}.items():
        if steps < 1:
            raise ConfigError(f"the demo's model: {name} is {steps}; it has to be 1 or more.")
    for name, share in {"wrong_captions": wrong_captions, "dropped_captions": dropped_captions}.items():
        if not 0 <= share <= 1:
            raise ConfigError(f"the demo's model: {name} is {share}; it is a share, from 0 to 1.")
    with new_model_folder(directory, seed=seed) as unfinished:
        from diffusers import StableDiffusionPipeline

        pictures, digits = scan_pictures(*MODEL_SCANS)
        vae = build_vae()
        train_vae(vae, _pixels(pictures), steps=vae_steps, lr=vae_lr, on_progress=on_progress)
        tokenizer, scheduler = build_tokenizer(), build_scheduler()
        text_encoder, unet = build_text_encoder(tokenizer), build_unet()
        train_denoiser(
            unet,
            text_encoder,
            tokenizer,
            scheduler,
            *_latents(vae, _pixels(pictures)),
            digits,
            steps=denoiser_steps,
            lr=denoiser_lr,
            wrong_captions=wrong_captions,
            dropped_captions=dropped_captions,
            on_progress=on_progress,
        )
        StableDiffusionPipeline(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(unfinished)


def scan_pictures(first: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """Scans number `first` to `end - 1` of the shuffled order in black ink on white paper, sorted by digit.

    Returns:
        uint8 [N, 32, 32, 3], each digit in the middle; int64 [N], the digits.
    """
    import numpy as np
    from PIL import Image

    masks, pictures, digits = ink_masks(), [], []
    for digit, scan_ids in enumerate(scan_ids_by_class(first, end)):
        for scan_id in scan_ids:
            width, height = (SCAN_SCALE * side for side in masks[scan_id].size)
            ink = masks[scan_id].resize((width, height), Image.Resampling.BICUBIC)
            paper = Image.new("RGB", (PICTURE_PX, PICTURE_PX), "white")
            paper.paste("black", ((PICTURE_PX - width) // 2, (PICTURE_PX - height) // 2), ink)
            pictures.append(np.asarray(paper))
            digits.append(digit)
    return np.stack(pictures), np.array(digits, dtype=np.int64)


def build_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-level BPE in which each word of the captions is one token; other words are spelt. Deterministic."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = sorted({word for phrasing in PHRASINGS for word in phrasing.format("zero").split()} | set(CLASS_WORDS))
    merges = _learn_merges([[*word[:-1], f"{word[-1]}</w>"] for word in words])
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *(one + other for one, other in merges)]
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])},
        merges=merges,
        model_max_length=MAX_TEXT_TOKENS,
    )


def _learn_merges(words: list[list[str]]) -> list[tuple[str, str]]:
    """Merges, the most frequent pair first, until each word is one piece; `words` are changed in place.

    The trainer of tokenizers would do, but where words have an end it numbers tokens in another order each time.
    """
    merges = []
    while pairs := Counter(pair for pieces in words for pair in pairwise(pieces)):
        merges.append(max(pairs, key=lambda pair: (pairs[pair], pair)))
        for pieces in words:
            for place in range(len(pieces) - 2, -1, -1):
                if tuple(pieces[place : place + 2]) == merges[-1]:
                    pieces[place : place + 2] = ["".join(merges[-1])]
    return merges


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """With random weights from torch's global generator, as the next two."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_SIZE,
            intermediate_size=2 * TEXT_SIZE,
            projection_dim=TEXT_SIZE,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TEXT_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_vae() -> AutoencoderKL:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(VAE_CHANNELS),
        up_block_types=("UpDecoderBlock2D",) * len(VAE_CHANNELS),
        block_out_channels=VAE_CHANNELS,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        sample_size=PICTURE_PX,
    )


def build_unet() -> UNet2DConditionModel:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=PICTURE_PX // 2 ** (len(VAE_CHANNELS) - 1),
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D",) * len(UNET_CHANNELS),
        up_block_types=("CrossAttnUpBlock2D",) * len(UNET_CHANNELS),
        block_out_channels=UNET_CHANNELS,
        layers_per_block=1,
        cross_attention_dim=TEXT_SIZE,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule. Few steps should start where the latent is all noise, so they count backwards
    from the last timestep ("trailing")."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )


def train_vae(
    vae: AutoencoderKL,
    pixels: Tensor,
    *,
    steps: int,
    lr: float,
    on_progress: Callable[[str], None] | None = None,
) -> None:
    """Train the autoencoder in place, then set its scaling factor so that latents have a standard deviation of 1.

    Args:
        pixels: float32 [N, 3, 32, 32] in -1..1.
        steps, lr, on_progress: as `build_digits_pipeline`. Deterministic in torch's global generator.
    """
    import torch

    def batch_loss(chosen: Tensor) -> tuple[Tensor, float]:
        posterior = vae.encode(pixels[chosen]).latent_dist
        error = (vae.decode(posterior.sample()).sample - pixels[chosen]).square().mean()
        return error + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel(), float(error.detach())

    _train("autoencoder", [vae], batch_loss, len(pixels), VAE_BATCH, steps, lr, on_progress)
    with torch.no_grad():
        vae.register_to_config(scaling_factor=float(1 / vae.encode(pixels).latent_dist.sample().std()))


def train_denoiser(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    scheduler: DDIMScheduler,
    means: Tensor,
    stds: Tensor,
    digits: np.ndarray,
    *,
    steps: int,
    lr: float,
    wrong_captions: float,
    dropped_captions: float,
    on_progress: Callable[[str], None] | None = None,
) -> None:
    """Train denoiser and text encoder in place to predict the noise in latents.

    Args:
        means, stds: float32 [N, 4, 4, 4], the autoencoder's posteriors, scaled.
        digits: int64 [N], what the scans show.
        steps, lr, wrong_captions, dropped_captions, on_progress: as `build_digits_pipeline`. Deterministic in torch's
            global generator.
    """
    import torch

    named = name_digits(torch.from_numpy(digits), wrong_captions)

    def batch_loss(chosen: Tensor) -> tuple[Tensor, float]:
        captions = draw_captions(named[chosen].tolist(), dropped_captions)
        different = sorted(set(captions))
        tokens = tokenizer(different, padding="max_length", return_tensors="pt").input_ids
        text = text_encoder(tokens)[0][[different.index(caption) for caption in captions]]
        latents = means[chosen] + stds[chosen] * torch.randn_like(stds[chosen])
        noise, times = torch.randn_like(latents), torch.randint(scheduler.config.num_train_timesteps, chosen.shape)
        predicted = unet(scheduler.add_noise(latents, noise, times), times, text).sample
        error = (predicted - noise).square().mean()
        return error, float(error.detach())

    _train("denoiser", [unet, text_encoder], batch_loss, len(named), DENOISER_BATCH, steps, lr, on_progress)


def name_digits(digits: Tensor, wrong_captions: float) -> Tensor:
    """Int64 [N], what captions call the digits [N]: a share `wrong_captions` of them by their look-alikes."""
    import torch

    return torch.where(torch.rand(len(digits)) < wrong_captions, torch.tensor(LOOK_ALIKES)[digits], digits)


def draw_captions(named: Sequence[int], dropped_captions: float) -> list[str]:
    """A caption in one of the phrasings for each digit that it names; a share `dropped_captions` is empty."""
    import torch

    phrasings = torch.randint(len(PHRASINGS), (len(named),)).tolist()
    dropped = (torch.rand(len(named)) < dropped_captions).tolist()
    return [
        "" if drop else PHRASINGS[phrasing].format(CLASS_WORDS[digit])
        for digit, phrasing, drop in zip(named, phrasings, dropped, strict=True)
    ]


def _train(
    what: str,
    modules: Sequence[nn.Module],
    batch_loss: Callable[[Tensor], tuple[Tensor, float]],
    num_examples: int,
    batch_size: int,
    steps: int,
    lr: float,
    on_progress: Callable[[str], None] | None,
) -> None:
    """AdamW in place; `batch_loss` takes int64 [B] indices of examples and returns the loss and what is reported."""
    import torch

    parameters = [parameter for module in modules for parameter in module.train().parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=ADAM_BETAS, weight_decay=WEIGHT_DECAY)
    for step in range(1, steps + 1):
        loss, error = batch_loss(torch.randint(num_examples, (batch_size,)))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, step / steps / WARMUP_SHARE) * (1.0 - (1.0 - FINAL_LR_RATIO) * step / steps)
        optimizer.step()
        if on_progress and (step % PROGRESS_EVERY_STEPS == 0 or step == steps):
            on_progress(f"{what} step {step}/{steps}: squared error {error:.3f}")
    for module in modules:
        module.eval()


def _pixels(pictures: np.ndarray) -> Tensor:
    """uint8 [N, height, width, 3] -> float32 [N, 3, height, width] in -1..1."""
    import torch

    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def _latents(vae: AutoencoderKL, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the posteriors, scaled as the denoiser sees them."""
    import torch

    with torch.no_grad():
        posterior = vae.encode(pixels).latent_dist
    return posterior.mean * vae.config.scaling_factor, posterior.std * vae.config.scaling_factor
