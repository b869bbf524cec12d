"""Options of the language-model policy: what `model.policy` takes when its name is `language_model`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from mmrl_core.config.numbers import Count, FactorOrZero
from mmrl_core.config.schema import LoraConfig, Strict
from mmrl_core.errors import ConfigError


class LanguageModelOptions(Strict):
    """How the model is loaded, what of it is trained, and how prompts are encoded.

    `model.lora` and the like are short for `model.policy.lora`, so messages name them by the short form.
    """

    trust_remote_code: bool = Field(False, description="run code that comes with the model")
    precision: Literal["auto", "float32", "float16", "bfloat16", "bfloat16_mixed"] = Field(
        "auto",
        description="auto: float32 on CPU; float32 weights with bfloat16 autocast on GPU. float16 is for `mmrl eval`",
    )
    quantization: Literal["int8", "nf4"] | None = Field(
        None,
        description="linear layers with weights of 8 bits (torchao) or 4 (bitsandbytes), others keep the precision: "
        "those of the text decoder under lora, which is trained; those of towers too in an evaluation without",
    )
    attention: str = Field("sdpa", description="attention implementation of transformers")
    chat_template: str | None = Field(
        None, description="Jinja template of chats, as text or a file; default: the model's own"
    )
    freeze: list[str] = Field(
        [],
        description="towers (vision with its projector, audio, projector, language) or parameter-name patterns; "
        "what is frozen gets no LoRA adapter",
    )
    lora: LoraConfig | None = Field(None, description="train LoRA adapters instead of the weights")
    router_aux_loss: FactorOrZero = Field(
        0.0,
        description="weight of the routers' auxiliary loss (mixture of experts), over all tokens of trained rows",
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass")
    min_pixels: Count | None = Field(None, description="images are scaled up to this many pixels")
    max_pixels: Count | None = Field(None, description="images are scaled down to this many pixels")
    max_prompt_tokens: Count = Field(8192, description="longer prompts are never cut; data.on_long says what happens")
    blind_check: Literal["on", "off"] = Field(
        "on", description="on: media whose content moves no logprob of a completion are refused"
    )
    feature_cache: str | None = Field(
        None, description="folder that keeps what frozen media towers compute, for later runs on the same media"
    )

    @model_validator(mode="after")
    def _whole_or_adapted(self) -> Self:
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels {self.min_pixels} is more than max_pixels {self.max_pixels}")
        return self


def check_trainable(options: Mapping[str, Any]) -> None:
    """Refuse options under which weights can be evaluated but not trained.

    Args:
        options: those of `model.policy`, as written.

    Raises:
        ConfigError: names the option.
    """
    if options.get("quantization") is not None and options.get("lora") is None:
        raise ConfigError(
            "model.quantization: quantised weights cannot be trained. It is for `mmrl eval`, or for adapters on them: "
            "set model.lora, or take it out."
        )
    if options.get("precision") == "float16":
        raise ConfigError(
            "model.precision: gradients and updates of float16 weights vanish. It is for `mmrl eval`; train with "
            "bfloat16_mixed or float32."
        )
