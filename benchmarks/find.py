"""FIND on the digits demo: what it gains, against searches at equal cost, and what it costs against DDPO.

    OMP_NUM_THREADS=1 python benchmarks/find.py --output runs/find_table --seeds 0 1 2

For each seed: FIND as the demo ships it, and DDPO (find/demo_ddpo), both through `mmrl train`; pictures from fresh
noise, the same for every model, scored by the reward and by a classifier that was not trained on; and searches over the
noise of each prompt with as many pictures as FIND made of it. Costs are samples through the denoiser. What is done is
not repeated when the script runs again. Writes results.json and table.md.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmrl_core.checkpoint import find_checkpoint
from mmrl_core.config import RunConfig, load_config
from mmrl_core.data import PromptSource
from mmrl_core.plugins import load_plugins
from mmrl_core.policy import Policy, make_policy
from mmrl_core.scoring import RewardRunner
from mmrl_core.starting_model import starting_model
from mmrl_core.support import written_aside
from mmrl_core.types import Prompt, Sampling
from mmrl_find.metrics import diversity, win_rate
from mmrl_find.policy import NoisePolicy, diffusion_prompt
from mmrl_find.search import SearchResult, best_of_n, cross_entropy, zero_order

from runs import train

TASK = "find/demo_digits"
DDPO = "find/demo_ddpo"
GUARD = "other_classifier"
"""The task's reward that is never trained on."""
SEARCHES: Mapping[str, Callable[..., SearchResult]] = {
    "best of n": best_of_n,
    "zero-order": zero_order,
    "cross-entropy": cross_entropy,
}
FRESH_SEED = 20_260_102
WINDOW = 5
"""Steps that a training reward is averaged over before it counts as reached."""
UPDATE_COST = 3.0
"""Forward passes that a forward and backward pass costs."""

Results = dict[str, Any]


class Scorer:
    """The task's rewards of pictures of one prompt."""

    def __init__(self, config: RunConfig) -> None:
        self._weights = {reward.key: reward.weight for reward in config.rewards if reward.weight}
        self._runner = RewardRunner(load_plugins(), config.rewards)

    def rewards(self, pictures: Sequence[Any], sample: Mapping[str, Any]) -> list[float]:
        """Weighted totals; NaN where unscored."""
        parts = {key: self._scores(key, pictures, sample) for key in self._weights}
        return [sum(weight * parts[key][n] for key, weight in self._weights.items()) for n in range(len(pictures))]

    def guard(self, pictures: Sequence[Any], sample: Mapping[str, Any]) -> list[float]:
        return self._scores(GUARD, pictures, sample)

    def _scores(self, key: str, pictures: Sequence[Any], sample: Mapping[str, Any]) -> list[float]:
        values = self._runner.score_samples(key, pictures, [sample] * len(pictures))
        return [math.nan if value is None else value for value in values]


def unique_prompts(config: RunConfig) -> list[Prompt]:
    """The texts that the run trains on, once each."""
    data = config.stages[0].data
    assert data.train is not None
    source = PromptSource(load_plugins(), data.train, config.stages[0].prompt, data, name="train")
    found: dict[str, Prompt] = {}
    for index in range(len(source)):
        prompt = source.prompt(index)
        if prompt is not None:
            found.setdefault(diffusion_prompt(prompt), prompt)
    return list(found.values())


def load_policy(config: RunConfig, weights: Path | None = None) -> Policy:
    """The policy of a config as it starts, or with the weights of a checkpoint."""
    plugins = load_plugins()
    policy = make_policy(config, plugins.registry, path=starting_model(config, plugins.registry), device="cpu")
    if weights is not None:
        policy.load(weights)
    return policy


def fresh_pictures(policy: Policy, prompts: Sequence[Prompt], scorer: Scorer, num_images: int) -> list[Results]:
    """Of each prompt, from noise that only depends on its id: rewards and guard of each picture, and diversity."""
    found = []
    for group in policy.rollout(prompts, num_images, Sampling(seed=FRESH_SEED)):
        pictures, sample = [rollout.completion for rollout in group.rollouts], group.prompt.sample
        values = {"rewards": scorer.rewards(pictures, sample), "guard": scorer.guard(pictures, sample)}
        spread = diversity(pictures, [{"prompt": group.prompt.id}] * len(pictures))["diversity"]
        found.append({"prompt": diffusion_prompt(group.prompt), **values, "diversity": spread})
    return found


