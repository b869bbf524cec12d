"""Scaf-GRPO: which level of hints is taken, what it replaces, and steps of the proving ground with it."""

import json
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from mmrl_core.advantages import group_relative_advantages
from mmrl_core.config import load_config
from mmrl_core.errors import ConfigError, TaskDataError, UnfitPromptError
from mmrl_core.runs import read_metrics
from mmrl_core.testing import make_group, make_scores
from mmrl_core.types import Prompt
from mmrl_text_reasoning.methods.scaf_grpo import ScafGRPO, exempt_steps, hint_levels

HINTS = {name: [f"{name[0].upper()}{n}" for n in range(1, 5)] for name in ("solution", "knowledge", "planning")}
LONGEST = 60  # characters of a prompt that the policy below takes


def prompt(number=0, **row):
    question = {"role": "user", "content": [{"type": "text", "text": "What?"}]}
    return Prompt(f"train:{number}", [question], {"hints": HINTS, **row})


def text_of(asked):
    return "".join(part["text"] for part in asked.messages[-1]["content"]) + asked.prefix


class Solver:
    """Stands for policy and reward: right if the prompt ends with one of the hints that help."""

    def __init__(self, *helps, stage_step=50):
        self.helps, self.stage_step, self.asked = helps, stage_step, []

    def prepare(self, prompts):
        if any(len(text_of(asked)) > LONGEST for asked in prompts):
            raise UnfitPromptError("too long")

    def sample(self, prompts, group_size):
        assert group_size == 1
        if prompts:
            self.asked.append([text_of(asked) for asked in prompts])
        return [observed(make_group([text_of(asked)], prompt=asked)) for asked in prompts]

    def score(self, groups):
        right = [float(group.rollouts[0].completion.endswith(self.helps)) for group in groups]
        return make_scores({"accuracy": right, "length": [9.0] * len(right)}, weights={"accuracy": 1.0, "length": 0.0})


def observed(group):
    """With the prompt's id as what each row has seen, and logprobs."""
    seen = {"observation": group.prompt.id, "sampler_logprobs": torch.zeros(1)}
    return replace(group, rollouts=[replace(r, rows=[replace(r.rows[0], **seen)]) for r in group.rollouts])


def revised(solver, rewards, rows=None, **options):
    """Groups and scores after the hook; `rewards` holds a list for each group."""
    rows = [{} for _ in rewards] if rows is None else rows
    groups = [
        observed(make_group([f"no {n}" for n in range(len(of))], prompt=prompt(place, **row)))
        for place, (of, row) in enumerate(zip(rewards, rows, strict=True))
    ]
    flat = [reward for of in rewards for reward in of]
    scores = make_scores({"accuracy": flat, "length": [1.0] * len(flat)}, weights={"accuracy": 1.0, "length": 0.0})
    scores = replace(scores, failures={"accuracy": 1})
    stage = SimpleNamespace(steps=100)
    run = SimpleNamespace(stage=stage, config=SimpleNamespace(seed=0), policy=solver, counts=Counter())
    method = ScafGRPO(**{"exempt": 50, "slot": "first", **options})
    result = wrapped(method.mmrl_revise_groups(run, solver), (groups, scores))
    assert not run.counts, "they are added in the thread of the run"
    assert wrapped(method.mmrl_shape_rewards(run), result[1]) is result[1]
    return groups, *result, run.counts


def wrapped(call, result):
    """What a wrapper makes of a result."""
    next(call)
    with pytest.raises(StopIteration) as stop:
        call.send(result)
    return stop.value.value


