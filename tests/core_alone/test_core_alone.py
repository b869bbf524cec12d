"""With mmrl-core alone, without its extras: a text model trains, and what needs an extra says which.

Runs in an environment of its own: `make test-core`.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ABSENT = ("PIL", "av", "decord", "matplotlib", "soundfile", "torchaudio", "torchvision")

TASK = """
name: sums
version: 1
model: {path: model}
prompt: {text: "{problem}", answer: "{answer}"}
data:
  train: {name: rows, path: sums.jsonl}
rewards: ["reward.py:digits"]
stages:
  - {name: grpo, kind: grpo, steps: 5, prompts_per_step: 2, group_size: 4, rollout: {max_tokens: 8}}
"""

REWARD = '''
def digits(completions, samples):
    """The share of digits in each completion."""
    return [sum(map(str.isdigit, text)) / max(1, len(text)) for text in completions]
'''


def mmrl(*arguments, folder):
    command = [sys.executable, "-m", "mmrl_core", *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A text model, 24 sums, a reward in a file, and the task that names them."""
    folder = tmp_path_factory.mktemp("sums")
    rows = [{"problem": f"{a} + {b} =", "answer": str(a + b)} for a in range(4) for b in range(6)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "reward.py").write_text(REWARD)
    (folder / "task.yaml").write_text(TASK)
    made = mmrl("tiny", "qwen2", "model", folder=folder)
    assert made.returncode == 0, made.stderr
    return folder


@pytest.mark.parametrize("module", ABSENT)
def test_the_package_is_not_installed(module):
    assert importlib.util.find_spec(module) is None


def test_a_text_model_trains_five_steps_and_the_report_or_its_extra_is_named(folder):
    run = mmrl("train", "task.yaml", "--output", "run", folder=folder)
    assert run.returncode == 0, run.stdout + run.stderr
    steps = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert max(step.get("step", 0) for step in steps) == 5
    sentence = re.search(r"the report needs the package \w+. Try: pip install 'mmrl-core\[report\]'", run.stdout)
    assert (folder / "run" / "report.html").is_file() or sentence, run.stdout + run.stderr


@pytest.mark.parametrize("arguments", [("check", "task.yaml"), ("train", "task.yaml", "--dry-run")])
def test_a_text_task_is_checked(folder, arguments):
    run = mmrl(*arguments, folder=folder)
    assert run.returncode == 0, run.stdout + run.stderr


def test_a_task_with_images_names_the_extra_that_it_needs(folder):
    (folder / "picture.png").write_bytes(b"\x89PNG\r\n")
    (folder / "pictures.jsonl").write_text(json.dumps({"problem": "What?", "image": "picture.png"}) + "\n")
    changes = ["data.train.path=pictures.jsonl", "prompt.images=['{image}']", "prompt.answer=''"]
    run = mmrl("train", "task.yaml", "--output", "run_images", *changes, folder=folder)
    assert run.returncode == 2 and "Traceback" not in run.stderr
    expected = "reading images needs the package pillow. Try: pip install 'mmrl-core[vision]'"
    assert expected in re.sub(r"\s+", " ", run.stdout + run.stderr)


def test_a_model_with_images_names_the_extra_that_it_needs(folder, monkeypatch):
    from mmrl_core.errors import MissingPackageError
    from mmrl_core.language_model import loading
    from mmrl_core.language_model.options import LanguageModelOptions

    monkeypatch.setattr(loading, "_media_kinds", lambda settings: {"vision"})
    with pytest.raises(MissingPackageError, match="a model that takes images needs the package torchvision"):
        loading.load_processor(folder / "model", LanguageModelOptions())


def test_list_loads_nothing_heavy(folder):
    code = (
        "import sys; sys.argv = ['mmrl', 'list']\n"
        "from mmrl_core.cli import main\n"
        "code = main()\n"
        "print(code, [name for name in ('torch', 'pydantic', 'PIL', 'transformers') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.stdout.splitlines()[-1] in ("0 []", "None []"), run.stdout + run.stderr
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        assert mmrl("list", folder=folder).returncode == 0
        seconds.append(time.perf_counter() - start)
    print(f"mmrl list: {min(seconds):.2f} s")  # should stay under half a second; the machine decides, so not asserted


def test_the_core_imports_no_package_of_an_extra_at_the_top_of_a_module():
    import mmrl_core

    top = re.compile(rf"^(?:import|from) (?:{'|'.join(ABSENT)}|jinja2|torchcodec)\b", re.MULTILINE)
    sources = Path(mmrl_core.__file__).parent.rglob("*.py")
    assert [str(path) for path in sources if top.search(path.read_text(encoding="utf-8"))] == []