def run_searches(
    config: RunConfig, prompts: Sequence[Prompt], scorer: Scorer, *, budget: int, num_images: int, seed: int
) -> dict[str, list[Results]]:
    """Each search on each prompt: its best picture, its course, and fresh pictures of the Gaussian if it has one."""
    policy = load_policy(config)
    assert isinstance(policy, NoisePolicy)  # TASK is trained by it
    pipeline = policy.pipeline
    found: dict[str, list[Results]] = {name: [] for name in SEARCHES}
    for prompt in prompts:
        text = diffusion_prompt(prompt)

        def score(generated: Sequence[Any], text: str, sample: Mapping[str, Any] = prompt.sample) -> list[float]:
            return scorer.rewards([image.output for image in generated], sample)

        for name, search in SEARCHES.items():
            pipeline.counters.clear()
            result = search(
                pipeline.generate, score, text, pipeline.latent_shape, budget=budget, seed=seed, batch_size=16
            )
            evals = pipeline.counters["denoiser_evals"]
            (best,) = pipeline.generate(result.latent[None], [text], [result.seed])
            values: Results = {"prompt": text, "reward": result.reward, "history": result.history}
            values |= {"guard": scorer.guard([best.output], prompt.sample)[0], "denoiser_evals": evals}
            if result.mean is not None and result.std is not None:
                values["fresh"] = _pictures_of(result.mean, result.std, pipeline, prompt, scorer, num_images)
            found[name].append(values)
    return found


def _pictures_of(mean: Tensor, std: Tensor, pipeline: Any, prompt: Prompt, scorer: Scorer, num_images: int) -> Results:
    text = diffusion_prompt(prompt)
    noise = torch.randn(num_images, *mean.shape, generator=torch.Generator().manual_seed(FRESH_SEED))
    pictures = [image.output for image in pipeline.generate(mean + std * noise, [text] * num_images, range(num_images))]
    values = {"rewards": scorer.rewards(pictures, prompt.sample), "guard": scorer.guard(pictures, prompt.sample)}
    return {"prompt": text, **values, "diversity": diversity(pictures, [{"prompt": text}] * num_images)["diversity"]}


def costs(records: Sequence[Mapping[str, Any]], update_cost: float = 1.0) -> list[float]:
    """Samples through the denoiser up to each step; one of an update counts `update_cost`."""
    total, found = 0.0, []
    for record in steps_of(records):
        total += record.get("count/denoiser_evals", 0.0)
        total += update_cost * record.get("count/denoiser_update_evals", 0.0)
        found.append(total)
    return found


