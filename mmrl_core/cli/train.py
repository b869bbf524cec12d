"""`mmrl train`."""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mmrl_core.cli.command import Command, add_task
from mmrl_core.errors import MMRLError

if TYPE_CHECKING:
    from mmrl_core.config import RunConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_task(parser)
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="run directory (default: runs/<task name>-<date>-<time>)"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in --output (default: start one)")
    parser.add_argument("--dry-run", action="store_true", help="check everything that can be checked, and do not train")


ALARMED = 3  # exit code of a run that ended with alarms


def run(arguments: argparse.Namespace) -> int:
    from mmrl_core.config import load_config

    config = load_config(arguments.task, arguments.overrides)
    if arguments.dry_run:
        from mmrl_core.cli.dry_run import check_run

        print(*check_run(config), sep="\n")
        return 0
    output = _run_directory(config, arguments.output, arguments.resume)

    if not faulthandler.is_enabled():
        # A crash in a reward's or library's C code writes whose it was, see `isolate` of rewards. A notebook's stderr
        # is no file, and does without.
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            faulthandler.enable()
    from mmrl_core.runs import alarms_of
    from mmrl_core.trainer import train

    train(config, output, arguments.resume)
    alarms = alarms_of(output)
    if alarms:
        print(f"mmrl: the run ended with {len(alarms)} alarms; the first: {alarms[0]}", file=sys.stderr)
    return ALARMED if alarms else 0


def _run_directory(config: RunConfig, output: Path | None, resume: bool) -> Path:
    """The folder that the run is written to, after the checks that it overwrites nothing and resumes the same run."""
    if resume:
        if output is None:
            raise MMRLError("--resume needs --output, the run directory to go on with.")
        if not output.is_dir():
            raise MMRLError(f"there is no run in {output} to resume. Leave out --resume to start one.")
        from mmrl_core.checkpoint import refuse_other_run

        refuse_other_run(output, config)
        return output
    if output is None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise MMRLError("several processes would each choose a run directory by the clock: name one with --output.")
        import datetime

        output = Path("runs") / f"{config.name.replace('/', '-')}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    first_process = os.environ.get("RANK", "0") == "0"  # when the others look, the first may have begun to write
    if output.is_file() or (first_process and output.is_dir() and _is_used(output)):
        raise MMRLError(f"{output} exists and is not empty. Add --resume to go on with it, or name another --output.")
    return output


def _is_used(output: Path) -> bool:
    """Whether a folder holds anything but the lock of a run that was killed before it wrote anything."""
    from mmrl_core.support import LOCK_FILE

    return any(path.name != LOCK_FILE for path in output.iterdir())


COMMAND = Command(
    "train",
    "Train a policy as a task config says.",
    "mmrl train visual_rft/demo_detection stages.0.steps=5 --output runs/first",
    add_arguments,
    run,
)
