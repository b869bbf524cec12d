"""Benchmarks still fit the trainer that they measure."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_the_benchmark_of_a_step_measures_the_steps_it_ran(tmp_path: Path) -> None:
    size = ["--image-size=56", "--group=2", "--completion=2", "--prompts=1", "--warmup=1", "--steps=2", "--beta=0.04"]
    command = [
        sys.executable,
        str(BENCHMARKS / "step.py"),
        "--engine",
        "mmrl",
        "--model",
        str(tmp_path / "model"),
        *size,
    ]

    done = subprocess.run(command, capture_output=True, text=True, timeout=300)

    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert len(result["seconds"]) == 2 and all(seconds > 0 for seconds in result["seconds"])
    assert result["completion_tokens"] == 2 * 2
    assert result["counters"]["media_encodes"] == 3  # rollout, reference, update
    for phase in ("generation", "reference", "update"):
        assert all(seconds > 0 for seconds in result["phases"][phase])


def test_the_benchmark_of_families_trains_by_the_command_line(tmp_path: Path) -> None:
    short = [
        "stages.0.steps=2",
        "stages.1.steps=2",
        "stages.1.prompts_per_step=2",
        "eval.limit=2",
        "data.train.limit=8",
    ]
    command = [sys.executable, str(BENCHMARKS / "families_learn.py"), "--output", str(tmp_path)]

    done = subprocess.run(
        [*command, "--kinds", "lfm2_vl", "--seeds", "3", "--set", *short], capture_output=True, text=True, timeout=300
    )

    assert done.returncode == 0, done.stderr[-2000:]
    assert "| `lfm2_vl` | layers of convolutions | 3 | 0.000 | 0.000 |" in done.stdout.splitlines()[-1]
