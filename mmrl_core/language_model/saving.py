"""What a model writes into a checkpoint: a folder that `from_pretrained` reads back equal, whatever its layout here."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmrl_core.errors import PolicyError
from mmrl_core.support import is_first, is_shared, whole_on_first


def writable(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Arguments under which transformers can write a model that is laid out by columns.

    It refuses a weight with two names, such as embeddings that are the head too, unless it is laid out by rows. Other
    weights are written from where they are.
    """
    weights = model.state_dict()
    plain = {name: weight for name, weight in weights.items() if type(weight) is Tensor}  # quantised ones have no place
    names = Counter(weight.data_ptr() for weight in plain.values())
    if all(weight.is_contiguous() for weight in plain.values() if names[weight.data_ptr()] > 1):
        return {}
    by_rows: dict[int, Tensor] = {}  # each of them once, so that the names still share it
    for name, weight in plain.items():
        if names[weight.data_ptr()] > 1:
            place = weight.data_ptr()
            by_rows[place] = weights[name] = by_rows[place] if place in by_rows else weight.contiguous()
    return {"state_dict": weights}


def check_writable(model: Any) -> None:
    """Find out before the first step whether the model can be saved and read back. Writes nothing.

    Compares names and shapes of its weights with those that a model of its config has, and has transformers look for
    weights that share memory, as it does when it saves.

    Args:
        model: the transformers model, or peft's around it, of which only the adapter is written.

    Raises:
        PolicyError: what would be written could not be read back; says which weights.
    """
    if hasattr(model, "peft_config"):
        weights = {name: value for name, value in model.named_parameters() if value.requires_grad}
        expected = weights
    else:
        weights = writable(model).get("state_dict") or model.state_dict()
        with torch.device("meta"):
            expected = type(model)(model.config).state_dict()
        _check_shared(model, dict(weights))
    wrong = sorted(weights.keys() ^ expected.keys())
    wrong += [name for name in weights.keys() & expected.keys() if weights[name].shape != expected[name].shape]
    if wrong or not weights:
        what = (
            f"{len(wrong)} weights, first {wrong[0]!r}, are not those of its config" if wrong else "it has no weights"
        )
        raise PolicyError(f"this model cannot be saved and read back: {what}.")


def _check_shared(model: Any, weights: dict[str, Tensor]) -> None:
    """Weights with two names are written once, so that the config has to tie them again when they are read."""
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    names = set(weights)
    try:
        kept = set(remove_tied_weights_from_state_dict(weights, model))
    except RuntimeError as error:
        raise PolicyError(f"this model cannot be saved: {str(error).splitlines()[0]}") from error
    if lost := sorted(names - kept - set(model.all_tied_weights_keys)):
        raise PolicyError(
            f"this model cannot be saved and read back: {lost[0]!r} shares its memory with another weight, and its "
            "config does not say so. Set tie_word_embeddings in its config.json."
        )


def save_whole(model: Any, processor: Any, directory: Path) -> None:
    """Write model, or LoRA adapter, and processor in the formats of transformers and peft, weights as safetensors.

    Weights that are shared among processes are gathered one at a time in the first one, which writes.
    """
    given: dict[str, Any]
    if any(is_shared(weight) for weight in model.parameters()):
        written = model.state_dict(keep_vars=True)
        if hasattr(model, "peft_config"):
            written = {name: weight for name, weight in written.items() if weight.requires_grad}
        given = {"state_dict": whole_on_first(written)}
    else:
        given = writable(model)
    if is_first():
        model.save_pretrained(directory, **given)
        processor.save_pretrained(directory)
