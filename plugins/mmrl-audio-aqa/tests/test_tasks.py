"""Task definitions and recipes: one setting for thinking, and the published numbers."""

from pathlib import Path

import pytest

from mmrl_core.config import load_config

RECIPES = Path(__file__).parents[3] / "tasks" / "audio_aqa"


@pytest.mark.parametrize(
    ("task", "thinking"),
    [
        ("audio_aqa/audio_qa", None),
        ("audio_aqa/audio_qa_thinking", True),
        (str(RECIPES / "paper_avqa.yaml"), None),
        (str(RECIPES / "paper_avqa_thinking.yaml"), True),
    ],
)
def test_training_and_evaluation_ask_alike_for_thinking(task, thinking):
    data = load_config(task).data
    assert data.train.options.get("thinking") is data.held_out.options.get("thinking") is thinking


@pytest.mark.parametrize("name", ["paper_avqa", "paper_avqa_thinking"])
def test_recipes_hold_the_published_settings(name):
    config = load_config(str(RECIPES / f"{name}.yaml"))
    (stage,) = config.stages
    assert config.model.path == "Qwen/Qwen2-Audio-7B-Instruct" and not config.model.policy.options.get("freeze")
    assert (stage.kind, stage.steps, stage.prompts_per_step, stage.group_size) == ("grpo", 1000, 16, 8)
    assert (stage.rollout.max_tokens, stage.rollout.temperature) == (256, 1.0)
    assert stage.algorithm.kl.coefficient == 0.04 and stage.algorithm.kl.estimator == "k3"
    assert stage.algorithm.aggregate == "sequence_mean" and stage.algorithm.updates_per_rollout == 1
    assert stage.algorithm.advantage[0].options == {"eps": 1e-4}
    assert (stage.optimizer.lr, stage.optimizer.schedule, stage.optimizer.final_lr_ratio) == (1e-6, "linear", 0.0)
    assert [(reward.name, reward.weight) for reward in stage.rewards] == [
        ("audio_aqa/accuracy", 1.0),
        ("audio_aqa/format", 1.0),
    ]
    assert config.eval.temperatures == [0.0] and config.prompt.max_audio_s == 30
    assert (config.checkpoint.every_steps, config.checkpoint.keep, config.seed) == (100, 10, 42)
