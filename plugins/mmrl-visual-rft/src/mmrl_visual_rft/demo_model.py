"""The demo's starting model: a small Qwen2.5-VL whose vision tower can see digits and whose decoder is blank.

Class, file layout, control tokens and processor are those of the published model; only sizes differ (0.6 million
parameters). A published model comes with a pretrained vision tower, so this one's tower is trained here, in about a
minute, with a throw-away head that names the digit covering each merged token and its box. The text decoder stays
random: the recipe's supervised stage teaches it to answer.
"""

from __future__ import annotations

import inspect
import io
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl_core.errors import ConfigError
from mmrl_core.tiny import SHORT_CHAT_TEMPLATE, UNSAMPLED_TOKENS, train_tokenizer
from mmrl_visual_rft.demo_data import (
    CLASS_WORDS,
    CLASSIFICATION_PROBLEM,
    DETECTION_PROBLEM,
    NORMALIZED_SIDE,
    digit_scenes,
)

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
    )

PATCH_PX = 14
MERGE = 2  # merged tokens are MERGE x MERGE patches
TOKEN_PX = PATCH_PX * MERGE
TEMPORAL_PATCH = 2  # a still image fills both slices of a temporal patch
MIN_COVERED_PX = 8  # a digit covers a merged token when their overlap is wider and higher than this
BOX_LOSS_WEIGHT = 5.0
COORDINATE_LOSS_WEIGHT = 0.2
ADAM_BETAS = (0.9, 0.98)
WEIGHT_DECAY = 0.01
MAX_GRAD_NORM = 1.0
WARMUP_SHARE = 0.03
FINAL_LR_RATIO = 0.05
PROGRESS_EVERY_STEPS = 100

# Numbers with their decimals, class words, and stretches between them: an answer with one box is 12 tokens.
_WORDS = "|".join(CLASS_WORDS)
SPLIT_PATTERN = rf"\p{{N}}{{1,4}}(?:\.\p{{N}}+)?|{_WORDS}|(?:(?!{_WORDS})[^\p{{N}}])+"
COORDINATE_STEP = 50  # multiples of this are one token each; other numbers are spelt in pieces
MAX_VOCAB = 600
VOCAB_MULTIPLE = 64


