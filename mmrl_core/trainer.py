"""The trainer: stages of steps. A step reads top to bottom in `Trainer.grpo_step`:

    prompts -> rollout -> score -> shape rewards -> select groups -> extend groups
            -> advantages -> pack -> logprobs -> policy loss -> update

A supervised step is the same with answers from the data in place of rollouts. Each arrow is a hook (`hookspecs.py`);
what the core does by default is in `behaviour.py`. The trainer knows the `Policy` protocol and no model.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmrl_core.checkpoint import TrainState, generator_states, latest_checkpoint, load_checkpoint, save_checkpoint
from mmrl_core.config import (
    AlgorithmConfig,
    Component,
    RunConfig,
    StageConfig,
    check_components,
    check_trainable,
    dump_config,
    parts_of,
)
from mmrl_core.conversation import Environment, demonstrate, make_environment
from mmrl_core.data import BrokenRow, Draw, Mixture, PromptStream, Template, in_turns, training_mixture
from mmrl_core.defaults import REFERENCE, CoreBehaviour, check_advantages, check_groups, check_scores
from mmrl_core.discovery import load_plugins
from mmrl_core.errors import ConfigError, HookResultError, PolicyError, TaskDataError
from mmrl_core.evaluation import Evaluator, mean_outcomes
from mmrl_core.optimizer import learning_rate, make_optimizer, set_learning_rate
from mmrl_core.policy import Policy, make_policy
from mmrl_core.runs import (
    MetricsLog,
    RolloutLog,
    check_trackers,
    evaluation_table,
    flat_config,
    peak_memory_mib,
    read_metrics,
    write_report,
)
from mmrl_core.scoring import ConstantRewardAlarm, RewardRunner, reward_view
from mmrl_core.starting_model import starting_model
from mmrl_core.types import (
    ACTION_MASK,
    LOSS_MASK,
    MASK_NAMES,
    Batch,
    BatchTotals,
    LossInputs,
    Prompt,
    RolloutGroup,
    Row,
    Sampling,
    Scores,
)

SFT_ALGORITHM = AlgorithmConfig(loss=Component(name="nll"), aggregate="token_mean")
"""Supervised stages: mean negative logprob of the answers' tokens, one update a step."""


def train(config: RunConfig, output: Path, resume: bool = False) -> Path:
    """Run all stages of a config and write the report.

    Args:
        config: resolved config.
        output: run directory; made if missing.
        resume: go on from the newest whole checkpoint in it, or from the start if there is none.

    Returns:
        Path of the report.

    Raises:
        MMRLError: something a user can mend; what was trained so far is in the newest checkpoint.
    """
    trainer = Trainer(config, output)
    try:
        trainer.run(resume)
    finally:
        trainer.close()
    if trainer.is_main:
        trainer.log.print(f"report: {write_report(output)}")
    return output / "report.html"


