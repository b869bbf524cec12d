"""LoRA adapters: where they go, and those that were trained before."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import nn

from mmrl_core.errors import PolicyError
from mmrl_core.language_model.loading import check_adapter
from mmrl_core.language_model.options import LanguageModelOptions
from mmrl_core.language_model.towers import TOWER_MODULES


def add_lora(model: Any, options: LanguageModelOptions, adapter: Path | None, revision: str | None) -> Any:
    """Put adapters on what is not frozen.

    Args:
        model: a transformers model in which `model.freeze` has stopped gradients, and nothing else has.
        options: of the policy, with an adapter.
        adapter: folder of adapters to go on from; default: new ones.
        revision: of the hub's model, for those who load the adapter.

    Raises:
        PolicyError: nothing is left to adapt, modules are not found, or the folder's adapter is another one.
    """
    import peft

    lora = options.lora
    assert lora is not None
    frozen = [name for name, module in model.named_modules() if _frozen(module)]
    if adapter is not None:
        check_adapter(adapter, lora)
        model = load_adapter(model, adapter, is_trainable=True)
        prefixes = tuple(f"base_model.model.{name}." for name in frozen)
        for name, parameter in model.named_parameters():
            if name.startswith(prefixes):
                parameter.requires_grad_(False)
        return model
    towers = [name for name, _ in model.named_modules() if re.fullmatch(TOWER_MODULES, name)]
    targets = lora.target_modules
    if targets == "all-linear":  # peft would take it by the ends of names, which in some towers are numbers
        targets = _linear_layers(model, {*towers, *frozen}) or targets
    settings = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=targets,
        exclude_modules=[*towers, *frozen] or None,
        task_type="CAUSAL_LM",
        revision=revision,
    )
    if Path(model.name_or_path).is_dir():  # it is written into the adapter, which may be used from another folder
        model.name_or_path = str(Path(model.name_or_path).absolute())
    try:
        return peft.get_peft_model(model, settings)
    except ValueError as error:
        if frozen:
            raise PolicyError(
                f"model.freeze={options.freeze} leaves nothing to train for model.lora with target_modules="
                f"{lora.target_modules!r}: what is frozen gets no adapter, and media towers have none. ({error})"
            ) from error
        raise PolicyError(f"model.lora: {error}") from error


def load_adapter(model: Any, folder: Path, *, is_trainable: bool = False) -> Any:
    """peft's model around a transformers model, with the adapter of a folder.

    Raises:
        PolicyError: the adapter is broken, or of another model.
    """
    import peft

    try:
        return peft.PeftModel.from_pretrained(model, str(folder), is_trainable=is_trainable)
    except Exception as error:  # peft, safetensors and torch each raise their own
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PolicyError(f"the adapter {folder} cannot be put on {model.name_or_path}: {first}") from error


def _linear_layers(model: Any, left_out: Collection[str]) -> list[str]:
    """Names of the linear layers, without the head."""
    head = model.get_output_embeddings()
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head]
    return [name for name in linear if name not in left_out]


def _frozen(module: nn.Module) -> bool:
    """Whether an adapter of this module would change weights that are not to be trained."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and not weight.requires_grad
