"""A tiny model that hears: Qwen2-Audio."""

from __future__ import annotations

from pathlib import Path

from mmrl_core.testing.models import sizes
from mmrl_core.testing.models.parts import language_model_settings, never_sample, save
from mmrl_core.testing.models.templates import AUDIO_CHAT_TEMPLATE
from mmrl_core.testing.models.tokenizer import QWEN_AUDIO_TOKENS, UNSAMPLED_AUDIO_TOKENS, build_tokenizer


def build_qwen2_audio(directory: Path) -> None:
    from transformers import (
        Qwen2AudioConfig,
        Qwen2AudioForConditionalGeneration,
        Qwen2AudioProcessor,
        WhisperFeatureExtractor,
    )

    tokenizer = build_tokenizer(QWEN_AUDIO_TOKENS, AUDIO_CHAT_TEMPLATE)
    audio = dict(
        model_type="qwen2_audio_encoder",
        d_model=32,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=64,
        num_mel_bins=sizes.NUM_MEL_BINS,
        max_source_positions=2 * sizes.AUDIO_TOKENS_PER_S * sizes.AUDIO_WINDOW_S,
    )
    config = Qwen2AudioConfig(
        audio_config=audio,
        text_config={"model_type": "qwen2", **language_model_settings(tokenizer)},
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
        tie_word_embeddings=False,
    )
    model = Qwen2AudioForConditionalGeneration(config)
    never_sample(UNSAMPLED_AUDIO_TOKENS, model, tokenizer)
    processor = Qwen2AudioProcessor(
        feature_extractor=WhisperFeatureExtractor(feature_size=sizes.NUM_MEL_BINS, chunk_length=sizes.AUDIO_WINDOW_S),
        tokenizer=tokenizer,
        chat_template=AUDIO_CHAT_TEMPLATE,
    )
    save(model, tokenizer, QWEN_AUDIO_TOKENS, processor, directory)
