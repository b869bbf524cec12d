"""The commands as people run them: exit codes, what goes to which stream, and the words of errors."""

import faulthandler
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mmrl_core import cli, hookspecs, testing, trainer
from mmrl_core.config import dump_config, load_config
from mmrl_core.plugins import load_plugins, presets
from mmrl_core.plugins.registry import KINDS
from mmrl_core.testing import Finding, build_tiny

COMMANDS = ("train", "eval", "score", "check", "preview", "list", "info", "view", "tiny", "new", "doctor")
LISTS = (
    *("plugins", "tasks", "presets", "sources", "rewards", "metrics", "tools", "environments", "algorithms", "models"),
    *("policies", "engines", "views", "behaviours", "hooks"),
)

REWARDS = """
import math
def length(completions, samples, *, scale: float = 1.0):
    print("a reward may print")
    return [None if not c else math.nan if c == "nan" else len(c) * scale for c in completions]
def place(completions, samples):
    return list(range(len(completions)))
def picky(completions, samples):
    return [1 / len(c) for c in completions]
"""


def mmrl(*arguments: str, cwd: Path, stdin: str | bytes = b"", env: dict[str, str] | None = None):
    """Runs the command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "mmrl_core", *arguments],
        cwd=cwd,
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True,
        timeout=240,
        env={**os.environ, **(env or {})},
        check=False,
    )


def lines(output: bytes) -> list[dict]:
    return [json.loads(line, parse_constant=pytest.fail) for line in output.splitlines()]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current folder with a task and rewards; `mmrl` may run in this process."""
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)  # main() sets some
    Path("task.yaml").write_text("name: my/task\nstages: [{kind: grpo, steps: 1}]\n")
    Path("rewards.py").write_text(REWARDS)
    yield tmp_path
    os.environ.clear()
    os.environ.update(before)


# Help


def test_help_lists_every_command(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n    {command} " in text for command in COMMANDS)


@pytest.mark.parametrize(
    "arguments",
    [["tarin"], ["train"], ["train", "t", "--resum", "x"], ["list", "taks"], ["train", "t", "--output", "o", "x"]],
)
def test_usage_errors_exit_with_2(arguments, capsys):
    assert cli.main(arguments) == 2
    assert "usage: mmrl" in capsys.readouterr().err


# list and info


def test_list_is_fast_and_complete(folder):
    times = []
    for _ in range(3):
        before = os.times()
        done = mmrl("list", cwd=folder)
        after = os.times()  # processor time: other work on the machine must not fail the test
        times.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert done.returncode == 0 and done.stderr == b""
    text = done.stdout.decode()
    for wanted in (
        "visual_rft",
        "visual_rft/demo_detection",
        "visual_rft/iou",
        "algorithm/dapo",
        "clipped",
        "mmrl_score",
    ):
        assert wanted in text, wanted
    assert min(times) < 0.5, f"mmrl list took {times} CPU seconds"


@pytest.mark.parametrize("kind", LISTS)
def test_list_json_holds_rows_of_one_kind(kind, folder, capsys):
    assert cli.main(["list", kind, "--json"]) == 0
    tables = json.loads(capsys.readouterr().out)
    assert list(tables) == [kind] and (tables[kind] or kind == "behaviours")  # of which the core has none
    assert all("name" in row or "id" in row for row in tables[kind])


def test_policies_and_behaviours_of_plugins_are_listed(folder):
    info = folder / "mmrl_probe-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mmrl-probe\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mmrl]\nprobe = probe_parts\n")
    (folder / "probe_parts.py").write_text(PARTS)
    path = {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}
    # The width of the first column depends on what else is installed.
    assert re.search(rb"probe/replay +adds earlier rollouts", mmrl("list", "behaviours", cwd=folder, env=path).stdout)
    assert re.search(rb"probe/noise +acts once", mmrl("list", "policies", cwd=folder, env=path).stdout)
    told = mmrl("info", "probe/replay", cwd=folder, env=path).stdout.decode()
    assert "behaviour probe/replay: adds earlier" in told and "options:\n  per_prompt: int = 4" in told
    told = mmrl("info", "probe/noise", cwd=folder, env=path).stdout.decode()
    assert told.endswith("options:\n  num_steps: int = 10\n\nActs once.\n\n")
    told = mmrl("info", "probe", cwd=folder, env=path).stdout.decode()
    assert "policies: probe/noise" in told and "behaviours: probe/replay" in told


