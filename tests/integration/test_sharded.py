"""Processes that share weights, gradients and optimiser do what one process does with the same global batch."""

import json
import shutil
from pathlib import Path

import pandas
import pytest
import torch
from safetensors.torch import load_file

from mmrl_core.errors import ConfigError
from mmrl_core.runs import read_metrics
from tests.ranks import joined

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(ranks_folder):
    return ranks_folder


@pytest.fixture(scope="module")
def task(folder, base_config):
    """`task(kind, name, stages, **changes)` -> file of a run that imitates, answers once, talks, and compares answers.

    `stages` is the part of these that it has.
    """

    def written(kind, name, stages, **changes):
        base = base_config(kind)
        grpo = {"kind": "grpo", "steps": 2, "prompts_per_step": 4, "group_size": 3, "micro_batch_rows": 3}
        config = {
            **base,
            "plugins": ["probe_ranks"],
            "rewards": [f"{folder}/ranks.py:spread"],
            "optimizer": {"lr": 1e-3, "eps": 1e-3, "schedule": "constant"},
            "algorithm": {
                "advantage": ["group_mean", "whiten"],
                "kl": {"coefficient": 0.1},
                "epochs_per_rollout": 2,
            },
            "data": {**base["data"], "held_out": {**base["data"]["train"], "limit": 3}},
            "eval": {"batch_size": 2},
            "sharding": {},
            "stages": [
                {"kind": "sft", "steps": 1, "prompts_per_step": 4, "micro_batch_rows": 1},
                grpo,
                {
                    **grpo,
                    "name": "talk",
                    "steps": 1,
                    "rewards": [f"{folder}/ranks.py:spread", "environment"],
                    "rollout": {"strategy": {"name": "multi_turn", "max_turns": 3}, "environment": "probe_ranks/echo"},
                },
                {
                    **grpo,
                    "name": "scores",
                    "steps": 1,
                    "algorithm": {"loss": {"name": "text_reasoning/drpo", "max_length": 6}},
                },
            ],
            **changes,
        }
        config["model"] = {**base["model"], **changes.get("model", {})}
        config["stages"] = config["stages"][stages]
        (folder / f"{name}.yaml").write_text(json.dumps(config))
        return folder / f"{name}.yaml"

    return written


NOT_COMPARED = ("seconds", "elapsed_s", "advantage/abs_mean", "truncated/tokens")
"""Times; and means over tokens, of which the processes have unequal numbers: logged is the mean of their means."""

GUARDED = {("scores", "kl_guard"), ("scores", "grad_norm")}
"""DRPO's guard is a thousand times a gap of logprobs, and so is their rounding; the gradient is multiplied by it."""

SFT_ALONE, GRPO_ALONE = slice(0, 1), slice(1, 2)
CASES = {
    # Rows with and without a picture, whose tower is trained; the processes have unequal numbers of micro-batches.
    "all": ("qwen2_vl", {"model": {"freeze": []}}, 2, slice(None)),
    "adapters": ("qwen2", {"model": {"lora": {"rank": 4, "alpha": 8}, "gradient_checkpointing": True}}, 2, GRPO_ALONE),
    "own_forward": ("qwen2_vl", {"model": {"freeze": [], "attention": "eager"}}, 2, GRPO_ALONE),
    "halves": ("qwen2", {"sharding": {"processes": 2}}, 4, GRPO_ALONE),
}
SAID = {
    "all": "2 processes share weights, gradients and optimiser; 2 layers are gathered one at a time\n",
    "own_forward": "2 processes share weights, gradients and optimiser; all weights are gathered for each pass\n",
}


def assert_same_numbers(run, expected):
    for record, other in zip(read_metrics(run), read_metrics(expected), strict=True):
        assert record.keys() == other.keys()
        for name, value in other.items():
            left_out = name in NOT_COMPARED or name.startswith(("time/", "memory/", "count/"))
            if isinstance(value, float) and not left_out:
                rel = 1e-3 if (record.get("stage"), name) in GUARDED else 2e-5
                assert record[name] == pytest.approx(value, rel=rel, abs=2e-6), f"step {record['step']}: {name}"


def newest(run):
    return max((run / "checkpoints").iterdir(), key=lambda path: int(path.name.removeprefix("step-")))


