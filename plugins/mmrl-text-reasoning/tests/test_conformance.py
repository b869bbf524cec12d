"""The plugin keeps every property of docs/conformance.md; CASES are data sets of one row for its sources."""

from mmrl_core.testing import SourceCase, json_rows

PLUGIN = "text_reasoning"

CASES = {
    "text_reasoning/problems": (
        SourceCase(json_rows({"question": "How many are 3 and 4?", "answer": "3 + 4 = 7\n#### 7"}), kind=None),
    ),
}


def test_conformance(mmrl_property):
    mmrl_property()
