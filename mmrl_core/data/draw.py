"""Which prompts a step draws: of one source of rows, or of several, mixed by weight.

What is drawn follows from the position and the seed alone, so a run resumes from its position, and processes that share
a step need not talk to each other.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from mmrl_core.data.prompts import Accept, Preparer, PromptSource
from mmrl_core.data.set_aside import BrokenRow
from mmrl_core.errors import TaskDataError

if TYPE_CHECKING:
    from mmrl_core.config import PartConfig
    from mmrl_core.plugins import Plugins
    from mmrl_core.types import Prompt


class Draw(NamedTuple):
    """Prompts of this process, the position to draw from next, how many epochs ended on the way there, and all rows of
    the sources found broken so far."""

    prompts: list[Prompt]
    position: int
    epochs_finished: int
    set_aside: tuple[BrokenRow, ...]


class Mixture:
    """What a stage draws from. A single source is a mixture of one.

    An epoch of a mixture is as many prompts as its sources have rows together. How often a source is gone through
    meanwhile follows from its weight; each has its own order and its own epochs.

    Attributes:
        sources: in the order of the config.
    """

    def __init__(self, sources: Sequence[PromptSource], weights: Sequence[float] = (1.0,)) -> None:
        """
        Args:
            sources: with different names.
            weights: of each, above 0.
        """
        self.sources = list(sources)
        self.weights = list(weights)

    def __len__(self) -> int:
        """Number of rows of all sources, broken ones included."""
        return sum(map(len, self.sources))

    def draw(self, position: int, count: int, seed: int, *, rank: int = 0, world_size: int = 1) -> Draw:
        """Draw the next prompts of a run, over the ends of epochs.

        Positions count prompts since the start. `interleave` says which source each is of, and draw q of a source of n
        rows is row q % n of the order of its epoch q // n. A draw takes the `count` positions from `position` on. They
        are dealt out to the processes so that each gets its share of every source.

        A broken row is replaced by a later row of its source: if the draw takes k rows of that source, by the row k
        places further on, or 2 k, and so on. So every process advances to the same position without reading what the
        others read or talking to them, and no two places of a draw get the same row (unless the draw is longer than the
        epoch, or crosses its end). The price: the replacement is drawn again when its own turn comes.

        Args:
            position: 0 at the start of a stage, later what the last draw returned.
            count: prompts of the step, over all processes.
            seed: of the order.
            rank, world_size: this process, and how many there are.

        Returns:
            The prompts of this process, `position + count`, how many epochs this draw finished, and broken rows.

        Raises:
            TaskDataError: too many rows are broken, or none is sound.
        """
        if count < 1 or position < 0 or not 0 <= rank < world_size:
            raise ValueError(f"cannot draw {count} prompts from position {position} as process {rank} of {world_size}")
        places = interleave(self.weights, position, count)
        taken = Counter(index for index, _ in places)
        dealt = sorted(range(count), key=lambda place: places[place][0])[rank::world_size]
        prompts = []
        for index, nth in (places[place] for place in sorted(dealt)):
            prompts.append(_sound_prompt(self.sources[index], nth, taken[index], seed))
        end = position + count
        broken = tuple(row for source in self.sources for row in source.set_aside)
        return Draw(prompts, end, end // len(self) - position // len(self), broken)

    def refuse(self, prompt: Prompt, reason: str) -> BrokenRow:
        """Set aside the row of a prompt that was drawn; see `PromptSource.refuse`."""
        (source,) = (source for source in self.sources if source.part == prompt.part)
        return source.refuse(prompt, reason)


def training_mixture(
    plugins: Plugins, parts: Sequence[PartConfig], environment: Preparer | None, accept: Accept | None = None
) -> Mixture:
    """What parts, each with rows to train on, are drawn from together. For `accept` see `PromptSource`."""
    sources = [PromptSource.of_part(plugins, part, "train", environment, accept) for part in parts]
    return Mixture(sources, [part.weight for part in parts])


def interleave(weights: Sequence[float], position: int, count: int) -> list[tuple[int, int]]:
    """Which source each of the places from `position` on is drawn from, and how many draws of that source were before.

    Draw j of a source of weight w is due at the time (j + 1/2) / w, and places are in the order of time; where draws
    are due at once, in the order of sources. So of the first p places, wherever they end, a source has its share of p
    but for at most half as many as there are sources; with whole weights exactly its share at each multiple of their
    sum. Computed exactly, and without going through the places before.

    >>> interleave([1, 3], 4, 4)
    [(1, 3), (0, 1), (1, 4), (1, 5)]
    """
    exact = [Fraction(weight) for weight in weights]
    # By this time no more draws are due than places were before, and fewer by less than the number of sources.
    time = max(Fraction(0), (position - Fraction(len(exact), 2)) / sum(exact))
    drawn = [math.floor(time * weight + Fraction(1, 2)) for weight in exact]
    places: list[tuple[int, int]] = []
    for _ in range(position + count - sum(drawn)):
        index = min(range(len(exact)), key=lambda i: (2 * drawn[i] + 1) / exact[i])
        places.append((index, drawn[index]))
        drawn[index] += 1
    return places[-count:]


def in_turns(prompts: Sequence[Prompt], count: int) -> list[int]:
    """Places of the first `count` prompts if the parts of a mixture take turns: what is shown shows them all.

    Outside of a mixture, the first prompts.
    """
    turns: Counter[str] = Counter()
    turn_of = []
    for prompt in prompts:
        turn_of.append(turns[prompt.part])
        turns[prompt.part] += 1
    return sorted(range(len(prompts)), key=turn_of.__getitem__)[:count]


def epoch_order(num_rows: int, seed: int | str, epoch: int) -> list[int]:
    """The order of rows in an epoch: a permutation of 0..num_rows-1 that depends on the arguments alone.

    Nothing is carried from one epoch to the next, so a run resumes from its position.
    """
    return list(_epoch_order(num_rows, seed, epoch))


@functools.lru_cache(maxsize=32)
def _epoch_order(num_rows: int, seed: int | str, epoch: int) -> tuple[int, ...]:
    order = list(range(num_rows))
    random.Random(f"{seed} {epoch}").shuffle(order)
    return tuple(order)


def _sound_prompt(source: PromptSource, position: int, stride: int, seed: int) -> Prompt:
    """The prompt at a position of a source, or of the row that replaces it."""
    num_rows = len(source)
    order = functools.partial(_epoch_order, num_rows, f"{seed} {source.part}" if source.part else seed)
    places = (position + attempt * stride for attempt in range(num_rows))
    strided = (order(place // num_rows)[place % num_rows] for place in places)
    tried: set[int] = set()
    # Strides may miss rows; before giving up, each row is tried.
    for index in itertools.chain(strided, order(position // num_rows)):
        if index not in tried and (prompt := source.prompt(index)) is not None:
            return prompt
        tried.add(index)
    raise TaskDataError(f"none of the {num_rows} rows of {source.name!r} can be read:\n{source.set_aside.describe(3)}")
