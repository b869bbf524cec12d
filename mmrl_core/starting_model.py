"""Where a run's starting model lies: a path, a hub name, or a folder that a registered builder fills once."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmrl_core.config.schema import RunConfig
from mmrl_core.errors import ConfigError
from mmrl_core.plugins.registry import Registry
from mmrl_core.support import local_model, written_aside

BUILDING_BLOCKS = "mmrl_core.testing.models"
"""Package of what the core gives to builders. It is found by name, since the core may not import it."""

LEFT_BEHIND_S = 86400
"""A half-built model that nobody has written to for so long was left by a process that was killed; in seconds."""


def cache_folder() -> Path:
    """Where built models and demo data are kept: $MMRL_CACHE, else ~/.cache/mmrl."""
    return Path(os.environ.get("MMRL_CACHE") or "~/.cache/mmrl").expanduser()


def starting_model(
    config: RunConfig, registry: Registry, *, progress: Callable[[str], None] | None = None
) -> str | Path:
    """Path or hub name of the model that a run starts from.

    A built model is made once for each set of options and seed, aside, and renamed when it is whole.

    Args:
        progress: called with what a builder is doing.

    Raises:
        ConfigError: neither model.path nor model.build is set.
        PolicyError: model.path looks like a folder and there is none.
    """
    model = config.model
    if model.build is None:
        if model.path is None:
            raise ConfigError(
                "no model: set model.path to a folder or hub name, for instance model.path=Qwen/Qwen2.5-VL-3B-Instruct"
            )
        return local_model(model.path) or model.path
    entry = registry.get("model", model.build.name)
    builder = entry.load()
    options: dict[str, Any] = {"seed": config.seed, **model.build.options}
    identity = {"builder": entry.id, "options": options, "source": _source_digest(builder)}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:16]
    folder = cache_folder() / "models" / f"{entry.id.replace('/', '-')}-{digest}"
    if folder.is_dir():
        return folder
    tell = progress or (lambda _: None)
    for leftover in folder.parent.glob(f".*{folder.name}.*.unfinished"):
        if time.time() - leftover.stat().st_mtime > LEFT_BEHIND_S:
            shutil.rmtree(leftover, ignore_errors=True)
    tell(f"building the starting model {entry.id} (once; kept in {folder})")
    started = time.perf_counter()
    with written_aside(folder, keeps_existing=True) as aside:
        given = {"directory": aside} | ({} if progress is None else {"on_progress": progress})
        entry.call(options=options, **given)
    tell(f"built the starting model in {time.perf_counter() - started:.0f} s")
    return folder


def _source_digest(builder: Callable[..., Any]) -> str:
    """Digest of the builder's module and of `BUILDING_BLOCKS`: a changed builder builds anew."""
    blocks = importlib.util.find_spec(BUILDING_BLOCKS)
    assert blocks is not None and blocks.submodule_search_locations, f"{BUILDING_BLOCKS} has moved"
    core = sorted(path for folder in blocks.submodule_search_locations for path in Path(folder).rglob("*.py"))
    own = inspect.getsourcefile(builder)
    digest = hashlib.sha256()
    for path in [*([Path(own)] if own else []), *core]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
