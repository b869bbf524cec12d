"""Which files of a folder hold a split, and folders of images."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from mmrl_core.data.patterns import Pattern
from mmrl_core.data.rows_in_memory import Items, Row
from mmrl_core.data.tables import (
    DATA_SUFFIXES,
    RowPart,
    is_json_lines,
    load_saved,
    read_files,
    read_json,
)
from mmrl_core.errors import TaskDataError, did_you_mean
from mmrl_core.media import leads_out

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SPLIT_NAMES = ("train", "validation", "valid", "val", "dev", "test", "eval")
DEFAULT_SPLIT = "train"  # what a file or folder without split names counts as


def file_parts(path: Path, split: str | None) -> list[RowPart]:
    """One data file. It has no splits of its own, except JSON that is an object of lists."""
    if path.suffix.lower() not in DATA_SUFFIXES:
        raise TaskDataError(f"{path}: unknown kind of data file; known: {', '.join(DATA_SUFFIXES)}")
    if path.suffix.lower() == ".json" and not is_json_lines(path):
        content = read_json(path)
        if isinstance(content, dict):
            lists = {name: value for name, value in content.items() if isinstance(value, list)}
            name = choose_split(lists, split, str(path), default_ok=len(lists) == 1)
            return [Items(path, lists[name])]
    if split not in (None, DEFAULT_SPLIT, *_split_labels(path, path.parent)):
        raise TaskDataError(
            f"{path} is one file, and split {split!r} is not part of its name. Name the file that holds the split, a "
            f"folder with one file per split, or a range of this file such as split: {DEFAULT_SPLIT}[90%:]."
        )
    return read_files([path])


def folder_parts(folder: Path, split: str | None) -> list[RowPart]:
    if (folder / "dataset_dict.json").is_file():
        names = read_json(folder / "dataset_dict.json").get("splits", [])
        name = choose_split(names, split, str(folder), default_ok=False)
        return [load_saved(folder / name)]
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        saved = load_saved(folder)
        choose_split([str(saved.dataset.split or DEFAULT_SPLIT)], split, str(folder), default_ok=True)
        return [saved]

    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith((".", "__")) for part in path.relative_to(folder).parts)
    ]
    metadata = [path for path in files if path.name in ("metadata.jsonl", "metadata.csv")]
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    data = [path for path in files if path.suffix.lower() in DATA_SUFFIXES]
    _refuse_links(folder, [*metadata, *data])
    if metadata and images:
        chosen = _files_of_split(metadata, folder, split)
        return [_ImagesWithMetadata(part, path.parent) for path in chosen for part in read_files([path])]
    if data:
        return read_files(_files_of_split(data, folder, split))
    if images:
        # File names such as test_01.jpg say nothing about splits in a folder of images; its sub-folders do.
        chosen = _files_of_split(images, folder, split, labels=_folder_labels)
        items = [_image_row(path, folder) for path in chosen]
        return [Items(folder, items)]
    shown = ", ".join(path.name for path in sorted(folder.iterdir())[:8]) or "nothing"
    raise TaskDataError(
        f"{folder} holds no data files ({', '.join(DATA_SUFFIXES)}), no images and no saved data set. It holds: {shown}"
    )


def pattern_parts(pattern: Pattern, split: str | None) -> list[RowPart]:
    """The files of a pattern. They are one split, as a single file is, unless their names tell several."""
    files = pattern.all_files()
    _refuse_links(pattern.folder, files)
    labels = {path: _split_labels(path, pattern.folder) for path in files}
    told = {name for names in labels.values() for name in names if name in SPLIT_NAMES}
    if len(told) > 1:
        return read_files(_files_of_split(files, pattern.folder, split))
    if split not in (None, DEFAULT_SPLIT, *told) and not all(split in names for names in labels.values()):
        raise TaskDataError(
            f"{pattern.text}: split {split!r} is not part of the names of its files. Name the files that hold the "
            f"split, or a range of these such as split: {DEFAULT_SPLIT}[90%:]."
        )
    return read_files(files)


def _refuse_links(folder: Path, files: Sequence[Path]) -> None:
    """A folder from elsewhere may hold links to any file of this machine; images are looked at when they are read."""
    for file in files:
        if leads_out(file.resolve(), folder.resolve()):
            raise TaskDataError(
                f"{file} is a link to {file.resolve()}, out of {folder}; if that is meant, name the file itself as path"
            )


class _ImagesWithMetadata:
    """Rows of metadata.jsonl or metadata.csv, with the image that file_name names."""

    def __init__(self, metadata: RowPart, folder: Path) -> None:
        self.metadata = metadata
        self.folder = folder

    def __len__(self) -> int:
        return len(self.metadata)

    def read(self, index: int) -> Row:
        row = self.metadata.read(index)
        name = row.get("file_name")
        if not isinstance(name, str) or not name:
            raise TaskDataError(f"{self.where(index)}: no column 'file_name' that names the image")
        path = self.folder / name
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise TaskDataError(f"{self.where(index)}: file_name {name!r} leads out of {self.folder}")
        return {**row, "image": {"path": str(path.absolute()), "bytes": None}}

    def where(self, index: int) -> str:
        return self.metadata.where(index)


def _image_row(path: Path, folder: Path) -> dict[str, Any]:
    """{"image": ..., "label": name of the sub-folder}; no label for images outside of sub-folders."""
    row: dict[str, Any] = {"image": {"path": str(path.absolute()), "bytes": None}}
    below = path.relative_to(folder).parts[:-1]
    if below and below[0] in SPLIT_NAMES:
        below = below[1:]
    return row | {"label": "/".join(below)} if below else row


def _folder_labels(path: Path, folder: Path) -> list[str]:
    top = path.relative_to(folder).parts[:-1][:1]
    return [name for name in top if name in SPLIT_NAMES]


def _split_labels(path: Path, folder: Path) -> list[str]:
    """Split names that a data file may go by, the most telling first: sub-folder, word of its name, whole name."""
    below = list(path.relative_to(folder).parts[:-1])
    stem = re.sub(r"[-_.]\d+(-of-\d+)?$", "", path.name.removesuffix(path.suffix))
    words = [word for word in re.split(r"[-_.]", stem) if word in SPLIT_NAMES]
    return [name for name in below if name in SPLIT_NAMES] + words + [stem, *below]


def _files_of_split(
    files: Sequence[Path],
    folder: Path,
    split: str | None,
    labels: Callable[[Path, Path], list[str]] = _split_labels,
) -> list[Path]:
    labels_of = {path: labels(path, folder) for path in files}
    chosen = [path for path in files if split in labels_of[path]]
    if chosen:
        return chosen
    without_splits = not any(name in SPLIT_NAMES for names in labels_of.values() for name in names)
    if without_splits and split in (None, DEFAULT_SPLIT):
        return list(files)
    available = sorted({names[0] if names else DEFAULT_SPLIT for names in labels_of.values()})
    name = choose_split([DEFAULT_SPLIT] if without_splits else available, split, str(folder), default_ok=False)
    return [path for path in files if (labels_of[path] or [DEFAULT_SPLIT])[0] == name]


def choose_split(names: Iterable[str], split: str | None, where: str, *, default_ok: bool) -> str:
    """The split to use. `default_ok`: asking for "train" is fine where the only split has another name."""
    names = list(names)
    if split in names:
        return str(split)
    if len(names) == 1 and (split is None or (default_ok and split == DEFAULT_SPLIT)):
        return names[0]
    available = ", ".join(names) or "none"
    if split is None:
        raise TaskDataError(f"{where} has several splits; name one with 'split'. Splits: {available}")
    raise TaskDataError(f"{where} has no split {split!r}.{did_you_mean(split, names)} Splits: {available}")
