"""The command line: a module for each command, joined in `app`."""

from mmrl_core.cli.app import main, make_parser

__all__ = ["main", "make_parser"]
