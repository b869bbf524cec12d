"""Tiny models of Qwen since Qwen3 that see and hear, and GLM-4.6V, whose pictures are patches of any size too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl_core.testing.models import sizes
from mmrl_core.testing.models.families import GLM_TOKENS, im_tokens
from mmrl_core.testing.models.parts import language_model_settings, save
from mmrl_core.testing.models.templates import im_template, turns_template
from mmrl_core.testing.models.tokenizer import QWEN_TOKENS, build_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TOKEN_PX = sizes.IMAGE_FACTOR_PX**2
TOWER = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": sizes.HIDDEN_SIZE}
PATCHES = {"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
DEEPSTACK = {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
SEEN_STD = 0.1
"""Spread of the towers' weights: with 0.02 what a picture changes is lost in rounding."""

OMNI_TOKENS = im_tokens(
    image_token="<|IMAGE|>",
    video_token="<|VIDEO|>",
    audio_token="<|AUDIO|>",
    vision_bos_token="<|vision_bos|>",
    vision_eos_token="<|vision_eos|>",
    audio_bos_token="<|audio_bos|>",
    audio_eos_token="<|audio_eos|>",
)


def build_qwen3_vl(directory: Path) -> None:
    """Qwen3-VL: features of the tower's first layer enter the decoder's first layer (DeepStack)."""
    _qwen3_vl("Qwen3VL", directory, DEEPSTACK, {})


def build_qwen3_vl_moe(directory: Path) -> None:
    """Qwen3-VL with a decoder of experts."""
    _qwen3_vl("Qwen3VLMoe", directory, DEEPSTACK, EXPERTS)


