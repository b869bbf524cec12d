"""What each method gives over GRPO on the proving ground, from one cold start, at equal budget, over seeds.

    OMP_NUM_THREADS=1 python benchmarks/methods.py --methods grpo,trpa,drpo,d3s --seeds 0 1 2 3 4

The cold start of `text_reasoning/demo_walks` is trained once, and once more for methods that need another. Each method
then trains from it with the same steps, prompts, group size and optimiser; a seed draws the order of the data and the
sampling. A run that is done has a line in `runs.jsonl` and is not repeated, an interrupted one goes on. The table is
written between two marks of `--results`; rows of methods that this command does not name stay there as they are.

A verdict compares means over seeds, with SE the standard error of their difference: "reproduced" if it is as claimed by
more than two SE, "contradicted" if it is the opposite by more than two SE, else "not seen". Where a method is only
claimed not to lose, it is reproduced if a loss of more than `MARGIN` is excluded by two SE, and contradicted if a loss
of as much is certain by two SE. A claim of several parts is reproduced if all are, contradicted if one is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

import yaml

from mmrl_core.config import load_config
from mmrl_core.support import written_aside

from runs import train

TASK = "text_reasoning/demo_walks"
BASELINE = "grpo"
MARGIN = 0.05
"""Share of right answers that a method may lose and still be called not worse."""

MORE_SEEDS = "needs more seeds"

BEGIN, END = "<!-- benchmarks/methods.py: begin -->", "<!-- benchmarks/methods.py: end -->"
GREEDY, PASS_1, PASS_4, LENGTH = "greedy/right", "t1/pass@1", "t1/pass@4", "greedy/steps_per_button"
RIGHT_LENGTH, THINK = "greedy/right_steps_per_button", "greedy/think"
QUANTITIES = (GREEDY, PASS_1, PASS_4, LENGTH, RIGHT_LENGTH, THINK)
NAMES = {GREEDY: "greedy", PASS_1: "pass@1", PASS_4: "pass@4", LENGTH: "steps a button", THINK: "long mode"}
NAMES[RIGHT_LENGTH] = "steps a button of right chains"
TITLES = ["method", "claim", "claimed quantity", "compared with", "verdict", "greedy", "pass@1", "pass@4"]
TITLES += ["steps a button", "entropy", "sampled tokens", "trained tokens", "seconds"]
BUDGET = {"kind": "grpo", "steps": 160, "prompts_per_step": 16, "group_size": 8}
OPTIMIZER = {"lr": 5e-4, "betas": [0.9, 0.98], "warmup_steps": 3, "schedule": "linear", "final_lr_ratio": 0.1}
STALE = {"steps": 40, "prompts_per_step": 64, "algorithm": {"updates_per_rollout": 4}}
"""As many prompts and updates, but four updates on what was sampled before the first of them."""

Relation = Literal["above", "below", "not below", "rises"]
Record = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """A method on the proving ground.

    Attributes:
        preset: under `configs/algorithm`.
        claim: what its source says, in a few words.
        parts: quantity and how it compares with the baseline's, or for "rises" with the cold start's.
        settings: overrides, which say what the proving ground needs; as few as can be.
        stage: keys of the stage that are not the common ones.
        cold_start: overrides of the cold start.
        against: the variant that is compared with, of the same cold start.
    """

    preset: str
    claim: str
    parts: tuple[tuple[str, Relation], ...] = ((GREEDY, "not below"),)
    settings: tuple[str, ...] = ()
    stage: Mapping[str, Any] | None = None
    cold_start: tuple[str, ...] = ()
    against: str = BASELINE


NO_KL = "algorithm.kl.coefficient=0"
# What is trained on, and beside it the share of right chains, which evaluations count.
COUNTED = "{name: text_reasoning/walk, label: right, weight: 0}"
PASSES = "eval.pass_reward=right"
COSINE = "{name: text_reasoning/cosine, weight: 2, reward: text_reasoning/walk, %s}"
OPEN_RS = "rewards=[{name: text_reasoning/walk_form, label: form}, %s, %s]"
TWO_MODES = ("stages.sft.target='{two_modes}'",)
MODES_PAID = (
    "rewards=[{name: text_reasoning/thinkless, label: thinkless, reward: text_reasoning/walk, short: s, think: t}, "
    f"{COUNTED}]",
    PASSES,
)
HUNDREDFOLD = "rewards=[{name: text_reasoning/walk, label: right, weight: 100}]"
VARIANTS = {
    # Without the KL penalty of its first publication, which most of the others do not have.
    "grpo": Variant("grpo", "the baseline", ((GREEDY, "rises"),), (NO_KL,)),
    "trpa": Variant(
        "trpa", "accuracy rises with rewards times 100", ((GREEDY, "rises"),), (HUNDREDFOLD, "algorithm.loss.best=100")
    ),
    "drpo": Variant(
        "drpo",
        "shorter at equal accuracy",
        ((LENGTH, "below"), (GREEDY, "not below")),
        ("algorithm.loss.max_length=32",),
    ),
    "d3s": Variant("d3s", "higher pass@1 on fewer trained tokens", ((PASS_1, "above"),)),
    # Drawing again until groups vary would sample more than the others.
    # Its preset has a KL penalty: each is compared with GRPO of as much penalty.
    "grpo_kl": Variant(
        "grpo", "the baseline of the next, KL penalty 0.1", ((GREEDY, "rises"),), ("algorithm.kl.coefficient=0.1",)
    ),
    "unlikeliness": Variant(
        "unlikeliness",
        "pass@k rises where GRPO sharpens",
        ((PASS_4, "above"),),
        ("algorithm.dynamic_sampling=null",),
        against="grpo_kl",
    ),
    "unlikeliness_no_kl": Variant(
        "unlikeliness",
        "the same, no KL penalty",
        ((PASS_4, "above"),),
        ("algorithm.dynamic_sampling=null", NO_KL),
    ),
    "rec_one_side": Variant("rec_one_side", "as good without importance weights"),
    "opmd": Variant("opmd", "as good without ratios"),
    "asymre": Variant("asymre", "as good, safer off-policy"),
    "red_drop": Variant("red_drop", "as good on fewer bad answers"),
    "red_weight": Variant("red_weight", "as good"),
    "sapo": Variant("sapo", "as good or better than hard clipping"),
    "no_mask_stale": Variant("opmd", "the baseline of the next, four updates a batch", ((GREEDY, "rises"),), (), STALE),
    "one_side_stale": Variant(
        "rec_one_side",
        "stable on stale rollouts where no mask falls",
        ((GREEDY, "above"),),
        (),
        STALE,
        against="no_mask_stale",
    ),
    # GRPO with other rewards: the documented ones, and those of the published code, 1000 characters in 3584 tokens,
    # which is 2.5 of 32 tokens of one character each.
    "open_rs": Variant(
        "grpo",
        "shorter right answers at equal accuracy",
        ((RIGHT_LENGTH, "below"), (GREEDY, "not below")),
        (NO_KL, OPEN_RS % (COSINE % "unit: tokens, max_length: 32", COUNTED), PASSES),
    ),
    "open_rs_code": Variant(
        "grpo",
        "the same, lengths and signs of its code",
        ((RIGHT_LENGTH, "below"), (GREEDY, "not below")),
        (NO_KL, OPEN_RS % (COSINE % "max_length: 2.5, clamp: false, wrong: [0.0, -0.5]", COUNTED), PASSES),
    ),
    "grpo_modes": Variant(
        "grpo", "the baseline of the next, two modes", ((GREEDY, "rises"),), (NO_KL,), cold_start=TWO_MODES
    ),
    "thinkless": Variant(
        "thinkless",
        "fewer long chains at equal accuracy",
        ((THINK, "below"), (GREEDY, "not below")),
        MODES_PAID,
        cold_start=TWO_MODES,
        against="grpo_modes",
    ),
    # The weight 0.001 was chosen for chains of about a hundred times as many tokens.
    "thinkless_alpha": Variant(
        "thinkless",
        "the same, alpha 0.1",
        ((THINK, "below"), (GREEDY, "not below")),
        (*MODES_PAID, "algorithm.loss.alpha=0.1"),
        cold_start=TWO_MODES,
        against="grpo_modes",
    ),
    "grpo_modes_paid": Variant(
        "grpo",
        "GRPO's loss with the reward of Thinkless",
        ((THINK, "below"), (GREEDY, "not below")),
        (NO_KL, *MODES_PAID),
        cold_start=TWO_MODES,
        against="grpo_modes",
    ),
}


def cold_start(output: Path, own: Sequence[str], settings: Sequence[str]) -> Path:
    """The model after the supervised stage; the stage after it is cut to the one step that a stage has at least.

    Args:
        output: gets a folder for each distinct set of overrides of variants.
        own: overrides of a variant.
        settings: overrides of the command.
    """
    overrides = ["seed=0", "stages.grpo.steps=1", *own, *settings]
    sft = load_config(TASK, overrides).stages[0]
    digest = hashlib.sha256(json.dumps(own).encode()).hexdigest()[:8]
    folder = output / (f"cold_start_{digest}" if own else "cold_start")
    train(TASK, folder, overrides)
    return folder / "checkpoints" / f"step-{sft.steps}" / "model"


def run_variant(name: str, seed: int, model: Path, output: Path, settings: Sequence[str]) -> Record:
    """Train a variant with a seed, or go on; returns its line."""
    variant = VARIANTS[name]
    folder = output / name
    folder.mkdir(parents=True, exist_ok=True)
    stage = {**BUDGET, **(variant.stage or {})}
    task = {
        "extends": [TASK, f"algorithm/{variant.preset}"],
        "name": f"walks_{name}",
        "model": {"build": None, "path": str(model.resolve())},
        "eval": {"samples": 4, "temperatures": [0, 1]},
        "stages": [{**stage, "optimizer": OPTIMIZER}],
    }
    (folder / "task.yaml").write_text(yaml.safe_dump(task, sort_keys=False))
    overrides = [*variant.settings, *settings, f"seed={seed}"]
    records = train(str(folder / "task.yaml"), folder / f"seed{seed}", overrides)
    steps = [record for record in records if record["kind"] == "step"]
    before, *_, after = [record for record in records if record["kind"] == "eval"]
    last = steps[-10:]
    return {
        **key_of(name, seed, settings),
        "before": {quantity: before[quantity] for quantity in QUANTITIES},
        **{quantity: after[quantity] for quantity in QUANTITIES},
        "entropy": mean(record["entropy"] for record in last),
        "sampled_tokens": sum(record["count/decode_tokens"] for record in steps),
        "trained_tokens": sum(record["count/update_tokens"] for record in steps),
        "seconds": sum(record["seconds"] for record in steps),
    }


def key_of(name: str, seed: int, settings: Sequence[str]) -> Record:
    """What a line stands for: a variant as it is defined now, and what the command changes."""
    definition = json.loads(json.dumps(asdict(VARIANTS[name])))
    for words in ("claim", "parts", "against"):
        del definition[words]
    return {"method": name, "seed": seed, "settings": list(settings), "budget": BUDGET, "definition": definition}


def finished(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def collect(arguments: argparse.Namespace, names: Sequence[str]) -> list[Record]:
    """All runs that are asked for, those that are done read from their file."""
    path, lock = arguments.output / "runs.jsonl", threading.Lock()
    known = finished(path)
    wanted = [(name, seed) for seed in arguments.seeds for name in names]
    keys = [key_of(name, seed, arguments.set) for name, seed in wanted]
    done = {index: record for index, key in enumerate(keys) for record in known if key.items() <= record.items()}
    missing = [index for index in range(len(wanted)) if index not in done]
    starts = {VARIANTS[wanted[index][0]].cold_start for index in missing}
    models = {own: cold_start(arguments.output, own, arguments.cold_start) for own in sorted(starts)}

    def run(index: int) -> None:
        name, seed = wanted[index]
        record = run_variant(name, seed, models[VARIANTS[name].cold_start], arguments.output, arguments.set)
        with lock:
            done[index] = record
            with path.open("a") as file:
                file.write(json.dumps(record) + "\n")

    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(run, missing))
    return [done[index] for index in range(len(wanted))]


def verdict(variant: Variant, runs: Sequence[Record], others: Sequence[Record]) -> str:
    """The rule of the module's text."""
    found = [compared(part[1], *samples(part, runs, others)) for part in variant.parts]
    for worst in (MORE_SEEDS, "contradicted", "not seen"):
        if worst in found:
            return worst
    return "reproduced"


