"""When a run is saved, and how it goes on from what was saved: by the step, at its end, when it fails or is stopped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mmrl_core.checkpoint.data_files import refuse_changed, source_fingerprints
from mmrl_core.checkpoint.reading import load_newest
from mmrl_core.checkpoint.resuming import refuse_other_run, reopened
from mmrl_core.checkpoint.states import PluginStates, Snapshot, generator_states
from mmrl_core.checkpoint.writing import delete_older, save_checkpoint, save_share
from mmrl_core.errors import NotFiniteError
from mmrl_core.plugins.registry import CORE
from mmrl_core.run import TrainState
from mmrl_core.support import Interrupted, Processes, Stopping, remove_unfinished, writes_to

if TYPE_CHECKING:
    from mmrl_core.config import RunConfig
    from mmrl_core.policy import Policy
    from mmrl_core.runs import Recorder


class KeptRun(Protocol):
    """What the keeper uses of a run; `Trainer` is one."""

    config: RunConfig
    output: Path
    state: TrainState
    policy: Policy
    optimizer: Any
    hooks: Any
    recorder: Recorder
    accelerator: Any
    processes: Processes
    is_main: bool


class Keeper:
    """Saves a run and resumes it.

    A signal stops the run where nothing is lost by it: in a step whose weights have not moved, whose state before is
    then saved; else after the step, and in evaluations. Several processes have to agree, and what is sampled ahead
    would be lost, so there every step is finished first.

    Attributes:
        stopping: takes the signals.
    """

    def __init__(self, run: KeptRun, stopping: Stopping) -> None:
        self.stopping = stopping
        self._run = run
        self._weights_moved = False  # in this step
        self._saved: TrainState | None = None  # by the last checkpoint that was written or resumed from
        self._sources: dict[str, str] | None = None  # fingerprints of data files as they are now

    # Saving

    def save(self) -> None:
        """Write a checkpoint of the present state; all processes call it."""
        run = self._run
        run.accelerator.wait_for_everyone()
        if run.is_main:
            self._write(self.snapshot())
        elif run.processes.sharded and any(run.processes.gather([False])):
            save_share(run.policy, run.optimizer, run.processes)
        run.accelerator.wait_for_everyone()

    def _write(self, kept: Snapshot) -> None:
        run = self._run
        due = kept.state != self._saved
        shared = run.processes if run.processes.sharded else None
        if shared is not None:
            shared.gather([due])
        if due:
            save_checkpoint(
                run.output,
                kept.state,
                run.policy,
                run.optimizer,
                kept.plugins.unchanged(),
                keep=run.config.checkpoint.keep,
                generators=kept.generators,
                processes=shared,
            )
        run.state = kept.state
        self._saved = replace(kept.state)

    def snapshot(self) -> Snapshot:
        """All but weights and optimiser as it is now. Nothing of the size of a tensor is copied."""
        run = self._run
        run.state.metrics_bytes = run.recorder.num_bytes
        state = replace(run.state, evaluated=list(run.state.evaluated))
        return Snapshot(state, PluginStates(self._plugin_states()), generator_states())

    def _plugin_states(self) -> dict[str, Any]:
        """What plugins, and the core itself, want back after a resume."""
        hook = self._run.hooks.mmrl_save_state
        states = {impl.plugin_name: impl.function() for impl in hook.get_hookimpls()}
        states = {name: state for name, state in states.items() if state is not None}
        return {**states, CORE: self._run.recorder.state()}

    # Stopping

    def weights_move(self) -> None:
        """Called before each update: what follows in the step is gone through whole."""
        self.stopping.close()
        self._weights_moved = True

    @contextmanager
    def saved_if_it_fails(self, *, undoable: bool = True, alone: bool = False) -> Iterator[None]:
        """Around a step or an evaluation: what was trained before it is kept if it fails or a signal comes.

        Of several processes the first one keeps it, also if another has ended. Where weights are sharded it cannot:
        what was trained since the last checkpoint is lost then, and an evaluation is finished before a signal stops.

        Args:
            undoable: the state before can be gone back to, as long as the weights have not moved.
            alone: an evaluation: a signal need not wait for the other processes, since nothing is lost if all end.
        """
        self._weights_moved = False
        if not undoable or not self._run.is_main or self._run.processes.sharded:
            yield
            return
        before = self.snapshot()
        several = self._run.processes.count > 1
        try:
            with nullcontext() if several and not alone else self.stopping.opened():
                yield
        except (Exception, KeyboardInterrupt) as error:
            at_once = isinstance(error, Interrupted) and error.at_once
            sound = not isinstance(error, NotFiniteError)  # the weights before may be those that are not finite
            if sound and not self._weights_moved and before.state.step > 0 and not at_once:
                self._write(before)
                self._tell()
            raise

    def stop_if_asked(self) -> None:
        """Save and stop if a signal has come, to this process or another; all processes call it.

        Raises:
            Interrupted: in all of them.
        """
        pending = [number for number in self._run.processes.gather([self.stopping.pending]) if number is not None]
        if pending:
            self.save()
            self._tell()
            raise Interrupted(pending[0])

    def _tell(self) -> None:
        self._run.recorder.print(f"saved step {self._run.state.step}; go on from it with --resume")

    # Resuming

    def resume(self) -> dict[str, Any] | None:
        """Go back to the newest whole checkpoint; returns the optimiser's state.

        Raises:
            MMRLError: no checkpoint is whole, or config or data are not those of the run.
        """
        run = self._run
        changes = refuse_other_run(run.output, run.config)
        if run.is_main:
            remove_unfinished(run.output / "checkpoints")
        run.accelerator.wait_for_everyone()
        found = load_newest(run.output, run.policy, run.recorder.print)
        if found is None:
            run.recorder.print(f"{run.output} has no checkpoint; the run starts anew.")
            return None
        directory, self._saved, training = found
        run.state = reopened(replace(self._saved), run.config, changes)
        if run.is_main:
            self._sources = source_fingerprints(run.config, run.state.stage)
            refuse_changed(run.state.sources, self._sources)
            with writes_to(run.output, "its checkpoints"):
                delete_older(directory, run.config.checkpoint.keep)  # a kill can come before the oldest is deleted
        run.recorder.load_state(training["plugins"][CORE])
        for impl in run.hooks.mmrl_load_state.get_hookimpls():
            if impl.plugin_name in training["plugins"]:
                impl.function(*(training["plugins"][impl.plugin_name] for _ in impl.argnames))
        run.recorder.resumed(directory.name, run.state.step, changes)
        return training

    def note_sources(self) -> None:
        """Put the fingerprints of the data files into the state; those of stages that are done stay."""
        run = self._run
        if run.is_main:
            now = source_fingerprints(run.config) if self._sources is None else self._sources
            run.state.sources = {**run.state.sources, **now}
