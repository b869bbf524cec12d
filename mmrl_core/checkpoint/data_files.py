"""Fingerprints of data files, by which a resumed run knows that its rows are still those that it began with.

A file is known by its size and its content: by the whole of it up to `WHOLE_BYTES`, beyond that by `NUM_BLOCKS` blocks
of `BLOCK_BYTES` spread evenly over it, the first and the last among them. Times of change say nothing: copies change
them. In a folder data files count by their content, other files, such as pictures, by name and size. A pattern counts
like a folder of the files that match it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl_core.config import parts_of
from mmrl_core.data import pattern_of
from mmrl_core.errors import TaskDataError

if TYPE_CHECKING:
    from mmrl_core.config import RunConfig

DATA_SUFFIXES = (".parquet", ".jsonl", ".json", ".csv", ".tsv", ".tar")
WHOLE_BYTES = 1 << 30  # a second or two to read
BLOCK_BYTES = 1 << 20
NUM_BLOCKS = 512


def source_fingerprints(config: RunConfig, first_stage: int = 0) -> dict[str, str]:
    """Fingerprint of every local file or folder that a run's data sources name, by its path as they name it.

    Options of any source count, of whatever plugin: each text that is the path of something. Data of the hub are not
    here; `revision` pins them.

    Args:
        config: of the run.
        first_stage: rows trained on in earlier stages are left out. Held-out rows count always.
    """
    sources = [part.data.train for stage in config.stages[first_stage:] for part in parts_of(stage)]
    sources += [part.data.held_out for part in parts_of(config)]
    paths = dict.fromkeys(path for source in sources if source is not None for path in _texts(source.options))
    return {path: fingerprint(path) for path in paths if _exists(path)}


def refuse_changed(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Refuse to go on with other data than a run began with.

    Raises:
        TaskDataError: names the files that have changed since or are gone.
    """
    faults = []
    for path, was in before.items():
        found = now.get(path)
        if found is None and not _exists(path):
            faults.append(f"  {path} is gone")
        elif found not in (None, was):  # None: of a stage that is done
            told = " and ".join(print_.partition(" ")[0] for print_ in (was, str(found)))
            faults.append(f"  {path} has changed (bytes then and now: {told})")
    if faults:
        raise TaskDataError(
            "data files are not those that the run began with:\n" + "\n".join(faults) + "\nPut them back as they were, "
            "or start a new run with another --output."
        )


def fingerprint(text: str | Path) -> str:
    """Of a file, a folder or the files of a pattern: "<bytes> <checksum>"."""
    path, pattern = Path(text).expanduser(), pattern_of(str(text))
    if pattern is not None:
        return _fingerprint_of(pattern.files(), pattern.folder)
    if path.is_file():
        return f"{path.stat().st_size} {_digest_of_file(path)}"
    files = (file for file in sorted(path.rglob("*")) if file.is_file())
    return _fingerprint_of((file for file in files if not _is_hidden(file, path)), path)


def _fingerprint_of(files: Iterable[Path], folder: Path) -> str:
    digest, total = hashlib.sha256(), 0
    for file in files:
        size = file.stat().st_size
        content = _digest_of_file(file) if file.suffix.lower() in DATA_SUFFIXES else ""
        digest.update(repr((file.relative_to(folder).as_posix(), size, content)).encode())
        total += size
    return f"{total} {digest.hexdigest()}"


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _digest_of_file(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        if size <= WHOLE_BYTES:
            return hashlib.file_digest(file, "sha256").hexdigest()
        for number in range(NUM_BLOCKS):
            file.seek(number * (size - BLOCK_BYTES) // (NUM_BLOCKS - 1))
            digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest()


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (text for item in value.values() for text in _texts(item))
    elif isinstance(value, Sequence):
        yield from (text for item in value for text in _texts(item))


def _exists(text: str) -> bool:
    """Whether an option is the path of a file or folder, or a pattern that files match. A FIFO or device is none: it
    would be read for ever."""
    try:
        path, pattern = Path(text).expanduser(), pattern_of(text)
        return bool(text) and (path.is_file() or path.is_dir() or (pattern is not None and bool(pattern.files())))
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, an unknown user
        return False