def build_digit_detector(
    directory: str | Path,
    *,
    seed: int = 0,
    tower_steps: int = 900,
    tower_batch: int = 64,
    tower_lr: float = 3e-3,
    num_scenes: int = 8000,
    scenes: Mapping[str, Any] | None = None,
    hidden_size: int = 96,
    num_layers: int = 2,
    vision_size: int = 64,
    vision_layers: int = 3,
    num_heads: int = 4,
    cache_dir: str | Path | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> None:
    """Write the demo's starting model with tokenizer, processor and generation config. Uses no network.

    Args:
        directory: made if missing; must be empty. It appears complete or not at all.
        seed: of the weights, the training scenes and their order. The caller's random state is left as it was.
        tower_steps, tower_batch, tower_lr: AdamW steps of the vision tower, scenes in each, peak learning rate (3 %
            linear warm-up, then linear decay to 5 %).
        num_scenes: training scenes of the tower: the rows of ``digit_scenes("train", num_rows=num_scenes, seed=seed)``.
        scenes: options of ``digit_scenes``; give the same as for the training rows.
        hidden_size, num_layers: of the text decoder.
        vision_size, vision_layers: of the vision tower.
        num_heads: attention heads of both.
        cache_dir: as for ``digit_scenes``.
        on_progress: called with one line of text every 100 steps and at the end.

    Raises:
        ConfigError: the directory is not empty, ``scenes`` has an unknown key, or their side is no multiple of 28
            pixels.
        TaskDataError: as ``digit_scenes``.
    """
    import torch

    directory = Path(directory).absolute()
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{directory} exists and is not an empty folder, and nothing is overwritten. Name another.")
    scenes = dict(scenes or {})
    looks = set(inspect.signature(digit_scenes).parameters) - {"split", "num_rows", "seed", "cache_dir"}
    unknown = sorted(set(scenes) - looks)
    if unknown:
        raise ConfigError(f"the demo's model: scenes has the key {unknown[0]!r}. Keys: {', '.join(sorted(looks))}.")
    rows = digit_scenes("train", num_rows=num_scenes, seed=seed, cache_dir=cache_dir, **scenes)
    side_px = rows[0]["width"]
    if side_px % TOKEN_PX:
        raise ConfigError(f"size_px is {side_px}; the model sees squares of {TOKEN_PX} pixels, so give a multiple.")

    tokenizer = build_tokenizer()
    processor = build_processor(tokenizer, side_px)
    unfinished = directory.with_name(f".{directory.name}.unfinished-{os.getpid()}")
    unfinished.mkdir(parents=True)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build_model(
                tokenizer,
                side_px,
                hidden_size=hidden_size,
                num_layers=num_layers,
                vision_size=vision_size,
                vision_layers=vision_layers,
                num_heads=num_heads,
            )
            train_vision_tower(
                model,
                processor.image_processor,
                rows,
                steps=tower_steps,
                batch_size=tower_batch,
                lr=tower_lr,
                on_progress=on_progress,
            )
        model.save_pretrained(unfinished)
        processor.save_pretrained(unfinished)
        os.replace(unfinished, directory)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE in which each coordinate, class word and stretch of answer format is one token. Deterministic.

    Any text round-trips; text unlike the demo's takes up to one token per byte.
    """
    return train_tokenizer(
        _merge_corpus(),
        vocab_size=MAX_VOCAB,
        split_pattern=SPLIT_PATTERN,
        chat_template=SHORT_CHAT_TEMPLATE,
        max_length=2048,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast, side_px: int) -> Qwen2_5_VLProcessor:
    """Processor of the published kind that does not resize pictures of ``side_px`` x ``side_px`` pixels."""
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    size = {"shortest_edge": min(4 * TOKEN_PX**2, side_px**2), "longest_edge": side_px**2}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=size, min_frames=2, max_frames=4, cap_pixels_per_frame=True),
        chat_template=SHORT_CHAT_TEMPLATE,
    )


def build_model(
    tokenizer: PreTrainedTokenizerFast,
    side_px: int,
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
            window_size=side_px,
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


def train_vision_tower(
    model: Qwen2_5_VLForConditionalGeneration,
    image_processor: Qwen2VLImageProcessor,
    rows: Sequence[Mapping[str, Any]],
    *,
    steps: int,
    batch_size: int,
    lr: float,
    on_progress: Callable[[str], None] | None = None,
) -> None:
    """Train the vision tower in place; deterministic in torch's global generator.

    A linear head on each merged token predicts which digit covers it, or none (cross-entropy), and where covered the
    digit's box, twice: as shares of the side (L1, weight 5) and as the nearest coordinate tokens (cross-entropy,
    weight 0.2), the form in which the decoder will have to write it. The head is thrown away.

    Args:
        model: its text decoder is left as it is.
        image_processor: of the model; the tower is trained on exactly the pixels it would produce.
        rows: of ``digit_scenes``, all of one size; image and boxes are read.
        steps, batch_size, lr: as ``build_digit_detector``.
        on_progress: as ``build_digit_detector``.
    """
    import torch
    import torch.nn.functional as F

    tower = model.model.visual
    side_px = rows[0]["width"]
    patches = image_patches(rows)
    class_ids, boxes = token_targets(rows)
    num_coordinates = NORMALIZED_SIDE // COORDINATE_STEP + 1
    parts = [len(CLASS_WORDS) + 1, 4, 4 * num_coordinates]
    head = torch.nn.Linear(tower.config.out_hidden_size, sum(parts))
    trained = [*tower.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=lr, betas=ADAM_BETAS, weight_decay=WEIGHT_DECAY)
    for step in range(1, steps + 1):
        chosen = torch.randint(len(rows), (batch_size,))
        features = tower_features(tower, normalize_patches(patches[chosen], image_processor), side_px)
        class_logits, box, coordinate_logits = head(features).split(parts, dim=-1)
        is_covered = class_ids[chosen] < len(CLASS_WORDS)
        gold_box = boxes[chosen][is_covered]
        class_loss = F.cross_entropy(class_logits.flatten(0, 1), class_ids[chosen].flatten())
        box_error = (box[is_covered] - gold_box).abs().mean()
        coordinate_loss = F.cross_entropy(
            coordinate_logits[is_covered].view(-1, num_coordinates),
            (gold_box * (num_coordinates - 1)).round().long().flatten(),
        )
        optimizer.zero_grad()
        (class_loss + BOX_LOSS_WEIGHT * box_error + COORDINATE_LOSS_WEIGHT * coordinate_loss).backward()
        torch.nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM)
        for group in optimizer.param_groups:
            group["lr"] = lr * _schedule(step / steps)
        optimizer.step()
        if on_progress and (step % PROGRESS_EVERY_STEPS == 0 or step == steps):
            is_right = class_logits.argmax(-1) == class_ids[chosen]
            share = is_right[is_covered].float().mean()
            on_progress(
                f"vision tower step {step}/{steps}: digit right on {share:.0%} of covered tokens, "
                f"box off by {box_error:.3f} of the side"
            )


def image_patches(rows: Sequence[Mapping[str, Any]]) -> Tensor:
    """Pixels of pictures of one size, cut into patches in the order of the processor (merged patches together).

    Returns:
        uint8 [N, patches, 3 * 14 * 14], channel first.
    """
    import numpy as np
    import torch
    from PIL import Image

    pictures = [np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")) for row in rows]
    pixels = torch.from_numpy(np.stack(pictures))
    num_tokens = pixels.shape[1] // TOKEN_PX  # along each side
    cut = pixels.reshape(len(rows), num_tokens, MERGE, PATCH_PX, num_tokens, MERGE, PATCH_PX, 3)
    return cut.permute(0, 1, 4, 2, 5, 7, 3, 6).reshape(len(rows), -1, 3 * PATCH_PX**2).contiguous()


def normalize_patches(patches: Tensor, image_processor: Qwen2VLImageProcessor) -> Tensor:
    """uint8 pixels 0..255 to the processor's scale; float32 of the same shape [B, patches, 3 * 14 * 14]."""
    import torch

    mean = torch.tensor(image_processor.image_mean).repeat_interleave(PATCH_PX**2)
    std = torch.tensor(image_processor.image_std).repeat_interleave(PATCH_PX**2)
    return (patches.float() * image_processor.rescale_factor - mean) / std


