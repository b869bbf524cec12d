"""Attention in which the completions of a group share their prompt: the prompt is computed once, exactly.

Prompts and completions of a batch stand in one sequence without padding. Each completion attends to its prompt and to
its own past, never to the other completions. `Packing` says where everything stands and computes that attention;
`SharedDecoding` does the same for the next token of every completion while sampling.

Model code is not changed. `share_prefix` registers an attention function with transformers that hands over to the
layout it is given, and computes plain attention without one. The layout travels as a keyword argument through the
decoder, so that it is there again when activation checkpointing runs a layer a second time.

An attention over prompt and completion is computed in two parts, each with its logsumexp, and merged:

    o = o_prompt * exp(l_prompt - l) + o_self * exp(l_self - l),    l = log(exp(l_prompt) + exp(l_self))

The part over the prompt reads the prompt's keys in place, whatever the size of the group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

ATTENTION = "mmrl_shared_prefix"
"""Name of the attention function in transformers."""

FIRST_CAPACITY = 32
"""Completion tokens that the key/value cache holds at first; it doubles when full."""


class Layout(Protocol):
    """Computes the attention of one layer; knows where prompts and completions stand."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        """query [b, heads, s, d], key and value [b, kv_heads, s, d] -> [b, s, heads, d]."""
        ...


def share_prefix(model: Any) -> str | None:
    """Let the text decoder of a transformers model take layouts, if its attention allows it.

    Args:
        model: loaded with attention "sdpa".

    Returns:
        None, or why the model must run every completion whole; it is then left as it was.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

    config = model.config.get_text_config()
    if reason := _limitation(model, config):
        return reason
    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    plain = config._attn_implementation
    config._attn_implementation = ATTENTION
    if reason := _difference(model):
        config._attn_implementation = plain
    return reason


def _limitation(model: Any, config: Any) -> str | None:
    if config._attn_implementation != "sdpa":
        return f"model.attention is {config._attn_implementation!r}, and prompts are shared with 'sdpa' only"
    kinds = set(getattr(config, "layer_types", None) or []) - {"full_attention", "sliding_attention"}
    if kinds:
        return f"it has layers of kind {', '.join(sorted(kinds))}"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return "its attention caps logits"
    if any(hasattr(module, "sinks") for module in model.modules()):
        return "its attention has sinks"
    return None


def _difference(model: Any) -> str | None:
    """Compare a short forward with layouts against a plain one; architectures differ in ways no list foresees."""
    decoder, embed = model.get_decoder(), model.get_input_embeddings()
    num_ids = embed.weight.shape[0]
    prompt, completions = torch.arange(7) % num_ids, [torch.arange(3, 7) % num_ids, torch.arange(9, 11) % num_ids]
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            whole = []
            for completion in completions:
                ids = torch.cat([prompt, completion]).to(embed.weight.device)
                whole.append(decoder(inputs_embeds=embed(ids[None]), use_cache=False).last_hidden_state[0, 7:])
            ids = torch.cat([prompt, *completions]).to(embed.weight.device)
            positions = torch.cat([torch.arange(7), 7 + torch.arange(4), 7 + torch.arange(2)]).to(ids.device)
            packing = Packing([7], [4, 2], [0, 0], ids.device)
            shared = run_decoder(decoder, embed(ids[None]), positions[None], packing)[0, 7:]
        expected = torch.cat(whole)
        difference = float((shared - expected).norm() / expected.norm())
    except Exception as error:  # whatever an unknown architecture raises, there is the plain way
        return f"its decoder does not take a layout ({type(error).__name__}: {error})".splitlines()[0]
    finally:
        model.train(training)
    limit = 1e-4 if expected.dtype == torch.float32 else 0.05
    return None if difference < limit else f"a shared prompt changes its results (by {difference:.1g} of their size)"


