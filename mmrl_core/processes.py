"""What the processes of a run do together. With one process nothing is sent anywhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


class Processes:
    """The processes that train together. All of them call each method equally often and in the same order."""

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator
        self.count: int = accelerator.num_processes

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