PARTS = '''
from mmrl_core import hookimpl

@hookimpl
def mmrl_register(registry):
    registry.add("policy", "noise", "probe_parts:Noise", "acts once")
    registry.add("behaviour", "replay", "probe_parts:Replay", "adds earlier rollouts")

class Noise:
    """Acts once."""

    def __init__(self, path, *, device="cpu", engine=None, num_steps: int = 10): ...

class Replay:
    """Adds earlier rollouts."""

    def __init__(self, *, per_prompt: int = 4): ...
'''


def test_a_plugin_that_failed_to_load_is_a_visible_row(folder):
    info = folder / "mmrl_probe-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mmrl-probe\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mmrl]\nprobe = probe_that_fails\n")
    (folder / "probe_that_fails.py").write_text("raise RuntimeError('it is broken')")
    path = {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}
    done = mmrl("list", "plugins", cwd=folder, env=path)
    assert done.returncode == 0
    assert re.search(rb"probe +FAILED +mmrl-probe +1.0 +error: ", done.stdout) and b"it is broken" in done.stdout
    rows = json.loads(mmrl("list", "--json", cwd=folder, env=path).stdout)["plugins"]
    (row,) = (row for row in rows if row["name"] == "probe")
    assert row["status"] == "FAILED" and "RuntimeError: it is broken" in row["error"]
    assert b"it is broken" in mmrl("info", "probe", cwd=folder, env=path).stdout


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("visual_rft", ["plugin visual_rft", "mmrl-visual-rft", "rewards: ", "visual_rft/iou"]),
        ("visual_rft/iou", ["reward visual_rft/iou", "maximum: 1.0", "signature: iou(", "options:"]),
        ("clipped", ["loss clipped", "core, mmrl_core.losses:clipped", "clip_high: float = 0.2", "PPO"]),
        ("core/clipped", ["loss clipped"]),
        ("algorithm/dapo", ["preset algorithm/dapo", "extends: nothing", "clip_high: 0.28"]),
        ("mmrl_score", ["hook mmrl_score", "Score the rollouts", ":returns:"]),
        ("language_model", ["policy language_model"]),
        ("tiny", ["model tiny", "kind: str"]),
    ],
)
def test_info_shows_what_an_id_is(name, wanted, folder, capsys):
    assert cli.main(["info", name]) == 0
    text = capsys.readouterr().out
    assert all(part in text for part in wanted), text


def test_info_shows_everything_that_is_registered(folder, capsys):
    registry = load_plugins().registry
    for kind in KINDS:
        for entry in registry.entries(kind):
            assert cli.main(["info", entry.id]) == 0
    for name in [*presets(), *(name for name in vars(hookspecs) if name.startswith("mmrl_"))]:
        assert cli.main(["info", name]) == 0


def test_info_shows_what_a_model_at_hand_does(folder, capsys, tmp_path):
    """In the words of docs/models.md: a kind that is built for it, and a folder."""
    build_tiny("qwen2", tmp_path / "mine")
    wanted = {
        "llava": ["media            image", "path             shared prompt", "own decode step  yes", "seen "],
        str(tmp_path / "mine"): ["model            Qwen2ForCausalLM", "media            text", "seen             –"],
    }
    for name, parts in wanted.items():
        assert cli.main(["info", f"model/{name}"]) == 0
        told = capsys.readouterr().out
        assert all(part in told for part in parts), told