def run_decoder(decoder: Any, embeddings: Tensor, positions: Tensor, layout: Layout) -> Tensor:
    """Hidden states [b, s, hidden] of a text decoder that `share_prefix` prepared.

    Args:
        decoder: of transformers.
        embeddings: [b, s, hidden].
        positions: int64 [b, s], or [axes, b, s].
        layout: where the tokens stand.
    """
    no_mask = embeddings.new_zeros(1, 1, 1, 1)  # a mask of four dimensions is passed on as it is; layouts need none
    return decoder(
        inputs_embeds=embeddings, position_ids=positions, attention_mask=no_mask, use_cache=False, layout=layout
    ).last_hidden_state


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    layout: Layout | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in each layer."""
    if layout is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        options |= {"scaling": scaling, "sliding_window": sliding_window}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    dtype = torch.get_autocast_dtype(query.device.type) if torch.is_autocast_enabled(query.device.type) else value.dtype
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return layout.attend(module.layer_idx, query, key, value, scale, sliding_window), None


class Packing:
    """A batch as one sequence: all prompts, shortest first, then all completions in the order of their prompts.

    Attributes:
        prompt_order: prompts as they stand in the sequence, as indices of those given.
        row_order: likewise the completions.
        prompt_starts, row_starts: place of the first token of each prompt and completion, in the order given.
        num_tokens: S.
    """

    def __init__(
        self,
        prompt_lengths: Sequence[int],
        row_lengths: Sequence[int],
        row_prompts: Sequence[int],
        device: torch.device,
        *,
        keep_keys: bool = False,
    ) -> None:
        """Lay out N prompts and B completions.

        Args:
            prompt_lengths: tokens of each prompt.
            row_lengths: tokens of each completion; 0 is allowed.
            row_prompts: which prompt each completion follows.
            device: of the sequence.
            keep_keys: keep each layer's keys and values in `keys`, for decoding.
        """
        self.prompt_order = sorted(range(len(prompt_lengths)), key=lambda i: prompt_lengths[i])
        rank = {prompt: place for place, prompt in enumerate(self.prompt_order)}
        self.row_order = sorted(range(len(row_lengths)), key=lambda i: rank[row_prompts[i]])
        self.prompt_starts = _starts(prompt_lengths, self.prompt_order, 0)
        num_prompt_tokens = sum(prompt_lengths)
        self.row_starts = _starts(row_lengths, self.row_order, num_prompt_tokens)
        self.num_tokens = num_prompt_tokens + sum(row_lengths)
        self.keys: dict[int, tuple[Tensor, Tensor]] | None = {} if keep_keys else None
        rows_of: list[list[int]] = [[] for _ in prompt_lengths]
        for row in self.row_order:
            rows_of[row_prompts[row]].append(row_lengths[row])
        self._parts: list[_Part] = []
        prompt_start, row_start = 0, num_prompt_tokens
        for length, same in groupby(self.prompt_order, key=lambda i: prompt_lengths[i]):
            lengths = [rows_of[prompt] for prompt in same]
            part = _Part(len(lengths), length, prompt_start, row_start, lengths, device)
            self._parts.append(part)
            prompt_start, row_start = part.prompts.stop, part.completions.stop

    def keys_at(self, places: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
        """Kept keys and values of each layer at int64 [n, p] places, [n, kv_heads, p, d]; places outside give any."""
        assert self.keys is not None
        places = places.clamp(0, self.num_tokens - 1)
        return {
            layer: (key[places].transpose(1, 2).contiguous(), value[places].transpose(1, 2).contiguous())
            for layer, (key, value) in self.keys.items()
        }

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # [S, heads, d]
        if self.keys is not None:
            self.keys[layer] = (key, value)
        if window is None or all(part.longest <= window for part in self._parts):
            return _SharedPrefixAttention.apply(query, key, value, scale, self._parts)[None]
        pieces = [part.attend_masked(query, key, value, scale, window) for part in self._parts]
        prompts, completions = zip(*pieces, strict=True)
        return torch.cat([*prompts, *completions])[None]


def _starts(lengths: Sequence[int], order: Sequence[int], start: int) -> list[int]:
    """Place of the first token of each sequence, laid one after the other in `order`."""
    starts = [0] * len(lengths)
    for index in order:
        starts[index] = start
        start += lengths[index]
    return starts


@dataclass
class _Part:
    """Prompts of one length P, n of them, and their completions: a stretch of prompts and a stretch of completions."""

    num_prompts: int
    prompt_length: int
    prompt_start: int
    row_start: int
    row_lengths: list[list[int]]  # of each prompt's completions
    device: torch.device
    _masks: dict[int, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)

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

    def attend_masked(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int
    ) -> tuple[Tensor, Tensor]:
        """Attention of prompts and of completions, [tokens, heads, d], each token seeing `window` tokens back."""
        if window not in self._masks:
            self._masks[window] = self._make_masks(window)
        prompts, completions = [], []
        for index, mask in self._masks[window]:
            q, k, v = (tensor[index].transpose(0, 1)[None] for tensor in (query, key, value))
            out = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=q.shape != k.shape)
            out = out[0].transpose(0, 1)
            prompts.append(out[: self.prompt_length])
            completions.append(out[self.prompt_length :])
        return torch.cat(prompts), torch.cat(completions)

    def _make_masks(self, window: int) -> list[tuple[Tensor, Tensor]]:
        """For each prompt: places of its and its completions' tokens, and bool [1, 1, tokens, tokens] who sees whom."""
        masks = []
        prompt_start, row_start = self.prompt_start, self.row_start
        for lengths in self.row_lengths:
            num_tokens = sum(lengths)
            places = [
                torch.arange(prompt_start, prompt_start + self.prompt_length),
                torch.arange(row_start, row_start + num_tokens),
            ]
            order = torch.cat(
                [torch.arange(self.prompt_length), *(self.prompt_length + torch.arange(n) for n in lengths)]
            )
            owner = torch.repeat_interleave(
                torch.arange(len(lengths) + 1), torch.tensor([self.prompt_length, *lengths])
            )
            back = order[:, None] - order[None, :]
            sees = (back >= 0) & (back < window) & ((owner[:, None] == owner[None, :]) | (owner[None, :] == 0))
            masks.append((torch.cat(places).to(self.device), sees[None, None].to(self.device)))
            prompt_start += self.prompt_length
            row_start += num_tokens
        return masks


