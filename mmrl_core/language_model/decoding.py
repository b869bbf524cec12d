"""Sequences that are being continued: their keys and values, with a prompt's kept once for its group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from mmrl_core.language_model.attention import Layout, PackedAttention, run_decoder
from mmrl_core.language_model.packing import Packing

FIRST_CAPACITY = 32
"""Completion tokens that the key/value cache holds at first. It doubles when full."""


class Decoding(Protocol):
    """Sequences that are being continued, a slot for each.

    Attributes:
        rows: int64 [R], the sequence of each slot, -1 where a slot only fills up.
    """

    rows: Tensor

    def advance(self, tokens: Tensor) -> Tensor:
        """Append a token to each, int64 [R], and return the hidden states that predict the next, [R, hidden]."""
        ...

    def compact(self, live: Tensor) -> Tensor:
        """Drop slots outside bool [R] `live`. Returns the old slot of each new one, -1 where one only fills up."""
        ...


class Step(Protocol):
    """Runs a decoder on the next token of R sequences."""

    def __call__(self, embeddings: Tensor, positions: Tensor, layout: Layout) -> Tensor:
        """embeddings [R, 1, hidden] at int64 [R, 1] positions -> hidden states [R, 1, hidden]."""
        ...

    def restart(self) -> None:
        """Begin with other sequences."""
        ...


class LayerStep:
    """The decoder's own layers."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder

    def __call__(self, embeddings: Tensor, positions: Tensor, layout: Layout) -> Tensor:
        return run_decoder(self._decoder, embeddings, positions, layout)

    def restart(self) -> None: ...


