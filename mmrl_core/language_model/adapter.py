"""LoRA adapters: where they go, and those that were trained before."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmrl_core.config.schema import LoraConfig
from mmrl_core.errors import PolicyError
from mmrl_core.language_model.loading import check_adapter
from mmrl_core.language_model.options import LanguageModelOptions
from mmrl_core.language_model.towers import PARTS, part_parameters
from mmrl_core.support import laid_out_like

ALL_LINEAR = "all-linear"
"""The linear layers of the text decoder: what "language" is too."""

ADAPTABLE = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def add_lora(model: Any, options: LanguageModelOptions, adapter: Path | None, revision: str | None) -> Any:
    """Put adapters on what `model.lora.target_modules` names and is not frozen.

    Args:
        model: a transformers model in which `model.freeze` has stopped gradients, and nothing else has.
        options: of the policy, with an adapter.
        adapter: folder of adapters to go on from; default: new ones.
        revision: of the hub's model, for those who load the adapter.

    Raises:
        PolicyError: nothing is left to adapt, a name is of no layer, or the folder's adapter is another one.
    """
    import peft

    lora = options.lora
    assert lora is not None
    targets = target_layers(model, lora.target_modules)
    frozen = {name for name, module in model.named_modules() if _frozen(module)}
    if adapter is not None:
        check_adapter(adapter, lora)
        return _gone_on_with(model, adapter, lora, targets, frozen)
    if not (targets := targets - frozen):
        raise PolicyError(
            f"model.freeze={options.freeze} leaves nothing to train for model.lora with target_modules="
            f"{lora.target_modules!r}: what is frozen gets no adapter, and media towers have one only if named."
        )
    of_experts = sorted(name for name in targets if _is_experts(model.get_submodule(name)))
    modules = sorted(targets.difference(of_experts))
    settings = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=modules or None,
        target_parameters=[f"{name}.{own}" for name in of_experts for own in _matrices(model.get_submodule(name))]
        or None,
        task_type="CAUSAL_LM",
        revision=revision,
    )
    if Path(model.name_or_path).is_dir():  # it is written into the adapter, which may be used from another folder
        model.name_or_path = str(Path(model.name_or_path).absolute())
    try:
        adapted = peft.get_peft_model(model, settings)
    except ValueError as error:
        raise PolicyError(f"model.lora: {error}") from error
    if different := adapted_layers(adapted) ^ targets:  # peft has rules of its own for names of experts
        raise PolicyError(
            f"model.lora: peft adapts other layers than model.lora.target_modules={lora.target_modules!r} names, such "
            f"as {sorted(different)[0]!r}. Name fewer, such as [q_proj, k_proj, v_proj, o_proj]."
        )
    return adapted


def target_layers(model: Any, wanted: str | list[str]) -> set[str]:
    """Names of the layers of a transformers model that `model.lora.target_modules` asks for.

    Args:
        wanted: a list of parts ("all-linear", "language", "vision", "audio", "projector": their linear layers) and
            names, or ends of names; one part; or a regular expression for whole names. A name found in the text
            decoder means the layers there, any other those of the towers. "experts" is a name like others.

    Raises:
        PolicyError: a name is of no layer; says which there are.
    """
    layers = {name: module for name, module in model.named_modules() if _adaptable(module)}
    language = set(part_parameters(model, "language"))
    found: set[str] = set()
    for item in [wanted] if isinstance(wanted, str) else wanted:
        if item in (ALL_LINEAR, *PARTS):
            named = linear_layers(model, "language" if item == ALL_LINEAR else item)
        elif isinstance(wanted, str):
            try:
                named = {name for name in layers if re.fullmatch(wanted, name)}
            except re.error as error:
                raise PolicyError(f"model.lora.target_modules: {item!r} is no regular expression: {error}.") from error
        else:
            named = {name for name in layers if name == item or name.endswith(f".{item}")}
            in_decoder = {name for name in named if any(f"{name}.{own}" in language for own in _matrices(layers[name]))}
            named = in_decoder or named
        if not named:
            raise PolicyError(_nothing_named(model, item, layers))
        found |= named
    return found


def linear_layers(model: Any, part: str) -> set[str]:
    """Names of the linear layers of a part of a transformers model, one of `PARTS`, without the head."""
    weights, head = part_parameters(model, part), model.get_output_embeddings()
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return {
        name
        for name, module in linear.items()
        if f"{name}.weight" in weights and _adaptable(module) and module is not head
    }


def _nothing_named(model: Any, item: str, layers: Iterable[str]) -> str:
    parts = [part for part in PARTS if linear_layers(model, part)]
    ends = sorted({".".join(name.split(".")[-2:]) if name[-1].isdigit() else name.split(".")[-1] for name in layers})
    return (
        f"model.lora.target_modules: {item!r} names no layer that an adapter can go on. Parts: {ALL_LINEAR}, "
        f"{', '.join(parts)}. Names: {', '.join(ends)}. Or a regular expression, as text and not in a list, for whole "
        f"names such as {next(iter(layers))!r}."
    )


def adapted_layers(model: Any) -> set[str]:
    """Names of the layers of peft's model that have an adapter, as the transformers model names them."""
    return _with_adapter(name.removeprefix("base_model.model.") for name, _ in model.named_parameters())


