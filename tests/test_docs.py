"""The documents say what the code does: generated pages are current, everything is named, and snippets run."""

from __future__ import annotations

import doctest
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from mmrl_core.cli import make_parser
from mmrl_core.config import algorithm, component, component_problems, load_config, load_reward, rows, schema
from mmrl_core.plugins import builtin, load_plugins, presets
from mmrl_core.plugins.registry import KINDS, Registry
from mmrl_core.scoring import RewardRunner
from mmrl_core.testing import PROPERTIES
from tests import house

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PLUGINS_PAGE = (DOCS / "plugins.md").read_text(encoding="utf-8")
VISUAL_RFT_README = (ROOT / "plugins" / "mmrl-visual-rft" / "README.md").read_text(encoding="utf-8")
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md"), *ROOT.glob("plugins/*/README.md")])
NOT_IN_THE_TREE = {".ci", ".git", ".github", ".venv", "runs", "build", "dist", "preview", "site"}


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def fenced(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def named_files(text: str) -> dict[str, str]:
    """Path -> content of every block that stands under a line that is a path in backticks."""
    return dict(re.findall(r"^`([^`\n]+)`\n\n```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mmrl_docs_generate", DOCS / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Generated pages


def test_generated_pages_are_current():
    result = subprocess.run(
        [sys.executable, str(DOCS / "generate.py"), "--check"], capture_output=True, text=True, timeout=240, check=False
    )
    assert result.returncode == 0, result.stderr


def test_every_hook_is_documented_in_order(generate):
    hooks = [name for name in vars(generate.hookspecs) if name.startswith("mmrl_")]
    assert re.findall(r"^## (mmrl_\w+)$", page("hooks.md"), re.MULTILINE) == hooks


def test_every_config_key_is_documented(generate):
    sections = re.split(r"^## ", page("config.md"), flags=re.MULTILINE)[1:]
    models = generate._sections()
    assert len(sections) == len(models)
    for model, section in zip(models, sections, strict=True):
        assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == list(model.model_fields)


def test_every_section_of_the_schema_is_reached(generate):
    sections = {
        value
        for module in (component, algorithm, rows, schema)
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, generate.BaseModel) and value.__module__ == module.__name__
    }
    assert sections - {generate.config.Strict} == set(generate._sections()) - {generate.LanguageModelOptions}


def test_every_command_is_documented(generate):
    commands = list(generate._commands(make_parser()))
    assert re.findall(r"^## mmrl ([\w-]+)$", page("cli.md"), re.MULTILINE) == commands
    assert [name for name in commands if f"mmrl {name}" not in README] == []


def test_every_core_entry_and_preset_is_documented():
    registry = Registry()
    builtin.mmrl_register(registry)
    entries = {kind: [entry.id.removeprefix("core/") for entry in registry.entries(kind)] for kind in KINDS}
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", page("algorithms.md"), re.MULTILINE | re.DOTALL))
    for kind, names in entries.items():
        assert f"[{kind}]" in page("algorithms.md") or not names
        assert re.findall(r"^### (\w+)$", sections.get(kind, ""), re.MULTILINE) == names
    assert re.findall(r"^\| `(\w+/\w+)` \|", page("algorithms.md"), re.MULTILINE) == list(presets())


def test_names_elsewhere_stand_for_what_is_here(generate):
    """Presets, losses and stages named in the table exist, and TRL's kinds of loss are all in it."""
    rows = [*generate.LOSSES, *generate.ADVANTAGES, *generate.OPTIONS]
    here = re.findall(r"`((?:algorithm|text_reasoning)/\w+)`", " ".join(row[2] for row in rows))
    known = {entry.id for kind in KINDS for entry in load_plugins().registry.entries(kind)} | set(presets())
    assert [name for name in here if name not in known] == []
    config = "".join(row[0] for row in rows)
    for name in ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"):
        assert f"`loss_type: {name}`" in config


# Links and names


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\((?!https?:)([^)#\s]+)", text)
    assert [target for target in targets if not (path.parent / target).exists()] == []


def test_index_links_every_page():
    linked = set(re.findall(r"\]\((\w+\.md)\)", page("index.md")))
    assert {path.name for path in DOCS.glob("*.md")} - {"index.md"} <= linked


def test_the_tree_names_every_folder_and_room_in_ten_lines():
    tree = fenced(page("code.md"), "text")[0].splitlines()
    folders = {
        path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")
    } - NOT_IN_THE_TREE
    words = {word for line in tree for word in line.split()}
    assert len(tree) == 10
    assert [name for name in sorted(folders | set(house.rooms())) if f"{name}/" not in words] == []


def test_visual_rft_readme_names_everything_that_the_plugin_provides():
    plugins = load_plugins()
    ids = [e.id for kind in ("reward", "source", "metric") for e in plugins.registry.entries(kind)]
    ids += list(plugins.tasks)
    assert [i for i in ids if i.startswith("visual_rft/") and f"`{i}`" not in VISUAL_RFT_README] == []


def test_ranges_in_the_visual_rft_readme_are_the_declared_maxima():
    ranges = dict(re.findall(r"^\| `(visual_rft/\w+)` \| 0\.\.(\d+) \|", VISUAL_RFT_README, re.MULTILINE))
    declared = {e.id: e.details["maximum"] for e in load_plugins().registry.entries("reward") if "visual_rft/" in e.id}
    assert {name: float(maximum) for name, maximum in ranges.items()} == declared


def test_troubleshooting_quotes_messages_that_there_are():
    code = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "mmrl_core").rglob("*.py")))
    code = re.sub(r'"\s*\n\s*f?"', "", code)  # texts that are written over several lines
    first_cells = re.findall(r"^\| ([^|]+) \|", page("troubleshooting.md"), re.MULTILINE)
    quoted = [text for cell in first_cells for text in re.findall(r'"([^"]+)"', cell)]
    assert len(quoted) > 25 and [text for text in quoted if text not in code] == []


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site; a warning, such as a link that leads nowhere, is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert result.returncode == 0, result.stderr
    return folder


def test_the_site_has_every_page_in_its_navigation(site):
    pages = {path.relative_to(DOCS).with_suffix(".html").as_posix() for path in DOCS.rglob("*.md")}
    plugins = {f"plugins/{path.parent.name.removeprefix('mmrl-')}.html" for path in ROOT.glob("plugins/*/README.md")}
    assert [name for name in sorted(pages | plugins) if not (site / name).is_file()] == []
    home = (site / "index.html").read_text(encoding="utf-8")
    assert [name for name in sorted(pages | plugins) if f'href="{name}"' not in home] == []


