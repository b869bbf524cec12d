"""`mmrl check`."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmrl_core.cli.command import Command
from mmrl_core.errors import MMRLError, did_you_mean


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="TASK|PLUGIN", help="task id, path of a YAML, or name of a plugin")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="config values to change")


def run(arguments: argparse.Namespace) -> int:
    from mmrl_core.config import files_beside, load_config
    from mmrl_core.plugins import load_plugins

    plugins = load_plugins()
    known = [*plugins.tasks, *plugins.plugins]
    unknown = arguments.id not in known and not Path(arguments.id).is_file()
    if unknown and (hint := did_you_mean(arguments.id, [*known, *files_beside(arguments.id)])):
        raise MMRLError(f"there is no task, plugin or file {arguments.id!r}.{hint}")
    from mmrl_core.testing import check_plugin, check_task  # a wrong name is told before torch is imported

    if arguments.id in plugins.plugins:
        findings = check_plugin(arguments.id)
    else:
        findings = check_task(load_config(arguments.id, arguments.overrides))
    for finding in findings:
        verdict = "FAIL" if not finding.ok else "skip" if finding.skipped else "warn" if finding.doubtful else "ok  "
        print(f"{verdict}  {finding.what}")
    return 0 if all(finding.ok for finding in findings) else 1


COMMAND = Command(
    "check",
    "Prove that a task or plugin is sound: gold answers score the maximum, empty and hostile ones are safe.",
    "mmrl check visual_rft/demo_detection",
    add_arguments,
    run,
)
