"""Two processes with gloo do what one process does with the same global batch, and end together."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmrl_core.runs import read_metrics
from tests.ranks import joined

NOT_COMPARED = ("seconds", "elapsed_s", "count/media_encodes", "advantage/abs_mean", "truncated/tokens")
"""Times; work that depends on who has seen a picture before; and means over tokens, of which the processes have unequal
numbers: what is logged is the mean of their means."""

MEANS_OF_SCORED = ("reward/raises", "reward/hangs")  # of which the processes have unequal numbers too
TIMES = ("time/", "memory/")


@pytest.fixture(scope="module")
def folder(ranks_folder):
    return ranks_folder


@pytest.fixture(scope="module")
def outputs(folder, base_config, start_training, start_ranks):
    """Run folders of one process, and of two, that imitate, answer once, and talk with an environment."""
    base = base_config("qwen2_vl")
    unscored = [{"name": f"{folder}/ranks.py:{name}", "weight": 0.0, "timeout_s": 0.3} for name in ("raises", "hangs")]
    grpo = {"kind": "grpo", "steps": 2, "prompts_per_step": 4, "group_size": 3, "micro_batch_rows": 3}
    config = {
        **base,
        "plugins": ["probe_ranks"],
        "rewards": [f"{folder}/ranks.py:spread", *unscored],
        # A large eps: gradients that are zero but for rounding stay without influence on the weights.
        "optimizer": {"lr": 1e-3, "eps": 1e-3},
        "algorithm": {
            "advantage": ["group_mean", "whiten"],  # statistics over both processes
            "kl": {"coefficient": 0.1},
            "updates_per_rollout": 1,
            "epochs_per_rollout": 2,
        },
        "data": {**base["data"], "held_out": {**base["data"]["train"], "limit": 5}},
        "rollout": {**base["rollout"], "strategy": f"{folder}/ranks.py:noted"},
        "eval": {"temperatures": [0, 1], "batch_size": 2},
        "stages": [
            {"kind": "sft", "steps": 2, "prompts_per_step": 4, "micro_batch_rows": 1},
            grpo,
            {
                **grpo,
                "name": "talk",
                "rewards": [f"{folder}/ranks.py:spread", "environment", *unscored],
                "rollout": {"strategy": {"name": "multi_turn", "max_turns": 3}, "environment": "probe_ranks/echo"},
            },
            {  # a loss of scores, which compares the answers of a prompt
                **grpo,
                "name": "scores",
                "steps": 1,
                "algorithm": {"loss": {"name": "text_reasoning/drpo", "max_length": 6}},
            },
        ],
    }
    (folder / "task.yaml").write_text(json.dumps(config))
    one = start_training(folder / "task.yaml", folder / "one", ACCELERATE_USE_CPU="true")
    assert joined([one, *start_ranks(folder / "task.yaml", folder / "two")])[0] == [0, 0, 0]
    return folder / "one", folder / "two"


def test_two_processes_log_the_same_numbers_once(outputs):
    one, two = (read_metrics(output) for output in outputs)
    assert [(r["kind"], r["step"]) for r in two] == [(r["kind"], r["step"]) for r in one]
    steps = [record for record in one if record["kind"] == "step"]
    assert [record["step"] for record in steps] == [1, 2, 3, 4, 5, 6, 7]
    assert all(record["failures/raises"] and record["grad_norm"] > 1e-3 for record in steps[2:])
    assert any(record.get("failures/hangs") for record in steps)
    assert all(1 < record["outcome/num_turns"] <= 3 for record in steps[4:6])
    assert steps[6]["drpo_prompts"] > 0
    for record, expected in zip(two, one, strict=True):
        assert record.keys() == expected.keys()
        for name, value in expected.items():
            compared = isinstance(value, float) and name not in (*NOT_COMPARED, *MEANS_OF_SCORED)
            if compared and not name.startswith(TIMES):
                assert record[name] == pytest.approx(value, rel=2e-5, abs=2e-6), f"step {record['step']}: {name}"


def test_processes_share_the_batches_of_an_evaluation(outputs):
    """Five prompts, two to a batch, at each of two temperatures, before and after four stages."""
    lines = (outputs[0].parent / "sampled.txt").read_text().splitlines()
    alone, first, second = (
        [line.removeprefix(rank) for line in lines if line.startswith(rank) and "held_out" in line]
        for rank in ("None ", "0 ", "1 ")
    )
    assert sorted([*first, *second]) == sorted(alone) and len(alone) == 3 * 2 * 5
    assert set(first) == {f"{warmth} {batch}" for warmth in (0, 1) for batch in (ids(0, 1), ids(4))}
    assert set(second) == {f"{warmth} {ids(2, 3)}" for warmth in (0, 1)}
    answers = []
    for output in outputs:
        written = sorted(output.glob("rollouts/*answers*"))[-1].read_text().splitlines()
        answers.append([json.loads(line)["completion"] for line in written])
    assert answers[0] == answers[1] and len(answers[0]) == 5


def ids(*numbers):
    return [f"held_out:{number}" for number in numbers]


def test_two_processes_learn_the_same_weights(outputs):
    one, two = (load_file(output / "checkpoints" / "step-7" / "model" / "model.safetensors") for output in outputs)
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


# Failing and stopping


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


NUM_STEPS = 7
FAILING = ("raises_on_one", "hangs_on_one")
SENTENCE = (
    r"mmrl: process \d of 2 ends because another one has ended or does not answer \(.*onnection .*peer.*\): "
    r"what that one printed, or the launcher's list of failures, says why. Go on with --resume.\n"
)
LIMIT_S = 60
STOPS = [  # what happens, in which step, in which process; exit codes of both; the step that is saved then
    ("SIGTERM", 2, "all", [143, 143], 2),
    ("SIGTERM", 3, "evaluates", [143, 2], 3),  # the first process alone, which the second waits for
    ("raise", 5, "1", [2, 1], 4),
    ("SIGKILL", 6, "0", [-9, 2], None),  # who saves is dead
    ("SIGINT", 6, "1", [130, 130], 6),
]
LAUNCHERS = {
    "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--main_process_port={port}"],
    "torchrun": ["torch.distributed.run", "--nproc_per_node=2", "--master_port={port}"],
}
LAUNCHED = [("accelerate", "SIGTERM"), ("torchrun", "SIGKILL"), ("torchrun", "SIGINT"), ("accelerate", "SIGKILL")]


@pytest.fixture(scope="module")
def small(folder, base_config):
    """A task in whose every step one reward raises and one hangs, in the second process alone."""
    failing = [{"name": f"{folder}/ranks.py:{name}", "weight": 0.0, "timeout_s": 0.1} for name in FAILING]
    base = base_config("qwen2")
    config = {
        **base,
        "plugins": ["probe_ranks"],
        "data": {**base["data"], "held_out": {**base["data"]["train"], "limit": 1}},
        "eval": {"every_steps": 3},
        "rewards": [f"{folder}/ranks.py:spread", *failing],
        "stages": [{"kind": "grpo", "steps": NUM_STEPS, "prompts_per_step": 2, "group_size": 3}],
    }
    (folder / "small.yaml").write_text(json.dumps(config))
    return folder / "small.yaml"


@pytest.fixture(scope="module")
def never_stopped(small, folder, start_ranks):
    assert joined(start_ranks(small, folder / "whole"))[0] == [0, 0]
    return folder / "whole"


def assert_same_run(run, whole, without_times):
    records, expected = ([without_times(record) for record in read_metrics(path)] for path in (run, whole))
    assert records == expected
    file = f"checkpoints/step-{NUM_STEPS}/model/model.safetensors"
    assert (run / file).read_bytes() == (whole / file).read_bytes()


def test_a_reward_that_fails_or_hangs_in_one_process_is_counted_and_does_not_hang_the_other(never_stopped):
    records = read_metrics(never_stopped)
    steps = [record for record in records if record["kind"] == "step"]
    assert [[record[f"failures/{name}"] for name in FAILING] for record in steps] == [[3, 3]] * NUM_STEPS
    failures = {record["name"]: record["message"] for record in records if record["kind"] == "failure"}
    assert failures["raises_on_one"].startswith("raised ZeroDivisionError: division by zero (")
    assert failures["hangs_on_one"] == "took longer than 0.1 s"


def test_a_process_that_ends_ends_the_other_and_signals_to_one_stop_both(
    small, folder, never_stopped, start_ranks, without_times
):
    """All stops of the table, one after the other; then the run is finished, and is the one that nothing stopped."""
    output = folder / "stopped"
    for number, (what, step, rank, codes, saved) in enumerate(STOPS):
        plan = f"what={what} step={step} rank={rank}"
        found, seconds = joined(start_ranks(small, output, resume=number > 0, PROBE_PLAN=plan))
        assert found == codes and seconds < LIMIT_S, plan
        logs = [Path(f"{output}.{process}.log") for process in (0, 1)]
        printed = [log.read_text() for log in logs]
        for log in logs:
            log.unlink()
        tells = f"saved step {saved}; go on from it with --resume\n"
        assert [tells in text for text in printed] == [saved is not None, False], plan
        assert [len(re.findall(SENTENCE, text)) for text in printed] == [int(code == 2) for code in codes], plan
        if what == "raise":
            assert "ValueError: the probe has had enough" in printed[1]
            assert "because another one has ended" in read_metrics(output)[-1]["message"]
    assert joined(start_ranks(small, output, resume=True))[0] == [0, 0]
    assert_same_run(output, never_stopped, without_times)


def test_a_process_that_does_not_answer_ends_the_other_after_the_timeout(small, folder, start_ranks):
    task, output = folder / "impatient.yaml", folder / "unanswered"
    task.write_text(json.dumps({**json.loads(small.read_text()), "process_timeout_s": 8}))
    first, second = start_ranks(task, output, PROBE_PLAN="what=SIGSTOP step=2 rank=1")
    first.join(120)
    second.kill()
    second.join()
    printed = Path(f"{output}.0.log").read_text()
    assert first.exitcode == 2, printed
    assert "saved step 1; go on from it with --resume\n" in printed
    assert "because another one has ended or does not answer (Timed out waiting 8000ms" in printed


@pytest.mark.parametrize(("launcher", "what"), LAUNCHED if os.environ.get("MMRL_WHOLE_SWEEP") else LAUNCHED[:1])
def test_what_the_launcher_is_sent_reaches_all_and_what_one_process_meets_ends_the_launcher(
    launcher, what, small, folder, never_stopped, start_ranks, without_times
):
    """With the real launchers, which send SIGTERM to all when one has ended, and pass on what they are sent."""
    output = folder / f"{launcher}-{what}"
    module, *options = LAUNCHERS[launcher]
    plan = f"what={what} step=4 rank={'1' if what == 'SIGKILL' else 'launcher'} met={folder}/met"
    path = os.pathsep.join([str(folder / "site"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": path, "PROBE_PLAN": plan}
    command = [sys.executable, "-m", module, *(option.format(port=free_port()) for option in options)]
    done = subprocess.run(
        [*command, "-m", "mmrl_core", "train", str(small), "--output", str(output)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    met = float((folder / "met").read_text())
    assert time.time() - met < LIMIT_S
    assert done.returncode == 1, done.stderr  # whatever those of its processes are
    saved = 3 if what == "SIGKILL" else 4
    assert f"saved step {saved}; go on from it with --resume\n" in done.stdout, done.stdout + done.stderr
    assert len(re.findall(SENTENCE, done.stderr)) == (what == "SIGKILL"), done.stderr
    assert joined(start_ranks(small, output, resume=True))[0] == [0, 0]
    assert_same_run(output, never_stopped, without_times)
