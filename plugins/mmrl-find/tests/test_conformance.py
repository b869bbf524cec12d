"""The plugin keeps every property of docs/conformance.md."""

PLUGIN = "find"


def test_conformance(mmrl_property):
    mmrl_property()
