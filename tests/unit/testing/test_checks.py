"""`mmrl check` and `mmrl preview`: what is wrong with a task is found and named, without a model."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmrl_core.cli import main
from mmrl_core.config import dump_config
from mmrl_core.config.schema import RunConfig
from mmrl_core.errors import ConfigError
from mmrl_core.plugins import Plugins, load_plugins
from mmrl_core.plugins.registry import Registry
from mmrl_core.testing import preview
from mmrl_core.testing.checks import check_task
from mmrl_core.testing.hostile import HOSTILE
from mmrl_core.testing.method_checks import method_problems
from mmrl_core.testing.preview import preview_task
from mmrl_core.testing.sections import Finding

REWARDS = '''
"""Rewards, good and bad."""
import itertools, time
calls = itertools.count()


def exact(completions, samples):
    """1 if the completion is the label."""
    return [float(c == s["label"]) for c, s in zip(completions, samples)]


def half(completions, samples):
    """Never more than a half."""
    return [0.5] * len(completions)


half.maximum = exact.maximum = 1.0


def raises_on_empty(completions, samples):
    """Reads the first letter."""
    return [float(c[0] == s["label"][0]) for c, s in zip(completions, samples)]


def too_much(completions, samples):
    """Pays by length."""
    return [1.0 if c == s["label"] else float(len(c)) for c, s in zip(completions, samples)]


too_much.maximum = 1.0


def fickle(completions, samples):
    """Never twice the same, except for the gold answer."""
    return [1.0 if c == s["label"] else 1 / (2 + next(calls)) for c, s in zip(completions, samples)]


def nan(completions, samples):
    """NaN in, NaN out."""
    return [float("nan") if "NaN" in c else 1.0 for c in completions]


def hangs(completions, samples):
    """Stops at long completions."""
    if len(completions[0]) > 50_000:
        time.sleep(20)
    return [1.0] * len(completions)


def unscored(completions, samples):
    """Has nothing to say."""
    return [None] * len(completions)


def one_for_all(completions, samples):
    """Right for one completion alone."""
    return [1.0]


def as_columns(completions, label, **kwargs):
    """As TRL calls it."""
    return [1.0] * len(completions)


def as_in_the_examples_of_trl(completions, ground_truth, **kwargs):
    """Of a column that the data call otherwise: 0 for everything."""
    return [float(c == g) for c, g in zip(completions, ground_truth)]


def of_some(completions, samples):
    """Cannot read the gold of every second row."""
    return [float(c == s["label"]) if int(s["label"][-1]) % 2 == 0 else None for c, s in zip(completions, samples)]


def reads_gold(completions, samples):
    """Of a label that is a number."""
    return [float(c == s["label"]) + 0 * float(s["label"]) for c, s in zip(completions, samples)]


def brightness(completions, samples):
    """Of a picture that has three channels."""
    return [sum(c.getpixel((0, 0))) / 765 for c in completions]


def steadiness(completions, samples):
    """1 for frames that are equal; of a film of several frames."""
    return [float(c[0].tobytes() == c[1].tobytes()) for c in completions]


def reads_rollouts(completions, samples, rollouts):
    """Counts tokens."""
    return [float(r.num_actions) for r in rollouts]
'''


def png(size: tuple[int, int] = (40, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Data of four rows with an image each, and a file of rewards."""
    for index in range(4):
        (tmp_path / f"{index}.png").write_bytes(png())
    write_rows(tmp_path, [{"image": f"{index}.png", "label": f"label {index}"} for index in range(4)])
    (tmp_path / "rewards.py").write_text(REWARDS)
    return tmp_path


