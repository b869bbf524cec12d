"""What `mmrl doctor` looks at: machine, packages, GPUs, extras, plugins, cache, disk, PATH.

FAIL is what keeps runs from working at all, WARN what some of them will miss. Nothing is changed, but for a file that
is written to a folder and removed, to see whether it can be.
"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mmrl_core.support import DISTRIBUTIONS

if TYPE_CHECKING:
    from packaging.requirements import Requirement

CORE = "mmrl-core"
SHOWN = ("torch", "transformers", "accelerate", "peft", "datasets")
MEDIA_EXTRAS = ("vision", "video", "audio", "report")
"""Extras whose absence is a warning: tasks with media, and reports, need them. The others are asked for by name."""

GIB = 2**30
LITTLE_DISK_GIB = 20.0  # a checkpoint of a model of three billion parameters, with its optimizer, is larger
NO_DISK_GIB = 1.0
NVIDIA_SMI_S = 20.0  # it hangs where the driver does


@dataclass(frozen=True)
class Diagnosis:
    """One line of `mmrl doctor`.

    Attributes:
        check: what was looked at.
        status: OK, WARN or FAIL.
        what: was found.
        next_step: what to do; "" where nothing is to be done.
    """

    check: str
    status: Literal["OK", "WARN", "FAIL"]
    what: str
    next_step: str = ""


def diagnose() -> list[Diagnosis]:
    """All that is looked at, in order."""
    checks = (_machine, _packages, _gpus, _extras, _plugins, _cache, _folders, _path)
    return [finding for check in checks for finding in check()]


def _machine() -> Iterator[Diagnosis]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = ""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = f", {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / GIB:.1f} GiB of memory"
    yield Diagnosis("machine", "OK", f"{platform.system()} {platform.machine()}, {cores} CPU cores{memory}")
    yield Diagnosis("python", "OK", f"{platform.python_version()}, {sys.executable}")


def _packages() -> Iterator[Diagnosis]:
    """The core's own requirements."""
    try:
        core = distribution(CORE)
    except PackageNotFoundError:
        yield Diagnosis(
            "packages", "FAIL", f"{CORE} is not installed, only found in a folder", "pip install -e . there"
        )
        return
    unmet = _unmet(_required(core))
    for what, install in unmet.items():
        yield Diagnosis("packages", "FAIL", what, install)
    if not unmet:
        shown = ", ".join(f"{name} {version(name)}" for name in SHOWN)
        yield Diagnosis("packages", "OK", f"{CORE} {core.version}, {shown}")


def _gpus() -> Iterator[Diagnosis]:
    try:
        import torch
    except Exception as error:  # whatever a broken installation raises
        what = f"torch cannot be imported: {_first_line(error)}"
        yield Diagnosis("gpu", "FAIL", what, "pip install --force-reinstall torch")
        return
    try:
        found = [_gpu(index) for index in range(torch.cuda.device_count())]
    except RuntimeError as error:  # the driver refuses, or the GPU is another process's alone
        what = f"torch {torch.__version__} cannot use it: {_first_line(error)}"
        yield Diagnosis("gpu", "FAIL", what, "`nvidia-smi` shows who uses it; CUDA_VISIBLE_DEVICES='' trains without")
        return
    if found:
        yield from (Diagnosis("gpu", "OK", f"{told}, torch {torch.__version__}") for told in found)
    elif _driver_has_gpus():
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        step = "install a build of torch for CUDA, as new as the driver allows"
        if hidden is not None:
            step = f"CUDA_VISIBLE_DEVICES is {hidden!r}: name the GPUs to use, such as CUDA_VISIBLE_DEVICES=0"
        yield Diagnosis("gpu", "WARN", f"the machine has one, but torch {torch.__version__} does not see it", step)
    else:
        step = "small models train here, with hardware/cpu; a model of billions of parameters needs a GPU"
        yield Diagnosis("gpu", "WARN", f"none that torch {torch.__version__} sees", step)


def _gpu(index: int) -> str:
    import torch

    free, total = torch.cuda.mem_get_info(index)
    name = torch.cuda.get_device_name(index)
    return f"{index}: {name}, {total / GIB:.1f} GiB of memory, {free / GIB:.1f} free"


