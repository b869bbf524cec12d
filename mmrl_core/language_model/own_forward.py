"""A transformers model's own forward, for rollout and update: what every other way of computing is held against.

The processor's outputs go to the model as they are, so this needs no code for a family: tiles, crops, token types,
cross-attention to images, several placeholders for a medium, plain or multi-axis positions. Hidden states are taken
where the model's head reads them, so that the logits of a whole sequence are never made.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from mmrl_core.language_model.observations import Encoded, segments
from mmrl_core.language_model.packing import each_once
from mmrl_core.types import Row

OnPass = Callable[[Tensor], None]
"""Is told of each pass: int64 [R, S], how many rows each of its tokens is of or before, 0 for padding."""

Parts = Sequence[Encoded | Tensor]
"""A conversation: encodings, and int64 [T] actions."""


@dataclass
class Pass:
    """What a forward gave.

    Attributes:
        hidden: [R, S, hidden], what the head reads.
        positions: int64 [R, S] or [axes, R, S], where the model handed its decoder some.
    """

    hidden: Tensor
    positions: Tensor | None = None


class OwnForward:
    """Runs a model's own forward on padded sequences."""

    def __init__(self, model: Any, media_ids: Collection[int] = ()) -> None:
        """
        Args:
            model: of transformers, without a LoRA wrapper.
            media_ids: tokens that stand for media or their brackets. Among actions they stand for themselves.
        """
        self._model = model
        self._media_ids = torch.tensor(sorted(media_ids), dtype=torch.long)
        parameters = inspect.signature(model.forward).parameters
        self._accepted = set(parameters)
        self._accepts_any = any(value.kind is value.VAR_KEYWORD for value in parameters.values())

    def padded(self, sequences: Sequence[Parts], *, left: bool = False, cache: Any = None) -> tuple[Pass, Tensor]:
        """Run R conversations as one batch.

        Args:
            left: pad on the left, for sampling. On the right no token of a causal model sees the padding.
            cache: of transformers, filled by the pass.

        Returns:
            The pass, and bool [R, S], False on padding.
        """
        device = self._model.get_input_embeddings().weight.device
        encodings = [part for parts in sequences for part in parts if isinstance(part, Encoded)]
        width = max(sum(map(len, parts)) for parts in sequences)

        def batch(rows: Sequence[Tensor]) -> Tensor:
            missing = [width - len(row) for row in rows]
            sides = [(count, 0) if left else (0, count) for count in missing]
            return torch.stack([pad(row, side) for row, side in zip(rows, sides, strict=True)]).to(device)

        input_ids = batch([torch.cat([_ids(part) for part in parts]) for parts in sequences])
        mask = batch([torch.ones(sum(map(len, parts)), dtype=torch.bool) for parts in sequences])
        inputs = dict(collate([part.media for part in encodings]))
        for name in dict.fromkeys(name for part in encodings for name in part.token_types):
            inputs[name] = batch([torch.cat([_types(part, name) for part in parts]) for parts in sequences])
        words = batch([torch.cat([self._is_word(part) for part in parts]) for parts in sequences])
        with _spelled_out(self._model, input_ids, words) as shown:
            return self.run(shown, mask, inputs, cache), mask

    def _is_word(self, part: Encoded | Tensor) -> Tensor:
        """Bool [T]: which tokens read like media and are none, since the policy wrote them."""
        if isinstance(part, Encoded):
            return torch.zeros(len(part), dtype=torch.bool)
        return torch.isin(part, self._media_ids)

    def whole_rows(self, rows: Sequence[Row], on_pass: OnPass) -> list[Tensor]:
        """Hidden states [T, hidden] that predict the actions of each row, with each row run whole after its prompt."""
        sequences = [[*segments(row.observation), row.action[:-1]] for row in rows]
        hidden: dict[int, Tensor] = {}
        for batch in alike(sequences):
            found, mask = self.padded([sequences[index] for index in batch])
            on_pass(mask.long())
            for index, of_row in zip(batch, found.hidden, strict=True):
                start = len(rows[index].observation) - 1
                hidden[index] = of_row[start : start + rows[index].num_actions]
        return [hidden[index] for index in range(len(rows))]

    def after_prompts(self, rows: Sequence[Row], on_pass: OnPass) -> list[Tensor]:
        """The same with each prompt run once, with its media, and its rows run after its cache, gradients included."""
        from transformers import DynamicCache

        distinct, prompt_of = each_once([row.observation for row in rows])
        sequences = [segments(item) for item in distinct]
        hidden: dict[int, Tensor] = {}
        for batch in alike(sequences):
            members = [row for row, prompt in enumerate(prompt_of) if prompt in batch]
            slots = torch.tensor([batch.index(prompt_of[row]) for row in members])
            cache = DynamicCache(config=self._model.config.get_text_config())
            prefill, mask = self.padded([sequences[prompt] for prompt in batch], left=True, cache=cache)
            on_pass(mask * slots.bincount().to(mask.device)[:, None])
            slots = slots.to(mask.device)
            cache.reorder_cache(slots)
            for layer in cache.layers:
                if hasattr(layer, "update_recurrent_state"):  # it would write over the state that gradients need
                    layer.update_recurrent_state = lambda states, *_, **__: states
            ids = pad_sequence([rows[row].action[:-1] for row in members], batch_first=True).to(mask.device)
            ids = pad(ids, (0, max(0, 2 - ids.shape[1])))  # models take a single token for a step of decoding
            steps = torch.arange(ids.shape[1], device=ids.device)
            lengths = torch.tensor([rows[row].num_actions - 1 for row in members], device=ids.device)
            on_pass((steps < lengths[:, None]).long())
            inputs = {"position_ids": _last_positions(prefill, mask)[..., slots, :] + 1 + steps}
            with _spelled_out(self._model, ids, torch.isin(ids, self._media_ids.to(ids.device))) as shown:
                found = self.run(shown, pad(mask[slots], (0, ids.shape[1]), value=True), inputs, cache)
            every = torch.cat([prefill.hidden[:, -1:][slots], found.hidden], 1)
            hidden |= {row: every[place, : rows[row].num_actions] for place, row in enumerate(members)}
        return [hidden[row] for row in range(len(rows))]

    def logits(self, input_ids: Tensor, prompt: Encoded, num_actions: int) -> Tensor:
        """[1, S, V] of int64 [1, S] tokens, a prompt with its completion, as the model computes them alone."""
        zeros = torch.zeros(num_actions, dtype=torch.long)
        types = {name: torch.cat([values, zeros])[None] for name, values in prompt.token_types.items()}
        given = self._taken({**prompt.media, **types}, input_ids.device)
        output = self._model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), use_cache=False, **given)
        return output.logits

    def _taken(self, inputs: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
        """Those inputs that the forward takes, on the device."""
        taken = {name: value for name, value in inputs.items() if self._accepts_any or name in self._accepted}
        return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in taken.items()}

    def run(self, input_ids: Tensor, mask: Tensor, inputs: Mapping[str, Any], cache: Any = None) -> Pass:
        """A pass over int64 [R, S] tokens. Inputs that the forward does not take are left out."""
        given = self._taken(inputs, input_ids.device)
        given |= {"use_cache": False} if cache is None else {"use_cache": True, "past_key_values": cache}
        with _watched(self._model) as found:
            self._model(input_ids=input_ids, attention_mask=mask.long(), **given)
        return found


