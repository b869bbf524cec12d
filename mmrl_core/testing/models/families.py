"""Tiny models that see, of families other than Qwen's: LLaVA, InternVL, SmolVLM, Mistral 3, LFM2-VL, Gemma, GLM.

Each has the classes, the processor, the control tokens and the form of the turns of the published models, and what sets
its family apart: tiles and thumbnails, several marks in a picture, attention both ways in it, layers with a state.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmrl_core.testing.models import sizes
from mmrl_core.testing.models.parts import language_model_settings, save
from mmrl_core.testing.models.templates import im_template, turns_template
from mmrl_core.testing.models.tokenizer import ControlTokens, build_tokenizer

IM_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14}
SIDE_PX = 56
"""Side of the square, or of the tiles, that these towers look at."""

FOUR_TILES = [[SIDE_PX, SIDE_PX], [SIDE_PX, 2 * SIDE_PX], [2 * SIDE_PX, SIDE_PX], [2 * SIDE_PX, 2 * SIDE_PX]]


def im_tokens(*tokens: str, bos: str | None = None, **named: str) -> ControlTokens:
    """Control tokens of a family with <|im_start|> and <|im_end|>."""
    every = (*IM_TOKENS, *dict.fromkeys((*named.values(), *tokens)))
    return ControlTokens(every, ("<|im_end|>", "<|endoftext|>"), "<|im_end|>", "<|endoftext|>", bos, named)


LLAVA_TOKENS = ControlTokens(
    ("<pad>", "<s>", "</s>", "<image>"), ("</s>",), "</s>", "<pad>", "<s>", {"image_token": "<image>"}
)
ONEVISION_TOKENS = im_tokens(image_token="<image>", video_token="<video>")
INTERNVL_TOKENS = im_tokens(
    start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>", video_token="<video>"
)
SMOLVLM_TOKENS = ControlTokens(
    (
        *(
            "<|endoftext|>",
            "<|im_start|>",
            "<end_of_utterance>",
            "<fake_token_around_image>",
            "<image>",
            "<global-img>",
        ),
        *("<video>", *(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2))),
    ),
    ("<end_of_utterance>",),
    "<end_of_utterance>",
    "<|endoftext|>",
    named={
        "fake_image_token": "<fake_token_around_image>",
        "image_token": "<image>",
        "end_of_utterance_token": "<end_of_utterance>",
        "global_image_token": "<global-img>",
        "video_token": "<video>",
    },
)
MISTRAL_TOKENS = ControlTokens(
    (
        "<pad>",
        "<s>",
        "</s>",
        "[INST]",
        "[/INST]",
        "[SYSTEM_PROMPT]",
        "[/SYSTEM_PROMPT]",
        "[IMG]",
        "[IMG_BREAK]",
        "[IMG_END]",
    ),
    ("</s>",),
    "</s>",
    "<pad>",
    "<s>",
    {"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"},
)
LFM2_TOKENS = im_tokens(
    "<|startoftext|>",
    *(f"<|img_row_{row}_col_{column}|>" for row in (1, 2) for column in (1, 2)),
    image_token="<image>",
    image_start_token="<|image_start|>",
    image_end_token="<|image_end|>",
    image_thumbnail="<|img_thumbnail|>",
)
GEMMA3_TOKENS = ControlTokens(
    (
        "<pad>",
        "<eos>",
        "<bos>",
        "<start_of_turn>",
        "<end_of_turn>",
        "<start_of_image>",
        "<end_of_image>",
        "<image_soft_token>",
    ),
    ("<end_of_turn>", "<eos>"),
    "<eos>",
    "<pad>",
    "<bos>",
    {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"},
)
GEMMA4_TOKENS = ControlTokens(
    (
        *("<pad>", "<eos>", "<bos>", "<|turn>", "<turn|>", "<|image>", "<image|>", "<|image|>"),
        *("<|audio>", "<audio|>", "<|audio|>", "<|video|>"),
    ),
    ("<turn|>", "<eos>"),
    "<eos>",
    "<pad>",
    "<bos>",
    {
        "image_token": "<|image|>",
        "boi_token": "<|image>",
        "eoi_token": "<image|>",
        "audio_token": "<|audio|>",
        "boa_token": "<|audio>",
        "eoa_token": "<audio|>",
    },
)
GLM_TOKENS = ControlTokens(
    (
        *("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|image|>", "<|video|>"),
        *("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"),
    ),
    ("<|user|>", "<|endoftext|>"),
    "<|endoftext|>",
    "<|endoftext|>",
    named={"image_token": "<|image|>", "video_token": "<|video|>"},
)


def build_llava(directory: Path) -> None:
    """LLaVA 1.5: one square for each picture, 16 features."""
    from transformers import CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    starts = {"system": "", "user": "USER: ", "assistant": "ASSISTANT:"}
    template = turns_template(
        starts, {"system": " ", "user": " ", "assistant": "</s>"}, {"image": "<image>\n"}, opening="<s>"
    )
    tokenizer = build_tokenizer(LLAVA_TOKENS, template)
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **TOWER, "image_size": SIDE_PX, "projection_dim": 32},
        text_config={"model_type": "llama", **language_model_settings(tokenizer)},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": SIDE_PX}, crop_size={"height": SIDE_PX, "width": SIDE_PX}
        ),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    save(LlavaForConditionalGeneration(config), tokenizer, LLAVA_TOKENS, processor, directory)


def build_llava_onevision(directory: Path) -> None:
    """LLaVA-OneVision: a picture alone in up to four tiles and whole, several in a square each, videos pooled."""
    import transformers

    template = im_template({"image": "<image>\n", "video": "<video>\n"})
    tokenizer = build_tokenizer(ONEVISION_TOKENS, template)
    config = transformers.LlavaOnevisionConfig(
        vision_config={"model_type": "siglip_vision_model", **TOWER, "image_size": SIDE_PX, "vision_use_head": False},
        text_config={"model_type": "qwen2", **language_model_settings(tokenizer)},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=FOUR_TILES,
        tie_word_embeddings=False,
    )
    size = {"height": SIDE_PX, "width": SIDE_PX}
    processor = transformers.LlavaOnevisionProcessor(
        image_processor=transformers.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=FOUR_TILES),
        tokenizer=tokenizer,
        video_processor=transformers.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=template,
    )
    model = transformers.LlavaOnevisionForConditionalGeneration(config)
    save(model, tokenizer, ONEVISION_TOKENS, processor, directory)


def build_internvl(directory: Path) -> None:
    """InternVL 3: a picture in up to four tiles and a thumbnail, four features each; a video's frames as pictures."""
    import transformers

    template = im_template({"image": "<IMG_CONTEXT>\n", "video": "<video>\n"})
    tokenizer = build_tokenizer(INTERNVL_TOKENS, template)
    tower = {**TOWER, "image_size": [SIDE_PX, SIDE_PX], "patch_size": [14, 14]}
    config = transformers.InternVLConfig(
        vision_config=tower,
        text_config={"model_type": "qwen3", **language_model_settings(tokenizer), "head_dim": sizes.HEAD_DIM},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
    )
    size = {"height": SIDE_PX, "width": SIDE_PX}
    processor = transformers.InternVLProcessor(
        image_processor=transformers.GotOcr2ImageProcessor(
            size=size, crop_to_patches=True, min_patches=1, max_patches=4
        ),
        tokenizer=tokenizer,
        video_processor=transformers.InternVLVideoProcessor(size=size),
        image_seq_length=4,
        chat_template=template,
    )
    save(transformers.InternVLForConditionalGeneration(config), tokenizer, INTERNVL_TOKENS, processor, directory)


