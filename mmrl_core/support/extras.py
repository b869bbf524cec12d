"""Optional packages: the core alone trains text models, and the extras of mmrl-core bring what other media need."""

from __future__ import annotations

import importlib
from types import ModuleType

from mmrl_core.errors import MissingPackageError

DISTRIBUTIONS = {"PIL": "pillow"}
"""Packages by import name, where pip knows them by another."""


def need(module: str, extra: str, what: str) -> ModuleType:
    """Import a module of an optional package.

    Args:
        module: its import name.
        extra: the extra of mmrl-core that brings the package; a key of `[project.optional-dependencies]`.
        what: needs the module; the subject of the sentence in the error.

    Raises:
        MissingPackageError: the package is missing or cannot be imported; the message names the command that installs
            it.

    >>> need("no_such_package", "video", "reading video files")
    Traceback (most recent call last):
    mmrl_core.errors.MissingPackageError: reading video files needs the package no_such_package. \
Try: pip install 'mmrl-core[video]'
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:  # the last two: a library of the system is missing
        missing = isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == package
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        why = "" if missing else f", which cannot be imported ({first_line})"
        name = DISTRIBUTIONS.get(package, package)
        raise MissingPackageError(
            f"{what} needs the package {name}{why}. Try: pip install 'mmrl-core[{extra}]'"
        ) from error
