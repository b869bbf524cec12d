"""What people stumbled over, and the test that keeps each solved: `FRICTIONS`. The tests here are those of the rest."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from mmrl_core.cli import main
from mmrl_core.testing import build_tiny

TESTS = Path(__file__).parents[1]

FRICTIONS = {
    "check is blind to mistakes of groups": "unit/testing/test_checks.py::test_rewards_that_would_ruin_a_run",
    "check does not look at a loss or stage of one's own": "cli/test_frictions.py::test_check_calls_a_loss_or_stage",
    "failing rewards end calm": "cli/test_alarms.py::test_a_run_whose_rewards_score_nothing_stops_with_their_error",
    "a run with alarms exits as if all was well": "cli/test_alarms.py::test_exploded_weights_are_an_alarm",
    "what stages and losses are given is only in the source": "cli/test_frictions.py::test_every_field_of_the_inputs",
    "a LoRA checkpoint cannot be evaluated": "cli/test_eval.py::test_a_checkpoint_is_evaluated_with_its_runs_own_model",
    "an evaluation overwrites the one before": "cli/test_eval.py::test_no_result_is_overwritten",
    "a dry run is silent": "cli/test_frictions.py::test_a_dry_run_says_what_it_checked",
    "a background command ignores SIGINT, and nobody says so": "cli/test_frictions.py::test_the_page_of_commands_says",
    "a signal that the shell has set to be ignored ends a run": "unit/test_stopping.py::test_an_ignored_signal_stays",
    "mmrl is not on the PATH": "cli/test_first_contact.py::test_make_says_how_to_go_on",
    "nobody says which line puts it there": "cli/test_doctor.py::test_the_table_for_people_has_a_line_for_each_step",
    "Ctrl-C loses work": "integration/test_stopping.py::test_a_run_stopped_at_any_moment_goes_on",
    "Ctrl-C shows a traceback": "cli/test_cli.py::test_an_interrupt_exits_with_130",
    "mmrl list is not complete": "cli/test_first_contact.py::test_list_shows_everything_that_is_registered",
    "no hint installs an unknown plugin": "cli/test_first_contact.py::test_a_name_of_a_plugin_that_is_not",
    "a run starts with a folder that cannot be written": "cli/test_frictions.py::test_an_output_that_cannot_be_written",
}
"""What people met -> the test, by its file and the beginning of its name."""


@pytest.mark.parametrize("friction", FRICTIONS)
def test_a_friction_has_its_test(friction):
    path, _, start = FRICTIONS[friction].partition("::")
    functions = [n.name for n in ast.walk(ast.parse((TESTS / path).read_text())) if isinstance(n, ast.FunctionDef)]
    assert len([name for name in functions if name.startswith(start)]) == 1, f"{friction}: {start} in {path}"


PARTS = """
import torch

def sound_loss(inputs, *, scale: float = 1.0):
    ratio = (inputs.logprobs - inputs.old_logprobs).exp()
    return -inputs.advantages * ratio * scale, {"ratio": (ratio * inputs.mask).sum() / inputs.totals.num_computed}

def mean_loss(inputs):
    return -(inputs.advantages * inputs.logprobs).mean(), {}

def detached_loss(inputs):
    return -inputs.advantages * inputs.logprobs.detach(), {}

def loss_alone(inputs):
    return -inputs.advantages * inputs.logprobs

def raising_loss(inputs):
    return inputs.no_such_field, {}

def infinite_loss(inputs):
    return (inputs.logprobs - inputs.logprobs.detach()).sqrt(), {}

def pairs(inputs):
    return 0 * inputs.scores, {}

pairs.unit = "score"

def sound_stage(advantages, view):
    return torch.where(advantages.isnan(), 0.0, advantages)

def four_at_a_time(advantages, view):
    return advantages.nan_to_num().reshape(-1, 4).mean(1).repeat_interleave(4)

def forgets_nan(advantages, view):
    return advantages - advantages.nanmean()

def summed(advantages, view):
    return advantages.sum()
