"""What the processes of a run do together. With one process nothing is sent anywhere."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from mmrl_core.errors import ProcessLostError

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor


def make_accelerator(timeout_s: float, **options: Any) -> Accelerator:
    """An Accelerator whose processes wait `timeout_s` seconds for each other, and not torch's 10 or 30 minutes."""
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    handlers = [InitProcessGroupKwargs(timeout=timedelta(seconds=timeout_s))]
    return Accelerator(kwargs_handlers=handlers, **options)


def process_lost(error: BaseException) -> ProcessLostError | None:
    """What an error of torch's communication means for a user; None for any other error."""
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized() or not isinstance(error, RuntimeError):
        return None
    if not isinstance(error, dist.DistError) and "gloo" not in str(error):  # gloo raises plain RuntimeErrors
        return None
    cause = str(error).splitlines()[0].rpartition("] ")[2].partition(". ")[0]
    return ProcessLostError(
        f"process {dist.get_rank()} of {dist.get_world_size()} ends because another one has ended or does not answer "
        f"({cause[:200]}): what that one printed, or the launcher's list of failures, says why. Go on with --resume."
    )


@contextmanager
def losses_named() -> Iterator[None]:
    """Say in one sentence, and at once, that another process is lost: its launcher is about to end this one too.

    Raises:
        ProcessLostError: in place of an error of torch's communication.
    """
    try:
        yield
    except RuntimeError as error:
        lost = process_lost(error)
        if lost is None:
            raise
        print(f"mmrl: {lost}", file=sys.stderr, flush=True)
        raise lost from error


class Processes:
    """The processes that train together. All of them call each method equally often and in the same order."""

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator
        self.count: int = accelerator.num_processes
        self.index: int = accelerator.process_index

    def reduce_sum(self, tensor: Tensor) -> Tensor:
        """Sum of a tensor of the same shape everywhere."""
        if self.count == 1:
            return tensor
        summed: Tensor = self._accelerator.reduce(tensor.to(self._accelerator.device), "sum")
        return summed.to(tensor.device)

    def sums(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sums by name, whichever names the other processes have."""
        sums: Counter[str] = Counter()
        for part in self.gather([dict(values)]):
            sums.update(part)
        return dict(sums)

    def gather(self, items: list[Any]) -> list[Any]:
        """The items of all processes."""
        if self.count == 1:
            return items
        from accelerate.utils import gather_object

        return list(gather_object(items))
