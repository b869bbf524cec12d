"""`mmrl preview`."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmrl_core.cli.command import Command, add_task, positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_task(parser)
    parser.add_argument(
        "--num", type=positive, default=3, metavar="N", help="prompts shown, of each part of a mixture (default: 3)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("preview"),
        metavar="DIR",
        help="folder for their media and the text (default: preview)",
    )


def run(arguments: argparse.Namespace) -> None:
    from mmrl_core.config import load_config
    from mmrl_core.testing import preview_task

    print(preview_task(load_config(arguments.task, arguments.overrides), arguments.num, arguments.output))


COMMAND = Command(
    "preview",
    "Show the first prompts of a task as the model will see them.",
    "mmrl preview visual_rft/demo_detection --num 2 --output preview",
    add_arguments,
    run,
)
