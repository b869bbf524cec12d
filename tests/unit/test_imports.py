"""Imports: one way, no cycle, and none that is heavy on the way to `mmrl list`."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mmrl_core

PACKAGE = Path(mmrl_core.__file__).parent
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))
HEAVY = ("torch", "transformers", "datasets", "accelerate", "peft", "numpy", "pydantic", "yaml", "rich", "PIL")

LAYERS = (
    {"errors", "types", "hookspecs", "geometry"},
    {"advantages", "charts", "losses", "media", "plugins", "builtin", "tiny", "demo", "data", "tools", "video"},
    {
        "checkpoint",
        "config",
        "engine",
        "policy",
        "prefetch",
        "rewards",
        "rollout",
        "shared_prefix",
        "tool_workers",
        "towers",
    },
    {
        "behaviour",
        "decode_step",
        "environment",
        "generation",
        "metrics",
        "mixture",
        "model_loading",
        "model_path",
        "optimizer",
        "prompt_encoder",
        "rollout_log",
        "tasks",
        "vllm_engine",
        "vllm_server",
        "yaml_config",
    },
    {"language_model", "evaluation", "preflight", "checks", "report"},
    {"trainer"},
    {"cli"},
    {"__main__"},
)
"""From low to high. A module imports at its top only modules of its own layer or of lower ones."""


def top_level_imports(path: Path) -> set[str]:
    """Modules of the package that a file imports when it is imported."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module == "mmrl_core":
            found |= {alias.name for alias in node.names if alias.name in MODULES}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mmrl_core."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("mmrl_core.")}
    return found


IMPORTS = {name: top_level_imports(PACKAGE / f"{name}.py") for name in MODULES}


def layer_of(module: str) -> int:
    for index, layer in enumerate(LAYERS):
        if module in layer:
            return index
    pytest.fail(f"mmrl_core/{module}.py stands in no layer of {__file__}: add it")


@pytest.mark.parametrize("module", [name for name in MODULES if name != "__init__"])
def test_a_module_imports_nothing_above_it(module):
    above = {name for name in IMPORTS[module] if layer_of(name) > layer_of(module)}
    assert not above, f"{module} imports {above}, which stand above it"


def test_there_is_no_import_cycle():
    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        for name in IMPORTS.get(module, ()):
            visit(name, (*path, module))

    for module in MODULES:
        visit(module, ())


def test_nothing_of_a_plugin_is_imported_by_the_core():
    for path in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [n for n in names if n.startswith("mmrl_") and not n.startswith("mmrl_core")], path.name


def test_importing_the_package_imports_nothing_heavy():
    assert (
        loaded_by("import mmrl_core, mmrl_core.plugins, mmrl_core.errors, mmrl_core.hookspecs, mmrl_core.demo") == set()
    )


def test_mmrl_list_imports_nothing_heavy():
    assert (
        loaded_by("from mmrl_core.cli import main; assert main(['list']) == 0; assert main(['list', '--json']) == 0")
        == set()
    )


def loaded_by(code: str) -> set[str]:
    """Heavy modules that a fresh interpreter has after running the code."""
    ask = f"{code}\nimport sys; print('loaded:', *(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True, timeout=120)
    return set(done.stdout.rpartition("loaded:")[2].split())
