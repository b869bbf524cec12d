"""Every property catches a plugin that does not keep it, and nothing else fails of that plugin."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from mmrl_core.cli import main
from mmrl_core.errors import PluginError
from mmrl_core.plugins import Plugin, Plugins, load_plugins
from mmrl_core.plugins.registry import Registry
from mmrl_core.testing import PROPERTIES, SourceCase, check_plugin
from mmrl_core.testing.sections import Finding

METADATA = """Metadata-Version: 2.1
Name: mmrl-sound
Version: 0.1.0
Summary: A plugin that keeps what plugins keep
Requires-Dist: mmrl-core>=0.1

# mmrl-sound
"""
ENTRY_POINTS = """[mmrl]
sound = mmrl_sound

[mmrl.tasks]
naming = mmrl_sound.tasks
"""
INIT = '''"""Names colours."""

from mmrl_core import hookimpl


@hookimpl
def mmrl_register(registry):
    """Import strings."""
    add = registry.add
    add("source", "squares", "mmrl_sound.data:squares", "squares of one colour")
    add("source", "rows", "mmrl_sound.data:rows", "rows of a file")
    add("reward", "named", "mmrl_sound.rewards:named", "the colour", maximum=1.0)
    add("metric", "share", "mmrl_sound.rewards:share", "share named right")
    add("view", "frame", "mmrl_sound.rewards:frame", "the whole picture")
    add("loss", "plain", "mmrl_sound.methods:plain", "policy gradient")
    add("advantage", "centred", "mmrl_sound.methods:centred", "minus the mean", claims="advantage.base")
    add("behaviour", "counter", "mmrl_sound.methods:Counter", "counts groups")
    add("tool", "palette", "mmrl_sound.tools:Palette", "names the colours")
'''
DATA = '''"""Sources."""
import random
from typing import Annotated

from annotated_types import Ge
from PIL import Image

from mmrl_core.data import ListedRows, load_rows, read_options

COLOURS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 70, 220)}


def squares(split: str, *, num_rows: Annotated[int, Ge(1)] = 64, seed: int = 0):
    """Rows image, colour."""
    rng = random.Random(f"{split}{seed}")
    names = [rng.choice(sorted(COLOURS)) for _ in range(num_rows)]
    return [{"image": Image.new("RGB", (8, 8), COLOURS[name]), "colour": name} for name in names]


def rows(split: str, *, path: str):
    """Rows of a file with image, choices and colour."""
    found = load_rows(path, split=split)
    return ListedRows([{**row, "choices": read_options(row["choices"])} for row in found], media_root=found.media_root)
'''
REWARDS = '''"""Rewards, metrics, views."""
import math


def named(completions, samples):
    """1.0 for the colour, else 0.0; None where there is none."""
    golds = [sample.get("colour") for sample in samples]
    return [None if gold is None else float(text.strip() == gold) for text, gold in zip(completions, golds)]


def share(completions, samples):
    """Share of completions that are the colour."""
    scores = [score for score in named(completions, samples) if score is not None]
    return {"share": sum(scores) / len(scores) if scores else math.nan}


def frame(completion, sample):
    """A box around everything, where there is an answer."""
    return [{"kind": "predicted", "box": [0, 0, 1, 1]}] if completion.strip() else []
'''
METHODS = '''"""Losses, stages, behaviours."""
import torch

from mmrl_core import hookimpl


def plain(inputs, *, scale: float = 1.0):
    """-advantage * logprob."""
    return -scale * inputs.advantages * inputs.logprobs, {}


def centred(advantages, view):
    """Minus the mean."""
    return (view.rewards - view.rewards.nanmean()).nan_to_num(0.0)


class Counter:
    """Counts groups."""

    def __init__(self, *, start: int = 0):
        self.count, self.last = start, ""

    @hookimpl(wrapper=True)
    def mmrl_shape_rewards(self, run, groups):
        self.count += len(groups)
        self.last = groups[-1].prompt.id
        scores = yield
        return scores.with_component("count", torch.full_like(scores.totals, float(self.count)), 0.1)

    @hookimpl
    def mmrl_save_state(self):
        return {"count": self.count, "last": self.last}

    @hookimpl
    def mmrl_load_state(self, state):
        self.count, self.last = state["count"], state["last"]
'''
TOOLS = '''"""Tools."""
from pydantic import BaseModel

from mmrl_core import Tool


class Nothing(BaseModel):
    """No arguments."""


class Palette(Tool):
    """Names the colours."""

    name, description, arguments = "palette", "Names the colours that there are.", Nothing

    def run(self, arguments, context):
        return []
'''
TASK = """# Name the colour of a square.
name: naming
data:
  train: {name: sound/squares}