def _ids(part: Encoded | Tensor) -> Tensor:
    return part.input_ids if isinstance(part, Encoded) else part


def _types(part: Encoded | Tensor, name: str) -> Tensor:
    """Types of tokens by the processor; those of actions are 0, as of any text."""
    if isinstance(part, Encoded) and name in part.token_types:
        return part.token_types[name]
    return torch.zeros(len(part), dtype=torch.long)


def collate(media: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The media of several prompts as a processor batches them: one after the other, padded with zeros to one size."""
    names = dict.fromkeys(name for outputs in media for name in outputs)
    return {name: _joined([outputs[name] for outputs in media if name in outputs]) for name in names}


def _joined(values: Sequence[Any]) -> Any:
    if not all(isinstance(value, Tensor) for value in values):
        return [item for value in values for item in value]
    sizes = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values), strict=True)]
    return torch.cat([_fitted(value, sizes) for value in values])


def _fitted(value: Tensor, sizes: Sequence[int]) -> Tensor:
    missing = [size - present for size, present in zip(sizes, value.shape[1:], strict=True)]
    return pad(value, [side for extra in reversed(missing) for side in (0, extra)]) if any(missing) else value


@contextmanager
def _watched(model: Any) -> Iterator[Pass]:
    """Catch what the head reads, letting it compute the logits of one place only, and the decoder's positions."""
    found = Pass(torch.empty(0))

    def head(module: Any, positional: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        found.hidden = positional[0]
        return (positional[0][..., :1, :], *positional[1:])

    def decoder(module: Any, positional: tuple[Any, ...], options: dict[str, Any]) -> None:
        found.positions = options.get("position_ids")

    handles = [
        model.get_output_embeddings().register_forward_pre_hook(head),
        model.get_decoder().register_forward_pre_hook(decoder, with_kwargs=True),
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def alike(sequences: Sequence[Parts]) -> list[list[int]]:
    """Indices of sequences that may be one batch: a model's forward may not take prompts with other kinds of media."""
    batches: dict[frozenset[str], list[int]] = {}
    for index, parts in enumerate(sequences):
        names = frozenset(name for part in parts if isinstance(part, Encoded) for name in part.media)
        batches.setdefault(names, []).append(index)
    return list(batches.values())


@contextmanager
def _spelled_out(model: Any, input_ids: Tensor, words: Tensor) -> Iterator[Tensor]:
    """Token ids [R, S] in which no word reads like a medium; inside, each word has its own embedding all the same."""
    if not bool(words.any()):
        yield input_ids
        return
    embed = model.get_input_embeddings()
    shown = input_ids.masked_fill(words, 0)

    def restore(module: Any, positional: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if positional[0].shape != words.shape:
            return output
        return torch.where(words[..., None], module.forward(input_ids), output)

    handle = embed.register_forward_hook(restore)
    try:
        yield shown
    finally:
        handle.remove()


def _last_positions(prefill: Pass, mask: Tensor) -> Tensor:
    """Positions [N, 1] or [axes, N, 1] of the last tokens of N sequences that were padded on the left."""
    if prefill.positions is None:  # the model counts by itself
        return mask.new_full((len(mask), 1), mask.shape[1] - 1, dtype=torch.long)
    last = prefill.positions[..., -1:]
    return last.expand(*last.shape[:-2], len(mask), 1)


class OwnDecoding:
    """A key/value cache of transformers with a row for each completion, run by the model's own forward."""

    def __init__(
        self, forward: OwnForward, cache: Any, rows: Tensor, slots: Tensor, prefill: Pass, mask: Tensor
    ) -> None:
        """Take over a prefilled cache of N sequences.

        Args:
            forward: of the model.
            cache: of transformers, N rows.
            rows: int64 [R], the sequence of each slot, see `Decoding.rows`.
            slots: int64 [R], which of the N sequences each slot continues.
            prefill: of the N sequences, padded on the left.
            mask: bool [N, S], False on padding.
        """
        cache.reorder_cache(slots)
        self.rows = rows
        self._forward = forward
        self._cache = cache
        self._mask = mask[slots]
        self._positions = _last_positions(prefill, mask)[..., slots, :]

    def advance(self, tokens: Tensor) -> Tensor:
        self._mask = pad(self._mask, (0, 1), value=True)
        self._positions = self._positions + 1
        found = self._forward.run(tokens[:, None], self._mask, {"position_ids": self._positions}, self._cache)
        return found.hidden[:, 0]

    def compact(self, live: Tensor) -> Tensor:
        index = live.nonzero()[:, 0]
        self._cache.reorder_cache(index)
        self._positions, self._mask = self._positions[..., index, :], self._mask[index]
        return index


class JoinedDecoding:
    """Several decodings as one, with their slots one after the other."""

    def __init__(self, parts: Sequence[OwnDecoding]) -> None:
        self._parts = list(parts)
        self._sizes = [len(part.rows) for part in parts]
        self.rows = torch.cat([part.rows for part in parts])

    def advance(self, tokens: Tensor) -> Tensor:
        return torch.cat([part.advance(own) for part, own in zip(self._parts, tokens.split(self._sizes), strict=True)])

    def compact(self, live: Tensor) -> Tensor:
        parts, sizes, found, start = [], [], [], 0
        for part, own in zip(self._parts, live.split(self._sizes), strict=True):
            if bool(own.any()):
                index = part.compact(own)
                parts.append(part)
                sizes.append(len(index))
                found.append(index + start)
            start += len(own)
        self._parts, self._sizes = parts, sizes
        return torch.cat(found)
