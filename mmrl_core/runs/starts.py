"""`starts.jsonl` of a run: a line for each time that it was started or went on, with the code, command and machine.

A line holds time (ISO 8601, with its offset from UTC), command, overrides (the `key=value` of the command), commit (of
the git work tree of the current folder, followed by "with changes" where files of it differ), mmrl_commit (where mmrl
runs from another work tree), versions (of Python, mmrl's packages and the libraries that compute), platform, cpu,
num_cpus, memory_gib, devices (names of accelerators), num_processes. What cannot be found out is left out.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import mmrl_core

FILE_NAME = "starts.jsonl"
LIBRARIES = ("torch", "transformers", "accelerate", "peft", "vllm", "diffusers")
GIT_TIMEOUT_S = 5.0
OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")


def note_start(run: Path, num_processes: int) -> None:
    """Append a line about this start to the run's file."""
    path = run / FILE_NAME
    torn = path.is_file() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
    with open(path, "a", encoding="utf-8") as file:
        file.write("\n" * torn + json.dumps(start_record(num_processes)) + "\n")


def start_record(num_processes: int) -> dict[str, Any]:
    """What is known of this process, its code and its machine."""
    program, *arguments = sys.argv or [""]
    record = {
        "time": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": f"{_program(program)} {shlex.join(arguments)}".strip(),
        "overrides": [argument for argument in arguments if OVERRIDE.match(argument)],
        **_commit(),
        "versions": _versions(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "num_cpus": os.cpu_count(),
        "memory_gib": _memory_gib(),
        "devices": _devices(),
        "num_processes": num_processes,
    }
    return {key: value for key, value in record.items() if value not in (None, "", [], {})}


def _program(path: str) -> str:
    """A program by its name; a package that was run by `python -m` by that."""
    name = Path(path).name
    return f"python -m {Path(path).parent.name}" if name == "__main__.py" else shlex.quote(name)


def _commit() -> dict[str, Any]:
    """The commit of the current folder's work tree, and of mmrl's own where it runs from another."""
    found: dict[str, Any] = {}
    trees = [_git(folder, "rev-parse", "--show-toplevel") for folder in (Path.cwd(), Path(mmrl_core.__file__).parent)]
    for name, tree in zip(("commit", "mmrl_commit"), trees, strict=True):
        if not tree or (name == "mmrl_commit" and (tree == trees[0] or not (Path(tree) / "mmrl_core").is_dir())):
            continue
        commit, changes = _git(Path(tree), "rev-parse", "HEAD"), _git(Path(tree), "status", "--porcelain", "-uno")
        found[name] = f"{commit} with changes" if commit and changes else commit
    return found


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says, None where it is not installed or there is no repository."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _versions() -> dict[str, str]:
    names = {dist.name: dist.version for dist in metadata.distributions() if (dist.name or "").startswith("mmrl")}
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            names[name] = metadata.version(name)
    return {"python": platform.python_version(), **dict(sorted(names.items()))}


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None


def _devices() -> list[str]:
    """Names of the accelerators that torch sees."""
    import torch

    if torch.cuda.is_available():
        return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ["Apple GPU (MPS)"] if torch.backends.mps.is_available() else []
