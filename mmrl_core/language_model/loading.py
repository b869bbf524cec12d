"""Loads models and processors of transformers, with errors a user can act on."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl_core.config.schema import LoraConfig
from mmrl_core.errors import PolicyError
from mmrl_core.language_model.gguf import is_gguf, place_and_file, without_quantiser
from mmrl_core.language_model.options import LanguageModelOptions
from mmrl_core.support import local_model, need

if TYPE_CHECKING:
    import torch


def base_and_adapter(path: str | Path) -> tuple[str | Path, Path | None]:
    """What to load for a path: itself; or for a folder with a LoRA adapter the model that it adapts, and the folder.

    Raises:
        PolicyError: the adapter does not say what it adapts, or that is not here.
    """
    settings = _adapter_settings(path)
    if settings is None:
        return path, None
    base = settings.get("base_model_name_or_path")
    if not base:
        raise PolicyError(f"the adapter {path} does not say which model it adapts: base_model_name_or_path is missing.")
    try:
        return local_model(base) or base, Path(path)
    except PolicyError as error:
        raise PolicyError(
            f"the adapter {path} adapts {base}, which is not here. Put the model there, or write where it is into "
            "base_model_name_or_path of adapter_config.json."
        ) from error


def base_is_missing(path: Path) -> bool:
    """Whether a folder holds a LoRA adapter whose model is not on this machine."""
    try:
        base_and_adapter(path)
    except PolicyError:
        return True
    return False


def check_adapter(path: Path, lora: LoraConfig | None) -> None:
    """Refuse weights that the policy of these options cannot take over.

    Raises:
        PolicyError: an adapter of another rank or alpha, an adapter for a policy without one, or the other way round.
    """
    settings = _adapter_settings(path)
    if settings is None and lora is not None:
        raise PolicyError(f"{path} holds a whole model, and model.lora is set. Take model.lora out.")
    if settings is None:
        return
    rank, alpha = settings["r"], settings["lora_alpha"]
    if lora is None or (lora.rank, lora.alpha) != (rank, alpha):
        given = "not set" if lora is None else f"rank {lora.rank}, alpha {lora.alpha:g}"
        raise PolicyError(
            f"{path} holds a LoRA adapter of rank {rank} and alpha {alpha:g}, and model.lora is {given}. "
            f"Set model.lora to {{rank: {rank}, alpha: {alpha:g}}}."
        )


def _adapter_settings(path: str | Path) -> dict[str, Any] | None:
    """`adapter_config.json` of a folder, if it has one."""
    try:
        return dict(json.loads((Path(path) / "adapter_config.json").read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):  # no adapter; one file is no folder
        return None
    except (OSError, ValueError) as error:
        raise PolicyError(f"{Path(path) / 'adapter_config.json'} cannot be read: {error}.") from error


def load_model(
    path: str | Path, options: LanguageModelOptions, dtype: torch.dtype, *, revision: str | None = None
) -> Any:
    """A transformers model from a folder, a GGUF file or the hub.

    Raises:
        PolicyError: there is no such model, or it cannot be loaded, or `model.attention` would leave out a part of it;
            names the path and the cause.
        MissingPackageError: it is a GGUF file, and the package that reads those is not installed.
    """
    with _loading("model", path):
        settings = _settings(path, options, revision)
        if options.attention == "sdpa" and getattr(settings.get_text_config(), "attn_logit_softcapping", None):
            # Some versions of transformers refuse this, others compute attention without the caps.
            raise ValueError("it caps its attention logits, which 'sdpa' cannot. Set model.attention to 'eager'.")
        kinds = _media_kinds(settings)
        loader = _loader(kinds)
        place, arguments = _place_and_arguments(path, options, revision)
        try:
            model = loader.from_pretrained(place, dtype=dtype, attn_implementation=options.attention, **arguments)
        except ValueError as error:
            if "does not support an attention implementation" not in str(error) or not kinds:
                raise
            # One of its media towers; the text decoder gets what is asked for.
            attention = {"text_config": options.attention, **{f"{kind}_config": "eager" for kind in kinds}}
            model = loader.from_pretrained(place, dtype=dtype, attn_implementation=attention, **arguments)
        return without_quantiser(model, Path(path)) if is_gguf(path) else model


def model_without_weights(
    path: str | Path, options: LanguageModelOptions, dtype: torch.dtype, *, revision: str | None = None
) -> Any:
    """The same model on torch's meta device, from its config: modules and shapes, and no numbers.

    Raises:
        PolicyError: there is no such model, or it cannot be built so; names the path and the cause.
    """
    import torch

    with _loading("config of model", path), torch.device("meta"):
        settings = _settings(path, options, revision)
        loader = _loader(_media_kinds(settings))
        return loader.from_config(settings, dtype=dtype, trust_remote_code=options.trust_remote_code)


def _loader(kinds: set[str]) -> Any:
    """The class of transformers that loads models which take these media besides text."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM

    if "audio" in kinds:
        return AutoModelForMultimodalLM
    return AutoModelForImageTextToText if kinds else AutoModelForCausalLM


