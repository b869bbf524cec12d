"""Groups that a plugin samples again, before they are selected: seeds, resume, sampling ahead, several processes."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from mmrl_core.plugins import load_plugins
from mmrl_core.runs import read_metrics
from tests.ranks import REWARDS, joined, make_site

REVISE = '''
import os
from dataclasses import replace

from mmrl_core import hookimpl
from mmrl_core.types import Scores

CALLS = []

@hookimpl
def mmrl_revise_groups(run, groups, scores, resampler):
    """The first rollout of each group is replaced by the better of two of a longer prompt."""
    if os.environ.get("RANK", "0") != "0":
        return groups, scores
    prompts = []
    for group in groups:
        *before, last = group.prompt.messages
        last = {**last, "content": [*last["content"], {"type": "text", "text": " Think."}]}
        prompts.append(replace(group.prompt, id=f"{group.prompt.id}+longer", messages=[*before, last]))
    found = resampler.sample(prompts, 2)
    again = resampler.sample(prompts, 2)
    texts = [[r.completion for group in part for r in group.rollouts] for part in (groups, found, again)]
    CALLS.append((resampler.stage_step, resampler.sample([], 2), texts))
    new = resampler.score(found)
    index, revised, start = [], [], 0
    for place, group in enumerate(groups):
        best = 2 * place + int(new.totals[2 * place + 1] > new.totals[2 * place])
        rollout = found[place].rollouts[best - 2 * place]
        revised.append(replace(group, rollouts=[replace(rollout, outcome={"revised": 1}), *group.rollouts[1:]]))
        index += [len(scores.totals) + best, *range(start + 1, start + len(group.rollouts))]
        start += len(group.rollouts)
    return revised, Scores.join([scores, new]).select(index)
'''


@pytest.fixture
def revising(base_config, rewards_file):
    """`revising(ahead, kind)` -> plain config of 4 steps with a checkpoint after 2."""

    def config(ahead, kind="qwen2"):
        rollout = {"max_tokens": 6}
        if ahead:
            rollout |= {"steps_ahead": 1, "engine": {"name": "hf", "copy": True}}
        return {
            **base_config(kind),
            "plugins": ["probe_revise"],
            "rewards": [f"{rewards_file}:spread"],
            "rollout": rollout,
            "algorithm": {"importance_correction": {"level": "token", "mode": "truncate", "maximum": 2.0}},
            "optimizer": {"lr": 3e-3, "eps": 1e-3},
            "checkpoint": {"every_steps": 2, "keep": 9},
            "log": {"rollouts_every_steps": 1},
            "stages": [
                {"kind": "sft", "steps": 1, "prompts_per_step": 2},
                {"kind": "grpo", "steps": 4, "prompts_per_step": 2, "group_size": 3},
            ],
        }

    return config


def outcome(trainer, without_times):
    records = [without_times(record) for record in read_metrics(trainer.output) if record["kind"] == "step"]
    records = [{k: v for k, v in record.items() if not k.startswith("count/")} for record in records]
    rollouts = {path.name: path.read_text() for path in (trainer.output / "rollouts").glob("*.jsonl")}
    return (
        records,
        rollouts,
        {name: weight.detach().clone() for name, weight in trainer.policy.module.named_parameters()},
    )


def assert_equal(found, expected):
    assert found[:2] == expected[:2]
    assert [name for name, weight in found[2].items() if not torch.equal(weight, expected[2][name])] == []


@pytest.mark.parametrize("ahead", [False, True])
def test_revised_groups_are_trained_on_and_a_resumed_run_revises_the_same(
    ahead, make_trainer, revising, install, without_times, tmp_path
):
    install("probe_revise", REVISE)
    whole = make_trainer(revising(ahead))
    whole.run(False)
    import probe_revise

    calls = list(probe_revise.CALLS)
    assert [stage_step for stage_step, _, _ in calls] == [0, 1, 2, 3]
    assert all(nothing == [] for _, nothing, _ in calls)
    sampled = [tuple(part) for _, _, texts in calls for part in texts]
    assert len(set(sampled)) == len(sampled), "every call has a seed of its own"
    expected = outcome(whole, without_times)
    assert all(record["grad_norm"] > 0 for record in expected[0] if record["stage_kind"] == "grpo")
    assert all("time/revise" in r for r in read_metrics(whole.output) if r.get("stage_kind") == "grpo")
    for file in (whole.output / "rollouts").glob("*-train.jsonl"):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        assert [line["outcome"].get("revised", 0) for line in lines] == [1, 0, 0] * 2
    output = shutil.copytree(whole.output, tmp_path / "stopped")
    shutil.rmtree(output / "checkpoints" / "step-5")
    resumed = make_trainer(revising(ahead), output)
    resumed.run(True)
    assert [stage_step for stage_step, _, _ in probe_revise.CALLS[4:]] == [2, 3]
    assert_equal(outcome(resumed, without_times), expected)


def test_a_process_that_samples_nothing_again_waits_for_one_that_does(revising, start_ranks, tmp_path, monkeypatch):
    """With shared weights, of which each process has a part alone: the first process samples again, the other not."""
    make_site(tmp_path, REVISE)
    (tmp_path / "ranks.py").write_text(REWARDS)
    monkeypatch.syspath_prepend(tmp_path / "site")
    load_plugins.cache_clear()
    config = {**revising(False), "plugins": ["probe_ranks"], "sharding": {}, "rewards": [f"{tmp_path}/ranks.py:spread"]}
    config["stages"][1]["steps"] = 2
    (tmp_path / "task.yaml").write_text(json.dumps(config))
    output = tmp_path / "several"
    processes = start_ranks(tmp_path / "task.yaml", output)
    load_plugins.cache_clear()
    assert joined(processes)[0] == [0, 0], Path(f"{output}.0.log").read_text()
    steps = [record for record in read_metrics(output) if record.get("stage_kind") == "grpo"]
    assert len(steps) == 2 and all(step["grad_norm"] > 0 for step in steps)