def tower_features(tower: Any, patches: Tensor, side_px: int) -> Tensor:
    """The vision tower on B pictures of one size, several times faster than its own forward; equal to 1e-5.

    Two savings: attention runs over the batch at once instead of picture by picture, and the two temporal slices of a
    still image, which are equal, are added up in the filter instead of in the pixels.

    Args:
        tower: the ``visual`` module of a Qwen2.5-VL whose attention window covers the picture.
        patches: float32 [B, patches, 3 * 14 * 14], from ``normalize_patches``.
        side_px: side of the square pictures.

    Returns:
        float32 [B, tokens, hidden size of the text decoder], merged tokens row by row.
    """
    import torch
    import torch.nn.functional as F
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision, get_vision_position_ids

    batch_size, num_patches, _ = patches.shape
    hidden = F.linear(patches.flatten(0, 1), tower.patch_embed.proj.weight.sum(2).flatten(1))
    grid = torch.tensor([[1, side_px // PATCH_PX, side_px // PATCH_PX]])
    cos, sin = tower.rotary_pos_emb(hidden, get_vision_position_ids(grid, MERGE, kwargs={}))
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


def token_targets(rows: Sequence[Mapping[str, Any]]) -> tuple[Tensor, Tensor]:
    """What covers each merged token.

    Returns:
        int64 [N, tokens], the digit 0..9 that covers most of the token, or 10 for none; float32 [N, tokens, 4], its box
        as shares of the side, 0 where none.
    """
    import torch

    side_px = rows[0]["width"]
    num_tokens = side_px // TOKEN_PX  # along each side
    class_ids = torch.full((len(rows), num_tokens, num_tokens), len(CLASS_WORDS))
    boxes = torch.zeros(len(rows), num_tokens, num_tokens, 4)
    for row_index, row in enumerate(rows):
        covered: dict[tuple[int, int], int] = {}
        for digit in row["boxes"]:
            x1, y1, x2, y2 = digit["box_px"]
            for down in range(y1 // TOKEN_PX, math.ceil(y2 / TOKEN_PX)):
                for right in range(x1 // TOKEN_PX, math.ceil(x2 / TOKEN_PX)):
                    width = min((right + 1) * TOKEN_PX, x2) - max(right * TOKEN_PX, x1)
                    height = min((down + 1) * TOKEN_PX, y2) - max(down * TOKEN_PX, y1)
                    is_largest = width * height > covered.get((down, right), 0)
                    if min(width, height) > MIN_COVERED_PX and is_largest:
                        covered[down, right] = width * height
                        class_ids[row_index, down, right] = digit["class_id"]
                        boxes[row_index, down, right] = torch.tensor(digit["box_px"]) / side_px
    return class_ids.flatten(1), boxes.flatten(1, 2)


def _schedule(progress: float) -> float:
    """Factor on the peak learning rate at a share 0..1 of the training."""
    return min(1.0, progress / WARMUP_SHARE) * (1.0 - (1.0 - FINAL_LR_RATIO) * progress)


def _merge_corpus() -> list[str]:
    """Texts whose stretches become tokens: every coordinate as often as every other, prompts and both answer forms."""
    numbers = [str(number) for number in range(0, 1001, COORDINATE_STEP)]
    texts = []
    for index in range(400):
        boxes = [[numbers[(index + 5 * box + 7 * side) % len(numbers)] for side in range(4)] for box in range(3)]
        items = ", ".join(f"{{'Position': [{', '.join(box)}], 'Confidence': 1.0}}" for box in boxes)
        texts.append(f"<think></think><answer>[{items}]</answer>")
        texts.append(f"<think></think><answer>{CLASS_WORDS[index % len(CLASS_WORDS)]}</answer>")
        texts.extend(["user\n", "assistant\n", DETECTION_PROBLEM.format(category=""), CLASSIFICATION_PROBLEM, "\n"])
    return texts
