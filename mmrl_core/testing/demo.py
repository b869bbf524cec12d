"""Building blocks of the plugins' demos: a small Qwen2.5-VL with a tower that can see, photographs, handwritten digits.

The model has class, file layout, control tokens and processor of the published one; only sizes differ. A published
model comes with a pretrained vision tower, so a demo's tower is trained on the spot, with a throw-away head; the text
decoder stays random.

The pictures are real but small: 8 x 8 scans of handwritten digits (UCI, Alpaydin and Kaynak 1998) from scikit-learn,
and six photographs shipped inside scikit-learn and scikit-image. The core does not depend on these two packages; a
plugin whose demo draws with them does.
"""

from __future__ import annotations

import functools
import importlib
import io
import math
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl_core.errors import ConfigError, TaskDataError
from mmrl_core.testing.tiny import UNSAMPLED_TOKENS

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from torch import Tensor, nn
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
    )

PATCH_PX = 14
MERGE = 2  # merged tokens are MERGE x MERGE patches
TOKEN_PX = PATCH_PX * MERGE
TEMPORAL_PATCH = 2  # frames in a patch; a still image fills both
VOCAB_MULTIPLE = 64
ADAM_BETAS = (0.9, 0.98)
WEIGHT_DECAY = 0.01
MAX_GRAD_NORM = 1.0
WARMUP_SHARE = 0.03
FINAL_LR_RATIO = 0.05
PROGRESS_EVERY_STEPS = 100

CLASS_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NUM_SCANS = 1797
SCAN_SHUFFLE_SEED = 0
INK_THRESHOLD = 0.3  # share of full ink from which a scan's row or column counts as written on
MIN_DIGIT_WIDTH_PX = 8  # to which a one is widened


@contextmanager
def new_model_folder(directory: str | Path, *, seed: int) -> Iterator[Path]:
    """A folder to write a model into, which becomes ``directory`` if the block ends well and is removed otherwise.

    Args:
        directory: made if missing; must be empty. It appears complete or not at all.
        seed: of torch's global generator within the block. The caller's random state is left as it was.

    Raises:
        ConfigError: the directory is not empty.
    """
    import torch

    directory = Path(directory).absolute()
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{directory} exists and is not an empty folder, and nothing is overwritten. Name another.")
    unfinished = directory.with_name(f".{directory.name}.unfinished-{os.getpid()}")
    unfinished.mkdir(parents=True)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield unfinished
        os.replace(unfinished, directory)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def check_size_px(size_px: int) -> None:
    """Raise a ConfigError if a square picture of this side is not made of whole merged tokens."""
    if size_px % TOKEN_PX:
        raise ConfigError(f"size_px is {size_px}; the model sees squares of {TOKEN_PX} pixels, so give a multiple.")


def split_pattern(atoms: str) -> str:
    """For ``train_tokenizer``: the pieces are numbers with their decimals, atoms, and the stretches between them.

    Args:
        atoms: regular expression of what is one token wherever it stands.
    """
    return rf"\p{{N}}{{1,4}}(?:\.\p{{N}}+)?|{atoms}|(?:(?!{atoms})[^\p{{N}}])+"


def build_processor(
    tokenizer: PreTrainedTokenizerFast, *, smallest_px: int, largest_px: int, max_frames: int
) -> Qwen2_5_VLProcessor:
    """Processor of the published kind, with the tokenizer's chat template.

    Args:
        smallest_px, largest_px: sides of the square pictures between which it does not resize, multiples of 28.
        max_frames: of a video.
    """
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    size = {"shortest_edge": smallest_px**2, "longest_edge": largest_px**2}  # the names are historic: these are areas
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(
            size=size, min_frames=2, max_frames=max_frames, cap_pixels_per_frame=True
        ),
        chat_template=tokenizer.chat_template,
    )


