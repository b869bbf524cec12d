"""The functions behind the properties of `mmrl_core.testing.conformance`: (subject) -> sentences about what is wrong.

One that has nothing to hold for raises `NothingToCheck`. Each module is about one part of a plugin.
"""
