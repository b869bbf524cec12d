"""Few labelled scenes: reinforcement against supervised fine-tuning on the same scenes (Visual-RFT's claim, small).

    python benchmarks/few_labels.py --table runs/demo_detection_table --output runs/few_labels

Starts from the cold-started models that `demo_detection.py` left in its output. For 1, 2, 4 and 16 scenes of each of
the five classes: GRPO for 40 steps with the exact reward, and supervised training on the exact labels for equal time
(or --steps, where the machine was too busy for its timings to mean much).
Both are evaluated along the way, supervised training also after 10 and 20 steps; the best evaluation is shown too,
which favours whichever overfits.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from runs import step_seconds, train

TASK = str(Path(__file__).parent / "few_labels.yaml")
NUM_CLASSES = 5
SCENES_PER_CLASS = (1, 2, 4, 16)
SCORE = "greedy/reward/score"
SUPERVISED = ("stages.0.kind=sft", "stages.0.optimizer.lr=1e-3", "stages.0.optimizer.weight_decay=0.01")


def scores(*runs: Sequence[dict[str, Any]]) -> tuple[float, float, float]:
    """Held-out score at the start, at the end of the last run, and the best of any run after its start."""
    values = [[record[SCORE] for record in records if record["kind"] == "eval"] for records in runs]
    return values[0][0], values[-1][-1], max(value for run in values for value in run[1:])


def run_pair(
    seed: int, scenes: int, table: Path, output: Path, steps: int | None
) -> dict[str, tuple[float, float, float]]:
    """Scores of GRPO and of supervised training on the same scenes."""
    model = cold_start(table / f"seed{seed}")
    settings = [f"seed={seed}", f"model.path={model}", f"data.train.num_rows={scenes * NUM_CLASSES}"]
    reinforced = train(TASK, output / f"seed{seed}-{scenes}-grpo", settings)
    probe = train(TASK, output / f"seed{seed}-{scenes}-probe", [*settings, *SUPERVISED, "stages.0.steps=20"])
    if steps is None:
        steps = round(sum(step_seconds(reinforced, "few")) / median(step_seconds(probe, "few")[5:]))
    every = max(1, steps // 4)
    lengths = [f"stages.0.steps={steps}", f"eval.every_steps={every}"]
    supervised = train(TASK, output / f"seed{seed}-{scenes}-sft", [*settings, *SUPERVISED, *lengths])
    return {"GRPO": scores(reinforced), f"supervised ({steps} steps)": scores(probe, supervised)}


def cold_start(run: Path) -> Path:
    """The model at the end of a demo run's first stage: its checkpoint points at the start of the second."""
    for checkpoint in (run / "checkpoints").glob("step-*"):
        state = json.loads((checkpoint / "state.json").read_text())
        if (state["stage"], state["stage_step"]) == (1, 0):
            return checkpoint / "model"
    raise SystemExit(f"{run} has no checkpoint of the cold start; run demo_detection.py first.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=Path("runs/demo_detection_table"))
    parser.add_argument("--output", type=Path, default=Path("runs/few_labels"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--scenes", type=int, nargs="+", default=list(SCENES_PER_CLASS), help="scenes of each class")
    parser.add_argument("--steps", type=int, help="supervised steps; default: as long as GRPO took")
    arguments = parser.parse_args()
    lines = [
        "| scenes a class | training | start | end | best | end, each seed |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for scenes in arguments.scenes:
        pairs = [run_pair(seed, scenes, arguments.table, arguments.output, arguments.steps) for seed in arguments.seeds]
        for arm, kind in enumerate(("GRPO", "supervised")):
            values = [list(pair.values())[arm] for pair in pairs]
            means = " | ".join(f"{mean(column):.3f}" for column in zip(*values, strict=True))
            each = ", ".join(f"{end:.3f}" for _, end, _ in values)
            lines.append(f"| {scenes} | {kind} | {means} | {each} |")
    table = "\n".join(lines)
    (arguments.output / "table.md").write_text(table + "\n")
    print(table)


if __name__ == "__main__":
    main()