class SharedDecoding:
    """Keys and values while sampling: those of N prompts once, those of each sequence beside them.

    Sequences are placed in a grid of N x L, so that those of a prompt meet its keys in one product. A slot whose
    completion has ended is computed on until `compact` takes it out. Tokens between a prompt and the first sampled
    token, in a conversation, are aligned on the right: the next token of every sequence has the same place.

    Attributes:
        rows: int64 [N * L], the sequence of each slot, -1 where a slot only fills the grid.
    """

    def __init__(
        self, attention: PackedAttention, next_position: Tensor, step: Step, embed: Callable[[Tensor], Tensor]
    ) -> None:
        """Take over the keys that an attention over N prompts and R sequences kept.

        Args:
            attention: made with `keep_keys`, after a forward of the decoder.
            next_position: int64 [R], position of the first token that is sampled.
            step: runs the decoder.
            embed: int64 [N * L, 1] tokens -> [N * L, 1, hidden].
        """
        self._embed = embed
        packing, device = attention.packing, next_position.device
        self._step = step
        self._lengths = torch.tensor(packing.prompt_lengths, device=device)
        slots, self.rows = _grid(packing, device)
        prompts = torch.tensor(packing.prompt_starts, device=device)[:, None]
        steps = torch.arange(max(packing.prompt_lengths), device=device)
        self._padding = _padding(steps < self._lengths[:, None])
        self._prompts = attention.keys_at(prompts + steps)
        self._own_lengths = torch.tensor(packing.row_lengths, device=device)[slots]
        self._num_steps = max(packing.row_lengths)  # places taken in each sequence
        steps = torch.arange(self._num_steps, device=device) - self._num_steps + self._own_lengths[:, None]
        self._own_padding = _padding(steps >= 0)
        starts = torch.tensor(packing.row_starts, device=device)[slots]
        self._own = attention.keys_at(starts[:, None] + steps) if self._num_steps else {}
        self._next_position = next_position[slots]

    def advance(self, tokens: Tensor) -> Tensor:
        """Append a token to each completion, int64 [N * L], and return the hidden states, [N * L, hidden]."""
        hidden = self._step(self._embed(tokens[:, None]), self._next_position[:, None], self)
        self._num_steps += 1
        self._own_lengths = self._own_lengths + 1
        self._next_position = self._next_position + 1
        return hidden[:, 0]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        """Attention of one new token for each completion. See `Layout.attend`."""
        prompt_key, prompt_value = self._prompts[layer]  # [N, kv, P, d]
        own_key, own_value = self._append(layer, key, value)  # [R * kv, t + 1, d]
        num_prompts, kv_heads, length, _ = prompt_key.shape
        slots, repeats = query.shape[0] // num_prompts, query.shape[1] // kv_heads

        def fold(tensor: Tensor) -> Tensor:  # [R * kv, r, x] -> [N * kv, L * r, x]: what meets the same prompt keys
            grid = tensor.view(num_prompts, slots, kv_heads, repeats, -1).transpose(1, 2)
            return grid.reshape(num_prompts * kv_heads, slots * repeats, -1)

        def unfold(tensor: Tensor) -> Tensor:
            grid = tensor.view(num_prompts, kv_heads, slots, repeats, -1).transpose(1, 2)
            return grid.reshape(-1, repeats, tensor.shape[-1])

        rows = (query * scale).reshape(-1, repeats, query.shape[-1])  # [R * kv, r, d]
        over_prompt = torch.bmm(fold(rows), prompt_key.flatten(0, 1).transpose(1, 2))
        over_self = torch.bmm(rows, own_key.transpose(1, 2))
        if self._padding is not None:
            over_prompt = over_prompt + self._padding.repeat_interleave(kv_heads, 0)
        if self._own_padding is not None:
            over_self[..., : self._own_padding.shape[-1]] += self._own_padding.repeat_interleave(kv_heads, 0)
        if window is not None:
            over_prompt, over_self = self._within(over_prompt, over_self, window)
        weights = torch.cat([over_prompt, fold(over_self)], -1).softmax(-1, dtype=torch.float32).to(value.dtype)
        from_prompt = torch.bmm(weights[..., :length], prompt_value.flatten(0, 1))
        out = torch.baddbmm(unfold(from_prompt), unfold(weights[..., length:].contiguous()), own_value)
        return out.view(query.shape[0], 1, query.shape[1], -1)

    def _within(self, over_prompt: Tensor, over_self: Tensor, window: int) -> tuple[Tensor, Tensor]:
        """Scores of tokens that lie further back than the window become -inf."""
        num_prompts, device = len(self._lengths), over_prompt.device
        slots = len(self._own_lengths) // num_prompts
        oldest = self._lengths[:, None] + self._own_lengths.view(num_prompts, slots) - window  # the newest out of reach
        hidden = torch.arange(over_prompt.shape[-1], device=device) <= oldest[..., None]  # [N, L, P]
        grid = over_prompt.view(num_prompts, -1, slots, over_prompt.shape[1] // slots, over_prompt.shape[-1])
        over_prompt = grid.masked_fill(hidden[:, None, :, None], -torch.inf).view_as(over_prompt)
        hidden = torch.arange(over_self.shape[-1], device=device) <= self._num_steps - window
        return over_prompt, over_self.masked_fill(hidden, -torch.inf)

    def _append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        stores = self._own.get(layer)
        if stores is None or stores[0].shape[2] <= self._num_steps:
            stores = self._grown(stores, key)
            self._own[layer] = stores
        for store, new in zip(stores, (key, value), strict=True):
            store.select(2, self._num_steps).copy_(new.squeeze(2))
        own_key, own_value = (store.flatten(0, 1)[:, : self._num_steps + 1] for store in stores)
        return own_key, own_value

    def _grown(self, stores: tuple[Tensor, Tensor] | None, like: Tensor) -> tuple[Tensor, Tensor]:
        rows, kv_heads, _, dim = like.shape
        capacity = FIRST_CAPACITY if stores is None else max(FIRST_CAPACITY, 2 * stores[0].shape[2])
        new = (like.new_empty(rows, kv_heads, capacity, dim), like.new_empty(rows, kv_heads, capacity, dim))
        for target, source in zip(new, stores or (), strict=False):
            target[:, :, : self._num_steps] = source[:, :, : self._num_steps]
        return new

    def compact(self, live: Tensor) -> Tensor:
        """Take out completions that have ended, and prompts none of whose completions live.

        Args:
            live: bool [N * L].

        Returns:
            int64 [N' * L'], the old slot of each new one, -1 where a slot only fills the grid.
        """
        self._step.restart()
        num_prompts = len(self._lengths)
        grid = live.view(num_prompts, -1)
        prompts = grid.any(1).nonzero()[:, 0]
        grid = grid[prompts]
        slots = int(grid.sum(1).max())
        order = grid.to(torch.int8).sort(dim=1, descending=True, stable=True).indices[:, :slots]
        index = (prompts[:, None] * (len(live) // num_prompts) + order).flatten()
        self._lengths = self._lengths[prompts]
        if self._padding is not None:
            self._padding = self._padding[prompts]
        if len(prompts) < num_prompts:
            self._prompts = {layer: (k[prompts], v[prompts]) for layer, (k, v) in self._prompts.items()}
        self._own = {layer: (k[index], v[index]) for layer, (k, v) in self._own.items()}
        self._own_lengths, self._next_position = self._own_lengths[index], self._next_position[index]
        if self._own_padding is not None:
            self._own_padding = self._own_padding[index]
        return torch.where(live[index], index, -1)


def _grid(packing: Packing, device: torch.device) -> tuple[Tensor, Tensor]:
    """int64 [N * L]: the sequence that each slot computes, and the same with -1 where a slot only fills the grid."""
    rows_of: list[list[int]] = [[] for _ in packing.prompt_lengths]
    for row, prompt in enumerate(packing.row_prompts):
        rows_of[prompt].append(row)
    num_slots = max(map(len, rows_of))
    grid = [[*rows, *[rows[0]] * (num_slots - len(rows))] for rows in rows_of]
    slots = torch.tensor(grid, device=device).flatten()
    is_filler = [place >= len(rows) for rows in rows_of for place in range(num_slots)]
    return slots, slots.masked_fill(torch.tensor(is_filler, device=device), -1)


def _padding(is_token: Tensor) -> Tensor | None:
    """Bool [n, places] -> bias of scores [n, queries, places] that hides padding. None if there is none."""
    return None if bool(is_token.all()) else torch.where(is_token, 0.0, -torch.inf)[:, None]
