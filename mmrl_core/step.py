"""One training step, arrow by arrow, in the order in which things happen.

    prompts -> rollout -> score -> revise groups      sampling.py, now or while the step before trained
    -> shape rewards -> select groups -> extend groups -> pack -> statistics -> advantages -> logprobs
    -> batch -> update                                                                                 this file

Each arrow but packing, statistics and logprobs is a hook (`hookspecs.py`); `defaults.py` has the core's own answers. A
supervised step is the same with answers from the data in place of rollouts. The step knows the `Policy` protocol and no
model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmrl_core.batching import (
    disjoint_parts,
    micro_batches,
    pack,
    rows_that_move,
    stack_rows,
    with_advantages,
)
from mmrl_core.config import parts_of
from mmrl_core.conversation import demonstrate
from mmrl_core.data import Template
from mmrl_core.errors import HookResultError, NotFiniteError, PolicyError, UnfitPromptError
from mmrl_core.loss_inputs import BatchTotals, LossInputs, TokenStats
from mmrl_core.methods import LOGPROBS, add_statistics, score_weights, told
from mmrl_core.plugins.hook_results import (
    check_advantages,
    check_batch,
    check_choices,
    check_groups,
    check_loss,
    check_scores,
)
from mmrl_core.policy import REFERENCE
from mmrl_core.rewards import reward_view
from mmrl_core.runs import rollout_metrics
from mmrl_core.support import describe_weights
from mmrl_core.types import Batch, Prompt, RolloutGroup, Row, Scores

if TYPE_CHECKING:
    from mmrl_core.config.schema import StageConfig
    from mmrl_core.run import SteppingRun

Metrics = dict[str, float]
Weigh = Callable[[Batch, Tensor], tuple[Batch, Metrics]]


def grpo_step(run: SteppingRun) -> Metrics:
    """One step of group-relative policy optimisation; returns its metrics."""
    sampled, scores = selected_groups(run)
    if run.samples_ahead:
        run.sampler.start_ahead()
    groups, trained_scores = extended_groups(run, sampled, scores)
    batch = pack(groups, mask_truncated=run.stage.algorithm.mask_truncated)
    batch = add_statistics(run, batch)
    batch = add_advantages(run, batch, groups, trained_scores)
    batch = add_logprobs(run, batch)
    metrics = update(run, changed_batch(run, batch))
    run.log_rollouts(batch, groups, sampled, scores)
    after_update(run, batch)
    return {**rollout_metrics(sampled, scores, batch), **metrics}


def sft_step(run: SteppingRun) -> Metrics:
    """One supervised step: the answers of the data are trained on, all with advantage 1."""
    prompts = run.sampler.draw()
    groups = demonstrate(run.policy, prompts, answers_of(run, prompts), run.environment, run.set_aside)
    batch = pack(groups, mask_truncated=run.stage.algorithm.mask_truncated)
    batch = replace(batch, advantages=batch.mask.float())
    metrics = update(run, batch)
    after_update(run, batch)
    return metrics


# Which groups are trained on


def selected_groups(run: SteppingRun) -> tuple[list[RolloutGroup], Scores]:
    """prompts -> rollout -> score -> shape rewards -> select groups; repeated for what was not selected."""
    rule = run.stage.algorithm.dynamic_sampling
    kept: list[tuple[RolloutGroup, Scores]] = []
    left_out: list[tuple[RolloutGroup, Scores]] = []
    failures: Counter[str] = Counter()
    missing = run.prompts_of_process
    for round_index in range(rule.max_rounds if rule else 1):
        groups, scores = run.sampler.next(round_index)
        scores = run.hooks.mmrl_shape_rewards(run=run, groups=groups, scores=scores)
        check_scores(scores, groups, run.source("mmrl_shape_rewards"))
        failures.update(scores.failures)
        chosen = run.hooks.mmrl_select_groups(run=run, groups=groups, scores=scores)
        check_choices(chosen, groups, run.source("mmrl_select_groups"))
        for group, part, keep in zip(groups, scores.split(groups), chosen, strict=True):
            (kept if keep else left_out).append((group, part))
        if rule is None or min(run.processes.gather([len(kept)])) >= missing:
            break
    if rule is not None:
        kept = kept[:missing] if kept else left_out[:missing]  # no group varies: a step without gradient
    if not kept:
        raise HookResultError(f"{run.source('mmrl_select_groups')} selected no group; a step needs one.")
    # Failures count wherever they came up: groups that failed are flat, and left out by dynamic sampling.
    scores = replace(Scores.join([part for _, part in kept]), failures=dict(failures))
    return [group for group, _ in kept], scores


def extended_groups(
    run: SteppingRun, groups: Sequence[RolloutGroup], scores: Scores
) -> tuple[Sequence[RolloutGroup], Scores]:
    """What the selected groups are trained with, such as rollouts of earlier steps."""
    extended = run.hooks.mmrl_extend_groups(run=run, groups=groups, scores=scores)
    check_groups(extended, run.source("mmrl_extend_groups"))
    return extended


def accept(run: SteppingRun, prompt: Prompt) -> None:
    """Raise UnfitPromptError for a prompt that a step of this stage cannot use; its row is set aside."""
    run.policy.prepare([prompt])
    if run.stage.kind == "sft":
        answers_of(run, [prompt])


def answers_of(run: SteppingRun, prompts: Sequence[Prompt]) -> list[str]:
    """The completion that a supervised step learns for each prompt."""
    targets = {part.name: part.target or run.stage.target for part in parts_of(run.stage)}
    templates = {part: Template(text, "target") for part, text in targets.items() if text is not None}
    answers = [
        templates[prompt.part].render(prompt.sample) if prompt.part in templates else prompt.answer
        for prompt in prompts
    ]
    if empty := [prompt.id for prompt, answer in zip(prompts, answers, strict=True) if not answer.strip()]:
        raise UnfitPromptError(f"row {empty[0]} has no answer to learn: set the stage's target, or prompt.answer.")
    return answers


# What the loss reads


def add_advantages(run: SteppingRun, batch: Batch, groups: Sequence[RolloutGroup], scores: Scores) -> Batch:
    view = reward_view(scores, groups, batch.mask, batch.columns)
    advantages = run.hooks.mmrl_compute_advantages(run=run, view=view)
    check_advantages(advantages, view, run.source("mmrl_compute_advantages"))
    return with_advantages(batch, advantages, view)


def add_logprobs(run: SteppingRun, batch: Batch) -> Batch:
    """Old logprobs where the update is not on-policy throughout, reference logprobs where a penalty needs them."""
    algorithm = run.stage.algorithm
    with run.clock("logprobs"):
        if algorithm.old_logprobs == "sampler":
            if batch.sampler_logprobs is None:
                raise PolicyError(
                    "algorithm.old_logprobs is 'sampler', but rollouts came without the logprobs that they were "
                    "sampled with. Set it to 'trainer', or let the policy or plugin that made them report them."
                )
            batch = replace(batch, old_logprobs=batch.sampler_logprobs)
        elif algorithm.updates_per_rollout * algorithm.epochs_per_rollout > 1:
            known = batch.columns.get(LOGPROBS)
            batch = replace(batch, old_logprobs=_logprobs(run, batch) if known is None else known)
        frozen = set(run.registered("loss", algorithm.loss).details.get("frozen", ()))
        if algorithm.kl.needs_reference and algorithm.kl.place == "loss":
            frozen.add(REFERENCE)
        found = {name: _logprobs(run, batch, name) for name in sorted(frozen)}
    return replace(batch, frozen_logprobs=found) if found else batch


def changed_batch(run: SteppingRun, batch: Batch) -> Batch:
    """The batch as plugins want it trained on: rows left out, masks, advantages or columns changed."""
    changed = run.hooks.mmrl_batch(run=run, batch=batch)
    check_batch(changed, run.source("mmrl_batch"))
    return changed


def _logprobs(run: SteppingRun, batch: Batch, frozen: str | None = None) -> Tensor:
    """[B, T] on the CPU, without gradient, micro-batch by micro-batch."""
    passes = run.processes.in_step(list(micro_batches(batch, run.fits_one_pass)))
    with torch.no_grad():
        parts = [(run.policy.logprobs(part.rows, frozen=frozen).logprobs.cpu(), counts) for part, counts in passes]
    return stack_rows([part for part, counts in parts if counts], batch.mask)


# Update


def update(run: SteppingRun, batch: Batch) -> Metrics:
    """Optimizer steps on the batch: `updates_per_rollout` disjoint parts, `epochs_per_rollout` times.

    Where dynamic sampling found fewer groups than parts, in any process, there are as many parts as groups.
    """
    algorithm = run.stage.algorithm
    num_parts = algorithm.updates_per_rollout
    if num_parts > 1 and algorithm.dynamic_sampling is not None:
        num_parts = min(num_parts, *run.processes.gather([len(batch.group_ids.unique())]))
    metrics: Metrics = {}
    num_updates = 0
    with run.clock("update"):
        for epoch in range(algorithm.epochs_per_rollout):
            seed = (run.config.seed, "parts", run.state.step, epoch)
            for part in disjoint_parts(batch, num_parts, *seed):
                for name, value in optimizer_step(run, part).items():
                    metrics[name] = metrics.get(name, 0.0) + value
                num_updates += 1
    return {name: value / num_updates for name, value in metrics.items()}


def optimizer_step(run: SteppingRun, batch: Batch) -> Metrics:
    """Loss and gradient of a batch, micro-batch by micro-batch, and one step of the optimiser."""
    counts = [float(batch.mask.sum()), float(len(batch))]
    sums: Counter[str] = Counter()
    weigh = _weigher(run)
    if weigh is not None and max(run.processes.gather([len(list(micro_batches(batch, run.fits_one_pass)))])) > 1:
        batch, score_metrics = weigh(batch, _logprobs(run, batch))
        sums.update(score_metrics)
        weigh = None
    if weigh is None:  # else one pass gives the scores and their gradient
        batch = _with_gradient(run, batch)
    counts.append(float(batch.mask.sum()))
    totals = BatchTotals(*run.reduce_sum(torch.tensor(counts)).clamp(min=1.0).tolist())
    passes = run.processes.in_step(list(micro_batches(batch, run.fits_one_pass)))
    for index, (micro, counted) in enumerate(passes):
        last = index + 1 == len(passes)
        with nullcontext() if last else run.accelerator.no_sync(run.policy.module):
            loss, loss_metrics = micro_batch_loss(run, micro, totals, weigh)
            # Gradients are averaged over processes; the totals already count all of them.
            run.accelerator.backward(loss * run.accelerator.num_processes * counted)
        if counted:
            sums.update({name: float(value) for name, value in loss_metrics.items()})
            sums.update({"loss": float(loss.detach())})
    norm = run.optimize()
    return {**run.processes.sums(sums), "grad_norm": norm}


def _weigher(run: SteppingRun) -> Weigh | None:
    """What gives a batch the gradient of a loss of scores in the place of its advantages; None for other losses."""
    loss = run.current(run.stage.algorithm.loss)
    entry = run.registered("loss", loss)
    if entry.details.get("unit") != "score" or run.is_overridden("mmrl_policy_loss"):
        return None
    function = partial(entry.function(), **loss.options)
    reduction = entry.details.get("score", "mean")

    def weigh(batch: Batch, logprobs: Tensor) -> tuple[Batch, Metrics]:
        source = f"loss {loss.name!r}"
        batch, metrics = score_weights(batch, logprobs, function, reduction, run.reduce_sum, source)
        return batch, {**metrics, "loss": metrics["policy_loss"]}  # the update's own policy term has the value 0

    return weigh


def _with_gradient(run: SteppingRun, batch: Batch) -> Batch:
    """The batch without rows that cannot move the weights, such as those of groups whose rewards are all equal."""
    algorithm = run.stage.algorithm
    if algorithm.aggregate == "local_token_mean" or run.is_overridden("mmrl_policy_loss"):
        return batch  # the mean is over the rows at hand; a plugin's loss is not known
    kl_in_loss = algorithm.kl.coefficient > 0 and algorithm.kl.place == "loss"
    details = run.registered("loss", algorithm.loss).details
    idle_at_zero = details.get("idle_at_zero", details.get("unit") == "score")
    moving = rows_that_move(batch, idle_at_zero=idle_at_zero and not kl_in_loss and not algorithm.entropy_coefficient)
    run.counts["rows_skipped"] += len(batch) - len(moving)
    return moving


def micro_batch_loss(
    run: SteppingRun, batch: Batch, totals: BatchTotals, weigh: Weigh | None = None
) -> tuple[Tensor, dict[str, Any]]:
    """logprobs -> policy loss of one micro-batch, with gradient.

    Args:
        weigh: puts the gradient of a loss of scores in the place of the advantages, if that is still to be done.
    """
    stats = forward(run, batch)
    score_metrics: Metrics = {}
    if weigh is not None:
        batch, score_metrics = weigh(batch, stats.logprobs.detach().cpu())
    inputs = loss_inputs(run, batch, stats, totals)
    result = run.hooks.mmrl_policy_loss(run=run, inputs=inputs)
    check_loss(result, run.source("mmrl_policy_loss"))
    loss, metrics = result
    share = inputs.mask.sum() / (totals.num_computed or totals.num_tokens)  # of the tokens of the whole step
    for name, penalty in inputs.penalties.items():
        loss = loss + penalty * share
        metrics = {**metrics, name: penalty.detach() * share}
    if inputs.sampler_logprobs is not None:
        gap = (inputs.logprobs.detach() - inputs.sampler_logprobs).abs().nan_to_num()
        metrics = {**metrics, "sampler_gap": (gap * inputs.mask).sum() / (totals.num_computed or 1.0)}
    if not bool(torch.isfinite(loss)):
        finite = bool(torch.isfinite(inputs.logprobs).all())
        cause = "the policy's logprobs are finite" if finite else describe_weights(run.policy.module)
        raise HookResultError(
            f"the loss is {float(loss.detach())} at step {run.state.step + 1}; training stops before the update "
            f"({cause})."
        )
    return loss, {**metrics, **score_metrics}


def forward(run: SteppingRun, batch: Batch) -> TokenStats:
    """The policy's answer about the rows of a micro-batch, with gradient."""
    algorithm = run.stage.algorithm
    needs = set(run.registered("loss", algorithm.loss).details.get("needs", ()))
    if algorithm.entropy_coefficient:
        needs.add("entropy")
    return told(run, batch.rows, needs, f"the loss {algorithm.loss.name!r}")


