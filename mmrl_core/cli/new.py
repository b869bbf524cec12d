"""`mmrl new`: the folder of a task, or of a plugin, to begin with."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from mmrl_core.cli.command import Command
from mmrl_core.errors import MMRLError

KINDS = ("task", "plugin")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from mmrl_core.cli.scaffold import MODALITIES

    parser.add_argument(
        "kind", choices=KINDS, metavar="task|plugin", help="a task in a folder, or a package that registers one"
    )
    parser.add_argument(
        "name", metavar="NAME", help="lower-case letters, digits and underscores, such as traffic_signs"
    )
    parser.add_argument(
        "--modality", choices=list(MODALITIES), default="image", help="what the rows show (default: image)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder to make (default: NAME for a task, mmrl-NAME for a plugin)"
    )


def run(arguments: argparse.Namespace) -> None:
    from mmrl_core.cli.scaffold import check_name, make_folder

    kind, name = arguments.kind, arguments.name
    check_name(name)
    if kind == "plugin":
        _refuse_taken(name)
    output = arguments.output or Path(name if kind == "task" else f"mmrl-{name.replace('_', '-')}")
    files = make_folder(kind, name, arguments.modality, output)
    print(f"{output}: a {kind}, with rows of {arguments.modality}, {len(files)} files. Edit what is marked EDIT:")
    print(*_marks(output, files), sep="\n")
    task, install = (f"{name}.yaml", "") if kind == "task" else (f"{name}/tiny", "pip install -e . && ")
    print(f"Go on with: cd {shlex.quote(str(output))} && {install}mmrl check {task} && mmrl train {task}")


def _refuse_taken(name: str) -> None:
    """Raises MMRLError if a plugin of this name is installed: two would share a namespace."""
    from mmrl_core.plugins import load_plugins

    plugin = load_plugins().plugins.get(name)
    if plugin is not None:
        raise MMRLError(f"a plugin {name!r} is installed already ({plugin.distribution}). Name yours differently.")


def _marks(output: Path, files: list[Path]) -> list[str]:
    """The lines with the marks, in the order of their numbers: "  1  data.py: your rows ..."."""
    marks = []
    for file in files:
        if file.suffix in (".py", ".yaml"):
            for line in (output / file).read_text(encoding="utf-8").splitlines():
                if mark := line.partition("# EDIT ")[2]:
                    number, _, what = mark.partition(": ")
                    marks.append(f"  {number}  {file}: {what}")
    return sorted(marks)


COMMAND = Command(
    "new",
    "Make the folder of a task, or of a plugin, with rows, a reward and a test, that trains at once.",
    "mmrl new task traffic_signs --modality image",
    add_arguments,
    run,
)
