"""The learned inverses G_l of target propagation: one layer each, in a form that follows from the shapes."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod, sqrt

import torch
from torch import Tensor, nn

from reclra_graph.ir.regions import Region
from reclra_graph.rules import layout
from reclra_graph.rules.operators import Chain, apply_chain
from reclra_graph.rules.target_propagation import dense_inverse, fan_in, map_inverse, token_inverse, window


@dataclass(frozen=True)
class Form:
    """``kind``: "dense"; "token", the same matrix at every position of two sequences of one length; or "map", between
    two maps of which one has fewer positions along every dimension: a transposed convolution towards the larger, a
    convolution towards the smaller. ``weight``: the shape of V."""

    kind: str
    weight: tuple[int, ...]
    stride: tuple[int, ...] = ()
    transposed: bool = False


def form_of(source: Region, target: Region) -> Form:
    """The form of G from z of ``source`` back to z of ``target``."""
    here, there = source.shape, target.shape
    if len(here) == len(there) and 2 <= len(here) <= 4 and source.axis == target.axis == 0:
        pairs = list(zip(here[1:], there[1:], strict=True))
        larger = all(small <= large for small, large in pairs)
        if larger or all(small >= large for small, large in pairs):
            windows = [window(min(pair), max(pair)) for pair in pairs]
            channels = (here[0], there[0]) if larger else (there[0], here[0])
            kernel, stride = tuple(item[0] for item in windows), tuple(item[1] for item in windows)
            return Form("map", (*channels, *kernel), stride, larger)
    if len(here) == len(there) >= 2 and source.axis == target.axis == -1 and here[:-1] == there[:-1]:
        return Form("token", (there[-1], here[-1]))
    return Form("dense", (prod(there), prod(here)))


class Inverse(nn.Module):
    """G(z) = φ(V z + c), from z_l of ``source`` back to z_{l−1} of ``target``; φ is ``activation``, or nothing.

    V is drawn from a normal distribution of deviation 1/√(numbers summed), c is 0 at first.
    """

    def __init__(self, source: Region, target: Region, activation: Chain, draws: torch.Generator, like: Tensor) -> None:
        super().__init__()
        self.source, self.target, self.activation = source, target, activation
        self.form = form_of(source, target)
        deviation = 1 / sqrt(fan_in(self.form.weight, self.form.stride, self.form.transposed))
        drawn = torch.randn(self.form.weight, generator=draws, dtype=torch.float64) * deviation
        results = self.form.weight[1] if self.form.transposed else self.form.weight[0]
        self.weight = nn.Parameter(drawn.to(like))
        self.bias = nn.Parameter(torch.zeros(results, dtype=like.dtype, device=like.device))

    def forward(self, z: Tensor) -> Tensor:
        """z: as the model holds z_l; returns what stands for z_{l−1}, as the model holds that."""
        here, there = self.source.layout, self.target.layout
        z = layout.to_samples(z, here.dim, here.before, here.after)
        if self.form.kind == "dense":
            back = dense_inverse(z, self.weight, self.bias, self.target.shape)
        elif self.form.kind == "token":
            back = token_inverse(z, self.weight, self.bias)
        else:
            ones = (1,) * len(self.form.stride)
            back = map_inverse(z, self.weight, self.bias, self.form.stride, ones, self.form.transposed)
        moved: Tensor = apply_chain(self.activation, back)
        return layout.from_samples(moved, there.dim, there.before, there.after)
