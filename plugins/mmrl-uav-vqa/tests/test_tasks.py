"""Gold answers of every type score the maximum. Recipes: one file holds all stages, and those by themselves agree."""

import json
from pathlib import Path

import pytest
from PIL import Image

from mmrl_core.config import load_config
from mmrl_core.media import resized_size
from mmrl_core.testing import check_task

RECIPES = Path(__file__).parents[3] / "tasks" / "uav_vqa"
TYPES = {
    "attributes": ["color", "shape", "size", "area"],
    "objects": ["number", "transportation", "sports", "yes_no"],
    "spatial": ["location", "scene"],
}


GOLD = {
    **{"number": "4", "yes_no": "yes", "area": "12.5m2", "size": "small", "location": "top left", "color": "red"},
    **{"shape": "rectangle", "sports": "tennisorsoccer", "transportation": "car", "scene": "parking lot"},
}


@pytest.mark.parametrize("task", ["uav_vqa/hrvqa_vl", str(RECIPES / "paper_sft.yaml")])
def test_gold_answers_score_the_maximum_and_hostile_ones_are_safe(task, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    row = {"image": "a.png", "question": "What is it?", "reasoning": "I look."}
    lines = [json.dumps(row | {"answer": answer, "question_type": name}) for name, answer in GOLD.items()]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    source = f"{{name: uav_vqa/hrvqa_vl, path: {tmp_path / 'rows.jsonl'}}}"
    findings = check_task(load_config(task, ["model.path=none/none", f"data.train={source}", "data.held_out=null"]))
    assert [finding.what for finding in findings if not finding.ok] == []
    assert any("scores the maximum" in finding.what for finding in findings)


def test_one_file_trains_the_cold_start_and_then_each_group_of_types():
    config = load_config(str(RECIPES / "paper_stages.yaml"))
    cold, *stages = config.stages
    assert cold.kind == "sft" and cold.data.train.options["need_reasoning"] is True
    assert {stage.name: stage.data.train.options["question_types"] for stage in stages} == TYPES
    earlier: list[str] = []
    for stage in stages:
        assert stage.data.train.options.get("replay_types", []) == earlier
        earlier = earlier + TYPES[stage.name]
        assert (stage.group_size, stage.epochs, stage.optimizer.lr) == (8, 1, 1e-6)
        assert (stage.algorithm.kl.coefficient, stage.algorithm.kl.estimator) == (0.04, "k3")
        assert (stage.rollout.temperature, stage.rollout.max_tokens) == (1.0, 512)
        assert [(reward.name, reward.weight) for reward in stage.rewards] == [
            ("uav_vqa/accuracy", 1.0),
            ("uav_vqa/format", 0.5),
        ]


def test_the_stages_one_by_one_are_those_of_the_whole():
    whole = {stage.name: stage for stage in load_config(str(RECIPES / "paper_stages.yaml")).stages}
    for number, name in enumerate(TYPES, start=1):
        (alone,) = load_config(str(RECIPES / f"paper_stage{number}_{name}.yaml")).stages
        assert alone.model_dump(exclude={"name", "data"}) == whole[name].model_dump(exclude={"name", "data"})
        options = {"need_reasoning": False} | alone.data.train.options
        assert options == whole[name].data.train.options


def test_the_images_have_the_size_that_the_recipes_say():
    config = load_config(str(RECIPES / "paper_stages.yaml"))
    model = config.model.policy.options
    limits = {"min_pixels": model.get("min_pixels"), "max_pixels": model.get("max_pixels")}
    assert resized_size(1024, 1024, **limits) == (1008, 1008)  # 36 x 36 tokens
    assert model.get("max_prompt_tokens", 8192) >= 36 * 36 + 1024
