"""However a run ends, its exit code says how, a crash says where, and no process that it started lives on."""

import json
import signal
import time

import pytest

from mmrl_core.plugins import load_plugins

PROBE = '''
import ctypes
import json
import os
import re
import signal
import time
from pathlib import Path

from pydantic import BaseModel

from mmrl_core import hookimpl
from mmrl_core.conversation import Tool, demonstrate
from mmrl_core.types import RolloutGroup

CALL = "<tool_call>" + json.dumps({"name": "wait", "arguments": {"says": "so"}}) + "</tool_call>"

def passes(where):
    """The plan says at which step of which place a run is to end, and how."""
    place, step, what = os.environ.get("PROBE_PLAN", "nowhere 0 0").split()
    if place != where or Path("step").read_text() != step:
        return
    if what == "hang":
        Path("hangs").write_text(where)
        re.match("(a+)+$", "a" * 60 + "b")  # for ever, in C code that holds the interpreter
    if what == "crash":
        ctypes.string_at(0)
    os.kill(os.getpid(), int(what))

@hookimpl
def mmrl_register(registry):
    registry.add("tool", "wait", "probe_ending:Wait", "says so")

class Says(BaseModel):
    says: str

class Wait(Tool):
    name, description, arguments = "wait", "says so", Says

    def run(self, arguments, context):
        passes("tool")
        return [{"type": "text", "text": arguments.says}]

def reward(completions, samples):
    passes("reward")
    return [sum(map(ord, c)) % 97 / 96 for c in completions]

@hookimpl
def mmrl_rollout(run, prompts):
    Path("step").write_text(str(run.state.step + 1))
    passes("rollout")
    words = [[CALL + word] * len(prompts) for word in ("a", "no")]
    said = [demonstrate(run.policy, prompts, answers, run.environment, print) for answers in words]
    return [RolloutGroup(one.prompt, [*one.rollouts, *other.rollouts]) for one, other in zip(*said)]
'''

TOOLS = {"name": "tools", "num_workers": 1}
ENDS = [  # where and in which step, what happens there; the exit code; the newest checkpoint then
    ("rollout", 3, signal.SIGTERM, 143, 2),
    ("tool", 3, "hang", -9, 2),
    ("reward", 4, "hang", -9, 2),
    ("rollout", 3, "crash", -11, 2),
    ("rollout", 3, signal.SIGINT, 130, 2),
]


@pytest.fixture
def task(tmp_path, base_config, monkeypatch):
    """A task whose run has a process of its tools and one of its reward."""
    info = tmp_path / "site" / "mmrl_probe_ending-1.0.dist-info"
    info.mkdir(parents=True)
    (tmp_path / "site" / "probe_ending.py").write_text(PROBE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mmrl-probe-ending\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mmrl]\nprobe_ending = probe_ending\n")
    config = {
        **base_config("qwen2"),
        "plugins": ["probe_ending"],
        "rewards": [{"name": f"{tmp_path}/site/probe_ending.py:reward", "isolate": True}],
        "rollout": {"max_tokens": 6, "strategy": "multi_turn", "tools": ["probe_ending/wait"], "environment": TOOLS},
        "stages": [{"kind": "grpo", "steps": 5, "prompts_per_step": 2, "group_size": 2}],
    }
    (tmp_path / "task.yaml").write_text(json.dumps(config))
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.chdir(tmp_path)
    load_plugins.cache_clear()
    yield tmp_path / "task.yaml"
    load_plugins.cache_clear()


def until(holds, limit_s=60):
    end = time.monotonic() + limit_s
    while not (value := holds()) and time.monotonic() < end:
        time.sleep(0.02)
    return value


def test_a_run_that_ends_says_how_and_leaves_no_process_behind(task, tmp_path, start_training, session_members):
    output, log, hangs = tmp_path / "run", tmp_path / "log", tmp_path / "hangs"
    for place, step, what, code, saved in ENDS:
        number = what if isinstance(what, str) else int(what)
        resume = output.exists()
        process = start_training(task, output, resume, PROBE_LOG=str(log), PROBE_PLAN=f"{place} {step} {number}")
        if what == "hang":
            assert until(hangs.exists), log.read_text()
            assert len(session_members(process.pid)) >= 2 + (place == "reward")
            process.kill()
        process.join(120)
        printed = log.read_text()
        assert process.exitcode == code, printed
        assert until(lambda pid=process.pid: not session_members(pid), 10), f"{place} {what}: {printed}"
        newest = max(int(path.name.removeprefix("step-")) for path in (output / "checkpoints").iterdir())
        assert newest == saved, printed
        if what == "crash":
            assert "Fatal Python error: Segmentation fault" in printed
            line = PROBE.splitlines().index("        ctypes.string_at(0)") + 1
            assert f'probe_ending.py", line {line} in passes' in printed
        elif what != "hang":
            assert f"saved step {saved}; go on from it with --resume\n" in printed
        log.unlink()
        hangs.unlink(missing_ok=True)