def assert_same_weights(run, expected):
    (path,) = (newest(expected) / "model").glob("*model.safetensors")
    found, weights = load_file(newest(run) / "model" / path.name), load_file(path)
    assert found.keys() == weights.keys()
    for key, weight in weights.items():
        torch.testing.assert_close(found[key], weight, rtol=0, atol=1e-6, msg=lambda m, n=key: f"{n}: {m}")


@pytest.mark.parametrize("name", CASES)
def test_processes_that_share_weights_learn_what_one_process_learns(name, task, folder, start_training, start_ranks):
    kind, changes, count, stages = CASES[name]
    file = task(kind, name, stages, **changes)
    one, several = folder / f"{name}-one", folder / f"{name}-several"
    alone = start_training(file, one, ACCELERATE_USE_CPU="true", PROBE_LOG=f"{one}.log")
    codes = joined([alone, *start_ranks(file, several, count=count)])[0]
    printed = Path(f"{several}.0.log").read_text()
    assert not any(codes), printed + Path(f"{several}.1.log").read_text()
    assert SAID.get(name, "2 processes share weights") in printed
    assert_same_numbers(several, one)
    assert_same_weights(several, one)
    if name == "all":  # each has written its half of the optimiser
        one_half, other_half = (path.stat().st_size for path in (newest(several) / "optimizer").glob("*.distcp"))
        assert 0.8 < one_half / other_half < 1.25


def test_the_preset_for_several_gpus_learns_the_same_in_bfloat16(task, folder, tiny_model, start_ranks):
    """Gathered, computed and checkpointed in bfloat16, summed in float32: the weights go the way they go in float32."""
    moved = {}
    for name, preset in {"exact": [], "preset": [str(ROOT / "configs" / "hardware" / "fsdp2_eight_gpus.yaml")]}.items():
        file = task("qwen2", f"bfloat16-{name}", SFT_ALONE)  # no answers that rounding would change
        file.write_text(json.dumps({**json.loads(file.read_text()), "extends": preset}))
        assert joined(start_ranks(file, folder / f"bfloat16-{name}"))[0] == [0, 0]
        before = load_file(tiny_model("qwen2") / "model.safetensors")
        after = load_file(newest(folder / f"bfloat16-{name}") / "model" / "model.safetensors")
        assert {weight.dtype for weight in after.values()} == {torch.float32}
        moved[name] = torch.cat([(after[key] - before[key]).flatten() for key in sorted(after)])
    assert not torch.equal(moved["exact"], moved["preset"])
    assert float(torch.cosine_similarity(moved["exact"], moved["preset"], dim=0)) > 0.95


GOING_ON = {
    "all": ({}, [(1, 2), (2, 1), (2, 4)]),
    "adapters": ({"model": {"lora": {"rank": 4, "alpha": 8}}}, [(2, 1)]),
}


@pytest.mark.parametrize("name", GOING_ON)
def test_a_run_goes_on_with_another_number_of_processes(name, task, folder, start_training, start_ranks):
    """Saved by one process or two, and gone on with by others: what one process learns that nothing stopped."""
    changes, counts = GOING_ON[name]

    def ended(output, count, resume=False):
        if count == 1:
            processes = [start_training(file, output, resume, ACCELERATE_USE_CPU="true", PROBE_LOG=f"{output}.0.log")]
        else:
            processes = start_ranks(file, output, resume, count=count)
        assert not any(joined(processes)[0]), Path(f"{output}.0.log").read_text()

    file = task("qwen2", f"going-on-{name}", GRPO_ALONE, **changes)
    values = json.loads(file.read_text())
    values["stages"][0]["steps"] = 3
    file.write_text(json.dumps(values))
    values["stages"][0]["algorithm"] = {"frozen_policies": {"slow": {"rule": "moving_average", "decay": 0.5}}}
    file.write_text(json.dumps(values))
    whole = folder / f"whole-{name}"
    ended(whole, 1)
    values["stages"][0]["steps"] = 1
    file.write_text(json.dumps(values))
    for count in {before for before, _ in counts}:
        ended(folder / f"{name}-saved-by-{count}", count)
    values["stages"][0]["steps"] = 3
    file.write_text(json.dumps(values))
    for before, after in counts:
        output = folder / f"{name}-from-{before}-to-{after}"
        shutil.copytree(folder / f"{name}-saved-by-{before}", output)
        ended(output, after, resume=True)
        assert_same_weights(output, whole)
        slow, expected = (load_file(newest(run) / "frozen" / "slow.safetensors") for run in (output, whole))
        for key, weight in expected.items():
            torch.testing.assert_close(slow[key], weight, rtol=0, atol=1e-6)


