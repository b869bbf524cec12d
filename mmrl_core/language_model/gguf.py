"""Models in one GGUF file, as llama.cpp and others write them: where transformers reads them, and what it leaves."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from mmrl_core.errors import MissingPackageError

SUFFIX = ".gguf"


def is_gguf(path: str | Path) -> bool:
    """Whether a path names a GGUF file rather than a folder or a hub's model."""
    return Path(path).suffix == SUFFIX and Path(path).is_file()


def place_and_file(path: str | Path) -> tuple[str | Path, dict[str, str]]:
    """What `from_pretrained` takes for a path: a folder or hub name, and arguments that name a file in it.

    Raises:
        MissingPackageError: it is a GGUF file, and the package that reads those is not installed.

    >>> place_and_file("Qwen/Qwen2.5-0.5B-Instruct")
    ('Qwen/Qwen2.5-0.5B-Instruct', {})
    """
    if not is_gguf(path):
        return path, {}
    if importlib.util.find_spec("gguf") is None:
        raise MissingPackageError(f"reading {path} needs the package gguf. Try: pip install gguf")
    return Path(path).parent, {"gguf_file": Path(path).name}


def without_quantiser(model: Any, path: Path) -> Any:
    """A model that was read from a GGUF file, with nothing left that says its weights are quantised: they are not.

    transformers turns them into floating point and keeps the marks, by which it would refuse to save the model. The
    model's name is the file: an adapter names it as what it adapts, which its folder would not say.
    """
    for owner, names in (
        (model.config, ("quantization_config",)),
        (model, ("hf_quantizer", "quantization_method", "is_quantized")),
    ):
        for name in names:
            vars(owner).pop(name, None)
    model.name_or_path = str(path.absolute())
    return model