def build_smolvlm(directory: Path) -> None:
    """SmolVLM2: a picture in four tiles with their places and whole, four features each; a video's frames whole."""
    import transformers

    starts = {"system": "<|im_start|>System: ", "user": "<|im_start|>User: ", "assistant": "<|im_start|>Assistant:"}
    ends = dict.fromkeys(starts, "<end_of_utterance>\n")
    template = turns_template(starts, ends, {"image": "<image>", "video": "<video>"})
    tokenizer = build_tokenizer(SMOLVLM_TOKENS, template)
    config = transformers.SmolVLMConfig(
        vision_config={**TOWER, "image_size": SIDE_PX},
        text_config={"model_type": "llama", **language_model_settings(tokenizer)},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        tie_word_embeddings=False,
    )
    largest = {"longest_edge": SIDE_PX}
    processor = transformers.SmolVLMProcessor(
        image_processor=transformers.SmolVLMImageProcessor(
            size={"longest_edge": 2 * SIDE_PX}, max_image_size=largest, do_image_splitting=True
        ),
        tokenizer=tokenizer,
        video_processor=transformers.SmolVLMVideoProcessor(size=largest, max_image_size=largest),
        image_seq_len=4,
        chat_template=template,
    )
    save(transformers.SmolVLMForConditionalGeneration(config), tokenizer, SMOLVLM_TOKENS, processor, directory)


