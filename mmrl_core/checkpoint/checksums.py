"""Size and checksum of every file of a checkpoint. They find what a disk or a copy has altered, not forgery."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

STATE_FILE = "state.json"
OWN_CHECKSUM = "sha256"
"""Key of the state file with the checksum of all its other keys."""

NUM_THREADS = 4  # hashing releases the interpreter's lock; a disk gives no more to more


def described_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Every file of a folder but its state file, by its path from there: {"bytes": size, "sha256": checksum}."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / STATE_FILE]
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        checksums = threads.map(checksum, paths)
        return {
            path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": found}
            for path, found in zip(paths, checksums, strict=True)
        }


def checksum(path: Path) -> str:
    """SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum_of_values(values: Mapping[str, Any]) -> str:
    """SHA-256 of plain values, their own checksum left out."""
    told = {key: value for key, value in values.items() if key != OWN_CHECKSUM}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def first_fault(folder: Path, files: Mapping[str, Any], within: str = "") -> str | None:
    """What is wrong with the first file that is missing, or is not as it was written; None if all are sound.

    Args:
        files: as `described_files` gave them, or sizes alone, as checkpoints of 0.1.0 have them.
        within: only files below it are read for their checksum; sizes are compared of all.
    """
    for name, told in files.items():
        size = told["bytes"] if isinstance(told, Mapping) else told
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            return f"{name} should have {size} bytes"
    read = [name for name, told in files.items() if isinstance(told, Mapping) and name.startswith(within)]
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        for name, found in zip(read, threads.map(lambda name: checksum(folder / name), read), strict=True):
            if found != files[name]["sha256"]:
                return f"{name} has changed since it was written (its checksum is another)"
    return None
