"""What the processes of a run do together. With one process nothing is sent anywhere."""

from __future__ import annotations

import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from mmrl_core.errors import ConfigError, ProcessLostError

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

T = TypeVar("T")


def make_accelerator(timeout_s: float, **options: Any) -> Accelerator:
    """An Accelerator whose processes wait `timeout_s` seconds for each other, and not torch's 10 or 30 minutes.

    A process may have no use for some weights, such as a media tower's in a step without media.

    Raises:
        ConfigError: its launcher is to shard the model itself.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    for what in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{what}", "false").lower() in ("true", "1"):
            raise ConfigError(
                f"accelerate is set up for {what}, which mmrl does not use. Launch with --multi_gpu and without it, "
                "and set sharding in the task, as configs/hardware/fsdp2_eight_gpus.yaml does."
            )
    warnings.filterwarnings("ignore", "find_unused_parameters=True was specified")  # mostly all are of use
    handlers = [
        InitProcessGroupKwargs(timeout=timedelta(seconds=timeout_s)),
        DistributedDataParallelKwargs(find_unused_parameters=True),
    ]
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
    """The processes that train together. All of them call each method equally often and in the same order.

    Attributes:
        count: how many they are.
        index: which of them this is; the first is 0.
        sharded: whether each has a share of the weights alone, so that a forward pass takes all of them.
    """

    def __init__(self, accelerator: Any, *, sharded: bool = False) -> None:
        self._accelerator = accelerator
        self.sharded = sharded and accelerator.num_processes > 1
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

    def in_step(self, passes: Sequence[T]) -> list[tuple[T, bool]]:
        """Passes, and whether each counts. Where weights are sharded others may have more: the first is then repeated.

        Args:
            passes: at least one.
        """
        counted = [(item, True) for item in passes]
        if not self.sharded:
            return counted
        most = max(self.gather([len(passes)]))
        return counted + [(passes[0], False)] * (most - len(passes))

    def gather(self, items: list[Any]) -> list[Any]:
        """The items of all processes."""
        if self.count == 1:
            return items
        from accelerate.utils import gather_object

        return list(gather_object(items))
