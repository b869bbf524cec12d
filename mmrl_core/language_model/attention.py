"""Attention in which the completions of a group share their prompt: the prompt is computed once, exactly.

Prompts and completions of a batch are one sequence without padding. Each completion attends to its prompt and to
its own past, never to the other completions. `Packing` gives the place of every token, `PackedAttention` computes that
attention. `SharedDecoding` does the same for the next token of every completion while sampling.

Model code is not changed. `share_prefix` registers an attention function with transformers that hands over to the
layout it is given, and computes plain attention without one. The layout travels as a keyword argument through the
decoder, so that it is there again when activation checkpointing runs a layer a second time.

An attention over prompt and completion is computed in two parts, each with its logsumexp, and merged:

    o = o_prompt * exp(l_prompt - l) + o_self * exp(l_self - l),    l = log(exp(l_prompt) + exp(l_self))

The part over the prompt reads the prompt's keys in place, whatever the size of the group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

from mmrl_core.language_model.kernels import flash, flash_backward
from mmrl_core.language_model.packing import Packing, Part

ATTENTION = "mmrl_shared_prefix"
"""Name of the attention function in transformers."""


class Layout(Protocol):
    """Computes the attention of one layer from the places of prompts and completions."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        """query [b, heads, s, d], key and value [b, kv_heads, s, d] -> [b, s, heads, d]."""
        ...


def share_prefix(model: Any) -> str | None:
    """Let the text decoder of a transformers model take layouts, if its attention allows it.

    Args:
        model: loaded with attention "sdpa".

    Returns:
        None, or why the model must run every completion whole. It is then left as it was.
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
    """Compare a short forward with layouts against a plain one. Architectures differ in ways that no list foresees."""
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
            shared = run_decoder(decoder, embed(ids[None]), positions[None], PackedAttention(packing))[0, 7:]
        expected = torch.cat(whole)
        difference = float((shared - expected).norm() / expected.norm())
    except Exception as error:  # whatever an unknown architecture raises, there is the plain way
        return f"its decoder does not take a layout ({type(error).__name__}: {error})".splitlines()[0]
    finally:
        model.train(training)
    limit = 1e-4 if expected.dtype == torch.float32 else 0.05
    return None if difference < limit else f"a shared prompt changes its results (by {difference:.1g} of their size)"


