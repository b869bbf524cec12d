"""Configs of TRL, verl, EasyR1 and ms-swift become tasks that load, train, and say what they leave out."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmrl_core.cli import main
from mmrl_core.config import check_trainable, load_config
from mmrl_core.peers import imported
from mmrl_core.testing import build_tiny

ROOT = Path(__file__).parents[2]
PEERS = ROOT / "tests" / "data" / "peers"


def at(values: Any, path: str) -> Any:
    for key in path.split("."):
        values = values[int(key) if key.isdecimal() else key] if isinstance(values, list) else values.get(key)
    return values


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


REAL: dict[str, tuple[str, str | None, dict[str, Any], list[str]]] = {
    "TRL's GRPO of a model that sees": (
        "trl_vlm.sh",
        "trl_vlm.py",
        {
            "stages.0.prompts_per_step": 8,  # 8 a device x 4 processes x 2 accumulated / 8 completions
            "stages.0.group_size": 8,
            "stages.0.epochs": 3.0,
            "optimizer.lr": 1e-5,
            "optimizer.schedule": "linear",
            "model.lora": {"rank": 16, "alpha": 32.0, "target_modules": ["q_proj", "v_proj"]},
            "model.max_prompt_tokens": 2048,
            "rollout.engine": {"name": "vllm", "mode": "colocated"},
            "algorithm.importance_correction": {"level": "sequence", "mode": "mask", "maximum": 3.0},
            "rewards.0": {"name": f"{PEERS}/trl_vlm.py:accuracy_reward", "style": "trl"},
        },
        ["optimizer.schedule is 'linear', as TRL has it by default (ours: 'constant')"],
    ),
    "open-r1": (
        "open_r1.yaml",
        "open_r1.py",
        {
            "stages.0.prompts_per_step": 28,  # 16 x 7 x 4 / 16
            "stages.0.steps": 200,
            "optimizer.warmup_steps": 20,
            "optimizer.final_lr_ratio": 0.1,
            "algorithm.aggregate": "constant_length",
            "algorithm.loss": {"name": "clipped", "clip_low": 0.2, "clip_high": 0.28},
            "algorithm.advantage": [{"name": "group_relative", "divide_by_std": "none"}],
            "prompt": {"system": "Think first, between <think> and </think>.", "text": "{problem}"},
            "rewards.1": {"name": f"{PEERS}/open_r1.py:tag_count_reward", "style": "trl", "weight": 0.5},
        },
        ["repetition_penalty: 1.1 (no penalty", "checkpoint.every_steps: theirs saves"],
    ),
    "verl's geo3k": (
        "verl_geo3k.sh",
        None,
        {
            "stages.0.prompts_per_step": 512,
            "stages.0.group_size": 5,
            "algorithm.updates_per_rollout": 4,
            "algorithm.kl": {"coefficient": 0.01, "estimator": "k3"},
            "algorithm.advantage": [{"name": "group_relative", "eps": 1e-6}],
            "algorithm.loss": {"name": "clipped", "dual_clip": 3.0},
            "data.train.path": "~/data/geo3k/train.parquet",
            "eval.every_steps": 5,
            "checkpoint.every_steps": 20,
            "log.trackers": ["wandb"],
            "rewards.0": {"name": f"{PEERS}/verl_scores.py:compute_score", "style": "verl"},
        },
        ["optimizer.weight_decay is 0.01, as verl has it by default (ours: 0.0)"],
    ),
    "verl's gsm8k, as DAPO has it": (
        "verl_gsm8k.yaml",
        None,
        {
            "stages.0.steps": 100,
            "algorithm.kl": {"coefficient": 0.0005, "place": "reward"},
            "algorithm.dynamic_sampling": {"max_rounds": 10},
            "algorithm.overlong": {"cache": 256, "max_length": 1024},
            "algorithm.loss": {"name": "clipped", "clip_low": 0.2, "clip_high": 0.28, "dual_clip": 3.0},
            "eval": {"samples": 4, "temperatures": [0.7]},
            "optimizer.warmup_steps": 10,
            "model.lora": {"rank": 64, "alpha": 32.0},
            "data.on_long": "error",
        },
        [
            "rollout.name: sglang (engines: hf, vllm)",
            "kl_penalty: abs (it is k3",
            "rewards: verl chooses a reward of its",
        ],
    ),
    "EasyR1": (
        "easyr1_config.yaml",
        None,
        {
            "stages.0.prompts_per_step": 512,
            "algorithm.updates_per_rollout": 4,
            "algorithm.loss": {"name": "clipped", "clip_low": 0.2, "clip_high": 0.3, "dual_clip": 3.0},
            "prompt.text": "{problem} Think first, within <think> </think>. The final answer goes into \\boxed{{}}.",
            "data.train": {"path": "hiyouga/geometry3k", "split": "train", "layout": "easyr1"},
            "model.freeze": ["vision"],
            "model.max_pixels": 4194304,
            "checkpoint": {"every_steps": 5, "keep": 3},
            "rewards.0": {
                "name": f"{PEERS}/easyr1_math.py:compute_score",
                "style": "easyr1",
                "format_weight": 0.2,
            },
        },
        ["worker.actor.optim.strategy: 'adamw_bf16' (AdamW alone)", "the warm-up is 0.1 of all steps"],
    ),
    "ms-swift": (
        "swift_grpo.sh",
        None,
        {
            "stages.0.prompts_per_step": 4,  # 4 x 8 / 8
            "algorithm.kl.coefficient": 0.04,
            "algorithm.aggregate": "sequence_mean",
            "algorithm.overlong": {"cache": 200, "max_length": 1024},
            "data.train": {"path": "AI-MO/NuminaMath-TIR", "limit": 1000},
            "prompt.system": "Think first. The answer goes into \\boxed{{}}.",
            "model.lora": {"rank": 8, "alpha": 32.0},
            "model.max_pixels": 1003520,
            "rollout": {"max_tokens": 1024, "temperature": 1.0, "top_p": 0.85, "top_k": 50},
            "rewards.0": {"name": f"{PEERS}/swift_plugin.py:BoxAccuracy", "style": "swift"},
            "rewards.1": {"name": f"{PEERS}/swift_plugin.py:Brevity", "style": "swift", "weight": 0.5},
        },
        ["algorithm.kl.coefficient is 0.04, as ms-swift has it by default (ours: 0.0)"],
    ),
}


@pytest.mark.parametrize(("file", "rewards", "wanted", "remarks"), REAL.values(), ids=REAL)
def test_a_config_as_peers_publish_them_becomes_a_task_that_loads(
    folder, file, rewards, wanted, remarks, capsys
) -> None:
    more = ["--rewards", str(PEERS / rewards)] if rewards else []
    assert main(["import-config", str(PEERS / file), *more, "--output", "task.yaml"]) == 0
    values = yaml.safe_load(Path("task.yaml").read_text())
    assert {path: at(values, path) for path in wanted} == wanted
    told = capsys.readouterr().out
    assert [remark for remark in remarks if remark not in told] == []
    assert "(unknown here)" not in told
    config = load_config("task.yaml")
    if config.rewards:
        check_trainable(config)


def write(path: str, values: dict[str, Any]) -> Path:
    Path(path).write_text(yaml.safe_dump(values))
    return Path(path)


VALUES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (
        {"steps_per_generation": 8, "gradient_accumulation_steps": 2, "num_iterations": 2, "max_steps": 80},
        {"stages.0.prompts_per_step": 8, "algorithm.updates_per_rollout": 4, "stages.0.steps": 10},
    ),
    ({"generation_batch_size": 64}, {"stages.0.prompts_per_step": 8, "algorithm.updates_per_rollout": 8}),
    ({"max_steps": 80, "warmup_ratio": 0.1}, {"stages.0.steps": 80, "optimizer.warmup_steps": 8}),
    ({"loss_type": "cispo", "epsilon_high": 5.0}, {"algorithm.loss": {"name": "cispo", "cap": 5.0}}),
    (
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
        {
            "algorithm.loss": {"name": "clipped", "ratio": "sequence_mean", "clip_low": 3e-4, "clip_high": 4e-4},
            "algorithm.aggregate": "sequence_mean",
        },
    ),
    ({"loss_type": "bnpo"}, {"algorithm.aggregate": "local_token_mean", "stages.0.micro_batch_rows": 8}),
    ({"delta": 1.5}, {"algorithm.loss": {"name": "clipped", "ratio_cap": 1.5}}),
    ({"scale_rewards": "batch"}, {"algorithm.advantage": [{"name": "group_relative", "divide_by_std": "batch"}]}),
    (
        {"multi_objective_aggregation": "normalize_then_sum"},
        {"algorithm.advantage": ["normalise_each_reward", "normalise_over_batch"]},
    ),
    (
        {"sync_ref_model": True, "ref_model_mixup_alpha": 0.9, "beta": 0.1},
        {"algorithm.frozen_policies.reference": {"rule": "moving_average", "every_steps": 512, "decay": 0.1}},
    ),
    ({"eval_strategy": "steps", "eval_steps": 50}, {"data.held_out.split": "test", "eval.every_steps": 50}),
]


@pytest.mark.parametrize(("given", "wanted"), VALUES, ids=lambda value: "-".join(value))
def test_values_of_trl_translate(folder, given, wanted) -> None:
    """Beside them 8 completions a device, of 8 for each prompt, in 8 processes where the sizes do not say otherwise."""
    base = {"model_name_or_path": "m", "dataset_name": "d/d", "num_generations": 8, "use_vllm": False}
    text = imported(write("grpo.yaml", base | given), processes=1)
    Path("task.yaml").write_text(text)
    values = yaml.safe_load(text)
    assert {path: at(values, path) for path in wanted} == wanted
    load_config("task.yaml")


def test_what_an_import_cannot_do_is_said(folder) -> None:
    given = {
        "num_generations": 8,
        "loss_type": "vespo",
        "lr_scheduler_type": "polynomial",
        "colour": "red",
        "min_p": 0.1,
    }
    text = imported(write("grpo.yaml", given | {"reward_funcs": ["mine.accuracy", "shape"]}))
    for remark in (
        "loss_type: vespo (the loss is clipped, token_mean)",
        "lr_scheduler_type: polynomial (schedules: constant, linear, cosine)",
        "colour: 'red' (unknown here)",
        "min_p: 0.1 (no min-p sampling)",
        "there is no file mine.py from here",
        "rewards: 'shape' is left out, since it is of the framework or its script",
        "is for one process; with N of them it is N times as many",
    ):
        assert remark in text
    ppo = write("ppo.yaml", {"actor_rollout_ref": {"rollout": {"n": 4}}, "algorithm": {"adv_estimator": "gae"}})
    assert "gae (there is no value network; the advantage is group_relative)" in imported(ppo)


@pytest.mark.parametrize(
    ("file", "problem"),
    [
        ("list.yaml", "expected keys with values, this is list"),
        ("broken.sh", "broken.sh: No closing quotation"),
        ("named.sh", "names the config absent.yaml, and there is no such file"),
    ],
)
def test_files_that_are_no_config_are_named(folder, file, problem, capsys) -> None:
    Path("list.yaml").write_text("[1]\n")
    Path("broken.sh").write_text("trl grpo --beta '0.1\n")
    Path("named.sh").write_text("trl grpo --config absent.yaml --num_generations 4\n")
    assert main(["import-config", file]) == 2
    assert problem in capsys.readouterr().err


def test_an_imported_config_passes_a_dry_run(folder, capsys) -> None:
    build_tiny("qwen2", Path("model"))
    rows = [{"prompt": [{"role": "user", "content": f"{n}+1?"}], "solution": str(n + 1)} for n in range(4)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copy(PEERS / "trl_vlm.py", "rewards.py")
    Path("base.yaml").write_text("model_name_or_path: model\ndataset_name: rows.jsonl\nmax_completion_length: 2\n")
    Path("run.sh").write_text(
        "G=${GROUP:-2}\ntrl grpo --config base.yaml --num_generations $G --per_device_train_batch_size 4 \\\n"
        "  --max_steps 2 --reward_funcs accuracy_reward --gradient_checkpointing false --report_to none\n"
    )
    command = ["import-config", "run.sh", "--rewards", "rewards.py", "--processes", "1", "--output", "task.yaml"]
    assert main(command) == 0
    assert main(["train", "task.yaml", "--dry-run"]) == 0, capsys.readouterr()
    assert "stage grpo: 2 steps of 2 prompts x 2 completions" in capsys.readouterr().out


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("coming_from_*.md")), ids=lambda page: page.stem)
def test_the_task_of_a_page_loads(folder, page) -> None:
    (snippet,) = re.findall(r"^```yaml\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    peer = {"trl": "trl_vlm", "verl": "verl_scores", "easyr1": "easyr1_math", "ms_swift": "swift_plugin"}
    shutil.copy(PEERS / f"{peer[page.stem.removeprefix('coming_from_')]}.py", "rewards.py")
    Path("task.yaml").write_text(snippet)
    check_trainable(load_config("task.yaml"))
    assert len(snippet.strip().splitlines()) == 5
