"""The folders that `mmrl new` makes: templates of a task and of a plugin, and small rows with media for them.

Files below `task/` and `plugin/` end in ".template": texts in which `$field` stands for a field, as `string.Template`
reads it, and whose paths hold NAME. `rows.py` makes the rows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from keyword import iskeyword
from pathlib import Path
from string import Template

from mmrl_core.cli.scaffold.rows import MODALITIES, write_rows
from mmrl_core.errors import MMRLError
from mmrl_core.support import writes_to, written_aside

__all__ = ["MODALITIES", "check_name", "make_folder"]

TEMPLATES = Path(__file__).parent
SUFFIX = ".template"
MAX_NAME = 40  # letters; it becomes part of paths and of the names of metrics
ROWS = {"task": "data", "plugin": "src/mmrl_NAME/rows"}
"""Kind -> folder of the rows."""


def check_name(name: str) -> None:
    """Raises MMRLError unless a name can be one of a Python module and of a folder; says what a good one is."""
    if re.fullmatch(r"[a-z][a-z0-9_]*", name) and not iskeyword(name) and name != "core" and len(name) <= MAX_NAME:
        return
    nearest = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_0123456789").removeprefix("mmrl_")[:MAX_NAME]
    nearest = "" if iskeyword(nearest) or nearest == "core" else nearest
    raise MMRLError(
        f"{name!r} is no name for it: a name has at most {MAX_NAME} lower-case letters, digits and underscores, begins "
        f"with a letter, and is no word of Python, nor 'core'; such as {nearest or 'traffic_signs'!r}."
    )


def make_folder(kind: str, name: str, modality: str, output: Path) -> list[Path]:
    """Write a task or a plugin with rows of a modality.

    Args:
        kind: "task" or "plugin".
        name: as `check_name` takes it.
        modality: a key of `MODALITIES`.
        output: folder to make; it may be there if it is empty. It appears complete or not at all.

    Returns:
        The files, below `output`, in order.

    Raises:
        MMRLError: the folder is not empty, or cannot be written.
        MissingPackageError: the media need a package that is not installed.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise MMRLError(
            f"{output} exists and is not an empty folder, and nothing is overwritten. Name another --output."
        )
    fields = {"name": name, "package": f"mmrl-{name.replace('_', '-')}", **MODALITIES[modality].fields}
    with writes_to(output.parent, output.name), written_aside(output.absolute()) as unfinished:
        for template in sorted((TEMPLATES / kind).rglob(f"*{SUFFIX}")):
            path = _path(str(template.relative_to(TEMPLATES / kind)), name).removesuffix(SUFFIX)
            _write(unfinished / path, template, fields)
        write_rows(modality, unfinished / _path(ROWS[kind], name))
        return sorted(path.relative_to(unfinished) for path in unfinished.rglob("*") if path.is_file())


def _path(path: str, name: str) -> str:
    return path.replace("NAME", name)


def _write(path: Path, template: Path, fields: Mapping[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(Template(template.read_text(encoding="utf-8")).substitute(fields), encoding="utf-8")
