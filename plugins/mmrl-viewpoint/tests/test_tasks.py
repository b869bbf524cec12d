"""Recipes: the published settings, and the hybrid cold start."""

from pathlib import Path

from mmrl_core.config import load_config

RECIPES = Path(__file__).parents[3] / "tasks" / "viewpoint"


def test_stage_1_holds_the_published_settings():
    config = load_config(str(RECIPES / "paper_stage1_sft.yaml"))
    (stage,) = config.stages
    assert (stage.kind, stage.epochs, stage.prompts_per_step) == ("sft", 2, 128)
    assert (stage.optimizer.lr, stage.optimizer.warmup_steps) == (5e-6, 50)
    assert config.model.path == "Qwen/Qwen2.5-VL-7B-Instruct" and config.model.policy.options["max_pixels"] == 960 * 540
    plain, reasoning = stage.mixture
    assert plain.weight > reasoning.weight
    assert plain.data.train.options["path"] == "INno0o/Viewpoint-100K"
    assert reasoning.data.train.options["reasoning"] is True


def test_stage_2_holds_the_published_settings():
    config = load_config(str(RECIPES / "paper_stage2_grpo.yaml"))
    (stage,) = config.stages
    algorithm = stage.algorithm
    assert (stage.kind, stage.prompts_per_step, stage.group_size, stage.micro_batch_rows) == ("grpo", 1024, 16, 4)
    assert algorithm.updates_per_rollout == 1024 / 256
    assert (algorithm.kl.coefficient, algorithm.kl.estimator, algorithm.kl.place) == (0.01, "k3", "loss")
    assert algorithm.loss.options == {"clip_low": 0.2, "clip_high": 0.2}
    assert (stage.optimizer.lr, stage.rollout.max_tokens, stage.rollout.temperature) == (1e-6, 4096, 1.0)
    assert config.model.policy.options.get("max_prompt_tokens", 8192) + stage.rollout.max_tokens == 8192
    assert (config.checkpoint.every_steps, config.eval.every_steps) == (5, 5)
    assert [(reward.name, reward.weight) for reward in stage.rewards] == [
        ("viewpoint/accuracy", 0.5),
        ("viewpoint/format", 0.5),
    ]


def test_training_and_evaluation_share_one_system_prompt():
    prompts = [load_config(str(path)).prompt.system for path in sorted(RECIPES.glob("*.yaml"))]
    assert len(prompts) == 2 and prompts[0] == prompts[1]
    assert "<think>" in prompts[0] and "\n" not in prompts[0]
