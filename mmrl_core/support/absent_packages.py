"""Stand-ins for packages whose names a file imports without needing what is behind them."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PACKAGES = ("swift",)
"""ms-swift: its plugins import the base class of rewards, and a dict that they enter themselves in."""


class ORM:
    """Base class of ms-swift's rewards."""

    def __init__(self, args: Any = None, **kwargs: Any) -> None:
        self.args = args


_KNOWN: dict[str, Any] = {
    "ORM": ORM,
    "AsyncORM": ORM,
    "orms": {},
    "rm_plugins": {},
    "multi_turns": {},
    "get_logger": logging.getLogger,
}


@contextmanager
def stand_ins() -> Iterator[None]:
    """While it lasts, packages of `PACKAGES` that are not installed can be imported: their names are empty classes."""
    finder = _Finder([package for package in PACKAGES if not _is_installed(package)])
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] in finder.packages]:
            del sys.modules[name]


def _is_installed(package: str) -> bool:
    return package in sys.modules or importlib.util.find_spec(package) is not None


class _Finder(Loader):
    def __init__(self, packages: list[str]) -> None:
        self.packages = packages

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in self.packages else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing in it."""


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _KNOWN[name] if name in _KNOWN else type(name, (), {})
