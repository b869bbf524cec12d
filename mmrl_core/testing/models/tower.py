"""Training a vision tower of Qwen2.5-VL on the spot, on square pictures cut into patches."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mmrl_core.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import Qwen2VLImageProcessor

PATCH_PX = 14
MERGE = 2  # merged tokens are MERGE x MERGE patches
TOKEN_PX = PATCH_PX * MERGE
TEMPORAL_PATCH = 2  # frames in a patch; a still image fills both
ADAM_BETAS = (0.9, 0.98)
WEIGHT_DECAY = 0.01
MAX_GRAD_NORM = 1.0
WARMUP_SHARE = 0.03
FINAL_LR_RATIO = 0.05
PROGRESS_EVERY_STEPS = 100


def check_size_px(size_px: int) -> None:
    """Raise a ConfigError if a square picture of this side is not made of whole merged tokens."""
    if size_px % TOKEN_PX:
        raise ConfigError(f"size_px is {size_px}; the model sees squares of {TOKEN_PX} pixels, so give a multiple.")


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