class Trainer:
    """A run. Hooks get it as `run`.

    Attributes:
        config: of the whole run; `stage` is the part that runs now.
        policy: the policy that is trained.
        rewards: runs the stage's reward functions.
        state: where the run stands.
        counts: work done in this step, `count/<name>` in the metrics; plugins may add to it.
        optimizer: of the stage.
        environment: that the stage's policy talks to, if any.
        train_source: what the stage draws prompts from.
    """

    def __init__(self, config: RunConfig, output: Path) -> None:
        from accelerate import Accelerator
        from accelerate.utils import set_seed

        check_trainable(config)
        self.plugins = load_plugins()
        check_components(config, self.plugins)
        self.config = config
        self.stage: StageConfig = config.stages[0]
        self.state = TrainState()
        self.output = output
        self.hooks = self.plugins.hooks(config.plugins, CoreBehaviour()).hook
        self.hooks.mmrl_configure(config=config)
        check_trackers(config.log.trackers)
        output.mkdir(parents=True, exist_ok=True)
        self.accelerator = Accelerator(log_with=config.log.trackers or None, project_dir=str(output))
        self.is_main = self.accelerator.is_main_process
        set_seed(config.seed)
        self.log = MetricsLog(output)
        self.rollout_log = RolloutLog(output)
        self.alarm = ConstantRewardAlarm()
        self._broken: dict[str, dict[str, Any]] = {}  # rows set aside so far, by stage and id
        self.counts: Counter[str] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self.policy = self._load_policy()
        self.policy.module = self.accelerator.prepare(self.policy.module)
        self.optimizer: torch.optim.Optimizer | None = None
        self.train_source: Mixture | None = None
        self.environment: Environment | None = None
        self._stream: PromptStream | None = None
        self._sampler = ThreadPoolExecutor(1, thread_name_prefix="mmrl-sampler")
        self._ahead: Future[tuple[Sequence[RolloutGroup], Scores]] | None = None
        self._weights_moved = False  # in this step
        self._published = False  # whether rollouts act with the present weights
        self.evaluator = Evaluator(config, self.plugins)
        self.rewards = RewardRunner(self.plugins, [])

    # Stages

    def run(self, resume: bool) -> None:
        """All stages from where the run stands."""
        training = self._resume() if resume else None
        if self.is_main:
            (self.output / "config.yaml").write_text(dump_config(self.config))
            self.log.open(self.state.metrics_bytes)
            self.rollout_log.remove_unfinished()
            for line in self.policy.describe():
                self.log.print(line)
        if self.config.log.trackers:
            self.accelerator.init_trackers(self.config.name, config=flat_config(self.config.model_dump()))
        self._evaluate("untrained")
        for index in range(self.state.stage, len(self.config.stages)):
            self._run_stage(index, training)
            training = None
        if self.is_main and (evaluations := [r for r in read_metrics(self.output) if r["kind"] == "eval"]):
            self.log.console.print(evaluation_table(evaluations))

    def _run_stage(self, index: int, training: dict[str, Any] | None) -> None:
        self.stage = self.config.stages[index]
        if self.stage.kind == "sft":
            self.stage = self.stage.model_copy(update={"algorithm": SFT_ALGORITHM})
        name = stage_name(self.config, index)
        parts = parts_of(self.stage)
        self.environment = make_environment(self.stage.rollout, parts, self.plugins)
        self.train_source = training_mixture(self.plugins, parts, self.environment)
        source, count = self.train_source, self.stage.prompts_per_step
        self._stream = PromptStream(lambda position: self._draw_from(source, position, count), self.policy.prepare)
        self.rewards = RewardRunner(self.plugins, {part.name: part.rewards for part in parts})
        self.policy.set_temperature(self.stage.rollout.temperature if self.stage.kind == "grpo" else 1.0)
        self.optimizer = make_optimizer(self.accelerator.unwrap_model(self.policy.module), self.stage)
        if training is None or training["optimizer"] is None:
            for policy_name in self._frozen_names():
                self.policy.freeze(policy_name)
        else:
            self.optimizer.load_state_dict(training["optimizer"])
        total = self._num_steps()
        self.hooks.mmrl_stage_start(run=self)
        if self.is_main:
            self.log.start_stage(name, total, self.state.stage_step)
        step = self.grpo_step if self.stage.kind == "grpo" else self.sft_step
        while self.state.stage_step < total:
            started = time.perf_counter()
            set_learning_rate(self.optimizer, self.stage, self.state.stage_step, total)
            with self._saved_if_it_fails():
                metrics = step()
            self._end_step(name, metrics, started, total)
        self._stream.close()
        if self.environment is not None:
            self.environment.close()
        if self.is_main:
            self.log.end_stage()
        self.hooks.mmrl_stage_end(run=self)
        self._evaluate(f"after {name}")
        self.optimizer = None
        self.state = replace(self.state, stage=index + 1, stage_step=0, position=0, epoch=0)
        self._save_checkpoint()

    # Steps

    def grpo_step(self) -> dict[str, float]:
        """One step of group-relative policy optimisation; returns its metrics."""
        sampled, scores = self._collect_groups()
        self._sample_ahead()
        extended = self.hooks.mmrl_extend_groups(run=self, groups=sampled, scores=scores)
        check_groups(extended, "mmrl_extend_groups")
        groups, trained_scores = extended
        batch = self._pack(groups)
        batch = self._add_advantages(batch, groups, trained_scores)
        batch = self._add_logprobs(batch)
        metrics = self._update(batch)
        self._log_rollouts(batch, groups, sampled, scores)
        self.hooks.mmrl_after_update(run=self, batch=batch, post_update=self._post_update(batch))
        self.hooks.mmrl_refresh_policies(run=self)
        return {**_rollout_metrics(sampled, scores, batch), **metrics}

    def sft_step(self) -> dict[str, float]:
        """One supervised step: the answers of the data are trained on, all with advantage 1."""
        with self.clock("data"):
            prompts = self._draw()
        targets = {part.name: part.target or self.stage.target for part in parts_of(self.stage)}
        templates = {part: Template(text, "target") for part, text in targets.items() if text is not None}
        answers = [
            templates[prompt.part].render(prompt.sample) if prompt.part in templates else prompt.answer
            for prompt in prompts
        ]
        if empty := [prompt.id for prompt, answer in zip(prompts, answers, strict=True) if not answer.strip()]:
            raise TaskDataError(f"row {empty[0]} has no answer to learn: set the stage's target, or prompt.answer.")
        batch = self._pack(demonstrate(self.policy, prompts, answers, self.environment))
        batch = replace(batch, advantages=batch.mask.float())
        metrics = self._update(batch)
        self.hooks.mmrl_after_update(run=self, batch=batch, post_update=self._post_update(batch))
        self.hooks.mmrl_refresh_policies(run=self)
        return metrics

    def _collect_groups(self) -> tuple[list[RolloutGroup], Scores]:
        """prompts -> rollout -> score -> shape rewards -> select groups; again for what was not selected."""
        rule = self.stage.algorithm.dynamic_sampling
        kept: list[tuple[RolloutGroup, Scores]] = []
        left_out: list[tuple[RolloutGroup, Scores]] = []
        failures: Counter[str] = Counter()
        missing = self._local_prompts(self.stage.prompts_per_step)
        for round_index in range(rule.max_rounds if rule else 1):
            groups, scores = self._next_groups(round_index)
            scores = self.hooks.mmrl_shape_rewards(run=self, groups=groups, scores=scores)
            check_scores(scores, groups, "mmrl_shape_rewards")
            failures.update(scores.failures)
            chosen = self.hooks.mmrl_select_groups(run=self, groups=groups, scores=scores)
            if len(chosen) != len(groups):
                raise HookResultError(f"mmrl_select_groups returned {len(chosen)} choices for {len(groups)} groups.")
            for group, part, keep in zip(groups, scores.split(groups), chosen, strict=True):
                (kept if keep else left_out).append((group, part))
            if rule is None or self._min_over_processes(len(kept)) >= missing:
                break
        if rule is not None:
            kept = kept[:missing] if kept else left_out[:missing]  # no group varies: a step without gradient
        if not kept:
            raise HookResultError("mmrl_select_groups selected no group; a step needs one.")
        # Failures count wherever they came up: groups that failed are flat, and left out by dynamic sampling.
        scores = replace(Scores.join([part for _, part in kept]), failures=dict(failures))
        return [group for group, _ in kept], scores

    def _next_groups(self, round_index: int) -> tuple[Sequence[RolloutGroup], Scores]:
        """prompts -> rollout -> score; or what was sampled while the step before trained."""
        if self._ahead is not None:
            with self.clock("wait"):
                sampled, self._ahead = self._ahead.result(), None
            self._epochs_ended += self._epochs_ended_ahead
            return sampled
        self._publish_weights()
        return self._sample(self._next_prompts(), self.state.step, round_index)

    def _next_prompts(self) -> Sequence[Prompt]:
        with self.clock("data"):
            return self.hooks.mmrl_prompts(run=self, prompts=self._draw())

    def _sample(self, prompts: Sequence[Prompt], step: int, round_index: int) -> tuple[Sequence[RolloutGroup], Scores]:
        self._sampled_for = step, round_index
        with self.clock("rollout"):
            groups = self.hooks.mmrl_rollout(run=self, prompts=prompts)
        if len(groups) != len(prompts):
            raise HookResultError(f"mmrl_rollout returned {len(groups)} groups for {len(prompts)} prompts.")
        groups = self.hooks.mmrl_after_rollout(run=self, groups=groups)
        with self.clock("rewards"):
            scores = self.hooks.mmrl_score(run=self, groups=groups)
        check_scores(scores, groups, "mmrl_score")
        return groups, scores

    def _sample_ahead(self) -> None:
        """Begin to sample the next step in a thread, with the weights before this step's update.

        Not across an evaluation, a checkpoint or the end of a stage: what is resumed then has nothing under way.
        """
        if not self.stage.rollout.steps_ahead or self._pauses_after(self.state.stage_step + 1):
            return
        self._publish_weights()
        ended = self._epochs_ended
        self._ahead = self._sampler.submit(self._sample, self._next_prompts(), self.state.step + 1, 0)
        self._epochs_ended, self._epochs_ended_ahead = ended, self._epochs_ended - ended

    def _publish_weights(self) -> None:
        if not self._published:
            self.policy.publish_weights()
            self._published = True

    def _pack(self, groups: Sequence[RolloutGroup]) -> Batch:
        """Rows of all groups, in order, padded to one length."""
        rows: list[Row] = []
        group_ids: list[int] = []
        trajectory_ids: list[int] = []
        for group_id, group in enumerate(groups):
            for rollout in group.rollouts:
                trajectory_id = trajectory_ids[-1] + 1 if trajectory_ids else 0
                rows += rollout.rows
                group_ids += [group_id] * len(rollout.rows)
                trajectory_ids += [trajectory_id] * len(rollout.rows)
        masks = self.masks(rows)
        if self.stage.algorithm.mask_truncated:
            truncated = torch.tensor([row.truncated for row in rows])
            masks[LOSS_MASK] &= ~truncated[:, None]
        logprobs = [row.sampler_logprobs for row in rows]
        known = [values for values in logprobs if values is not None]
        return Batch(
            rows=rows,
            group_ids=torch.tensor(group_ids),
            trajectory_ids=torch.tensor(trajectory_ids),
            step_index=torch.tensor([row.step_index for row in rows]),
            masks=masks,
            advantages=torch.zeros(masks[LOSS_MASK].shape),
            rewards=torch.zeros(len(rows)),
            sampler_logprobs=nn.utils.rnn.pad_sequence(known, batch_first=True) if len(known) == len(rows) else None,
        )

    def masks(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Named masks [B, T] of rows; absent action and loss masks are all True over a row's actions."""
        width = max(row.num_actions for row in rows)
        masks = {}
        for name in MASK_NAMES:
            masks[name] = torch.zeros(len(rows), width, dtype=torch.bool)
            for index, row in enumerate(rows):
                mask = row.masks.get(name)
                masks[name][index, : row.num_actions] = name in (ACTION_MASK, LOSS_MASK) if mask is None else mask
        return masks

    def _add_advantages(self, batch: Batch, groups: Sequence[RolloutGroup], scores: Scores) -> Batch:
        view = reward_view(scores, groups, batch.mask)
        advantages = self.hooks.mmrl_compute_advantages(run=self, view=view)
        check_advantages(advantages, view, "mmrl_compute_advantages")
        if advantages.dim() == 1:
            advantages = advantages[:, None].expand(batch.mask.shape)
        return replace(batch, advantages=(advantages * batch.mask).float(), rewards=view.rewards)

    def _add_logprobs(self, batch: Batch) -> Batch:
        """Old logprobs where the update is not on-policy throughout, reference logprobs where a penalty needs them."""
        algorithm = self.stage.algorithm
        with self.clock("logprobs"):
            if algorithm.old_logprobs == "sampler":
                if batch.sampler_logprobs is None:
                    raise PolicyError(
                        "algorithm.old_logprobs is 'sampler', but rollouts came without the logprobs that they were "
                        "sampled with. Set it to 'trainer', or let the policy or plugin that made them report them."
                    )
                batch = replace(batch, old_logprobs=batch.sampler_logprobs)
            elif algorithm.updates_per_rollout * algorithm.epochs_per_rollout > 1:
                with torch.no_grad():
                    old = [self.policy.logprobs(part.rows).logprobs.cpu() for part in self._micro_batches(batch)]
                batch = replace(batch, old_logprobs=_stack(old, batch.mask))
            if algorithm.kl.coefficient > 0 and algorithm.kl.place == "loss":
                reference = [
                    self.policy.logprobs(part.rows, frozen=REFERENCE).logprobs.cpu()
                    for part in self._micro_batches(batch)
                ]
                batch = replace(batch, frozen_logprobs={REFERENCE: _stack(reference, batch.mask)})
        return batch

    def _update(self, batch: Batch) -> dict[str, float]:
        """Optimizer steps on the batch: `updates_per_rollout` disjoint parts, `epochs_per_rollout` times."""
        algorithm = self.stage.algorithm
        metrics: dict[str, float] = {}
        num_updates = 0
        with self.clock("update"):
            for epoch in range(algorithm.epochs_per_rollout):
                for part in self._parts(batch, algorithm.updates_per_rollout, epoch):
                    for name, value in self._optimizer_step(part).items():
                        metrics[name] = metrics.get(name, 0.0) + value
                    num_updates += 1
        return {name: value / num_updates for name, value in metrics.items()}

    def _optimizer_step(self, batch: Batch) -> dict[str, float]:
        """Loss and gradient of a batch, micro-batch by micro-batch, and one step of the optimiser."""
        assert self.optimizer is not None
        counts = [float(batch.mask.sum()), float(len(batch))]
        batch = self._with_gradient(batch)
        counts.append(float(batch.mask.sum()))
        num_tokens, num_rows, num_computed = self.reduce_sum(torch.tensor(counts)).clamp(min=1.0).tolist()
        totals = BatchTotals(num_tokens, num_rows, num_computed)
        micro_batches = list(self._micro_batches(batch))
        sums: Counter[str] = Counter()
        for index, micro in enumerate(micro_batches):
            last = index + 1 == len(micro_batches)
            with nullcontext() if last else self.accelerator.no_sync(self.policy.module):
                loss, loss_metrics = self.loss(micro, totals)
                # DDP averages gradients over processes; the totals already count all of them.
                self.accelerator.backward(loss * self.accelerator.num_processes)
            sums.update({"loss": float(loss.detach()), **{name: float(value) for name, value in loss_metrics.items()}})
        limit = self.stage.optimizer.max_grad_norm
        norm = float(self.accelerator.clip_grad_norm_(self._parameters(), math.inf if limit is None else limit))
        if not math.isfinite(norm):
            raise HookResultError(
                f"the gradient's norm is {norm} at step {self.state.step + 1}; training stops before the update."
            )
        self._weights_moved, self._published = True, False
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {**self._sum_over_processes(sums), "grad_norm": norm}

    def _with_gradient(self, batch: Batch) -> Batch:
        """The rows that move the weights: without those whose advantages are all 0, where these have no gradient.

        One row stays in any case, so that every process takes part in every update.
        """
        algorithm = self.stage.algorithm
        if algorithm.aggregate == "local_token_mean" or len(self.hooks.mmrl_policy_loss.get_hookimpls()) > 1:
            return batch  # the mean is over the rows at hand; a plugin's loss is not known
        moves = batch.mask
        kl_in_loss = algorithm.kl.coefficient > 0 and algorithm.kl.place == "loss"
        idle_at_zero = self.registered("loss", algorithm.loss).details.get("idle_at_zero", False)
        if idle_at_zero and not kl_in_loss and not algorithm.entropy_coefficient:
            moves = moves & (batch.advantages != 0)
        index = moves.any(1).nonzero()[:, 0]
        index = index if len(index) else torch.tensor([0])
        self.counts["rows_skipped"] += len(batch) - len(index)
        return batch if len(index) == len(batch) else batch.select(index)

    def loss(self, batch: Batch, totals: BatchTotals) -> tuple[Tensor, dict[str, Tensor]]:
        """logprobs -> policy loss of one micro-batch, with gradient."""
        algorithm = self.stage.algorithm
        needs = set(self.registered("loss", algorithm.loss).details.get("needs", ()))
        if algorithm.entropy_coefficient:
            needs.add("entropy")
        stats = self.policy.logprobs(batch.rows, needs=needs)
        given = {name for name, values in stats.extras.items() if values.shape == stats.logprobs.shape}
        if missing := needs - given - {"entropy"}:
            raise PolicyError(
                f"the loss {algorithm.loss.name!r} needs {', '.join(sorted(missing))}, which the policy "
                f"{self.config.model.policy.name!r} did not give as {tuple(stats.logprobs.shape)}."
            )
        device = stats.logprobs.device
        put = lambda tensor: None if tensor is None else tensor.to(device)  # noqa: E731
        old = current = stats.logprobs.detach()
        if batch.old_logprobs is not None:
            old = batch.old_logprobs.to(device)
            old = torch.where(old.isnan(), current, old)  # the sampler could not score it: counts as equal
        inputs = LossInputs(
            logprobs=stats.logprobs,
            old_logprobs=old,
            advantages=batch.advantages.to(device),
            mask=batch.mask.to(device),
            totals=totals,
            sampler_logprobs=put(batch.sampler_logprobs),
            ref_logprobs=put(batch.frozen_logprobs.get(REFERENCE)),
            entropy=stats.entropy,
            extras=stats.extras,
            rewards=put(batch.rewards),
            group_ids=put(batch.group_ids),
        )
        result = self.hooks.mmrl_policy_loss(run=self, inputs=inputs)
        if not isinstance(result, tuple) or result[0].dim() != 0 or not result[0].requires_grad:
            raise HookResultError("mmrl_policy_loss must return a scalar that has a gradient, and metrics.")
        loss, metrics = result
        if inputs.sampler_logprobs is not None:
            gap = (current - inputs.sampler_logprobs).abs().nan_to_num()
            metrics = {**metrics, "sampler_gap": (gap * inputs.mask).sum() / (totals.num_computed or 1.0)}
        if not bool(torch.isfinite(loss)):
            raise HookResultError(
                f"the loss is {float(loss.detach())} at step {self.state.step + 1}; training stops before the update."
            )
        return loss, dict(metrics)

    # What hooks use

    def sampling(self) -> Sampling:
        """How this step's rollout samples; the seed differs between steps, rounds and processes."""
        rollout = self.stage.rollout
        return Sampling(
            max_tokens=rollout.max_tokens,
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            top_k=rollout.top_k,
            seed=derive_seed(self.config.seed, "rollout", *self._sampled_for, self.accelerator.process_index),
        )

    @contextmanager
    def clock(self, phase: str) -> Iterator[None]:
        """Adds the seconds spent inside to `time/<phase>` of the step."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[phase] += time.perf_counter() - started

    def registered(self, kind: str, component: Component) -> Any:
        return self.plugins.registry.get(kind, component.name)

    def load(self, kind: str, component: Component) -> Callable[..., Any]:
        """The function a component of the config names."""
        return self.registered(kind, component).load()

    def reduce_sum(self, tensor: Tensor) -> Tensor:
        """Sum over processes."""
        if self.accelerator.num_processes == 1:
            return tensor
        return self.accelerator.reduce(tensor.to(self.accelerator.device), "sum").to(tensor.device)

    # Parts of the above

    _sampled_for = (0, 0)  # step, and round of dynamic sampling within it, of the rollout under way
    _epochs_ended = 0  # by the step that runs
    _epochs_ended_ahead = 0  # by the step that is sampled ahead
    _set_aside: Sequence[BrokenRow] = ()  # broken rows met by the stage

    def _frozen_names(self) -> list[str]:
        names = set(self.stage.algorithm.frozen_policies)
        if self.stage.algorithm.kl.coefficient > 0:
            names.add(REFERENCE)
        return sorted(names)

    def _num_steps(self) -> int:
        if self.stage.steps is not None:
            return self.stage.steps
        assert self.train_source is not None and self.stage.epochs is not None
        return max(1, math.ceil(self.stage.epochs * len(self.train_source) / self.stage.prompts_per_step))

    def _local_prompts(self, count: int) -> int:
        if count % self.accelerator.num_processes:
            raise ConfigError(
                f"prompts_per_step={count} cannot be shared by {self.accelerator.num_processes} processes."
            )
        return count // self.accelerator.num_processes

    def _draw(self) -> list[Prompt]:
        """The next prompts of this process, in the data's order."""
        assert self._stream is not None
        self._local_prompts(self.stage.prompts_per_step)
        drawn = self._stream.take(self.state.position)
        self.state.position = drawn.position
        self._epochs_ended += drawn.epochs_finished
        self._set_aside = drawn.set_aside
        return drawn.prompts

    def _draw_from(self, source: Mixture, position: int, count: int) -> Draw:
        process, num_processes = self.accelerator.process_index, self.accelerator.num_processes
        return source.draw(position, count, self.config.seed, rank=process, world_size=num_processes)

    def _parts(self, batch: Batch, num_parts: int, epoch: int) -> Iterator[Batch]:
        """Disjoint parts of whole groups, in a random order that only depends on the step."""
        if num_parts == 1:
            yield batch
            return
        group_ids = batch.group_ids.unique().tolist()
        random.Random(derive_seed(self.config.seed, "parts", self.state.step, epoch)).shuffle(group_ids)
        if len(group_ids) < num_parts:
            raise ConfigError(f"updates_per_rollout={num_parts} parts cannot be made of {len(group_ids)} groups.")
        for part in range(num_parts):
            chosen = torch.tensor(group_ids[part::num_parts])
            yield batch.select(torch.isin(batch.group_ids, chosen).nonzero()[:, 0])

    def _micro_batches(self, batch: Batch) -> Iterator[Batch]:
        """Batches within `micro_batch_tokens` and `micro_batch_rows`, in order; groups stay whole if they fit."""

        def fits(rows: Sequence[int]) -> bool:
            if self.stage.micro_batch_rows is not None and len(rows) > self.stage.micro_batch_rows:
                return False
            return self.policy.num_tokens([batch.rows[row] for row in rows]) <= self.stage.micro_batch_tokens

        if fits(range(len(batch))):
            yield batch
            return
        pieces: list[list[int]] = []
        for group_id in batch.group_ids.unique_consecutive():
            members = (batch.group_ids == group_id).nonzero()[:, 0].tolist()
            if pieces and fits(pieces[-1] + members):
                pieces[-1] += members
                continue
            pieces.append([])
            for row in members:
                if pieces[-1] and not fits([*pieces[-1], row]):
                    pieces.append([])
                pieces[-1].append(row)
        for piece in pieces:
            yield batch.select(torch.tensor(piece))

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.policy.module.parameters() if parameter.requires_grad]

    def _post_update(self, batch: Batch) -> Callable[[], Any]:
        def compute() -> Any:
            with torch.no_grad():
                return self.policy.logprobs(batch.rows)

        return compute

    def _min_over_processes(self, count: int) -> int:
        if self.accelerator.num_processes == 1:
            return count
        return int(self.accelerator.gather(torch.tensor([count], device=self.accelerator.device)).min())

    def _load_policy(self) -> Policy:
        with self.accelerator.local_main_process_first():
            path = starting_model(self.config, self.plugins, progress=self.log.print if self.is_main else None)
        return make_policy(self.config, self.plugins, path=path, device=self.accelerator.device)

    def _resume(self) -> dict[str, Any] | None:
        """Go back to the newest whole checkpoint; returns the optimiser's and the plugins' state."""
        directory = latest_checkpoint(self.output)
        if directory is None:
            if self.is_main:
                self.log.print(f"{self.output} has no whole checkpoint; the run starts anew.")
            return None
        self.state, training = load_checkpoint(directory, self.policy)
        plugin_state = training["plugins"]
        core_state = plugin_state.pop("core")
        self.alarm.load_state(core_state["alarm"])
        self._broken = core_state["set_aside"]
        self.hooks.mmrl_load_state(state=plugin_state)
        if self.is_main:
            self.log.print(f"resumed from {directory.name}")
        return training

    @contextmanager
    def _saved_if_it_fails(self) -> Iterator[None]:
        """Around a step: what was trained before it is kept if it fails, and running out of memory is explained."""
        # Several processes would have to agree that one has failed; what is sampled ahead would be lost.
        alone = self.accelerator.num_processes == 1 and not self.stage.rollout.steps_ahead
        before = replace(self.state)
        others = (deepcopy(self._plugin_states()), generator_states()) if alone else ()
        self._weights_moved = False
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            if alone and not self._weights_moved and before.step > 0:
                self.state = before
                self._save_checkpoint(*others)
                self.log.print(f"saved step {self.state.step}; go on from it with --resume")
            if _is_out_of_memory(error):
                stage = self.stage
                raise PolicyError(
                    f"out of memory in step {before.step + 1} ({str(error).splitlines()[0]}). Lower "
                    f"micro_batch_tokens (now {stage.micro_batch_tokens}) if it was in the update; "
                    f"prompts_per_step (now {stage.prompts_per_step}), group_size (now {stage.group_size}) or "
                    f"rollout.max_tokens (now {stage.rollout.max_tokens}) if it was while sampling; or set "
                    "model.gradient_checkpointing, model.lora or a smaller model.max_pixels."
                ) from error
            raise

    # What is written

    def _end_step(self, name: str, metrics: dict[str, float], started: float, total: int) -> None:
        self.state.stage_step += 1
        self.state.step += 1
        self.counts.update(self.policy.take_counters())
        metrics |= {f"count/{key}": float(value) for key, value in self.counts.items()}
        metrics |= {f"time/{phase}": value for phase, value in self._seconds.items()}
        ahead = self.stage.rollout.steps_ahead  # then rollouts and rewards pass beside the update
        waited = ("data", "wait") if ahead else ("data", "rewards")
        metrics["time/idle"] = sum(self._seconds[phase] for phase in waited)
        metrics["memory/peak_mib"] = peak_memory_mib(self.accelerator.device)
        self.counts.clear()
        self._seconds.clear()
        metrics = self._reduce_metrics(metrics)
        seconds = time.perf_counter() - started
        self.state.elapsed_s += seconds
        broken = [{"stage": name, **asdict(row)} for row in self._set_aside]
        self._broken |= {f"{name}/{row['id']}": row for row in self._gather(broken)}
        record = {
            "kind": "step",
            "stage": name,
            "stage_kind": self.stage.kind,
            "step": self.state.step,
            "seconds": seconds,
            "elapsed_s": self.state.elapsed_s,
            "lr": learning_rate(self.stage, self.state.stage_step - 1, total),  # groups may scale it
            "set_aside": len(self._broken),
            **metrics,
        }
        if self.is_main:
            self.log.step(record, self.state.stage_step, total)
            self.accelerator.log(metrics, step=self.state.step)
            if self._broken:
                lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in self._broken.values()]
                (self.output / "set_aside.jsonl").write_text("".join(lines), encoding="utf-8")
        self.hooks.mmrl_step_end(run=self, metrics=record)
        for _ in range(self._epochs_ended):
            self.hooks.mmrl_epoch_end(run=self, epoch=self.state.epoch)
            self.state.epoch += 1
        self._epochs_ended = 0
        if self._due(self.config.eval.every_steps, self.state.stage_step):
            self._evaluate(f"{name} step {self.state.stage_step}")
        if self._due(self.config.checkpoint.every_steps, self.state.stage_step):
            self._save_checkpoint()

    def _due(self, every: int | None, stage_step: int) -> bool:
        """Whether what happens every so many steps comes after this one; a stage's end has its own."""
        return every is not None and stage_step % every == 0 and stage_step < self._num_steps()

    def _pauses_after(self, stage_step: int) -> bool:
        """Whether the run evaluates, saves or ends its stage after this step."""
        intervals = (self.config.eval.every_steps, self.config.checkpoint.every_steps)
        return stage_step >= self._num_steps() or any(self._due(every, stage_step) for every in intervals)

    def _reduce_metrics(self, metrics: dict[str, float]) -> dict[str, float]:
        """Of all processes: work and failures are summed; else the mean over processes that measured a number."""
        found: dict[str, list[float]] = {}
        for part in self._gather([metrics]):
            for name, value in part.items():
                found.setdefault(name, []).append(value)
        reduced = {}
        for name, values in found.items():
            numbers = [value for value in values if not math.isnan(value)]
            if name.startswith(("count/", "failures/")):
                reduced[name] = sum(numbers)
            elif name.endswith("/max") or name.startswith("memory/"):
                reduced[name] = max(numbers, default=math.nan)
            else:
                reduced[name] = sum(numbers) / len(numbers) if numbers else math.nan
        return reduced

    def _sum_over_processes(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sums by name, whichever names the other processes have."""
        sums: Counter[str] = Counter()
        for part in self._gather([dict(values)]):
            sums.update(part)
        return dict(sums)

    def _gather(self, items: list[Any]) -> list[Any]:
        """The items of all processes."""
        if self.accelerator.num_processes == 1:
            return items
        from accelerate.utils import gather_object

        return list(gather_object(items))

    def _log_rollouts(
        self, batch: Batch, groups: Sequence[RolloutGroup], sampled: Sequence[RolloutGroup], scores: Scores
    ) -> None:
        """Write some groups of some steps, and say so when a reward stops telling rollouts apart.

        Args:
            batch: what was trained on, made of `groups`.
            sampled: what is written of them, the groups of this step, with their scores.
        """
        present = {name: v for name, v in scores.components.items() if self.rewards.scores_any(name, sampled)}
        for message in self.alarm.update(present):
            self.log.print(f"warning: {message}")
        settings = self.config.log
        if not self.is_main or self.state.stage_step % settings.rollouts_every_steps:
            return
        places = in_turns([group.prompt for group in sampled], settings.rollouts_per_step)
        shown, score_of = [sampled[place] for place in places], scores.split(sampled)
        by_row = batch.advantages.sum(1) / batch.mask.sum(1).clamp(min=1)
        num_rows = batch.trajectory_ids.bincount()
        means = (torch.zeros(len(num_rows)).index_add(0, batch.trajectory_ids, by_row) / num_rows).tolist()
        trained = [rollout for group in groups for rollout in group.rollouts]
        advantage_of = {id(rollout): mean for rollout, mean in zip(trained, means, strict=True)}
        advantages = [[advantage_of.get(id(rollout), math.nan) for rollout in group.rollouts] for group in shown]
        self.rollout_log.write(
            self.state.step + 1,
            stage_name(self.config, self.state.stage),
            "train",
            shown,
            Scores.join([score_of[place] for place in places]),
            advantages,
            self.stage.rollout.temperature,
        )

    def _evaluate(self, label: str) -> None:
        """Held-out metrics, once for each label."""
        if label in self.state.evaluated or not self.evaluator.enabled:
            return
        stage = "start" if label == "untrained" else stage_name(self.config, self.state.stage)
        if self.is_main:  # every process holds the weights; one of them evaluates
            self._publish_weights()
            metrics = self.evaluator.evaluate(
                self.policy,
                log=lambda groups, scores, temperature: self.rollout_log.write(
                    self.state.step, stage, "held_out", groups, scores, None, temperature
                ),
            )
            self.log.write({"kind": "eval", "stage": stage, "step": self.state.step, "label": label, **metrics})
            shown = "  ".join(f"{name} {value:.3f}" for name, value in metrics.items() if "/" in name)
            self.log.print(f"held out, {label}: {shown}")
            self.accelerator.log({f"eval/{name}": value for name, value in metrics.items()}, step=self.state.step)
            self.hooks.mmrl_evaluated(run=self, metrics=metrics)
        self.policy.take_counters()
        self.state.evaluated.append(label)
        self.accelerator.wait_for_everyone()

    def _save_checkpoint(
        self, plugin_states: dict[str, Any] | None = None, generators: dict[str, Any] | None = None
    ) -> None:
        """Write a checkpoint of the present state; plugins and generators as they were, if given."""
        self.accelerator.wait_for_everyone()
        if self.is_main:
            self.state.metrics_bytes = self.log.num_bytes
            save_checkpoint(
                self.output,
                self.state,
                self.policy,
                self.optimizer,
                self._plugin_states() if plugin_states is None else plugin_states,
                keep=self.config.checkpoint.keep,
                generators=generators,
            )
        self.accelerator.wait_for_everyone()

    def _plugin_states(self) -> dict[str, Any]:
        """What plugins and the core itself want back after a resume."""
        states = {impl.plugin_name: impl.function() for impl in self.hooks.mmrl_save_state.get_hookimpls()}
        states = {name: state for name, state in states.items() if state is not None}
        return {**states, "core": {"alarm": self.alarm.state(), "set_aside": self._broken}}

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._sampler.shutdown(wait=True, cancel_futures=True)
        self.policy.close()
        self.log.close()
        if self.config.log.trackers:
            self.accelerator.end_training()


def _is_out_of_memory(error: BaseException) -> bool:
    """On a GPU torch has an error of its own; on a CPU its allocator raises a RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate" in str(error)


def stage_name(config: RunConfig, index: int) -> str:
    """The stage's name, or its kind; with its number where another stage would be called the same."""
    stage = config.stages[index]
    name = stage.name or stage.kind
    taken = [other.name or other.kind for other in config.stages]
    return name if taken.count(name) == 1 else f"{name}-{index + 1}"


def derive_seed(*parts: object) -> int:
    """A seed that only depends on what it is for, so that no generator needs to be carried through a resume."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")


def _stack(parts: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Tensors [b, t] of consecutive rows as one [B, T]."""
    padded = [nn.functional.pad(part, (0, mask.shape[1] - part.shape[1])) for part in parts]
    return torch.cat(padded)


def _rollout_metrics(groups: Sequence[RolloutGroup], scores: Scores, batch: Batch) -> dict[str, float]:
    """What a step's rollouts were worth: means over scored rollouts, spread, lengths."""
    sizes = [len(group.rollouts) for group in groups]
    lengths = torch.tensor([float(rollout.num_actions) for group in groups for rollout in group.rollouts])
    truncated = [rollout.truncated for group in groups for rollout in group.rollouts]
    spreads = torch.stack([part.nan_to_num(0.0).std() for part in scores.totals.split(sizes) if len(part) > 1])
    trained = batch.advantages[batch.mask]
    return {
        "reward/total": float(scores.totals.nanmean()),
        "reward/total_std": float(spreads.mean()),
        **{f"reward/{name}": float(values.nanmean()) for name, values in scores.components.items()},
        **_totals_of_parts(groups, scores),
        **{f"failures/{name}": float(count) for name, count in scores.failures.items() if count},
        "unscored": float(scores.totals.isnan().float().mean()),
        "groups/flat": float((spreads < 1e-6).float().mean()),
        "advantage/abs_mean": float(trained.abs().mean()) if len(trained) else 0.0,
        "completion_tokens/mean": float(lengths.mean()),
        "completion_tokens/max": float(lengths.max()),
        "truncated": sum(truncated) / len(truncated),
        **mean_outcomes([rollout for group in groups for rollout in group.rollouts]),
    }


def _totals_of_parts(groups: Sequence[RolloutGroup], scores: Scores) -> dict[str, float]:
    """Mean totals of a mixture's parts, `reward/<part>/total`: that of all depends on how many groups are of which."""
    totals: dict[str, list[Tensor]] = {}
    for group, part in zip(groups, scores.split(groups), strict=True):
        if group.prompt.part:
            totals.setdefault(f"reward/{group.prompt.part}/total", []).append(part.totals)
    return {name: float(torch.cat(values).nanmean()) for name, values in totals.items()}