def test_the_site_asks_nothing_of_the_network(site):
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(?:https?:)?//[^"]*"', text) == [], path


# Snippets


def write(name: str, content: str) -> None:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def test_readme_task_loads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (snippet,) = fenced(README, "yaml")
    write("my_detector.yaml", snippet)
    config = load_config("my_detector.yaml", ["stages.grpo.group_size=16"])
    assert component_problems(config, load_plugins()) == []


def test_readme_reward_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (snippet,) = fenced(README, "python")
    write("my_rewards.py", snippet)
    runner = RewardRunner(
        load_plugins(), [load_reward("my_rewards.py:brevity", ["max_words=20", "stop_on_failure=true"])]
    )
    completions = ["a few words", "word " * 30, "word " * 50, ""]
    assert runner.score_samples("brevity", completions, [{}] * 4) == [1.0, 0.5, 0.0, None]


def test_readme_names_the_reward_that_it_defines():
    (snippet,) = fenced(README, "python")
    assert "my_rewards.py:brevity" in README and "def brevity(" in snippet


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory) -> Path:
    """A folder with every file of the tutorial, and its package as if it were installed."""
    folder = tmp_path_factory.mktemp("tutorial")
    for name, content in named_files(PLUGINS_PAGE).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = folder / "src" / "mmrl_colours-0.1.0.dist-info"
    info.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    metadata += f"Summary: {project['description']}\nRequires-Dist: {project['dependencies'][0]}\n"
    (info / "METADATA").write_text(f"{metadata}\n{(folder / project['readme']).read_text(encoding='utf-8')}")
    groups = project["entry-points"].items()
    (info / "entry_points.txt").write_text(
        "".join(f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in entries.items()) for group, entries in groups)
    )
    return folder