def write_rows(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def config_of(folder: Path, *rewards: str, **sections: Any) -> RunConfig:
    base: dict[str, Any] = {
        "name": "test",
        "data": {"train": {"path": str(folder / "train.jsonl")}},
        "prompt": {"images": ["{image}"], "text": "What is it?", "answer": "{label}"},
        "rewards": [{"name": f"{folder / 'rewards.py'}:{reward}", "timeout_s": 0.3} for reward in rewards],
    }
    return RunConfig(**(base | sections))


def problems(findings: Sequence[Finding]) -> list[str]:
    return [finding.what for finding in findings if not finding.ok]


def test_a_sound_task_has_no_problem(folder: Path) -> None:
    findings = check_task(config_of(folder, "exact"))
    assert problems(findings) == []
    told = [finding.what for finding in findings]
    assert told == [
        "everything that the config names is installed and takes its options",
        "data.train: 4 of the first 4 rows can be read (4 in all)",
        "reward 'exact': gold answer: scores the maximum, 1, on 4 rows",
        f"reward 'exact': {len(HOSTILE)} empty, garbage and hostile completions are safe",
    ]


@pytest.mark.parametrize("answer", ["{label}", "{rest}"])
def test_a_gold_answer_is_scored_with_the_prefix_whether_it_holds_it_or_not(folder: Path, answer: str) -> None:
    write_rows(folder, [{"label": f"label {number}", "rest": f" {number}"} for number in range(2)])
    prompt = {"text": "What is it?", "answer": answer, "prefix": "label"}
    assert problems(check_task(config_of(folder, "exact", prompt=prompt))) == []


def test_every_broken_row_is_named(folder: Path) -> None:
    (folder / "1.png").write_bytes(png()[:50])
    (folder / "2.png").unlink()
    first, second = problems(check_task(config_of(folder, "exact")))
    assert first.startswith("data.train: row 1 (") and "1.png" in first
    assert second.startswith("data.train: row 2 (2.png): cannot read image") and "no such file" in second


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        (
            "half",
            "gold answer: not the maximum 1 on train:0, train:1, train:2, train:3; train:0 scores 0.5 for 'label 0'",
        ),
        ("raises_on_empty", "an empty completion, on train:0: raised IndexError: string index out of range"),
        ("too_much", "100 kB of one letter, on train:0: scores 100000, above the maximum 1 that the reward declares"),
        ("fickle", "an empty completion, on train:0: scores 0.5, and the next time 0.333333"),
        ("nan", "NaN, on train:0: returned nan, which is not a finite number"),
        ("hangs", "100 kB of one letter, on train:0: took longer than 0.3 s"),
    ],
)
def test_what_is_wrong_with_a_reward_is_told(folder: Path, reward: str, expected: str) -> None:
    told = problems(check_task(config_of(folder, reward)))
    assert any(what.startswith(f"reward {reward!r}: {expected}") for what in told), told
    if reward in ("half", "raises_on_empty", "hangs"):
        assert len(told) == 1


def test_rewards_that_cannot_be_checked_are_skipped_aloud(folder: Path) -> None:
    findings = check_task(config_of(folder, "reads_rollouts"))
    assert problems(findings) == []
    told = "\n".join(finding.what for finding in findings)
    assert "reward 'reads_rollouts': skipped" in told
    without_gold = config_of(folder, "exact", prompt={"text": "{label}"})
    assert any("skipped, the rows have none" in finding.what for finding in check_task(without_gold))


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        ("unscored", "gold answer: unscored on 4 of 4 rows, first on train:0 for 'label 0': it scores the gold answer"),
        ("one_for_all", "a group of 3, on train:0: returned 1 results for 3 completions. Rewards are called as"),
        ("as_in_the_examples_of_trl", "takes 'ground_truth' as its second argument, beside keywords, and would get"),
        ("as_columns", "takes the column 'label' as its second argument, and would get whole data rows for it"),
    ],
)
def test_rewards_that_would_ruin_a_run_fail(folder: Path, reward: str, expected: str) -> None:
    told = problems(check_task(config_of(folder, reward)))
    assert any(what.startswith(f"reward {reward!r}: {expected}") for what in told), told


def test_gold_that_a_reward_cannot_read_is_counted_with_its_first_row(folder: Path, capsys: Any) -> None:
    findings = check_task(config_of(folder, "of_some"))
    (doubt,) = [finding for finding in findings if finding.doubtful]
    assert doubt.ok and "gold answer: unscored on 2 of 4 rows, first on train:1 for 'label 1'" in doubt.what
    task = folder / "task.yaml"
    task.write_text(dump_config(config_of(folder, "of_some")))
    assert main(["check", str(task)]) == 0
    assert "warn  reward 'of_some': gold answer: unscored on 2 of 4 rows" in capsys.readouterr().out


@pytest.mark.parametrize(("gold", "told"), [("{label}", "gold answer: fails on"), ("", "an empty completion, on")])
def test_gold_that_a_reward_cannot_use_is_told_once(folder: Path, gold: str, told: str) -> None:
    """And not again for each hostile completion."""
    config = config_of(folder, "reads_gold", prompt={"text": "What is it?", "answer": gold})
    (problem,) = problems(check_task(config))
    assert problem.startswith(f"reward 'reads_gold': {told} train:0") and problem.count("could not convert") == 1


