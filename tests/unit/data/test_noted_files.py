"""The files that a source reads are known, by noting them while it is opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmrl_core.config.schema import DataConfig, PromptConfig, SourceConfig
from mmrl_core.data import PromptSource
from mmrl_core.plugins import load_plugins
from tests.source_cases import CASES

PLUGINS = load_plugins()


@pytest.mark.parametrize("name", CASES)
def test_the_files_of_every_source_are_known(name: str, tmp_path: Path) -> None:
    case = CASES[name][0]
    options = case.write(tmp_path, "a.mp4" if case.kind == "video" else "a.png")
    written = {path for path in tmp_path.iterdir() if path.is_file()}
    config = SourceConfig(name=name, split=case.split, **options)
    prompt = PromptConfig(text="x")
    files = set(PromptSource(PLUGINS, config, prompt, DataConfig(), name="train").files)
    assert files == written, "read files with mmrl_core.data, or name them in an option of the source"
