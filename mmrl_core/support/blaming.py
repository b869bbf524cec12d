"""Whose code raised an error: a note below its traceback, and for the command line the part that is theirs."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType

from mmrl_core.errors import MMRLError

_MARK = "mmrl_blame"


@dataclass(frozen=True)
class Blame:
    """Of an error that is not an `MMRLError`.

    Attributes:
        source: what raised it, such as "loss 'mine.py:careful'"; None for the core's own.
        trace: from the first frame of that code on; None where it could not even be called.
    """

    source: str | None
    trace: TracebackType | None = None


def blame(error: BaseException, source: str | None, trace: TracebackType | None) -> None:
    """Note what raised an error, unless something inside of it is to blame.

    Args:
        source: None for the core.
        trace: of the error in the frame that called the source.
    """
    if blamed(error) is not None:
        return
    setattr(error, _MARK, Blame(source, trace and trace.tb_next))
    if source is not None and not isinstance(error, MMRLError):
        error.add_note(f"raised by {source}")


def blamed(error: BaseException) -> Blame | None:
    """What was noted by `blame`."""
    return getattr(error, _MARK, None)


class Blaming:
    """`with Blaming("loss 'mine'"): ...` blames what is raised inside; `MMRLError`s name themselves."""

    def __init__(self, source: str | None) -> None:
        self._source = source

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, Exception) and not isinstance(error, MMRLError):
            blame(error, self._source, trace)
