"""A config of another framework as a task: what `mmrl import-config` writes."""

from __future__ import annotations

from pathlib import Path

from mmrl_core.errors import ConfigError
from mmrl_core.peers.files import NAMES, TABLES, read_file
from mmrl_core.peers.of_trainer import translate
from mmrl_core.peers.of_verl import translate_easyr1, translate_verl
from mmrl_core.peers.task import Task

HEADINGS = (
    ("look", "Look at"),
    ("missing", "Without a counterpart here"),
    ("defaults", "Left out in the file, where their default is not ours"),
)


def imported(file: Path, peer: str | None = None, processes: int | None = None, rewards: Path | None = None) -> str:
    """A task as YAML, with comments on what has no counterpart, what has another default, and what to look at.

    Args:
        file: the config.
        peer: whose it is; None: recognised.
        processes: of the run, for sizes that count by process.
        rewards: file of the functions that the config names.

    Raises:
        ConfigError: the file is no such config.
    """
    import yaml

    if rewards is not None and not rewards.is_file():
        raise ConfigError(f"there is no file {rewards}.")
    found = read_file(file, peer)
    given = dict(found.values) | ({} if processes is None else {"num_processes": processes})
    if found.peer in ("verl", "easyr1"):
        given.pop("num_processes", None)
    task = Task(NAMES[found.peer], TABLES[found.peer], given)
    task.copy_direct()
    if found.peer == "verl":
        translate_verl(task, found.folder)
    elif found.peer == "easyr1":
        translate_easyr1(task, found.folder)
    else:
        translate(task, found.folder, rewards, swift=found.peer == "swift")
    head = [f"# From {file.name}, a config of {NAMES[found.peer]}, by `mmrl import-config`."]
    for name, heading in HEADINGS:
        lines = dict.fromkeys(getattr(task, name))
        head += [f"# {heading}:", *(f"#   {' '.join(line.split())}" for line in lines)] if lines else []
    return "\n".join(head) + "\n" + yaml.safe_dump(task.ordered(), sort_keys=False, allow_unicode=True, width=110)