def test_a_task_with_wrong_components_has_all_of_them_named(folder: Path, capsys: Any) -> None:
    rewards = [{"name": "no/such"}, {"name": f"{folder / 'rewards.py'}:exact", "iuo": 1}]
    task = folder / "task.yaml"
    task.write_text(dump_config(config_of(folder, rewards=rewards, eval={"metrics": ["no/metric"]})))
    assert main(["check", str(task)]) == 2
    told = capsys.readouterr().err
    assert "'no/such'" in told and "'iuo'" in told and "'no/metric'" in told


def check_registered(folder: Path, name: str, **details: Any) -> list[str]:
    """Problems of a task with one reward of the file, registered with these details."""
    found = load_plugins()
    registry = Registry()
    registry._entries = {kind: dict(entries) for kind, entries in found.registry._entries.items()}
    entry = registry.get("reward", f"{folder / 'rewards.py'}:{name}")
    registry.add("reward", name, entry.target, name, **details)
    config = config_of(folder, rewards=[{"name": name}])
    return problems(check_task(config, Plugins(found.plugins, registry, found.tasks)))


@pytest.mark.parametrize("maximum", [0.5, None])
def test_the_registered_maximum_counts(folder: Path, maximum: float | None) -> None:
    assert check_registered(folder, "half", maximum=maximum) == []


def test_rewards_of_pictures_are_given_hostile_pictures(folder: Path) -> None:
    assert any("has no attribute 'getpixel'" in problem for problem in check_registered(folder, "brightness"))
    (problem,) = check_registered(folder, "brightness", reads="image")
    assert "a grey picture, on train:0" in problem and "int" in problem
    (problem,) = check_registered(folder, "steadiness", reads="video")
    assert "a single frame, on train:0" in problem and "out of range" in problem
    assert check_registered(folder, "brightness", reads="latent") == [], "there are none, so it is skipped"


def test_a_model_that_is_no_language_model_has_no_processor(folder: Path) -> None:
    policy = folder / "policy.py"
    policy.write_text("class Policy:\n    def __init__(self, path, *, device, engine): ...\n")
    (folder / "model").mkdir()
    (folder / "model" / "model_index.json").write_text("{}")
    model = {"path": str(folder / "model"), "policy": f"{policy}:Policy"}
    assert problems(check_task(config_of(folder, "exact", model=model))) == []
    assert any("cannot be loaded" in p for p in problems(check_task(config_of(folder, model={"path": model["path"]}))))


def test_missing_data_and_unknown_columns_are_one_finding_each(folder: Path) -> None:
    missing = config_of(folder, data={"train": {"path": str(folder / "gone.jsonl")}})
    assert len(told := problems(check_task(missing))) == 1
    assert "data.train:" in told[0] and "gone.jsonl" in told[0]
    unknown = config_of(folder, prompt={"text": "{lable}"})
    assert len(told := problems(check_task(unknown))) == 1
    assert "Did you mean 'label'?" in told[0]
    assert problems(check_task(RunConfig(name="empty"))) == ["no data: set data.train, at the top or in a stage"]


def test_unknown_components_and_options_are_told_before_the_data_are_read(folder: Path) -> None:
    told = problems(check_task(config_of(folder, rewards=[{"name": "no/such"}])))
    assert len(told) == 1 and "no installed plugin provides reward 'no/such'" in told[0]
    reward = {"name": f"{folder / 'rewards.py'}:exact", "iuo": 1}
    told = problems(check_task(config_of(folder, rewards=[reward])))
    assert len(told) == 1 and "'iuo'" in told[0]


def test_stages_are_checked_where_they_differ(folder: Path) -> None:
    config = config_of(folder, "exact")
    stage = {"kind": "grpo", "steps": 1, "data": config.data, "prompt": config.prompt, "rewards": config.rewards}
    sft = stage | {"kind": "sft", "target": "It is {label}."}
    findings = check_task(config_of(folder, "exact", stages=[sft, stage, stage]))
    assert problems(findings) == []
    assert sum("can be read" in finding.what for finding in findings) == 2
    assert sum("gold answer" in finding.what for finding in findings) == 1
    broken = stage | {"prompt": {"text": "{lable}"}}
    told = problems(check_task(config_of(folder, "exact", stages=[stage, broken])))
    assert len(told) == 1 and told[0].startswith("stage grpo 2: data.train: prompt.text:")


