"""Folders that llama.cpp's `convert_hf_to_gguf.py` takes: what it needs, and what it was seen not to take."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmrl_core.errors import MMRLError

TYPES = {"F32", "F16", "BF16"}
"""Types of weights that the converter reads, as safetensors names them."""

SENTENCEPIECE = "tokenizer.model"

NEEDS_SENTENCEPIECE = {"Gemma2ForCausalLM"}
"""Architectures whose vocabulary the converter reads from that file alone."""

NOT_TAKEN = {
    "Glm46VForConditionalGeneration",
    "InternVLForConditionalGeneration",
    "Lfm2VlForConditionalGeneration",
    "LlavaOnevisionForConditionalGeneration",
    "Qwen2_5OmniThinkerForConditionalGeneration",
    "Qwen3OmniMoeThinkerForConditionalGeneration",
    "SmolVLMForConditionalGeneration",
}
"""Architectures of text decoders, in a config as transformers writes it, that the converter said it does not know.

It goes by the text decoder's own config where that names an architecture, and by the whole model's where not. Tried was
the one in llama-cpp-python 0.3.36.
"""

OPTIONS = {"Qwen3_5ForConditionalGeneration": " --no-mtp"}
"""Architectures that it takes with an option: here transformers leaves the layers out that predict several tokens."""


def check_gguf_ready(folder: Path) -> None:
    """Refuse a model folder that the converter would not take.

    Args:
        folder: a whole model as transformers saves it, with its tokenizer.

    Raises:
        MMRLError: says what is missing, or that the architecture is not taken.
    """
    from safetensors import safe_open

    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (architecture, *_) = _architectures(settings)
    if architecture in NOT_TAKEN:
        raise MMRLError(
            f"--gguf-ready: llama.cpp's converter does not know {architecture}, as transformers names it. Leave it out."
        )
    if architecture in NEEDS_SENTENCEPIECE and not (folder / SENTENCEPIECE).is_file():
        raise MMRLError(
            f"--gguf-ready: for {architecture} llama.cpp's converter needs {SENTENCEPIECE}, which the starting model "
            "has not got. Put it there, or leave --gguf-ready out."
        )
    if not any((folder / name).is_file() for name in ("tokenizer.json", SENTENCEPIECE)):
        raise MMRLError("--gguf-ready: the model has neither tokenizer.json nor tokenizer.model. Leave it out.")
    for file in sorted(folder.glob("model*.safetensors")):
        with safe_open(file, "pt") as weights:
            types = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
        if wrong := sorted(types - TYPES):
            raise MMRLError(f"--gguf-ready: weights of type {wrong[0]} are not taken. Add --precision bfloat16.")


def _architectures(settings: Mapping[str, Any]) -> list[str]:
    """What the converter goes by to find the text decoder."""
    of_text = (settings.get("text_config") or {}).get("architectures")
    return of_text or settings.get("architectures") or ["a model without a named architecture"]


def converter_command(folder: Path) -> str:
    """How the text decoder of a folder is converted."""
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (architecture, *_) = _architectures(settings)
    return f"python convert_hf_to_gguf.py {folder} --outfile {folder}.gguf{OPTIONS.get(architecture, '')}"


def add_sentencepiece(folder: Path, base: str | Path) -> None:
    """Copy `tokenizer.model` of the starting model, which transformers does not save, where that has one."""
    from transformers.utils import cached_file

    found = cached_file(
        str(base),
        SENTENCEPIECE,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if found is not None and not (folder / SENTENCEPIECE).exists():
        (folder / SENTENCEPIECE).write_bytes(Path(found).read_bytes())