def loss_inputs(run: SteppingRun, batch: Batch, stats: TokenStats, totals: BatchTotals) -> LossInputs:
    """What a policy loss reads of a micro-batch, with the policy's answer about its rows."""

    def put(tensor: Tensor | None) -> Any:
        return None if tensor is None else tensor.to(stats.logprobs.device)

    old = current = stats.logprobs.detach()
    if batch.old_logprobs is not None:
        old = put(batch.old_logprobs)
        old = torch.where(old.isnan(), current, old)  # the sampler could not score it: counts as equal
    return LossInputs(
        logprobs=stats.logprobs,
        old_logprobs=old,
        advantages=put(batch.advantages),
        mask=put(batch.mask),
        totals=totals,
        sampler_logprobs=put(batch.sampler_logprobs),
        ref_logprobs=old if run.stage.algorithm.kl.to == "old" else put(batch.frozen_logprobs.get(REFERENCE)),
        frozen_logprobs={name: put(values) for name, values in batch.frozen_logprobs.items()},
        entropy=stats.entropy,
        extras=stats.extras,
        rewards=put(batch.rewards),
        penalties=stats.penalties,
        components={name: put(values) for name, values in batch.components.items()},
        columns={name: put(values) for name, values in batch.columns.items()},
    )


def after_update(run: SteppingRun, batch: Batch) -> None:
    """Plugins look at the updated weights; then frozen policies take them over where their rule says so."""
    run.hooks.mmrl_after_update(run=run, batch=batch, post_update=_post_update(run, batch.rows))
    step = run.state.stage_step + 1  # that ends
    for name, refresh in run.stage.algorithm.frozen_policies.items():
        if refresh.rule != "never" and step % refresh.every_steps == 0:
            run.policy.refresh(name, refresh.decay if refresh.rule == "moving_average" else 0.0)


