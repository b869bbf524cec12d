"""Build the wheels of the core and of every plugin, and check each plugin in an environment of the core and itself.

    python tests/install/wheels.py FOLDER

makes `FOLDER/wheels` and, one after another, `FOLDER/one`. A plugin that imports what it does not declare fails here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
UV = Path(sys.executable).with_name("uv")
CHECKS = """
import json, sys
from mmrl_core.cli import main
sys.exit(max(main(["list", "plugins", "--json"]), *(main(["check", name]) for name in sys.argv[1:])))
"""


def run(command: list[str], folder: Path = ROOT, **environment: str) -> str:
    """Standard output of a command that succeeds; else its whole output, and the end of the test."""
    start = time.monotonic()
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True
    )
    shown = " ".join(Path(word).name if os.sep in word else word for word in map(str, command) if "\n" not in word)
    print(f"{time.monotonic() - start:6.1f} s  {shown}", flush=True)
    if done.returncode != 0:
        sys.exit(f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def build(folder: Path) -> dict[str, Path]:
    """Name of each distribution -> its wheel, the core's first; every wheel carries the licence."""
    wheels = {}
    for source in (ROOT, *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))):
        before = set(folder.glob("*.whl"))
        run([UV, "build", "--quiet", "--wheel", "--out-dir", folder, source])
        (wheel,) = set(folder.glob("*.whl")) - before
        files = zipfile.ZipFile(wheel).namelist()
        assert any(file.endswith(".dist-info/licenses/LICENSE") for file in files), f"{wheel.name} has no LICENSE"
        assert not [file for file in files if file.startswith("tests/") or "__pycache__" in file], wheel.name
        wheels["mmrl-core" if source == ROOT else source.name] = wheel
    return wheels


def make_environment(folder: Path, *requirements: str | Path) -> Path:
    """An environment with these alone, in place of what was there; its folder of commands."""
    shutil.rmtree(folder, ignore_errors=True)
    run([UV, "venv", "--quiet", "--python", sys.executable, folder])
    install(folder / "bin", *requirements)
    return folder / "bin"


def install(commands: Path, *requirements: str | Path) -> None:
    pinned = ["--constraint", ROOT / "constraints.txt"]
    run([UV, "pip", "install", "--quiet", "--python", commands / "python", *pinned, *requirements])


def main() -> None:
    folder = Path(sys.argv[1]).absolute()
    shutil.rmtree(folder, ignore_errors=True)
    wheels = build(folder / "wheels")
    core = wheels.pop("mmrl-core")
    for distribution, wheel in wheels.items():
        commands = make_environment(folder / "one", core, wheel)
        plugin = distribution.removeprefix("mmrl-").replace("-", "_")
        told = run([commands / "python", "-c", CHECKS, plugin], folder)
        listed, _ = json.JSONDecoder().raw_decode(told)
        assert [(row["name"], row["status"]) for row in listed["plugins"]] == [(plugin, "ok")], told
    print(f"{len(wheels)} plugins pass their checks, each in an environment of its own")


if __name__ == "__main__":
    main()