def test_worked_numbers_of_the_code():
    """Right from level 4 on: rewards [1, 0, ..., 0], and GRPO's advantages of them."""
    before, groups, scores, counts = revised(Solver("K4"), [[0.0] * 8])
    assert scores.totals.tolist() == [1.0] + [0.0] * 7
    advantages = group_relative_advantages(scores.totals, torch.zeros(8, dtype=torch.int64), eps=1e-6)
    assert advantages.tolist() == pytest.approx([2.474867] + [-0.353552] * 7, abs=2e-6)
    assert groups[0].rollouts[1:] == before[0].rollouts[1:] and groups[0].prompt is before[0].prompt
    assert groups[0].rollouts[0].outcome["hint_level"] == 4
    assert groups[0].rollouts[0].rows[0].prompt_id == "train:0+hint-4"
    assert scores.components["length"].tolist() == [9.0] + [1.0] * 7 and scores.failures == {"accuracy": 1}
    assert counts == {"hints_unsolved": 1, "hints_sampled": 4, "hints_used": 1}


def test_levels_are_cumulative_within_their_category_alone():
    """The second hint of the second category is level 6, and its prompt has no hint of the first category."""
    solver = Solver("P2", "S1")
    _, groups, _, _ = revised(solver, [[0.0, 0.0]])
    said = groups[0].rollouts[0].outcome
    assert said == {"hint_level": 6, "hint": "Planning hints:\nP1\nP2"}
    assert solver.asked[-1] == ["What?\n\nPlanning hints:\nP1\nP2"] and len(solver.asked) == 6
    assert [level.hints[-1] for level in hint_levels(prompt(), "hints", ["knowledge", "solution"])] == [
        *HINTS["knowledge"],
        *HINTS["solution"],
    ]


def test_only_groups_without_success_are_asked_again_and_each_stops_at_its_first_success():
    solver = Solver("K2", "mine")
    rewards = [[0.0, 0.0], [0.0, 1.0], [float("nan")] * 2, [0.0, 0.0], [0.0, float("nan")]]
    rows = [{}, {}, {}, {"hints": ["mine"]}, {"hints": None}]
    before, groups, scores, counts = revised(solver, rewards, rows)
    assert [len(asked) for asked in solver.asked] == [2, 1]
    changed = [new is not old for new, old in zip(groups, before, strict=True)]
    assert changed == [True, False, False, True, False]
    assert scores.totals.nan_to_num(-1).tolist() == [1, 0, 0, 1, -1, -1, 1, 0, 0, -1]
    assert counts["hints_unsolved"] == 2 and groups[3].rollouts[0].outcome["hint"] == "Hints:\nmine"


def test_without_a_success_the_group_stays():
    solver = Solver("nothing")
    before, groups, scores, _ = revised(solver, [[0.0, 0.0]])
    assert groups[0] is before[0] and scores.totals.tolist() == [0.0, 0.0] and len(solver.asked) == 12


@pytest.mark.parametrize(("exempt", "stage_step", "asks"), [(50, 49, 0), (50, 50, 1), (0.15, 14, 0), (0.15, 15, 1)])
def test_the_first_steps_have_no_hints(exempt, stage_step, asks):
    solver = Solver("K1", stage_step=stage_step)
    revised(solver, [[0.0, 0.0]], exempt=exempt)
    assert len(solver.asked) == asks


def test_a_share_of_the_steps_is_rounded_up_and_needs_them():
    """0.15 of 40 steps: hints from the seventh step on."""
    assert [exempt_steps(0.15, 40), exempt_steps(0.15, 41), exempt_steps(0, None), exempt_steps(50, 40)] == [
        6,
        7,
        0,
        50,
    ]
    with pytest.raises(ConfigError, match=r"exempt 0\.15 is a share of the stage's steps"):
        exempt_steps(0.15, None)


def test_the_random_slot_depends_on_prompt_and_step():
    def slots(step):
        _, groups, _, _ = revised(Solver("K1", stage_step=step), [[0.0] * 4] * 12, slot="random")
        return [next(n for n, r in enumerate(group.rollouts) if "hint" in r.outcome) for group in groups]

    assert set(slots(60)) == {0, 1, 2, 3} and slots(60) == slots(60) != slots(61)


