"""An independent oracle for synapse rules beside Eq. 6, on the nets of ``numpy_reclra``: one sample at a time, float64.

    dkp      E <- E - lr gamma z_i e_jT                                 (Webster et al.)
    readout  the same with e' = kappa_L * error of the loss for ET z_i, which takes the place of e_L on edges from L
    mirror   E <- E + lr gamma xi_i (h_j(z_i + xi_i) - h_j(z_i))T / sigma^2      (Akrout et al. 2019)

All are means over the batch, and (1 - lr decay) E takes E's place where synapses decay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.differential.numpy_reclra import PHI, Array, Edge, Network, Rule, forward, output_error, output_loss


@dataclass
class Sample:
    """What one sample asks for: its loss, the error of every layer, and the change of every synapse, to be added."""

    loss: float
    z: dict[int, Array]
    e: dict[int, Array]
    E: dict[Edge, Array]


def rule_of(edge: Edge, rule: str, last: int) -> str:
    """Only the output has a loss to read out."""
    return "dkp" if rule == "readout" and edge[0] != last else rule


def response(net: Network, h: Mapping[int, Array], z: Mapping[int, Array], i: int, j: int, xi: Array) -> Array:
    """What xi at z_i adds to h_j."""
    moved = dict(z)
    moved[i] = moved[i] + xi
    for layer in range(i + 1, j + 1):
        a = net.W[layer] @ moved[layer - 1] + net.b[layer]
        if layer in net.skip:
            carried = moved[net.skip[layer]]
            a = a + (net.P[layer] @ carried if layer in net.P else carried)
        if layer == j:
            return np.asarray(a - h[j])
        moved[layer] = PHI[net.phi[layer]](a)
    raise ValueError((j, i))


def sample(
    net: Network, E: Mapping[Edge, Array], rule: Rule, x: Array, target: Any, noise: Mapping[int, Array], sigma: float
) -> Sample:
    """``noise``: n_i by layer, normal numbers of deviation 1."""
    h, z = forward(net, x)
    last = net.depth
    kappa = rule.kappa.get(last, 1.0)
    e = {last: kappa * output_error(rule.loss, z[last], target)}
    heard: dict[Edge, Array] = {}

    def align(j: int) -> None:
        for source, i in E:
            if source != j:
                continue
            carried = e[j]
            if rule_of((j, i), rule.synapses, last) == "readout":
                carried = kappa * output_error(rule.loss, E[j, i].T @ z[i], target)
            heard[j, i] = carried
            incoming = [edge for edge in E if edge[1] == i]
            if not all(edge in heard for edge in incoming):
                continue
            d = np.sum([E[edge] @ heard[edge] for edge in incoming], axis=0)
            mismatch = z[i] - PHI[net.phi[i]](h[i] - rule.beta * d)
            e[i] = rule.kappa.get(i, 1.0) * (mismatch if rule.norm == 2 else np.sign(mismatch))
            if rule.gain:
                e[i] = e[i] / rule.beta
            align(i)

    align(last)
    change = {}
    for j, i in E:
        if rule.synapses == "mirror":
            xi = sigma * noise[i]
            change[j, i] = rule.gamma * np.outer(xi, response(net, h, z, i, j, xi)) / sigma**2
        else:
            change[j, i] = -rule.gamma * np.outer(z[i], heard[j, i])
    return Sample(output_loss(rule.loss, z[last], target), z, e, change)


def train_step(
    net: Network,
    E: dict[Edge, Array],
    rule: Rule,
    inputs: Array,
    targets: Array,
    noises: Mapping[int, Array],
    sigma: float = 0.1,
    decay: float = 0.0,
    engaged: bool = True,
) -> float:
    """One step of plain SGD, in place; ``noises``: n_i of the whole batch by layer. Not ``engaged``: synapses alone
    learn. Returns the loss."""
    each = [
        sample(net, E, rule, x, target, {i: n[row] for i, n in noises.items()}, sigma)
        for row, (x, target) in enumerate(zip(inputs, targets, strict=True))
    ]
    W = {layer: np.mean([np.outer(item.e[layer], item.z[layer - 1]) for item in each], axis=0) for layer in each[0].e}
    b = {layer: np.mean([item.e[layer] for item in each], axis=0) for layer in each[0].e}
    P = {
        layer: np.mean([np.outer(item.e[layer], item.z[net.skip[layer]]) for item in each], axis=0)
        for layer in net.P
        if layer in each[0].e
    }
    for edge in E:
        E[edge] = (1 - rule.lr * decay) * E[edge] + rule.lr * np.mean([item.E[edge] for item in each], axis=0)
    if engaged:
        for mine, theirs in ((net.W, W), (net.b, b), (net.P, P)):
            for layer, delta in theirs.items():
                mine[layer] = mine[layer] - rule.lr * delta
    return float(np.mean([item.loss for item in each]))