def test_held_out_rows_are_checked_too(folder: Path) -> None:
    train = {"path": str(folder / "train.jsonl")}
    held_out = {"path": str(folder / "gone.jsonl")}
    config = config_of(folder, "exact", data={"train": train, "held_out": held_out})
    stage = {"kind": "grpo", "steps": 1, "data": config.data, "prompt": config.prompt, "rewards": config.rewards}
    for checked in (config, config.model_copy(update={"stages": RunConfig(name="s", stages=[stage]).stages})):
        told = problems(check_task(checked))
        assert len(told) == 1 and told[0].startswith("data.held_out:")


def test_hostile_completions_are_what_they_say() -> None:
    assert HOSTILE["an empty completion"] == ""
    for description, completion in HOSTILE.items():
        assert not description.startswith("100 kB") or len(completion) >= 100_000


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mmrl_core.testing import build_tiny

    path = tmp_path_factory.mktemp("tiny") / "model"
    build_tiny("qwen2_5_vl", path)
    return path


def test_prompts_are_held_against_the_limit_of_the_model(folder: Path, tiny_model: Path) -> None:
    model: dict[str, Any] = {"path": str(tiny_model)}
    findings = check_task(config_of(folder, "exact", model=model))
    assert problems(findings) == []
    length = next(finding.what for finding in findings if "tokens" in finding.what)
    assert "(model.max_prompt_tokens: 8192)" in length
    policy = {"name": "language_model", "max_prompt_tokens": 10}
    told = problems(check_task(config_of(folder, "exact", model=model | {"policy": policy})))
    assert len(told) == 1 and "more than model.max_prompt_tokens: 10" in told[0]


def test_a_long_prompt_is_found_wherever_its_row_is(folder: Path, tiny_model: Path) -> None:
    """Rows behind the first are looked at without their media; those with the longest texts are read whole."""
    rows = [{"image": "0.png", "label": "word " * (200 if index == 77 else index % 3)} for index in range(100)]
    write_rows(folder, rows)
    policy = {"name": "language_model", "max_prompt_tokens": 150}
    prompt = {"images": ["{image}"], "text": "What is it? {label}"}
    config = config_of(folder, model={"path": str(tiny_model), "policy": policy}, prompt=prompt)
    (finding,) = [finding for finding in check_task(config) if not finding.ok]
    assert "the longest prompt read, train:77, has" in finding.what and finding.tolerable


def test_a_model_that_is_not_here_is_not_looked_for(folder: Path) -> None:
    assert problems(check_task(config_of(folder, "exact", model={"path": "owner/not-here"}))) == []


def test_a_preview_shows_prompts_and_writes_their_media(folder: Path, tiny_model: Path) -> None:
    (folder / "1.png").unlink()
    output = folder / "out" / "preview"
    text = preview_task(config_of(folder, "exact", model={"path": str(tiny_model)}), 3, output)
    assert text == (output / "preview.txt").read_text()
    assert sorted(path.name for path in output.iterdir()) == ["preview.txt", "train-0-1.png", "train-2-1.png"]
    assert Image.open(output / "train-0-1.png").size == (40, 30)
    assert "[image, 40 x 30 pixels: train-0-1.png]\nWhat is it?\n--- gold answer\nlabel 0" in text
    assert "=== train:1: broken, would be set aside: cannot read image" in text
    assert "tokens, placeholders of media expanded\n" in text and "<|vision_start|>" in text
    with pytest.raises(ConfigError, match="no data to preview"):
        preview_task(RunConfig(name="empty"), 1, output)


TOOL = """
from pydantic import BaseModel
from mmrl_core import Tool

class Moment(BaseModel):
    time_s: float

class Look(Tool):
    name, description, arguments = "look", "Shows a moment.", Moment
    def run(self, arguments, context): return []
"""


def test_a_preview_shows_the_tools_that_the_model_is_told_of(folder: Path, tiny_model: Path) -> None:
    (folder / "look.py").write_text(TOOL)
    rollout = {"strategy": "multi_turn", "tools": [f"{folder / 'look.py'}:Look"]}
    config = config_of(folder, "exact", model={"path": str(tiny_model)}, rollout=rollout)
    text = preview_task(config, 1, folder / "preview")
    assert '--- tools that may be called\n{"type": "function", "function": {"name": "look"' in text
    assert "<tools>" in text.partition("--- as the model sees it")[2], "told in the system message"


