"""vLLM is held against the trainer before a run: media that it does not see, and weights that are no numbers."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmrl_core.cli import main
from mmrl_core.errors import NotFiniteError, PolicyError
from mmrl_core.language_model import VLLMEngine
from mmrl_core.types import Sampling

TOLERANCE = 1e-4  # as in test_vllm_engine.py
KINDS = ("image", "video")


@pytest.fixture(scope="module")
def vision(make_policy):
    """A policy whose engine was looked at; `found` is what was found."""
    policy = make_policy("qwen2_5_vl", VLLMEngine(memory_gib=0.05), max_prompt_tokens=600)
    policy.found = policy.check_start(12)
    yield policy
    policy.close()


@pytest.fixture
def as_it_was(vision, monkeypatch):
    before = {name: weight.clone() for name, weight in vision.model.state_dict().items()}
    monkeypatch.setattr(vision.encoder, "blind", {})
    yield
    vision.model.load_state_dict(before)
    vision.publish_weights()


@pytest.fixture
def task(tiny_model, helpers, tmp_path, monkeypatch):
    """`task(kind, model=..., images=True)` writes a task that samples through vLLM, and says where."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rewards.py").write_text(
        "def length(completions, samples):\n    return [len(c) / 99 for c in completions]\n"
    )
    helpers.picture(1).save(tmp_path / "1.png")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": "1.png", "question": "What?"}) + "\n")

    def write(kind, model=None, images=True):
        config = {
            "name": "test/vllm",
            "model": {"path": str(model or tiny_model(kind)), "max_prompt_tokens": 600},
            "data": {"train": {"path": "rows.jsonl"}, "held_out": {"path": "rows.jsonl"}},
            "prompt": {"text": "{question}"} | ({"images": ["{image}"]} if images else {}),
            "rewards": ["rewards.py:length"],
            "rollout": {"max_tokens": 12, "engine": {"name": "vllm", "memory_gib": 0.05}},
            "stages": [{"kind": "grpo", "steps": 1, "prompts_per_step": 1, "group_size": 2}],
        }
        (tmp_path / "task.yaml").write_text(json.dumps(config))
        return "task.yaml"

    return write


def test_how_far_media_move_logprobs_and_engine_and_trainer_are_apart_is_measured(vision):
    found = vision.found
    assert {*found} == {
        *(f"{who}seen/{kind}" for kind in KINDS for who in ("", "engine/")),
        *(f"engine/difference/{kind}" for kind in ("text", *KINDS)),
    }
    assert all(value > 1e-3 for name, value in found.items() if "seen" in name)
    assert all(value < TOLERANCE for name, value in found.items() if "difference" in name)
    lines = "\n".join(vision.describe())
    for words in (
        "another medium in a prompt moves a logprob by: image ",
        "in the rollout engine it moves a logprob by: ",
    ):
        assert words in lines
    assert "logprobs of the rollout engine and the trainer differ by: text " in lines and "warning" not in lines


def test_looking_leaves_nothing_behind_in_what_is_sampled(vision, prompts, helpers):
    def sampled():
        rows = helpers.rows_of(vision.rollout(prompts("qwen2_5_vl"), 2, Sampling(12, seed=3)))
        return [(row.action.tolist(), row.sampler_logprobs.tolist()) for row in rows]

    before = sampled()
    assert vision.check_start(12) == vision.found
    assert sampled() == before


def test_a_projector_of_zeros_is_refused(vision, as_it_was, prompts, monkeypatch):
    """Trained to nothing, or not in the checkpoint: in vLLM too no medium moves a logprob."""
    with torch.no_grad():
        vision.model.base.model.visual.merger.mlp[2].weight.zero_()
    vision.publish_weights()
    found = vision.check_start(12)
    assert [found[f"engine/seen/{kind}"] for kind in KINDS] == [0, 0]
    text = prompts("qwen2_5_vl")[2]
    assert len(vision.rollout([text], 2, Sampling(4))) == 1
    vision.encoder.clear_cache()
    with pytest.raises(PolicyError, match=r"rollout engine does not see images: an image of noise.*blind_check to off"):
        vision.rollout(prompts("qwen2_5_vl")[:1], 2, Sampling(4))
    monkeypatch.setattr(vision.encoder, "blind", {})
    monkeypatch.setattr(vision, "options", vision.options.model_copy(update={"blind_check": "off"}))
    vision.check_start(12)
    assert len(vision.rollout(prompts("qwen2_5_vl")[:1], 2, Sampling(4))) == 1


def test_weights_that_are_apart_are_told_of(vision, as_it_was, helpers):
    """They are not published here; with another program it could be a layer that it computes otherwise."""
    helpers.change_weights(vision)
    vision.check_start(12)
    assert any(
        line.startswith("warning: with an image logprobs of the rollout engine are ") for line in vision.describe()
    )


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_weights_that_are_no_numbers_end_the_rollout(vision, as_it_was, prompts, temperature):
    name = "model.language_model.layers.1.mlp.down_proj.weight"
    with torch.no_grad():
        vision.model.base.get_parameter(name)[3, 5] = torch.nan
    vision.publish_weights()
    with pytest.raises(
        NotFiniteError, match=rf"sampled token 1 are NaN.*first in '{name}' \(1 of .*lower optimizer\.lr"
    ):
        vision.rollout(prompts("qwen2_5_vl"), 2, Sampling(12, temperature, seed=1))
    with pytest.raises(NotFiniteError, match="sampled token 1 are NaN"):
        vision.check_start(12)


def test_the_engine_samples_on_after_broken_weights(vision, prompts, helpers):
    rows = helpers.rows_of(vision.rollout(prompts("qwen2_5_vl"), 2, Sampling(12, seed=1)))
    assert helpers.largest_difference(vision, rows) < TOLERANCE


def test_a_family_of_vllm_whose_media_path_returns_nothing_is_refused_before_the_run(task, capsys):
    from vllm import ModelRegistry
    from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration as Seeing

    class Blind(Seeing):
        def embed_multimodal(self, **inputs):
            return [torch.zeros_like(features) for features in super().embed_multimodal(**inputs)]

    registered = dict(ModelRegistry.models)
    ModelRegistry.register_model("Qwen2_5_VLForConditionalGeneration", Blind)
    try:
        assert main(["train", task("qwen2_5_vl"), "--dry-run"]) == 2
    finally:
        ModelRegistry.models.clear()
        ModelRegistry.models.update(registered)
    assert "the rollout engine does not see images" in capsys.readouterr().err


def test_a_broken_checkpoint_is_no_score_of_zero(task, tiny_model, tmp_path, capsys):
    model = tmp_path / "broken"
    model.mkdir()
    for path in tiny_model("qwen2").iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    weights = load_file(model / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0] = torch.nan
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    assert main(["eval", task("qwen2", model, images=False), "--checkpoint", str(model)]) == 2
    told = capsys.readouterr().err
    assert "sampled token 1 are NaN or infinite, and the weights are not finite, first in" in told
    assert "model.layers.0.mlp.up_proj.weight" in told
