"""What the builders of tiny models share."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl_core.testing.models import sizes
from mmrl_core.testing.models.tokenizer import ControlTokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def language_model_settings(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Keyword arguments that all text configs share."""
    return dict(
        vocab_size=len(tokenizer),
        hidden_size=sizes.HIDDEN_SIZE,
        intermediate_size=2 * sizes.HIDDEN_SIZE,
        num_hidden_layers=sizes.NUM_LAYERS,
        num_attention_heads=sizes.NUM_HEADS,
        num_key_value_heads=sizes.NUM_HEADS // 2,
        max_position_embeddings=32768,
        initializer_range=sizes.INIT_STD,
        rms_norm_eps=1e-6,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )


def never_sample(tokens: Iterable[str], model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Give tokens logits near -30 through the weights, so that no sampler needs to know about them.

    Channel 0 of the residual stream is made constant: text embeddings and media features carry the same value there
    and no layer writes to it. The output rows of those tokens then read that channel only, with a negative weight.
    """
    import torch

    projectors = ("visual.merger.mlp.2", "multi_modal_projector.linear")
    writers = ("self_attn.o_proj.weight", "mlp.down_proj.weight", *(f"{name}.weight" for name in projectors))
    # As large as all other channels together: about 5.7 after the final norm.
    constant = sizes.INIT_STD * sizes.HIDDEN_SIZE**0.5
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("embed_tokens.weight"):
                weight[:, 0] = constant
            elif name.endswith(tuple(f"{projector}.bias" for projector in projectors)):
                weight[0] = constant
            elif name.endswith(writers) and ("visual" not in name or "merger" in name):
                weight[0] = 0.0
        output_rows = model.get_output_embeddings().weight
        for token in tokens:
            row = output_rows[tokenizer.convert_tokens_to_ids(token)]
            row.zero_()
            row[0] = -8.0


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    control: ControlTokens,
    processor: Any,
    directory: Path,
) -> None:
    """Write weights (safetensors), configs, tokenizer and processor."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids(list(control.stops)),
    )
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