prompt: {images: ["{image}"], text: "Which colour?", answer: "{colour}"}
rewards: [sound/named]
eval: {metrics: [sound/share]}
log: {view: sound/frame}
"""
SOUND = {
    "mmrl_sound-0.1.0.dist-info/METADATA": METADATA,
    "mmrl_sound-0.1.0.dist-info/entry_points.txt": ENTRY_POINTS,
    "mmrl_sound/__init__.py": INIT,
    "mmrl_sound/data.py": DATA,
    "mmrl_sound/rewards.py": REWARDS,
    "mmrl_sound/methods.py": METHODS,
    "mmrl_sound/tools.py": TOOLS,
    "mmrl_sound/tasks/__init__.py": "",
    "mmrl_sound/tasks/naming.yaml": TASK,
}


def write_row(folder: Path, medium: Any) -> dict[str, Any]:
    (folder / "train.jsonl").write_text(
        f'{{"image": "{medium}", "choices": ["red", "blue"], "colour": "red"}}\n', encoding="utf-8"
    )
    return {"path": str(folder / "train.jsonl")}


CASES = {"sound/rows": (SourceCase(write_row),)}

Checked = Callable[[Mapping[str, str]], list[Finding]]


def forget() -> None:
    load_plugins.cache_clear()
    importlib.invalidate_caches()
    for name in [name for name in sys.modules if name.partition(".")[0] == "mmrl_sound"]:
        del sys.modules[name]


@pytest.fixture
def checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Checked]:
    """Installs the sound plugin with some files in place of its own, and checks it."""

    def check(files: Mapping[str, str]) -> list[Finding]:
        for name, content in {**SOUND, **files}.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content, encoding="utf-8")
        monkeypatch.syspath_prepend(str(tmp_path))
        forget()
        return check_plugin("sound", cases=CASES)

    yield check
    monkeypatch.undo()
    forget()


def test_a_sound_plugin_keeps_every_property(checked: Checked, capsys: pytest.CaptureFixture[str]) -> None:
    findings = checked({})
    assert [finding.what for finding in findings if not finding.ok] == []
    assert [finding.property for finding in findings if finding.skipped] == []
    assert [finding.property for finding in findings] == [tried.name for tried in PROPERTIES]
    assert len(PROPERTIES) >= 20 and len({tried.name for tried in PROPERTIES}) == len(PROPERTIES)
    assert main(["check", "sound"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ok    loads: Its module is imported, and registers what it provides."
    skipped = [line for line in lines if line.startswith("skip")]
    assert len(lines) == len(PROPERTIES) and len(skipped) == 2 and "gives no cases" in skipped[0]


def swapped(file: str, *pairs: tuple[str, str]) -> dict[str, str]:
    """The sound file with one text in place of another."""
    (name,) = [name for name in SOUND if name.endswith(file)]
    content = SOUND[name]
    for old, new in pairs:
        assert old in content, old
        content = content.replace(old, new)
    return {name: content}


SCORE = "return [None if gold is None else float(text.strip() == gold) for text, gold in zip(completions, golds)]"

CLOSURE = '''

def _wrapped(function):
    def inner(completions, samples):
        """As the function."""
        return function(completions, samples)

    return inner


paid = _wrapped(named)
'''

COUNTED = """plugins: [sound/counter]
algorithm: {advantage: [sound/centred]}
stages: [{kind: grpo, steps: 1}]
"""

BROKEN: dict[str, tuple[dict[str, str], str]] = {
    "loads": (swapped("sound/__init__.py", ("add = registry.add", "add = registry.append")), "'append'"),
    "light": (swapped("sound/__init__.py", ("from mmrl_core", "import numpy\nfrom mmrl_core")), "imports numpy"),
    "metadata": (swapped("METADATA", ("\n# mmrl-sound\n", "")), "has no README"),
    "faces": (
        swapped("rewards.py", ("import math\n", "import math\n\nfrom mmrl_core.data.marks import MarksOff\n")),
        "mmrl_sound/rewards.py:4: imports mmrl_core.data.marks (MarksOff)",
    ),
    "hooks": (
        swapped(
            "methods.py",
            ("    def mmrl_load_state", "    def mmrl_step_ends(self): ...\n\n    @hookimpl\n    def mmrl_load_state"),
        ),
        "methods.py:35: implements hook 'mmrl_step_ends', which does not exist. Did you mean 'mmrl_step_end'?",
    ),
    "imports": (
        swapped("sound/__init__.py", ("tools:Palette", "tools:Pallet")),
        "tool 'sound/palette' (mmrl_sound.tools:Pallet) cannot be imported",
    ),
    "docstrings": (
        swapped("rewards.py", ('    """Share of completions that are the colour."""\n', "")),
        "metric sound/share (mmrl_sound.rewards:share): has no docstring",
    ),
    "descriptions": (
        swapped("sound/__init__.py", ('"squares of one colour"', '""')),
        "source sound/squares: is registered",
    ),
    "option types": (
        swapped("data.py", ("seed: int = 0", "seed=0")),
        "source sound/squares (mmrl_sound.data:squares): option 'seed' has no type",
    ),
    "option ranges": (
        swapped("data.py", ("= 64", "= 0")),
        "option 'num_rows': its default 0 is refused: option 'num_rows' should be",
    ),
    "options read": (
        swapped("methods.py", ("-scale * ", "-")),
        "loss sound/plain (mmrl_sound.methods:plain): option 'scale'",
    ),
    "tasks parse": (
        swapped("naming.yaml", ("eval:", "evaluation:")),
        "naming.yaml:7: unknown key 'evaluation'",
    ),
    "tasks registered": (
        {"mmrl_sound/tasks/other.yaml": "name: other\n"},
        "mmrl_sound/tasks/other.yaml: no entry point names it",
    ),
    "presets": (
        swapped(
            "sound/__init__.py",
            (', claims="advantage.base"', ""),
            ('"counts groups"', '"counts", claims="advantage.base"'),
        )
        | swapped("naming.yaml", ("log:", f"{COUNTED}log:")),
        "task sound/naming with preset algorithm/grpo: ",
    ),
    "gold answers": (swapped("naming.yaml", (', answer: "{colour}"', "")), "task sound/naming: has no gold answer"),
    "rows repeat": (
        swapped("data.py", ('random.Random(f"{split}{seed}")', "random.Random(None if seed == 0 else split)")),
        "source 'sound/squares' gives another row train:",
    ),
    "rows pickle": (
        swapped(
            "data.py",
            ("COLOURS = {", 'KEY = type("Key", (), {"__repr__": lambda self: "key"})()\nCOLOURS = {'),
            ('"colour": name}', '"colour": name, "key": KEY}'),
        ),
        "row train:0 cannot be pickled",
    ),
    "prompts": (
        swapped("data.py", ("    return [{", '    return [{"image": "gone.png", "colour": "red"}] + [{')),
        "row 0 (gone.png): cannot read image",
    ),
    "modalities": (
        swapped("data.py", ('"image": Image.new("RGB", (8, 8), COLOURS[name])', '"image": None')),
        "prompt.images names columns that hold no image",
    ),
    "broken media": (
        swapped(
            "data.py",
            ("    found = load", "    import pathlib\n\n    folder = pathlib.Path(path).parent\n    found = load"),
            ("[{**row, ", '[{**row, "size": Image.open(folder / row["image"]).size, '),
        ),
        "source sound/rows: a row whose image is missing ends the run",
    ),
    "list columns": (
        swapped("data.py", ('read_options(row["choices"])', 'list(row["choices"])')),
        "source sound/rows: a row whose list 'choices' is written as the text of one becomes another row",
    ),
    "gold": (
        swapped("rewards.py", ("float(text.strip() == gold)", "0.5 * (text.strip() == gold)")),
        "not the maximum 1",
    ),
    "groups": (
        swapped("rewards.py", (SCORE, SCORE.replace("float(", "float(len(completions) == 1 and "))),
        "completion 0 scores 0 in it, and 1 alone",
    ),
    "order": (
        swapped("sound/__init__.py", ('"the colour", maximum=1.0', '"the colour", maximum=1.0, shape="group"'))
        | swapped("rewards.py", (SCORE, SCORE.replace("zip(completions", "zip(completions[:1] + [''] * 9"))),
        "completion 0 scores 1 in it, and 0 in the opposite order",
    ),
    "determinism": (
        swapped(
            "rewards.py",
            ("import math\n", "import itertools\nimport math\n\nCALLS = itertools.count()\n"),
            ("float(text.strip() == gold)", "1.0 if text.strip() == gold else 1 / (2 + next(CALLS))"),
        ),
        "an empty completion, on train:0: scores 0.",
    ),
    "hostile": (
        swapped("rewards.py", ("float(text.strip() == gold)", "float(text[0] == gold[0])")),
        "an empty completion, on train:0: raised IndexError",
    ),
    "time": (
        swapped(
            "rewards.py",
            ("import math\n", "import math\nimport time\n"),
            (SCORE, f"time.sleep(0.9 * (len(''.join(completions)) > 9000))\n    {SCORE}"),
        )
        | swapped("naming.yaml", ("[sound/named]", "[{name: sound/named, timeout_s: 0.5}]")),
        "took longer than 0.5 s",
    ),
    "rewards pickle": (
        swapped("sound/__init__.py", ("rewards:named", "rewards:paid")) | {"mmrl_sound/rewards.py": REWARDS + CLOSURE},
        "reward sound/named (mmrl_sound.rewards:paid): cannot be pickled",
    ),
    "unscored": (
        swapped("rewards.py", ("None if gold is None else float", "float")),
        "reward sound/named gives 0 for a row without colour",
    ),
    "metrics without rows": (
        swapped("rewards.py", ("    scores = [", "    completions[0]\n    scores = [")),
        "metric sound/share (mmrl_sound.rewards:share): without rows it raises IndexError",
    ),
    "metrics without gold": (
        swapped("rewards.py", ("    scores = [", "    [sample['colour'] for sample in samples]\n    scores = [")),
        "of rows without gold it raises KeyError: 'colour'",
    ),
    "metrics of gold": (
        swapped("rewards.py", ('return {"share": sum(scores)', 'return {"share": math.nan * sum(scores)')),
        "all of its numbers are NaN",
    ),
    "views": (
        swapped("rewards.py", ("if completion.strip()", "if completion[0]")),
        "view sound/frame (mmrl_sound.rewards:frame): on an empty completion it raises IndexError",
    ),
    "tools": (
        swapped("tools.py", ('"Names the colours that there are."', '""')),
        "tool sound/palette (mmrl_sound.tools:Palette): made without options it has no name or no description",
    ),
    "losses": (
        swapped("methods.py", ("return -scale", "inputs.advantages.clamp_(max=0)\n    return -scale")),
        "loss sound/plain (mmrl_sound.methods:plain): on-policy: changes advantages in place",
    ),
    "advantages": (
        swapped("methods.py", (".nan_to_num(0.0)", "")),
        "advantage sound/centred (mmrl_sound.methods:centred): on rewards of which one is unscored",
    ),
    "state": (
        swapped(
            "methods.py",
            ("        self.count, self.last = state", "        self.last, _ = state"),
            ('state["count"], state["last"]', 'state["last"], 0'),
        ),
        "behaviour sound/counter (mmrl_sound.methods:Counter): what it saves after loading is not what was loaded",
    ),
}


def test_every_property_has_a_plugin_that_breaks_it() -> None:
    assert list(BROKEN) == [tried.name for tried in PROPERTIES]


@pytest.mark.parametrize("name", BROKEN)
def test_a_plugin_that_breaks_a_property_fails_just_this_one(name: str, checked: Checked) -> None:
    files, expected = BROKEN[name]
    failed = [finding for finding in checked(files) if not finding.ok]
    assert {finding.property for finding in failed} == {name}, [finding.what for finding in failed]
    assert any(expected in finding.what for finding in failed), [finding.what for finding in failed]


def test_plugins_that_failed_or_are_missing_are_named() -> None:
    failed = Plugins({"mine": Plugin("mine", "mmrl-mine", "1.0", error="no module named torch")}, Registry(), {})
    findings = check_plugin("mine", failed)
    assert findings[0].what == "loads: plugin 'mine' (mmrl-mine) failed to load:\nno module named torch"
    assert not findings[0].ok and all(finding.skipped for finding in findings[1:])
    with pytest.raises(PluginError, match="Did you mean 'mine'"):
        check_plugin("mien", failed)


PLUGIN_TEST = """PLUGIN = "sound"


def test_conformance(mmrl_property):
    mmrl_property()
"""


def test_the_pytest_plugin_has_a_test_for_each_property(checked: Checked, tmp_path: Path) -> None:
    """As a plugin's author runs it: in a process of its own, with nothing but the file of two lines."""
    checked(BROKEN["gold"][0])
    (tmp_path / "test_sound.py").write_text(PLUGIN_TEST)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rfs", "-p", "no:cacheprovider", "test_sound.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 1
    assert "FAILED test_sound.py::test_conformance[gold]" in result.stdout
    assert f"1 failed, {len(PROPERTIES) - 3} passed, 2 skipped" in result.stdout, result.stdout
    assert "gold: sound/naming: data.train: reward 'sound/named': gold answer: not the maximum 1" in result.stdout


def test_pytest_loads_nothing_of_the_kit_until_a_test_asks() -> None:
    code = "import sys, mmrl_core.testing.pytest_plugin as p; print([n for n in ('torch', 'yaml') if n in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "[]"
    (found,) = [point for point in entry_points(group="pytest11") if point.name == "mmrl"]
    assert found.value == "mmrl_core.testing.pytest_plugin"
