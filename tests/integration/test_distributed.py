"""Two processes with gloo do what one process does with the same global batch."""

import json
import socket

import pytest
import torch
from safetensors.torch import load_file

from mmrl_core.runs import read_metrics

NOT_COMPARED = ("seconds", "elapsed_s", "count/media_encodes", "advantage/abs_mean", "reward/raises")
"""Times; work that depends on who has seen a picture before; and means over tokens or scored rollouts, of which the
processes have unequal numbers: what is logged is the mean of their means."""

PROBE = """
from mmrl_core import hookimpl
from mmrl_core.types import Rollout, RolloutGroup

WORDS = ("red dog", "cat", "left of the blue dog", "no", "red", "the table", "a", "two dogs")

@hookimpl
def mmrl_rollout(run, prompts):
    '''Completions that depend on the prompt alone, as if each process had sampled what one process samples.'''
    groups = []
    for prompt in prompts:
        shift = prompt.sample["number"]
        answers = [WORDS[(shift + index * (1 + shift % 3)) % len(WORDS)] for index in range(run.stage.group_size)]
        demonstrated = [run.policy.demonstrate([prompt], [answer])[0].rollouts[0] for answer in answers]
        groups.append(RolloutGroup(prompt, [Rollout(shown.rows, shown.completion) for shown in demonstrated]))
    return groups
"""


@pytest.fixture(scope="module")
def task(tmp_path_factory, base_config, rewards_file):
    """A task file of an sft and a grpo stage; the environment variable that puts its plugin on the path."""
    folder = tmp_path_factory.mktemp("distributed")
    info = folder / "site" / "mmrl_probe_forced-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "site" / "probe_forced.py").write_text(PROBE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mmrl-probe-forced\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mmrl]\nprobe_forced = probe_forced\n")
    base = base_config("qwen2_vl")
    config = {
        **base,
        "plugins": ["probe_forced"],
        "rewards": [f"{rewards_file}:spread", {"name": f"{rewards_file}:raises", "weight": 0.0}],
        # A large eps: gradients that are zero but for rounding stay without influence on the weights.
        "optimizer": {"lr": 1e-3, "eps": 1e-3},
        "algorithm": {
            "advantage": ["group_mean", "whiten"],  # statistics over both processes
            "kl": {"coefficient": 0.1},
            "updates_per_rollout": 1,
            "epochs_per_rollout": 2,
        },
        "data": {**base["data"], "held_out": {**base["data"]["train"], "limit": 2}},
        "stages": [
            {"kind": "sft", "steps": 2, "prompts_per_step": 4, "micro_batch_rows": 1},
            {"kind": "grpo", "steps": 2, "prompts_per_step": 4, "group_size": 3, "micro_batch_rows": 3},
        ],
    }
    (folder / "task.yaml").write_text(json.dumps(config))
    return folder / "task.yaml"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def outputs(task, start_training):
    """Run folders: of one process, and of two."""
    folder = task.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder / "site")
        common = {"ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        ranks = [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"} for rank in (0, 1)]
        processes = [
            start_training(task, folder / "one", ACCELERATE_USE_CPU="true"),
            *(start_training(task, folder / "two", **rank) for rank in ranks),
        ]
        for process in processes:
            process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    return folder / "one", folder / "two"


def test_two_processes_log_the_same_numbers_once(outputs):
    one, two = (read_metrics(output) for output in outputs)
    assert [(r["kind"], r["step"]) for r in two] == [(r["kind"], r["step"]) for r in one]
    assert [r["step"] for r in two if r["kind"] == "step"] == [1, 2, 3, 4]
    for record, expected in zip(two, one, strict=True):
        assert record.keys() == expected.keys()
        for name, value in expected.items():
            if isinstance(value, float) and name not in NOT_COMPARED and not name.startswith(("time/", "memory/")):
                assert record[name] == pytest.approx(value, rel=2e-5, abs=2e-6), f"step {record['step']}: {name}"


def test_two_processes_learn_the_same_weights(outputs):
    one, two = (load_file(output / "checkpoints" / "step-4" / "model" / "model.safetensors") for output in outputs)
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
