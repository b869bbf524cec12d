"""Tiny Gemma 3 and Gemma 4: attention both ways within a picture; Gemma 4 hears too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmrl_core.testing.models import sizes
from mmrl_core.testing.models.families import GEMMA3_TOKENS, GEMMA4_TOKENS, SIDE_PX, TOWER
from mmrl_core.testing.models.parts import language_model_settings, save
from mmrl_core.testing.models.templates import turns_template
from mmrl_core.testing.models.tokenizer import build_tokenizer


def build_gemma3(directory: Path) -> None:
    """Gemma 3: one square for each picture, four features."""
    import torch
    import transformers

    starts = {"user": "<start_of_turn>user\n", "assistant": "<start_of_turn>model\n"}
    ends = dict.fromkeys(starts, "<end_of_turn>\n")
    template = turns_template(starts, ends, {"image": "<start_of_image>"}, opening="<bos>")
    tokenizer = build_tokenizer(GEMMA3_TOKENS, template)
    ids = tokenizer.convert_tokens_to_ids
    config = transformers.Gemma3Config(
        text_config=_settings(tokenizer) | {"query_pre_attn_scalar": sizes.HEAD_DIM},
        vision_config={**TOWER, "image_size": SIDE_PX},
        mm_tokens_per_image=4,
        boi_token_index=ids("<start_of_image>"),
        eoi_token_index=ids("<end_of_image>"),
        image_token_index=ids("<image_soft_token>"),
        tie_word_embeddings=True,
    )
    model = transformers.Gemma3ForConditionalGeneration(config)
    with torch.no_grad():  # transformers begins with zeros, under which no picture is seen
        model.model.multi_modal_projector.mm_input_projection_weight.normal_(std=0.1)
    processor = transformers.Gemma3Processor(
        image_processor=transformers.Gemma3ImageProcessor(size={"height": SIDE_PX, "width": SIDE_PX}),
        tokenizer=tokenizer,
        chat_template=template,
        image_seq_length=4,
    )
    save(model, tokenizer, GEMMA3_TOKENS, processor, directory)


def build_gemma4(directory: Path) -> None:
    """Gemma 4: pictures and frames of any size up to 70 features, sounds, and embeddings of its own for each layer."""
    import transformers

    starts = {
        role: f"<|turn>{name}\n" for role, name in (("system", "system"), ("user", "user"), ("assistant", "model"))
    }
    media = {"image": "<|image|>", "video": "<|video|>", "audio": "<|audio|>"}
    template = turns_template(starts, dict.fromkeys(starts, "<turn|>\n"), media, opening="<bos>")
    tokenizer = build_tokenizer(GEMMA4_TOKENS, template)
    ids = tokenizer.convert_tokens_to_ids
    text = _settings(tokenizer) | {
        "vocab_size_per_layer_input": len(tokenizer),
        "hidden_size_per_layer_input": 8,
        "global_head_dim": sizes.HEAD_DIM,
        "use_bidirectional_attention": "vision",
    }
    config = transformers.Gemma4Config(
        text_config=text,
        vision_config={
            **TOWER,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "pooling_kernel_size": 2,
            "position_embedding_size": 64,
        },
        audio_config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "subsampling_conv_channels": [128, 8],
            "output_proj_dims": sizes.HIDDEN_SIZE,
        },
        boi_token_id=ids("<|image>"),
        eoi_token_id=ids("<image|>"),
        image_token_id=ids("<|image|>"),
        video_token_id=ids("<|video|>"),
        boa_token_id=ids("<|audio>"),
        eoa_token_index=ids("<audio|>"),
        audio_token_id=ids("<|audio|>"),
    )
    patches: dict[str, Any] = {"patch_size": 14, "max_soft_tokens": 70, "pooling_kernel_size": 2}
    processor = transformers.Gemma4Processor(
        feature_extractor=transformers.Gemma4AudioFeatureExtractor(),
        image_processor=transformers.Gemma4ImageProcessor(**patches),
        tokenizer=tokenizer,
        video_processor=transformers.Gemma4VideoProcessor(**patches),
        chat_template=template,
        image_seq_length=70,
    )
    save(transformers.Gemma4ForConditionalGeneration(config), tokenizer, GEMMA4_TOKENS, processor, directory)


def _settings(tokenizer: Any) -> dict[str, Any]:
    return {
        **language_model_settings(tokenizer),
        "head_dim": sizes.HEAD_DIM,
        "rope_parameters": None,
        "sliding_window": sizes.SLIDING_WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
    }