def test_hints_that_are_too_long_are_left_out():
    solver = Solver("K2", "S1")
    long = {"knowledge": ["K1", "x" * 50 + "K2"], "solution": ["S1"]}
    _, groups, _, counts = revised(solver, [[0.0, 0.0]], [{"hints": long}])
    assert groups[0].rollouts[0].outcome["hint_level"] == 3 and counts["hints_sampled"] == 2


def test_a_hint_may_begin_the_answer():
    solver = Solver("S1S2")
    _, groups, _, _ = revised(solver, [[0.0, 0.0]], place="prefix", categories=["solution"])
    assert solver.asked == [["What?S1"], ["What?S1S2"]]
    assert groups[0].rollouts[0].outcome == {"hint_level": 2, "hint": "S1S2"}
    with pytest.raises(ConfigError, match="cannot be trained without them"):
        ScafGRPO(place="prefix", train_under="question")


def test_a_success_may_be_trained_under_the_question_alone():
    for under, seen in (("question", "train:0"), ("hint", "train:0+hint-1")):
        _, groups, _, _ = revised(Solver("K1"), [[0.0, 0.0]], train_under=under)
        (row,) = groups[0].rollouts[0].rows
        assert row.observation == row.prompt_id == seen
        assert bool(row.sampler_logprobs.isnan().all()) == (under == "question")


@pytest.mark.parametrize("value", ["K1", [1], {"knowledge": "K1"}])
def test_other_hints_are_named_by_their_row(value):
    with pytest.raises(TaskDataError, match="row train:0: hints holds"):
        hint_levels(prompt(hints=value), "hints", ["knowledge"])


def test_an_unknown_reward_is_named():
    with pytest.raises(ConfigError, match="no reward 'right'; rewards: accuracy, length"):
        revised(Solver("K1"), [[0.0]], reward="right")


@pytest.mark.parametrize(
    "options", [{"place": "prefix"}, {"place": "prompt", "categories": ["solution"], "train_under": "question"}]
)
def test_the_proving_ground_trains_with_hints(options, tmp_path, monkeypatch):
    """A short cold start on words of up to three buttons, then words of three, of which two samples solve few."""
    from mmrl_core.trainer import Trainer

    monkeypatch.setenv("MMRL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "task.yaml").write_text("name: task\nextends: [text_reasoning/demo_walks, algorithm/scaf_grpo]\n")
    hints = json.dumps([{"name": "text_reasoning/scaf_grpo", "exempt": 1, **options}])
    settings = ["stages.sft.steps=80", "stages.sft.data.train.length=[1, 3]", "stages.sft.data.train.num_rows=2560"]
    settings += ["stages.sft.data.train.strides=[1, 0, 0]", "data.train.length=[3, 3]"]
    settings += ["stages.grpo.steps=3", "stages.grpo.prompts_per_step=8", "stages.grpo.group_size=2"]
    settings += [f"plugins={hints}", "data.held_out=null", "log.rollouts_every_steps=1"]
    trainer = Trainer(load_config(str(tmp_path / "task.yaml"), settings), tmp_path / "run")
    try:
        trainer.run(resume=False)
    finally:
        trainer.close()
    first, *steps = [r for r in read_metrics(tmp_path / "run") if r.get("stage_kind") == "grpo"]
    assert "count/hints_sampled" not in first
    assert all(step["count/hints_sampled"] >= step["count/hints_unsolved"] > 0 for step in steps)
    lines = [
        json.loads(line)
        for path in sorted((tmp_path / "run" / "rollouts").glob("*-train.jsonl"))
        for line in path.read_text().splitlines()
    ]
    marked = [line for line in lines if "hint" in line["outcome"]]
    assert len(marked) == sum(step.get("count/hints_used", 0) for step in steps)
    for line in marked:
        assert line["total"] == 1 and line["advantage"] > 0
        others = [o for o in lines if (o["step"], o["group"]) == (line["step"], line["group"]) and o is not line]
        assert all(other["total"] == 0 > other["advantage"] for other in others)
        if options["place"] == "prefix":
            assert line["completion"].startswith(line["outcome"]["hint"])
    if options["place"] == "prefix":
        assert marked
