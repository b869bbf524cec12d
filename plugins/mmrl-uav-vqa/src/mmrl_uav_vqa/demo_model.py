"""The demo's starting model: a small Qwen2.5-VL whose vision tower knows cars and roofs and whose decoder is blank.

Class, file layout, control tokens and processor are those of a published model; only sizes differ. A published model
comes with a pretrained vision tower, so this one's tower is trained here, in about a minute, with a throw-away head
that names what stands in each merged token, and where that is. The text decoder stays random: the recipe's supervised
stage teaches it to answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from mmrl_uav_vqa.demo_data import COLOUR_NAMES, GRID, KINDS, PLACES, SIZE_PX, aerial_scenes

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessor

NUM_THINGS = len(KINDS) * len(COLOUR_NAMES)  # a car or a house of each colour; one class more is nothing
MAX_VOCAB = 600


def build_aerial_reader(
    directory: str | Path,
    *,
    seed: int = 0,
    tower_steps: int = 400,
    tower_batch: int = 64,
    tower_lr: float = 3e-3,
    num_scenes: int = 5000,
    hidden_size: int = 96,
    num_layers: int = 2,
    vision_size: int = 64,
    vision_layers: int = 2,
    num_heads: int = 4,
    cache_dir: str | Path | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> None:
    """Write the demo's starting model with tokenizer, processor and generation config. Uses no network.

    Args:
        directory: made if missing; must be empty. It appears complete or not at all.
        seed: of the weights, the training scenes and their order. The caller's random state is left as it was.
        tower_steps, tower_batch, tower_lr: AdamW steps of the vision tower, scenes in each, peak learning rate.
        num_scenes: training scenes of the tower, the rows of ``aerial_scenes("train", num_rows=num_scenes, ...)``.
        hidden_size, num_layers: of the text decoder.
        vision_size, vision_layers: of the vision tower.
        num_heads: attention heads of both.
        cache_dir: as for ``aerial_scenes``.
        on_progress: called with one line of text every 100 steps and at the end.

    Raises:
        ConfigError: the directory is not empty.
        TaskDataError: as ``aerial_scenes``.
    """
    with new_model_folder(directory, seed=seed) as unfinished:
        rows = aerial_scenes("train", num_rows=num_scenes, seed=seed, cache_dir=cache_dir)
        tokenizer = build_tokenizer()
        processor = build_processor(tokenizer, smallest_px=TOKEN_PX, largest_px=SIZE_PX, max_frames=4)
        model = build_model(
            tokenizer,
            SIZE_PX,
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
    """Byte-level BPE in which each answer and each stretch of question and format is one token. Deterministic.

    Any text round-trips; text unlike the demo's takes up to one token per byte.
    """
    words = sorted((*PLACES, *COLOUR_NAMES, "yes", "no"), key=len, reverse=True)  # "top left" before "top"
    return train_tokenizer(
        _merge_corpus(words),
        vocab_size=MAX_VOCAB,
        split_pattern=split_pattern("|".join(words)),
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

    A linear head on each merged token names what stands there, and which of the places it is (two cross-entropies). The
    head is thrown away.

    Args:
        model: its text decoder is left as it is.
        image_processor: of the model; the tower is trained on exactly the pixels it would produce.
        rows: of ``aerial_scenes``; image and objects are read.
        steps, batch_size, lr, on_progress: as ``build_aerial_reader``.
    """
    import torch
    import torch.nn.functional as F

    tower = model.model.visual
    patches, targets = picture_patches([row["image"]["bytes"] for row in rows]), token_targets(rows)
    # What stands in a token, and which token it is: rotary positions are relative, so the second has to be learnt too.
    head = torch.nn.Linear(tower.config.out_hidden_size, NUM_THINGS + 1 + GRID**2)
    places = torch.arange(GRID**2).repeat(batch_size)

    def batch_loss(chosen: Tensor) -> tuple[Tensor, str]:
        features = tower_features(tower, normalize_patches(patches[chosen], image_processor))
        things = targets[chosen].flatten()
        thing_logits, place_logits = head(features).flatten(0, 1).split([NUM_THINGS + 1, GRID**2], dim=-1)
        loss = F.cross_entropy(thing_logits, things) + F.cross_entropy(place_logits, places)
        things_right = (thing_logits.argmax(-1) == things).float().mean()
        places_right = (place_logits.argmax(-1) == places).float().mean()
        return loss, f"{things_right:.1%} of things right, {places_right:.1%} of places"

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


def token_targets(rows: Sequence[Mapping[str, Any]]) -> Tensor:
    """What stands in each merged token, int64 [N, tokens]: 4 * kind + colour, or 8 for nothing."""
    import torch

    targets = torch.full((len(rows), GRID**2), NUM_THINGS)
    for row_index, row in enumerate(rows):
        for thing in row["objects"]:
            kind, colour = KINDS.index(thing["kind"]), COLOUR_NAMES.index(thing["color"])
            targets[row_index, thing["place"]] = kind * len(COLOUR_NAMES) + colour
    return targets


def _merge_corpus(words: Sequence[str]) -> list[str]:
    """Texts whose stretches become tokens: prompts, and answers as often as each other."""
    answers = [*words, *map(str, range(10))]
    questions = ["how many cars?", "what color is the roof?", "is there a red car?", "where is the house?"]
    texts: list[str] = []
    for _ in range(100):
        texts.extend(f"<think></think><answer>{answer}</answer>" for answer in answers)
        texts.extend(["user\n", "assistant\n", *questions, "\n"])
    return texts