def test_signals_and_lost_processes(task, folder, start_ranks, without_times):
    """A signal in a step or an evaluation saves; a process that is lost ends the others, and the run goes on."""
    file = task("qwen2", "stopped", GRPO_ALONE, checkpoint={"every_steps": 1}, eval={"every_steps": 1})
    values = json.loads(file.read_text())
    values["stages"][0]["steps"] = 4
    file.write_text(json.dumps(values))
    assert joined(start_ranks(file, folder / "never-stopped"))[0] == [0, 0]
    output = folder / "stopped"
    for number, (plan, codes, saved) in enumerate(
        [
            ("what=SIGTERM step=1 rank=all", [143, 143], 1),
            ("what=SIGTERM step=1 rank=evaluates", [143, 143], 2),
            ("what=SIGKILL step=4 rank=1", [2, -9], None),
        ]
    ):
        found, seconds = joined(start_ranks(file, output, resume=number > 0, PROBE_PLAN=plan))
        printed = Path(f"{output}.0.log").read_text()
        assert found == codes and seconds < 60, printed
        assert saved is None or f"saved step {saved}; go on from it with --resume\n" in printed
    assert joined(start_ranks(file, output, resume=True))[0] == [0, 0]
    records, expected = (
        [without_times(record) for record in read_metrics(run)] for run in (output, folder / "never-stopped")
    )
    assert records == expected


@pytest.mark.parametrize("what", ["FSDP", "DEEPSPEED"])
def test_a_launcher_that_would_shard_the_model_itself_is_refused(what, task, make_trainer, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_USE_{what}", "true")
    values = json.loads(task("qwen2", "refused", GRPO_ALONE).read_text())
    with pytest.raises(ConfigError, match=f"accelerate is set up for {what}.* set sharding in the task"):
        make_trainer(values)


def test_an_engine_that_copies_the_weights_is_refused(task, folder, start_ranks):
    file = task("qwen2", "copies", GRPO_ALONE, rollout={"max_tokens": 6, "engine": {"name": "hf", "copy": True}})
    assert joined(start_ranks(file, folder / "copies"))[0] == [2, 2]
    assert "sharding: no process can copy all weights" in Path(f"{folder}/copies.0.log").read_text()


@pytest.mark.parametrize("sharding", [None, {}])
def test_a_process_without_pictures_trains_the_tower_with_the_other(
    sharding, folder, base_config, data_files, start_training, start_ranks
):
    """Half of the rows have a picture, so that in some steps one process has none; with copies and with shares."""
    rows = pandas.read_parquet(data_files / "pictures.parquet")
    rows.loc[rows.index % 2 == 1, "image"] = None
    rows.to_parquet(data_files / "half.parquet")
    base = base_config("qwen2_vl")
    config = {
        **base,
        "model": {**base["model"], "freeze": []},
        "plugins": ["probe_ranks"],
        "rewards": [f"{folder}/ranks.py:spread"],
        "optimizer": {"lr": 1e-3, "eps": 1e-3},
        "data": {"train": {"name": "rows", "path": str(data_files / "half.parquet")}},
        "sharding": sharding,
        "stages": [{"kind": "grpo", "steps": 3, "prompts_per_step": 2, "group_size": 3, "micro_batch_rows": 2}],
    }
    kind = "copies" if sharding is None else "shares"
    file, one, two = folder / f"half-{kind}.yaml", folder / f"half-{kind}-one", folder / f"half-{kind}-two"
    file.write_text(json.dumps(config))
    alone = start_training(file, one, ACCELERATE_USE_CPU="true", PROBE_LOG=f"{one}.log")
    assert joined([alone, *start_ranks(file, two)])[0] == [0, 0, 0], Path(f"{two}.0.log").read_text()
    assert_same_weights(two, one)
