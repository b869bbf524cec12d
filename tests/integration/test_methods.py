"""What methods may ask of the core, in real steps: losses of scores, statistics, a changed batch, schedules."""

import sys
import textwrap

import pytest
import torch

from mmrl_core.config import load_config
from mmrl_core.errors import ConfigError, PluginError, PolicyError
from mmrl_core.runs import read_metrics

METHODS = """
import torch
from dataclasses import replace
from mmrl_core import hookimpl

SEEN = []

def pairs(inputs, *, beta=1.0):
    better = (inputs.rewards[:, None] > inputs.rewards) & (inputs.group_ids[:, None] == inputs.group_ids)
    num_pairs = float(inputs.reduce_sum(better.sum().double()))
    margins = beta * (inputs.scores[:, None] - inputs.scores)
    SEEN.append({"scores": inputs.scores.detach(), "frozen": dict(inputs.frozen_scores), "beta": beta})
    loss = -(torch.nn.functional.logsigmoid(margins) * better).sum() / max(num_pairs, 1.0)
    return loss, {"pairs": float(better.sum())}

pairs.unit = "score"
pairs.frozen = "reference"

def by_row(inputs):
    means = (inputs.logprobs * inputs.mask).sum(1) / inputs.mask.sum(1).clamp(min=1)
    return -means * inputs.advantages[:, 0], {}

by_row.unit = "row"

def own_baseline(advantages, view):
    SEEN.append(view)
    return advantages - 0.3

own_baseline.baseline = "own"
own_baseline.needs = ("entropy", "top_probability")

def unknown(advantages, view):
    return advantages

unknown.needs = "surprise"

def weighted(inputs):
    SEEN.append(inputs)
    return -inputs.advantages * inputs.logprobs * inputs.columns["half"], {}

class Halves:
    @hookimpl
    def mmrl_batch(self, run, batch):
        SEEN.append(batch)
        first = replace(batch, columns={**batch.columns, "half": torch.full(batch.mask.shape, 0.5)})
        return first.select(torch.arange(len(batch) // 2))

Halves.needs = ("entropy",)

class Stops:
    @hookimpl
    def mmrl_step_end(self, run):
        if run.state.step == 2:
            run.stop("enough was seen")
"""


@pytest.fixture
def methods(tmp_path):
    path = tmp_path / "methods.py"
    path.write_text(textwrap.dedent(METHODS))
    return path


@pytest.fixture
def grpo(base_config, rewards_file):
    """`grpo(algorithm={...}, stage={...}, **config)` -> plain config of one stage, 2 steps of 4 x 4, text alone."""

    def config(algorithm, stage=None, **settings):
        return {
            **base_config("qwen2"),
            "rewards": [f"{rewards_file}:spread"],
            "algorithm": algorithm,
            "stages": [{"kind": "grpo", "steps": 2, "prompts_per_step": 4, "group_size": 4, **(stage or {})}],
            **settings,
        }

    return config


def seen_by(path):
    """What the entries of the file saw."""
    (module,) = (module for module in list(sys.modules.values()) if getattr(module, "__file__", None) == str(path))
    return module.SEEN


def test_a_loss_of_scores_does_not_depend_on_micro_batches(run, grpo, methods):
    """In one pass the scores come from the pass that trains; a row at a time they have a pass of their own."""
    algorithm = {"loss": {"name": f"{methods}:pairs", "beta": 0.5}, "updates_per_rollout": 2}
    whole, steps = run(grpo(algorithm))
    split, split_steps = run(grpo(algorithm, {"micro_batch_rows": 1}))
    for one, other in zip(steps, split_steps, strict=True):
        assert one["pairs"] == other["pairs"] > 0
        for name in ("loss", "policy_loss", "grad_norm", "kl_ref"):
            assert one[name] == pytest.approx(other[name], rel=1e-5, abs=1e-7), name
        assert one["loss"] == pytest.approx(one["policy_loss"], abs=1e-6)
    assert steps[0]["policy_loss"] > 0 and steps[0]["grad_norm"] > 0
    for parameter, other in zip(whole.policy.module.parameters(), split.policy.module.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, rtol=0, atol=2e-4)
    assert split_steps[0]["count/score_tokens"] > steps[0]["count/score_tokens"]


def test_a_loss_of_rows_is_the_mean_over_rows(run, grpo, methods):
    algorithm = {"loss": f"{methods}:by_row", "aggregate": "sequence_mean"}
    _, by_row = run(grpo(algorithm, {"steps": 1}))
    _, by_token = run(grpo({"loss": "reinforce", "aggregate": "sequence_mean"}, {"steps": 1}))
    assert by_row[0]["grad_norm"] == pytest.approx(by_token[0]["grad_norm"], rel=1e-5)
    assert by_row[0]["policy_loss"] == pytest.approx(by_token[0]["policy_loss"], rel=1e-5, abs=1e-7)