def test_unknown_ids_exit_with_2_and_the_nearest(folder, capsys):
    assert cli.main(["info", "model/models/nope"]) == 2
    assert "there is no folder models/nope" in capsys.readouterr().err
    assert cli.main(["info", "model/lava"]) == 2
    assert "Did you mean 'llava'?" in capsys.readouterr().err
    assert cli.main(["info", "clippd"]) == 2
    assert capsys.readouterr().err == "mmrl: nothing installed is called 'clippd'. Did you mean 'clipped'?\n"


# Errors


def test_errors_have_no_traceback_and_exit_with_2(folder):
    done = mmrl("train", "task.yaml", "optimiser.lr=1", cwd=folder)
    assert done.returncode == 2 and done.stdout == b""
    assert done.stderr.decode().startswith("mmrl: command line: unknown key 'optimiser'. Did you mean 'optimizer'?")
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "visual_rft/demo_detektion"], "Did you mean 'visual_rft/demo_detection'"),
        (["train", "absent.yaml"], "there is no file absent.yaml"),
        (["eval", "task.yaml", "--checkpoint", "absent"], "there is no checkpoint folder absent"),
        (["view", "absent"], "there is no run in absent"),
        (["tiny", "qwen2vl", "model"], "Did you mean 'qwen2_vl'"),
        (["score", "visual_rft/iuo", "x.jsonl"], "Did you mean 'visual_rft/iou'"),
        (["score", "rewards.py:length", "absent.jsonl"], "there is no file absent.jsonl"),
        (["score", "rewards.py:length", "-", "--option", "scal=2"], "no option 'scal'. Did you mean 'scale'?"),
        (["train", "task.yaml", "--resume"], "--resume needs --output"),
        (["train", "task.yaml", "--resume", "--output", "absent"], "there is no run in absent to resume"),
        (["train", "task.yaml", "--output", "."], "exists and is not empty. Add --resume"),
        (["train", "task.yaml", "--output", "task.yaml"], "exists and is not empty"),
    ],
)
def test_user_errors_say_what_is_wrong(arguments, words, folder, capsys):
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert words in captured.err and captured.out == ""


def test_an_interrupt_exits_with_130(folder, monkeypatch, capsys):
    def interrupted(config, output, resume):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "train", interrupted)
    assert cli.main(["train", "task.yaml", "--output", "run"]) == 130
    assert capsys.readouterr().err == "mmrl: interrupted\n"


def test_a_reader_that_has_seen_enough_is_no_error(folder):
    command = f"{shlex.quote(sys.executable)} -m mmrl_core list --json | head -c 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0 and b"Traceback" not in done.stderr


# train, eval, view


@pytest.fixture
def trained(monkeypatch):
    """Calls of the trainer, which does nothing."""
    calls = []
    monkeypatch.setattr(trainer, "train", lambda config, output, resume: calls.append((config.name, output, resume)))
    return calls


def test_train_calls_the_trainer_with_a_fresh_directory(folder, trained):
    assert cli.main(["train", "task.yaml", "--output", "run"]) == 0
    assert cli.main(["train", "task.yaml"]) == 0
    assert trained[0] == ("my/task", Path("run"), False)
    assert re.fullmatch(r"runs/my-task-\d{8}-\d{6}", str(trained[1][1]))


def test_training_does_not_ask_for_a_standard_error_that_is_a_file(folder, trained, monkeypatch):
    was_enabled = faulthandler.is_enabled()
    faulthandler.disable()
    try:
        monkeypatch.setattr(sys, "stderr", io.StringIO())  # as in a notebook
        assert cli.main(["train", "task.yaml", "--output", "run"]) == 0, sys.stderr.getvalue()
    finally:
        if was_enabled:
            faulthandler.enable(sys.__stderr__)
    assert len(trained) == 1


def test_an_empty_output_is_fine_and_other_processes_do_not_look(folder, trained, monkeypatch):
    Path("run").mkdir()
    assert cli.main(["train", "task.yaml", "--output", "run"]) == 0
    Path("run/config.yaml").write_text("")
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["train", "task.yaml", "--output", "run"]) == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["train", "task.yaml"]) == 2, "each process would choose a name of its own"


