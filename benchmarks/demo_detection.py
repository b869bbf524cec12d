"""What the detection demo learns: cold start, GRPO, and supervised training of equal time, over seeds.

    python benchmarks/demo_detection.py --output runs/demo_detection_table --seeds 0 1 2

For each seed: the demo as it ships; then, from its cold-started checkpoint, supervised training continued on the same
loose labels, and on exact labels, each for as many steps as fit into the time GRPO took (or --steps, where the machine
was too busy for its timings to mean much). A run that was interrupted is resumed; one that is done is not repeated.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median

from runs import evaluation, step_seconds, table_head, table_row, train

TASK = "visual_rft/demo_detection"
CONTINUED = Path(__file__).parent / "demo_detection_continued.yaml"


def run_seed(seed: int, output: Path, steps: int | None) -> list[str]:
    """Table rows of one seed; `steps` of supervised training, None for as many as fit."""
    records = train(TASK, output / f"seed{seed}", [f"seed={seed}"])
    cold_steps = len(step_seconds(records, "sft"))
    if steps is None:
        # The second half of the cold start: by then every picture's features are cached, as they are for GRPO.
        sft_seconds = median(step_seconds(records, "sft")[cold_steps // 2 :])
        steps = round(sum(step_seconds(records, "grpo")) / sft_seconds)
    cold = output / f"seed{seed}" / "checkpoints" / f"step-{cold_steps}" / "model"
    rows = [
        table_row(str(seed), name, record=evaluation(records, label))
        for name, label in (("untrained", "untrained"), ("cold start", "after sft"), ("GRPO", "after grpo"))
    ]
    for name, column in (("same loose labels", "loose_solution"), ("exact labels", "grid_solution")):
        settings = [f"seed={seed}", f"model.path={cold}", f"stages.0.steps={steps}"]
        settings.append(f"stages.0.target=<think></think>{{{column}}}")
        continued = train(str(CONTINUED), output / f"seed{seed}-{column}", settings)
        title = f"supervised, {name}, {steps} steps"
        rows.append(table_row(str(seed), title, record=evaluation(continued, "after continued")))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/demo_detection_table"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="supervised steps; default: as long as GRPO took")
    arguments = parser.parse_args()
    rows = [row for seed in arguments.seeds for row in run_seed(seed, arguments.output, arguments.steps)]
    table = "\n".join([table_head("seed", "model"), *rows])
    (arguments.output / "table.md").write_text(table + "\n")
    print(table)


if __name__ == "__main__":
    main()
