"""Every preset of an algorithm trains, and trains the same however a step is cut into micro-batches."""

import json

import pytest
import torch

from mmrl_core.config import load_config
from mmrl_core.errors import ConfigError
from mmrl_core.plugins import presets
from mmrl_core.runs import read_metrics
from mmrl_core.trainer import Trainer
from mmrl_core.types import LOSS_MASK, Sampling
from mmrl_text_reasoning.methods.remax import with_greedy

PRESETS = sorted(name for name in presets() if name.startswith("algorithm/"))
BY_MICRO_BATCH = {"algorithm/bnpo"}  # a mean over each micro-batch, by definition
SETTINGS = {
    "algorithm/drpo": ["algorithm.loss.max_length=6"],
    "algorithm/pass_at_k": ["algorithm.advantage=[{name: text_reasoning/pass_at_k, k: 2}]"],  # 4 of 6 are never all bad
}
COMPARED = ("loss", "policy_loss", "grad_norm", "kl_ref", "entropy", "advantage/abs_mean")


@pytest.fixture
def make_task(base_config, rewards_file, tmp_path):
    """`make_task(*presets, settings=[...], base={...}, **stage)` -> config of two steps of 2 prompts x 6."""

    def made(*extended, settings=(), base=None, **stage):
        path = tmp_path / f"task{len(list(tmp_path.glob('*.yaml')))}.yaml"
        stage = {"kind": "grpo", "steps": 2, "prompts_per_step": 2, "group_size": 6, **stage}
        base = {**base_config("qwen2"), "rewards": [f"{rewards_file}:spread"]} if base is None else base
        path.write_text(json.dumps({**base, "name": "x", "extends": list(extended), "stages": [stage]}))
        return load_config(str(path), list(settings))

    return made


@pytest.fixture
def run(make_task, tmp_path):
    """`run(*presets, ...)` as `make_task` -> (trainer that is done, records of its steps)."""
    trainers = []

    def finished(*extended, **options):
        trainers.append(Trainer(make_task(*extended, **options), tmp_path / f"run{len(trainers)}"))
        trainers[-1].run(resume=False)
        records = read_metrics(trainers[-1].output)
        return trainers[-1], [record for record in records if record["kind"] == "step"]

    yield finished
    for trainer in trainers:
        trainer.close()


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_trains_and_does_not_depend_on_micro_batches(run, preset):
    """Two updates a rollout batch, so that ratios are not 1 in the second one."""
    settings = ["algorithm.updates_per_rollout=2", *SETTINGS.get(preset, [])]
    whole, steps = run(preset, settings=settings)
    assert len(steps) == 2 and all(step["grad_norm"] > 0 for step in steps)
    split, split_steps = run(preset, settings=settings, micro_batch_rows=1)
    pairs = list(zip(steps, split_steps, strict=True))
    if preset in BY_MICRO_BATCH:
        assert any(one["grad_norm"] != pytest.approx(two["grad_norm"], rel=1e-3) for one, two in pairs)
        return
    for one, two in pairs:
        for name in COMPARED:
            if name in one:
                assert one[name] == pytest.approx(two[name], rel=1e-4, abs=1e-6), f"step {one['step']}: {name}"
    for parameter, other in zip(whole.policy.module.parameters(), split.policy.module.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, rtol=0, atol=5e-4)


def test_methods_that_do_not_meet_go_together(run):
    _, alone = run("algorithm/drpo", settings=SETTINGS["algorithm/drpo"])
    within = "plugins=[{name: text_reasoning/d3s, within_groups: true}]"  # DRPO compares within groups
    _, steps = run("algorithm/drpo", "algorithm/d3s", settings=[*SETTINGS["algorithm/drpo"], within])
    assert all(step["grad_norm"] > 0 and "drpo_prompts" in step for step in steps)
    assert steps[0]["count/decode_tokens"] == alone[0]["count/decode_tokens"]  # as many are sampled
    assert steps[0]["count/update_tokens"] < alone[0]["count/update_tokens"]
    _, steps = run("algorithm/dr_grpo", "algorithm/unlikeliness")
    assert all(step["grad_norm"] > 0 and step["reward/unlikeliness"] < 0 for step in steps)


@pytest.mark.parametrize(
    ("extended", "stage", "says"),
    [
        (["trpa", "drpo"], {}, "'algorithm/trpa' (TRPA) and 'algorithm/drpo' (DRPO) are both whole methods"),
        (["d3s", "clip_cov"], {}, "both decide 'batch.tokens'"),
        (["grpo"], {"group_size": 1}, "group_size is 1: a group of one has no baseline"),
        (["drpo"], {"group_size": 1, "algorithm": {"loss": {"max_length": 6}}}, "group_size is 1"),
        (["remax"], {"group_size": 1}, "group_size is 1"),
    ],
)
def test_what_would_undo_one_another_is_refused_with_one_sentence(make_task, extended, stage, says):
    with pytest.raises(ConfigError) as caught:
        make_task(*(f"algorithm/{name}" for name in extended), **stage)
    assert says in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_returns_that_are_compared_over_the_whole_batch_need_no_group(run):
    _, steps = run("algorithm/reinforce_pp", group_size=1, prompts_per_step=6, steps=1)
    assert steps[0]["grad_norm"] > 0 and steps[0]["advantage/abs_mean"] > 0


def test_the_last_rollout_of_a_group_is_the_greedy_one(run, make_prompt):
    trainer, _ = run("algorithm/remax", steps=1)
    prompts = [make_prompt(name, f"What is {name}?") for name in ("this", "that")]
    groups = with_greedy(trainer.policy, prompts, 4, Sampling(max_tokens=6, temperature=1.0, seed=1))
    plain = trainer.policy.rollout(prompts, 1, Sampling(max_tokens=6, temperature=0.0, seed=9))
    for group, greedy in zip(groups, plain, strict=True):
        assert [rollout.outcome["greedy"] for rollout in group.rollouts] == [0, 0, 0, 1]
        assert group.rollouts[-1].completion == greedy.rollouts[0].completion
        assert not group.rollouts[-1].rows[0].masks[LOSS_MASK].any()
        assert len({rollout.rows[0].trajectory_id for rollout in group.rollouts}) == 4


@pytest.mark.parametrize(
    ("method", "settings", "shows"),
    [
        ("drpo", ["algorithm.loss.max_length=8"], "drpo_prompts"),
        ("d3s", [], "grad_norm"),
        ("unlikeliness", [], "reward/unlikeliness"),
    ],
)
def test_a_multimodal_task_takes_a_method_by_one_line(run, rewards_file, method, settings, shows):
    """The small model knows nothing yet, so a reward that varies stands beside the task's own."""
    small = ["model.build.tower_steps=2", "model.build.num_scenes=64", "data.train.num_rows=24", "rollout.max_tokens=8"]
    base = {"rewards": [f"{rewards_file}:spread", {"name": "visual_rft/format", "weight": 0.2}]}
    config = ["visual_rft/demo_classification", f"algorithm/{method}"]
    _, steps = run(*config, base=base, settings=[*small, *settings, "data.held_out=null"])
    assert len(steps) == 2 and all(step["grad_norm"] > 0 and shows in step for step in steps)
    assert steps[0]["count/media_encodes"] > 0
