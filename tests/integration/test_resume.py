"""A run that is killed and resumed is bit for bit the run that was never stopped."""

import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mmrl_core.plugins import load_plugins
from mmrl_core.runs import read_metrics

NUM_KILLS = 3
NOT_COMPARED = ("seconds", "elapsed_s", "count/media_encodes")  # features are kept only as long as the process
MEASURED = ("time/", "memory/")
"""Times; and a resumed process has to encode pictures again."""

PROBE = """
from mmrl_core import hookimpl

seen = {"tokens": 0, "history": []}

@hookimpl
def mmrl_after_update(batch):
    seen["tokens"] += int(batch.mask.sum())

@hookimpl(wrapper=True)
def mmrl_shape_rewards(scores):
    shaped = yield
    seen["history"].append(float(shaped.totals.sum()))
    shaped.totals.mul_(1 + seen["tokens"] % 7)  # what a plugin remembers changes what is learnt
    return shaped

@hookimpl
def mmrl_save_state():
    return seen

@hookimpl
def mmrl_load_state(state):
    seen.update(state)
"""


@dataclass
class Runs:
    """Trains in processes of their own; `whole` is the folder of the run that nobody stopped."""

    task: Path
    folder: Path
    start_process: Callable[..., multiprocessing.Process]
    whole: Path | None = None
    duration_s: float = 0.0

    def start(self, output, resume=False):
        return self.start_process(self.task, output, resume)

    def finish(self, output, resume=False):
        process = self.start(output, resume)
        process.join(120)
        assert process.exitcode == 0

    def copy(self, name):
        return Path(shutil.copytree(self.whole, self.folder / name))


@pytest.fixture(scope="module")
def runs(tmp_path_factory, base_config, data_files, rewards_file, start_training):
    """A run of two stages, with everything that has a state: optimiser, frozen policies, plugin, broken rows."""
    folder = tmp_path_factory.mktemp("resume")
    data = folder / "data"
    shutil.copytree(data_files, data)
    (data / "picture-3.png").write_bytes(b"not a picture")
    site = folder / "site"
    info = site / "mmrl_probe_resume-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "probe_resume.py").write_text(PROBE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mmrl-probe-resume\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mmrl]\nprobe_resume = probe_resume\n")
    source = {"name": "rows", "path": str(data / "pictures.parquet")}
    config = {
        **base_config("qwen2_vl"),
        "plugins": ["probe_resume"],
        "data": {"train": source, "held_out": {**source, "limit": 3}, "max_broken": 0.2},
        "rewards": [f"{rewards_file}:spread", {"name": f"{rewards_file}:sometimes_flat", "weight": 0.5}],
        "eval": {"every_steps": 2, "temperatures": [0.0, 1.0]},
        "checkpoint": {"every_steps": 2, "keep": 2},
        "log": {"rollouts_every_steps": 1},
        "optimizer": {"lr": 1e-3, "schedule": "cosine", "warmup_steps": 1},
        "algorithm": {
            "kl": {"coefficient": 0.1},
            "frozen_policies": {"reference": {"rule": "moving_average", "decay": 0.5, "every_steps": 2}},
            "updates_per_rollout": 2,
            "dynamic_sampling": {"max_rounds": 2},
        },
        "stages": [
            {"kind": "sft", "steps": 3, "prompts_per_step": 4, "optimizer": {"warmup_steps": 0}},
            {"kind": "grpo", "steps": 7, "prompts_per_step": 4, "group_size": 3},
        ],
    }
    task = folder / "task.yaml"
    task.write_text(json.dumps(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        load_plugins.cache_clear()
        made = Runs(task, folder, start_training)
        made.finish(folder / "warm-up")
        started = time.perf_counter()
        made.finish(folder / "whole")
        made.duration_s = time.perf_counter() - started
        made.whole = folder / "whole"
        yield made
        load_plugins.cache_clear()


def assert_same_run(run, whole, what):
    """Metrics but for times, written rollouts, broken rows, final weights: equal, not merely close."""
    kept = [
        [
            {k: v for k, v in record.items() if k not in NOT_COMPARED and not k.startswith(MEASURED)}
            for record in read_metrics(path)
        ]
        for path in (run, whole)
    ]
    assert len(kept[0]) == len(kept[1]), what
    for record, expected in zip(*kept, strict=True):
        assert record == expected, what
    for folder in ("rollouts", "checkpoints/step-10/model", "set_aside.jsonl"):
        expected_files = sorted((whole / folder).rglob("*.*")) or [whole / folder]
        files = sorted((run / folder).rglob("*.*")) or [run / folder]
        assert [f.relative_to(run) for f in files] == [f.relative_to(whole) for f in expected_files], what
        for file, expected_file in zip(files, expected_files, strict=True):
            assert file.read_bytes() == expected_file.read_bytes(), f"{what}: {file.name}"


def test_the_uninterrupted_run_has_what_a_resume_could_lose(runs):
    records = read_metrics(runs.whole)
    steps = [record for record in records if record["kind"] == "step"]
    assert [record["step"] for record in steps] == list(range(1, 11))
    assert [record["label"] for record in records if record["kind"] == "eval"] == [
        "untrained",
        "sft step 2",
        "after sft",
        *(f"grpo step {step}" for step in (2, 4, 6)),
        "after grpo",
    ]
    assert steps[-1]["kl_ref"] > 0 and steps[-1]["set_aside"] == 2  # row 3, in both stages
    assert sorted(path.name for path in (runs.whole / "checkpoints").iterdir()) == ["step-10", "step-9"]


def test_two_runs_of_one_config_are_equal(runs):
    assert_same_run(runs.folder / "warm-up", runs.whole, "two uninterrupted runs")


def test_a_run_killed_at_random_moments_and_resumed_equals_one_never_stopped(runs):
    output = runs.folder / "killed"
    delays_s = []
    for _ in range(NUM_KILLS):
        process = runs.start(output, resume=output.exists() and any(output.iterdir()))
        delays_s.append(int.from_bytes(os.urandom(4), "big") / 2**32 * 0.8 * runs.duration_s)
        process.join(delays_s[-1])
        process.kill()
        process.join()
    if output.exists() and any(output.iterdir()):
        runs.finish(output, resume=True)
        assert_same_run(output, runs.whole, f"killed {delays_s} seconds after each start")


def test_a_torn_checkpoint_is_skipped_for_the_one_before(runs):
    output = runs.copy("torn")
    (output / "checkpoints" / "step-10" / "training.pt").unlink()
    runs.finish(output, resume=True)
    assert_same_run(output, runs.whole, "newest checkpoint without training.pt")


def test_one_altered_bit_is_noticed_and_the_checkpoint_before_is_used(runs):
    output = runs.copy("altered")
    weights = output / "checkpoints" / "step-10" / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    header = output / "checkpoints" / "step-9" / "model" / "model.safetensors"
    kept = header.read_bytes()
    runs.finish(output, resume=True)
    assert_same_run(output, runs.whole, "newest checkpoint with one bit altered")

    weights.write_bytes(content)
    header.write_bytes(b"x" * 20 + kept[20:])  # as long, and no safetensors any more
    process = runs.start(output, resume=True)
    process.join(120)
    assert process.exitcode == 1, "none of them is whole"
    assert sorted(path.name for path in (output / "checkpoints").iterdir()) == ["step-10", "step-9"]


def test_a_run_whose_checkpoints_were_deleted_starts_anew(runs):
    output = runs.copy("without")
    shutil.rmtree(output / "checkpoints")
    runs.finish(output, resume=True)
    assert_same_run(output, runs.whole, "no checkpoints")
