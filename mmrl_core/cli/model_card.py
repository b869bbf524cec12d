"""The model card of an exported model: what it was trained on, what it reached, how it is loaded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl_core.errors import PolicyError

if TYPE_CHECKING:
    from mmrl_core.config import PartConfig, RunConfig, StageConfig

PACKAGES = ("mmrl-core", "torch", "transformers", "peft")

LICENSE = (
    "None is set here. Those of the starting model and of the data say what may be done with this one; write yours as "
    "`license` at the top of this file."
)


def model_card(run: Path, checkpoint: str, config: RunConfig, *, architecture: str | None) -> str:
    """Markdown with the front matter that the hub reads.

    Args:
        run: its directory, whose metrics.jsonl has the evaluations.
        checkpoint: name of the checkpoint that is exported, such as "step-200"; later evaluations are left out.
        config: of the run.
        architecture: the class in transformers of a whole model; None for a LoRA adapter, "" for what
            transformers does not load.
    """
    from mmrl_core.config import parts_of
    from mmrl_core.runs import read_metrics

    adapter = architecture is None
    step = int(checkpoint.rpartition("-")[2])
    evaluations = [
        record for record in read_metrics(run) if record.get("kind") == "eval" and record.get("step", 0) <= step
    ]
    built = f"a model that `{config.model.build.name}` builds" if config.model.build else "an unknown model"
    hub_name = _hub_name(config.model.path)
    base = f"`{hub_name or Path(config.model.path).name}`" if config.model.path else built
    lines = ["---", f"library_name: {'peft' if adapter else 'transformers'}"]
    if hub_name is not None:
        lines += [f"base_model: {hub_name}", f"base_model_relation: {'adapter' if adapter else 'finetune'}"]
    lines += ["tags: [mmrl, reinforcement-learning]", "---", "", f"# {config.name}", ""]
    lines += [config.description, ""] if config.description else []
    kind = "A LoRA adapter for" if adapter else "Trained from"
    lines += [f"{kind} {base}, with mmrl, on the task `{config.name}`; this is {checkpoint}.", "", "## Training", ""]
    lines += _table(("stage", "steps", "prompts a step", "completions a prompt", "rewards"), map(_stage, config.stages))
    lines += _adapters(config.model.policy.options, merged=not adapter)
    lines += ["", f"Seed {config.seed}. Data: {'; '.join(map(_data, parts_of(config)))}.", ""]
    if evaluations:
        lines += ["## Held-out results", "", *_results(evaluations), ""]
    if architecture != "":
        lines += ["## Use", "", f"`{_loading(architecture)}`; or `mmrl sample FOLDER QUESTION`.", ""]
    lines += ["## License", "", LICENSE, ""]
    lines += [f"Exported with {', '.join(_versions())}."]
    return "\n".join(lines) + "\n"


def _loading(architecture: str | None) -> str:
    if architecture is None:
        return "peft.PeftModel.from_pretrained(model, folder)"
    return f"transformers.{architecture}.from_pretrained(folder)"


def _hub_name(path: str | None) -> str | None:
    """The starting model's name on the hub; None for one that was in a folder, whose path says nothing elsewhere."""
    from mmrl_core.support import local_model

    try:
        return path if path is None or local_model(path) is None else None
    except PolicyError:  # a folder that is not here any more
        return None


def _adapters(options: Mapping[str, Any], *, merged: bool) -> list[str]:
    """What was trained instead of the weights, and on which."""
    if options.get("lora") is None:
        return []
    of_base = f" over weights quantised as {bits}" if (bits := options.get("quantization")) else ""
    end = "; it is merged into the plain weights here" if merged else ""
    return ["", f"A LoRA adapter was trained{of_base}{end}."]


def _stage(stage: StageConfig) -> tuple[str, ...]:
    from mmrl_core.config import parts_of

    steps = str(stage.steps) if stage.steps is not None else f"{stage.epochs:g} epochs"
    if stage.kind == "sft":
        return stage.name or stage.kind, steps, str(stage.prompts_per_step), "", ""
    rewards = [f"{reward.key} x {reward.weight:g}" for part in parts_of(stage) for reward in part.rewards]
    of_step = (str(stage.prompts_per_step), str(stage.group_size))
    return stage.name or stage.kind, steps, *of_step, ", ".join(dict.fromkeys(rewards))


def _data(part: PartConfig) -> str:
    source = part.data.train
    if source is None:
        return "none at the top level"
    where = source.options.get("path") or source.options.get("name") or ""
    return " ".join(word for word in (source.name, str(where), f"split {source.split}") if word)


def _results(evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    first, last = evaluations[0], evaluations[-1]
    ends = [first] if first is last else [first, last]
    names = [name for name in last if "/" in name and not name.startswith("memory/")]
    rows = [(f"`{name}`", *(_number(record.get(name)) for record in ends)) for name in names]
    lines = _table(("metric", *(str(record.get("label", "")) for record in ends)), rows)
    num_prompts = last.get("num_prompts")
    return [*lines, "", f"Over {num_prompts:g} held-out prompts."] if num_prompts else lines


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) and math.isfinite(value) else "-"


def _versions() -> list[str]:
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return found
