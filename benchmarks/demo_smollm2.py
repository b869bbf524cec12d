"""What the demo with a real model learns, and what supervised training of equal time reaches on the same rows.

    OMP_NUM_THREADS=1 python benchmarks/demo_smollm2.py --seeds 0 1 2

For each seed: the demo as it ships; and from its cold-started checkpoint as many supervised steps on the answers of
the same training rows as take the processor time of its GRPO stage. `--passes` evaluates each with 8 samples a prompt
too. Prints a table. A run that was interrupted is resumed; what is done is not repeated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from runs import evaluation, train

TASK = "text_reasoning/demo_smollm2"
COLD_STEPS, SUPERVISED_STEPS = 16, 150
"""Of the demo's cold start, and what takes as long as its 80 steps of GRPO, each of which takes 1.9 supervised ones."""

SUPERVISED = (
    f"stages=[{{kind: sft, steps: {SUPERVISED_STEPS}, prompts_per_step: 16, "
    "optimizer: {lr: 3e-4, warmup_steps: 3, schedule: linear, final_lr_ratio: 0.2}}]"
)
COLUMNS = {
    "greedy/right": "greedy",
    "greedy/right/2": "1 + 1 digits",
    "greedy/right/3": "1 + 2",
    "greedy/right/4": "2 + 2",
    "greedy/number": "a number",
    "t1/reward/right": "T=1",
    "t1/pass@8": "pass@8",
}


def row(seed: int, name: str, record: dict[str, Any]) -> str:
    """A Markdown table row; a dash where there is no such number."""
    cells = [f"{record[column]:.3f}" if column in record else "-" for column in COLUMNS]
    return "| " + " | ".join([str(seed), name, *cells]) + " |"


def passes(run: Path, step: int) -> dict[str, Any]:
    """Metrics of a checkpoint with 8 samples a prompt, measured once."""
    options = ["eval.samples=8", "eval.temperatures=[0,1]"]
    done = [json.loads(path.read_text()) for path in sorted(run.glob("eval/*.json"))]
    for result in done:
        if result["checkpoint"] == f"step-{step}" and result["overrides"] == options:
            return dict(result["metrics"])
    checkpoint = str(run / "checkpoints" / f"step-{step}")
    subprocess.run([sys.executable, "-m", "mmrl_core", "eval", TASK, "--checkpoint", checkpoint, *options], check=True)
    return passes(run, step)


def run_seed(seed: int, output: Path, *, with_passes: bool, with_supervised: bool) -> list[str]:
    """Rows of the table."""
    run = output / f"seed{seed}"
    records = train(TASK, run, [f"seed={seed}"])
    last = max(record["step"] for record in records if record["kind"] == "step")
    rows = [row(seed, "untrained", evaluation(records, "untrained"))]
    for name, label, step in (("cold start", "after sft", COLD_STEPS), ("GRPO", "after grpo", last)):
        rows.append(row(seed, name, passes(run, step) if with_passes else evaluation(records, label)))
    if with_supervised:
        start = [f"seed={seed}", "model.build=null", f"model.path={run / f'checkpoints/step-{COLD_STEPS}'}"]
        other = output / f"supervised{seed}"
        records = train(TASK, other, [*start, SUPERVISED])
        found = passes(other, SUPERVISED_STEPS) if with_passes else evaluation(records, "after sft")
        rows.append(row(seed, "supervised, equal time", found))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/demo_smollm2_table"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--passes", action="store_true", help="8 samples a prompt at temperature 1 too")
    parser.add_argument("--without-supervised", action="store_true")
    arguments = parser.parse_args()
    titles = ["seed", "model", *COLUMNS.values()]
    lines = ["| " + " | ".join(titles) + " |", "|" + " --- |" * len(titles)]
    for seed in arguments.seeds:
        supervised = not arguments.without_supervised
        lines += run_seed(seed, arguments.output, with_passes=arguments.passes, with_supervised=supervised)
    text = "\n".join(lines) + "\n"
    (arguments.output / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
