"""The demo's starting model: a small Qwen2.5-VL whose vision tower can see digits and whose decoder is blank.

Class, file layout, control tokens and processor are those of the published model; only sizes differ (0.6 million
parameters). A published model comes with a pretrained vision tower, so this one's tower is trained here, in about a
minute, with a throw-away head that names the digit covering each merged token and its box. The text decoder stays
random: the recipe's supervised stage teaches it to answer.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl_core.errors import ConfigError
from mmrl_core.testing import (
    CLASS_WORDS,
    SHORT_CHAT_TEMPLATE,
    TOKEN_PX,
    build_model,
    build_processor,
    check_size_px,
    new_model_folder,
    normalize_patches,
    picture_patches,
    pretrain_tower,
    split_pattern,
    tower_features,
    train_tokenizer,
)
from mmrl_visual_rft.demo_data import CLASSIFICATION_PROBLEM, DETECTION_PROBLEM, NORMALIZED_SIDE, digit_scenes

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2VLImageProcessor,
    )

MIN_COVERED_PX = 8  # a digit covers a merged token when their overlap is wider and higher than this
BOX_LOSS_WEIGHT = 5.0
COORDINATE_LOSS_WEIGHT = 0.2

COORDINATE_STEP = 50  # multiples of this are one token each: 12 for an answer with one box; others are spelt in pieces
MAX_VOCAB = 600


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
    scenes = dict(scenes or {})
    looks = set(inspect.signature(digit_scenes).parameters) - {"split", "num_rows", "seed", "cache_dir"}
    unknown = sorted(set(scenes) - looks)
    if unknown:
        raise ConfigError(f"the demo's model: scenes has the key {unknown[0]!r}. Keys: {', '.join(sorted(looks))}.")
    with new_model_folder(directory, seed=seed) as unfinished:
        rows = digit_scenes("train", num_rows=num_scenes, seed=seed, cache_dir=cache_dir, **scenes)
        side_px = rows[0]["width"]
        check_size_px(side_px)
        tokenizer = build_tokenizer()
        processor = build_processor(tokenizer, smallest_px=min(2 * TOKEN_PX, side_px), largest_px=side_px, max_frames=4)
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


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE in which each coordinate, class word and stretch of answer format is one token. Deterministic.

    Any text round-trips; text unlike the demo's takes up to one token per byte.
    """
    return train_tokenizer(
        _merge_corpus(),
        vocab_size=MAX_VOCAB,
        split_pattern=split_pattern("|".join(CLASS_WORDS)),
        chat_template=SHORT_CHAT_TEMPLATE,
        max_length=2048,
    )


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
    patches = picture_patches([row["image"]["bytes"] for row in rows])
    class_ids, boxes = token_targets(rows)
    num_coordinates = NORMALIZED_SIDE // COORDINATE_STEP + 1
    parts = [len(CLASS_WORDS) + 1, 4, 4 * num_coordinates]
    head = torch.nn.Linear(tower.config.out_hidden_size, sum(parts))

    def batch_loss(chosen: Tensor) -> tuple[Tensor, str]:
        features = tower_features(tower, normalize_patches(patches[chosen], image_processor))
        class_logits, box, coordinate_logits = head(features).split(parts, dim=-1)
        is_covered = class_ids[chosen] < len(CLASS_WORDS)
        gold_box = boxes[chosen][is_covered]
        class_loss = F.cross_entropy(class_logits.flatten(0, 1), class_ids[chosen].flatten())
        box_error = (box[is_covered] - gold_box).abs().mean()
        coordinate_loss = F.cross_entropy(
            coordinate_logits[is_covered].view(-1, num_coordinates),
            (gold_box * (num_coordinates - 1)).round().long().flatten(),
        )
        share = (class_logits.argmax(-1) == class_ids[chosen])[is_covered].float().mean()
        return (
            class_loss + BOX_LOSS_WEIGHT * box_error + COORDINATE_LOSS_WEIGHT * coordinate_loss,
            f"digit right on {share:.0%} of covered tokens, box off by {box_error:.3f} of the side",
        )

    pretrain_tower(
        tower,
        head,
        batch_loss,
        num_examples=len(rows),
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        on_progress=on_progress,
    )


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
