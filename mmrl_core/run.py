"""What a hook may use of a run: the protocol `Run`, where the run stands (`TrainState`), and seeds."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from mmrl_core.config.schema import Component, RunConfig, StageConfig
    from mmrl_core.plugins.registry import Entry
    from mmrl_core.policy import Policy
    from mmrl_core.support import Processes
    from mmrl_core.types import Batch, Prompt, RolloutGroup, Row, Sampling, Scores


@dataclass
class TrainState:
    """Where a run stands; with weights, optimiser and generators, all that a resumed run needs.

    Attributes:
        stage: index of the stage that runs next.
        stage_step: steps of it that are done.
        step: steps done in all.
        position: rows of the stage's data drawn so far, over all epochs.
        epoch: passes over the stage's data that are complete.
        elapsed_s: training time so far, of all processes that worked on the run one after another.
        metrics_bytes: length of metrics.jsonl; what follows it is written again after a resume.
        evaluated: labels of the evaluations that are done.
        ended: where the last stage stood when the run was complete, so that more steps may follow it.
        sources: fingerprints of the data files, see `mmrl_core.checkpoint.data_files`.
    """

    stage: int = 0
    stage_step: int = 0
    step: int = 0
    position: int = 0
    epoch: int = 0
    elapsed_s: float = 0.0
    metrics_bytes: int = 0
    evaluated: list[str] = field(default_factory=list)
    ended: dict[str, int] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)


class Scorer(Protocol):
    """The rewards of a stage."""

    def start(self, group: RolloutGroup) -> None:
        """Begin to score a group in the background; `score` waits for it."""

    def score(self, groups: Sequence[RolloutGroup]) -> Scores:
        """Scores of the rollouts of the groups, in order."""


class Run(Protocol):
    """A run, as hooks see it. `mmrl_core.trainer.Trainer` is one.

    Attributes:
        config: of the whole run; `stage` is the part that runs now.
        policy: the policy that is trained.
        rewards: scores rollouts with the rewards of the stage.
        state: where the run stands. Read it; the trainer writes it.
        counts: work done in this step, `count/<name>` in the metrics; a plugin may add to it.
        environment: what the policy talks to in this stage; None for single turns.
    """

    config: RunConfig
    stage: StageConfig
    policy: Policy
    state: TrainState
    counts: Counter[str]
    environment: Any

    @property
    def rewards(self) -> Scorer: ...

    def sampling(self) -> Sampling:
        """How the rollout under way samples; its seed differs between steps, rounds and processes."""

    def registered(self, kind: str, component: Component) -> Entry:
        """The registry's entry of a component of the config."""

    def current(self, component: Component) -> Component:
        """The component with the numbers that its scheduled options have in this step."""

    def call(self, kind: str, component: Component, *arguments: Any, **given: Any) -> Any:
        """Call it with its current options, and with those of `given` that it takes."""

    def clock(self, phase: str) -> AbstractContextManager[None]:
        """Add the seconds spent inside to `time/<phase>` of the step."""

    def reduce_sum(self, tensor: Tensor) -> Tensor:
        """Sum over processes; every process calls it equally often, with the same shapes."""

    def is_overridden(self, hook: str) -> bool:
        """Whether a plugin or behaviour of this run implements the hook, and not the core alone."""

    def stop(self, reason: str) -> None:
        """End the run after this step, as if it had no more: it is saved and evaluated, and --resume goes on with it.

        Where several processes train, each has to call it in the same step.
        """


class Drawn(Protocol):
    """Where a draw of prompts ended; see `mmrl_core.data.Draw`."""

    @property
    def position(self) -> int: ...
    @property
    def epochs_finished(self) -> int: ...
    @property
    def set_aside(self) -> Sequence[Any]: ...


class SteppingRun(Run, Protocol):
    """What the step itself uses besides; hooks should not.

    Attributes:
        hooks: pluggy's callers of the hooks of this run.
        accelerator: accelerate's.
        processes: what the processes of the run do together, see `Processes`.
        sampler: gives the groups of a step.
        samples_ahead: whether the next step is sampled while this one trains; never across an evaluation, a checkpoint
            or the end of a stage, so that what is resumed then has nothing under way.
        prompts_of_process: prompts of a step for this process.
    """

    hooks: Any
    accelerator: Any
    processes: Processes
    sampler: Any

    @property
    def samples_ahead(self) -> bool: ...

    @property
    def prompts_of_process(self) -> int: ...

    def source(self, hook: str) -> str:
        """The hook and the plugin that gave its last result, for messages."""

    def publish_weights(self) -> None:
        """Rollouts from now on act with the present weights."""

    def advance(self, draw: Drawn) -> None:
        """The draw is used: the next one begins where it ended."""

    def set_aside(self, prompt: Prompt, reason: str) -> None:
        """The row of a prompt turned out to be of no use in the step that drew it; counts as a broken one."""

    def fits_one_pass(self, rows: Sequence[Row]) -> bool:
        """Whether rows are within `micro_batch_tokens` and `micro_batch_rows`."""

    def optimize(self) -> float:
        """Clip the gradient, step the optimiser, and return the gradient's norm."""

    def log_rollouts(
        self, batch: Batch, groups: Sequence[RolloutGroup], sampled: Sequence[RolloutGroup], scores: Scores
    ) -> None:
        """Write some of the step's rollouts."""


def derive_seed(*parts: object) -> int:
    """A seed that depends only on what it is for, so that no generator needs to be carried through a resume."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")


def stage_name(config: RunConfig, index: int) -> str:
    """The stage's name, or its kind; with its number where another stage would be called the same."""
    stage = config.stages[index]
    name = stage.name or stage.kind
    taken = [other.name or other.kind for other in config.stages]
    return name if taken.count(name) == 1 else f"{name}-{index + 1}"
