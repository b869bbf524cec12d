"""A run that is killed and resumed is bit for bit the run that was never stopped."""

import io
import json
import multiprocessing
import os
import random
import shutil
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from mmrl_core.plugins import load_plugins
from mmrl_core.runs import read_metrics

NUM_KILLS = 3
NUM_POINTS = 4  # of the second checkpoint, one after the other; MMRL_WHOLE_SWEEP=1: every write of a run, one by one
NUM_MOMENTS = 50  # of the whole sweep, besides: seconds after the start
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

    @property
    def whole(self):
        return self.folder / "whole"

    def start(self, output, resume=False, crash=0):
        """`crash` is the number of the write before which it is killed; see `watch_writes`."""
        watched = {"PROBE_WRITES": f"{output}.writes", "PROBE_CRASH": str(crash), "PROBE_LOG": f"{output}.log"}
        return self.start_process(self.task, output, resume, **watched)

    def finish(self, output, resume=False):
        process = self.start(output, resume)
        process.join(120)
        assert process.exitcode == 0, Path(f"{output}.log").read_text()

    def kill(self, output, write, resume=False):
        """Whether it got so far."""
        process = self.start(output, resume, crash=write)
        process.join(120)
        assert process.exitcode in (0, -9), Path(f"{output}.log").read_text()
        return process.exitcode == -9

    def writes(self, output):
        return Path(f"{output}.writes").read_text().splitlines()

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
        made.finish(made.whole)
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


