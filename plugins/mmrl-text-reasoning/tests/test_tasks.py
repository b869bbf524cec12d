"""Task definitions and recipes."""

from pathlib import Path

import pytest

from mmrl_core.config import check_components, load_config
from mmrl_core.plugins import load_plugins

RECIPES = Path(__file__).parents[3] / "tasks" / "text_reasoning"


@pytest.mark.parametrize("task", ["gsm8k", "math", "open_rs", "countdown", "own"])
def test_training_and_evaluation_ask_for_the_same_form(task):
    data = load_config(f"text_reasoning/{task}").data
    assert data.train.options["form"] == data.held_out.options["form"]


def test_the_recipe_of_open_rs_holds_the_published_settings():
    config = load_config(str(RECIPES / "paper_open_rs.yaml"))
    (stage,) = config.stages
    assert config.model.path == "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"
    assert (stage.kind, stage.steps, stage.group_size) == ("grpo", 500, 6)
    assert (stage.rollout.max_tokens, stage.rollout.temperature) == (3584, 0.7)
    optimizer = stage.optimizer
    assert (optimizer.lr, optimizer.schedule, optimizer.final_lr_ratio) == (1e-6, "cosine", 0.1)
    assert optimizer.warmup_steps == 0.1 * stage.steps
    rewards = [(reward.name, reward.weight) for reward in stage.rewards]
    assert rewards == [("text_reasoning/format", 1.0), ("text_reasoning/cosine", 2.0)]
    assert stage.rewards[1].options == {"max_length": 1000, "clamp": False, "wrong": [0.0, -0.5]}


# lr, prompts in an update, updates of a batch, group, tokens, temperature, loss and some of its options.
PUBLISHED = {
    "drpo": (2e-6, 32, 4, 8, 8192, 0.6, "drpo", {"length_temperature": 0.1, "temperature": 10, "kl_weight": 1000}),
    "trpa": (4e-7, 4, 1, 16, 4096, 1.0, "trpa", {"beta": 0.1, "kappa": 2.5, "best": 0.0}),
    "thinkless": (1e-6, 64, 2, 8, 24000, 0.6, "degrpo", {"alpha": 0.001}),
    "unlikeliness": (1e-6, 8, 1, 32, 2048, 1.0, None, {}),
    "rec": (1e-6, 32, 20, 8, 1024, 1.0, "rec", {"mask": "one_side", "clip_high": 0.2}),
    "scaf_grpo": (1e-6, 64, 4, 8, 2048, 1.0, None, {}),
    "d3s": (1e-6, 128, 1, 8, 3072, 1.0, None, {}),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_of_methods_hold_the_published_settings(name):
    path = RECIPES / f"paper_{name}.yaml"
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for mark in ("# Source: arXiv:", "# Published", "# Differences: ", "# Unverified: "):
        assert any(line.startswith(mark) for line in header), mark
    config = load_config(str(path))
    check_components(config, load_plugins())
    (stage,) = config.stages
    rate, prompts, updates, group, tokens, temperature, loss, options = PUBLISHED[name]
    algorithm = stage.algorithm
    assert stage.optimizer.lr == rate and stage.group_size == group
    assert (stage.prompts_per_step / algorithm.updates_per_rollout, algorithm.updates_per_rollout) == (prompts, updates)
    assert (stage.rollout.max_tokens, stage.rollout.temperature) == (tokens, temperature)
    assert algorithm.loss.name == (f"text_reasoning/{loss}" if loss else "clipped")
    assert options.items() <= algorithm.loss.options.items()


def test_recipes_that_need_a_kl_or_a_behaviour_have_it():
    def recipe(name):
        return load_config(str(RECIPES / f"paper_{name}.yaml"))

    assert (recipe("trpa").algorithm.kl.coefficient, recipe("trpa").algorithm.kl.to) == (0.001, "old")
    assert recipe("thinkless").algorithm.kl.coefficient == 0.001
    unlikeliness = recipe("unlikeliness")
    assert (unlikeliness.algorithm.kl.coefficient, unlikeliness.algorithm.epochs_per_rollout) == (0.1, 2)
    assert [item.name for item in unlikeliness.plugins] == ["text_reasoning/unlikeliness"]
    assert [item.name for item in recipe("d3s").plugins] == ["text_reasoning/d3s"]
    (scaffold,) = recipe("scaf_grpo").plugins
    assert (scaffold.name, scaffold.options) == ("text_reasoning/scaf_grpo", {"exempt": 0.15, "slot": "random"})
    assert recipe("scaf_grpo").algorithm.kl.coefficient == 0
