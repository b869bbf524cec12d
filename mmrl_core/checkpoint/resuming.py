"""What may have changed between a run and its resume, and what may not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl_core.config import differing_keys, load_config
from mmrl_core.errors import CheckpointError
from mmrl_core.run import TrainState, stage_name

if TYPE_CHECKING:
    from mmrl_core.config import RunConfig

MAY_CHANGE = (
    ("stages.*.steps", "how long a stage goes on; a schedule takes the new length from here on"),
    ("stages.*.epochs", "the same in epochs"),
    ("stages.*.micro_batch_tokens", "memory of a pass; sums are the same but for rounding"),
    ("stages.*.micro_batch_rows", "the same in rows"),
    ("model.policy.gradient_checkpointing", "memory of a pass"),
    ("model.policy.max_prompt_tokens", "a limit"),
    ("model.policy.on_long", "what happens at that limit"),
    ("model.policy.feature_cache", "where features are kept"),
    ("*.max_broken", "a limit"),
    ("*.max_unscored_steps", "a limit"),
    ("*.timeout_s", "a limit"),
    ("process_timeout_s", "a limit"),
    ("sharding.*", "where weights are kept; sums are the same but for rounding"),
    ("hardware.*", "what an estimate of memory is held against"),
    ("*.stop_on_failure", "whether a failing reward ends the run"),
    ("*.isolate", "where a reward runs"),
    ("*.num_workers", "processes of tools"),
    ("*.rollout.engine.memory_gib", "memory of the engine"),
    ("*.rollout.engine.sleep", "memory of the engine"),
    ("*.rollout.engine.max_length", "memory of the engine"),
    ("*.rollout.engine.gpus", "devices of the engine"),
    ("*.rollout.engine.address", "where the engine runs"),
    ("*.rollout.engine.transfer", "how weights get to the engine"),
    ("eval.every_steps", "when held-out rows are scored"),
    ("eval.batch_size", "memory of an evaluation"),
    ("checkpoint.*", "when checkpoints are written, and how many are kept"),
    ("log.*", "what is written and where"),
    ("description", "shown in the report"),
)
"""Keys that do not change what was computed, as patterns, and what each is.

`*` is one part of a key; at the start or end of a pattern any number of parts.
"""


def changes_since(run: Path, config: RunConfig) -> list[str]:
    """Where a config differs from that of the run, one line for each key: "optimizer.lr: 1e-06 there, 1e-05 here".

    Raises:
        MMRLError: the run's config.yaml cannot be read.
    """
    path = run / "config.yaml"
    return differing_keys(load_config(str(path)), config) if path.is_file() else []


def split_changes(lines: Sequence[str]) -> tuple[list[str], list[str]]:
    """The changes that a resumed run may have, and those that would make it another run.

    >>> split_changes(["stages.0.steps: 4 there, 8 here", "seed: 0 there, 1 here"])
    (['stages.0.steps: 4 there, 8 here'], ['seed: 0 there, 1 here'])
    """
    allowed: list[str] = []
    refused: list[str] = []
    for line in lines:
        key = line.partition(": ")[0]
        (allowed if any(_matches(key, pattern) for pattern, _ in MAY_CHANGE) else refused).append(line)
    return allowed, refused


def _matches(key: str, pattern: str) -> bool:
    """Whether a dotted key is one of a pattern: `*` is one part of it; at the start or end, any number of parts."""
    expression = "[^.]+".join(map(re.escape, pattern.removeprefix("*.").removesuffix(".*").split("*")))
    expression = ("(?:.+[.])?" if pattern.startswith("*.") else "") + expression
    return re.fullmatch(expression + ("[.].+" if pattern.endswith(".*") else ""), key) is not None


def refuse_other_run(run: Path, config: RunConfig) -> list[str]:
    """Refuse a config that would go on with a run as another one; returns the changes that it may have.

    Raises:
        CheckpointError: names the keys.
    """
    allowed, refused = split_changes(changes_since(run, config))
    if refused:
        listed = "\n".join(f"  {line}" for line in refused)
        raise CheckpointError(
            f"the config is not that of the run, {run / 'config.yaml'}:\n{listed}\nResume with the same task and "
            "overrides, or start a new run with another --output. docs/cli.md lists the keys that may change."
        )
    return allowed


def reopened(state: TrainState, config: RunConfig, changes: Sequence[str]) -> TrainState:
    """Where a run goes on whose stages got other lengths: a complete one goes on with its last stage.

    Args:
        state: of the checkpoint.
        config: of the resumed run.
        changes: as `refuse_other_run` returned them.

    Raises:
        CheckpointError: a stage that is done would have been longer or shorter.
    """
    lengths = (f"stages.{index}.{key}" for index in range(len(config.stages)) for key in ("steps", "epochs"))
    changed = {int(key.split(".")[1]) for key in lengths if any(line.startswith(f"{key}: ") for line in changes)}
    last = state.ended.get("stage")
    done = sorted(index for index in changed if index < state.stage and index != last)
    if done:
        raise CheckpointError(
            f"stage {stage_name(config, done[0])!r} is done, so its length cannot change any more. Give it the one "
            "that it had, or start a new run with another --output."
        )
    if last is None or last not in changed:
        return state
    label = f"after {stage_name(config, last)}"
    evaluated = [one for one in state.evaluated if one != label]
    ended: Any = state.ended
    return replace(state, **ended, ended={}, evaluated=evaluated)
