"""Whatever a hook, stage, loss, strategy, metric or policy returns is checked before a step reads it."""

from __future__ import annotations

import inspect
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mmrl_core import hookspecs
from mmrl_core.batching import pack
from mmrl_core.cli import main
from mmrl_core.errors import HookResultError, PluginError
from mmrl_core.loss_inputs import TokenStats
from mmrl_core.plugins import hook_results as checks
from mmrl_core.plugins.registry import KINDS, Registry
from mmrl_core.testing import build_tiny, make_group, make_loss_inputs, make_reward_view, make_scores
from mmrl_core.types import RolloutGroup

GROUPS = [make_group(["a", "b"], num_actions=[2, 1]), make_group(["c"], num_actions=[2])]
PROMPTS = [group.prompt for group in GROUPS]
ROWS = [row for group in GROUPS for rollout in group.rollouts for row in rollout.rows]
WIDTH = max(row.num_actions for row in ROWS)
SCORES = make_scores(totals=[1.0, math.nan, 0.0])
VIEW = make_reward_view([1.0, 0.0, 0.0], [0, 0, 1], mask=[[True, True]] * 3)
INPUTS = make_loss_inputs(torch.full((3, 2), -1.0, requires_grad=True))
LOSSES = -INPUTS.logprobs
STATS = TokenStats(torch.zeros(3, WIDTH))

NOT_PROMPTS = [None, "p", [], [1], PROMPTS[0]]
NOT_ROLLOUTS = [None, GROUPS[0], GROUPS[:1], [1, 2], [RolloutGroup(PROMPTS[0], []), GROUPS[1]]]
NOT_SCORES = [
    None,
    SCORES.totals,
    replace(SCORES, totals=torch.zeros(3, 1)),
    replace(SCORES, totals=torch.zeros(())),
    replace(SCORES, totals=[1.0, 0.0, 0.0]),
    replace(SCORES, totals=torch.ones(3, dtype=torch.int64)),
    replace(SCORES, totals=torch.full((3,), math.inf)),
    replace(SCORES, components={"iou": torch.zeros(2)}, weights={"iou": 1.0}),
    replace(SCORES, token_rewards={"t": [torch.zeros(99)] * 3}),
    replace(SCORES, step_rewards={"s": [[0.0]] * 2}),
    replace(SCORES, step_rewards={"s": [[0.0, 0.0]] * 3}),
]
NOT_ADVANTAGES = [
    None,
    [1.0, 0.0, 0.0],
    torch.tensor(1.0),
    torch.zeros(3, 1),
    torch.zeros(2),
    torch.ones(3, dtype=torch.int64),
    torch.full((3,), math.nan),
    torch.full((3,), math.inf),
    torch.zeros(3, requires_grad=True),
]
NOT_PAIRS = [None, LOSSES, (LOSSES,), (LOSSES, None), (LOSSES, LOSSES), [LOSSES, {}]]
NOT_METRICS = [{"m": LOSSES.detach()}, {"m": None}, {"m": "high"}, {1: 0.0}]
NOT_TOKEN_LOSSES = [
    *NOT_PAIRS,
    *((LOSSES, metrics) for metrics in NOT_METRICS),
    (LOSSES.mean(), {}),  # was spread over the tokens
    (LOSSES.mean(1), {}),
    (LOSSES.mean(1, keepdim=True), {}),
    (LOSSES.detach(), {}),
    (LOSSES.detach().long(), {}),
    (1.0, {}),
]
NOT_LOSSES = [
    *NOT_PAIRS,
    *((LOSSES.sum(), metrics) for metrics in NOT_METRICS),
    (LOSSES, {}),
    (LOSSES.sum()[None], {}),
    (LOSSES.sum().detach(), {}),
    (1.0, {}),
]
NOT_STATS = [
    None,
    STATS.logprobs,
    TokenStats(torch.zeros(3)),
    TokenStats(torch.zeros(3, 1)),
    TokenStats(torch.zeros(3, WIDTH, dtype=torch.int64)),
    TokenStats(STATS.logprobs, entropy=torch.zeros(3)),
    TokenStats(STATS.logprobs, penalties={"a": torch.zeros(3)}),
    TokenStats(STATS.logprobs, penalties={"a": 1.0}),
]
NOT_MEASURED = [None, 1.0, {"accuracy": None}, {"accuracy": [1.0]}, {"accuracy": "high"}, {1: 1.0}, [("a", 1.0)]]

BATCH = pack(GROUPS)

