"""DAST: the formula by hand, true lengths, and which rollouts and stages it acts on."""

import json
from types import SimpleNamespace

import pytest
import torch

from mmrl_core.config import load_config
from mmrl_core.errors import ConfigError
from mmrl_core.runs import read_metrics
from mmrl_core.testing import make_group, make_scores
from mmrl_gui.shaping import Dast, dast_bonus


def bonus(lengths, correct, **options):
    return dast_bonus(torch.tensor(lengths), torch.tensor(correct), **options).tolist()


def test_a_mixed_group_by_hand():
    # p 1/2, Lr 20, Lmax 60: budget 40. lambda -0.5, -0.5, 0.5, -0.75
    # right: 0.25 + 0.5; wrong: min(0.35, -0.1) and -0.675 - 0.1
    assert bonus([20, 20, 60, 10], [True, True, False, False]) == pytest.approx([0.75, 0.75, -0.1, -0.775])


def test_a_right_group_compares_with_its_mean_and_never_falls_below_a_tenth():
    # budget 50; lambda -0.8, 0, 1.4 - the last would give -0.2
    assert bonus([10, 50, 90], [True, True, True]) == pytest.approx([0.9, 0.5, 0.1])


def test_a_wrong_group_compares_with_its_longest():
    # budget 100; lambda -0.9, 0
    assert bonus([10, 100], [False, False]) == pytest.approx([-0.91, -0.1])


def test_slope_and_offset_are_options():
    assert bonus([10, 50, 90], [True] * 3, a=-1.0, b=1.0) == pytest.approx([1.8, 1.0, 0.2])


def test_without_tokens_there_is_no_bonus():
    assert bonus([0, 0], [True, False]) == [0.0, 0.0]


def group(*lengths):
    return make_group(["text"] * len(lengths), num_actions=lengths)


def shaped(behaviour, groups, components, stage="think"):
    """What the behaviour makes of scores whose totals are the sum of the components."""
    scores = make_scores(components)
    run = SimpleNamespace(stage=SimpleNamespace(name=stage))
    wrapper = behaviour.mmrl_shape_rewards(run, groups, scores)
    next(wrapper)
    with pytest.raises(StopIteration) as end:
        wrapper.send(scores)
    return end.value.value


def test_each_completion_counts_with_its_own_length_in_its_own_group():
    one = [1.0, 1.0, 0.0, 0.0]
    result = shaped(Dast(), [group(20, 20, 60, 10), group(10, 100)], {"action": [1.0] * 6, "coord": [*one, 0.0, 0.0]})
    added = [0.75, 0.75, -0.1, -0.775, -0.91, -0.1]
    assert result.components["dast"].tolist() == pytest.approx(added)
    before = [2.0, 2.0, 1.0, 1.0, 1.0, 1.0]
    assert result.totals.tolist() == pytest.approx([total + extra for total, extra in zip(before, added, strict=True)])


def test_right_is_said_by_the_rewards_that_are_named():
    components = {"action": [1.0, 1.0, 1.0], "format": [0.0, 0.0, 0.0]}
    result = shaped(Dast(rewards=["action"]), [group(10, 50, 90)], components)
    assert result.components["dast"].tolist() == pytest.approx([0.9, 0.5, 0.1])
    assert all(value < 0 for value in shaped(Dast(), [group(10, 50, 90)], components).components["dast"].tolist())


def test_unscored_completions_stay_unscored_and_do_not_count():
    result = shaped(Dast(), [group(10, 1000, 50, 90)], {"action": [1.0, float("nan"), 1.0, 1.0]})
    assert result.totals[1].isnan()
    assert result.totals[[0, 2, 3]].tolist() == pytest.approx([1.9, 1.5, 1.1])


def test_other_stages_are_left_alone():
    result = shaped(Dast(stages=["think"]), [group(10, 20)], {"action": [1.0, 0.0]}, stage="nothink")
    assert result.totals.tolist() == [1.0, 0.0]
    assert "dast" not in result.components


def test_unknown_rewards_and_stages_are_refused():
    with pytest.raises(ConfigError, match="'accuracy' is no reward"):
        shaped(Dast(rewards=["accuracy"]), [group(1)], {"action": [1.0]})
    config = SimpleNamespace(stages=[SimpleNamespace(name="think"), SimpleNamespace(name=None)])
    Dast(stages=["think"]).mmrl_configure(config)
    with pytest.raises(ConfigError, match="no stage has the name 'thinking'"):
        Dast(stages=["thinking"]).mmrl_configure(config)


REWARDS = """
def short(completions, samples):
    return [1.0 if len(completion) < 12 else 0.0 for completion in completions]
"""


def test_a_run_is_trained_with_it_in_the_stages_it_names(tmp_path):
    from mmrl_core.testing import build_tiny
    from mmrl_core.trainer import train

    build_tiny("qwen2", tmp_path / "model")
    (tmp_path / "rewards.py").write_text(REWARDS)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"problem": f"task {n}"}) + "\n" for n in range(4)))
    stage = {"kind": "grpo", "steps": 1, "prompts_per_step": 4, "group_size": 4, "optimizer": {"lr": 1e-3}}
    values = {
        "name": "dast",
        "plugins": [{"name": "gui/dast", "stages": ["think"]}],
        "model": {"path": str(tmp_path / "model")},
        "data": {"train": {"name": "rows", "path": str(tmp_path / "rows.jsonl")}},
        "rewards": [f"{tmp_path}/rewards.py:short"],
        "rollout": {"max_tokens": 12},
        "log": {"rollouts_every_steps": 1},
        "checkpoint": {"every_steps": None},
        "stages": [{**stage, "name": "think"}, {**stage, "name": "nothink"}],
    }
    (tmp_path / "task.yaml").write_text(json.dumps(values))
    train(load_config(str(tmp_path / "task.yaml")), tmp_path / "run", resume=False)

    steps = [record for record in read_metrics(tmp_path / "run") if record["kind"] == "step"]
    assert ["reward/dast" in record for record in steps] == [True, False]
    (log, _) = sorted((tmp_path / "run" / "rollouts").glob("*-train.jsonl"))
    rollouts = [json.loads(line) for line in log.read_text().splitlines()]
    for number in range(4):
        of_group = [rollout for rollout in rollouts if rollout["group"] == number]
        right = [rollout["rewards"]["short"] == 1 for rollout in of_group]
        expected = bonus([rollout["num_tokens"] for rollout in of_group], right)
        assert [rollout["rewards"]["dast"] for rollout in of_group] == pytest.approx(expected, abs=1e-6)
        totals = [was_right + added for was_right, added in zip(right, expected, strict=True)]
        assert [rollout["total"] for rollout in of_group] == pytest.approx(totals, abs=1e-6)
