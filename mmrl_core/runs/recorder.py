"""What a run records: metrics of steps and evaluations, sampled completions, rows set aside, the report at the end."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl_core.config import dump_config, with_declared_defaults
from mmrl_core.data import in_turns
from mmrl_core.errors import MMRLError
from mmrl_core.plugins import load_plugins
from mmrl_core.runs.alarms import RunAlarms
from mmrl_core.runs.answers import AnswerLog
from mmrl_core.runs.intervals import held_out_intervals
from mmrl_core.runs.log import MetricsLog, evaluation_table, flat_config, peak_memory_mib, read_metrics
from mmrl_core.runs.report import write_report
from mmrl_core.runs.rightness import Rightness
from mmrl_core.runs.rollouts import RolloutLog, prompt_text
from mmrl_core.runs.starts import note_start
from mmrl_core.scoring import Alarm
from mmrl_core.support import Processes, writes_to, written_aside
from mmrl_core.types import Rollout, RolloutGroup, Scores

if TYPE_CHECKING:
    from torch import Tensor

    from mmrl_core.config import RunConfig, StageConfig

SAMPLE_EVERY_S = 30.0
"""The console shows a sampled completion no more often."""

WriteHeldOut = Callable[[Sequence[RolloutGroup], Scores, float], None]


class Recorder:
    """Writes the run directory from the main process; in the others it only takes part in what all do together.

    Attributes:
        log: metrics.jsonl and the console.
    """

    def __init__(self, config: RunConfig, output: Path, accelerator: Any, processes: Processes) -> None:
        self.log = MetricsLog(output)
        self._config, self._output = config, output
        self._accelerator, self._processes = accelerator, processes
        self._is_main = accelerator.is_main_process
        self._registry = load_plugins().registry
        rightness = Rightness(config, self._registry)
        self._rollout_log, self._answer_log = RolloutLog(output, rightness), AnswerLog(output, rightness)
        self._intervals: dict[str, tuple[float, float]] = {}  # of the evaluation at hand
        self.alarms = RunAlarms()
        self._resumed: dict[str, Any] = {}  # record of a resume with other keys, until the log is open
        self._failed: set[str] = set()  # rewards whose first failure is recorded
        self._broken: dict[str, dict[str, Any]] = {}  # rows set aside so far, by stage and id
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._sample_shown = -math.inf

    def open(self, num_bytes: int, weights_norm: float) -> None:
        """Continue metrics.jsonl after its first `num_bytes` bytes, write the config, start its trackers.

        Args:
            weights_norm: of the trained weights, which alarms compare with that at the start of the run.
        """
        self.alarms.weights.begin(weights_norm)
        if self._is_main:
            with writes_to(self._output, "config.yaml"), written_aside(self._output / "config.yaml") as aside:
                text = dump_config(with_declared_defaults(self._config, load_plugins()))
                aside.write_text(text, encoding="utf-8")
            with writes_to(self._output, "starts.jsonl"):
                note_start(self._output, self._accelerator.num_processes)
            with writes_to(self._output, "metrics.jsonl"):
                self.log.open(num_bytes)
                self._rollout_log.remove_unfinished()
                if self._resumed:
                    self.log.write(self._resumed)
        if self._config.log.trackers:
            self._accelerator.init_trackers(self._config.name, config=flat_config(self._config.model_dump()))

    def started(self, found: Mapping[str, float]) -> None:
        """Record what was found before the first step, once a run; see `Policy.check_start`."""
        if self._is_main and found:
            self.log.write({"kind": "start", "stage": "start", "step": 0, **found})

    def print(self, message: str) -> None:
        if self._is_main:
            self.log.print(message)

    def start_stage(self, name: str, num_steps: int, done: int) -> None:
        if self._is_main:
            self.log.start_stage(name, num_steps, done)

    def end_stage(self) -> None:
        if self._is_main:
            self.log.end_stage()

    @contextmanager
    def clock(self, phase: str) -> Iterator[None]:
        """Add the seconds spent inside to `time/<phase>` of the step."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[phase] += time.perf_counter() - started

    # Steps

    def with_work(self, metrics: Mapping[str, float], counts: Mapping[str, int], *, ahead: bool) -> dict[str, float]:
        """Metrics of a step with the work, time and memory that it took, over all processes.

        Args:
            ahead: rollouts and rewards pass beside the update, so that only waiting for them is idle time.
        """
        worked = dict(metrics)
        worked |= {f"count/{key}": float(value) for key, value in counts.items()}
        worked |= {f"time/{phase}": value for phase, value in self._seconds.items()}
        worked["time/idle"] = sum(self._seconds[phase] for phase in ("data", "wait" if ahead else "rewards"))
        worked["memory/peak_mib"] = peak_memory_mib(self._accelerator.device)
        self._seconds.clear()
        return over_processes(self._processes.gather([worked]))

    def set_aside(self, stage: str, rows: Sequence[Any]) -> int:
        """Note broken rows of the stage's sources; returns how many rows are set aside in all."""
        broken = [{"stage": stage, **asdict(row)} for row in rows]
        self._broken |= {f"{stage}/{row['id']}": row for row in self._processes.gather(broken)}
        return len(self._broken)

    def step(self, record: Mapping[str, Any], metrics: Mapping[str, float], stage_step: int, num_steps: int) -> None:
        """Write a step's record, and its metrics to the trackers."""
        if not self._is_main:
            return
        self.log.step(record, stage_step, num_steps)
        self._accelerator.log(dict(metrics), step=record["step"])
        if self._broken:
            lines = [json.dumps(row) + "\n" for row in self._broken.values()]
            with writes_to(self._output, "set_aside.jsonl"):
                (self._output / "set_aside.jsonl").write_text("".join(lines), encoding="utf-8")

    # Alarms

    def watch(self, components: Mapping[str, Tensor], step: int, stage: str) -> None:
        """Raise the alarm when a reward has stopped telling rollouts apart."""
        for alarm in self.alarms.of_rewards(components):
            self._alarm(alarm, step, stage)

    def watch_step(
        self,
        record: Mapping[str, Any],
        stage: StageConfig,
        reasons: Mapping[str, Sequence[str]],
        save: Callable[[], None],
    ) -> None:
        """Look at the record of a step that is done, which all processes have alike.

        Args:
            stage: its config, which says after how many steps without any score a run should stop.
            reasons: reward -> why it failed.
            save: writes a checkpoint, before the run is stopped.

        Raises:
            RewardError: the run should stop; says why nothing was scored. It is an alarm too.
        """
        for alarm in self.alarms.of_step(record):
            self._alarm(alarm, record["step"], record["stage"])
        if not self.alarms.unscored.update(record.get("unscored", 0.0), stage.algorithm.max_unscored_steps):
            return
        error = self.alarms.unscored.error(record["step"], reasons)
        self._alarm(Alarm("unscored_run", str(error)), record["step"], record["stage"])
        save()
        raise error

    def _alarm(self, alarm: Alarm, step: int, stage: str) -> None:
        if self._is_main:
            self.log.write({"kind": "alarm", "stage": stage, "step": step, **asdict(alarm)})
            self.log.print(f"alarm: {alarm.message}")

    def write_rollouts(
        self,
        step: int,
        stage: str,
        groups: Sequence[RolloutGroup],
        scores: Scores,
        advantages: Iterable[tuple[Rollout, float]],
        temperature: float,
    ) -> None:
        """Write some groups of a step.

        Args:
            groups: of this step, with their scores.
            advantages: the rollouts that were trained on, each with the mean of its advantages.
        """
        if not self._is_main:
            return
        places = in_turns([group.prompt for group in groups], self._config.log.rollouts_per_step)
        shown, score_of = [groups[place] for place in places], scores.split(groups)
        # By identity: rollouts that a hook kept are the same objects, and equal ones may have been sampled twice.
        advantage_of = {id(rollout): advantage for rollout, advantage in advantages}
        self._show_sample(shown[0], score_of[places[0]])
        self._rollout_log.write(
            step,
            stage,
            "train",
            shown,
            Scores.join([score_of[place] for place in places]),
            [[advantage_of.get(id(rollout), math.nan) for rollout in group.rollouts] for group in shown],
            temperature,
        )

    def _show_sample(self, group: RolloutGroup, scores: Scores) -> None:
        """One completion on the console, if it is text and the last one was shown long enough ago."""
        completion = group.rollouts[0].completion
        if isinstance(completion, str) and time.monotonic() - self._sample_shown >= SAMPLE_EVERY_S:
            self._sample_shown = time.monotonic()
            self.log.sample(prompt_text(group.prompt), completion, float(scores.totals[0]))

    # Evaluations

    def held_out_writers(self, step: int, stage: str) -> dict[str, WriteHeldOut]:
        """What an evaluation is given as `log` and `log_all`: each takes groups, their scores and the temperature.

        The first writes the rollouts that it is given with their media, the second every answer, in a line each.
        """

        def write(groups: Sequence[RolloutGroup], scores: Scores, temperature: float) -> None:
            self._rollout_log.write(step, stage, "held_out", groups, scores, None, temperature)

        def write_all(groups: Sequence[RolloutGroup], scores: Scores, temperature: float) -> None:
            self._answer_log.write(step, groups, scores, temperature)
            self._intervals |= held_out_intervals(self._config, self._registry, groups, scores, temperature)

        return {"log": write, "log_all": write_all}

    def evaluation(self, stage: str, step: int, label: str, metrics: Mapping[str, float]) -> None:
        intervals = {name: interval for name, interval in self._intervals.items() if name in metrics}
        self._intervals = {}
        record = {"kind": "eval", "stage": stage, "step": step, "label": label, **metrics, "intervals": intervals}
        self.log.write(record)
        shown = "  ".join(f"{name} {value:.3f}" for name, value in metrics.items() if "/" in name)
        self.log.print(f"held out, {label}: {shown}")
        self._accelerator.log({f"eval/{name}": value for name, value in metrics.items()}, step=step)

    def print_evaluations(self) -> None:
        """Print the table of all evaluations of the run."""
        if self._is_main and (records := [r for r in read_metrics(self._output) if r["kind"] == "eval"]):
            self.log.console.print(evaluation_table(records))

    def write_report(self) -> None:
        """Write report.html; where a package that it needs is missing, say which, for the run is whole without it."""
        try:
            self.log.print(f"report: {write_report(self._output)}")
        except MMRLError as error:
            self.log.print(f"no report: {error}")

    # Failing and resuming

    def failures(self, step: int, reasons: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """Record the first failure of each reward, in whichever process it was.

        Args:
            reasons: reward -> why it failed in this process, the first time first.

        Returns:
            The reasons of all processes.
        """
        everywhere: dict[str, list[str]] = {}
        for name, told in self._processes.gather([(name, list(told)) for name, told in reasons.items()]):
            everywhere.setdefault(name, []).extend(told)
        for name, told in everywhere.items():
            if self._is_main and told and name not in self._failed:
                self._failed.add(name)
                self.log.write({"kind": "failure", "step": step, "name": name, "message": told[0]})
        return everywhere

    def failed(self, step: int, error: Exception) -> None:
        """Record what ended the run after a step. A resumed run deletes the record with all that follows its step."""
        if self._is_main and self.log.is_open:
            message = str(error) if isinstance(error, MMRLError) else f"{type(error).__name__}: {error}"
            with contextlib.suppress(OSError, MMRLError):  # a full disk may be why it ends
                self.log.write({"kind": "error", "step": step, "message": message})

    def resumed(self, checkpoint: str, step: int, changes: Sequence[str]) -> None:
        """Tell where the run goes on, and which keys have changed since; these are recorded too."""
        self.print(f"resumed from {checkpoint}")
        for line in changes:
            self.print(f"  changed since the run began: {line}")
        if changes:
            self._resumed = {"kind": "resume", "step": step, "changes": list(changes)}

    @property
    def num_bytes(self) -> int:
        """Length of metrics.jsonl; 0 in processes that do not write it."""
        return self.log.num_bytes if self._is_main else 0

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"alarms": self.alarms.state(), "set_aside": dict(self._broken), "failed": sorted(self._failed)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.alarms.load_state(state["alarms"])
        self._broken = dict(state["set_aside"])
        self._failed = set(state.get("failed", ()))  # 0.1.0 recorded none

    def close(self) -> None:
        self.log.close()
        if self._config.log.trackers:
            self._accelerator.end_training()


def over_processes(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Metrics of all processes as one: work and failures are summed, maxima kept; else the mean over those measured."""
    found: dict[str, list[float]] = {}
    for part in parts:
        for name, value in part.items():
            found.setdefault(name, []).append(value)
    reduced = {}
    for name, values in found.items():
        numbers = [value for value in values if not math.isnan(value)]
        if name.startswith(("count/", "failures/", "restarts/")):
            reduced[name] = sum(numbers)
        elif name.endswith("/max") or name.startswith("memory/"):
            reduced[name] = max(numbers, default=math.nan)
        else:
            reduced[name] = sum(numbers) / len(numbers) if numbers else math.nan
    return reduced
