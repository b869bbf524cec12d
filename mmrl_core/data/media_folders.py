"""Which folder the media of a row may not leave, where the config names none."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MAX_PATH = 4096  # characters; what is longer is no path


def located(value: Any, folder: Path | None) -> tuple[Any, Path]:
    """A medium as the row gives it, and the folder that its path starts from and may not leave.

    A relative path starts from the folder. One that is not there, but in the working folder, is taken from there; it
    has to lead into the folder all the same.

    Args:
        value: a path, or whatever else `mmrl_core.media` loads.
        folder: that the source keeps its media in; None: the working folder, or that which the `datasets` library
            unpacks hub data sets to.
    """
    if isinstance(value, Mapping):
        if value.get("bytes") is not None or not isinstance(value.get("path"), str | Path):
            return value, _folder(None, folder)
        path, root = located(value["path"], folder)
        return {**value, "path": path}, root
    if not isinstance(value, str | Path) or len(str(value)) > MAX_PATH:
        return value, _folder(None, folder)
    root = _folder(value, folder)
    if not os.path.exists(root / value) and os.path.exists(value):
        return os.path.abspath(value), root
    return value, root


def _folder(path: str | Path | None, folder: Path | None) -> Path:
    if folder is not None:
        return Path(folder)
    datasets = sys.modules.get("datasets")
    if path is None or datasets is None or not os.path.isabs(path):
        return Path.cwd()
    caches = [Path(datasets.config.HF_DATASETS_CACHE), Path(datasets.config.DOWNLOADED_DATASETS_PATH)]
    return next((cache for cache in caches if Path(path).is_relative_to(cache)), Path.cwd())
