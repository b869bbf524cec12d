"""Benchmarks still fit the trainer that they measure."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mmrl_core.cli import main
from mmrl_core.runs import read_metrics

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


@pytest.fixture
def methods(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/methods.py, whose runs take place in this process."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("methods")
    trained = []

    def train(task: str, output: Path, overrides: Sequence[str] = ()) -> list[dict[str, Any]]:
        trained.append(output.name)
        assert main(["train", task, *overrides, "--output", str(output)]) == 0
        return read_metrics(output)

    monkeypatch.setattr(module, "train", train)
    monkeypatch.setattr(module, "TRAINED", trained, raising=False)
    return module


def test_the_benchmark_of_methods_trains_writes_its_table_and_repeats_nothing(
    methods: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MMRL_CACHE", str(tmp_path / "cache"))
    page, output = tmp_path / "page.md", tmp_path / "out"
    page.write_text(f"before\n{methods.BEGIN}\nold\n{methods.END}\nafter\n")
    short = ["data.held_out.num_rows=6", "data.held_out.length=[1, 1]", "data.train.length=[1, 1]"]
    cold = ["stages.sft.steps=30", "stages.sft.data.train.length=[1, 1]", "eval.temperatures=[0]", *short]
    command = ["methods.py", "--methods", "grpo,drpo", "--output", str(output), "--results", str(page)]
    command += ["--cold-start", *cold, "--set", "stages.grpo.steps=1", *short, "--seeds"]

    monkeypatch.setattr(sys, "argv", [*command, "0"])
    methods.main()

    assert methods.TRAINED == ["cold_start", "seed0", "seed0"]
    lines = page.read_text().splitlines()
    assert lines[0] == "before" and lines[-1] == "after" and "old" not in lines
    rows = {line.split("|")[1].strip(): line for line in lines if line.startswith("| `")}
    assert list(rows) == ["`grpo`", "`drpo`"] and all("needs more seeds" in row for row in rows.values())
    first, second = (json.loads(line) for line in (output / "runs.jsonl").read_text().splitlines())
    assert first["before"] == second["before"] and 0 < first["t1/pass@1"] < first["t1/pass@4"] <= 1
    assert first["sampled_tokens"] > 16 * 8 and first["seconds"] > 0

    # A run that is in the file is not trained again; another seed is.
    with (output / "runs.jsonl").open("a") as file:
        file.write(json.dumps({**second, "seed": 1}) + "\n")
    monkeypatch.setattr(sys, "argv", [*command[:2], "drpo", *command[3:], "0", "1"])
    methods.main()
    assert methods.TRAINED == ["cold_start", "seed0", "seed0"]
    assert f"{second['greedy/right']:.3f} ± 0.000" in capsys.readouterr().out


def test_a_verdict_needs_a_difference_beyond_two_standard_errors(methods: ModuleType) -> None:
    """Two samples of spread 0.01 x sqrt(2) and 2: twice the standard error of the difference is 0.0283."""
    near, at, far = [0.51, 0.53], [0.5, 0.52], [0.6, 0.62]
    table = [
        ("above", far, at, "reproduced"),
        ("above", near, at, "not seen"),
        ("above", at, far, "contradicted"),
        ("below", at, far, "reproduced"),
        ("below", far, at, "contradicted"),
        ("not below", at, near, "reproduced"),  # by 0.01, of which 0.05 may be lost
        ("not below", at, [0.54, 0.56], "not seen"),
        ("not below", at, far, "contradicted"),
        ("above", far, [0.5], "needs more seeds"),
    ]
    for relation, values, others, expected in table:
        assert methods.compared(relation, values, others) == expected, (relation, values, others)


def record(methods: ModuleType, name: str, greedy: float) -> dict[str, Any]:
    quantities = dict.fromkeys([*methods.QUANTITIES, "entropy", "sampled_tokens", "trained_tokens", "seconds"], 0.25)
    return {"method": name, "seed": 0, "before": quantities, **quantities, methods.GREEDY: greedy}


def test_a_table_keeps_the_rows_of_methods_that_were_not_asked_for(methods: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{methods.BEGIN}\n{methods.END}\nafter\n")

    methods.write_between_marks(page, [record(methods, "grpo", 0.5), record(methods, "sapo", 0.6)])
    first = page.read_text()
    methods.write_between_marks(page, [record(methods, "sapo", 0.7), record(methods, "drpo", 0.8)])

    rows = {line.split("`")[1]: line for line in page.read_text().splitlines() if line.startswith("| `")}
    assert list(rows) == ["grpo", "drpo", "sapo"]  # in the order of VARIANTS
    assert rows["grpo"] in first and "| 0.700 | 0.250 |" in rows["sapo"] and "| 0.800 |" in rows["drpo"]
    assert "kept from earlier commands" in page.read_text() and "kept" not in first
    page.write_text(page.read_text().replace("| entropy |", "| nats |"))
    with pytest.raises(SystemExit, match="other columns"):
        methods.write_between_marks(page, [record(methods, "sapo", 0.7)])
    with pytest.raises(SystemExit, match="has no lines"):
        methods.write_between_marks(BENCHMARKS / "README.md", [])


def test_methods_of_other_overrides_have_a_cold_start_of_their_own(
    methods: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, list[str]] = {}
    monkeypatch.setattr(methods, "train", lambda task, folder, overrides: asked.update({folder.name: overrides}))
    for name in ("grpo", "thinkless", "grpo_modes", "drpo"):
        variant = methods.VARIANTS[name]
        model = methods.cold_start(tmp_path, variant.cold_start, ["stages.sft.steps=5"])
        assert model.parts[-2:] == ("step-5", "model")
    plain, modes = asked.items()
    assert plain == ("cold_start", ["seed=0", "stages.grpo.steps=1", "stages.sft.steps=5"])
    assert modes[0].startswith("cold_start_") and "stages.sft.target='{two_modes}'" in modes[1]
    for name, variant in methods.VARIANTS.items():
        if any(relation != "rises" for _, relation in variant.parts):
            assert variant.cold_start == methods.VARIANTS[variant.against].cold_start, name
