"""What `mmrl eval` evaluates, with which config, and where its result goes.

    runs/first, runs/first/checkpoints/step-5, .../step-5/model    of a run, whose own config says what the model is
    a model folder, or a folder with a LoRA adapter                which say themselves
    model.gguf                                                     a model in one file
    owner/name                                                     a model of the hub

Results are `eval/<checkpoint>-<task>-<limit or all>.json` in the run, in the model folder, or, for a model of the hub
or in one file, in the current folder; the completions are beside them as `.jsonl`. None is ever overwritten: the next
is `...-2.json`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl_core.errors import MMRLError

if TYPE_CHECKING:
    from mmrl_core.config import RunConfig

COMPARED = ("data", "prompt", "rewards", "mixture", "eval")
"""Sections that decide what an evaluation measures."""


@dataclass(frozen=True)
class Evaluated:
    """A model to evaluate.

    Attributes:
        name: as results are named, such as "step-5".
        weights: folder of a run, a checkpoint, a model or an adapter, or a GGUF file; None for a model of the hub.
        run: the run that it is from, if it is from one.
        folder: results go to `eval` in it.
        hub_name: of a model of the hub.
    """

    name: str
    weights: Path | None
    run: Path | None
    folder: Path
    hub_name: str | None = None


def find_evaluated(given: str) -> Evaluated:
    """What is given as `--checkpoint`.

    Raises:
        MMRLError: it is neither a folder nor the name of a model of the hub.
        CheckpointError: a run without a whole checkpoint.
    """
    path = Path(given).expanduser()
    if path.is_dir():
        return _found(path)
    if path.suffix == ".gguf" and path.is_file():
        return Evaluated(path.stem, path, None, Path())
    looks_like_a_name = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", given)
    if not looks_like_a_name or path.exists() or Path(path.parts[0]).is_dir() or path.parts[0] == "runs":
        raise MMRLError(
            f"there is no checkpoint folder {given}. Give a run, its checkpoints/step-N, a model folder, or the name "
            "of a model of the hub, owner/name."
        )
    return Evaluated(given.replace("/", "--"), None, None, Path(), given)


def _found(path: Path) -> Evaluated:
    from mmrl_core.checkpoint import find_checkpoint

    if not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
        path = find_checkpoint(path)
    whole = path.absolute()
    checkpoint = whole.parent if whole.name == "model" and re.fullmatch(r"step-\d+", whole.parent.name) else whole
    if checkpoint.parent.name == "checkpoints" and (checkpoint.parent.parent / "config.yaml").is_file():
        run = checkpoint.parent.parent
        return Evaluated(checkpoint.name, path, run, run)
    return Evaluated(whole.name, path, None, path)


def config_of(evaluated: Evaluated, task: str | None, overrides: Sequence[str]) -> tuple[RunConfig, list[str]]:
    """The config to evaluate with, and what the user should know of it, a line each.

    What is measured is the task's. What the model is, its path, builder and policy with options such as LoRA, is what
    the run trained, or what the adapter says; an override of `model` changes it.

    Args:
        task: as given; None for the run's own.

    Raises:
        MMRLError: no task is given, and there is no run to take it from.
    """
    from mmrl_core.config import load_config

    if evaluated.run is None:
        if task is None:
            raise MMRLError(
                f"{evaluated.weights or evaluated.hub_name} belongs to no run: name a TASK to evaluate it on."
            )
        return load_config(task, [*model_overrides(evaluated), *overrides]), []
    own = str(evaluated.run / "config.yaml")
    if task is None:  # its stages, which are written out, would shadow overrides of what they inherit
        return load_config(own, ["stages=[]", *overrides]), []
    of_model = [override for override in overrides if re.match(r"\s*model\b", override)]
    trained = load_config(own, of_model)
    config = load_config(task, [override for override in overrides if override not in of_model])
    return config.model_copy(update={"model": trained.model}), _differences(trained, config, overrides)


def _differences(trained: RunConfig, config: RunConfig, overrides: Sequence[str]) -> list[str]:
    if trained.name != config.name:
        return [f"note: the run trained {trained.name!r}, and this evaluates {config.name!r}."]
    from mmrl_core.config import differing_keys

    set_here = {override.partition("=")[0].strip() for override in overrides}
    found = [line for line in differing_keys(trained, config) if line.partition(".")[0].partition(":")[0] in COMPARED]
    found = [line for line in found if line.partition(":")[0] not in set_here]
    if not found:
        return []
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    listed = "; ".join(line.replace(" there, ", " in the run, ") for line in found[:3])
    return [f"note: task {config.name!r} is not as the run had it: {listed}{more}."]


def model_overrides(evaluated: Evaluated) -> list[str]:
    """Overrides that make a config's model the one of the hub, or the one that an adapter adapts, with its LoRA."""
    if evaluated.hub_name is not None:
        return [f"model.path={json.dumps(evaluated.hub_name)}", "model.build=null"]
    assert evaluated.weights is not None
    settings_file = evaluated.weights / "adapter_config.json"
    if not settings_file.is_file():
        return []
    try:
        settings = json.loads(settings_file.read_text(encoding="utf-8"))
        lora = {
            "rank": settings["r"],
            "alpha": float(settings["lora_alpha"]),
            "target_modules": _adapted_layers(settings),
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MMRLError(f"{settings_file} is no description of a LoRA adapter: {error!r}.") from error
    base = settings.get("base_model_name_or_path")
    found = [f"model.path={json.dumps(base)}", "model.build=null"] if base and Path(base).exists() else []
    return [*found, f"model.lora={json.dumps(lora)}"]


def _adapted_layers(settings: Mapping[str, Any]) -> str:
    """A regular expression for the layers that an adapter is on; peft's names in a list are ends of names."""
    modules, parameters = settings["target_modules"] or [], settings.get("target_parameters") or []
    of_parameters = [re.escape(name) for name in sorted({name.rpartition(".")[0] for name in parameters})]
    if isinstance(modules, str):
        return "|".join([f"({modules})", *of_parameters])
    return rf"(.*\.)?({'|'.join([*map(re.escape, modules), *of_parameters])})"


def result_path(evaluated: Evaluated, task: str, limit: int | None, overrides: Sequence[str]) -> Path:
    """A file that does not exist yet, for the result of an evaluation.

    Args:
        task: name of the task.
        overrides: those beside it; a few letters of the name stand for them.
    """
    digest = hashlib.sha256("\0".join(overrides).encode()).hexdigest()[:6]
    parts = [evaluated.name, task.replace("/", "-"), str(limit or "all"), *([digest] if overrides else [])]
    stem = re.sub(r"[^\w.-]+", "-", "-".join(parts))
    folder, number = evaluated.folder / "eval", 1
    while True:
        path = folder / f"{stem}{'' if number == 1 else f'-{number}'}.json"
        if not path.exists():
            return path
        number += 1
