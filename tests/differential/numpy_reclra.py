"""An independent oracle: Algorithm 1 of the rec-LRA paper (corrected form) in numpy, one sample at a time, float64.

Written from the paper's equations alone and sharing no code with the compiler, so that two readings of the paper are
compared and not one reading with itself. It covers fully connected residual nets: h_l = W_l z_{l-1} + b_l, plus z_{l-g}
(or P_l z_{l-g} where the widths differ) at the layers with a skip; z_l = phi_l(h_l); z_0 = x; the last layer L carries
the loss's error. Vectors are columns as in the paper; an error synapse E[(j, i)] has shape (units of i, units of j).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]
Edge: TypeAlias = tuple[int, int]

_erf = np.vectorize(math.erf, otypes=[np.float64])


def _sigmoid(h: Array) -> Array:
    return np.where(h >= 0, 1.0, np.exp(-np.abs(h))) / (1.0 + np.exp(-np.abs(h)))


PHI: dict[str, Callable[[Array], Array]] = {
    "identity": lambda h: h,
    "tanh": np.tanh,
    "relu": lambda h: np.maximum(h, 0.0),
    "elu": lambda h: np.where(h > 0, h, np.expm1(np.minimum(h, 0.0))),
    "sigmoid": _sigmoid,
    "gelu": lambda h: 0.5 * h * (1.0 + _erf(h / math.sqrt(2.0))),
    "silu": lambda h: h * _sigmoid(h),
    "signum": np.sign,
}


@dataclass
class Network:
    """Parameters by layer number 1..L; ``skip[l]`` is the layer whose z is added to h_l, through ``P[l]`` if given."""

    W: dict[int, Array]
    b: dict[int, Array]
    phi: dict[int, str]
    skip: dict[int, int] = field(default_factory=dict)
    P: dict[int, Array] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        """L, the number of the output layer."""
        return max(self.W)


@dataclass(frozen=True)
class Rule:
    """The numbers and choices of the rule, named as in the paper."""

    loss: str = "cross-entropy"
    lr: float = 0.1
    beta: float = 0.1
    gamma: float = 0.01
    kappa: Mapping[int, float] = field(default_factory=dict)
    norm: int = 2
    sign: str = "descend"
    synapses: str = "eq6"
    gain: bool = False


@dataclass
class Deltas:
    """What one sample (or, averaged, a batch) asks for: dW, db, dP by layer, dE by edge, signed as in the paper."""

    loss: float
    W: dict[int, Array]
    b: dict[int, Array]
    P: dict[int, Array]
    E: dict[Edge, Array]


@dataclass
class Trace:
    """Everything that one sample computes: h, z, y, e by layer and the displacement of every edge."""

    h: dict[int, Array]
    z: dict[int, Array]
    y: dict[int, Array]
    e: dict[int, Array]
    d: dict[Edge, Array]


def forward(net: Network, x: Array) -> tuple[dict[int, Array], dict[int, Array]]:
    """Lines 4 to 10: h_l and z_l of one sample, x of shape (units of the input,)."""
    h: dict[int, Array] = {}
    z = {0: x}
    for layer in range(1, net.depth + 1):
        h[layer] = net.W[layer] @ z[layer - 1] + net.b[layer]
        if layer in net.skip:
            carried = z[net.skip[layer]]
            h[layer] = h[layer] + (net.P[layer] @ carried if layer in net.P else carried)
        z[layer] = PHI[net.phi[layer]](h[layer])
    return h, z


def output_error(loss: str, z: Array, target: Any) -> Array:
    """e_L of one sample: the gradient of its loss with respect to the output z_L."""
    if loss == "cross-entropy":
        raised = np.exp(z - z.max())
        onehot = np.zeros_like(z)
        onehot[int(target)] = 1.0
        return np.asarray(raised / raised.sum() - onehot)
    if loss == "mse":
        return np.asarray(z - target)
    if loss == "bce-with-logits":
        return np.asarray(_sigmoid(z) - target)
    raise ValueError(loss)


def output_loss(loss: str, z: Array, target: Any) -> float:
    """The loss of one sample; features are summed, so that ``output_error`` is its gradient."""
    if loss == "cross-entropy":
        return float(z.max() + np.log(np.exp(z - z.max()).sum()) - z[int(target)])
    if loss == "mse":
        return float(0.5 * np.sum((z - target) ** 2))
    if loss == "bce-with-logits":
        return float(np.sum(np.maximum(z, 0.0) - z * target + np.log1p(np.exp(-np.abs(z)))))
    raise ValueError(loss)


def trace(net: Network, E: Mapping[Edge, Array], rule: Rule, x: Array, target: Any) -> Trace:
    """Forward pass and recursion of one sample; a region aligns once the displacements of all its edges are there."""
    h, z = forward(net, x)
    last = net.depth
    e = {last: rule.kappa.get(last, 1.0) * output_error(rule.loss, z[last], target)}
    y: dict[int, Array] = {}
    d: dict[Edge, Array] = {}

    def align(j: int) -> None:
        for source, i in E:
            if source != j:
                continue
            d[j, i] = E[j, i] @ e[j]
            incoming = [edge for edge in E if edge[1] == i]
            if not all(edge in d for edge in incoming):
                continue
            displacement = np.sum([d[edge] for edge in incoming], axis=0)
            y[i] = PHI[net.phi[i]](h[i] - rule.beta * displacement)
            mismatch = z[i] - y[i] if rule.norm == 2 else np.sign(z[i] - y[i])
            e[i] = rule.kappa.get(i, 1.0) * mismatch
            if rule.gain:
                e[i] = e[i] / rule.beta
            align(i)

    align(last)
    return Trace(h, z, y, e, d)


def sample_deltas(net: Network, E: Mapping[Edge, Array], rule: Rule, x: Array, target: Any) -> Deltas:
    """Eqs. 5 and 6 for one sample."""
    seen = trace(net, E, rule, x, target)
    return Deltas(
        loss=output_loss(rule.loss, seen.z[net.depth], target),
        W={layer: np.outer(error, seen.z[layer - 1]) for layer, error in seen.e.items()},
        b=dict(seen.e),
        P={layer: np.outer(seen.e[layer], seen.z[net.skip[layer]]) for layer in net.P if layer in seen.e},
        E={(j, i): -rule.gamma * np.outer(seen.d[j, i], seen.e[j]) for j, i in E},
    )


def _mean(tables: Iterable[Mapping[Any, Array]]) -> dict[Any, Array]:
    listed = list(tables)
    return {key: np.mean([table[key] for table in listed], axis=0) for key in listed[0]}


def deltas(net: Network, E: Mapping[Edge, Array], rule: Rule, inputs: Array, targets: Array) -> Deltas:
    """Means over the batch, ``inputs`` of shape (batch, units of the input); nothing is changed."""
    each = [sample_deltas(net, E, rule, x, target) for x, target in zip(inputs, targets, strict=True)]
    return Deltas(
        loss=float(np.mean([item.loss for item in each])),
        W=_mean(item.W for item in each),
        b=_mean(item.b for item in each),
        P=_mean(item.P for item in each),
        E=_mean(item.E for item in each),
    )


def train_step(net: Network, E: dict[Edge, Array], rule: Rule, inputs: Array, targets: Array) -> float:
    """One step of plain SGD, in place; every update is computed from the values before the step. Returns the loss."""
    change = deltas(net, E, rule, inputs, targets)
    for mine, theirs in ((net.W, change.W), (net.b, change.b), (net.P, change.P)):
        for layer, delta in theirs.items():
            mine[layer] = mine[layer] - rule.lr * delta
    if rule.synapses == "eq6":
        step = rule.lr if rule.sign == "descend" else -rule.lr
        for edge, delta in change.E.items():
            E[edge] = E[edge] + step * delta
    return change.loss


def discrepancy(net: Network, E: Mapping[Edge, Array], rule: Rule, x: Array, target: Any) -> float:
    """Eq. 2 of one sample over the regions below the output, halved for p = q = 2 so that z - y is its gradient."""
    seen = trace(net, E, rule, x, target)
    total = 0.0
    for i, y in seen.y.items():
        gap = seen.z[i] - y
        total += rule.kappa.get(i, 1.0) * float(np.sum(np.abs(gap)) if rule.norm == 1 else 0.5 * np.sum(gap**2))
    return total
