"""`mmrl doctor`: each trouble is seen, has its next step, and decides the exit code."""

from __future__ import annotations

import json
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from mmrl_core.cli import main
from mmrl_core.plugins import load_plugins


def install(folder: Path, name: str, metadata: str = "", entry_points: str = "") -> None:
    """The metadata of a distribution, as if it were installed in a folder of the path."""
    info = folder / f"{name.replace('-', '_')}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n{metadata}")
    (info / "entry_points.txt").write_text(entry_points)


@pytest.fixture
def doctor(tmp_path, monkeypatch, capsys):
    """`doctor()` runs it where everything is well, and gives the exit code and the findings."""
    scripts = Path(sysconfig.get_path("scripts"))
    monkeypatch.setenv("PATH", f"{scripts}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("MMRL_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    load_plugins.cache_clear()

    def run() -> tuple[int, list[dict[str, str]]]:
        capsys.readouterr()
        code = main(["doctor", "--json"])
        told = json.loads(capsys.readouterr().out)
        assert told["ok"] == (code == 0)
        return code, told["findings"]

    yield run
    load_plugins.cache_clear()


def test_a_sound_installation_has_no_failure_and_everything_is_looked_at(doctor):
    code, findings = doctor()
    assert code == 0 and not [finding for finding in findings if finding["status"] == "FAIL"]
    looked_at = {finding["check"] for finding in findings}
    assert looked_at == {"machine", "python", "packages", "gpu", "extra", "plugin", "cache", "hub", "disk", "PATH"}
    extras = [finding["what"].partition(":")[0] for finding in findings if finding["check"] == "extra"]
    assert {"vision", "video", "audio", "report", "vllm"} <= set(extras)
    (plugins,) = [finding["what"] for finding in findings if finding["check"] == "plugin"]
    assert all(f"{name} 0." in plugins for name in ("visual_rft", "gui", "vital"))


def broken_plugin(folder: Path, patch: pytest.MonkeyPatch) -> None:
    (folder / "probe_that_fails.py").write_text("raise RuntimeError('it is broken')")
    install(folder, "mmrl-probe", entry_points="[mmrl]\nprobe = probe_that_fails\n")


def plugin_without_its_packages(folder: Path, patch: pytest.MonkeyPatch) -> None:
    needs = "Requires-Dist: no-such-package>=2\nRequires-Dist: numpy<1\n"
    install(folder, "mmrl-probe", needs, "[mmrl]\nprobe = json\n")


def core_without_its_packages(folder: Path, patch: pytest.MonkeyPatch) -> None:
    extra = "Provides-Extra: video\nRequires-Dist: no-such-package>=2; extra == 'video'\n"
    optional = "Provides-Extra: sky\nRequires-Dist: no-such-package; extra == 'sky'\n"
    install(folder, "mmrl-core", f"Requires-Dist: torch>=900\n{extra}{optional}")


def extra_of_a_plugin_is_missing(folder: Path, patch: pytest.MonkeyPatch) -> None:
    core_without_its_packages(folder, patch)
    install(folder, "mmrl-probe", "Requires-Dist: mmrl-core[video]\n", "[mmrl]\nprobe = json\n")


def broken_library(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setitem(sys.modules, "soundfile", None)


def cache_is_a_file(folder: Path, patch: pytest.MonkeyPatch) -> None:
    Path("cache").write_text("")


def full_disk(folder: Path, patch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(folder)._replace(free=2**20)
    patch.setattr(shutil, "disk_usage", lambda path: usage)


def not_on_the_path(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("PATH", "/usr/bin")


def another_on_the_path(folder: Path, patch: pytest.MonkeyPatch) -> None:
    (folder / "mmrl").write_text("#!/bin/sh\n")
    (folder / "mmrl").chmod(0o755)
    patch.setenv("PATH", str(folder))


def hidden_gpu(folder: Path, patch: pytest.MonkeyPatch) -> None:
    (folder / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100'\n")
    (folder / "nvidia-smi").chmod(0o755)
    patch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    patch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.mark.parametrize(
    ("trouble", "check", "status", "what", "next_step"),
    [
        (broken_plugin, "plugin", "FAIL", "probe (mmrl-probe) fails to load: RuntimeError: it", "`mmrl info probe`"),
        (plugin_without_its_packages, "plugin", "FAIL", "no-such-package is not installed", "'no-such-package>=2'"),
        (plugin_without_its_packages, "plugin", "FAIL", ", and <1 is needed", "pip install 'numpy<1'"),
        (extra_of_a_plugin_is_missing, "plugin", "FAIL", "probe (mmrl-probe): no-such-package", "'no-such-package>=2'"),
        (core_without_its_packages, "packages", "FAIL", "and >=900 is needed", "pip install 'torch>=900'"),
        (core_without_its_packages, "extra", "WARN", "video: no-such-package is not", "pip install 'mmrl-core[video]'"),
        (core_without_its_packages, "extra", "OK", "sky: not installed, for runs", "pip install 'mmrl-core[sky]'"),
        (broken_library, "extra", "WARN", "audio: soundfile cannot be imported (", "pip install 'mmrl-core[audio]'"),
        (hidden_gpu, "gpu", "WARN", "the machine has one, but torch", "CUDA_VISIBLE_DEVICES is ''"),
        (cache_is_a_file, "cache", "FAIL", "cannot be written: it is a file", "MMRL_CACHE=DIR"),
        (full_disk, "disk", "FAIL", "0.0 GiB free in ", "--output DIR"),
        (not_on_the_path, "PATH", "WARN", "mmrl is not on the PATH", sysconfig.get_path("scripts")),
        (another_on_the_path, "PATH", "WARN", "is of another environment", sysconfig.get_path("scripts")),
    ],
)
def test_a_trouble_is_told_with_its_next_step(
    trouble: Callable[[Path, pytest.MonkeyPatch], None], check, status, what, next_step, doctor, tmp_path, monkeypatch
):
    trouble(tmp_path, monkeypatch)
    code, findings = doctor()
    told = [finding for finding in findings if finding["check"] == check and what in finding["what"]]
    assert [finding["status"] for finding in told] == [status], findings
    assert next_step in told[0]["next_step"]
    assert code == (1 if status == "FAIL" or trouble is core_without_its_packages else 0)


def test_the_table_for_people_has_a_line_for_each_step(doctor, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/usr/bin")
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (place,) = [number for number, line in enumerate(lines) if line.startswith("WARN  PATH      mmrl is not")]
    assert lines[place + 1].strip().startswith(("-> source ", "-> export PATH="))
    assert lines[-1].startswith("0 FAIL, ")
