"""`mmrl info model/NAME`: what a model at hand does here, as `docs/models.md` says it of families."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from mmrl_core.errors import MMRLError, did_you_mean
from mmrl_core.support import local_model

if TYPE_CHECKING:
    from mmrl_core.plugins import Plugins

PREFIX = "model/"


def model_info(plugins: Plugins, name: str) -> str:
    """The row of a kind of `mmrl tiny`, which is built for it, of a folder, or of a hub's model that is in the cache.

    Raises:
        MMRLError: there is no such model, or it cannot be trusted.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded to be looked at
    from mmrl_core.testing import TINY_KINDS, build_tiny

    with tempfile.TemporaryDirectory(prefix="mmrl-info-") as folder:
        path: str | Path = Path(folder) / "model"
        if name in TINY_KINDS and not Path(name).is_dir():
            build_tiny(name, Path(path))
        else:
            path = local_model(name) or name
        try:
            return _told(plugins, name, path)
        except MMRLError as error:
            kinds = f" It is no kind of `mmrl tiny` either.{did_you_mean(name, TINY_KINDS)}" if path == name else ""
            raise type(error)(f"{error}{kinds}") from error


def _told(plugins: Plugins, name: str, path: str | Path) -> str:
    from accelerate import Accelerator

    device = Accelerator().device
    policy_class = plugins.registry.get("policy", "language_model").load()
    policy = policy_class(path, device=device)
    row = policy.support()
    width = max(map(len, row))
    cells = [f"  {column:{width}}  {cell}" for column, cell in row.items()]
    legend = [f"  {column:{width}}  {what}" for column, what in policy_class.support_columns.items()]
    told = [f"model {name}: as found with small prompts, in {policy.precision} on {device.type}", *cells]
    return "\n".join([*told, "", "where", *legend, "", "docs/models.md has the same of small models of each family."])
