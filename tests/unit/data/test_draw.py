"""Mixtures of tasks: what is drawn, how a config names parts, and rewards and environments by part."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from mmrl_core.config import dump_config, load_config
from mmrl_core.config.schema import DataConfig, PromptConfig, RewardConfig, SourceConfig
from mmrl_core.conversation.environment import PartEnvironments, Reply
from mmrl_core.data.draw import Mixture, epoch_order, in_turns, interleave
from mmrl_core.data.prompts import PromptSource
from mmrl_core.errors import ConfigError, RewardError
from mmrl_core.plugins import load_plugins
from mmrl_core.scoring.runner import RewardRunner
from mmrl_core.testing import check_task, preview_task
from mmrl_core.types import Prompt, Rollout, RolloutGroup

NAN = math.nan


# Drawing


def test_draws_are_due_in_order_of_time():
    """Weights 2 and 3: draws of the first are due at 1/4, 3/4, 5/4, ...; of the second at 1/6, 1/2, 5/6, 7/6, ..."""
    assert interleave([2, 3], 0, 7) == [(1, 0), (0, 0), (1, 1), (0, 1), (1, 2), (1, 3), (0, 2)]


def test_whole_weights_have_their_shares_in_every_period_wherever_it_starts():
    for start in (0, 1, 7, 10**12 + 3):
        assert Counter(index for index, _ in interleave([1, 3, 2], start, 6)) == {0: 1, 1: 3, 2: 2}


def test_any_stretch_from_the_start_has_the_shares_of_the_weights():
    weights = [0.37, 2.0, 1e-3, 0.9]
    drawn = Counter[int]()
    for place, (index, nth) in enumerate(interleave(weights, 0, 5000), start=1):
        assert nth == drawn[index]  # no draw of a source is left out or repeated
        drawn[index] += 1
        for i, weight in enumerate(weights):
            assert abs(drawn[i] - place * weight / sum(weights)) <= len(weights) / 2


@pytest.mark.parametrize("position", [0, 1, 2, 3, 50, 777, 4321])
def test_a_stretch_is_the_same_from_wherever_it_is_computed(position):
    weights = [0.1, 0.3, 1 / 3, 7]
    assert interleave(weights, position, 100) == interleave(weights, 0, position + 100)[position:]


def numbered(folder: Path, part: str, num_rows: int, broken: Any = ()) -> PromptSource:
    """Rows {"q": text, "i": number}; a broken one is no JSON."""
    path = folder / f"{part}.jsonl"
    path.write_text("".join("{\n" if i in broken else json.dumps({"q": "?", "i": i}) + "\n" for i in range(num_rows)))
    data, prompt = DataConfig(max_broken=1.0), PromptConfig(text="{q}")
    return PromptSource(load_plugins(), SourceConfig(path=str(path)), prompt, data, name="train", part=part)


def ids(prompts) -> list[str]:
    return [prompt.id for prompt in prompts]


def test_each_part_goes_through_its_own_epochs_and_an_epoch_is_all_rows(tmp_path):
    mixture = Mixture([numbered(tmp_path, "a", 3), numbered(tmp_path, "b", 9)], [1, 1])
    whole = mixture.draw(0, 24, seed=5)
    assert whole.position == 24 and whole.epochs_finished == 2 and len(mixture) == 12
    drawn = {part: [p.sample["i"] for p in whole.prompts if p.part == part] for part in "ab"}
    assert [sorted(drawn["a"][start : start + 3]) for start in range(0, 12, 3)] == [[0, 1, 2]] * 4
    assert sorted(drawn["b"][:9]) == list(range(9)) and len(drawn["b"]) == 12
    assert drawn["a"][:3] == epoch_order(3, "5 a", 0)  # parts of equal length are not drawn in step
    assert ids(whole.prompts)[:2] == [f"a/train:{drawn['a'][0]}", f"b/train:{drawn['b'][0]}"]
    steps = [mixture.draw(position, 8, seed=5) for position in (0, 8, 16)]
    assert [i for step in steps for i in ids(step.prompts)] == ids(whole.prompts)
    assert [step.epochs_finished for step in steps] == [0, 1, 1]


def test_processes_share_a_draw_and_each_part_of_it_without_overlap(tmp_path):
    def mixture():
        return Mixture([numbered(tmp_path, "a", 40, {3, 4}), numbered(tmp_path, "b", 40, range(10, 16))], [1, 1])

    whole = mixture().draw(16, 8, seed=2)
    shares = [mixture().draw(16, 8, seed=2, rank=rank, world_size=2) for rank in (0, 1)]
    assert [Counter(p.part for p in share.prompts) for share in shares] == [{"a": 2, "b": 2}] * 2
    assert sorted(ids(p for share in shares for p in share.prompts)) == sorted(ids(whole.prompts))
    assert len(set(ids(whole.prompts))) == 8
    assert {share.position for share in shares} == {24}


def test_a_broken_row_is_stood_in_for_by_a_row_of_its_part_that_the_draw_does_not_take(tmp_path):
    order = epoch_order(8, "1 a", 0)
    mixture = Mixture([numbered(tmp_path, "a", 8, {order[0]}), numbered(tmp_path, "b", 8)], [3, 1])
    drawn = mixture.draw(0, 4, seed=1)
    # Three places of the draw are of a: rows order[0..2]; for the first stands the one three further on.
    assert [p.sample["i"] for p in drawn.prompts if p.part == "a"] == [order[3], order[1], order[2]]
    assert [(row.id, row.index) for row in drawn.set_aside] == [(f"a/train:{order[0]}", order[0])]


def test_what_is_shown_takes_parts_in_turn():
    prompts = [Prompt(str(i), [], {}, part=part) for i, part in enumerate("aaabac")]
    assert in_turns(prompts, 4) == [0, 3, 5, 1]
    assert in_turns([Prompt(str(i), [], {}) for i in range(5)], 3) == [0, 1, 2]


# Config


@pytest.fixture
def write(tmp_path, monkeypatch):
    """`write(text, name)` -> name of a YAML file in the current folder, where the task `base.yaml` and data lie too."""
    monkeypatch.chdir(tmp_path)
    rows = [{"q": f"say {i}", "a": str(i)} for i in range(30)]
    for name in ("one", "two"):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("r.py").write_text(
        "def exact(completions, samples):\n    '''1 if right.'''\n"
        "    return [float(c == s['a']) for c, s in zip(completions, samples)]\n"
        "exact.maximum = 1.0\n"
        "def other(completions, samples): ...\n"
        "def share(completions, samples): ...\n"
        "def top(completions, samples): ...\n"
        "class Look: ...\n"
    )

    def write_file(text: str, name: str = "run.yaml") -> str:
        Path(name).write_text(text)
        return name

    write_file(
        "name: some/base\n"
        "data: {train: {path: one.jsonl, columns: [q, a]}, held_out: {path: one.jsonl}}\n"
        "prompt: {text: '{q}', answer: '{a}'}\n"
        "rewards: [{name: 'r.py:exact', weight: 0.5}]\n"
        "rollout: {strategy: multi_turn, tools: ['r.py:Look'], environment: {name: tools, max_calls: 2}}\n"
        "eval: {metrics: ['r.py:share']}\n",
        "base.yaml",
    )
    return write_file


def problems(path: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value).splitlines()


INLINE = "{name: inline, weight: 3, data: {train: {path: two.jsonl}}, rewards: ['r.py:exact']}"


def test_a_part_takes_from_its_task_or_else_from_where_it_stands(write):
    config = load_config(
        write(
            "name: x\nprompt: {text: 'top {q}'}\nrewards: ['r.py:other']\neval: {metrics: ['r.py:top']}\n"
            "data: {train: {path: top.jsonl, limit: 5}}\n"
            f"mixture: [{{task: base.yaml, prompt: {{answer: '<{{a}}>'}}}}, {INLINE}]\n"
        )
    )
    base, inline = config.mixture
    assert (base.name, base.weight, base.prompt.text, base.prompt.answer) == ("base", 1.0, "{q}", "<{a}>")
    assert base.data.train is not None and base.data.train.options == {"path": "one.jsonl", "columns": ["q", "a"]}
    assert [(r.name, r.weight) for r in base.rewards] == [("r.py:exact", 0.5)]
    assert [tool.name for tool in base.tools] == ["r.py:Look"] and base.environment is not None
    assert base.environment.options == {"max_calls": 2} and base.metrics[0].name == "r.py:share"
    assert (inline.weight, inline.prompt.text, inline.tools, inline.metrics[0].name) == (
        3.0,
        "top {q}",
        [],
        "r.py:top",
    )
    assert inline.data.train is not None and inline.data.held_out is None and inline.data.train.limit == 5
    assert config.where("mixture", 0, "rewards", 0, "weight") == "base.yaml:4"
    assert config.where("mixture", 1, "weight") == "run.yaml:6"


def test_a_stage_changes_parts_by_name_and_may_have_no_mixture(write):
    config = load_config(
        write(
            f"name: x\nmixture: [{{task: base.yaml}}, {INLINE}]\n"
            "stages:\n"
            "  - {kind: sft, steps: 1, mixture: [], data: {train: {path: one.jsonl}}}\n"
            "  - {kind: sft, steps: 1, mixture: {base: {target: '{a}!', weight: 2}}}\n"
            "  - {kind: grpo, steps: 1, mixture: {1: {weight: 9}}}\n"
        )
    )
    none, sft, grpo = config.stages
    assert none.mixture == []
    assert [(p.name, p.weight, p.target) for p in sft.mixture] == [("base", 2.0, "{a}!"), ("inline", 3.0, None)]
    assert [p.weight for p in grpo.mixture] == [1.0, 9.0] and [p.weight for p in config.mixture] == [1.0, 3.0]


def test_a_dumped_mixture_loads_again_without_its_tasks(write):
    """Nothing is taken from the top a second time, such as `limit`."""
    text = (
        f"name: x\ndata: {{train: {{path: two.jsonl, limit: 5}}}}\nmixture: [{{task: base.yaml}}, {INLINE}]\n"
        "stages: [{kind: grpo, steps: 1}]\n"
    )
    config = load_config(write(text))
    dumped = write(dump_config(config), "dumped.yaml")
    Path("base.yaml").unlink()
    again = load_config(dumped)
    assert again == config
    assert again.mixture[0].data.train is not None and again.mixture[0].data.train.limit is None


@pytest.mark.parametrize(
    ("mixture", "expected"),
    [
        (
            "{task: vital/demo_toolz}",
            ["task names 'vital/demo_toolz', which is no preset, task or .yaml file. Did you"],
        ),
        ("{task: no.yaml}", ["there is no file 'no.yaml'"]),
        ("{task: [a]}", ["task names presets, tasks or files; got a list of 1."]),
        ("{task: mixed.yaml}", ["mixed.yaml is a mixture itself: name its parts instead."]),
        ("{weight: 1, data: {train: {path: x}}}", ["missing key 'name'."]),
        ("{name: a}", ["part 'a' of the mixture has no data.train, so there is nothing to draw."]),
        ("{task: base.yaml, weight: 0}", ["'mixture.0.weight' should be greater than 0; got 0."]),
        ("{task: base.yaml, weight: .inf}", ["'mixture.0.weight' should be a finite number; got inf."]),
        (
            "{task: base.yaml}, {task: base.yaml}",
            ["two parts of the mixture are called 'base'; give one of them a 'name'."],
        ),
        ("{task: base.yaml, name: a/b}", ["a part's name is made of letters, digits, '_', '-' and '.'; got 'a/b'."]),
        ("{task: base.yaml, name: reward}", ["a part cannot be called 'reward': metrics of the whole mixture are."]),
        ("{task: base.yaml, wieght: 1}", ["unknown key 'wieght'. Did you mean 'weight'?"]),
        ("{task: base.yaml, rewards: []}", ["part 'base' of the mixture has no rewards, so there is nothing to learn"]),
    ],
)
def test_what_is_wrong_with_a_part_is_said_with_its_line(write, mixture, expected):
    write(f"name: mixed\nmixture: [{INLINE}]\n", "mixed.yaml")
    found = problems(write(f"name: x\nmixture: [{mixture}]\nstages:\n  - {{kind: grpo, steps: 1}}\n"))
    assert len(found) == len(expected)
    for problem, start in zip(found, expected, strict=True):
        where = "run.yaml:4: " if "no rewards" in start else "run.yaml:2: "
        assert problem.startswith(where + start)


def test_dynamic_sampling_by_one_reward_is_refused_for_a_mixture(write):
    stage = "{kind: grpo, steps: 1, algorithm: {dynamic_sampling: {reward: exact}}}"
    found = problems(write(f"name: x\nmixture: [{INLINE}]\nstages: [{stage}]\n"))
    assert found == ["run.yaml:3: dynamic_sampling.reward is of one task, and this is a mixture: leave it out."]


def test_an_override_of_what_parts_have_of_their_own_is_refused(write):
    run = write(f"name: x\nmixture: [{{task: base.yaml}}, {INLINE}]\n")
    assert problems(run, "data.train.path=z") == [
        f"command line: 'data.train.path' has no effect in part {part} of the mixture, which has its own from "
        f"run.yaml:2. Write mixture.{part}.data.train.path=..."
        for part in (0, 1)
    ]
    train = load_config(run, ["mixture.base.data.train.path=z"]).mixture[0].data.train
    assert train is not None and train.options["path"] == "z"


def test_what_parts_name_is_looked_up(write):
    base = Path("base.yaml").read_text().replace("r.py:Look", "some/tool").replace("r.py:share", "some/metric")
    write(base, "base.yaml")
    found = problems(write("name: x\nmixture: [{task: base.yaml}]\n"))
    assert [problem.partition(" (")[0] for problem in found] == [
        "base.yaml:5: no installed plugin provides tool 'some/tool'",
        "base.yaml:6: no installed plugin provides metric 'some/metric'",
    ]


def test_check_and_preview_look_at_every_part(write, tmp_path):
    write(
        "name: x\ndata: {train: {path: one.jsonl}}\nprompt: {text: '{q}', answer: '{a}'}\nrewards: ['r.py:exact']\n",
        "sound.yaml",
    )
    run = write(
        "name: x\nprompt: {text: '{q}', answer: 'not {a}'}\n"
        f"mixture: [{{task: sound.yaml, data: {{held_out: {{path: two.jsonl, limit: 3}}}}}}, {INLINE}]\n"
        "stages:\n  - {kind: sft, steps: 1, target: '{a}'}\n  - {kind: grpo, steps: 1}\n"
    )
    findings = check_task(load_config(run))
    wrong = [finding.what for finding in findings if not finding.ok]
    assert len(wrong) == 1 and wrong[0].startswith(
        "stage grpo 2: part inline: reward 'exact': gold answer: not the max"
    )
    told = "\n".join(finding.what for finding in findings)
    for where in (
        "stage sft 1: part sound: data.train",
        "stage sft 1: part inline: data.train",
        "part sound: data.held",
    ):
        assert f"\n{where}" in told
    assert "stage grpo 2: part sound: reward 'exact': gold answer: scores the maximum" in told
    shown = preview_task(load_config(run), 2, tmp_path / "preview")
    assert [line for line in shown.splitlines() if line.startswith("===")] == [
        *(f"=== sound/train:{i}" for i in (0, 1)),
        *(f"=== inline/train:{i}" for i in (0, 1)),
    ]


# Rewards


def group(part: str, *completions: str) -> RolloutGroup:
    return RolloutGroup(Prompt("p", [], {"scale": 10}, part=part), [Rollout([], text) for text in completions])


def test_a_rollout_is_scored_by_the_rewards_of_its_part_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("r.py").write_text(
        "def length(completions, samples):\n    return [len(c) for c in completions]\n"
        "def capital(completions, samples):\n    return [float(c.isupper()) for c in completions]\n"
    )
    length, capital = RewardConfig(name="r.py:length"), RewardConfig(name="r.py:capital", weight=2.0)
    runner = RewardRunner(load_plugins(), {"a": [length], "b": [length, capital]})
    assert runner.keys == ["a/length", "b/length", "b/capital"]
    groups = [group("a", "x", "xy"), group("b", "A", "bb")]
    scores = runner.score(groups)
    expected = {"a/length": [1, 2, NAN, NAN], "b/length": [NAN, NAN, 1, 2], "b/capital": [NAN, NAN, 1, 0]}
    for key, values in expected.items():
        torch.testing.assert_close(scores.components[key], torch.tensor(values).float(), equal_nan=True)
    torch.testing.assert_close(scores.totals, torch.tensor([1.0, 2.0, 3.0, 2.0]))  # 1; 2; 1 + 2 * 1; 2 + 2 * 0
    assert scores.weights == {"a/length": 1.0, "b/length": 1.0, "b/capital": 2.0} and not any(scores.failures.values())
    assert runner.scores_any("a/length", groups[:1]) and not runner.scores_any("b/length", groups[:1])
    assert runner.scores_any("kl", groups[:1])
    torch.testing.assert_close(scores.split(groups)[1].totals, torch.tensor([3.0, 2.0]))
    with pytest.raises(RewardError, match="two rewards are called 'a/length'"):
        RewardRunner(load_plugins(), {"a": [length, length]})


# Environments


class Echo:
    """Answers with its name and what it was told."""

    def __init__(self, name):
        self.name, self.closed = name, 0

    def prepare(self, prompt):
        return Prompt(prompt.id, prompt.messages, {**prompt.sample, "told": self.name}, part=prompt.part)

    def begin(self, prompt):
        return {"said": 0}

    def reply(self, episodes, texts, ask):
        replies = []
        for episode, text in zip(episodes, texts, strict=True):
            episode["said"] += 1
            replies.append(Reply([{"role": "tool", "content": f"{self.name}: {text}"}]))
        return replies

    def outcome(self, episode):
        return episode

    def split(self, prompt, answer):
        return answer.split(self.name)

    def close(self):
        self.closed += 1


def test_each_conversation_is_with_the_environment_of_its_part():
    one, two = Echo("1"), Echo("2")
    both = PartEnvironments({"a": one, "b": two})
    prompts = [both.prepare(Prompt(part, [], {}, part=part)) for part in ("b", "plain", "a", "b")]
    assert [prompt.sample.get("told") for prompt in prompts] == ["2", None, "1", "2"]
    episodes = [both.begin(prompt) for prompt in prompts]
    replies = both.reply(episodes, ["p", "q", "r", "s"], lambda questions: [])
    told = [None if reply is None else reply.messages[0]["content"] for reply in replies]
    assert told == ["2: p", None, "1: r", "2: s"]
    assert [both.outcome(episode) for episode in episodes] == [{"said": 1}, {}, {"said": 1}, {"said": 1}]
    assert [both.split(prompt, "x1y2z") for prompt in prompts[:3]] == [["x1y", "z"], ["x1y2z"], ["x", "y2z"]]
    both.close()
    assert (one.closed, two.closed) == (1, 1)
