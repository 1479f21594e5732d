"""Forms of error synapses in numpy, written from docs/algorithm.md: implicit entries, convolutions in loops."""

from __future__ import annotations

from itertools import product
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]
Words: TypeAlias = NDArray[np.uint32]
Shape: TypeAlias = tuple[int, ...]

_MIX = ((16, 0x21F0AAAD), (15, 0x735A2D97))


def fnv(text: str) -> int:
    """The 64-bit FNV-1a hash."""
    found = 14695981039346656037
    for byte in text.encode():
        found = ((found ^ byte) * 1099511628211) & 0xFFFFFFFFFFFFFFFF
    return found


def mix(x: Words) -> Words:
    """One to one on 32-bit words."""
    for shift, factor in _MIX:
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    return x ^ (x >> np.uint32(15))


def implicit(seed: int, name: str, rows: int, columns: int) -> Array:
    """The synapse ``name`` under a seed, [rows, columns]."""
    whole = fnv(f"{seed} {name}")
    low, high = np.uint32(whole & 0xFFFFFFFF), np.uint32(whole >> 32)
    with np.errstate(over="ignore"):
        row = mix(mix(np.arange(rows, dtype=np.uint32) ^ low) + high)
        column = mix(mix(np.arange((columns + 3) // 4, dtype=np.uint32) ^ high) + low)
        u = (row[:, None] ^ column[None]) * np.uint32(0x2C1B3C6D)
        u = (u ^ (u.view(np.int32) >> 15).view(np.uint32)) * np.uint32(0x297A2D39)
        u = u + (u.view(np.int32) >> 16).view(np.uint32)
    entries = np.empty((rows, 4 * len(column)))
    for byte in range(4):
        taken = (u >> np.uint32(8 * byte)) & np.uint32(255)
        entries[:, byte::4] = np.where(taken < 128, taken + 0.5, taken - 255.5)
    return np.asarray(entries[:, :columns] / np.sqrt(columns * 65535 / 12))


def transposed_convolution(
    e: Array, E: Array, target: Shape, stride: Shape, padding: Shape, dilation: Shape, groups: int, gamma: float
) -> tuple[Array, Array]:
    """d [B, *target] and γ d eᵀ on the shared entries, mean over samples and over positions of the source, by loops
    over every pair of units that an entry connects. e: [B, channels, *positions], E: [channels, per group, *kernel]."""
    d = np.zeros((len(e), *target))
    connections: list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = []
    inside, outside = E.shape[1], E.shape[0] // groups
    for channel, other in product(range(E.shape[0]), range(inside)):
        to = (channel // outside) * inside + other
        for position in product(*(range(size) for size in e.shape[2:])):
            for tap in product(*(range(size) for size in E.shape[2:])):
                place = tuple(
                    p * s - pad + k * dil
                    for p, s, pad, k, dil in zip(position, stride, padding, tap, dilation, strict=True)
                )
                if all(0 <= at < size for at, size in zip(place, target[1:], strict=True)):
                    connections.append(((channel, other, *tap), (channel, *position), (to, *place)))
    for entry, source, place in connections:
        d[(slice(None), *place)] += E[entry] * e[(slice(None), *source)]
    delta = np.zeros_like(E)
    positions = int(np.prod(e.shape[2:]))
    for entry, source, place in connections:
        delta[entry] += gamma * float(d[(slice(None), *place)] @ e[(slice(None), *source)]) / (len(e) * positions)
    return d, delta
