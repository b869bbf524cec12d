"""The data sets of one row of all plugins, so that one table holds what all sources have in common.

`CASES` has an entry for each registered source that reads files of media named by its rows: those of the core, and
those that stand in `test_conformance.py` among each plugin's own tests. `WITHOUT_MEDIA_FILES` names sources that make
their media themselves or have none. A test fails for an installed source that is in neither.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmrl_core.testing import MEDIUM, SourceCase, json_rows

ROOT = Path(__file__).parents[1]


def _cases_of(file: Path) -> dict[str, Sequence[SourceCase]]:
    spec = importlib.util.spec_from_file_location(f"cases_of_{file.parts[-3].replace('-', '_')}", file)
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, "CASES", {})


CASES: dict[str, Sequence[SourceCase]] = {
    "core/rows": (
        SourceCase(json_rows({"image": MEDIUM})),
        SourceCase(json_rows({"audio": MEDIUM}), kind="audio", column="audio"),
        SourceCase(json_rows({"video": MEDIUM}), kind="video", column="video", inline=False),
    ),
}
for path in sorted(ROOT.glob("plugins/*/tests/test_conformance.py")):
    CASES |= _cases_of(path)

WITHOUT_MEDIA_FILES = frozenset(
    {
        "audio_aqa/melodies",
        "find/prompts",
        "gui/widget_screens",
        "text_reasoning/gym",
        "text_reasoning/sums",
        "text_reasoning/walks",
        "uav_vqa/aerial_scenes",
        "viewpoint/rendered_pairs",
        "visual_rft/digit_scenes",
        "vital/tool_videos",
    }
)
"""Sources whose rows name no file: they have no media, or make them on this machine."""