def test_resume_refuses_another_config_and_names_the_keys(folder, trained, capsys):
    Path("run").mkdir()
    Path("run/config.yaml").write_text(dump_config(load_config("task.yaml", ["stages.0.group_size=4"])))
    assert cli.main(["train", "task.yaml", "--output", "run", "--resume"]) == 2
    assert "  stages.0.group_size: 4 there, 8 here\n" in capsys.readouterr().err
    assert cli.main(["train", "task.yaml", "stages.0.group_size=4", "--output", "run", "--resume"]) == 0
    assert trained == [("my/task", Path("run"), True)]


# score


def test_score_answers_every_line_in_order(folder):
    rows = [
        json.dumps({"completion": "abc", "sample": {"id": 1}}),
        "{broken",
        json.dumps({"completion": "", "sample": {"id": 2}}),
        "",
        json.dumps(["completion"]),
        json.dumps({"completion": 3, "sample": {}}),
        json.dumps({"completion": "x"}),
        json.dumps({"completion": "nan", "sample": {"id": 3}}),
        json.dumps({"completion": "ab", "sample": {"id": 3}}),
    ]
    (folder / "rows.jsonl").write_bytes("\n".join(rows).encode() + b"\n\xff\xfe\n")
    done = mmrl("score", "rewards.py:length", "rows.jsonl", "--option", "scale=2", cwd=folder)
    assert done.returncode == 0, done.stderr
    results = lines(done.stdout)
    assert [result["reward"] for result in results] == [6.0, None, None, None, None, None, None, None, 4.0, None]
    assert [i for i, result in enumerate(results) if "error" in result] == [1, 3, 4, 5, 6, 7, 9]
    assert results[1]["error"].startswith("not JSON: ") and results[6]["error"] == "'sample' is missing"
    assert "mmrl: 7 of 10 lines could not be scored" in done.stderr.decode()
    assert b"a reward may print" in done.stderr, "what rewards print must not mix with the results"


def test_score_reads_standard_input_and_groups_neighbours(folder):
    rows = "".join(json.dumps({"completion": "x", "sample": {"id": i}}) + "\n" for i in [1, 1, 2, 2, 2, 1])
    done = mmrl("score", "rewards.py:place", "-", cwd=folder, stdin=rows)
    assert [result["reward"] for result in lines(done.stdout)] == [0, 1, 0, 1, 2, 0]
    assert mmrl("score", "rewards.py:place", "-", cwd=folder).stdout == b""


def test_a_line_that_a_reward_fails_on_does_not_spoil_its_neighbours(folder):
    rows = "".join(json.dumps({"completion": c, "sample": {}}) + "\n" for c in ["ab", "", "abcd"])
    done = mmrl("score", "rewards.py:picky", "-", cwd=folder, stdin=rows)
    results = lines(done.stdout)
    assert [result["reward"] for result in results] == [0.5, None, 0.25] and "division" in results[1]["error"]
    assert done.returncode == 0


# check, tiny


def test_check_marks_findings_and_exits_with_1_if_one_failed(folder, monkeypatch, capsys):
    findings = [Finding(True, "this is sound"), Finding(False, "that is not")]
    monkeypatch.setattr(testing, "check_task", lambda config: findings)
    assert cli.main(["check", "task.yaml"]) == 1
    assert capsys.readouterr().out == "ok    this is sound\nFAIL  that is not\n"
    monkeypatch.setattr(testing, "check_plugin", lambda name: findings[:1])
    assert cli.main(["check", "visual_rft"]) == 0


def test_tiny_builds_a_model_that_loads_quietly(folder):
    done = mmrl("tiny", "qwen2", "models/tiny", "--seed", "3", cwd=folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"qwen2 in models/tiny\n", b"")
    assert (folder / "models/tiny/model.safetensors").is_file()
    again = mmrl("tiny", "qwen2", "models/tiny", cwd=folder)
    assert again.returncode == 2 and b"nothing is overwritten" in again.stderr