def samples(
    part: tuple[str, Relation], runs: Sequence[Record], others: Sequence[Record]
) -> tuple[list[float], list[float]]:
    """The quantity of a part of a claim over seeds, and what it is compared with."""
    quantity, relation = part
    compared_with = [run["before"] for run in runs] if relation == "rises" else others
    return [run[quantity] for run in runs], [run[quantity] for run in compared_with]


def compared(relation: Relation, values: Sequence[float], others: Sequence[float]) -> str:
    """What two samples say of a relation.

    >>> compared("above", [0.6, 0.61], [0.5, 0.51]), compared("below", [0.6, 0.61], [0.5, 0.51])
    ('reproduced', 'contradicted')
    >>> compared("not below", [0.5, 0.52], [0.51, 0.53]), compared("above", [0.5, 0.52], [0.51, 0.53])
    ('reproduced', 'not seen')
    """
    if min(len(values), len(others)) < 2:
        return MORE_SEEDS
    difference = (mean(values) - mean(others)) * (-1 if relation == "below" else 1)
    twice = 2 * math.sqrt(stdev(values) ** 2 / len(values) + stdev(others) ** 2 / len(others))
    bound = -MARGIN if relation == "not below" else 0.0
    if difference - twice > bound:
        return "reproduced"
    return "contradicted" if difference + twice < bound else "not seen"


