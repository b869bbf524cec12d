"""Every YAML that ships loads and names only what is installed, and the recipes hold the published numbers."""

from pathlib import Path

import pytest

from mmrl_core.config.components import component_problems
from mmrl_core.config.reading import load_config
from mmrl_core.plugins import load_plugins, presets

ROOT = Path(__file__).parents[3]
PAPER = ROOT / "tasks" / "visual_rft"
FRAGMENTS = sorted((ROOT / "tasks").rglob("paper_common.yaml"))  # extended by recipes, no tasks by themselves
RECIPES = sorted(set((ROOT / "tasks").rglob("*.yaml")) - set(FRAGMENTS))
PUBLISHED = sorted(set(PAPER.glob("paper_*.yaml")) - set(FRAGMENTS))
DEFINITIONS = sorted((ROOT / "plugins").glob("*/src/*/tasks/*.yaml"))
PRESETS = sorted((ROOT / "configs").rglob("*.yaml"))

NOVEL_15 = {
    *("mouse", "fork", "hot dog", "cat", "airplane", "suitcase", "parking meter", "sandwich", "train", "hair drier"),
    *("toilet", "toaster", "snowboard", "frisbee", "bear"),
}
FEW_SHOT_8 = {"bus", "train", "fire hydrant", "stop sign", "cat", "dog", "bed", "toilet"}
FEW_SHOT_LVIS_6 = {"horse_buggy", "die", "kitchen_table", "omelet", "papaya", "stepladder"}


def paper(name: str, *overrides: str):
    return load_config(str(PAPER / f"paper_{name}.yaml"), overrides)


@pytest.mark.parametrize("path", RECIPES + DEFINITIONS, ids=lambda path: path.stem)
def test_task_loads_and_names_what_is_installed(path):
    config = load_config(str(path))
    assert component_problems(config, load_plugins()) == []
    assert config.name == path.stem


@pytest.mark.parametrize("path", [*PRESETS, *FRAGMENTS], ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_fragment_loads_in_a_task_and_names_what_is_installed(path, tmp_path):
    task = tmp_path / "task.yaml"
    task.write_text(f"name: task\nextends: {path}\n")
    assert component_problems(load_config(str(task)), load_plugins()) == []


def test_every_preset_file_is_found():
    assert sorted(presets().values()) == PRESETS


@pytest.mark.parametrize("path", [*RECIPES, *DEFINITIONS, *PRESETS, *FRAGMENTS], ids=lambda path: path.stem)
def test_first_line_says_what_the_file_is(path):
    assert path.read_text().startswith("# ")  # `mmrl list` shows it


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_recipe_names_its_source_and_what_is_unverified(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(line.startswith("# Source: ") for line in header)
    assert any(line.startswith("# Unverified: ") for line in header)


def test_there_is_a_recipe_for_each_published_setting():
    assert [path.stem for path in PUBLISHED] == [
        "paper_classification_aircraft100_4shot",
        "paper_classification_cars196_4shot",
        "paper_classification_flower102_4shot",
        "paper_classification_pets37_4shot",
        "paper_detection_coco_80",
        "paper_detection_coco_8cate_4shot",
        "paper_detection_coco_base65",
        "paper_detection_lvis_few_shot",
        "paper_grounding_lisa",
    ]


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_recipe_trains_with_the_published_settings(path):
    config = load_config(str(path))
    (stage,) = config.stages
    algorithm, optimizer = stage.algorithm, stage.optimizer
    assert stage.kind == "grpo"
    assert (stage.prompts_per_step, stage.group_size) == (1 * 2 * 8, 8)
    assert (algorithm.updates_per_rollout, algorithm.epochs_per_rollout) == (1, 1)  # on-policy
    assert (algorithm.kl.coefficient, algorithm.kl.estimator, algorithm.kl.place) == (0.04, "k3", "loss")
    assert [stage.model_dump() for stage in algorithm.advantage] == [{"name": "group_relative", "eps": 1e-4}]
    assert algorithm.aggregate == "sequence_mean"
    assert (optimizer.lr, optimizer.schedule, optimizer.warmup_steps, optimizer.final_lr_ratio) == (
        1e-6,
        "linear",
        0,
        0,
    )
    assert (stage.rollout.temperature, stage.rollout.max_tokens) == (1.0, 256)
    assert config.model.path == "Qwen/Qwen2-VL-2B-Instruct"
    options = config.model.policy.options
    assert (options["min_pixels"], options["max_pixels"]) == (3136, 401408)
    assert options["precision"] == "bfloat16_mixed"
    assert not options.get("freeze") and options.get("lora") is None  # all weights, vision tower included
    assert all(reward.weight == 1.0 for reward in stage.rewards)


@pytest.mark.parametrize(
    ("name", "data", "epochs"),
    [
        ("detection_coco_80", "laolao77/ViRFT_COCO", 2),
        ("detection_coco_base65", "laolao77/ViRFT_COCO_base65", 2),
        ("detection_coco_8cate_4shot", "laolao77/ViRFT_COCO_8_cate_4_shot", 2),
        ("detection_lvis_few_shot", "laolao77/ViRFT_LVIS_few_shot", 2),
        ("classification_flower102_4shot", "laolao77/ViRFT_CLS_flower_4_shot", 1),
        ("classification_aircraft100_4shot", "laolao77/ViRFT_CLS_fgvc_aircraft_4_shot", 1),
        ("classification_cars196_4shot", "laolao77/ViRFT_CLS_car196_4shot", 1),
        ("classification_pets37_4shot", "laolao77/ViRFT_CLS_pets37_4shot", 1),
        ("grounding_lisa", "data/lisa", 6),
    ],
)
def test_recipe_trains_on_the_published_rows(name, data, epochs):
    (stage,) = paper(name).stages
    assert stage.data.train is not None
    assert (stage.data.train.options["path"], stage.data.train.split) == (data, "train")
    assert stage.epochs == epochs


@pytest.mark.parametrize(
    ("name", "categories"),
    [
        ("detection_coco_base65", NOVEL_15),
        ("detection_coco_8cate_4shot", FEW_SHOT_8),
        ("detection_lvis_few_shot", FEW_SHOT_LVIS_6),
    ],
)
def test_detection_is_evaluated_on_the_published_categories(name, categories):
    held_out = paper(name).data.held_out
    assert held_out is not None and held_out.name == "visual_rft/coco"
    assert sorted(held_out.options["categories"]) == sorted(categories)


def test_novel_categories_are_fifteen():
    assert len(NOVEL_15) == 15


def test_only_grounding_recomputes_activations():
    assert paper("grounding_lisa").model.policy.options["gradient_checkpointing"]
    assert not paper("detection_coco_80").model.policy.options["gradient_checkpointing"]


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("detection_coco_80", ["model.path=Qwen/Qwen2-VL-7B-Instruct", "stages.grpo.group_size=4", "eval.limit=null"]),
        ("detection_coco_8cate_4shot", ["stages.grpo.epochs=null", "stages.grpo.steps=200", "data.held_out=null"]),
        ("grounding_lisa", ["rewards.grounding_giou.name=visual_rft/grounding_iou"]),
        ("grounding_lisa", ["data.train.shapes=first", "model.precision=bfloat16", "model.lora.rank=64"]),
    ],
)
def test_overrides_that_the_comments_name_work(name, overrides):
    assert component_problems(paper(name, *overrides), load_plugins()) == []