def test_a_stage_with_a_baseline_of_its_own_needs_no_group(run, grpo, methods):
    trainer, steps = run(grpo({"advantage": [f"{methods}:own_baseline"]}, {"group_size": 1, "steps": 1}))
    assert steps[0]["grad_norm"] > 0
    view = next(item for item in seen_by(methods) if hasattr(item, "stats"))
    assert len(view.rows) == len(view.prompts) == len(view.rewards) == 4
    assert [prompt.id for prompt in view.prompts] == [row.prompt_id for row in view.rows]
    assert view.stats["entropy"].shape == view.mask.shape
    assert bool((view.stats["entropy"][view.mask] > 0).all())
    top = view.stats["top_probability"][view.mask]
    assert bool(((top > 0) & (top <= 1)).all()) and trainer is not None


def test_statistics_are_those_of_the_policy_before_the_update(make_trainer, grpo, methods):
    trainer = make_trainer(grpo({"advantage": [f"{methods}:own_baseline"]}, {"steps": 1}, optimizer={"lr": 1e-8}))
    trainer.run(resume=False)
    view = next(item for item in seen_by(methods) if hasattr(item, "stats"))
    now = trainer.policy.logprobs(view.rows, needs={"entropy"})
    torch.testing.assert_close(view.stats["entropy"], now.entropy.detach(), rtol=0, atol=1e-4)
    torch.testing.assert_close(view.stats["logprobs"], now.logprobs.detach(), rtol=0, atol=1e-4)


def test_a_need_that_nobody_knows_is_named_with_who_needs_it(run, grpo, methods):
    with pytest.raises(PolicyError, match="cannot compute surprise"):
        run(grpo({"advantage": ["group_relative", f"{methods}:unknown"]}))


@pytest.mark.parametrize("name", ["nowhere/entropy", "broken.py:entropy"])
def test_a_statistic_that_is_missing_is_not_taken_for_a_quantity_of_the_policy(
    run, grpo, methods, tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("import no_such_module")
    methods.write_text(methods.read_text().replace('"surprise"', repr(name)))
    with pytest.raises(PluginError, match=f"statistic '{name}'"):
        run(grpo({"advantage": ["group_relative", f"{methods}:unknown"]}))


def test_a_plugin_may_leave_rows_out_and_give_the_loss_columns(run, grpo, methods):
    config = grpo({"loss": f"{methods}:weighted"}, {"steps": 1}, plugins=[f"{methods}:Halves"])
    trainer, steps = run(config)
    batch, *inputs = seen_by(methods)
    assert len(batch) == 16 and "entropy" in batch.columns
    assert sum(len(item.logprobs) for item in inputs) == 8
    assert all(bool((item.columns["half"][item.mask] == 0.5).all()) for item in inputs)
    assert steps[0]["grad_norm"] > 0 and (trainer.output / "rollouts").is_dir()


def test_options_follow_their_schedule(run, grpo, methods):
    beta = {"from": 1.0, "to": 0.0, "steps": 4, "kind": "linear"}
    run(grpo({"loss": {"name": f"{methods}:pairs", "beta": beta}}, {"steps": 3}))
    assert [item["beta"] for item in seen_by(methods)] == [1.0, 0.75, 0.5]


def test_a_run_can_be_stopped_by_a_plugin_and_goes_on(make_trainer, grpo, methods, tmp_path):
    config = grpo({}, {"steps": 4}, plugins=[f"{methods}:Stops"])
    first = make_trainer(config, tmp_path / "stopped")
    first.run(resume=False)
    assert first.state.step == 2 and first.state.stage == 0
    second = make_trainer(config, tmp_path / "stopped")
    second.run(resume=True)
    steps = [record["step"] for record in read_metrics(tmp_path / "stopped") if record["kind"] == "step"]
    assert steps == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("algorithm", "stage", "says"),
    [
        ({}, {"group_size": 1}, "group_size is 1: a group of one has no baseline"),
        (
            {"loss": "METHODS:pairs", "off_policy_threshold": 0.1},
            {},
            "compares trajectories and has no ratios of tokens, so off_policy_threshold would do nothing",
        ),
        ({"loss": {"name": "clipped", "clip_high": {"from": 0.1, "to": "x", "steps": 3}}}, {}, "schedule of option"),
        ({"loss": {"name": "clipped", "clip_high": {"from": 0.1, "to": 0.2}}}, {}, "steps: Field required"),
        ({"loss": {"name": "clipped", "ratio": {"from": 0.1, "to": 0.2, "steps": 2}}}, {}, "option 'ratio'"),
    ],
)
def test_what_cannot_go_together_is_refused(grpo, make_config, methods, algorithm, stage, says):
    if isinstance(algorithm.get("loss"), str):
        algorithm = {**algorithm, "loss": algorithm["loss"].replace("METHODS", str(methods))}
    with pytest.raises(ConfigError) as caught:
        make_config(grpo(algorithm, stage))
    assert says in str(caught.value)


def test_two_whole_methods_side_by_side_are_refused(tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(f"algorithm: {{method: {name.upper()}, loss: reinforce}}\n")
    task = tmp_path / "task.yaml"
    task.write_text("extends: [one.yaml, two.yaml]\nname: x\n")
    with pytest.raises(ConfigError, match=r"'one.yaml' \(ONE\) and 'two.yaml' \(TWO\) are both whole methods"):
        load_config(str(task))
    task.write_text("extends: [one.yaml]\nname: x\nalgorithm: {method: MINE}\n")  # a user's own choice
    assert load_config(str(task)).algorithm.method == "MINE"
