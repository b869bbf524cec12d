"""Loads models and processors of transformers, with errors a user can act on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl_core.config import ModelConfig
from mmrl_core.errors import PolicyError

if TYPE_CHECKING:
    import torch


def load_model(config: ModelConfig, path: str | Path, dtype: torch.dtype) -> Any:
    """A transformers model from a folder or the hub.

    Raises:
        PolicyError: there is no such model, or it cannot be loaded, or `model.attention` would leave out a part of it;
            names the path and the cause.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM

    with _loading("model", path):
        settings = _settings(config, path)
        if config.attention == "sdpa" and getattr(settings.get_text_config(), "attn_logit_softcapping", None):
            # Some versions of transformers refuse this, others compute attention without the caps.
            raise ValueError("it caps its attention logits, which 'sdpa' cannot. Set model.attention to 'eager'.")
        kinds = _media_kinds(settings)
        loader = AutoModelForImageTextToText if kinds else AutoModelForCausalLM
        if "audio" in kinds:
            loader = AutoModelForMultimodalLM
        options = _hub_options(config)
        if config.quantization == "int8":
            options["quantization_config"] = _int8_weights()
        return loader.from_pretrained(path, dtype=dtype, attn_implementation=config.attention, **options)


def load_processor(config: ModelConfig, path: str | Path) -> Any:
    """The model's processor, or for a text model its tokenizer, with the pixel limits of the config.

    Raises:
        PolicyError: it cannot be loaded, or pixel limits are set for a model that takes no images.
    """
    from transformers import AutoProcessor, AutoTokenizer

    with _loading("processor of model", path):
        loader = AutoProcessor if _media_kinds(_settings(config, path)) else AutoTokenizer
        processor = loader.from_pretrained(path, **_hub_options(config))
    _set_pixel_limits(processor, config)
    if (video_processor := getattr(processor, "video_processor", None)) is not None:
        # `load_video` has given frames the size that the task asks for, which may be below the processor's least.
        side_px = video_processor.patch_size * video_processor.merge_size
        video_processor.size = {**dict(video_processor.size), "shortest_edge": side_px**2}
    return processor


def _settings(config: ModelConfig, path: str | Path) -> Any:
    """The model's own config."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(path, **_hub_options(config))


def _media_kinds(settings: Any) -> set[str]:
    """Which of "vision" and "audio" the model takes besides text."""
    return {kind for kind in ("vision", "audio") if hasattr(settings, f"{kind}_config")}


def _int8_weights() -> Any:
    """Weights of linear layers as 8 bits and a scale for each row; torchao, which runs on CPU and GPU."""
    from transformers import TorchAoConfig

    try:
        from torchao.quantization import Int8WeightOnlyConfig
    except ImportError as error:
        raise ImportError(f"model.quantization needs torchao ({error}). Try: pip install torchao") from error
    return TorchAoConfig(Int8WeightOnlyConfig(set_inductor_config=False))


def _hub_options(config: ModelConfig) -> dict[str, Any]:
    return {"revision": config.revision, "trust_remote_code": config.trust_remote_code}


@contextmanager
def _loading(what: str, path: str | Path) -> Iterator[None]:
    """What transformers raises for a missing or broken model, as an error the user can mend."""
    try:
        yield
    except (OSError, ValueError, ImportError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PolicyError(f"{what} {str(path)!r} cannot be loaded: {reason}") from error


def _set_pixel_limits(processor: Any, config: ModelConfig) -> None:
    if config.min_pixels is None and config.max_pixels is None:
        return
    image_processor = getattr(processor, "image_processor", None)
    if image_processor is None:
        raise PolicyError("model.min_pixels and model.max_pixels are set, but the model takes no images.")
    size = dict(image_processor.size)
    if config.min_pixels is not None:
        size["shortest_edge"] = config.min_pixels
    if config.max_pixels is not None:
        size["longest_edge"] = config.max_pixels
    image_processor.size = size
