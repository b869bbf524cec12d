"""`mmrl tiny`."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmrl_core.cli.command import Command, seed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from mmrl_core.testing import TINY_KINDS

    kinds = "; ".join(f"{name} ({kind.description})" for name, kind in TINY_KINDS.items())
    parser.add_argument("kind", metavar="KIND", help=kinds)
    parser.add_argument("directory", type=Path, metavar="DIR", help="folder to make")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="seed of the weights (default: 0)")


def run(arguments: argparse.Namespace) -> None:
    from mmrl_core.testing import build_tiny

    build_tiny(arguments.kind, arguments.directory, seed=arguments.seed)
    print(f"{arguments.kind} in {arguments.directory}")


COMMAND = Command(
    "tiny",
    "Build a small random-weight model of a real architecture, offline.",
    "mmrl tiny qwen2_5_vl models/tiny --seed 0",
    add_arguments,
    run,
)
