"""The proving ground's starting model: a small Qwen2 with random weights whose tokens are single characters."""

from __future__ import annotations

import math
from pathlib import Path

from mmrl_core.testing import SHORT_CHAT_TEMPLATE, VOCAB_MULTIPLE, new_model_folder, train_tokenizer

TURNS = ("user\n", "assistant\n")  # what the chat template writes, a token each
UNSAMPLED = ("<|im_start|>",)


def build_walker(
    directory: str | Path, *, seed: int = 0, hidden_size: int = 128, num_layers: int = 3, num_heads: int = 4
) -> None:
    """Write the model with tokenizer and generation config. Uses no network; takes a second.

    Class, file layout, control tokens and chat template are those of the published models; only sizes differ.

    Args:
        directory: made if missing; must be empty. It appears complete or not at all.
        seed: of the weights. The caller's random state is left as it was.
        hidden_size, num_layers, num_heads: of the decoder; 0.7 M parameters by default.

    Raises:
        ConfigError: the directory is not empty.
    """
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    with new_model_folder(directory, seed=seed) as unfinished:
        tokenizer = train_tokenizer(
            list(TURNS) * 20,
            vocab_size=400,
            split_pattern="|".join([*TURNS, r"[\s\S]"]),
            chat_template=SHORT_CHAT_TEMPLATE,
            max_length=2048,
        )
        config = Qwen2Config(
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
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            tie_word_embeddings=False,
        )
        model = Qwen2ForCausalLM(config)
        model.generation_config = GenerationConfig(
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            bos_token_id=None,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id],
            suppress_tokens=tokenizer.convert_tokens_to_ids(list(UNSAMPLED)),
        )
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
