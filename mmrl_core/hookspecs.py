"""Every hook, in the order in which a run calls them. Nothing is called here.

*Registration*: `mmrl_register` runs once for each installed plugin and must stay light (no torch).
*Behaviour*: everything else fires only for what the task config names under `plugins:`, so that installing a package
never changes somebody else's run. These are plugins, whose module holds the hooks, and registered behaviours, classes
that hold them as methods; each run makes an object of such a class with the options in its config. The core's own
behaviour is a plugin too and answers last. Hooks that return something are `firstresult`: the first plugin to return
other than None decides. To change what others return, write a wrapper (`@hookimpl(wrapper=True)`: `result = yield`,
then return the new one). A plugin may leave out arguments. An error in a hook, and a result of the wrong shape, are
reported with the names of the plugin and the hook.

`run` is a `mmrl_core.run.Run`. With `rollout.steps_ahead`, `mmrl_rollout`, `mmrl_score` and `mmrl_revise_groups` of the
next step run in another thread, while `run.state` is that of the step that trains.

A step calls `mmrl_prompts`, `mmrl_rollout`, `mmrl_score`, `mmrl_revise_groups`, `mmrl_shape_rewards` and
`mmrl_select_groups` once for each round of dynamic sampling, else once; `mmrl_policy_loss` once for each micro-batch;
the others once. A supervised step calls `mmrl_policy_loss`, `mmrl_after_update` and `mmrl_step_end` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from torch import Tensor

    from mmrl_core.config.schema import RunConfig
    from mmrl_core.loss_inputs import LossInputs, TokenStats
    from mmrl_core.methods.resampling import Resampler
    from mmrl_core.plugins.registry import Registry
    from mmrl_core.run import Run
    from mmrl_core.types import Batch, Prompt, RewardView, RolloutGroup, Scores

PROJECT = "mmrl"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def mmrl_register(registry: Registry) -> None:
    """Add data sources, rewards, metrics, stages, losses, strategies and the rest, by import string.

    Called once, when plugins are first needed. Import nothing heavy: `registry.add(kind, name, "module:function", ...)`
    imports only when the entry is used.

    :param registry: adds under the plugin's own namespace.
    """


@hookspec
def mmrl_configure(config: RunConfig) -> None:
    """Check the config of a run before anything is loaded.

    :param config: the resolved config. Raise `ConfigError` to refuse it.
    """


@hookspec
def mmrl_stage_start(run: Run) -> None:
    """A stage begins, or is resumed. `run.stage` is its config; its optimiser exists; no step has run yet."""


@hookspec(firstresult=True)
def mmrl_prompts(run: Run, prompts: Sequence[Prompt]) -> Sequence[Prompt] | None:
    """Choose or change the prompts of a step, before the rollout.

    :param prompts: of this process, as the data order gives them.
    :returns: the prompts to use, at least one; None to leave it to others. The core returns them as they are.
    """


@hookspec(firstresult=True)
def mmrl_rollout(run: Run, prompts: Sequence[Prompt]) -> Sequence[RolloutGroup] | None:
    """Let the policy act.

    :returns: a group for each prompt, in order; None to leave it to others. The core calls the rollout strategy that
        the config names.
    """


@hookspec(firstresult=True)
def mmrl_score(run: Run, groups: Sequence[RolloutGroup]) -> Scores | None:
    """Score the rollouts, N in all.

    :returns: totals and components float32 [N], NaN = unscored; None to leave it to others. The core runs the rewards
        that the config names.
    """


@hookspec(firstresult=True)
def mmrl_revise_groups(
    run: Run, groups: Sequence[RolloutGroup], scores: Scores, resampler: Resampler
) -> tuple[Sequence[RolloutGroup], Scores] | None:
    """Sample again for what was scored, such as with hints for prompts that nothing solves, before groups are selected.

    :param scores: of the groups, not shaped yet.
    :param resampler: samples and scores more, and knows the step, see `mmrl_core.methods.Resampler`. Processes may use
        it unequally often, so do not wait for another process here.
    :returns: groups, none without rollouts, and their scores. None to leave it to others. The core returns both as they
        are.
    """


@hookspec(firstresult=True)
def mmrl_shape_rewards(run: Run, groups: Sequence[RolloutGroup], scores: Scores) -> Scores | None:
    """Change the scores before they become advantages: length penalties, unlikeliness, KL in the reward.

    :param scores: totals float32 [N].
    :returns: new scores; None to leave it to others. The core adds the overlong penalty and the KL penalty, if the
        config asks for them.
    """


@hookspec(firstresult=True)
def mmrl_select_groups(run: Run, groups: Sequence[RolloutGroup], scores: Scores) -> Sequence[bool] | None:
    """Choose which groups are trained on.

    :returns: a bool for each group; None to leave it to others. With dynamic sampling on, the trainer draws new prompts
        for those left out. The core keeps all, or those whose rewards vary when `dynamic_sampling` is set.
    """


@hookspec(firstresult=True)
def mmrl_extend_groups(
    run: Run, groups: Sequence[RolloutGroup], scores: Scores
) -> tuple[Sequence[RolloutGroup], Scores] | None:
    """Choose what the selected groups are trained with, such as rollouts of earlier steps beside those of this one.

    Added rollouts bring their own logprobs (`sampler_logprobs` of their rows). Set `algorithm.old_logprobs: sampler`,
    so that ratios are taken to them. Metrics of rollouts, and the rollouts that are written, stay those of this step.

    :param groups: what was selected, sampled in this step (with `steps_ahead`, during the one before).
    :param scores: of their rollouts, in the order of the groups.
    :returns: groups, none without rollouts, and scores in the order of their rollouts; rollouts that are kept stay the
        same objects. None to leave it to others. The core returns both as they are.
    """


@hookspec(firstresult=True)
def mmrl_compute_advantages(run: Run, view: RewardView) -> Tensor | None:
    """Turn rewards into advantages, once a step.

    :param view: rewards at row resolution, see `RewardView`. Do not modify it.
    :returns: float32 [B] or [B, T], finite, without gradient; None to leave it to others. The core runs the advantage
        stages that the config names. Shape, dtype and finiteness are checked.
    """


@hookspec(firstresult=True)
def mmrl_batch(run: Run, batch: Batch) -> Batch | None:
    """Change what the update trains on: leave rows or tokens out, scale advantages, add columns for the loss.

    Called once a step, when advantages and logprobs are known. Behaviours registered with ``needs=("entropy", ...)``
    find these in `batch.columns`. Counts over all processes: `run.reduce_sum`.

    :param batch: every row of this process. Do not modify it: `dataclasses.replace`, and `batch.select` for rows.
    :returns: the batch to train on, with at least one row; the loss is normalised by its tokens and rows. None to leave
        it to others. The core returns it as it is.
    """


@hookspec(firstresult=True)
def mmrl_policy_loss(run: Run, inputs: LossInputs) -> tuple[Tensor, Mapping[str, Tensor]] | None:
    """The loss of one micro-batch.

    :param inputs: see `LossInputs`; `inputs.totals` holds the counts of the whole optimizer step, so that the losses of
        its micro-batches add up.
    :returns: scalar loss with gradient, and scalar metrics that add up in the same way; None to leave it to others. The
        core composes the surrogate, KL penalty, entropy bonus and importance correction that the config names.
    """


@hookspec
def mmrl_after_update(run: Run, batch: Batch, post_update: Callable[[], TokenStats]) -> None:
    """The weights were updated on this batch.

    :param batch: the rows of this step, as they were before `mmrl_batch` changed what is trained on.
    :param post_update: computes logprobs [B, T] of the batch under the new weights; costs a pass, only when called.
    """


@hookspec
def mmrl_evaluated(run: Run, metrics: Mapping[str, float]) -> None:
    """Held-out metrics were computed, at the current step. Called in the main process alone, which scores."""


@hookspec
def mmrl_step_end(run: Run, metrics: Mapping[str, float]) -> None:
    """A step ended.

    :param metrics: what is written to metrics.jsonl. `run.state.epoch` has grown where the step drew the last row of an
        epoch: the place for outer iterations, such as curricula.
    """


@hookspec
def mmrl_stage_end(run: Run) -> None:
    """A stage ended; `run.stage` is still its config."""


@hookspec
def mmrl_save_state() -> Any:
    """The state of the plugin, or of the behaviour's object.

    Called for each checkpoint, in the main process alone, which writes it; and, where one process trains, before each
    step, in case the step fails and is undone. So it must be cheap: hand out the tensors themselves, and replace a
    tensor rather than change it in place. Containers are copied, tensors are not.

    :returns: numbers, strings, lists, dicts and tensors; None for nothing. Saved under the plugin's name, or the
        behaviour's id.
    """


@hookspec
def mmrl_load_state(state: Any) -> None:
    """Restore what `mmrl_save_state` of this plugin or behaviour returned, in every process, before the stage starts.

    Called for those that saved something, each with its own state.

    :param state: as saved; tensors are on the CPU.
    """