def with_spread(values: Sequence[float]) -> str:
    """Mean and standard deviation.

    >>> with_spread([0.5, 0.7]), with_spread([0.5])
    ('0.600 ± 0.141', '0.500')
    """
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{spread}"


def rows(records: Sequence[Record]) -> dict[str, str]:
    """A row of the table for each method that has records, by name."""
    by_name = {name: [record for record in records if record["method"] == name] for name in VARIANTS}
    made = {}
    for name, runs in by_name.items():
        if not runs:
            continue
        variant, others = VARIANTS[name], by_name[VARIANTS[name].against]
        claimed, against = [], []
        for quantity, relation in variant.parts:
            values, compared_with = samples((quantity, relation), runs, others)
            source = "cold start" if relation == "rises" else variant.against
            claimed.append(f"{NAMES[quantity]} {with_spread(values)}")
            against.append(f"{source} {with_spread(compared_with)}" if compared_with else "-")
        cells = [f"`{name}`", variant.claim, "; ".join(claimed), "; ".join(against), verdict(variant, runs, others)]
        cells += [with_spread([run[q] for run in runs]) for q in (GREEDY, PASS_1, PASS_4, LENGTH, "entropy")]
        cells += [f"{mean(run[q] for run in runs):.0f}" for q in ("sampled_tokens", "trained_tokens", "seconds")]
        made[name] = f"| {' | '.join(cells)} |"
    return made


