"""Tiny language models without media: Qwen2, Qwen3, Llama 3, Gemma 2 and 3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmrl_core.testing.models import sizes
from mmrl_core.testing.models.parts import language_model_settings, never_sample, save
from mmrl_core.testing.models.templates import (
    GEMMA2_CHAT_TEMPLATE,
    GEMMA3_CHAT_TEMPLATE,
    LLAMA_CHAT_TEMPLATE,
    SHORT_CHAT_TEMPLATE,
)
from mmrl_core.testing.models.tokenizer import (
    GEMMA_TOKENS,
    LLAMA_TOKENS,
    QWEN_TOKENS,
    UNSAMPLED_TOKENS,
    build_tokenizer,
)


def build_qwen2(directory: Path) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = build_tokenizer()
    model = Qwen2ForCausalLM(Qwen2Config(**language_model_settings(tokenizer), tie_word_embeddings=False))
    never_sample(UNSAMPLED_TOKENS, model, tokenizer)
    save(model, tokenizer, QWEN_TOKENS, tokenizer, directory)


def build_qwen3(directory: Path) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = build_tokenizer(chat_template=SHORT_CHAT_TEMPLATE)
    settings = language_model_settings(tokenizer) | {"head_dim": sizes.HEAD_DIM}
    model = Qwen3ForCausalLM(Qwen3Config(**settings, tie_word_embeddings=False))
    never_sample(UNSAMPLED_TOKENS, model, tokenizer)
    save(model, tokenizer, QWEN_TOKENS, tokenizer, directory)


def build_llama(directory: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = build_tokenizer(LLAMA_TOKENS, LLAMA_CHAT_TEMPLATE)
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    settings = language_model_settings(tokenizer) | {"rope_parameters": rope}
    model = LlamaForCausalLM(LlamaConfig(**settings, tie_word_embeddings=False))
    save(model, tokenizer, LLAMA_TOKENS, tokenizer, directory)


def _gemma_settings() -> dict[str, Any]:
    """What Gemma 2 and 3 share; every second layer attends to a window only."""
    return dict(
        head_dim=sizes.HEAD_DIM,
        query_pre_attn_scalar=sizes.HEAD_DIM,
        sliding_window=sizes.SLIDING_WINDOW,
        layer_types=["sliding_attention", "full_attention"] * (sizes.NUM_LAYERS // 2),
        tie_word_embeddings=True,
    )


def build_gemma2(directory: Path) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    tokenizer = build_tokenizer(GEMMA_TOKENS, GEMMA2_CHAT_TEMPLATE)
    softcaps = dict(attn_logit_softcapping=sizes.ATTENTION_SOFTCAP, final_logit_softcapping=sizes.LOGIT_SOFTCAP)
    model = Gemma2ForCausalLM(Gemma2Config(**language_model_settings(tokenizer), **_gemma_settings(), **softcaps))
    save(model, tokenizer, GEMMA_TOKENS, tokenizer, directory)


def build_gemma3_text(directory: Path) -> None:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    tokenizer = build_tokenizer(GEMMA_TOKENS, GEMMA3_CHAT_TEMPLATE)
    settings = language_model_settings(tokenizer)
    settings["rope_parameters"] = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
    }
    model = Gemma3ForCausalLM(Gemma3TextConfig(**settings, **_gemma_settings()))
    save(model, tokenizer, GEMMA_TOKENS, tokenizer, directory)