def _with_adapter(parameters: Iterable[str]) -> set[str]:
    """Layers of those parameters that are of an adapter. Adapters of one layer's experts lie in one another."""
    return {name.partition(".lora_")[0].replace(".base_layer", "") for name in parameters if ".lora_" in name}


def adapters_in_words(model: Any) -> str:
    """Where peft's model has adapters."""
    base = model.get_base_model()
    layers = adapted_layers(model)
    num_decoder = len(layers & _with_adapter(part_parameters(base, "language")))
    said = f"LoRA adapts {num_decoder} layers of the text decoder and {len(layers) - num_decoder} of what is before it"
    experts = {name.replace(".base_layer", "") for name, module in base.named_modules() if _is_experts(module)}
    return said if experts <= layers else f"{said}, no experts (model.lora.target_modules: experts)"


def _gone_on_with(model: Any, adapter: Path, lora: LoraConfig, targets: set[str], frozen: set[str]) -> Any:
    """The adapter of a folder, trained on where its layer is not frozen."""
    model = load_adapter(model, adapter, is_trainable=True)
    there = adapted_layers(model)
    if "target_modules" in lora.model_fields_set and (missing := sorted(targets - frozen - there)):
        raise PolicyError(
            f"the adapter {adapter} has nothing at {missing[0]!r}, which model.lora.target_modules names. Take "
            "model.lora.target_modules out to train the adapter where it is."
        )
    for name, parameter in model.named_parameters():
        if _with_adapter([name.removeprefix("base_model.model.")]) & frozen:
            parameter.requires_grad_(False)
    return model


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


def restore_adapter(model: Any, folder: Path) -> None:
    """Set the adapter of peft's model to the one of a folder.

    Raises:
        PolicyError: they are not on the same layers.
    """
    from peft import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict

    own = get_peft_model_state_dict(model)
    weights = {
        name: laid_out_like(value, own[name]) if name in own else value
        for name, value in load_peft_weights(str(folder), device="cpu").items()
    }
    result: Any = set_peft_model_state_dict(model, weights)
    if wrong := sorted([*result.unexpected_keys, *(name for name in result.missing_keys if ".lora_" in name)]):
        raise PolicyError(
            f"the adapter {folder} is not on the layers that model.lora.target_modules and model.freeze leave: "
            f"{wrong[0]!r} is only in one of them. Set them as they were when it was trained."
        )


def _matrices(module: nn.Module) -> dict[str, Tensor]:
    """Own parameters of a layer that an adapter changes."""
    least = 3 if _is_experts(module) else 2
    return {name: value for name, value in module.named_parameters(recurse=False) if value.ndim >= least}


def _is_experts(module: nn.Module) -> bool:
    """Whether it holds the weights of a layer's experts, as matrices side by side."""
    if isinstance(module, ADAPTABLE):
        return False
    return "experts" in type(module).__name__.lower() and any(p.ndim == 3 for p in module.parameters(recurse=False))


def _adaptable(module: nn.Module) -> bool:
    """Attention of torch reads the weight of its last layer past the layer, so that an adapter there has no effect."""
    past_it = isinstance(module, torch.nn.modules.linear.NonDynamicallyQuantizableLinear)
    return (isinstance(module, ADAPTABLE) and not past_it) or _is_experts(module)


def _frozen(module: nn.Module) -> bool:
    """Whether an adapter of this module would change weights that are not to be trained."""
    if _is_experts(module):
        return not all(value.requires_grad for value in _matrices(module).values())
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and not weight.requires_grad
