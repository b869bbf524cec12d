"""What the video tool demo learns: with its tool and without it; and GRPO weighted by difficulty against plain GRPO.

    OMP_NUM_THREADS=1 python benchmarks/demo_tools.py --output runs/demo_tools_table --seeds 0 1 2

For each seed: the demo as it ships; the same model, cold-started and trained for as many steps without the tool; and
from the demo's cold-started checkpoint, on mostly easy questions, GRPO with advantages weighted by difficulty (DGRPO)
and without the weights. A run that was interrupted is resumed; one that is done is not repeated.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from runs import evaluation, step_seconds, train

TASK = "vital/demo_tools"
MIXTURE = Path(__file__).parent / "demo_tools_mixture.yaml"
WITHOUT = Path(__file__).parent / "demo_tools_without.yaml"
COLUMNS = {
    "greedy/reward/total": "reward",
    "greedy/accuracy": "accuracy",
    "greedy/accuracy/hard": "hard",
    "greedy/accuracy/easy": "easy",
    "t1/reward/total": "reward T=1",
    "t1/accuracy": "accuracy T=1",
    "greedy/outcome/valid_tool_calls": "calls",
}
GROUP_RELATIVE = "{name: group_relative, eps: 0.05}"


def row(seed: int, name: str, record: dict[str, Any]) -> str:
    """A Markdown table row; a dash where a run has no such number."""
    cells = [f"{record[column]:.3f}" if column in record else "-" for column in COLUMNS]
    return "| " + " | ".join([str(seed), name, *cells]) + " |"


def run_seed(seed: int, output: Path, arms: list[str]) -> tuple[list[str], list[str]]:
    """Rows of the table with and without the tool, and of the table of the mixture."""
    tools, mixture = [], []
    records = train(TASK, output / f"tools{seed}", [f"seed={seed}"])
    tools.append(row(seed, "with the tool, cold start", evaluation(records, "after sft")))
    tools.append(row(seed, "with the tool, GRPO", evaluation(records, "after grpo")))
    cold = output / f"tools{seed}" / "checkpoints" / f"step-{len(step_seconds(records, 'sft'))}" / "model"
    if "without" in arms:
        records = train(str(WITHOUT), output / f"without{seed}", [f"seed={seed}"])
        tools.append(row(seed, "without it, cold start", evaluation(records, "after sft")))
        tools.append(row(seed, "without it, GRPO", evaluation(records, "after grpo")))
    if "mixture" in arms:
        for name, stages in (("GRPO", [GROUP_RELATIVE]), ("DGRPO", [GROUP_RELATIVE, "vital/difficulty"])):
            settings = [f"seed={seed}", f"model.path={cold}"]
            settings.append(f"stages.grpo.algorithm.advantage=[{', '.join(stages)}]")
            records = train(str(MIXTURE), output / f"{name.lower()}{seed}", settings)
            if name == "GRPO":
                mixture.append(row(seed, "cold start", evaluation(records, "untrained")))
            mixture.append(row(seed, name, evaluation(records, "after grpo")))
    return tools, mixture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/demo_tools_table"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="*", choices=("without", "mixture"), default=["without", "mixture"])
    arguments = parser.parse_args()
    head = "| seed | model | " + " | ".join(COLUMNS.values()) + " |\n" + "| --- " * (2 + len(COLUMNS)) + "|"
    tables: tuple[list[str], list[str]] = [head], [head]
    for seed in arguments.seeds:
        for table, rows in zip(tables, run_seed(seed, arguments.output, arguments.arms), strict=True):
            table += rows
    text = "\n\n".join("\n".join(table) for table in tables) + "\n"
    (arguments.output / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