def build_qwen3_5(directory: Path) -> None:
    """Qwen3.5: a decoder with a layer of linear attention, which carries a state."""
    linear = {"linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2}
    text = {"layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 4, **linear}
    _qwen3_vl("Qwen3_5", directory, {"num_position_embeddings": 64}, text)


def _qwen3_vl(family: str, directory: Path, tower: dict[str, Any], text: dict[str, Any]) -> None:
    import transformers

    media = {kind: f"<|vision_start|><|{kind}_pad|><|vision_end|>" for kind in ("image", "video")}
    template = im_template(media)
    tokenizer = build_tokenizer(QWEN_TOKENS, template)
    ids = tokenizer.convert_tokens_to_ids
    config = getattr(transformers, f"{family}Config")(
        text_config=_settings(tokenizer, mrope_interleaved=True) | text,
        vision_config={**TOWER, **PATCHES, **tower, "initializer_range": SEEN_STD},
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}  # as published; vLLM takes the pictures' for videos too
    processor = transformers.Qwen3VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(size=_pixels(4, 256), patch_size=14, **half),
        tokenizer=tokenizer,
        video_processor=transformers.Qwen3VLVideoProcessor(size=_pixels(8, 1024), patch_size=14),
        chat_template=template,
    )
    model = getattr(transformers, f"{family}ForConditionalGeneration")(config)
    save(model, tokenizer, QWEN_TOKENS, processor, directory)


def build_glm46v(directory: Path) -> None:
    """GLM-4.6V: a video is written as pictures with their times."""
    import transformers

    starts = {role: f"<|{role}|>\n" for role in ("system", "user", "assistant")}
    media = {kind: f"<|begin_of_{kind}|><|{kind}|><|end_of_{kind}|>" for kind in ("image", "video")}
    template = turns_template(starts, dict.fromkeys(starts, ""), media, opening="[gMASK]<sop>")
    tokenizer = build_tokenizer(GLM_TOKENS, template)
    ids = tokenizer.convert_tokens_to_ids
    config = transformers.Glm46VConfig(
        text_config={"model_type": "glm4v_text", **_settings(tokenizer, partial_rotary_factor=1.0)},
        vision_config={"model_type": "glm4v_vision", **TOWER, **PATCHES, "image_size": 112},
        image_token_id=ids("<|image|>"),
        video_token_id=ids("<|video|>"),
        image_start_token_id=ids("<|begin_of_image|>"),
        image_end_token_id=ids("<|end_of_image|>"),
        video_start_token_id=ids("<|begin_of_video|>"),
        video_end_token_id=ids("<|end_of_video|>"),
        tie_word_embeddings=False,
    )
    processor = transformers.Glm46VProcessor(
        image_processor=transformers.Glm46VImageProcessor(size=_pixels(4, 512)),
        tokenizer=tokenizer,
        video_processor=transformers.Glm46VVideoProcessor(size=_pixels(8, 1024)),
        chat_template=template,
    )
    save(transformers.Glm46VForConditionalGeneration(config), tokenizer, GLM_TOKENS, processor, directory)


def build_qwen2_5_omni(directory: Path) -> None:
    """The thinker of Qwen2.5-Omni: text, pictures, videos and sounds to text."""
    import transformers

    tower = {**TOWER, **PATCHES, "window_size": 56, "fullatt_block_indexes": [1], "initializer_range": SEEN_STD}
    _omni("Qwen2_5Omni", directory, transformers.Qwen2_5OmniThinkerConfig, tower, {}, {}, "index")


def build_qwen3_omni(directory: Path) -> None:
    """The thinker of Qwen3-Omni: a decoder of experts, and DeepStack."""
    from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeThinkerConfig

    tower = {**TOWER, **PATCHES, **DEEPSTACK, "initializer_range": SEEN_STD}
    text = {**EXPERTS, "mrope_interleaved": True}
    _omni("Qwen3OmniMoe", directory, Qwen3OmniMoeThinkerConfig, tower, text, {"downsample_hidden_size": 16}, "id")


def _omni(
    family: str,
    directory: Path,
    config_class: Any,
    tower: dict[str, Any],
    text: dict[str, Any],
    audio: dict[str, Any],
    suffix: str,
) -> None:
    import transformers

    media = {kind: f"<|vision_bos|><|{kind.upper()}|><|vision_eos|>" for kind in ("image", "video")}
    template = im_template({**media, "audio": "<|audio_bos|><|AUDIO|><|audio_eos|>"})
    tokenizer = build_tokenizer(OMNI_TOKENS, template)
    ids = tokenizer.convert_tokens_to_ids
    interleaved = {"mrope_interleaved": True} if text.pop("mrope_interleaved", False) else {}
    hearing = {
        **{"num_mel_bins": sizes.NUM_MEL_BINS, "encoder_layers": 2, "encoder_attention_heads": 2, "d_model": 32},
        **{"encoder_ffn_dim": 64, "output_dim": sizes.HIDDEN_SIZE, "n_window": 50, "initializer_range": SEEN_STD},
    }
    config = config_class(
        text_config=_settings(tokenizer, **interleaved) | text,
        vision_config=tower,
        audio_config=hearing | audio,
        **{f"{kind}_token_{suffix}": ids(f"<|{kind.upper()}|>") for kind in ("image", "video", "audio")},
        audio_start_token_id=ids("<|audio_bos|>"),
        audio_end_token_id=ids("<|audio_eos|>"),
        vision_start_token_id=ids("<|vision_bos|>"),
        vision_end_token_id=ids("<|vision_eos|>"),
        user_token_id=ids("<|im_start|>"),
    )
    processor = getattr(transformers, f"{family}Processor")(
        image_processor=transformers.Qwen2VLImageProcessor(size=_pixels(4, 256)),
        video_processor=transformers.Qwen2VLVideoProcessor(size=_pixels(4, 64)),
        feature_extractor=transformers.WhisperFeatureExtractor(feature_size=sizes.NUM_MEL_BINS),
        tokenizer=tokenizer,
        chat_template=template,
    )
    model = getattr(transformers, f"{family}ThinkerForConditionalGeneration")(config)
    save(model, tokenizer, OMNI_TOKENS, processor, directory)


def _settings(tokenizer: PreTrainedTokenizerFast, **rope: Any) -> dict[str, Any]:
    """A text config whose rotary positions have three axes."""
    settings = language_model_settings(tokenizer)
    pairs = sizes.HEAD_DIM // 2  # 8, shared out over time, height and width
    parameters = {**settings["rope_parameters"], "mrope_section": [pairs // 2, pairs // 4, pairs // 4], **rope}
    return {**settings, "head_dim": sizes.HEAD_DIM, "rope_parameters": parameters}


def _pixels(least: int, most: int) -> dict[str, int]:
    """Limits of a processor, in tokens of 28 x 28 pixels."""
    return {"shortest_edge": least * TOKEN_PX, "longest_edge": most * TOKEN_PX}
