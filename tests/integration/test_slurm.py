"""`launch/slurm.sh` with stand-ins for Slurm's own commands: two nodes of one process each, on this machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmrl_core.runs import read_metrics

SCRIPT = Path(__file__).parents[2] / "launch" / "slurm.sh"
STAND_INS = {
    "srun": """
        while [[ $1 == --* ]]; do shift; done
        for ((node = 0; node < SLURM_NNODES; node++)); do SLURM_NODEID=$node "$@" & echo $! >>"$HERE/tasks"; done
        trap 'kill -KILL $(<"$HERE/tasks"); exit 137' TERM  # as srun, which kills what it is to end
        code=0
        for task in $(<"$HERE/tasks"); do wait "$task" || code=$?; done
        rm "$HERE/tasks"
        exit "$code"
    """,
    "scontrol": """
        if [[ $1 == requeue ]]; then echo "$2" >>"$HERE/requeued"; else echo localhost; fi
    """,
    "scancel": """
        kill "-${1#--signal=}" $(<"$HERE/tasks")
    """,
}
REWARD = """
import time
from pathlib import Path

def slow(completions, samples):
    with open(Path(__file__).with_name("scored"), "a") as file:
        file.write("x")
    time.sleep(0.3)
    return [sum(map(ord, completion)) % 7 / 7 for completion in completions]
"""


@pytest.fixture
def job(tmp_path, base_config):
    """`job()` -> the script, started as Slurm would start it."""
    for name, text in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "reward.py").write_text(REWARD)
    stage = {"kind": "grpo", "steps": 6, "prompts_per_step": 2, "group_size": 2}
    task = {**base_config("qwen2"), "rewards": [f"{tmp_path}/reward.py:slow"], "stages": [stage], "sharding": {}}
    (tmp_path / "task.yaml").write_text(json.dumps(task))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HERE": str(tmp_path),
        "SLURM_JOB_ID": "17",
        "SLURM_JOB_NODELIST": "nodes[1-2]",
        "SLURM_NNODES": "2",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }
    jobs = []

    def started():
        command = ["bash", str(SCRIPT), str(tmp_path / "task.yaml"), str(tmp_path / "run"), "seed=5"]
        with open(tmp_path / "log", "a") as log:
            jobs.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True))
        return jobs[-1]

    yield started
    for process in jobs:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def test_a_job_is_saved_and_queued_again_before_its_time_is_up_and_then_goes_on(job, tmp_path):
    first = job()
    limit = time.monotonic() + 120
    while time.monotonic() < limit and not (tmp_path / "scored").exists():
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    log = tmp_path / "log"
    assert first.wait(60) == 0, log.read_text()
    assert (tmp_path / "requeued").read_text() == "17\n", log.read_text()
    done = [record["step"] for record in read_metrics(tmp_path / "run") if record["kind"] == "step"]
    assert 0 < len(done) < 6, log.read_text()
    assert (tmp_path / "run" / "checkpoints" / f"step-{done[-1]}").is_dir()

    assert job().wait(120) == 0, log.read_text()
    records = [record for record in read_metrics(tmp_path / "run") if record["kind"] == "step"]
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert (tmp_path / "requeued").read_text() == "17\n"
    starts = [json.loads(line) for line in (tmp_path / "run" / "starts.jsonl").read_text().splitlines()]
    assert [("--resume" in start["command"], start["num_processes"]) for start in starts] == [(False, 2), (True, 2)]


def test_a_job_that_fails_is_not_queued_again(job, tmp_path):
    (tmp_path / "torchrun").write_text("#!/bin/bash\nexit 3\n")
    (tmp_path / "torchrun").chmod(0o755)
    assert job().wait(30) == 3
    assert not (tmp_path / "requeued").exists()