def run(folder: Path, *commands: list[str]) -> str:
    """Runs commands in one process, with the tutorial's package on the path; they all exit with 0."""
    code = "import json, sys; from mmrl_core.cli import main; sys.exit(max(map(main, json.loads(sys.argv[1]))))"
    result = subprocess.run(
        [sys.executable, "-c", code, json.dumps(commands)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder / "src"), "MMRL_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def commands_in(text: str) -> list[str]:
    return re.findall(r"^\$ mmrl (.*)$", "\n".join(fenced(text, "console")), re.MULTILINE)


def test_tutorial_lists_the_files_that_it_shows():
    listed = re.findall(r"^  (\S+)", fenced(PLUGINS_PAGE.partition("## The package")[2], "text")[0], re.MULTILINE)
    of_package = ("src/", "tests/", "pyproject.toml", "README.md")
    shown = [name for name in named_files(PLUGINS_PAGE) if name.startswith(of_package)]
    assert sorted(listed) == sorted(shown)


def test_tutorial_reward_in_a_file_scores_as_shown(tutorial):
    (command,) = [command for command in commands_in(PLUGINS_PAGE) if command.startswith("score ")]
    shown = PLUGINS_PAGE.partition(f"$ mmrl {command}\n")[2].partition("```")[0]
    assert run(tutorial, command.split()) == shown


def test_tutorial_plugin_passes_its_checks(tutorial):
    checks = [command.split() for command in commands_in(PLUGINS_PAGE) if command.startswith("check ")]
    assert len(checks) == 2
    output = run(tutorial, *checks)
    assert "FAIL" not in output and "ok    state: " in output and "gold answer: scores the maximum" in output


def test_tutorial_test_passes_for_each_property(tutorial):
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_conformance.py"],
        cwd=tutorial,
        env={**os.environ, "PYTHONPATH": str(tutorial / "src"), "MMRL_CACHE": str(tutorial / "cache")},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert result.returncode == 0 and f"{len(PROPERTIES) - 5} passed, 5 skipped" in result.stdout, result.stdout


def test_tutorial_commands_train(tutorial):
    """All of its training commands, in order; the hook takes a tenth from every truncated completion."""
    commands = [command for command in commands_in(PLUGINS_PAGE) if command.startswith(("train ", "view "))]
    assert len(commands) == 5
    run(tutorial, *[command.split() for command in commands])
    assert (tutorial / "runs" / "colours" / "report.html").is_file()
    for name, num_turns in (("colours", 1), ("two_turns", 2)):
        lines = (tutorial / "runs" / name / "metrics.jsonl").read_text().splitlines()
        steps = [record for line in lines if (record := json.loads(line)).get("stage_kind") == "grpo"]
        assert len(steps) == 2
        for step in steps:
            assert step["reward/total"] == pytest.approx(step["reward/colours/named"] - 0.1 * step["truncated"])
            assert step["completion_tokens/max"] <= 8 * num_turns
        assert max(step["completion_tokens/max"] for step in steps) > 8 * (num_turns - 1)
    with_tools = (tutorial / "runs" / "with_tools" / "metrics.jsonl").read_text()
    assert with_tools.count('"outcome/valid_tool_calls"') == 2, "of both GRPO steps"


def test_ten_minutes_are_as_shown(tmp_path):
    """Every command of the page, with two steps for each stage."""
    short = ["stages.sft.steps=2", "stages.grpo.steps=2"]
    commands = [shlex.split(command) for command in commands_in(page("start.md"))]
    assert len(commands) == 12
    run(tmp_path, *commands[:2])
    folder = tmp_path / "traffic_signs"
    shown = run(folder, *[command + short if command[0] == "train" else command for command in commands[2:]])
    assert "FAIL" not in shown and "config of first, and of second" in shown
    assert (folder / "exported" / "README.md").is_file()


# Stages and losses


def test_the_stage_and_the_loss_of_the_page_train_as_shown(tmp_path):
    text = page("stages_and_losses.md")
    for name, content in named_files(text).items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    (command,) = commands_in(text)
    run(tmp_path, command.split())
    lines = (tmp_path / "runs" / "short" / "metrics.jsonl").read_text().splitlines()
    steps = [record for line in lines if (record := json.loads(line))["kind"] == "step"]
    assert ["far" in step for step in steps] == [True, True, False], "the last is of a loss of pairs"


def test_the_stage_of_the_page_gives_what_its_rules_say(tmp_path):
    """Group 0: totals 1, -3 (two rows), mean -1, weight 2; group 1: 2, unscored, mean 2."""
    torch = pytest.importorskip("torch")
    from mmrl_core.types import RewardView

    (tmp_path / "stage.py").write_text(named_files(page("stages_and_losses.md"))["stage.py"])
    stage = load_plugins().registry.get("advantage", f"{tmp_path / 'stage.py'}:sign").load()
    rewards = torch.tensor([1.0, -3.0, -3.0, 2.0, float("nan")])
    mask = torch.ones(5, 1, dtype=torch.bool)
    groups, trajectories = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 1, 1, 2, 3])
    view = RewardView(rewards, {}, {}, rewards[:, None], groups, trajectories, mask)
    assert stage(rewards, view, hard_weight=2.0).tolist() == [2.0, -2.0, -2.0, 0.0, 0.0]


