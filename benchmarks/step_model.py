"""What `step.py` gives to both engines: a small Qwen2.5-VL or Qwen3-VL, photo-like pictures, a question, a reward."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

QUESTION = "Describe the picture: count the objects in it, name the color of each, and point to the text."
MAX_IMAGE_TOKENS = 4096

# As in the 3B model, the tower, which runs on four patches for each token, does about 0.8 of the language model's
# arithmetic. All its blocks attend within windows: at this width one that attends to the whole image, as one in eight
# does there, would cost as much as the rest of the tower. Matrices are as large as lets 32 whole sequences of 1000
# tokens, which TRL runs at a time, fit in 24 GiB.
TEXT: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 320,
    "intermediate_size": 864,
    "num_hidden_layers": 4,
    "num_attention_heads": 5,
    "num_key_value_heads": 1,
    "layer_types": ["full_attention"] * 4,
    "max_window_layers": 4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 12, 12]},
}
VISION: dict[str, Any] = {
    "depth": 3,
    "hidden_size": 160,
    "intermediate_size": 432,
    "num_heads": 2,
    "out_hidden_size": 320,
    "window_size": 112,
    "fullatt_block_indexes": [],
}


QWEN3_TEXT: dict[str, Any] = {
    **{key: value for key, value in TEXT.items() if key not in ("layer_types", "max_window_layers")},
    "head_dim": 64,
    "rope_parameters": {**TEXT["rope_parameters"], "mrope_interleaved": True},
}
QWEN3_VISION: dict[str, Any] = {
    **{key: value for key, value in VISION.items() if key not in ("window_size", "fullatt_block_indexes")},
    "num_position_embeddings": 2304,
    "deepstack_visual_indexes": [0, 1],
}
SETTINGS = {"qwen2_5_vl": (TEXT, VISION), "qwen3_vl": (QWEN3_TEXT, QWEN3_VISION)}
"""Kind of `mmrl tiny` -> larger settings of its decoder and tower. Qwen3-VL's tower attends to the whole picture."""


def build_model(directory: Path, seed: int = 0, kind: str = "qwen2_5_vl") -> None:
    """Write the model that is measured: a kind of `mmrl tiny` with larger matrices.

    Its tokenizer gets tokens `<0>`, `<1>`, ... until the vocabulary is full.

    Args:
        directory: must not exist. It appears complete or not at all.
        seed: of the weights.
        kind: one of `SETTINGS`.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, GenerationConfig

    from mmrl_core.testing import IMAGE_FACTOR_PX, build_tiny

    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent) as folder:
        tiny, large = Path(folder, "tiny"), Path(folder, "large")
        build_tiny(kind, tiny)
        settings = AutoConfig.from_pretrained(tiny).to_dict()
        text, vision = SETTINGS[kind]
        settings["text_config"].update(text)
        settings["vision_config"].update(vision)
        config = AutoConfig.for_model(**settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
        model.generation_config = GenerationConfig.from_pretrained(tiny)
        model.save_pretrained(large)
        processor = AutoProcessor.from_pretrained(tiny)
        missing = text["vocab_size"] - len(processor.tokenizer)
        processor.tokenizer.add_tokens([f"<{number}>" for number in range(missing)])
        processor.image_processor.size = {
            "shortest_edge": 4 * IMAGE_FACTOR_PX**2,
            "longest_edge": MAX_IMAGE_TOKENS * IMAGE_FACTOR_PX**2,
        }
        processor.save_pretrained(large)
        os.replace(large, directory)


def write_rows(directory: Path, count: int, image_size_px: int, seed: int = 0) -> Path:
    """Write `rows.jsonl` and its pictures: each row another picture, all with the same question.

    Every step gets pictures that no step had before, so that neither engine can keep anything from one to the next.
    """
    shutil.rmtree(directory / "images", ignore_errors=True)
    (directory / "images").mkdir(parents=True)
    lines = []
    for index in range(count):
        name = f"images/{index}.png"
        photo_like(image_size_px, seed + index).save(directory / name)
        lines.append(json.dumps({"image": name, "problem": QUESTION}) + "\n")
    path = directory / "rows.jsonl"
    path.write_text("".join(lines))
    return path


def photo_like(size_px: int, seed: int) -> Any:
    """A picture of soft coloured patches with some grain, which compresses about as badly as a photograph."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(seed)
    patches = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    smooth = np.asarray(patches.resize((size_px, size_px), Image.Resampling.BICUBIC), dtype=np.float32)
    grain = generator.normal(0.0, 6.0, smooth.shape)
    return Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))


def even_digits(completions: Sequence[str], samples: Sequence[Mapping[str, Any]] = ()) -> list[float]:
    """Share of even digits among a completion's digits; 0 without digits. It only has to vary within a group.

    >>> even_digits(["<2><40>", "<12>", "a"])
    [1.0, 0.5, 0.0]
    """
    shares = []
    for completion in completions:
        digits = [digit for digit in completion if digit in "0123456789"]
        shares.append(sum(digit in "02468" for digit in digits) / max(len(digits), 1))
    return shares