def steps_of(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [record for record in records if record["kind"] == "step"]


def step_reaching(records: Sequence[Mapping[str, Any]], target: float) -> int | None:
    """Index of the first step at which the reward of the last WINDOW steps is on average the target; None if none."""
    rewards = [record["reward/total"] for record in steps_of(records)]
    for end in range(WINDOW, len(rewards) + 1):
        if statistics.fmean(rewards[end - WINDOW : end]) >= target:
            return end - 1
    return None


def cost_to_reach(records: Sequence[Mapping[str, Any]], target: float) -> Results | None:
    """Cost and seconds until a reward is reached; None if it never is."""
    step = step_reaching(records, target)
    if step is None:
        return None
    return {
        "steps": step + 1,
        "evals": costs(records)[step],
        "forward_equivalents": costs(records, UPDATE_COST)[step],
        "seconds": steps_of(records)[step]["elapsed_s"],
    }


def run_seed(seed: int, arguments: argparse.Namespace) -> Results:
    """Everything that is measured with a seed; pictures and searches are kept in files of their own."""
    output, overrides = arguments.output, [f"seed={seed}"]
    records = {
        "find": train(TASK, output / f"find{seed}", [*overrides, *arguments.find]),
        "ddpo": train(DDPO, output / f"ddpo{seed}", [*overrides, *arguments.ddpo]),
    }
    configs = {name: load_config(str(output / f"{name}{seed}" / "config.yaml")) for name in records}
    scorer, prompts = Scorer(configs["find"]), unique_prompts(configs["find"])

    def fresh(name: str, trained: bool) -> list[Results]:
        weights = find_checkpoint(output / f"{name}{seed}") / "model" if trained else None
        return fresh_pictures(load_policy(configs[name], weights), prompts, scorer, arguments.images)

    pictures = {
        label: kept(output / f"{label.replace(' ', '_')}{seed}.json", partial(fresh, name, trained))
        for label, name, trained in (
            ("frozen pipeline", "find", False),
            ("FIND", "find", True),
            ("frozen pipeline with steps of DDPO", "ddpo", False),
            ("DDPO", "ddpo", True),
        )
    }
    budget = int(sum(record["count/images"] for record in steps_of(records["find"]))) // len(prompts)
    searches = kept(
        output / f"searches{seed}.json",
        lambda: run_searches(configs["find"], prompts, scorer, budget=budget, num_images=arguments.images, seed=seed),
    )
    pictures["cross-entropy"] = [values["fresh"] for values in searches["cross-entropy"]]
    return {
        "seed": seed,
        "pictures": pictures,
        "searches": searches,
        "pictures_made_of_a_prompt": budget,
        "cost": {name: {"evals": costs(r)[-1], "seconds": steps_of(r)[-1]["elapsed_s"]} for name, r in records.items()},
        "reached": {
            str(target): {name: cost_to_reach(values, target) for name, values in records.items()}
            for target in arguments.targets
        },
    }


def kept(path: Path, measure: Callable[[], Any]) -> Any:
    """What is measured, or what was when the file was written."""
    if not path.is_file():
        with written_aside(path) as aside:
            aside.write_text(json.dumps(measure()))
    return json.loads(path.read_text())


# Tables


def mean(values: Sequence[float]) -> float:
    """Of the numbers among them."""
    numbers = [value for value in values if not math.isnan(value)]
    return statistics.fmean(numbers) if numbers else math.nan


def fresh_table(results: Sequence[Results]) -> list[str]:
    """Pictures of fresh noise, means over prompts and pictures; win rate: against the frozen pipeline on that noise."""
    lines = ["| seed | model | reward | guard | diversity | win rate |", "| --- " * 6 + "|"]
    for result in results:
        for label, groups in result["pictures"].items():
            base = result["pictures"]["frozen pipeline" + (" with steps of DDPO" if "DDPO" in label else "")]
            wins = "-"
            if groups is not base and label != "cross-entropy":  # whose noise is another
                rates = [win_rate(a["rewards"], b["rewards"]) for a, b in zip(groups, base, strict=True)]
                wins = f"{mean(rates):.2f}"
            cells = [mean([mean(group[name]) for group in groups]) for name in ("rewards", "guard")]
            cells.append(mean([group["diversity"] for group in groups]))
            shown = " | ".join(f"{cell:.3f}" for cell in cells)
            lines.append(f"| {result['seed']} | {label} | {shown} | {wins} |")
    return lines


def search_table(results: Sequence[Results]) -> list[str]:
    """The best picture of each prompt, mean over prompts, and what it cost."""
    lines = ["| seed | method | best reward | its guard | denoiser evaluations a prompt |", "| --- " * 5 + "|"]
    for result in results:
        for name, found in result["searches"].items():
            best, guard = mean([values["reward"] for values in found]), mean([values["guard"] for values in found])
            evals = mean([values["denoiser_evals"] for values in found])
            lines.append(f"| {result['seed']} | {name} | {best:.3f} | {guard:.3f} | {evals:.0f} |")
        groups = result["pictures"]["FIND"]
        picks = [max(zip(g["rewards"], g["guard"], strict=True), key=lambda pair: pair[0]) for g in groups]
        best, guard = mean([reward for reward, _ in picks]), mean([guard for _, guard in picks])
        count = len(groups[0]["rewards"])
        evals = result["cost"]["find"]["evals"] / len(groups) * (1 + count / result["pictures_made_of_a_prompt"])
        lines.append(f"| {result['seed']} | FIND, best of {count} fresh | {best:.3f} | {guard:.3f} | {evals:.0f} |")
    return lines


def cost_table(results: Sequence[Results], targets: Sequence[float]) -> list[str]:
    """What a reward costs FIND and DDPO; the ratio is DDPO's cost in units of FIND's."""
    head = ["reward", "seed", "FIND", "DDPO", "ratio", f"ratio, an update as {UPDATE_COST:g} passes", "seconds"]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for target in targets:
        for result in results:
            find, ddpo = (result["reached"][str(target)][name] for name in ("find", "ddpo"))
            cells = [
                f"{target:g}",
                str(result["seed"]),
                *(f"{it['evals']:.0f}" if it else "not" for it in (find, ddpo)),
            ]
            if find and ddpo:
                cells += [f"{ddpo[name] / find[name]:.1f}" for name in ("evals", "forward_equivalents")]
            elif find:
                cells += [f"> {result['cost']['ddpo']['evals'] / find['evals']:.1f}", "-"]
            else:
                cells += ["-", "-"]
            cells.append(" / ".join(f"{it['seconds']:.0f}" if it else "-" for it in (find, ddpo)))
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/find_table"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=100, help="fresh pictures of each prompt")
    parser.add_argument("--targets", type=float, nargs="+", default=[0.6, 0.7, 0.8], help="rewards to reach")
    parser.add_argument("--find", nargs="*", default=[], help="overrides of FIND's config")
    parser.add_argument("--ddpo", nargs="*", default=[], help="overrides of DDPO's config")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    results = [run_seed(seed, arguments) for seed in arguments.seeds]
    (arguments.output / "results.json").write_text(json.dumps(results, indent=1))
    tables = [fresh_table(results), search_table(results), cost_table(results, arguments.targets)]
    text = "\n\n".join("\n".join(table) for table in tables) + "\n"
    (arguments.output / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
