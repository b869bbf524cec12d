r"""Whether two answers are the same mathematics, by math-verify: imported in a process of its own, see `apart`.

Nothing else imports this module: sympy takes a second to load.
"""

from __future__ import annotations

import logging
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify

from mmrl_text_reasoning.confined import confine

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that it has no time limit: this process has one
_LATEX = [LatexExtractionConfig(boxed_match_priority=0)]
# Parsing and comparing these once makes the parser's tables, which takes longer than any answer after them.
_WARM_UP = ((r"\frac{1}{2}", "0.5"), (r"\{1, 2\}", "2, 1"), ("[1, 2)", "(1, 2]"), (r"\sqrt{2}x^2=5", r"x+\pi"))


def same_mathematics(gold: str, answer: str) -> bool:
    """Whether an answer is the gold one, by the rules of `math_verify.verify`; False if either cannot be parsed.

    Args:
        gold, answer: as LaTeX, without the box.
    """
    confine()
    return _same(gold, answer)


def _same(gold: str, answer: str) -> bool:
    try:
        read_gold, read_answer = _parsed(gold), _parsed(answer)
        return bool(read_gold and read_answer and verify(read_gold, read_answer, timeout_seconds=None))
    except (RecursionError, MemoryError):  # what else it raises, math-verify takes for "not the same" itself
        return False


def _parsed(answer: str) -> list[Any]:
    """As LaTeX alone: the other parser of math-verify, for plain expressions, evaluates them as Python."""
    boxed = f"\\boxed{{{answer}}}"
    return list(parse(boxed, extraction_config=_LATEX, fallback_mode="no_fallback", parsing_timeout=None))


for _gold, _answer in _WARM_UP:
    _same(_gold, _answer)
