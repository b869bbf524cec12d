"""The command line: a module for each command, joined in `app`."""

from mmrl_core.cli.app import EXIT_CODES, main, make_parser

__all__ = ["EXIT_CODES", "main", "make_parser"]