def run_decoder(decoder: Any, embeddings: Tensor, positions: Tensor, layout: Layout, **besides: Any) -> Tensor:
    """Hidden states [b, s, hidden] of a text decoder that `share_prefix` prepared.

    Args:
        decoder: of transformers.
        embeddings: [b, s, hidden].
        positions: int64 [b, s], or [axes, b, s].
        layout: computes the attention of each layer.
        besides: what else the decoder takes, such as features that enter its layers.
    """
    no_mask = embeddings.new_zeros(1, 1, 1, 1)  # a mask of four dimensions is passed on as it is; layouts need none
    return decoder(
        inputs_embeds=embeddings,
        position_ids=positions,
        attention_mask=no_mask,
        use_cache=False,
        layout=layout,
        **besides,
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
    """Attention function that transformers calls in each layer."""
    if layout is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        options |= {"scaling": scaling, "sliding_window": sliding_window}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    dtype = torch.get_autocast_dtype(query.device.type) if torch.is_autocast_enabled(query.device.type) else value.dtype
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return layout.attend(module.layer_idx, query, key, value, scale, sliding_window), None


Masks = list[tuple[Tensor, Tensor]]
"""For each prompt: places of its and its completions' tokens, and bool [1, 1, tokens, tokens], which sees which."""


class PackedAttention:
    """The attention over a packing: a `Layout`.

    Attributes:
        packing: places of prompts and completions.
        keys: layer -> keys and values [S, kv_heads, d] of its last call, for decoding, or None if they are not kept.
    """

    def __init__(self, packing: Packing, *, keep_keys: bool = False) -> None:
        self.packing = packing
        self.keys: dict[int, tuple[Tensor, Tensor]] | None = {} if keep_keys else None
        self._masks: dict[int, list[Masks]] = {}  # window -> masks of each part

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        """See `Layout.attend`; b is 1 and s is S."""
        parts = self.packing.parts
        query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # [S, heads, d]
        if self.keys is not None:
            self.keys[layer] = (key, value)
        if window is None or all(part.longest <= window for part in parts):
            return _SharedPrefixAttention.apply(query, key, value, scale, parts)[None]
        if window not in self._masks:
            self._masks[window] = [_window_masks(part, window) for part in parts]
        pieces = [
            _attend_masked(part, masks, query, key, value, scale)
            for part, masks in zip(parts, self._masks[window], strict=True)
        ]
        prompts, completions = zip(*pieces, strict=True)
        return torch.cat([*prompts, *completions])[None]

    def keys_at(self, places: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
        """Kept keys and values of each layer at int64 [n, p] places, [n, kv_heads, p, d]; undefined outside."""
        assert self.keys is not None
        places = places.clamp(0, self.packing.num_tokens - 1)
        return {
            layer: (key[places].transpose(1, 2).contiguous(), value[places].transpose(1, 2).contiguous())
            for layer, (key, value) in self.keys.items()
        }


def _attend_masked(
    part: Part, masks: Masks, query: Tensor, key: Tensor, value: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention of a part's prompts and of its completions, [tokens, heads, d], as the masks say."""
    prompts, completions = [], []
    for index, mask in masks:
        q, k, v = (tensor[index].transpose(0, 1)[None] for tensor in (query, key, value))
        out = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=q.shape != k.shape)
        out = out[0].transpose(0, 1)
        prompts.append(out[: part.prompt_length])
        completions.append(out[part.prompt_length :])
    return torch.cat(prompts), torch.cat(completions)


def _window_masks(part: Part, window: int) -> Masks:
    """Each token sees `window` tokens back, itself among them."""
    masks = []
    prompt_start, row_start = part.prompt_start, part.row_start
    for lengths in part.row_lengths:
        num_tokens = sum(lengths)
        places = [
            torch.arange(prompt_start, prompt_start + part.prompt_length),
            torch.arange(row_start, row_start + num_tokens),
        ]
        order = torch.cat([torch.arange(part.prompt_length), *(part.prompt_length + torch.arange(n) for n in lengths)])
        owner = torch.repeat_interleave(torch.arange(len(lengths) + 1), torch.tensor([part.prompt_length, *lengths]))
        back = order[:, None] - order[None, :]
        sees = (back >= 0) & (back < window) & ((owner[:, None] == owner[None, :]) | (owner[None, :] == 0))
        masks.append((torch.cat(places).to(part.device), sees[None, None].to(part.device)))
        prompt_start += part.prompt_length
        row_start += num_tokens
    return masks


class _SharedPrefixAttention(torch.autograd.Function):
    """query [S, heads, d], key and value [S, kv_heads, d] -> [S, heads, d]. Padding never leaves it."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, parts: Sequence[Part]) -> Tensor:
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        heads, kv_heads = query.shape[1], key.shape[1]
        saved = []
        for part in parts:
            k, v = part.prompt_view(key), part.prompt_view(value)
            own, norm = flash(part.prompt_view(query), k, v, True, scale)
            out[part.prompts] = own.transpose(1, 2).flatten(0, 1)
            saved.append(norm)
            if part.completions.stop == part.completions.start:
                continue
            q = query[part.completions]
            over_prompt, prompt_norm = flash(part.folded(q, kv_heads), k, v, False, scale)
            own_key, own_value = part.row_view(key[part.completions]), part.row_view(value[part.completions])
            over_self, self_norm = flash(part.row_view(q), own_key, own_value, True, scale)
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
            of_prompt = list(flash_backward(g, q, k, v, o, next(norms), True, ctx.scale))
            if part.completions.stop > part.completions.start:
                norm = next(norms)
                rows = part.completions
                q, o, g = (part.folded(tensor[rows], kv_heads) for tensor in (query, out, grad))
                folded_norm = part.folded(norm, kv_heads)
                from_prompt, *to_keys = flash_backward(g, q, k, v, o, folded_norm, False, ctx.scale)
                of_prompt[1:] = [one + other for one, other in zip(of_prompt[1:], to_keys, strict=True)]
                q, k, v, o, g = (part.row_view(tensor[rows]) for tensor in (query, key, value, out, grad))
                own = flash_backward(g, q, k, v, o, part.row_view(norm), True, ctx.scale)
                grads[0][rows] = part.unfolded(from_prompt, heads) + part.row_tokens(own[0])
                grads[1][rows], grads[2][rows] = part.row_tokens(own[1]), part.row_tokens(own[2])
            for target, value_of_prompt in zip(grads, of_prompt, strict=True):
                target[part.prompts] = value_of_prompt.transpose(1, 2).flatten(0, 1)
        return (*grads, None, None)