def test_a_run_killed_at_random_writes_and_resumed_equals_one_never_stopped(runs):
    """The first kill is before there is a checkpoint, so that the run starts anew."""
    output, total = runs.folder / "killed", runs.writes(runs.whole)
    first = next(index for index, write in enumerate(total) if "checkpoints" in write)
    writes = [random.randrange(2, first), *(random.randrange(2, len(total) // 2) for _ in range(NUM_KILLS - 1))]
    killed = [runs.kill(output, write, resume=index > 0) for index, write in enumerate(writes)]
    assert killed[0]
    runs.finish(output, resume=True)
    assert "has no checkpoint; the run starts anew." in Path(f"{output}.log").read_text()
    assert_same_run(output, runs.whole, f"killed before the writes {writes} of each start")


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
    assert process.exitcode == 2, "none of them is whole"
    assert sorted(path.name for path in (output / "checkpoints").iterdir()) == ["step-10", "step-9"]


@pytest.fixture(scope="module")
def short(tmp_path_factory, base_config, rewards_file, start_training):
    """A run of a text model: 12 steps, a checkpoint every 3, the newest two kept."""
    folder = tmp_path_factory.mktemp("short")
    config = {
        **base_config("qwen2"),
        "rewards": [f"{rewards_file}:spread"],
        "checkpoint": {"every_steps": 3, "keep": 2},
        "log": {"rollouts_every_steps": 4},
        "stages": [{"kind": "grpo", "steps": 12, "prompts_per_step": 2, "group_size": 3}],
    }
    (folder / "task.yaml").write_text(json.dumps(config))
    made = Runs(folder / "task.yaml", folder, start_training)
    made.finish(made.whole)
    return made


def final(run):
    """What must be equal, byte for byte but for times."""
    checkpoint = run / "checkpoints" / "step-12"
    records = [
        {k: v for k, v in record.items() if k not in NOT_COMPARED and not k.startswith(MEASURED)}
        for record in read_metrics(run)
    ]
    weights = {path.name: path.read_bytes() for path in sorted((checkpoint / "model").iterdir())}
    return records, weights, sorted(path.name for path in (run / "checkpoints").iterdir())


def test_a_run_killed_while_it_writes_its_checkpoints_equals_one_never_stopped(short):
    """Each start is killed somewhere in the writing of a checkpoint, from its first file to the end of the old one."""
    total = short.writes(short.whole)
    second, third = (next(i for i, write in enumerate(total) if f".step-{n}." in write) for n in (6, 9))
    for number in range(NUM_POINTS):
        output = short.folder / f"point-{number}"
        span = (third - second) // NUM_POINTS
        write = second + 1 + number * span + random.randrange(span)
        assert short.kill(output, write), write
        short.finish(output, resume=True)
        assert final(output) == final(short.whole), f"killed before write {write}, {total[write - 1]}"


def test_a_checkpoint_too_many_that_a_kill_has_left_is_deleted_on_resume(short):
    """As where a run is killed while the one before its newest two is deleted: half of it, or all, is there."""
    output = short.copy("too-many")
    for step in (3, 6):
        shutil.copytree(output / "checkpoints" / "step-9", output / "checkpoints" / f"step-{step}")
    (output / "checkpoints" / "step-3" / "state.json").unlink()
    short.finish(output, resume=True)
    assert final(output) == final(short.whole)


# Formats of data that are read as they are drawn

ROWS = [{"__key__": str(n), "question": f"What is {n}?", "answer": str(n)} for n in range(600)]
"""More than the first ones of a parquet file, which are read in another way. The key is what shards add."""


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_table(path, rows):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=70)


def write_shard(path, rows):
    with tarfile.open(path, "w") as archive:
        for row in rows:
            content = json.dumps(row).encode()
            info = tarfile.TarInfo(f"{row['answer']}.json")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


FORMATS = {"jsonl": write_lines, "parquet": write_table, "tar": write_shard}
PATHS = {"a file": "train-000.{suffix}", "a folder": "", "a pattern": "*-{{000..002}}.{suffix}"}


@pytest.fixture(scope="module")
def write_run(tmp_path_factory, base_config, rewards_file, start_training):
    """`write_run(suffix, kind of path)` -> runs of 7 steps on the rows in this form, a checkpoint every 2."""

    def write(suffix, kind):
        folder = tmp_path_factory.mktemp(f"{suffix}-{kind.replace(' ', '-')}")
        (folder / "data").mkdir()
        parts = [ROWS] if kind == "a file" else [ROWS[:250], ROWS[250:270], ROWS[270:]]
        for number, rows in enumerate(parts):
            FORMATS[suffix](folder / "data" / f"train-{number:03}.{suffix}", rows)
        config = {
            **base_config("qwen2"),
            "data": {"train": {"name": "rows", "path": f"{folder}/data/{PATHS[kind].format(suffix=suffix)}"}},
            "rewards": [f"{rewards_file}:spread"],
            "checkpoint": {"every_steps": 2},
            "log": {"rollouts_every_steps": 1},
            "stages": [{"kind": "grpo", "steps": 7, "prompts_per_step": 4, "group_size": 2}],
        }
        (folder / "task.yaml").write_text(json.dumps(config))
        return Runs(folder / "task.yaml", folder, start_training)

    return write


@pytest.fixture(scope="module")
def run_of_rows(write_run):
    """A run on one JSONL file, which nobody stopped."""
    runs = write_run("jsonl", "a file")
    runs.finish(runs.whole)
    return runs


def seen(run):
    """Metrics, rows drawn with what was sampled for them, and the weights at the end."""
    records = [
        {k: v for k, v in record.items() if k not in NOT_COMPARED and not k.startswith(MEASURED)}
        for record in read_metrics(run)
    ]
    files = [*(run / "rollouts").rglob("*.*"), *(run / "checkpoints" / "step-7" / "model").iterdir()]
    return records, {str(path.relative_to(run)): path.read_bytes() for path in files}


def writes_of_third_and_fourth_step(runs):
    """Their numbers, between the checkpoints of steps 2 and 4."""
    total = runs.writes(runs.whole)
    second, third = (next(i for i, write in enumerate(total) if f".step-{n}." in write) for n in (2, 4))
    return range((second + third) // 2, third)


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("suffix", FORMATS)
def test_a_run_killed_within_an_epoch_of_any_format_equals_one_never_stopped(suffix, kind, write_run, run_of_rows):
    """The same rows in another form are the same run, too."""
    runs, write = write_run(suffix, kind), random.choice(writes_of_third_and_fourth_step(run_of_rows))
    assert runs.kill(runs.whole, write)
    runs.finish(runs.whole, resume=True)
    assert seen(runs.whole) == seen(run_of_rows.whole), f"killed before write {write}"


def test_a_run_does_not_go_on_when_its_pattern_matches_other_files(write_run, run_of_rows):
    runs = write_run("jsonl", "a pattern")
    assert runs.kill(runs.whole, writes_of_third_and_fourth_step(run_of_rows)[-1])
    write_lines(runs.folder / "data" / "other-002.jsonl", ROWS[:1])
    process = runs.start(runs.whole, resume=True)
    process.join(120)
    assert process.exitcode == 2
    said = Path(f"{runs.whole}.log").read_text()
    assert "*-{000..002}.jsonl has changed (bytes then and now: " in said and "Put them back as they were" in said


@pytest.mark.skipif(not os.environ.get("MMRL_WHOLE_SWEEP"), reason="19 minutes, 253 kills: MMRL_WHOLE_SWEEP=1 runs it")
@pytest.mark.timeout(7200)
def test_a_run_killed_before_any_of_its_writes_or_at_any_moment_equals_one_never_stopped(short):
    expected, total = final(short.whole), short.writes(short.whole)
    moments = [random.uniform(0.0, 3.0) for _ in range(NUM_MOMENTS)]

    def outcome(point):
        """What is resumed from a kill at a point: (whether it was killed before its end, whether it is the same)."""
        output = short.folder / f"sweep-{point}"
        if isinstance(point, int):
            was_killed = short.kill(output, point)
        else:
            process = short.start(output)
            process.join(point)
            process.kill()
            process.join()
            was_killed = process.exitcode == -9
        short.finish(output, resume=output.exists())
        same = final(output) == expected
        shutil.rmtree(output)
        where = total[point - 1] if isinstance(point, int) else "seconds after the start"
        print(point, where, "killed" if was_killed else "ended", "the same" if same else "DIFFERENT", flush=True)
        return was_killed, same

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(outcome, [*range(1, len(total) + 1, 2), *range(2, len(total) + 1, 2), *moments]))
    print(f"{len(total)} writes, {sum(killed for killed, _ in outcomes)} kills")
    assert all(same for _, same in outcomes)
    assert all(killed for killed, _ in outcomes[: len(total)])