def build_mistral3(directory: Path) -> None:
    """Mistral 3: pictures of any size, with a mark after each row of features."""
    import transformers

    template = turns_template(
        {"system": "[SYSTEM_PROMPT]", "user": "[INST]", "assistant": ""},
        {"system": "[/SYSTEM_PROMPT]", "user": "[/INST]", "assistant": "</s>"},
        {"image": "[IMG]"},
        opening="<s>",
    )
    tokenizer = build_tokenizer(MISTRAL_TOKENS, template)
    settings = {**language_model_settings(tokenizer), "head_dim": sizes.HEAD_DIM, "sliding_window": None}
    config = transformers.Mistral3Config(
        vision_config={"model_type": "pixtral", **TOWER, "image_size": 2 * SIDE_PX},
        text_config={"model_type": "mistral", **settings},
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )
    processor = transformers.PixtralProcessor(
        image_processor=transformers.PixtralImageProcessor(size={"longest_edge": 2 * SIDE_PX}, patch_size=14),
        tokenizer=tokenizer,
        patch_size=14,
        spatial_merge_size=2,
        chat_template=template,
    )
    save(transformers.Mistral3ForConditionalGeneration(config), tokenizer, MISTRAL_TOKENS, processor, directory)


def build_lfm2_vl(directory: Path) -> None:
    """LFM2-VL: a decoder with a layer of convolutions, and pictures in tiles with a thumbnail."""
    import transformers

    template = im_template({"image": "<image>"})
    tokenizer = build_tokenizer(LFM2_TOKENS, template)
    settings: dict[str, Any] = {**language_model_settings(tokenizer), "layer_types": ["conv", "full_attention"]}
    del settings["rms_norm_eps"]
    tower = {"model_type": "siglip2_vision_model", **TOWER, "num_patches": 64, "vision_use_head": False}
    config = transformers.Lfm2VlConfig(
        vision_config=tower,
        text_config={"model_type": "lfm2", **settings, "block_auto_adjust_ff_dim": False},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        projector_hidden_size=2 * sizes.HIDDEN_SIZE,
        downsample_factor=2,
        tie_word_embeddings=True,
    )
    processor = transformers.Lfm2VlProcessor(
        image_processor=transformers.Lfm2VlImageProcessor(
            downsample_factor=2,
            do_image_splitting=True,
            use_thumbnail=True,
            min_tiles=2,
            max_tiles=4,
            tile_size=SIDE_PX,
            encoder_patch_size=14,
            min_image_tokens=4,
            max_image_tokens=16,
            max_num_patches=64,
        ),
        tokenizer=tokenizer,
        chat_template=template,
    )
    save(transformers.Lfm2VlForConditionalGeneration(config), tokenizer, LFM2_TOKENS, processor, directory)
