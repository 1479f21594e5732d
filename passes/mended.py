"""Mistakes of PyTorch's that are in the way of tracing, mended while a model is traced."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import _meta_registrations
from torch._decomp import decompositions

_GROUPED = "_meta_grouped_mm_common"
_LAYERS = ("one_layer_lstm", "mkldnn_one_layer_lstm")


@contextlib.contextmanager
def mended() -> Iterator[None]:
    """``nn.LSTM``'s last states have the shape that they have outside of tracing.

    In torch 2.11 the form of ``aten.lstm`` that tracing uses returns states with one dimension too many: it squeezes
    the batch's dimension in place of the first (``one_layer_lstm``: ``hx.squeeze(1)``). Grouped products of float32,
    which run, can be traced.
    """
    originals = {name: getattr(decompositions, name) for name in _LAYERS}
    for name, layer in originals.items():
        setattr(decompositions, name, _flat_states(layer))
    grouped = getattr(_meta_registrations, _GROUPED, None)
    if grouped is not None:
        setattr(_meta_registrations, _GROUPED, _any_dtype(grouped))
    try:
        yield
    finally:
        if grouped is not None:
            setattr(_meta_registrations, _GROUPED, grouped)
        for name, layer in originals.items():
            setattr(decompositions, name, layer)


def _any_dtype(meta: Callable[..., Any]) -> Callable[..., Any]:
    """Sizes of grouped products (experts' layers) are told for all dtypes that the kernels take, not bfloat16 alone."""

    @functools.wraps(meta)
    def mended_meta(first: Any, second: Any, *args: Any, **kwargs: Any) -> Any:
        as_checked = meta(first.to(torch.bfloat16), second.to(torch.bfloat16), *args, **kwargs)
        return as_checked.to(kwargs.get("out_dtype") or first.dtype)

    return mended_meta


def _flat_states(layer: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(layer)
    def mended_layer(*args: Any, **kwargs: Any) -> Any:
        out, states = layer(*args, **kwargs)
        # [B, H] each; with a batch of one, the wrong squeeze gives that too.
        return out, tuple(state.squeeze(0) if state.dim() == 3 else state for state in states)

    return mended_layer
