"""What configs of all frameworks translate alike: schedules, loss, KL, adapters, rewards."""

from __future__ import annotations

import ast
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmrl_core.errors import ConfigError
from mmrl_core.peers.files import find_path
from mmrl_core.peers.keys import PRECISIONS
from mmrl_core.peers.task import Task

SCHEDULES = {
    "constant": "constant",
    "constant_with_warmup": "constant",
    "linear": "linear",
    "cosine": "cosine",
    "cosine_with_min_lr": "cosine",
}
TRACKERS = ("wandb", "tensorboard", "mlflow", "swanlab", "comet_ml", "clearml", "trackio", "aim", "dvclive")


def length(task: Task, steps: Any, epochs: Any, *keys: str, updates: int = 1) -> int | None:
    """Steps or epochs of the stage; returns the steps, if they are known.

    Args:
        steps: theirs, each of which is an update of the weights; None or not above 0: by epochs.
        keys: of theirs that say so.
        updates: updates of one step of ours.
    """
    if isinstance(steps, int | float) and steps > 0:
        task.set("stage.steps", count := math.ceil(steps / updates))
        return count
    task.set("stage.epochs", float(epochs))
    if not task.is_given(*keys):
        task.defaults.append(f"stages.0.epochs is {float(epochs):g}, as {task.peer} has it by default")
    return None


def warm_up(task: Task, steps: Any, ratio: Any, total: int | None, *, updates: int = 1) -> None:
    """The warm-up, in steps or as a share of all, which needs their number."""
    share = steps if isinstance(steps, float) and 0 < steps < 1 else ratio or 0
    if isinstance(steps, int | float) and steps >= 1:
        task.set("optimizer.warmup_steps", math.ceil(steps / updates))
    elif share and total is not None:
        task.set("optimizer.warmup_steps", math.ceil(share * total))
    elif share:
        task.look.append(
            f"optimizer.warmup_steps: the warm-up is {share:g} of all steps, whose number the data decide; set it when "
            "`mmrl train TASK --dry-run` has said how many rows there are"
        )


def schedule(task: Task, name: Any, *keys: str) -> None:
    found = SCHEDULES.get(str(name))
    if found is None:
        task.missing.append(f"{keys[0]}: {name} (schedules: {', '.join(dict.fromkeys(SCHEDULES.values()))})")
        return
    task.set_from("optimizer.schedule", found, *keys)


def precision(task: Task, name: Any, *keys: str) -> None:
    if name is None:
        return
    if str(name).removeprefix("torch.") not in PRECISIONS:
        task.missing.append(f"{keys[0]}: {name} (precisions: {', '.join(sorted(set(PRECISIONS.values())))})")
        return
    task.set_from("model.precision", PRECISIONS[str(name).removeprefix("torch.")], *keys)


def adapter(task: Task, rank: Any, alpha: Any, targets: Any) -> None:
    """LoRA, where the rank is above 0."""
    if not rank:
        return
    lora: dict[str, Any] = {"rank": int(rank), "alpha": float(alpha)}
    if targets not in (None, "all-linear", ["all-linear"]):
        lora["target_modules"] = targets
    task.set("model.lora", lora)


def clipping(loss: dict[str, Any], low: Any, high: Any, dual: Any = None, cap: Any = None) -> dict[str, Any]:
    """A clipped loss with its range, where that is not ours."""
    if low != 0.2 or high not in (None, 0.2):
        loss |= {"clip_low": float(low), "clip_high": float(low if high is None else high)}
    return loss | ({"dual_clip": float(dual)} if dual else {}) | ({"ratio_cap": float(cap)} if cap else {})


def set_loss(task: Task, loss: Mapping[str, Any], aggregate: str | None) -> None:
    """The loss and its aggregation, as far as they are not ours by default."""
    if dict(loss) != {"name": "clipped"}:
        task.set("algorithm.loss", dict(loss))
    if aggregate not in (None, "token_mean"):
        task.set("algorithm.aggregate", aggregate)


def parts_of_rollout(task: Task, whole: Any, part: Any, what: str) -> None:
    """The disjoint updates on the prompts of a step: theirs is the number of prompts in one."""
    if not whole or not part or part >= whole:
        return
    if whole % part:
        task.look.append(f"algorithm.updates_per_rollout: {what} is {part}, and does not divide {whole}")
    task.set("algorithm.updates_per_rollout", max(1, round(whole / part)))


def trackers(task: Task, names: Any) -> None:
    listed = [names] if isinstance(names, str) else names or []
    if known := [name for name in listed if name in TRACKERS]:
        task.set("log.trackers", known)


def every(task: Task, path: str, steps: Any, *, updates: int = 1) -> None:
    """A number of steps between two of something; not above 0 is never."""
    if isinstance(steps, int | float) and steps >= 1:
        task.set(path, max(1, round(steps / updates)))


def shown_path(path: Path) -> str:
    """A path as a task names it: from here, if it is below."""
    absolute = path.resolve()
    return os.path.relpath(absolute) if absolute.is_relative_to(Path.cwd()) else str(absolute)


def data_path(text: str, folder: Path) -> str:
    """What a task names as path of its data: the local file that is meant, or else the text, such as a hub name."""
    found = find_path(text, folder)
    return text if found is None or not text else shown_path(found)


def reward(task: Task, file: str, function: str, style: str, folder: Path, **more: Any) -> dict[str, Any] | None:
    """A reward of a file; None, and a remark, where the file is not there or has no such function."""
    found = find_path(file, folder)
    written = {"name": f"{file}:{function}", "style": style, **more}
    if found is None or not found.is_file():
        task.look.append(f"rewards: there is no file {file} from here; add {written} when it is there")
        return None
    if function not in defined_in(found):
        task.look.append(f"rewards: {file} defines no {function!r}; name what is meant: {written}")
        return None
    return written | {"name": f"{shown_path(found)}:{function}"}


def defined_in(file: Path) -> dict[str, str]:
    """Names that a Python file defines at its top, and the keys of ms-swift's table of rewards, with what they name."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8-sig"))
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"{file}: {error}") from error
    names: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names[node.name] = node.name
        for target in node.targets if isinstance(node, ast.Assign) else ():
            if isinstance(target, ast.Name):
                names[target.id] = target.id
            elif isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Constant):
                value = node.value.id if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name) else ""
                names[str(target.slice.value)] = value
    return names
