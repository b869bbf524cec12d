"""The command line: a module for each command, joined in `app`; and the policy of a checkpoint outside of training."""

from typing import TYPE_CHECKING

from mmrl_core.cli.app import EXIT_CODES, main, make_parser
from mmrl_core.support import lazy_names

if TYPE_CHECKING:
    from mmrl_core.cli.opening import evaluate_checkpoint, open_policy

__all__ = ["EXIT_CODES", "evaluate_checkpoint", "main", "make_parser", "open_policy"]

__getattr__ = lazy_names(__name__, dict.fromkeys(("evaluate_checkpoint", "open_policy"), "opening"))
