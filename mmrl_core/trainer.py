"""The trainer: stages of steps, resume, and the end of a step. What a step does is in `step.py`."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mmrl_core.checkpoint import Keeper, check_space
from mmrl_core.config import (
    AlgorithmConfig,
    Component,
    check_components,
    check_trainable,
    current,
    longest_completion,
    parts_of,
)
from mmrl_core.config.schema import RunConfig, StageConfig
from mmrl_core.conversation import Environment, make_environment
from mmrl_core.data import training_mixture
from mmrl_core.defaults import CoreBehaviour
from mmrl_core.errors import ConfigError, HookResultError
from mmrl_core.evaluation import Evaluator
from mmrl_core.optimizer import learning_rate, make_optimizer, set_learning_rate
from mmrl_core.plugins import attribute_hooks, load_plugins
from mmrl_core.plugins.registry import CORE, Entry, Registry
from mmrl_core.policy import REFERENCE, Policy, make_policy
from mmrl_core.run import Drawn, SteppingRun, TrainState, stage_name
from mmrl_core.runs import Recorder, check_trackers, trajectory_advantages
from mmrl_core.sampling import GroupSampler
from mmrl_core.scoring import RewardRunner
from mmrl_core.starting_model import starting_model
from mmrl_core.step import accept, explain_failure, grpo_step, sft_step
from mmrl_core.support import (
    Processes,
    Stopping,
    finite_norm,
    load_optimizer,
    locked_folder,
    losses_named,
    make_accelerator,
    process_lost,
    share_weights,
    whole,
)
from mmrl_core.types import Batch, Prompt, RolloutGroup, Row, Sampling, Scores

SFT_ALGORITHM = AlgorithmConfig(loss=Component(name="nll"), aggregate="token_mean")
"""Supervised stages: mean negative logprob of the answers' tokens, one update a step."""

STEPS = {"grpo": grpo_step, "sft": sft_step}


def train(config: RunConfig, output: Path, resume: bool = False) -> Path:
    """Run all stages of a config and write the report.

    Args:
        config: resolved config.
        output: run directory; made if missing.
        resume: go on from the newest whole checkpoint in it, or from the start if there is none.

    Returns:
        Path of the report, which is missing where a package that it needs is not installed.

    Raises:
        MMRLError: something a user can fix; what was trained so far is in the newest checkpoint.
        Interrupted: a signal has stopped the run; what was trained so far is in the newest checkpoint.
    """
    with Stopping() as stopping, locked_folder(output):
        trainer = Trainer(config, output, stopping)
        try:
            trainer.run(resume)
        finally:
            trainer.close()
        if trainer.is_main:
            trainer.recorder.write_report()
    return output / "report.html"


