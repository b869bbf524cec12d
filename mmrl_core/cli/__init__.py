"""The command line: a module for each command, joined in `app`; the policy of a checkpoint outside of training, and
what a run is estimated to take in memory."""

from typing import TYPE_CHECKING

from mmrl_core.cli.app import EXIT_CODES, main, make_parser
from mmrl_core.support import lazy_names

if TYPE_CHECKING:
    from mmrl_core.cli.memory import estimate, longest_prompt, num_processes, sizes_of
    from mmrl_core.cli.memory_report import memory_lines
    from mmrl_core.cli.opening import evaluate_checkpoint, open_policy

__all__ = [
    "EXIT_CODES",
    "estimate",
    "evaluate_checkpoint",
    "longest_prompt",
    "main",
    "make_parser",
    "memory_lines",
    "num_processes",
    "open_policy",
    "sizes_of",
]

__getattr__ = lazy_names(
    __name__,
    {
        **dict.fromkeys(("estimate", "longest_prompt", "num_processes", "sizes_of"), "memory"),
        "memory_lines": "memory_report",
        **dict.fromkeys(("evaluate_checkpoint", "open_policy"), "opening"),
    },
)