def table(records: Sequence[Record], page: str = "") -> str:
    """Markdown: a row for each method, in the order of `VARIANTS`.

    Args:
        records: of the methods whose rows are made.
        page: a table of the same columns, whose rows of other methods are kept.

    Raises:
        SystemExit: the page has a table of other columns.
    """
    head = f"| {' | '.join(TITLES)} |"
    kept = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    if kept and head not in page.splitlines():
        raise SystemExit("the page has a table of other columns, so none of its rows can be kept: take it out first")
    made = rows(records)
    lines = [(kept | made)[name] for name in VARIANTS if name in kept or name in made]
    seeds = ", ".join(str(seed) for seed in sorted({record["seed"] for record in records}))
    note = f"Seeds {seeds}; mean ± standard deviation over them."
    if kept.keys() - made.keys():
        note += " Some rows are kept from earlier commands."
    return "\n".join([head, "|" + " --- |" * len(TITLES), *lines, "", note])


def write_between_marks(path: Path, records: Sequence[Record]) -> None:
    """Write the table into a page, where rows of other methods stay.

    Raises:
        SystemExit: the page lacks the marks, or has a table of other columns.
    """
    page = path.read_text(encoding="utf-8")
    if BEGIN not in page or END not in page:
        raise SystemExit(f"{path} has no lines {BEGIN!r} and {END!r} for the table")
    before, _, rest = page.partition(BEGIN)
    old, _, after = rest.partition(END)
    with written_aside(path) as aside:
        aside.write_text(f"{before}{BEGIN}\n\n{table(records, old)}\n\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(VARIANTS), help="names, separated by commas")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--output", type=Path, default=Path("runs/methods"))
    parser.add_argument("--results", type=Path, help="page that the table is written to, such as docs/results.md")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides of every method's run")
    parser.add_argument("--cold-start", nargs="+", default=[], metavar="KEY=VALUE", help="overrides of the cold start")
    arguments = parser.parse_args()
    names = [name.strip() for name in arguments.methods.split(",")]
    if unknown := [name for name in names if name not in VARIANTS]:
        parser.error(f"no method {unknown[0]!r}; methods: {', '.join(VARIANTS)}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    records = collect(arguments, names)
    print(table(records))
    if arguments.results is not None:
        write_between_marks(arguments.results, records)


if __name__ == "__main__":
    main()
