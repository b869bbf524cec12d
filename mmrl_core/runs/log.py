"""Metrics of a run: a line a step in metrics.jsonl, a progress display, and accelerate's trackers when asked for.

Names: `reward/total`, `reward/<name>`, `advantage/abs_mean`, `count/<work>` (work of the step); in evaluations
`greedy/<metric>` and `t<temperature>/<metric>`, and under `intervals` the 95 % intervals of these (see `intervals`).
Units are in the name: `seconds`, `elapsed_s`, `peak_mib`; `time/<phase>` is in seconds. A mixture has
`reward/<part>/<name>`, `reward/<part>/total`, `greedy/<part>/<metric>`.

`unscored/<reward>` is the share of rollouts that a reward did not score, `truncated/tokens` the share of tokens in
completions that met the length limit, `entropy` the mean over trained tokens of the entropy in nats, and `weights/norm`
the 2-norm of the trained weights after the step. Records of kind "alarm" have a `name` and a `message`.

The record of kind "start" has, before the first step, how far another medium moves a logprob of a completion
(`seen/<kind of medium>`), and with an engine of another program `engine/seen/<kind>` and `engine/difference/<kind>`,
the largest between a logprob of the engine and the trainer's; `text` is a prompt without media.

`count/` has the work of a step: `media_encodes`; `prefill_tokens` and `decode_tokens` of sampling; `update_tokens` that
went through the model with gradient, prompts included; `score_tokens` without (old and frozen policies);
`padding_tokens` among these two; `rows_skipped` of the update. `time/idle` is what the model waited for data and
rewards.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table

from mmrl_core.errors import ConfigError
from mmrl_core.runs.report import number_of
from mmrl_core.support import finite, writes_to

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

SHOWN = {
    "loss": "loss",
    "reward/total": "reward",
    "kl_ref": "KL",
    "entropy": "entropy",
    "completion_tokens/mean": "tokens",
    "truncated": "cut",
}
"""Metrics beside the progress bar, and what they are called there."""

NOT_COMPONENTS = ("reward/total", "reward/total_std")

MAX_SHOWN_CHARS = 160
"""Of a prompt or a completion on the console."""

PLAIN_EVERY = 10
"""Without a terminal, a line is printed every so many steps."""


class MetricsLog:
    """Writes what a run measures; one for the main process, silent in the others."""

    def __init__(self, run: Path, *, console: Console | None = None) -> None:
        self.console = console or Console()
        self.path = run / "metrics.jsonl"
        self._file: TextIO | None = None
        self._progress: Progress | None = None

    def open(self, num_bytes: int) -> None:
        """Continue the file after its first `num_bytes` bytes; 0 for a new run."""
        self.path.touch()
        os.truncate(self.path, min(num_bytes, self.path.stat().st_size))
        self._file = self.path.open("a")

    @property
    def is_open(self) -> bool:
        return self._file is not None

    @property
    def num_bytes(self) -> int:
        assert self._file is not None
        with writes_to(self.path.parent, self.path.name):
            self._file.flush()
            return self.path.stat().st_size

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a record; numbers that are not finite become null.

        Raises:
            MMRLError: the disk is full, or the file is not where it was opened any more.
        """
        assert self._file is not None
        with writes_to(self.path.parent, self.path.name):
            if not os.path.samestat(os.fstat(self._file.fileno()), os.stat(self.path)):
                raise FileNotFoundError(errno.ENOENT, "another file has taken its place")
            self._file.write(json.dumps({key: finite(value) for key, value in record.items()}) + "\n")
            self._file.flush()

    def start_stage(self, name: str, total: int, done: int) -> None:
        """Show the progress of a stage."""
        if self.console.is_terminal:
            columns = (
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=16),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[shown]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            )
            self._progress = Progress(*columns, console=self.console, expand=True)
            self._progress.add_task(name, total=total, completed=done, shown="")
            self._progress.start()
        else:
            self.console.print(f"stage {name}: {total} steps" + (f", {done} done" if done else ""))

    def step(self, record: Mapping[str, Any], stage_step: int, total: int) -> None:
        """Write a step and move the progress display."""
        self.write(record)
        rate = 1.0 / max(record["seconds"], 1e-9)
        shown = f"{rate:.2f} steps/s  {numbers_in_words(record)}"
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=stage_step, shown=shown)
        elif stage_step % PLAIN_EVERY == 0 or stage_step == total:
            left_s = (total - stage_step) / rate
            self.print(f"  {record['stage']} {stage_step}/{total}  left {left_s:.0f} s  {shown}")

    def sample(self, prompt: str, completion: str, reward: float) -> None:
        """A completion, its beginning in one line each, with the end of its prompt."""
        scored = f"reward {reward:.3g}" if finite(reward) is not None else "unscored"
        self.print(f"  sampled, {scored}: {_one_line(prompt, from_end=True)} => {_one_line(completion)}")

    def end_stage(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def print(self, message: str) -> None:
        """A line on the console, with marks for what it cannot show, such as lone surrogates."""
        encoding = getattr(self.console.file, "encoding", None) or "utf-8"
        shown = message.encode(encoding, "backslashreplace").decode(encoding)
        self.console.print(shown, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        self.end_stage()
        if self._file is not None:
            with contextlib.suppress(OSError):  # what was not written has been reported
                self._file.close()
            self._file = None


def numbers_in_words(record: Mapping[str, Any]) -> str:
    """The metrics of a step that a person watches, rewards by component, without those that it does not have.

    >>> numbers_in_words({"loss": 0.5, "reward/total": 1.25, "reward/iou": 0.25, "reward/box/format": 1.0})
    'loss 0.5  reward 1.25 (iou 0.25, format 1)'
    """
    known = {name: f"{value:.3g}" for name, value in record.items() if number_of(value) is not None}
    parts = [name for name in known if name.startswith("reward/") and name not in NOT_COMPONENTS]
    texts = {name: f"{word} {known[name]}" for name, word in SHOWN.items() if name in known}
    if "reward/total" in texts and len(parts) > 1:
        short = [name.rpartition("/")[2] for name in parts]
        names = short if len(set(short)) == len(short) else [name.removeprefix("reward/") for name in parts]
        components = (f"{name} {known[part]}" for name, part in zip(names, parts, strict=True))
        texts["reward/total"] += f" ({', '.join(components)})"
    return "  ".join(texts.values())


def _one_line(text: str, *, from_end: bool = False) -> str:
    line = " ".join(text.split())
    if len(line) <= MAX_SHOWN_CHARS:
        return line
    return f"...{line[-MAX_SHOWN_CHARS:]}" if from_end else f"{line[:MAX_SHOWN_CHARS]}..."


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that accelerate does not know, or whose package is not installed.

    Raises:
        ConfigError: names the tracker.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    known = {str(getattr(name, "value", name)) for name in LOGGER_TYPE_TO_CLASS}
    available = {str(getattr(name, "value", name)) for name in get_available_trackers()}
    for name in names:
        if name not in known:
            raise ConfigError(f"log.trackers: accelerate has no tracker {name!r}; it has {', '.join(sorted(known))}.")
        if name not in available:
            raise ConfigError(f"log.trackers: {name!r} is not installed. Try: pip install {name}")


def peak_memory_mib(device: torch.device) -> float:
    """Most memory used so far: allocated by torch on a GPU, else resident in this process."""
    import resource

    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    kib_or_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib_or_bytes / (2**20 if sys.platform == "darwin" else 2**10)


def weights_mib(module: nn.Module) -> float:
    """Memory of a module's parameters and buffers, each counted once; quantised ones count as they are stored.

    Scales of weights of 4 bits, 0.13 bits for each weight, are left out.
    """
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    def stored_bytes(tensor: Tensor) -> int:
        if is_traceable_wrapper_subclass(tensor):
            return sum(stored_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
        return tensor.numel() * tensor.element_size()

    return sum(map(stored_bytes, [*module.parameters(), *module.buffers()])) / 2**20


def flat_config(config: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """A nested config as trackers take it: dotted keys, plain values; lists are written out as text."""
    flat: dict[str, bool | int | float | str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flat_config(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat


def evaluation_table(records: Sequence[Mapping[str, Any]]) -> Table:
    """Held-out metrics: a row for each metric, a column for each evaluation."""
    table = Table(title="held out", title_justify="left")
    table.add_column("metric", no_wrap=True)
    for record in records:
        table.add_column(record["label"], justify="right")
    for name in (name for name in records[-1] if "/" in name):
        values = [record.get(name) for record in records]
        table.add_row(name, *("-" if value is None else f"{value:.3f}" for value in values))
    return table


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Records of metrics.jsonl; a torn last line is left out."""
    records = []
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            break
        if isinstance(record, dict):
            records.append(record)
    return records