def test_the_loss_of_the_page_has_the_gradient_of_the_ratio_on_policy(tmp_path):
    """d/dlogprob of -A * tanh(ratio - 1 / w) * w at ratio 1 is -A."""
    torch = pytest.importorskip("torch")
    from mmrl_core.loss_inputs import BatchTotals, LossInputs

    (tmp_path / "loss.py").write_text(named_files(page("stages_and_losses.md"))["loss.py"])
    loss = load_plugins().registry.get("loss", f"{tmp_path / 'loss.py'}:soft_bound").load()
    logprobs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    advantages, mask = torch.tensor([[0.5, -2.0]]), torch.ones(1, 2, dtype=torch.bool)
    losses, _ = loss(LossInputs(logprobs, logprobs.detach(), advantages, mask, BatchTotals(2, 1)))
    losses.sum().backward()
    torch.testing.assert_close(logprobs.grad, -advantages)


# Metrics


def test_the_snippets_of_metrics_run_and_there_is_one_for_each_plugin():
    text = page("metrics.md")
    snippets = fenced(text, "pycon")
    names = [plugin for plugin in load_plugins().plugins if any(f"from mmrl_{plugin}." in code for code in snippets)]
    assert names == list(load_plugins().plugins)
    test = doctest.DocTestParser().get_doctest("\n".join(snippets), {}, "metrics.md", "docs/metrics.md", 0)
    told = []
    assert doctest.DocTestRunner(verbose=False).run(test, out=told.append).failed == 0, "".join(told)


def test_metrics_of_plugins_import_no_trainer():
    modules = [f"mmrl_{plugin}.metrics" for plugin in load_plugins().plugins if plugin != "find"]
    code = f"import sys, {', '.join(modules)}; print([n for n in ('torch', 'numpy', 'pydantic') if n in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "[]"


def test_every_property_of_plugins_is_documented():
    rows = re.findall(r"^\| ([a-z ]+) \| [A-Z]", page("conformance.md"), re.MULTILINE)
    assert rows == [tried.name for tried in PROPERTIES]
