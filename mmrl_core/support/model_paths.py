"""What a user may give as a model's path: a model folder, a checkpoint, a GGUF file, or a hub name."""

from __future__ import annotations

import re
from pathlib import Path

from mmrl_core.errors import PolicyError

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
FOLDERS = frozenset({"model", "models", "run", "runs", "checkpoint", "checkpoints", "output", "outputs"})
"""First parts of a path that are folders wherever they are met, and owners of models on no hub."""


def local_model(path: str) -> Path | None:
    """The folder, or GGUF file, of a model that lies on this machine; None for a hub name.

    A checkpoint `step-N` of a run stands for the model in it.

    Raises:
        PolicyError: it can only be meant as a folder or a GGUF file, and there is none; or it is a run, which has
            several.
    """
    folder = Path(path).expanduser()
    if (folder / "state.json").is_file() and (folder / "model").is_dir():
        return folder / "model"
    if (folder / "checkpoints").is_dir() and not (folder / "config.json").is_file():
        steps = sorted((item.name for item in folder.glob("checkpoints/step-*")), key=lambda name: (len(name), name))
        newest = f", such as {folder / 'checkpoints' / steps[-1]}" if steps else ""
        raise PolicyError(f"model.path: {path} is a run. Give the checkpoint to start from{newest}.")
    one_file = folder.suffix == ".gguf"
    if path and (folder.is_dir() or (one_file and folder.is_file())):
        return folder
    if path and folder.exists():
        raise PolicyError(f"model.path: {path} is a file. Give the folder that holds the model, or a GGUF file.")
    if one_file:
        raise PolicyError(f"model.path: there is no file {path} (looked for {folder.absolute()}).")
    first, *rest = folder.parts or ("",)
    beside = bool(rest) and Path(first).is_dir()
    if beside or first in FOLDERS or re.fullmatch(r"step-\d+", folder.name) or not HUB_NAME.fullmatch(path):
        hub = f" If the hub's {path} is meant, start where there is no folder {first}." if beside else ""
        raise PolicyError(f"model.path: there is no folder {path} (looked for {folder.absolute()}).{hub}")
    return None
