"""The demo's starting model: a small Qwen2.5-VL whose vision tower can read screens and whose decoder is blank.

Class, file layout, control tokens and processor are those of the published model; only sizes differ. A published model
comes with a pretrained vision tower, so this one's tower is trained here, in about two minutes, with a throw-away
head that names the widget covering each merged token and its centre. The text decoder stays random: the recipe's
supervised stage teaches it to answer.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl_core.errors import ConfigError
from mmrl_core.testing import (
    SHORT_CHAT_TEMPLATE,
    TOKEN_PX,
    build_model,
    build_processor,
    new_model_folder,
    normalize_patches,
    picture_patches,
    pretrain_tower,
    split_pattern,
    tower_features,
    train_tokenizer,
)
from mmrl_gui.demo_data import FOCUSED, GRID_PX, LABELS, PROBLEM, WORDS, widget_screens
from mmrl_gui.parsing import action_answer

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessor

CLASSES = (*LABELS, "field", "bar at the beginning", "bar at the end")  # what a token can be covered by
MIN_COVERED_PX = 6  # a widget covers a merged token when their overlap is wider and higher than this
CENTRE_LOSS_WEIGHT = 5.0
COORDINATE_LOSS_WEIGHT = 0.2
ATOMS = "|".join((*LABELS, *WORDS, "click", "scroll", "type", "up", "down"))
MAX_VOCAB = 600


def build_screen_reader(
    directory: str | Path,
    *,
    seed: int = 0,
    tower_steps: int = 700,
    tower_batch: int = 64,
    tower_lr: float = 3e-3,
    num_screens: int = 4000,
    screens: Mapping[str, Any] | None = None,
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
        seed: of the weights, the training screens and their order. The caller's random state is left as it was.
        tower_steps, tower_batch, tower_lr: AdamW steps of the vision tower, screens in each, peak learning rate (3 %
            linear warm-up, then linear decay to 5 %).
        num_screens: training screens of the tower: the rows of ``widget_screens("train", seed=seed)``.
        screens: options of ``widget_screens``; give the same as for the training rows.
        hidden_size, num_layers: of the text decoder.
        vision_size, vision_layers: of the vision tower.
        num_heads: attention heads of both.
        cache_dir: as for ``widget_screens``.
        on_progress: called with one line of text every 100 steps and at the end.

    Raises:
        ConfigError: the directory is not empty, ``screens`` has an unknown key, or their side is no multiple of 28
            pixels.
        TaskDataError: as ``widget_screens``.
    """
    screens = dict(screens or {})
    looks = set(inspect.signature(widget_screens).parameters) - {"split", "num_rows", "seed", "cache_dir"}
    unknown = sorted(set(screens) - looks)
    if unknown:
        raise ConfigError(f"the demo's model: screens has the key {unknown[0]!r}. Keys: {', '.join(sorted(looks))}.")
    with new_model_folder(directory, seed=seed) as unfinished:
        rows = widget_screens("train", num_rows=num_screens, seed=seed, cache_dir=cache_dir, **screens)
        size_px = rows[0]["width"]
        tokenizer = build_tokenizer(size_px)
        processor = build_processor(tokenizer, smallest_px=2 * TOKEN_PX, largest_px=size_px, max_frames=4)
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


