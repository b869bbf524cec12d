"""Laying out rows: turns as sequences after their prompts, and a batch as one sequence without padding."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import TypeVar

import torch
from torch import Tensor

from mmrl_core.language_model.observations import Continuation, Observation, root
from mmrl_core.types import Row

Item = TypeVar("Item", bound=Hashable)


def each_once(items: Sequence[Item]) -> tuple[list[Item], list[int]]:
    """Distinct items in order, and which of them each item is.

    Observations and tensors are equal to themselves only, so that the rows of a group, which share an observation, meet
    without a look at its content.
    """
    places = {item: place for place, item in enumerate(dict.fromkeys(items))}
    return list(places), [places[item] for item in items]


Turn = tuple[Observation, Tensor]
"""An observation, and the action that followed it."""


class Sequences:
    """Rows as sequences after their prompts. The turns of a conversation are one sequence.

    Attributes:
        prompts: distinct prompts.
        last: the last row of each sequence.
        lengths: tokens of each sequence after its prompt, without the last action token, which nothing follows.
        prompt_of: the prompt of each sequence.
        places: for each row its sequence, and where in it the action starts, counted from the prompt's end.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        inside: set[Turn] = set()  # those that a later turn at hand continues
        for row in rows:
            observation = row.observation
            while isinstance(observation, Continuation):
                inside.add((observation.before, observation.action))
                observation = observation.before
        self.last = [row for row in rows if (row.observation, row.action) not in inside]
        self.prompts, self.prompt_of = each_once([root(row.observation) for row in self.last])
        self.lengths = [_after_prompt(row) + row.num_actions - 1 for row in self.last]
        sequence_of: dict[Turn, int] = {}
        for sequence, row in enumerate(self.last):
            observation, action = row.observation, row.action
            sequence_of[observation, action] = sequence
            while isinstance(observation, Continuation):
                action, observation = observation.action, observation.before
                sequence_of[observation, action] = sequence
        self.places = [(sequence_of[row.observation, row.action], _after_prompt(row)) for row in rows]


def _after_prompt(row: Row) -> int:
    """Tokens between the prompt of a row's conversation and its action."""
    return len(row.observation) - len(root(row.observation))


class Packing:
    """A batch as one sequence: all prompts, shortest first, then all completions in the order of their prompts.

    Attributes:
        prompt_lengths: tokens of each of N prompts.
        row_lengths: tokens of each of B completions.
        row_prompts: the prompt that each completion follows.
        prompt_order: prompts in their order in the sequence, as indices of those given.
        row_order: completions in their order in the sequence, likewise.
        prompt_starts, row_starts: place of the first token of each prompt and completion, in the order given.
        num_tokens: S, tokens of the sequence.
        parts: the sequence cut up by the length of prompts.
    """

    def __init__(
        self,
        prompt_lengths: Sequence[int],
        row_lengths: Sequence[int],
        row_prompts: Sequence[int],
        device: torch.device,
    ) -> None:
        """Lay out N prompts and B completions.

        Args:
            prompt_lengths: tokens of each prompt.
            row_lengths: tokens of each completion, 0 allowed.
            row_prompts: which prompt each completion follows.
            device: of the sequence.
        """
        self.prompt_lengths, self.row_lengths, self.row_prompts = prompt_lengths, row_lengths, row_prompts
        self.prompt_order = sorted(range(len(prompt_lengths)), key=lambda i: prompt_lengths[i])
        rank = {prompt: place for place, prompt in enumerate(self.prompt_order)}
        self.row_order = sorted(range(len(row_lengths)), key=lambda i: rank[row_prompts[i]])
        self.prompt_starts = _starts(prompt_lengths, self.prompt_order, 0)
        num_prompt_tokens = sum(prompt_lengths)
        self.row_starts = _starts(row_lengths, self.row_order, num_prompt_tokens)
        self.num_tokens = num_prompt_tokens + sum(row_lengths)
        rows_of: list[list[int]] = [[] for _ in prompt_lengths]
        for row in self.row_order:
            rows_of[row_prompts[row]].append(row_lengths[row])
        self.parts: list[Part] = []
        prompt_start, row_start = 0, num_prompt_tokens
        for length, same in groupby(self.prompt_order, key=lambda i: prompt_lengths[i]):
            lengths = [rows_of[prompt] for prompt in same]
            part = Part(len(lengths), length, prompt_start, row_start, lengths, device)
            self.parts.append(part)
            prompt_start, row_start = part.prompts.stop, part.completions.stop

    def num_uses(self) -> Tensor:
        """Int64 [S], how many completions each token is of or before."""
        counts = torch.bincount(torch.tensor(self.row_prompts, dtype=torch.long), minlength=len(self.prompt_lengths))
        of_prompts = counts[self.prompt_order].repeat_interleave(torch.tensor(self.prompt_lengths)[self.prompt_order])
        return torch.cat([of_prompts, torch.ones(sum(self.row_lengths), dtype=torch.long)])


