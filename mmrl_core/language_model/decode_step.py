"""One new token of every sequence through a text decoder, operator by operator.

While sampling, a layer's products are small, and most of the time goes to the code around them: modules calling
modules, rotary angles put together anew in each layer, seven operators for a norm. `DecodeStep` reads the weights of a
decoder of Llama's form (Llama, Mistral, Qwen2, Qwen3 and the multimodal models built on them) and runs its layers
without all that. Whether a decoder is of that form is not taken from a list: its parts must have the names that
are known here, and a token must come out as the decoder's own layers compute it (`steps_alike`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmrl_core.language_model.attention import Layout, PackedAttention, run_decoder
from mmrl_core.language_model.decoding import LayerStep, SharedDecoding
from mmrl_core.language_model.packing import Packing

ANGLES_AHEAD = 32
"""Tokens whose rotary angles are computed at one time."""

_LAYER_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION_PARTS = {"q_proj", "k_proj", "v_proj", "o_proj"}
_HEAD_NORMS = {"q_norm", "k_norm"}
_MLP_PARTS = {"gate_proj", "up_proj", "down_proj", "act_fn"}

Operator = Callable[[Tensor], Tensor]


class DecodeStep:
    """A decoder's layers on one token of each of R sequences.

    Made anew for each rollout: it holds copies of the projections to queries, keys and values, side by side.
    """

    def __init__(self, decoder: Any) -> None:
        """
        Raises:
            AttributeError: the decoder is not of the form that is known here.
        """
        settings = _Settings()
        weight = decoder.norm.weight
        run_decoder(decoder, weight.new_zeros(1, 1, len(weight)), weight.new_zeros(1, 1, dtype=torch.long), settings)
        self._layers = [_Layer.of(layer, *settings.of[index]) for index, layer in enumerate(decoder.layers)]
        self._norm = _norm(decoder.norm)
        self._rotary = decoder.rotary_emb
        if self._rotary.rope_type != "default":  # others look at the length so far
            raise AttributeError("rotary angles that are not fixed")
        self._angles: tuple[Tensor, Tensor] | None = None
        self._places_left = 0

    def __call__(self, embeddings: Tensor, positions: Tensor, layout: Layout) -> Tensor:
        """Hidden states [R, 1, hidden].

        Args:
            embeddings: [R, 1, hidden].
            positions: int64 [R, 1], one more in each call unless `restart` was called between.
            layout: keys and values so far.
        """
        cos, sin = self._next_angles(embeddings, positions)
        hidden = embeddings[:, 0]
        for index, layer in enumerate(self._layers):
            hidden = hidden + layer.attention(index, layer.before_attention(hidden), cos, sin, layout)
            hidden = hidden + layer.mlp(layer.before_mlp(hidden))
        return self._norm(hidden)[:, None]

    def restart(self) -> None:
        """Begin with other sequences."""
        self._places_left = 0

    def _next_angles(self, embeddings: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines, and sines with the signs of `rotate_half`, [R, 1, d]."""
        if not self._places_left:
            ahead = positions + torch.arange(ANGLES_AHEAD, device=positions.device)
            cos, sin = self._rotary(embeddings, ahead)  # [R, ANGLES_AHEAD, d]
            low, high = sin.chunk(2, -1)
            self._angles = cos, torch.cat([-low, high], -1)
            self._places_left = ANGLES_AHEAD
        assert self._angles is not None
        place = ANGLES_AHEAD - self._places_left
        self._places_left -= 1
        cos, sin = self._angles
        return cos[:, place : place + 1], sin[:, place : place + 1]


class _Settings:
    """A layout that records the scale and the window of each layer."""

    def __init__(self) -> None:
        self.of: dict[int, tuple[float, int | None]] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        self.of[layer] = scale, window
        return torch.zeros_like(query.transpose(1, 2))