class _Padding:
    """Tokens that stand one after the other [t, ...] as lines of one length [lines, longest, ...], and back."""

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


class _SharedPrefixAttention(torch.autograd.Function):
    """query [S, heads, d], key and value [S, kv_heads, d] -> [S, heads, d]. Padding never leaves it."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, parts: Sequence[_Part]) -> Tensor:
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        heads, kv_heads = query.shape[1], key.shape[1]
        saved = []
        for part in parts:
            k, v = part.prompt_view(key), part.prompt_view(value)
            own, norm = _flash(part.prompt_view(query), k, v, True, scale)
            out[part.prompts] = own.transpose(1, 2).flatten(0, 1)
            saved.append(norm)
            if part.completions.stop == part.completions.start:
                continue
            q = query[part.completions]
            over_prompt, prompt_norm = _flash(part.folded(q, kv_heads), k, v, False, scale)
            own_key, own_value = part.row_view(key[part.completions]), part.row_view(value[part.completions])
            over_self, self_norm = _flash(part.row_view(q), own_key, own_value, True, scale)
            prompt_norm, self_norm = part.unfolded(prompt_norm, heads), part.row_tokens(self_norm)  # [t, heads]
            norm = torch.logaddexp(prompt_norm, self_norm)
            merged = part.unfolded(over_prompt, heads) * (prompt_norm - norm).exp()[..., None]
            merged = merged + part.row_tokens(over_self) * (self_norm - norm).exp()[..., None]
            out[part.completions] = merged
            saved.append(norm)
        ctx.save_for_backward(query, key, value, out, *saved)
        ctx.scale, ctx.parts = scale, parts
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # With the merged output and norm, each part's backward sees the probabilities of the whole attention.
        query, key, value, out, *saved = ctx.saved_tensors
        norms = iter(saved)
        grads = tuple(
            torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device) for tensor in (query, key, value)
        )
        heads, kv_heads = query.shape[1], key.shape[1]
        for part in ctx.parts:
            q, k, v, o, g = (part.prompt_view(tensor) for tensor in (query, key, value, out, grad))
            of_prompt = list(_flash_backward(g, q, k, v, o, next(norms), True, ctx.scale))
            if part.completions.stop > part.completions.start:
                norm = next(norms)
                rows = part.completions
                q, o, g = (part.folded(tensor[rows], kv_heads) for tensor in (query, out, grad))
                folded_norm = part.folded(norm, kv_heads)
                from_prompt, *to_keys = _flash_backward(g, q, k, v, o, folded_norm, False, ctx.scale)
                of_prompt[1:] = [one + other for one, other in zip(of_prompt[1:], to_keys, strict=True)]
                q, k, v, o, g = (part.row_view(tensor[rows]) for tensor in (query, key, value, out, grad))
                own = _flash_backward(g, q, k, v, o, part.row_view(norm), True, ctx.scale)
                grads[0][rows] = part.unfolded(from_prompt, heads) + part.row_tokens(own[0])
                grads[1][rows], grads[2][rows] = part.row_tokens(own[1]), part.row_tokens(own[2])
            for target, value_of_prompt in zip(grads, of_prompt, strict=True):
                target[part.prompts] = value_of_prompt.transpose(1, 2).flatten(0, 1)
        return (*grads, None, None)


def _flash(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Attention [b, heads, s, d] and its logsumexp [b, heads, s], in blocks, by PyTorch's own kernels."""
    ops = torch.ops.aten
    if query.device.type == "cpu":
        return ops._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, causal, scale=scale)
    key, value = _expand_heads(key, query.shape[1]), _expand_heads(value, query.shape[1])
    if query.dtype in (torch.float16, torch.bfloat16):
        out, norm, *_ = ops._scaled_dot_product_flash_attention(query, key, value, 0.0, causal, False, scale=scale)
    else:
        out, norm, *_ = ops._scaled_dot_product_efficient_attention(
            query, key, value, None, True, 0.0, causal, scale=scale
        )
    return out, norm[..., : query.shape[2]]