def _starts(lengths: Sequence[int], order: Sequence[int], start: int) -> list[int]:
    """Place of the first token of each sequence, laid one after the other in `order`."""
    starts = [0] * len(lengths)
    for index in order:
        starts[index] = start
        start += lengths[index]
    return starts


@dataclass
class Part:
    """Prompts of one length P, n of them, and their completions: a stretch of prompts and a stretch of completions."""

    num_prompts: int
    prompt_length: int
    prompt_start: int
    row_start: int
    row_lengths: list[list[int]]  # of each prompt's completions
    device: torch.device

    @cached_property
    def prompts(self) -> slice:
        return slice(self.prompt_start, self.prompt_start + self.num_prompts * self.prompt_length)

    @cached_property
    def completions(self) -> slice:
        return slice(self.row_start, self.row_start + sum(map(sum, self.row_lengths)))

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest prompt with a completion."""
        return self.prompt_length + max((length for lengths in self.row_lengths for length in lengths), default=0)

    @cached_property
    def by_prompt(self) -> _Padding:
        """Completion tokens as [n, T]: all those of a prompt in one line."""
        return _Padding([sum(lengths) for lengths in self.row_lengths], self.device)

    @cached_property
    def by_row(self) -> _Padding:
        """Completion tokens as [R, C]: a line for each completion."""
        return _Padding([length for lengths in self.row_lengths for length in lengths if length], self.device)

    def prompt_view(self, tensor: Tensor) -> Tensor:
        """[S, heads, d] -> [n, heads, P, d] without a copy."""
        return tensor[self.prompts].unflatten(0, (self.num_prompts, self.prompt_length)).transpose(1, 2)

    def folded(self, tensor: Tensor, kv_heads: int) -> Tensor:
        """Completions' [t, heads, ...] -> [n, kv_heads, T * heads / kv_heads, ...]: what meets the same prompt keys."""
        lines = self.by_prompt.pad(tensor).unflatten(2, (kv_heads, -1))
        return lines.transpose(1, 2).flatten(2, 3)

    def unfolded(self, tensor: Tensor, heads: int) -> Tensor:
        """The inverse of `folded`."""
        lines = tensor.unflatten(2, (-1, heads // tensor.shape[1])).transpose(1, 2)
        return self.by_prompt.unpad(lines.flatten(2, 3))

    def row_view(self, tensor: Tensor) -> Tensor:
        """Completions' [t, heads, ...] -> [R, heads, C, ...]."""
        return self.by_row.pad(tensor).transpose(1, 2)

    def row_tokens(self, tensor: Tensor) -> Tensor:
        """The inverse of `row_view`."""
        return self.by_row.unpad(tensor.transpose(1, 2))


class _Padding:
    """Consecutive tokens [t, ...] as lines of one length [lines, longest, ...], and back."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.shape = (len(lengths), max(lengths, default=0))
        is_token = torch.arange(self.shape[1]) < torch.tensor(lengths)[:, None] if lengths else torch.zeros(0, 0).bool()
        full = bool(is_token.all())
        self.places = None if full else is_token.flatten().nonzero()[:, 0].to(device)

    def pad(self, tokens: Tensor) -> Tensor:
        """Fills up with zeros."""
        if self.places is None:
            return tokens.unflatten(0, self.shape)
        lines = tokens.new_zeros(self.shape[0] * self.shape[1], *tokens.shape[1:])
        return lines.index_copy_(0, self.places, tokens).unflatten(0, self.shape)

    def unpad(self, lines: Tensor) -> Tensor:
        flat = lines.flatten(0, 1)
        return flat if self.places is None else flat.index_select(0, self.places)