def build_model(
    tokenizer: PreTrainedTokenizerFast,
    size_px: int,
    *,
    hidden_size: int,
    num_layers: int,
    vision_size: int,
    vision_layers: int,
    num_heads: int,
) -> Qwen2_5_VLForConditionalGeneration:
    """A Qwen2.5-VL with random weights from torch's global generator.

    The attention window of the vision tower covers the whole picture, so that its layers differ in nothing else.
    """
    from transformers import GenerationConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    token_id = tokenizer.convert_tokens_to_ids
    rotary_pairs = hidden_size // num_heads // 2  # shared out over time, height and width
    spatial_pairs = (rotary_pairs - rotary_pairs // 4) // 2
    config = Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=math.ceil(len(tokenizer) / VOCAB_MULTIPLE) * VOCAB_MULTIPLE,
            hidden_size=hidden_size,
            intermediate_size=3 * hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            num_key_value_heads=num_heads // 2,
            max_position_embeddings=2048,
            rms_norm_eps=1e-6,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [rotary_pairs - 2 * spatial_pairs, spatial_pairs, spatial_pairs],
            },
            tie_word_embeddings=False,
        ),
        vision_config=dict(
            depth=vision_layers,
            hidden_size=vision_size,
            intermediate_size=2 * vision_size,
            num_heads=num_heads,
            out_hidden_size=hidden_size,
            patch_size=PATCH_PX,
            spatial_merge_size=MERGE,
            temporal_patch_size=TEMPORAL_PATCH,
            tokens_per_second=2,
            window_size=size_px,
            fullatt_block_indexes=[vision_layers - 1],
        ),
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id],
        suppress_tokens=token_id(list(UNSAMPLED_TOKENS)),
    )
    return model


def pretrain_tower(
    tower: nn.Module,
    head: nn.Module,
    batch_loss: Callable[[Tensor], tuple[Tensor, str]],
    *,
    num_examples: int,
    steps: int,
    batch_size: int,
    lr: float,
    on_progress: Callable[[str], None] | None = None,
) -> None:
    """Train a vision tower and its throw-away head in place; deterministic in torch's global generator.

    Args:
        tower: the ``visual`` module of a model.
        head: reads the tower's features.
        batch_loss: from indices of examples, int64 [B], to the loss and a line on how good the batch was.
        num_examples: the indices lie below; they are drawn with replacement.
        steps, batch_size, lr: AdamW steps, examples in each, peak learning rate (3 % linear warm-up, then linear decay
            to 5 %).
        on_progress: called with one line of text every 100 steps and at the end.
    """
    import torch

    trained = [*tower.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=lr, betas=ADAM_BETAS, weight_decay=WEIGHT_DECAY)
    for step in range(1, steps + 1):
        loss, line = batch_loss(torch.randint(num_examples, (batch_size,)))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM)
        for group in optimizer.param_groups:
            group["lr"] = lr * _schedule(step / steps)
        optimizer.step()
        if on_progress and (step % PROGRESS_EVERY_STEPS == 0 or step == steps):
            on_progress(f"vision tower step {step}/{steps}: {line}")


def _schedule(progress: float) -> float:
    """Factor on the peak learning rate at a share 0..1 of the training."""
    return min(1.0, progress / WARMUP_SHARE) * (1.0 - (1.0 - FINAL_LR_RATIO) * progress)


