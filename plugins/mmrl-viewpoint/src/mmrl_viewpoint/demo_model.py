"""The demo's starting model: a small Qwen2.5-VL whose vision tower can see poses and whose decoder is blank.

Class, file layout, control tokens and processor are those of the published model; only sizes differ. A published model
comes with a pretrained vision tower, so this one's tower is trained here, in about a minute, with a throw-away head
that says from where each picture was taken. The text decoder stays random: the recipe's supervised stage teaches it to
answer, and what a difference of two views means is left to it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl_core.errors import ConfigError
from mmrl_core.testing import (
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
from mmrl_viewpoint.demo_data import (
    AZIMUTH_DEG,
    COMPARISONS,
    CONCLUSIONS,
    DISTANCE,
    ELEVATION_DEG,
    SIDEWAYS,
    rendered_pairs,
)
from mmrl_viewpoint.parsing import LETTERS
from mmrl_viewpoint.prompts import VIEWPOINT_QUESTIONS, gold_completion, question_text

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2VLImageProcessor,
    )

RANGES = (AZIMUTH_DEG, ELEVATION_DEG, DISTANCE)
NUM_BINS = 15  # of each range: 10 degrees of azimuth
WORDS = sorted({*SIDEWAYS, *sum(CONCLUSIONS.values(), ())})
ATOMS = rf"[ABC](?=</answer>)|(?:{'|'.join(WORDS)})(?=</think>)"
NUMBER_STEP = 2  # multiples of this are one token each
LAST_NUMBER = 170
MAX_VOCAB = 1600


def build_pose_reader(
    directory: str | Path,
    *,
    seed: int = 0,
    tower_steps: int = 1000,
    tower_batch: int = 64,
    tower_lr: float = 3e-3,
    num_pairs: int = 4000,
    pairs: Mapping[str, Any] | None = None,
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
        seed: of the weights, the training pictures and their order. The caller's random state is left as it was.
        tower_steps, tower_batch, tower_lr: AdamW steps of the vision tower, pictures in each, peak learning rate (3 %
            linear warm-up, then linear decay to 5 %).
        num_pairs: whose pictures the tower is trained on: the rows of
            ``rendered_pairs("train", num_rows=num_pairs, seed=seed)``.
        pairs: options of ``rendered_pairs``; give the same as for the training rows.
        hidden_size, num_layers: of the text decoder.
        vision_size, vision_layers: of the vision tower.
        num_heads: attention heads of both.
        cache_dir: as for ``rendered_pairs``.
        on_progress: called with one line of text every 100 steps and at the end.

    Raises:
        ConfigError: the directory is not empty, ``pairs`` has an unknown key, or their side is no multiple of 28
            pixels.
        TaskDataError: as ``rendered_pairs``.
    """
    pairs = dict(pairs or {})
    known = inspect.signature(rendered_pairs).parameters
    unknown = sorted(set(pairs) - (set(known) - {"split", "num_rows", "seed", "cache_dir"}))
    if unknown:
        raise ConfigError(
            f"the demo's model: pairs has the key {unknown[0]!r}. Keys: those of viewpoint/rendered_pairs."
        )
    size_px = pairs.get("size_px", known["size_px"].default)
    check_size_px(size_px)
    with new_model_folder(directory, seed=seed) as unfinished:
        rows = rendered_pairs("train", num_rows=num_pairs, seed=seed, cache_dir=cache_dir, **pairs)
        tokenizer = build_tokenizer()
        processor = build_processor(tokenizer, smallest_px=min(2 * TOKEN_PX, size_px), largest_px=size_px, max_frames=4)
        model = build_model(
            tokenizer,
            size_px,
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
    """Byte-level BPE: each number, conclusion, answer letter, question and stretch of format is one token.

    Deterministic. Any text round-trips; text unlike the demo's takes up to one token per byte.
    """
    return train_tokenizer(
        _merge_corpus(),
        vocab_size=MAX_VOCAB,
        split_pattern=split_pattern(ATOMS),
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

    A linear head on each merged token says in which of 15 bins the picture's azimuth, elevation and distance lie
    (cross-entropy). The head is thrown away.

    Args:
        model: its text decoder is left as it is.
        image_processor: of the model; the tower is trained on exactly the pixels it would produce.
        rows: of ``rendered_pairs``, all of one size; images and views are read.
        steps, batch_size, lr: as ``build_pose_reader``.
        on_progress: as ``build_pose_reader``.
    """
    import torch
    import torch.nn.functional as F

    tower = model.model.visual
    patches, bins = picture_patches([image["bytes"] for row in rows for image in row["images"]]), view_bins(rows)
    head = torch.nn.Linear(tower.config.out_hidden_size, len(RANGES) * NUM_BINS)

    def batch_loss(chosen: Tensor) -> tuple[Tensor, str]:
        features = tower_features(tower, normalize_patches(patches[chosen], image_processor))
        logits = head(features).unflatten(-1, (len(RANGES), NUM_BINS))  # [B, tokens, 3, bins]
        gold = bins[chosen][:, None].expand(logits.shape[:3])
        off = (logits.argmax(-1) - gold).abs().float().mean((0, 1)) / NUM_BINS
        azimuth, elevation, distance = (float(share) for share in off)
        return (
            F.cross_entropy(logits.flatten(0, 2), gold.flatten()),
            f"off by {azimuth:.1%} of the azimuths, {elevation:.1%} of the elevations, {distance:.1%} of the distances",
        )

    pretrain_tower(
        tower,
        head,
        batch_loss,
        num_examples=len(patches),
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        on_progress=on_progress,
    )


def view_bins(rows: Sequence[Mapping[str, Any]]) -> Tensor:
    """Bins of azimuth, elevation and distance of each picture: int64 [2 * rows, 3]."""
    import torch

    views = [view for row in rows for view in row["views"]]
    values = torch.tensor([[view["azimuth_deg"], view["elevation_deg"], view["distance"]] for view in views])
    low, high = torch.tensor(RANGES).unbind(1)
    return ((values - low) / (high - low) * NUM_BINS).long().clamp(0, NUM_BINS - 1)


def _merge_corpus() -> list[str]:
    """Texts whose stretches become tokens: every number as often as every other, questions and both answer forms."""
    numbers = range(0, LAST_NUMBER + 1, NUMBER_STEP)
    texts = []
    for index in range(20 * len(numbers)):
        first, second = numbers[index % len(numbers)], numbers[7 * index % len(numbers)]
        letter = LETTERS[index % 3]
        comparison, word = COMPARISONS[index // 3 % 3], WORDS[index % len(WORDS)]
        texts.append(gold_completion(letter, f"from {first} to {second}: {comparison}, so {word}"))
        texts.extend([f"<answer>{letter}</answer>", "user\n", "assistant\n", "\n"])
        texts.extend(question_text(*question) for question in VIEWPOINT_QUESTIONS.values())
    return texts