# What the step reads -> how it is checked, results that are right, and results that are not.
TABLE = {
    "mmrl_prompts": (checks.check_prompts, (), [PROMPTS, tuple(PROMPTS[:1])], NOT_PROMPTS),
    "mmrl_rollout": (checks.check_rollouts, (PROMPTS,), [GROUPS, tuple(GROUPS)], NOT_ROLLOUTS),
    "mmrl_score": (checks.check_scores, (GROUPS,), [SCORES], NOT_SCORES),
    "mmrl_revise_groups": (
        checks.check_groups,
        (),
        [(GROUPS, SCORES)],
        [None, [GROUPS, SCORES], ([], SCORES), (GROUPS[0], SCORES), *((GROUPS, wrong) for wrong in NOT_SCORES)],
    ),
    "mmrl_shape_rewards": (checks.check_scores, (GROUPS,), [SCORES.with_component("x", torch.ones(3))], NOT_SCORES),
    "mmrl_select_groups": (
        checks.check_choices,
        (GROUPS,),
        [[True, False], [np.True_, np.False_], list(torch.tensor([True, False]))],
        [None, True, [True], [0, 1], [1.0, 0.0], ["yes", "no"], torch.tensor([True, False])],
    ),
    "mmrl_extend_groups": (
        checks.check_groups,
        (),
        [(GROUPS, SCORES)],
        [None, [GROUPS, SCORES], ([], SCORES), (GROUPS[0], SCORES), *((GROUPS, wrong) for wrong in NOT_SCORES)],
    ),
    "mmrl_compute_advantages": (checks.check_advantages, (VIEW,), [torch.zeros(3), torch.zeros(3, 2)], NOT_ADVANTAGES),
    "mmrl_batch": (
        checks.check_batch,
        (),
        [BATCH, BATCH.select(torch.tensor([2]))],
        [
            None,
            ROWS,
            replace(BATCH, rows=[]),
            replace(BATCH, rows=ROWS[:2]),
            replace(BATCH, advantages=torch.zeros(3)),
            replace(BATCH, advantages=torch.full((3, WIDTH), float("nan"))),
            replace(BATCH, columns={"entropy": torch.zeros(3)}),
            replace(BATCH, old_logprobs=torch.zeros(2, WIDTH)),
        ],
    ),
    "mmrl_policy_loss": (checks.check_loss, (), [(LOSSES.sum(), {}), (LOSSES.sum(), {"m": 1})], NOT_LOSSES),
    "advantage": (checks.check_advantages, (VIEW,), [torch.zeros(3), torch.zeros(3, 2)], NOT_ADVANTAGES),
    "loss": (
        checks.check_token_losses,
        (INPUTS,),
        [(LOSSES, {}), (LOSSES, {"m": torch.tensor(1.0), "n": 2.0})],
        NOT_TOKEN_LOSSES,
    ),
    "strategy": (checks.check_rollouts, (PROMPTS,), [GROUPS], NOT_ROLLOUTS),
    "policy": (checks.check_token_stats, (ROWS,), [STATS, TokenStats(STATS.logprobs, STATS.logprobs)], NOT_STATS),
    "metric": (checks.check_measured, (), [{}, {"a": 1, "b": np.float32(0.5), "c": torch.tensor(1.0)}], NOT_MEASURED),
}

OTHERS = {
    "source": "rows, which break one by one",
    "statistic": "checked by the policy",
    "reward": "judgements, which are unscored one by one",
    "tool": "checked by the conversation",
    "environment": "checked by the conversation",
    "engine": "checked by the policy",
    "model": "a folder, which the policy loads",
    "behaviour": "its hooks",
    "view": "drawn by the report alone",
}
"""Kinds whose results no step reads, and what becomes of them."""


def answering_hooks() -> set[str]:
    """Hooks whose first answer decides."""
    specs = {name: getattr(spec, "mmrl_spec", None) for name, spec in inspect.getmembers(hookspecs, callable)}
    return {name for name, options in specs.items() if options and options["firstresult"]}


def test_the_table_has_every_hook_and_kind_whose_result_a_step_reads():
    assert answering_hooks() == {name for name in TABLE if name.startswith("mmrl_")}
    assert KINDS.keys() == {name for name in TABLE if not name.startswith("mmrl_")} | OTHERS.keys()


@pytest.mark.parametrize("name", TABLE)
def test_right_results_pass(name):
    check, given, right, _ = TABLE[name]
    for result in right:
        check(result, *given, "the source")


@pytest.mark.parametrize(("name", "number"), [(name, n) for name, row in TABLE.items() for n in range(len(row[3]))])
def test_wrong_results_are_refused_in_one_sentence_that_names_the_source(name, number):
    check, given, _, wrong = TABLE[name]
    with pytest.raises(HookResultError, match=r"^the source [^\n]*\.$"):
        check(wrong[number], *given, "the source")


LOSS = """
def scalar(inputs):
    return -(inputs.logprobs * inputs.advantages).mean(), {}

def bare(inputs):
    return -(inputs.logprobs * inputs.advantages)

def spread(completions, samples):
    return [float(len(completion) % 7) for completion in completions]
"""


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("scalar", "losses \\(\\); expected \\(\\d+, \\d+\\), one for each token"),
        ("bare", "a tensor .*; expected a pair"),
    ],
)
def test_a_run_with_a_wrong_loss_ends_with_its_name_and_exit_code_2(loss, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    build_tiny("qwen2", tmp_path / "model")
    Path("mine.py").write_text(LOSS)
    Path("rows.jsonl").write_text('{"question": "1 and 1?"}\n' * 4)
    config = {
        "name": "mine",
        "model": {"path": "model"},
        "data": {"train": {"path": "rows.jsonl"}},
        "prompt": {"text": "{question}"},
        "rewards": ["mine.py:spread"],
        "rollout": {"max_tokens": 4},
        "algorithm": {"loss": f"mine.py:{loss}"},
        "stages": [{"kind": "grpo", "steps": 1, "prompts_per_step": 2, "group_size": 4}],
    }
    Path("task.yaml").write_text(json.dumps(config))
    assert main(["train", "task.yaml", "--output", "run"]) == 2
    assert re.search(f"mmrl: .*loss 'mine.py:{loss}' returned {message}", capsys.readouterr().err)


def test_needs_given_as_a_text_are_one_name(tmp_path):
    registry = Registry("colours")
    registry.add("loss", "mine", "module:attribute", "a loss", needs="entropy")
    assert registry.get("loss", "colours/mine").details["needs"] == ("entropy",)
    path = tmp_path / "mine.py"
    path.write_text("def loss(inputs):\n    return -inputs.logprobs, {}\n\nloss.needs = 'entropy'\n")
    assert registry.get("loss", f"{path}:loss").details["needs"] == ("entropy",)
    with pytest.raises(PluginError, match=r"loss 'wrong' is declared with needs \[1\], which is no list of names"):
        registry.add("loss", "wrong", "module:attribute", "a loss", needs=[1])