def _driver_has_gpus() -> bool:
    """Whether NVIDIA's driver lists a GPU, whatever torch sees."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=NVIDIA_SMI_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and bool(listed.stdout.strip())


def _extras() -> Iterator[Diagnosis]:
    try:
        core = distribution(CORE)
    except PackageNotFoundError:  # told by `_packages`
        return
    for extra in core.metadata.get_all("Provides-Extra") or []:
        if extra == "all":
            continue
        required = _required(core, extra)
        problems = list(_unmet(required))
        if extra in MEDIA_EXTRAS and not problems:
            problems = [what for requirement in required if (what := _unimportable(requirement.name))]
        install = f"pip install '{CORE}[{extra}]'"
        if not problems:
            yield Diagnosis("extra", "OK", f"{extra}: {', '.join(f'{r.name} {version(r.name)}' for r in required)}")
        elif extra in MEDIA_EXTRAS:
            yield Diagnosis("extra", "WARN", f"{extra}: {', '.join(problems)}", install)
        else:
            yield Diagnosis("extra", "OK", f"{extra}: not installed, for runs that ask for it", install)


def _plugins() -> Iterator[Diagnosis]:
    from mmrl_core.plugins import load_plugins

    plugins = load_plugins().plugins.values()
    sound = []
    for plugin in plugins:
        try:
            unmet = _unmet(_required(distribution(plugin.distribution)))
        except PackageNotFoundError:
            unmet = {}
        for problem, install in unmet.items():
            yield Diagnosis("plugin", "FAIL", f"{plugin.name} ({plugin.distribution}): {problem}", install)
        if plugin.error is not None and not unmet:
            what = f"{plugin.name} ({plugin.distribution}) fails to load: {plugin.error.strip().splitlines()[-1]}"
            yield Diagnosis("plugin", "FAIL", what, f"`mmrl info {plugin.name}` shows the traceback")
        if plugin.error is None and not unmet:
            sound.append(f"{plugin.name} {plugin.version}")
    if sound:
        yield Diagnosis("plugin", "OK", ", ".join(sound))
    elif not plugins:
        yield Diagnosis("plugin", "OK", "none installed", "`mmrl new task NAME` makes a task without one")


def _cache() -> Iterator[Diagnosis]:
    from mmrl_core.starting_model import cache_folder

    folder = cache_folder()
    if reason := _unwritable(folder):
        yield Diagnosis("cache", "FAIL", f"{folder} cannot be written: {reason}", "name another folder: MMRL_CACHE=DIR")
        return
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
    yield Diagnosis("cache", "OK", f"{folder}: {size / GIB:.2f} GiB of built models and demo data")
    try:
        from huggingface_hub import constants
    except ImportError:  # told by `_packages`
        return
    offline = ", and offline: nothing is fetched" if constants.HF_HUB_OFFLINE else ""
    step = "unset HF_HUB_OFFLINE to fetch models by their hub name" if offline else ""
    yield Diagnosis("hub", "OK", f"models of the hub are kept in {constants.HF_HUB_CACHE}{offline}", step)


def _folders() -> Iterator[Diagnosis]:
    """The disks that runs and built models go to."""
    from mmrl_core.starting_model import cache_folder

    here = Path.cwd()
    if reason := _unwritable(here):
        yield Diagnosis(
            "folder", "FAIL", f"{here} cannot be written: {reason}", "start elsewhere, or name --output DIR"
        )
    seen = set()
    for folder, other in ((here, "--output DIR"), (_existing(cache_folder()), "MMRL_CACHE=DIR")):
        if (disk := folder.stat().st_dev) in seen:
            continue
        seen.add(disk)
        free = shutil.disk_usage(folder).free / GIB
        status: Literal["OK", "WARN", "FAIL"] = (
            "OK" if free >= LITTLE_DISK_GIB else "WARN" if free >= NO_DISK_GIB else "FAIL"
        )
        step = "" if status == "OK" else f"make room, or name a folder on another disk: {other}"
        yield Diagnosis("disk", status, f"{free:.1f} GiB free in {folder}", step)


def _path() -> Iterator[Diagnosis]:
    scripts = Path(sysconfig.get_path("scripts"))
    command = scripts / "mmrl"
    found = shutil.which("mmrl")
    activate = scripts / "activate"
    line = f"source {activate}" if activate.is_file() else f'export PATH="{scripts}:$PATH"'
    if not command.is_file():
        yield Diagnosis("PATH", "WARN", f"there is no {command}", f"until then: {sys.executable} -m mmrl_core")
    elif found is None:
        yield Diagnosis("PATH", "WARN", f"mmrl is not on the PATH, but in {scripts}", line)
    elif not os.path.samefile(found, command):
        yield Diagnosis("PATH", "WARN", f"the mmrl on the PATH, {found}, is of another environment than this", line)
    else:
        yield Diagnosis("PATH", "OK", found)


# Requirements


def _required(found: Distribution, extra: str = "") -> list[Requirement]:
    """What a distribution requires here, or what one of its extras adds, with what the extras named in it add."""
    from packaging.requirements import Requirement

    required: list[Requirement] = []
    for requirement in map(Requirement, found.requires or []):
        always = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        asked = requirement.marker is None or requirement.marker.evaluate({"extra": extra})
        if not asked or (extra and always):
            continue
        if requirement.name != found.name:
            required.append(requirement)
        with suppress(PackageNotFoundError):
            required += [
                inner
                for name in sorted(requirement.extras)
                for inner in _required(distribution(requirement.name), name)
            ]
    return required


def _unmet(required: Sequence[Requirement]) -> dict[str, str]:
    """What is not installed as it is required -> the command that mends it."""
    unmet = {}
    for requirement in required:
        install = f"pip install '{requirement.name}{requirement.specifier}'"
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            unmet[f"{requirement.name} is not installed"] = install
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            unmet[f"{requirement.name} is {installed}, and {requirement.specifier} is needed"] = install
    return unmet


def _unimportable(name: str) -> str:
    """Why an installed package cannot be imported; "" if it can."""
    module = next((module for module, package in DISTRIBUTIONS.items() if package == name), name)
    try:
        importlib.import_module(module)
    except Exception as error:  # a library of the system is missing, or it was built for another torch
        return f"{name} cannot be imported ({_first_line(error)})"
    return ""


# Folders


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return next(path for path in (folder, *folder.absolute().parents) if path.is_dir())


def _unwritable(folder: Path) -> str:
    """Why a file cannot be written to a folder, or to the one above it that is there; "" if one can."""
    if folder.exists() and not folder.is_dir():
        return "it is a file"
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def _first_line(error: BaseException) -> str:
    lines: Sequence[str] = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
