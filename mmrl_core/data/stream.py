"""Prompts of a stage, read and encoded one step ahead of need, off the main thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmrl_core.data.draw import Draw
    from mmrl_core.types import Prompt


def _use_one_core() -> None:
    """Keep tensors of this thread to one core: workers of its own would compete with those of the main thread."""
    import torch

    torch.set_num_threads(1)


class PromptStream:
    """Draws prompts; while a step runs, the next draw is read and prepared in a thread.

    What is drawn depends on the position alone, so a run that is stopped and resumed sees the same prompts.
    """

    def __init__(self, draw: Callable[[int], Draw], prepare: Callable[[Sequence[Prompt]], None]) -> None:
        """
        Args:
            draw: the prompts of a step from its position in the data.
            prepare: makes prompts ready for the policy.
        """
        self._draw = draw
        self._prepare = prepare
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mmrl-prompts", initializer=_use_one_core)
        self._ahead: tuple[int, Future[Draw]] | None = None

    def take(self, position: int) -> Draw:
        """The draw at a position; begins the one after it.

        Raises:
            TaskDataError: as `draw` and `prepare` do.
        """
        if self._ahead is not None and self._ahead[0] == position:
            drawn = self._ahead[1].result()
        else:
            drawn = self._read(position)
        self._ahead = drawn.position, self._thread.submit(self._read, drawn.position)
        return drawn

    def _read(self, position: int) -> Draw:
        drawn = self._draw(position)
        self._prepare(drawn.prompts)
        return drawn

    def close(self) -> None:
        """Wait for the draw that is under way and forget it."""
        self._ahead = None
        self._thread.shutdown(wait=True, cancel_futures=True)