def _flash_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, norm: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value."""
    ops = torch.ops.aten
    if query.device.type == "cpu":
        return ops._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, query, key, value, out, norm, 0.0, causal, scale=scale
        )
    heads, kv_heads = query.shape[1], key.shape[1]
    key, value = _expand_heads(key, heads), _expand_heads(value, heads)
    seed = torch.zeros((), dtype=torch.long)  # of dropout, which is off
    if query.dtype in (torch.float16, torch.bfloat16):
        lengths = (query.shape[2], key.shape[2])
        state = torch.zeros(2, dtype=torch.uint64, device=query.device)
        grads = ops._scaled_dot_product_flash_attention_backward(
            grad, query, key, value, out, norm.contiguous(), None, None, *lengths, 0.0, causal, state, seed, scale=scale
        )
    else:
        norm = torch.nn.functional.pad(norm, (0, -norm.shape[-1] % 32))  # the kernel reads blocks of 32
        grads = ops._scaled_dot_product_efficient_attention_backward(
            grad,
            query,
            key,
            value,
            None,
            out,
            norm.contiguous(),
            seed,
            seed,
            0.0,
            [True] * 3 + [False],
            causal,
            scale=scale,
        )
    of_query, of_key, of_value = grads[:3]
    fold = lambda tensor: tensor.unflatten(1, (kv_heads, -1)).sum(2)  # noqa: E731
    return of_query, fold(of_key), fold(of_value)


def _expand_heads(tensor: Tensor, heads: int) -> Tensor:
    """[b, kv_heads, s, d] -> [b, heads, s, d]."""
    return tensor if tensor.shape[1] == heads else tensor.repeat_interleave(heads // tensor.shape[1], 1)


class Step(Protocol):
    """Runs a decoder on the next token of R sequences."""

    def __call__(self, embeddings: Tensor, positions: Tensor, layout: Layout) -> Tensor:
        """embeddings [R, 1, hidden] at int64 [R, 1] positions -> hidden states [R, 1, hidden]."""
        ...

    def restart(self) -> None:
        """The sequences are others from now on."""
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

    Sequences stand in a grid of N x L, so that those of a prompt meet its keys in one product. A slot whose completion
    has ended is computed on until `compact` takes it out. What stands between a prompt and the first sampled token, in
    a conversation, is aligned on the right: the next token of every sequence has the same place.

    Attributes:
        rows: int64 [N * L], the sequence of each slot, -1 where a slot only fills the grid.
    """

    def __init__(
        self,
        packing: Packing,
        prompt_lengths: Sequence[int],
        row_lengths: Sequence[int],
        row_prompts: Sequence[int],
        next_position: Tensor,
        step: Step,
    ) -> None:
        """Take over the keys of a packing with `keep_keys` on.

        Args:
            packing: made of the following three.
            prompt_lengths, row_lengths, row_prompts: N prompts and R sequences that follow them, as in `Packing`.
            next_position: int64 [R], position of the first token that is sampled.
            step: runs the decoder.
        """
        assert packing.keys is not None
        self._step = step
        device = next_position.device
        self._lengths = torch.tensor(prompt_lengths, device=device)
        rows_of: list[list[int]] = [[] for _ in prompt_lengths]
        for row, prompt in enumerate(row_prompts):
            rows_of[prompt].append(row)
        num_slots = max(map(len, rows_of))
        grid = [[*rows, *[rows[0]] * (num_slots - len(rows))] for rows in rows_of]
        slots = torch.tensor(grid, device=device).flatten()
        is_filler = [place >= len(rows) for rows in rows_of for place in range(num_slots)]
        self.rows = slots.masked_fill(torch.tensor(is_filler, device=device), -1)

        prompts = torch.tensor(packing.prompt_starts, device=device)[:, None]
        steps = torch.arange(max(prompt_lengths), device=device)
        self._padding = _padding(steps < self._lengths[:, None])
        self._prompts = packing.keys_at(prompts + steps)
        self._own_lengths = torch.tensor(row_lengths, device=device)[slots]
        self._num_steps = max(row_lengths)  # places taken in each sequence
        steps = torch.arange(self._num_steps, device=device) - self._num_steps + self._own_lengths[:, None]
        self._own_padding = _padding(steps >= 0)
        starts = torch.tensor(packing.row_starts, device=device)[slots]
        self._own = packing.keys_at(starts[:, None] + steps) if self._num_steps else {}
        self._next_position = next_position[slots]

    def advance(self, embeddings: Tensor) -> Tensor:
        """Append a token to each completion, [N * L, 1, hidden]; what the decoder makes of it, [N * L, 1, hidden]."""
        hidden = self._step(embeddings, self._next_position[:, None], self)
        self._num_steps += 1
        self._own_lengths = self._own_lengths + 1
        self._next_position = self._next_position + 1
        return hidden

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        """One new token for each completion; see `Layout.attend`."""
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
            int64 [N' * L'], the old slot of each new one; slots that only fill the grid repeat one and are marked -1.
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


def _padding(is_token: Tensor) -> Tensor | None:
    """Bool [n, places] -> what added to scores [n, queries, places] hides padding; None if there is none."""
    return None if bool(is_token.all()) else torch.where(is_token, 0.0, -torch.inf)[:, None]