def _post_update(run: SteppingRun, rows: Sequence[Row]) -> Callable[[], Any]:
    def compute() -> Any:
        with torch.no_grad():
            return run.policy.logprobs(rows)

    return compute


def explain_failure(error: BaseException, step: int, stage: StageConfig) -> None:
    """Raise what to lower, if a step ran out of memory (on a CPU a RuntimeError), or numbers are no longer finite.

    Raises:
        PolicyError: from `error`, if it is of these kinds.
    """
    if isinstance(error, NotFiniteError):
        raise NotFiniteError(f"step {step}, after {step - 1} updates at lr {stage.optimizer.lr:g}: {error}") from error
    if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate" in str(error):
        raise PolicyError(
            f"out of memory in step {step} ({str(error).splitlines()[0]}). Lower micro_batch_tokens (now "
            f"{stage.micro_batch_tokens}) if it was in the update; prompts_per_step (now {stage.prompts_per_step}), "
            f"group_size (now {stage.group_size}) or rollout.max_tokens (now {stage.rollout.max_tokens}) if it was "
            "while sampling; or set model.gradient_checkpointing, model.lora or a smaller model.max_pixels. A run goes "
            "on with --resume and another micro_batch_tokens or gradient_checkpointing; the others make a new run."
        ) from error
