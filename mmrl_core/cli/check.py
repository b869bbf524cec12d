"""`mmrl check`."""

from __future__ import annotations

import argparse

from mmrl_core.cli.command import Command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="TASK|PLUGIN", help="task id, path of a YAML, or name of a plugin")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="config values to change")


def run(arguments: argparse.Namespace) -> int:
    from mmrl_core.config import load_config
    from mmrl_core.plugins import load_plugins
    from mmrl_core.testing import check_plugin, check_task

    if arguments.id in load_plugins().plugins:
        findings = check_plugin(arguments.id)
    else:
        findings = check_task(load_config(arguments.id, arguments.overrides))
    for finding in findings:
        verdict = "FAIL" if not finding.ok else "warn" if finding.doubtful else "ok  "
        print(f"{verdict}  {finding.what}")
    return 0 if all(finding.ok for finding in findings) else 1


COMMAND = Command(
    "check",
    "Prove that a task or plugin is sound: gold answers score the maximum, empty and hostile ones are safe.",
    "mmrl check visual_rft/demo_detection",
    add_arguments,
    run,
)
