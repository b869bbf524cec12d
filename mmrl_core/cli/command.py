"""What a command consists of, and the arguments that several of them take."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """One command of `mmrl`.

    Attributes:
        name: as it is typed.
        sentence: what it does; its help shows it.
        example: a whole command line; a test parses it.
        add_arguments: adds its arguments to its parser.
        run: does it. It imports what is heavy, and returns the exit code; None is 0.
    """

    name: str
    sentence: str
    example: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int | None]


def add_task(parser: argparse.ArgumentParser) -> None:
    """Arguments of a command that reads a task config: `task` and `overrides`."""
    parser.add_argument("task", metavar="TASK", help="task id, see `mmrl list tasks`, or path of a YAML")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="config values to change, YAML: optimizer.lr=1e-5"
    )


def positive(text: str) -> int:
    """The type of an argument that counts."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def seed(text: str) -> int:
    """The type of an argument that is a seed, as large as numpy's generator takes it."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 4294967295")
    return int(text)
