"""A whole run that samples through vLLM."""

import json

import pytest

from mmrl_core.config import load_config
from mmrl_core.runs import read_metrics
from mmrl_core.trainer import Trainer

REWARD = """
def spread(completions, samples):
    return [sum(map(ord, c)) % 97 / 96 for c in completions]
"""


@pytest.mark.parametrize("steps_ahead", [0, 1])
def test_two_grpo_steps_with_importance_correction(tiny_model, helpers, tmp_path, steps_ahead):
    """The learning rate is high: weights that vLLM gets late, as it should one step ahead, show in the weights."""
    (tmp_path / "rewards.py").write_text(REWARD)
    with (tmp_path / "rows.jsonl").open("w") as rows:
        for number in range(8):
            helpers.picture(number, 56 + 28 * (number % 2)).save(tmp_path / f"{number}.png")
            rows.write(json.dumps({"image": f"{number}.png", "question": "What " * (1 + number % 3)}) + "\n")
    config = {
        "name": "test/vllm",
        "model": {"path": str(tiny_model("qwen2_5_vl")), "max_prompt_tokens": 600},
        "data": {"train": {"name": "rows", "path": str(tmp_path / "rows.jsonl")}, "media_root": str(tmp_path)},
        "prompt": {"images": ["{image}"], "text": "{question}"},
        "rewards": [f"{tmp_path / 'rewards.py'}:spread"],
        "rollout": {"max_tokens": 12, "engine": {"name": "vllm", "memory_gib": 0.05}, "steps_ahead": steps_ahead},
        "optimizer": {"lr": 1e-2},
        "algorithm": {"importance_correction": {"level": "token", "mode": "truncate"}},
        "checkpoint": {"every_steps": None},
        "stages": [{"kind": "grpo", "steps": 2, "prompts_per_step": 3, "group_size": 4}],
    }
    (tmp_path / "task.yaml").write_text(json.dumps(config))
    trainer = Trainer(load_config(str(tmp_path / "task.yaml")), tmp_path / "run")
    try:
        trainer.run(resume=False)
    finally:
        trainer.close()
    first, *records = read_metrics(tmp_path / "run")
    assert first["kind"] == "start" and not any(record["kind"] == "start" for record in records)
    assert first["engine/seen/image"] > 1e-3 and first["seen/image"] > 1e-3
    assert first["engine/difference/image"] < 1e-4
    steps = [record for record in records if record["kind"] == "step"]
    assert len(steps) == 2
    assert all(record["grad_norm"] > 0 for record in steps)
    assert sum(record.get("count/decode_tokens", 0) for record in steps) > 0  # ahead, both may count in the first
    assert steps[0]["importance_weight"] == pytest.approx(1, abs=1e-4)
    assert (abs(steps[1]["importance_weight"] - 1) < 1e-4) == (steps_ahead == 0)
