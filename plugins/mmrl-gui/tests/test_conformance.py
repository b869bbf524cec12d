"""The plugin keeps every property of docs/conformance.md; CASES are data sets of one row for its sources."""

from __future__ import annotations

from mmrl_core.testing import MEDIUM, SourceCase, json_rows

PLUGIN = "gui"

GUI_R1 = {"image": MEDIUM, "instruction": "Tap.", "gt_action": "click", "gt_bbox": [0.1, 0.1, 0.5, 0.5]}
SCREENSPOT = {"img_filename": MEDIUM, "instruction": "Tap.", "bbox": [2, 2, 10, 10], "data_type": "text"}
UI_R1 = {"img_filename": MEDIUM, "instruction": "Tap.", "bbox": [2, 2, 12, 12]}
ANDROID = {"image": MEDIUM, "task": "Tap.", "gt": {"action": "click", "x": 4, "y": 4}}

CASES = {
    "gui/androidcontrol": (SourceCase(json_rows(ANDROID)),),
    "gui/gui_r1": (SourceCase(json_rows(GUI_R1)),),
    "gui/screenspot": (SourceCase(json_rows(SCREENSPOT)),),
    "gui/ui_r1": (SourceCase(json_rows(UI_R1)),),
}


def test_conformance(mmrl_property):
    mmrl_property()
