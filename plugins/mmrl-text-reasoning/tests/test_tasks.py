"""Task definitions and recipes."""

from pathlib import Path

import pytest

from mmrl_core.config import load_config

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
