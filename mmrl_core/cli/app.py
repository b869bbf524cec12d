"""The command line as a whole: its parser, exit codes and errors. Each command is a module beside this one.

A command that was started with SIGINT ignored, as shells start those in the background, goes on ignoring it.

Commands import what is heavy when they run, so that `mmrl list` imports neither torch nor pydantic.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Sequence

from mmrl_core.cli import (
    check,
    compare,
    doctor,
    eval,
    export,
    import_config,
    info,
    listing,
    new,
    preview,
    runs,
    sample,
    score,
    tiny,
    train,
    view,
)
from mmrl_core.errors import MMRLError, ProcessLostError
from mmrl_core.support import blamed

MODULES = (
    *(new, check, preview, score, train, eval, sample, export),
    *(view, runs, compare, listing, info, import_config, tiny, doctor),
)
"""In the order of the help."""

COMMANDS = {module.COMMAND.name: module.COMMAND for module in MODULES}

EXIT_CODES = {
    0: "done",
    1: "a check failed, or nothing could be scored",
    2: "something that you can fix; the message says what, where and what to do, without a traceback",
    3: "the run ended with alarms, such as rewards that score nothing; its work is saved",
    130: "interrupted (Ctrl-C); what was trained is saved, and `--resume` goes on",
    143: "ended by SIGTERM, as `kill`, schedulers and `docker stop` send it; saved as for 130. It ends also a command "
    "in the background of a script, which ignores Ctrl-C, as shells have it",
}
"""What a command's exit code means. Any other is a fault of mmrl or of a plugin, with its traceback."""

QUIET = {
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""Environment of Hugging Face libraries, unless it is set: their bars and hints would bury what mmrl prints."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code."""
    try:
        arguments = parse(sys.argv[1:] if argv is None else argv)
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        # Where torchao is installed transformers imports it, and torch warns of what it does there.
        logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
        # Where bitsandbytes is installed peft imports it, and it says which faster kernel of the hub it has not got.
        logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
        return arguments.run(arguments) or 0
    except SystemExit as stop:  # argparse: 0 after --help, 2 after a usage error
        return stop.code if isinstance(stop.code, int) else 1
    except ProcessLostError:  # it was printed where it was noticed
        return 2
    except MMRLError as error:
        print(f"mmrl: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print("mmrl: interrupted", file=sys.stderr)
        return getattr(stop, "exit_code", 130)
    except BrokenPipeError:  # `mmrl list | head`: whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        found = blamed(error)
        if found is None or found.source is None:
            raise
        what = str(error) or "without a message"
        print(f"mmrl: {found.source} raised {type(error).__name__}: {what}", file=sys.stderr)
        traceback.print_exception(type(error), error, found.trace)
        return 1


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command; `run` is the function that does it.

    Raises:
        SystemExit: after help (0), or a usage error (2).
    """
    if not argv:
        make_parser("").print_help()
        raise SystemExit(0)
    arguments, rest = make_parser(argv[0]).parse_known_args(argv)
    # argparse takes positionals in one go, so overrides that follow an option come back as unknown.
    takes_overrides = hasattr(arguments, "overrides")
    if unknown := [text for text in rest if not takes_overrides or text.startswith("-") or "=" not in text]:
        hint = _as_override(unknown) if takes_overrides else ""
        arguments.parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    if takes_overrides:
        arguments.overrides += rest
    return arguments


def _as_override(unknown: Sequence[str]) -> str:
    """How to write a config key that was given as an option: " Config values ...: stages.0.group_size=4"."""
    from mmrl_core.config import find_key

    for place, text in enumerate(unknown):
        name, equals, value = text.lstrip("-").partition("=")
        path = find_key(name.replace("-", "_")) if text.startswith("--") else None
        if path is not None:
            follows = unknown[place + 1] if not equals and place + 1 < len(unknown) else "..."
            return f". Config values are written without dashes: {path}={value if equals else follows}"
    return ""


def _version() -> str:
    """Of the package that is installed, of this file where none is."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("mmrl-core")
    except PackageNotFoundError:
        return "of a folder that is not installed"


def make_parser(only: str | None = None) -> argparse.ArgumentParser:
    """The parser of all commands; its help is the reference that the docs show.

    Args:
        only: the command whose arguments are needed; the others get their sentences alone, since some look their help
            up in other rooms. Default: all.
    """
    parser = argparse.ArgumentParser(prog="mmrl", description="Reinforcement learning for multimodal models.")
    parser.add_argument("--version", action="version", version=f"mmrl {_version()}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        added = commands.add_parser(
            name,
            help=command.sentence,
            description=command.sentence,
            epilog=f"Example:\n  {command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(run=command.run, parser=added)
        if only in (None, name):
            command.add_arguments(added)
    return parser
