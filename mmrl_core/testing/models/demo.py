"""Building blocks of the plugins' demos: a small Qwen2.5-VL, its processor and the splitting rule of its tokenizer.

The model has class, file layout, control tokens and processor of the published one; only sizes differ. A published
model comes with a pretrained vision tower, so a demo's tower is trained on the spot, with a throw-away head (`tower`);
the text decoder stays random.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mmrl_core.testing.models.tokenizer import UNSAMPLED_TOKENS
from mmrl_core.testing.models.tower import MERGE, PATCH_PX, TEMPORAL_PATCH

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

VOCAB_MULTIPLE = 64


def split_pattern(atoms: str) -> str:
    """For ``train_tokenizer``: the pieces are numbers with their decimals, atoms, and the stretches between them.

    Args:
        atoms: regular expression of what is one token wherever it occurs.
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
    config = Qwen2_5_VLConfig(
        text_config=_text_settings(tokenizer, hidden_size=hidden_size, num_layers=num_layers, num_heads=num_heads),
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


def _text_settings(
    tokenizer: PreTrainedTokenizerFast, *, hidden_size: int, num_layers: int, num_heads: int
) -> dict[str, Any]:
    rotary_pairs = hidden_size // num_heads // 2  # shared out over time, height and width
    spatial_pairs = (rotary_pairs - rotary_pairs // 4) // 2
    return dict(
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
    )
