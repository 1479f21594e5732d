"""Target propagation and equilibrium propagation in numpy, one sample at a time, float64: oracles written from the
papers' formulas, sharing no code with the package.

A net is fully connected: h_l = W_l z_{l−1} + b_l, z_l = φ_l(h_l), layers 1..L in lists that begin with layer 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]

PHI = {
    "tanh": np.tanh,
    "identity": lambda h: h,
    "hard": lambda h: np.clip(h, 0.0, 1.0),
}
SLOPE = {
    "tanh": lambda h: 1.0 - np.tanh(h) ** 2,
    "identity": lambda h: np.ones_like(h),
    "hard": lambda h: ((h > 0.0) & (h < 1.0)).astype(np.float64),
}


@dataclass
class Layers:
    W: list[Array]
    b: list[Array]
    phi: list[str]

    def __len__(self) -> int:
        return len(self.W)

    def apply(self, layer: int, z: Array) -> Array:
        """z_l of z_{l−1}, for layer 1..L."""
        return np.asarray(PHI[self.phi[layer - 1]](self.W[layer - 1] @ z + self.b[layer - 1]))


def output_error(loss: str, z: Array, target: int | Array) -> Array:
    """The derivative of one sample's loss by the output."""
    if loss == "mse":
        return np.asarray(z - target)
    raised = np.exp(z - z.max())
    raised /= raised.sum()
    raised[target] -= 1.0
    return np.asarray(raised)


# -- target propagation ------------------------------------------------------------------------------------------------


@dataclass
class Inverses:
    """G_l for some layers l: ψ(V_l z_l + c_l); ψ is that of the layer whose output it gives."""

    V: dict[int, Array] = field(default_factory=dict)
    c: dict[int, Array] = field(default_factory=dict)
    psi: dict[int, str] = field(default_factory=dict)

    def apply(self, layer: int, z: Array) -> Array:
        return np.asarray(PHI[self.psi[layer]](self.V[layer] @ z + self.c[layer]))


@dataclass
class Moves:
    """What one sample asks for, to be subtracted: by layer, of f and of G."""

    W: list[Array]
    b: list[Array]
    V: dict[int, Array]
    c: dict[int, Array]


def target_propagation(
    net: Layers, inverses: Inverses, x: Array, target: int, difference: bool, first: str, rate: float,
    noise: dict[int, Array],
) -> Moves:  # fmt: skip
    """Algorithm 1 of Lee et al. 2015 for one sample; ``noise[l]`` is the ε at z_{l−1} with which G_l learns."""
    z = [x]
    for layer in range(1, len(net) + 1):
        z.append(net.apply(layer, z[-1]))
    last = len(net)
    e = output_error("cross-entropy", z[last], target)
    y: dict[int, Array] = {}
    if first == "output":
        y[last] = z[last] - rate * e
        at = last
    else:
        cotangent = e * SLOPE[net.phi[last - 1]](net.W[last - 1] @ z[last - 1] + net.b[last - 1])
        y[last - 1] = z[last - 1] - rate * (net.W[last - 1].T @ cotangent)
        at = last - 1
    for layer in range(at, 1, -1):
        y[layer - 1] = inverses.apply(layer, y[layer])
        if difference:
            y[layer - 1] += z[layer - 1] - inverses.apply(layer, z[layer])
    moves = Moves([], [], {}, {})
    for layer in range(1, last + 1):
        error = e if layer == last else z[layer] - y[layer]
        delta = error * SLOPE[net.phi[layer - 1]](net.W[layer - 1] @ z[layer - 1] + net.b[layer - 1])
        moves.W.append(np.outer(delta, z[layer - 1]))
        moves.b.append(delta)
    for layer in inverses.V:
        around = z[layer - 1] + noise[layer]
        seen = net.apply(layer, around)
        a = inverses.V[layer] @ seen + inverses.c[layer]
        delta = (PHI[inverses.psi[layer]](a) - around) * SLOPE[inverses.psi[layer]](a)
        moves.V[layer], moves.c[layer] = np.outer(delta, seen), delta
    return moves


# -- equilibrium propagation -------------------------------------------------------------------------------------------


def relax(
    net: Layers, s: Sequence[Array], x: Array, steps: int, rate: float, loss: str, beta: float = 0.0,
    target: int | Array = 0,
) -> list[Array]:  # fmt: skip
    """s_l ← (1 − ε) s_l + ε φ_l(W_l s_{l−1} + b_l + W_{l+1}ᵀ s_{l+1} − β ∂C/∂s_l), all layers at once."""
    states = [np.array(item) for item in s]
    for _ in range(steps):
        new = []
        for layer in range(len(net)):
            below = x if layer == 0 else states[layer - 1]
            pull = net.W[layer] @ below + net.b[layer]
            if layer + 1 < len(net):
                pull = pull + net.W[layer + 1].T @ states[layer + 1]
            elif beta:
                pull = pull - beta * output_error(loss, states[layer], target)
            new.append((1 - rate) * states[layer] + rate * PHI[net.phi[layer]](pull))
        states = new
    return states


def equilibrium_propagation(
    net: Layers, x: Array, target: int | Array, loss: str, beta: float, free_steps: int, clamped_steps: int,
    rate: float, forward: bool,
) -> tuple[list[Array], list[Array], Array]:  # fmt: skip
    """(for W_l and for b_l, to be subtracted; the free output) of one sample: −(1/β)(sᵝ s′ᵝᵀ − s⁰ s′⁰ᵀ)."""
    start = []
    z = x
    for layer in range(1, len(net) + 1):
        z = net.apply(layer, z)
        start.append(z if forward else np.zeros_like(z))
    free = relax(net, start, x, free_steps, rate, loss)
    clamped = relax(net, free, x, clamped_steps, rate, loss, beta, target)
    weights, biases = [], []
    for layer in range(len(net)):
        one = np.outer(free[layer], x if layer == 0 else free[layer - 1])
        other = np.outer(clamped[layer], x if layer == 0 else clamped[layer - 1])
        weights.append(-(other - one) / beta)
        biases.append(-(clamped[layer] - free[layer]) / beta)
    return weights, biases, free[-1]
