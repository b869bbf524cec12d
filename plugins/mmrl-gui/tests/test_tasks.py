"""The plugin is found by its entry point; its tasks and recipes resolve, and gold answers score the maximum."""

import io
from pathlib import Path

import pytest
from PIL import Image

from mmrl_core.config import load_config
from mmrl_core.plugins import load_plugins
from mmrl_core.testing import check_plugin, check_task

RECIPES = Path(__file__).parents[3] / "tasks" / "gui"


def test_every_entry_imports_and_every_task_parses():
    findings = check_plugin("gui")
    assert [finding.what for finding in findings if not finding.ok] == []
    rewards = [entry.id for entry in load_plugins().registry.entries("reward") if entry.id.startswith("gui/")]
    assert len(rewards) == 8


@pytest.fixture
def parquet(tmp_path):
    from datasets import Dataset

    file = io.BytesIO()
    Image.new("RGB", (700, 400), "white").save(file, format="PNG")
    image = {"bytes": file.getvalue(), "path": "a.png"}
    common = {"image": image, "instruction": "book it", "history": "None", "task_type": "high"}
    rows = [
        common | {"gt_action": "click", "gt_bbox": [0.2, 0.3, 0.4, 0.5], "gt_input_text": "no input text"},
        common | {"gt_action": "scroll", "gt_bbox": [-0.1, -0.1], "gt_input_text": "DOWN"},
        common | {"gt_action": "type", "gt_bbox": [-0.1, -0.1], "gt_input_text": "it's a hotel"},
        common | {"gt_action": "close/delete", "gt_bbox": [-0.1, -0.1], "gt_input_text": "no input text"},
    ]
    path = tmp_path / "train.parquet"
    Dataset.from_list(rows).to_parquet(str(path))
    return str(path)


@pytest.mark.parametrize("task", ["gui/gui_r1", str(RECIPES / "paper_gui_r1_3b.yaml"), "gui/ui_r1_efficient"])
def test_gold_answers_score_the_maximum_and_hostile_ones_are_safe(task, parquet):
    findings = check_task(load_config(task, [f"data.train.path={parquet}", "model.path=none/none"]))
    assert [finding.what for finding in findings if not finding.ok] == []
    assert any("scores the maximum" in finding.what for finding in findings)


def test_both_stages_of_the_efficient_recipe_read_the_same_clicks(parquet):
    config = load_config(str(RECIPES / "paper_ui_r1_efficient.yaml"), [f"data.train.path={parquet}"])
    think, nothink = config.stages
    assert think.data.train.options | {"thinking": False} == nothink.data.train.options
    assert [reward.name for reward in nothink.rewards][-1] == "gui/ui_r1_format_nothink"
    assert config.plugins[0].options["stages"] == [think.name]
    assert [finding.what for finding in check_task(config) if not finding.ok] == []


@pytest.mark.parametrize("name", sorted(path.name for path in RECIPES.glob("paper_*.yaml")))
def test_recipes_set_what_was_published(name):
    config = load_config(str(RECIPES / name))
    of_gui_r1 = (512, 5, 4, 0.01, 1e-6, "token_mean", 0.01, 1024)
    of_ui_r1 = (2, 8, 1, 0.04, 1e-4, "sequence_mean", 0.0, 512 if "efficient" in name else 256)
    for stage in config.stages:
        algorithm, optimizer, (advantage,) = stage.algorithm, stage.optimizer, stage.algorithm.advantage
        assert (
            *(stage.prompts_per_step, stage.group_size, algorithm.updates_per_rollout, algorithm.kl.coefficient),
            *(advantage.options["eps"], algorithm.aggregate, optimizer.weight_decay, stage.rollout.max_tokens),
        ) == (of_gui_r1 if "gui_r1" in name else of_ui_r1)
        assert (algorithm.loss.options, algorithm.kl.estimator) == ({"clip_low": 0.2, "clip_high": 0.2}, "k3")
        assert (optimizer.lr, optimizer.warmup_steps, optimizer.max_grad_norm) == (1e-6, 0, 1.0)
        assert stage.rollout.temperature == 1.0
    limits = (262144, 1258291) if "gui_r1" in name else (3136, 12845056)
    model = config.model.policy.options
    assert (model["min_pixels"], model["max_pixels"]) == limits
    assert not model.get("freeze") and model["precision"] == "bfloat16_mixed"