def build_tokenizer(size_px: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which each coordinate on the grid, label, word and stretch of format is one token.

    Deterministic. Any text round-trips; text unlike the demo's takes up to one token per byte.
    """
    return train_tokenizer(
        _merge_corpus(size_px),
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

    A linear head on each merged token predicts which widget covers it, or none (cross-entropy), and where covered the
    widget's centre, twice: as shares of the side (L1, weight 5) and as the nearest coordinate tokens (cross-entropy,
    weight 0.2), the form in which the decoder will have to write it. The head is thrown away.

    Args:
        model: its text decoder is left as it is.
        image_processor: of the model; the tower is trained on exactly the pixels it would produce.
        rows: of ``widget_screens``, all of one size; image and widgets are read.
        steps, batch_size, lr: as ``build_screen_reader``.
        on_progress: as ``build_screen_reader``.
    """
    import torch
    import torch.nn.functional as F

    tower = model.model.visual
    patches = picture_patches([row["image"]["bytes"] for row in rows])
    class_ids, centres = token_targets(rows)
    num_coordinates = rows[0]["width"] // GRID_PX + 1
    parts = [len(CLASSES) + 1, 2, 2 * num_coordinates]
    head = torch.nn.Linear(tower.config.out_hidden_size, sum(parts))

    def batch_loss(chosen: Tensor) -> tuple[Tensor, str]:
        features = tower_features(tower, normalize_patches(patches[chosen], image_processor))
        class_logits, centre, coordinate_logits = head(features).split(parts, dim=-1)
        is_covered = class_ids[chosen] < len(CLASSES)
        gold_centre = centres[chosen][is_covered]
        class_loss = F.cross_entropy(class_logits.flatten(0, 1), class_ids[chosen].flatten())
        centre_error = (centre[is_covered] - gold_centre).abs().mean()
        coordinate_loss = F.cross_entropy(
            coordinate_logits[is_covered].view(-1, num_coordinates),
            (gold_centre * (num_coordinates - 1)).round().long().flatten(),
        )
        share = (class_logits.argmax(-1) == class_ids[chosen])[is_covered].float().mean()
        return (
            class_loss + CENTRE_LOSS_WEIGHT * centre_error + COORDINATE_LOSS_WEIGHT * coordinate_loss,
            f"widget right on {share:.0%} of covered tokens, centre off by {centre_error:.3f} of the side",
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
        int64 [N, tokens], position in CLASSES of the widget that covers most of the token, or len(CLASSES) for none;
        float32 [N, tokens, 2], its centre as shares of the side, 0 where none.
    """
    import torch

    side_px = rows[0]["width"]
    num_tokens = side_px // TOKEN_PX  # along each side
    class_ids = torch.full((len(rows), num_tokens, num_tokens), len(CLASSES))
    centres = torch.zeros(len(rows), num_tokens, num_tokens, 2)
    for row_index, row in enumerate(rows):
        covered: dict[tuple[int, int], int] = {}
        bar = "bar at the end" if row["at_end"] else "bar at the beginning"
        widgets = [(button["label"], button["box_px"]) for button in row["buttons"]]
        for name, (x1, y1, x2, y2) in [*widgets, ("field", row["field_px"]), (bar, row["bar_px"])]:
            for down in range(y1 // TOKEN_PX, math.ceil(y2 / TOKEN_PX)):
                for right in range(x1 // TOKEN_PX, math.ceil(x2 / TOKEN_PX)):
                    width = min((right + 1) * TOKEN_PX, x2) - max(right * TOKEN_PX, x1)
                    height = min((down + 1) * TOKEN_PX, y2) - max(down * TOKEN_PX, y1)
                    is_largest = width * height > covered.get((down, right), 0)
                    if min(width, height) > MIN_COVERED_PX and is_largest:
                        covered[down, right] = width * height
                        class_ids[row_index, down, right] = CLASSES.index(name)
                        centre = torch.tensor([x1 + x2, y1 + y2]) / (2 * side_px)
                        centres[row_index, down, right] = centre
    return class_ids.flatten(1), centres.flatten(1, 2)


def _merge_corpus(size_px: int) -> list[str]:
    """Texts whose stretches become tokens: every coordinate as often as every other, prompts and all answers."""
    numbers = range(0, size_px + 1, GRID_PX)
    texts = []
    for index in range(400):
        point = (numbers[index % len(numbers)], numbers[(index + 5) % len(numbers)])
        word, label, direction = (names[index % len(names)] for names in (WORDS, LABELS, ("up", "down")))
        for answer in (("click", point, None), ("type", None, word), ("scroll", None, direction)):
            texts.append(f"<think></think><answer>{action_answer([answer])}</answer>")
        texts.append(PROBLEM.format(instruction=f"press {label}", history="None"))
        texts.append(PROBLEM.format(instruction=f"write {word}", history=FOCUSED))
        texts.extend(["user\n", "assistant\n", "\n"])
    return texts