"""


@pytest.fixture
def task(tmp_path, monkeypatch):
    """`task(algorithm, group_size)` writes task.yaml; its model, on no hub, is looked for by no check."""
    monkeypatch.chdir(tmp_path)
    Path("parts.py").write_text(PARTS)
    Path("reward.py").write_text("def length(completions, samples):\n    return [len(text) for text in completions]\n")
    Path("rows.jsonl").write_text('{"question": "1?", "gold": "one"}\n' * 2)

    def write(algorithm: dict[str, object], group_size: int = 3, model: str = "owner/not-here") -> None:
        config = {
            "name": "mine",
            "model": {"path": model},
            "data": {"train": {"path": "rows.jsonl"}},
            "prompt": {"text": "{question}", "answer": "{gold}"},
            "rewards": ["reward.py:length"],
            "algorithm": algorithm,
            "rollout": {"max_tokens": 4},
            "stages": [{"kind": "grpo", "steps": 1, "prompts_per_step": 2, "group_size": group_size}],
        }
        Path("task.yaml").write_text(json.dumps(config))

    return write


@pytest.mark.parametrize(
    ("algorithm", "verdict", "words"),
    [
        ({"loss": "parts.py:sound_loss"}, "ok", "loss 'parts.py:sound_loss': sound on a made step"),
        ({"loss": {"name": "parts.py:sound_loss", "scale": {"from": 1, "to": 2, "steps": 3}}}, "ok", "sound on a made"),
        ({"loss": "parts.py:mean_loss"}, "FAIL", "returned losses (); expected (6, 4), one for each token"),
        ({"loss": "parts.py:detached_loss"}, "FAIL", "losses without a gradient, so that nothing would be learnt"),
        ({"loss": "parts.py:loss_alone"}, "FAIL", "expected a pair: token losses (6, 4), and a mapping of metrics"),
        ({"loss": "parts.py:raising_loss"}, "FAIL", "loss 'parts.py:raising_loss' raised AttributeError: "),
        ({"loss": "parts.py:infinite_loss"}, "FAIL", "or its gradient is not finite"),
        ({"loss": "parts.py:pairs"}, "FAIL", "expected a scalar computed from inputs.scores"),
        ({"advantage": ["parts.py:sound_stage"]}, "ok", "advantage 'parts.py:sound_stage': sound on a made step"),
        ({"advantage": ["parts.py:four_at_a_time"]}, "FAIL", "advantage 'parts.py:four_at_a_time' raised RuntimeError"),
        ({"advantage": ["parts.py:summed"]}, "FAIL", "returned (); expected a tensor (6,) or (6, 4)"),
        ({"advantage": ["parts.py:forgets_nan"]}, "warn", "as soon as a completion is unscored, the run would end: "),
    ],
)
def test_check_calls_a_loss_or_stage_of_ones_own_as_a_step_would(algorithm, verdict, words, task, capsys):
    task(algorithm)
    assert main(["check", "task.yaml"]) == (1 if verdict == "FAIL" else 0)
    told = [line for line in capsys.readouterr().out.splitlines() if words in line]
    assert len(told) == 1 and told[0].startswith(verdict), told


def test_check_calls_a_stage_with_the_group_size_of_the_run(task, capsys):
    task({"advantage": ["parts.py:four_at_a_time"]}, group_size=4)
    assert main(["check", "task.yaml"]) == 0, capsys.readouterr().out


def test_every_field_of_the_inputs_of_stages_and_losses_is_on_its_page():
    from dataclasses import fields

    from mmrl_core import RewardView
    from mmrl_core.loss_inputs import LossInputs
    from mmrl_core.methods import ScoreInputs

    docs = TESTS.parent / "docs"
    stages = (docs / "stages_and_losses.md").read_text(encoding="utf-8")
    for page, inputs in (("reward_view.md", RewardView), ("loss_inputs.md", LossInputs), ("scores.md", ScoreInputs)):
        text = (docs / page).read_text(encoding="utf-8")
        assert f"({page})" in stages and [f.name for f in fields(inputs) if f.name not in text] == []


def test_a_dry_run_says_what_it_checked_and_that_it_trained_nothing(task, capsys):
    build_tiny("qwen2", Path("model"))
    task({"loss": "parts.py:sound_loss"}, model="model")
    capsys.readouterr()
    assert main(["train", "task.yaml", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    checked = [line for line in lines if line.startswith("checked: ")]
    assert any("2 of the first 2 rows can be read" in line for line in checked)
    assert any("loss 'parts.py:sound_loss': sound on a made step" in line for line in checked)
    assert any(line.startswith("stage grpo: 1 steps of 2 prompts x 3 completions, 2 rows") for line in lines)
    assert lines[-1] == "nothing was trained or written" and not Path("runs").exists()


@pytest.mark.parametrize("output", ["rows.jsonl/run", "/proc/run"])
def test_an_output_that_cannot_be_written_is_refused_before_anything_is_loaded(output, task, capsys):
    task({}, model="absent/model")  # which would be told if it were looked for
    assert main(["train", "task.yaml", "--output", output]) == 2
    told = capsys.readouterr().err
    assert "cannot be written" in told and "--output" in told and "Traceback" not in told


def test_the_page_of_commands_says_how_a_command_in_the_background_is_ended():
    page = (TESTS.parent / "docs" / "cli.md").read_text(encoding="utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith("| `143` |")]
    assert "SIGTERM" in row and "in the background of a script, which ignores Ctrl-C" in row
