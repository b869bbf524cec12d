"""Names of a package that are imported when they are first used."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A `__getattr__` for the `__init__` of a package whose modules are heavy.

    Args:
        package: its `__name__`.
        homes: public name -> the module that defines it, relative to the package. Type checkers read the imports that
            the `__init__` has under `TYPE_CHECKING`; a test holds the two, and `__all__`, together.
    """

    def __getattr__(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)

    return __getattr__
