"""A plugin of rewards as ms-swift loads it: classes that are entered in a table of its own."""

import re

from swift.plugin import ORM, orms
from swift.utils import get_logger

logger = get_logger()


class BoxAccuracy(ORM):
    def __call__(self, completions, solution, **kwargs) -> list[float]:
        rewards = []
        for content, gold in zip(completions, solution, strict=True):
            found = re.findall(r"\\boxed\{(.*?)\}", content)
            rewards.append(1.0 if found[-1:] == [gold] else 0.0)
        return rewards


class Brevity(ORM):
    def __init__(self, args=None, max_chars: int = 100):
        super().__init__(args)
        self.max_chars = max_chars

    def __call__(self, completions: list[str], **kwargs) -> list[float]:
        assert kwargs["messages"][0][0]["role"] == "user"
        return [max(0.0, 1 - len(text) / self.max_chars) for text in completions]


class Asked:
    """Without a base class, and one that waits."""

    async def __call__(self, completions, **kwargs):
        return [None if "?" in text else 0.5 for text in completions]


orms["box_accuracy"] = BoxAccuracy
orms["brevity"] = Brevity