@dataclass(frozen=True)
class _Layer:
    """Operators of a layer on [R, hidden]."""

    before_attention: Operator
    project: Operator  # to [R, (heads + 2 kv_heads) * d]
    head_norms: tuple[Operator, Operator] | None
    output: Operator
    before_mlp: Operator
    mlp: Operator
    head_dim: int
    kv_heads: int
    scale: float
    window: int | None

    @classmethod
    def of(cls, layer: Any, scale: float, window: int | None) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        _require(layer, _LAYER_PARTS)
        has_head_norms = hasattr(attention, "q_norm")
        _require(attention, _ATTENTION_PARTS | (_HEAD_NORMS if has_head_norms else set()))
        _require(mlp, _MLP_PARTS)
        dim = attention.head_dim
        gate, up, down = map(_product, (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
        activation = mlp.act_fn
        return cls(
            before_attention=_norm(layer.input_layernorm),
            project=_joined(attention.q_proj, attention.k_proj, attention.v_proj),
            head_norms=(_norm(attention.q_norm), _norm(attention.k_norm)) if has_head_norms else None,
            output=_product(attention.o_proj),
            before_mlp=_norm(layer.post_attention_layernorm),
            mlp=lambda x: down(activation(gate(x)).mul_(up(x))),
            head_dim=dim,
            kv_heads=attention.k_proj.out_features // dim,
            scale=scale,
            window=window,
        )

    def attention(self, index: int, hidden: Tensor, cos: Tensor, sin: Tensor, layout: Layout) -> Tensor:
        heads = self.project(hidden).unflatten(-1, (-1, self.head_dim))  # [R, heads + 2 kv_heads, d]
        turned, value = heads.split([heads.shape[1] - self.kv_heads, self.kv_heads], 1)
        if self.head_norms is not None:
            query, key = turned.split([turned.shape[1] - self.kv_heads, self.kv_heads], 1)
            turned = torch.cat([self.head_norms[0](query), self.head_norms[1](key)], 1)
        turned = torch.addcmul(turned * cos, turned.roll(self.head_dim // 2, -1), sin)
        query, key = turned.split([turned.shape[1] - self.kv_heads, self.kv_heads], 1)
        attended = layout.attend(index, query[:, :, None], key[:, :, None], value[:, :, None], self.scale, self.window)
        return self.output(attended.flatten(1))


def _require(module: nn.Module, names: set[str]) -> None:
    if found := {name for name, _ in module.named_children()} ^ names:
        raise AttributeError(f"{type(module).__name__} with or without {', '.join(sorted(found))}")


def _is_plain(linear: Any) -> bool:
    """Whether a linear layer is just its weight and bias: no adapter around it, no quantised weight."""
    return type(linear) is nn.Linear and type(linear.weight) is nn.Parameter


def _product(linear: Any) -> Operator:
    if not _is_plain(linear):
        return linear
    weight, bias = linear.weight, linear.bias
    return lambda x: nn.functional.linear(x, weight, bias)


def _joined(*linears: Any) -> Operator:
    """Several projections of the same input as one."""
    if not all(map(_is_plain, linears)):
        return lambda x: torch.cat([linear(x) for linear in linears], -1)
    weight = torch.cat([linear.weight.detach().t() for linear in linears], 1).t()  # column by column, as elsewhere
    biases = [linear.bias for linear in linears]
    bias = None if biases[0] is None else torch.cat([bias.detach() for bias in biases])
    kind = weight.device.type
    if torch.is_autocast_enabled(kind):  # it keeps casts of parameters, and would cast this at each token
        weight = weight.to(torch.get_autocast_dtype(kind))
    return lambda x: nn.functional.linear(x, weight, bias)


def _norm(module: Any) -> Operator:
    """A root-mean-square norm as one operator. Any other norm stays as it is."""
    weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
    if weight is None or eps is None or weight.dim() != 1:
        return module
    return lambda x: nn.functional.rms_norm(x, weight.shape, weight, eps)


def steps_alike(model: Any) -> bool:
    """Whether a token of a short text comes out of a `DecodeStep` as out of the decoder's own layers.

    Args:
        model: of transformers, prepared by `share_prefix`.
    """
    decoder, embed = model.get_decoder(), model.get_input_embeddings()
    device, num_ids = embed.weight.device, embed.weight.shape[0]
    ids = torch.arange(3, 10, device=device) % num_ids
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            found = []
            for step in (DecodeStep(decoder), LayerStep(decoder)):
                attention = PackedAttention(Packing([7], [0, 0], [0, 0], device), keep_keys=True)
                run_decoder(decoder, embed(ids[None]), torch.arange(7, device=device)[None], attention)
                decoding = SharedDecoding(attention, torch.tensor([7, 7], device=device), step, embed)
                tokens = torch.tensor([1, 2], device=device) % num_ids
                found.append(torch.cat([decoding.advance(tokens), decoding.advance(tokens.flip(0))], 1))
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):  # another form of decoder
        return False
    finally:
        model.train(training)
    limit = 1e-5 if found[1].dtype == torch.float32 else 0.05
    return float((found[0] - found[1]).norm() / found[1].norm()) < limit
