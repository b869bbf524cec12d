"""Attention with its logsumexp, forward and backward, by PyTorch's own kernels."""

from __future__ import annotations

import torch
from torch import Tensor


def flash(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
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


def flash_backward(
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
