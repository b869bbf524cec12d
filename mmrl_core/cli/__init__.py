"""The command line: one module for each command."""

from mmrl_core.cli.app import main

__all__ = ["main"]