def test_frames_of_a_video_are_shown_side_by_side() -> None:
    import torch

    frames = torch.zeros(20, 3, 6, 8, dtype=torch.uint8)
    frames[-1] = 255
    sheet, what = preview._contact_sheet(frames)
    assert sheet.size == (64, 6) and what == "8 of 20 video frames"
    assert sheet.getpixel((0, 0)) == (0, 0, 0) and sheet.getpixel((63, 5)) == (255, 255, 255)
    assert preview._contact_sheet(frames[:2])[0].size == (16, 6)


METHODS = '''
"""Losses and stages, good and bad."""
import torch


def good(inputs, *, scale: float = 1.0):
    """-advantage * ratio."""
    return -scale * inputs.advantages * (inputs.logprobs - inputs.old_logprobs).exp(), {}


def detached(inputs):
    """Has nothing to learn from."""
    return -inputs.advantages * inputs.logprobs.detach(), {}


def endless(inputs):
    """Divides by what is 0 on-policy."""
    return -inputs.advantages * inputs.logprobs / (inputs.logprobs - inputs.old_logprobs).abs().detach(), {}


def one_number(inputs):
    """One for all."""
    return (-inputs.advantages * inputs.logprobs).mean(), {}


def in_place(inputs):
    """Clips what others read."""
    return -inputs.advantages.clamp_(-0.5, 0.5) * inputs.logprobs, {}


def crashes(inputs):
    """Asks for what nobody gives."""
    return inputs.extras["missing"] * inputs.logprobs, {}


def centred(advantages, view):
    """Minus the mean of all that are scored."""
    return (advantages - advantages.nanmean()).nan_to_num(0.0)


def spreads_nan(advantages, view):
    """The mean of everything."""
    return advantages - advantages.mean()


def shifts(advantages, view):
    """Writes into what it is given."""
    return advantages.nan_to_num_(0.0).sub_(0.5)
'''


@pytest.mark.parametrize(
    ("kind", "method", "expected"),
    [
        ("loss", "detached", "on-policy: it returned losses without a gradient"),
        ("loss", "endless", "on-policy: returned losses that are not finite"),
        ("loss", "one_number", "on-policy: it returned losses (); expected (4, 3), one for each token."),
        ("loss", "in_place", "on-policy: changes advantages in place"),
        ("loss", "crashes", "on-policy: raises KeyError: 'missing'"),
        (
            "advantage",
            "spreads_nan",
            "of which one is unscored: it returned numbers that are not",
        ),
        ("advantage", "shifts", "changes its first argument in place"),
    ],
)
def test_a_loss_or_stage_is_tried_on_made_inputs(folder: Path, kind: str, method: str, expected: str) -> None:
    (folder / "methods.py").write_text(METHODS)
    entry = load_plugins().registry.get(kind, f"{folder / 'methods.py'}:{method}")
    (told,) = method_problems(entry, {})
    assert expected in told


@pytest.mark.parametrize(("kind", "method"), [("loss", "in_place"), ("advantage", "shifts")])
def test_what_a_task_names_may_not_change_what_it_is_given(folder: Path, kind: str, method: str) -> None:
    (folder / "methods.py").write_text(METHODS)
    named = f"{folder / 'methods.py'}:{method}"
    config = config_of(folder, "exact")
    stage = {"kind": "grpo", "steps": 1, "algorithm": {kind: named if kind == "loss" else [named]}}
    stage |= {"data": config.data, "prompt": config.prompt, "rewards": config.rewards}
    (told,) = problems(check_task(config_of(folder, "exact", stages=[stage])))
    assert told.startswith(f"stage grpo 1: {kind}") and "in place. What comes after it would read that" in told


@pytest.mark.parametrize(
    ("kind", "method", "options"), [("advantage", "centred", {}), ("loss", "good", {"scale": 2.0})]
)
def test_nothing_is_said_of_sound_methods(folder: Path, kind: str, method: str, options: dict[str, float]) -> None:
    (folder / "methods.py").write_text(METHODS)
    entry = load_plugins().registry.get(kind, f"{folder / 'methods.py'}:{method}")
    assert list(method_problems(entry, options)) == []