class Trainer:
    """A run. Hooks get it as `run`, see `mmrl_core.run.Run`; the step as `SteppingRun`."""

    @losses_named()
    def __init__(self, config: RunConfig, output: Path, stopping: Stopping | None = None) -> None:
        from accelerate.utils import set_seed

        check_trainable(config)
        self.plugins = load_plugins()
        check_components(config, self.plugins)
        self.config = config
        self.stage: StageConfig = config.stages[0]
        self.state = TrainState()
        self.output = output
        manager = self.plugins.hooks(config.plugins, CoreBehaviour())
        self._answered = attribute_hooks(manager, CORE)
        self.hooks = manager.hook
        self.hooks.mmrl_configure(config=config)
        check_trackers(config.log.trackers)
        output.mkdir(parents=True, exist_ok=True)
        trackers = config.log.trackers or None
        self.accelerator = make_accelerator(config.process_timeout_s, log_with=trackers, project_dir=str(output))
        self.is_main = self.accelerator.is_main_process
        set_seed(config.seed)
        self.processes = Processes(self.accelerator, sharded=config.sharding is not None)
        self.reduce_sum = self.processes.reduce_sum
        self.recorder = Recorder(config, output, self.accelerator, self.processes)
        self.counts: Counter[str] = Counter()
        self.policy = load_policy(config, self.plugins.registry, self.accelerator, self.recorder.print)
        share_weights(self.policy, config.sharding, self.accelerator)
        self.optimizer: Any = None  # of the stage
        self.environment: Environment | None = None
        self.sampler: GroupSampler | None = None
        self.evaluator = Evaluator(config, self.plugins, processes=self.processes)
        self.rewards = RewardRunner(self.plugins, [])
        self._set_aside: Sequence[Any] = ()  # rows of the stage's sources found broken so far
        self.keeper = Keeper(self, stopping or Stopping())
        self._published = False  # whether rollouts act with the present weights
        self._num_steps = 0  # of the stage
        self._stop_reason: str | None = None  # that a hook gave

    # Stages

    @losses_named()
    def run(self, resume: bool) -> None:
        """All stages from where the run stands."""
        training = self.keeper.resume() if resume else None
        self.recorder.open(self.state.metrics_bytes, finite_norm(self.policy.module, self.state.step))
        try:
            if self.is_main:
                check_space(self.output, self.policy.module)
            self.keeper.note_sources()
            self.publish_weights()
            found = self.policy.check_start(longest_completion(self.config))
            if self.state.metrics_bytes == 0:
                self.recorder.started(found)
            for line in self.policy.describe():
                self.recorder.print(line)
            self._evaluate("untrained")
            for index in range(self.state.stage, len(self.config.stages)):
                if self._stop_reason is None:
                    self._run_stage(index, training)
                training = None
            self.recorder.print_evaluations()
        except Exception as error:
            self.recorder.failed(self.state.step, process_lost(error) or error)
            raise

    def _run_stage(self, index: int, training: dict[str, Any] | None) -> None:
        self._begin_stage(index, training)
        name = stage_name(self.config, index)
        self.recorder.start_stage(name, self._num_steps, self.state.stage_step)
        with self.keeper.stopping.held():
            self._evaluate_when_due(name)  # a run that was stopped may have been so just before
            while self.state.stage_step < self._num_steps:
                started = time.perf_counter()
                set_learning_rate(self.optimizer, self.stage, self.state.stage_step, self._num_steps)
                # What is sampled ahead would be lost with the step.
                with self.keeper.saved_if_it_fails(undoable=not self.stage.rollout.steps_ahead):
                    metrics = self._step()
                self._end_step(name, metrics, started)
                self.keeper.stop_if_asked()
                if self._stop_reason is not None:
                    return self._end_early(name)
                self._evaluate_when_due(name)
                if self._due(self.config.checkpoint.every_steps, self.state.stage_step):
                    self.keeper.save()
            self._end_stage(index, name)

    def _step(self) -> dict[str, float]:
        try:
            return STEPS[self.stage.kind](self)
        except Exception as error:
            explain_failure(error, self.state.step + 1, self.stage)
            raise

    def _end_early(self, name: str) -> None:
        """A hook has stopped the run: its stage stays unfinished, so that --resume goes on with it."""
        self.recorder.end_stage()
        self._evaluate(f"stopped in {name} at step {self.state.stage_step}")
        self.keeper.save()
        self.recorder.print(f"stopped after step {self.state.step}: {self._stop_reason}")

    def _end_stage(self, index: int, name: str) -> None:
        with self.keeper.saved_if_it_fails(alone=True):
            self._close_stage()
            self.recorder.end_stage()
            self.hooks.mmrl_stage_end(run=self)
            self._evaluate(f"after {name}")
        state, is_last = self.state, index + 1 == len(self.config.stages)
        ended = {"stage": index, "stage_step": state.stage_step, "position": state.position, "epoch": state.epoch}
        self.state = replace(state, stage=index + 1, stage_step=0, position=0, epoch=0, ended=ended if is_last else {})
        if not is_last:  # more steps may follow the last one
            self.optimizer = None
        self.keeper.save()
        self.optimizer = None
        if not is_last:
            self.keeper.stop_if_asked()

    def _begin_stage(self, index: int, training: dict[str, Any] | None) -> None:
        """Everything that belongs to a stage: its config, data, rewards, environment, optimiser, frozen policies."""
        self.stage = self.config.stages[index]
        if self.stage.kind == "sft":
            self.stage = self.stage.model_copy(update={"algorithm": SFT_ALGORITHM})
        num_processes = self.accelerator.num_processes
        if self.stage.prompts_per_step % num_processes:
            raise ConfigError(
                f"prompts_per_step={self.stage.prompts_per_step} cannot be shared by {num_processes} processes."
            )
        parts = parts_of(self.stage)
        self.environment = make_environment(self.stage.rollout, parts, self.plugins)
        source = training_mixture(self.plugins, parts, self.environment, partial(accept, self))
        self._num_steps = self.stage.num_steps(len(source))
        if self.state.stage_step > self._num_steps:
            raise ConfigError(
                f"stage {stage_name(self.config, index)!r} has done {self.state.stage_step} steps already, and its "
                f"length is {self._num_steps} now. Give it as many steps, or more."
            )
        self.sampler = GroupSampler(self, source)
        self.rewards = RewardRunner(self.plugins, {part.name: part.rewards for part in parts})
        self.policy.set_temperature(self.stage.rollout.temperature if self.stage.kind == "grpo" else 1.0)
        self.optimizer = make_optimizer(self.accelerator.unwrap_model(self.policy.module), self.stage)
        if training is None or training["optimizer"] is None:
            for policy_name in frozen_names(self):
                self.policy.freeze(policy_name)
        else:
            load_optimizer(self.optimizer, training["optimizer"])
        self.hooks.mmrl_stage_start(run=self)

    def _close_stage(self) -> None:
        if self.sampler is not None:
            self.sampler.close()
        if self.environment is not None:
            self.environment.close()

    # What hooks use, see `Run`

    def sampling(self) -> Sampling:
        assert self.sampler is not None
        return self.sampler.settings()

    def clock(self, phase: str) -> AbstractContextManager[None]:
        return self.recorder.clock(phase)

    def registered(self, kind: str, component: Component) -> Entry:
        return self.plugins.registry.get(kind, component.name)

    def current(self, component: Component) -> Component:
        return current(component, self.state.stage_step)

    def call(self, kind: str, component: Component, *arguments: Any, **given: Any) -> Any:
        return self.registered(kind, component).call(*arguments, options=self.current(component).options, **given)

    def stop(self, reason: str) -> None:
        self._stop_reason = reason

    def is_overridden(self, hook: str) -> bool:
        return len(getattr(self.hooks, hook).get_hookimpls()) > 1

    # What the step uses, see `SteppingRun`

    @property
    def samples_ahead(self) -> bool:
        return bool(self.stage.rollout.steps_ahead) and not self._pauses_after(self.state.stage_step + 1)

    @property
    def prompts_of_process(self) -> int:
        return self.stage.prompts_per_step // self.accelerator.num_processes

    def source(self, hook: str) -> str:
        plugin = self._answered.get(hook, CORE)
        return hook if plugin == CORE else f"{hook} of plugin {plugin!r}"

    def publish_weights(self) -> None:
        if not self._published:
            self.policy.publish_weights()
            self._published = True

    def advance(self, draw: Drawn) -> None:
        self.state.position = draw.position
        self.state.epoch += draw.epochs_finished
        self._set_aside = draw.set_aside

    def set_aside(self, prompt: Prompt, reason: str) -> None:
        assert self.sampler is not None
        self._set_aside = [*self._set_aside, self.sampler.source.refuse(prompt, reason)]

    def fits_one_pass(self, rows: Sequence[Row]) -> bool:
        if self.stage.micro_batch_rows is not None and len(rows) > self.stage.micro_batch_rows:
            return False
        return self.policy.num_tokens(rows) <= self.stage.micro_batch_tokens

    def optimize(self) -> float:
        self.policy.before_update(self.processes)
        parameters = [parameter for parameter in self.policy.module.parameters() if parameter.requires_grad]
        limit = self.stage.optimizer.max_grad_norm
        norm = float(whole(self.accelerator.clip_grad_norm_(parameters, math.inf if limit is None else limit)))
        if not math.isfinite(norm):
            raise HookResultError(
                f"the gradient's norm is {norm} at step {self.state.step + 1}; training stops before the update."
            )
        self.keeper.weights_move()
        self._published = False
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def log_rollouts(
        self, batch: Batch, groups: Sequence[RolloutGroup], sampled: Sequence[RolloutGroup], scores: Scores
    ) -> None:
        where = (self.state.step + 1, stage_name(self.config, self.state.stage))
        self.recorder.watch({k: v for k, v in scores.components.items() if self.rewards.scores_any(k, sampled)}, *where)
        if self.state.stage_step % self.config.log.rollouts_every_steps == 0:
            trained = [rollout for group in groups for rollout in group.rollouts]
            advantages = zip(trained, trajectory_advantages(batch), strict=True)
            self.recorder.write_rollouts(*where, sampled, scores, advantages, self.stage.rollout.temperature)

    # The end of a step

    def _end_step(self, name: str, metrics: dict[str, float], started: float) -> None:
        self.state.stage_step += 1
        self.state.step += 1
        self.counts.update(self.policy.take_counters())
        metrics |= {f"restarts/{name}": float(count) for name, count in self.rewards.take_restarts().items()}
        metrics["weights/norm"] = finite_norm(self.policy.module, self.state.step)
        metrics = self.recorder.with_work(metrics, self.counts, ahead=bool(self.stage.rollout.steps_ahead))
        self.counts.clear()
        seconds = time.perf_counter() - started
        self.state.elapsed_s += seconds
        record = {
            "kind": "step",
            "stage": name,
            "stage_kind": self.stage.kind,
            "step": self.state.step,
            "seconds": seconds,
            "elapsed_s": self.state.elapsed_s,
            "lr": learning_rate(self.stage, self.state.stage_step - 1, self._num_steps),  # groups may scale it
            "set_aside": self.recorder.set_aside(name, self._set_aside),
            **metrics,
        }
        reasons = self.recorder.failures(self.state.step, self.rewards.failure_reasons)
        self.recorder.step(record, metrics, self.state.stage_step, self._num_steps)
        self.hooks.mmrl_step_end(run=self, metrics=record)
        self.recorder.watch_step(record, self.stage, reasons, self.keeper.save)

    def _evaluate_when_due(self, name: str) -> None:
        if self.state.stage_step and self._due(self.config.eval.every_steps, self.state.stage_step):
            with self.keeper.saved_if_it_fails(alone=True):
                self._evaluate(f"{name} step {self.state.stage_step}")

    def _due(self, every: int | None, stage_step: int) -> bool:
        """Whether an interval of steps ends with this step. The end of a stage is handled apart."""
        return every is not None and stage_step % every == 0 and stage_step < self._num_steps

    def _pauses_after(self, stage_step: int) -> bool:
        """Whether the run evaluates, saves or ends its stage after this step."""
        intervals = (self.config.eval.every_steps, self.config.checkpoint.every_steps)
        return stage_step >= self._num_steps or any(self._due(every, stage_step) for every in intervals)

    def _evaluate(self, label: str) -> None:
        """Held-out metrics, once for each label."""
        if label in self.state.evaluated or not self.evaluator.enabled:
            return
        stage = "start" if label == "untrained" else stage_name(self.config, self.state.stage)
        self.publish_weights()
        writers = self.recorder.held_out_writers(self.state.step, stage) if self.is_main else {}
        metrics = self.evaluator.evaluate(self.policy, **writers)
        if self.is_main:
            self.recorder.evaluation(stage, self.state.step, label, metrics)
            self.hooks.mmrl_evaluated(run=self, metrics=metrics)
        self.policy.take_counters()
        self.state.evaluated.append(label)
        self.accelerator.wait_for_everyone()

    def close(self) -> None:
        self._close_stage()
        self.policy.close()
        self.recorder.close()


def frozen_names(run: SteppingRun) -> list[str]:
    """Names of the frozen policies of a stage: of its config, of a KL penalty, and those that its loss reads."""
    algorithm = run.stage.algorithm
    names = {*algorithm.frozen_policies, *run.registered("loss", algorithm.loss).details.get("frozen", ())}
    return sorted(names | ({REFERENCE} if algorithm.kl.needs_reference else set()))


def load_policy(config: RunConfig, registry: Registry, accelerator: Any, progress: Callable[[str], None]) -> Policy:
    """The policy of a run at its start; refused before anything is loaded where it cannot be trained."""
    named = config.model.policy
    registry.get("policy", named.name).load().check_trainable(named.options)
    with accelerator.local_main_process_first():
        path = starting_model(config, registry, progress=progress)
    return make_policy(config, registry, path=path, device=accelerator.device)