def load_processor(path: str | Path, options: LanguageModelOptions, *, revision: str | None = None) -> Any:
    """The model's processor, or for a text model its tokenizer, with the pixel limits of the options.

    Raises:
        PolicyError: it cannot be loaded, or pixel limits are set for a model that takes no images.
        MissingPackageError: the model takes images, and the extra "vision" is not installed.
    """
    from transformers import AutoProcessor, AutoTokenizer

    with _loading("processor of model", path):
        kinds = _media_kinds(_settings(path, options, revision))
    if "vision" in kinds:
        need("torchvision", "vision", "a model that takes images")
    with _loading("processor of model", path):
        loader = AutoProcessor if kinds else AutoTokenizer
        place, arguments = _place_and_arguments(path, options, revision)
        processor = loader.from_pretrained(place, **arguments)
    if options.chat_template is not None:
        processor.chat_template = _template(options.chat_template)
    _set_pixel_limits(processor, options)
    if (video_processor := getattr(processor, "video_processor", None)) is not None:
        # `load_video` has given frames the size that the task asks for, which may be below the processor's least.
        side_px = getattr(video_processor, "patch_size", 1) * getattr(video_processor, "merge_size", 1)
        if "longest_edge" in (size := dict(video_processor.size or {})) and side_px > 1:
            video_processor.size = {**size, "shortest_edge": side_px**2}
    return processor


def _settings(path: str | Path, options: LanguageModelOptions, revision: str | None) -> Any:
    """The model's own config."""
    from transformers import AutoConfig

    place, arguments = _place_and_arguments(path, options, revision)
    return AutoConfig.from_pretrained(place, **arguments)


def _media_kinds(settings: Any) -> set[str]:
    """Which of "vision" and "audio" the model takes besides text."""
    return {kind for kind in ("vision", "audio") if hasattr(settings, f"{kind}_config")}


def _place_and_arguments(
    path: str | Path, options: LanguageModelOptions, revision: str | None
) -> tuple[str | Path, dict[str, Any]]:
    """What every `from_pretrained` is given."""
    place, of_file = place_and_file(path)
    return place, {"revision": revision, "trust_remote_code": options.trust_remote_code, **of_file}


def _template(given: str) -> str:
    """`model.chat_template`: the text itself, or that of a file."""
    if "{{" in given or "{%" in given:
        return given
    try:
        return Path(given).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise PolicyError(
            f"model.chat_template: {given} is neither a Jinja template nor a file that can be read: {error}."
        ) from error


@contextmanager
def _loading(what: str, path: str | Path) -> Iterator[None]:
    """Turn what transformers raises for a missing or broken model into a `PolicyError`."""
    try:
        yield
    except (OSError, ValueError, ImportError, KeyError, struct.error) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PolicyError(f"{what} {str(path)!r} cannot be loaded: {reason}") from error


def _set_pixel_limits(processor: Any, options: LanguageModelOptions) -> None:
    if options.min_pixels is None and options.max_pixels is None:
        return
    image_processor = getattr(processor, "image_processor", None)
    if image_processor is None:
        raise PolicyError("model.min_pixels and model.max_pixels are set, but the model takes no images.")
    size = dict(image_processor.size)
    if options.min_pixels is not None:
        size["shortest_edge"] = options.min_pixels
    if options.max_pixels is not None:
        size["longest_edge"] = options.max_pixels
    image_processor.size = size
