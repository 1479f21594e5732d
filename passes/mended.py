"""A mistake of PyTorch's that would make captured graphs wrong, mended while a model is traced."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

from torch._decomp import decompositions

_LAYERS = ("one_layer_lstm", "mkldnn_one_layer_lstm")


@contextlib.contextmanager
def mended() -> Iterator[None]:
    """``nn.LSTM``'s last states have the shape that they have outside of tracing.

    In torch 2.11 the form of ``aten.lstm`` that tracing uses returns states with one dimension too many: it squeezes
    the batch's dimension in place of the first (``one_layer_lstm``: ``hx.squeeze(1)``).
    """
    originals = {name: getattr(decompositions, name) for name in _LAYERS}
    for name, layer in originals.items():
        setattr(decompositions, name, _flat_states(layer))
    try:
        yield
    finally:
        for name, layer in originals.items():
            setattr(decompositions, name, layer)


def _flat_states(layer: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(layer)
    def mended_layer(*args: Any, **kwargs: Any) -> Any:
        out, states = layer(*args, **kwargs)
        # [B, H] each; with a batch of one, the wrong squeeze gives that too.
        return out, tuple(state.squeeze(0) if state.dim() == 3 else state for state in states)

    return mended_layer
