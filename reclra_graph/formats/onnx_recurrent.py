"""ONNX's recurrent layers: their weights in torch's order, and what torch's own layers cannot do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from onnx import NodeProto, TensorProto, numpy_helper
from torch import Tensor

# Positions of ONNX's gates in torch's order: i o f c → i f g o, z r h → r z n.
RECURRENT = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
STATES = (4, 5, 6)
"""Positions of the inputs of a recurrent layer that are no weights: lengths, and states to start from."""
_USUAL = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
_KNOWN = {"activations", "direction", "hidden_size", "layout", "linear_before_reset", "input_forget", "output_sequence"}


def recurrent_refuses(node: NodeProto, attributes: Mapping[str, Any], weights: set[str]) -> str:
    """Why this layer cannot be read, "" where it can."""
    kind = node.op_type
    strange = sorted(attributes.keys() - _KNOWN)
    if strange:
        return f"{kind}: attribute {', '.join(strange)}"
    ways = 2 if attributes.get("direction") == "bidirectional" else 1
    allowed = [_USUAL[kind] * ways, *([["Relu"] * ways] if kind == "RNN" else [])]
    if attributes.get("activations", allowed[0]) not in allowed:
        return f"{kind}: activations {', '.join(attributes['activations'])}"
    if kind == "GRU" and not attributes.get("linear_before_reset"):
        return "GRU: linear_before_reset is 0"
    for name in ("layout", "input_forget"):
        if attributes.get(name):
            return f"{kind}: {name} is 1"
    given = dict(enumerate(node.input))
    if any(given.get(index, "") not in weights for index in (1, 2)) or (given.get(3) and given[3] not in weights):
        return f"{kind}: weights that are computed"
    if given.get(4):
        return f"{kind}: lengths of sequences"
    return "LSTM: peepholes" if given.get(7) else ""


def recurrent_weights(
    node: NodeProto, attributes: Mapping[str, Any], weights: Mapping[str, TensorProto]
) -> tuple[str, list[tuple[str, Tensor]], dict[str, Any]]:
    """(rule for ``layers.recurrent``, the weights by the names that torch gives them, its keywords)."""
    kind = node.op_type
    order = RECURRENT[kind]
    arrays = [numpy_helper.to_array(weights[name]) if name else None for name in node.input[1:4]]
    w, r, b = (*arrays, None)[:3]
    assert w is not None
    assert r is not None
    hidden = int(attributes.get("hidden_size", r.shape[-1]))
    named = []
    for way, suffix in zip(range(w.shape[0]), ("", "_reverse"), strict=False):
        parts = [("weight_ih_l0", w[way]), ("weight_hh_l0", r[way])]
        if b is not None:
            parts += [("bias_ih_l0", b[way][: len(order) * hidden]), ("bias_hh_l0", b[way][len(order) * hidden :])]
        for name, array in parts:
            gates = np.split(array, len(order))
            named.append((name + suffix, torch.from_numpy(np.concatenate([gates[gate] for gate in order]))))
    rule = kind if kind != "RNN" else f"RNN_{attributes.get('activations', ['Tanh'])[0].upper()}"
    keywords = {"hidden_size": hidden, "direction": attributes.get("direction", "forward")}
    return rule, named, keywords
