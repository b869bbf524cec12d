"""Tiny models that see: Qwen2-VL and Qwen2.5-VL."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl_core.testing.models import sizes
from mmrl_core.testing.models.parts import language_model_settings, never_sample, save
from mmrl_core.testing.models.templates import CHAT_TEMPLATE
from mmrl_core.testing.models.tokenizer import QWEN_TOKENS, UNSAMPLED_TOKENS, build_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def build_qwen2_vl(directory: Path) -> None:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

    tokenizer = build_tokenizer()
    vision = dict(
        depth=2,
        embed_dim=32,
        hidden_size=sizes.HIDDEN_SIZE,
        mlp_ratio=2,
        num_heads=2,
        patch_size=14,
        spatial_merge_size=2,
        temporal_patch_size=2,
    )
    config = Qwen2VLConfig(
        text_config=_multi_axis_settings(tokenizer), vision_config=vision, **_media_token_ids(tokenizer)
    )
    model = Qwen2VLForConditionalGeneration(config)
    never_sample(UNSAMPLED_TOKENS, model, tokenizer)
    save(model, tokenizer, QWEN_TOKENS, _vision_processor(Qwen2VLProcessor, tokenizer), directory)


def build_qwen2_5_vl(directory: Path) -> None:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

    tokenizer = build_tokenizer()
    vision = dict(
        depth=2,
        hidden_size=32,
        intermediate_size=64,
        num_heads=2,
        out_hidden_size=sizes.HIDDEN_SIZE,
        patch_size=14,
        spatial_merge_size=2,
        temporal_patch_size=2,
        tokens_per_second=2,
        window_size=56,  # 2 x 2 merged tokens, so that images from 84 x 84 on have more than one window
        fullatt_block_indexes=[1],  # block 0 attends within windows, block 1 to the whole image, as in the real tower
    )
    config = Qwen2_5_VLConfig(
        text_config=_multi_axis_settings(tokenizer), vision_config=vision, **_media_token_ids(tokenizer)
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    never_sample(UNSAMPLED_TOKENS, model, tokenizer)
    save(model, tokenizer, QWEN_TOKENS, _vision_processor(Qwen2_5_VLProcessor, tokenizer), directory)


def _multi_axis_settings(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Keyword arguments of a Qwen2-VL text config, whose rotary positions have three axes."""
    rotary_pairs = sizes.HEAD_DIM // 2  # 8, shared out over time, height and width
    settings = language_model_settings(tokenizer)
    settings["rope_parameters"]["mrope_section"] = [rotary_pairs - 2 * (rotary_pairs * 3 // 8)] + [
        rotary_pairs * 3 // 8
    ] * 2
    return settings


def _media_token_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Top-level settings of the Qwen2-VL configs that must agree with the tokenizer."""
    ids = tokenizer.convert_tokens_to_ids
    return dict(
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=False,
    )


def _vision_processor(processor_class: type, tokenizer: PreTrainedTokenizerFast) -> Any:
    """Processor of a Qwen2-VL kind: images 56 x 56 to 448 x 448 pixels, videos up to 16 frames of 224 x 224."""
    from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    token_px = sizes.IMAGE_FACTOR_PX**2
    image_processor = Qwen2VLImageProcessor(size={"shortest_edge": 4 * token_px, "longest_edge": 256 * token_px})
    video_processor = Qwen2VLVideoProcessor(
        size={"shortest_edge": 4 * token_px, "longest_edge": 64 * token_px},
        min_frames=2,
        max_frames=16,
        fps=2.0,
        cap_pixels_per_frame=True,  # left unset, newer transformers warn on every call
    )
    return processor_class(
        image_processor=image_processor,
        tokenizer=tokenizer,
        video_processor=video_processor,
        chat_template=CHAT_TEMPLATE,
    )
