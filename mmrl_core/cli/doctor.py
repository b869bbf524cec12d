"""`mmrl doctor`: is this machine ready, and if not, what is the next step."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from mmrl_core.cli.command import Command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help='print {"ok": bool, "findings": [...]}')


def run(arguments: argparse.Namespace) -> int:
    from mmrl_core.cli.diagnosis import diagnose

    findings = diagnose()
    num_failed = sum(finding.status == "FAIL" for finding in findings)
    if arguments.json:
        told = {"ok": not num_failed, "findings": [asdict(finding) for finding in findings]}
        print(json.dumps(told, indent=2, ensure_ascii=False))
        return 1 if num_failed else 0
    for finding in findings:
        print(f"{finding.status:<4}  {finding.check:<10}{finding.what}")
        if finding.next_step:
            print(f"{'':<16}-> {finding.next_step}")
    num_warned = sum(finding.status == "WARN" for finding in findings)
    print(f"{num_failed} FAIL, {num_warned} WARN, {len(findings) - num_failed - num_warned} OK")
    return 1 if num_failed else 0


COMMAND = Command(
    "doctor",
    "Look at this machine and installation: OK, WARN or FAIL, each with the next step.",
    "mmrl doctor --json",
    add_arguments,
    run,
)
