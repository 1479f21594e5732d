"""ONNX operators that layers are made of: products, attention, normalisation, recurrent layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from reclra_graph.formats.onnx_operators.table import operator

# -- products ---------------------------------------------------------------------------------------------------------


@operator("MatMul")
def _matmul(a: Tensor, b: Tensor) -> Tensor:
    return a @ b


@operator("Gemm")
def _gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    rows = a.T if transA else a
    if transB and alpha == 1.0 and (c is None or (beta == 1.0 and c.ndim == 1)):
        return F.linear(rows, b, c)
    product = rows @ (b.T if transB else b)
    product = product if alpha == 1.0 else alpha * product
    if c is None:
        return product
    return product + (c if beta == 1.0 else beta * c)


@operator(
    "Attention",
    constants=(3,),
    refuses=lambda a: next(
        (f"{name} is {a[name]!r}" for name in ("qk_matmul_output_mode", "softcap") if a.get(name)), ""
    ),
)
def _attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, is_causal: int = 0, q_num_heads: int = 0,
    kv_num_heads: int = 0, scale: float | None = None, softmax_precision: int = 1, softcap: float = 0.0,
    qk_matmul_output_mode: int = 0,
) -> Tensor:  # fmt: skip
    query, key, value = (
        item.reshape(item.shape[0], item.shape[1], count, -1).transpose(1, 2) if item.ndim == 3 else item
        for item, count in ((q, q_num_heads), (k, kv_num_heads), (v, kv_num_heads))
    )
    if is_causal and mask is not None:
        below = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=q.device).tril()
        mask = mask & below if mask.dtype is torch.bool else mask.masked_fill(~below, -math.inf)
    made = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=bool(is_causal) and mask is None, scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip
    return made.transpose(1, 2).flatten(2) if q.ndim == 3 else made


@operator("Einsum")
def _einsum(*values: Tensor, equation: str) -> Tensor:
    return torch.einsum(equation, *values)


# -- normalisation ----------------------------------------------------------------------------------------------------


@operator("BatchNormalization", constants=(3, 4), outputs=3)
def _batch_norm(
    x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor, *, epsilon: float = 1e-5, momentum: float = 0.9,
    training_mode: int = 0, spatial: int = 1, used: int = 1,
) -> Tensor | tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """As saved: with the stored statistics, unless the file was exported in train mode."""
    if not training_mode:
        return F.batch_norm(x, mean, var, scale, bias, False, 0.0, epsilon)
    y = F.batch_norm(x, None, None, scale, bias, True, 0.0, epsilon)
    if used == 1:
        return y
    dims = [0, *range(2, x.ndim)]
    new_mean = mean * momentum + x.mean(dims) * (1 - momentum)
    new_var = var * momentum + x.var(dims, correction=0) * (1 - momentum)
    return y, new_mean, new_var


@operator("InstanceNormalization")
def _instance_norm(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


@operator("LayerNormalization")
def _layer_norm(
    x: Tensor, scale: Tensor, bias: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    shape = list(x.shape[axis % x.ndim :])
    if list(scale.shape) == shape and (bias is None or list(bias.shape) == shape):
        return F.layer_norm(x, shape, scale, bias, epsilon)
    normed = F.layer_norm(x, shape, None, None, epsilon) * scale
    return normed if bias is None else normed + bias


@operator("RMSNormalization")
def _rms_norm(x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1) -> Tensor:
    dims = list(range(axis % x.ndim, x.ndim))
    return x * torch.rsqrt(x.square().mean(dims, keepdim=True) + epsilon) * scale


@operator("GroupNormalization")
def _group_norm(
    x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    return F.group_norm(x, num_groups, scale, bias, epsilon)


@operator("LpNormalization")
def _lp_norm(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    return F.normalize(x, p=float(p), dim=axis, eps=1e-38)


@operator("LRN")
def _local_response_norm(x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Tensor:
    return F.local_response_norm(x, size, alpha, beta, bias)


# -- recurrent layers -------------------------------------------------------------------------------------------------


def recurrent(
    kind: str,
    x: Tensor,
    starts: Sequence[Tensor | None],
    weights: Sequence[Tensor],
    *,
    hidden_size: int,
    direction: str,
) -> tuple[Tensor, ...]:
    """An LSTM, GRU, RNN_TANH or RNN_RELU over x [time, batch, features]; weights in torch's order.

    Returns Y [time, directions, batch, hidden], Y_h [directions, batch, hidden] and, of an LSTM, Y_c.
    """
    ways = 2 if direction == "bidirectional" else 1
    batch = x.shape[1]
    states = [
        x.new_zeros(ways, batch, hidden_size) if start is None else start
        for start in starts[: 2 if kind == "LSTM" else 1]
    ]
    data = x.flip(0) if direction == "reverse" else x
    arguments = (list(weights), len(weights) == 4 * ways, 1, 0.0, False, ways == 2, False)
    if kind == "LSTM":
        y, *last = torch.lstm(data, states, *arguments)
    else:
        run = {"GRU": torch.gru, "RNN_TANH": torch.rnn_tanh, "RNN_RELU": torch.rnn_relu}[kind]
        y, *last = run(data, states[0], *arguments)
    y = y.flip(0) if direction == "reverse" else y
    return (y.reshape(x.shape[0], batch, ways, hidden_size).transpose(1, 2), *last)