def cut_patches(frames: Tensor) -> Tensor:
    """Cut square frames into patches in the order of the processor (merged patches together).

    Args:
        frames: [N, T, side, side, 3]; T is 2 for pairs of video frames, 1 for still images.

    Returns:
        [N, patches, 3 * T * 14 * 14] of the same type, channel first.
    """
    num, num_frames, side_px = frames.shape[:3]
    num_tokens = side_px // TOKEN_PX  # along each side
    cut = frames.reshape(num, num_frames, num_tokens, MERGE, PATCH_PX, num_tokens, MERGE, PATCH_PX, 3)
    return cut.permute(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(num, -1, 3 * num_frames * PATCH_PX**2).contiguous()


def picture_patches(files: Sequence[bytes]) -> Tensor:
    """Pixels of square pictures of one size, cut into patches in the order of the processor.

    Args:
        files: N image files.

    Returns:
        uint8 [N, patches, 3 * 14 * 14], channel first.
    """
    import numpy as np
    import torch
    from PIL import Image

    pictures = [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]
    return cut_patches(torch.from_numpy(np.stack(pictures))[:, None])


def normalize_patches(patches: Tensor, image_processor: Qwen2VLImageProcessor) -> Tensor:
    """uint8 pixels 0..255 to the processor's scale; float32 of the same shape, that of ``cut_patches``."""
    import torch

    values = patches.shape[-1] // 3
    mean = torch.tensor(image_processor.image_mean).repeat_interleave(values)
    std = torch.tensor(image_processor.image_std).repeat_interleave(values)
    return (patches.float() * image_processor.rescale_factor - mean) / std


def tower_features(tower: Any, patches: Tensor) -> Tensor:
    """The vision tower on B squares of one size, several times faster than its own forward; equal to 1e-5.

    Attention runs over the batch at once instead of square by square. The two temporal slices of a still image, which
    are equal, are added up in the filter instead of in the pixels.

    Args:
        tower: the ``visual`` module of a Qwen2.5-VL whose attention window covers the square.
        patches: float32 [B, patches, 3 * T * 14 * 14], from ``normalize_patches``.

    Returns:
        float32 [B, tokens, hidden size of the text decoder], merged tokens row by row.
    """
    import torch
    import torch.nn.functional as F
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision, get_vision_position_ids

    batch_size, num_patches, num_values = patches.shape
    side = math.isqrt(num_patches)
    filters = tower.patch_embed.proj.weight  # [out, 3, 2, 14, 14]
    if num_values == 3 * PATCH_PX**2:
        filters = filters.sum(2)
    hidden = F.linear(patches.flatten(0, 1), filters.flatten(1))
    cos, sin = tower.rotary_pos_emb(hidden, get_vision_position_ids(torch.tensor([[1, side, side]]), MERGE, kwargs={}))
    cos, sin = cos.repeat(batch_size, 1), sin.repeat(batch_size, 1)
    for block in tower.blocks:
        attention = block.attn
        qkv = attention.qkv(block.norm1(hidden)).reshape(len(hidden), 3, attention.num_heads, -1)
        query, key, value = qkv.unbind(1)
        query, key = apply_rotary_pos_emb_vision(query, key, cos, sin)
        query, key, value = (
            part.reshape(batch_size, num_patches, attention.num_heads, -1).transpose(1, 2)
            for part in (query, key, value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(len(hidden), -1)
        hidden = hidden + attention.proj(mixed)
        hidden = hidden + block.mlp(block.norm2(hidden))
    return tower.merger(hidden).view(batch_size, num_patches // MERGE**2, -1)


@contextmanager
def write_aside(path: Path) -> Iterator[Path]:
    """A path to write a file to, which becomes ``path`` if the block ends well and is removed otherwise.

    Raises:
        TaskDataError: the block, or making the folder, raised an OSError.
    """
    unfinished = path.with_name(f".{path.name}.unfinished-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        os.replace(unfinished, path)
    except OSError as error:
        raise TaskDataError(
            f"the demo's data cannot be written to {path}: {error.strerror or error}. "
            "Name another folder with the environment variable MMRL_CACHE."
        ) from error
    finally:
        if unfinished.exists():
            unfinished.unlink()


@functools.cache
def _scans() -> tuple[np.ndarray, np.ndarray]:
    """uint8 [1797, 8, 8], ink 0..255; int [1797], digit. Read from scikit-learn's files."""
    import numpy as np

    digits = _import("sklearn.datasets", "scikit-learn").load_digits()
    return np.clip(digits.images * (255.0 / 16.0), 0, 255).astype(np.uint8), digits.target


@functools.cache
def scan_ids_by_class(first: int, end: int) -> list[list[int]]:
    """Scans number ``first`` to ``end - 1`` in an order shuffled once for all, for each digit 0..9.

    Splits with ranges that do not overlap share no scan, whatever the seed of their pictures.
    """
    _, labels = _scans()
    shuffled = list(range(NUM_SCANS))
    random.Random(SCAN_SHUFFLE_SEED).shuffle(shuffled)
    return [[scan_id for scan_id in shuffled[first:end] if labels[scan_id] == digit] for digit in range(10)]


@functools.cache
def ink_masks() -> list[Image.Image]:
    """Opacity of each scan's ink, 0..255, cut to what is written on."""
    import numpy as np
    from PIL import Image

    masks = []
    for scan in _scans()[0]:
        is_ink = scan > INK_THRESHOLD * 255
        rows, columns = np.flatnonzero(is_ink.any(1)), np.flatnonzero(is_ink.any(0))
        masks.append(Image.fromarray(scan[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]))
    return masks


@functools.cache
def photographs(brightness: float) -> list[tuple[str, np.ndarray]]:
    """Name and pixels, uint8 [height, width, 3], of six colour photographs, 451 to 640 pixels wide.

    Args:
        brightness: factor 0..1 on the pixels.
    """
    import numpy as np

    samples = _import("sklearn.datasets", "scikit-learn").load_sample_images()
    data = _import("skimage.data", "scikit-image")
    photos = {Path(name).name: pixels for name, pixels in zip(samples.filenames, samples.images, strict=True)}
    photos |= {"astronaut": data.astronaut(), "cat": data.cat(), "coffee": data.coffee(), "rocket": data.rocket()}
    return [(name, (pixels * brightness).astype(np.uint8)) for name, pixels in photos.items()]


def _import(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise TaskDataError(f"the demo's pictures come with {package} ({error}). Try: pip install {package}") from error
