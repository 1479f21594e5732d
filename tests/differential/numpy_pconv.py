"""An independent oracle for pseudo-convolutions: noise, layer and rule in plain Python and numpy, float64.

Written from docs/algorithm.md alone, one sample and one position at a time, and sharing no code with the package.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]
WORD = 2**32


def _mix(x: int) -> int:
    x = (x ^ (x >> 16)) * 0x21F0AAAD % WORD
    x = (x ^ (x >> 15)) * 0x735A2D97 % WORD
    return x ^ (x >> 15)


def _shifted(x: int, places: int) -> int:
    """x ≫ places of a word whose first bit is its sign."""
    return ((x - WORD if x >= WORD // 2 else x) >> places) % WORD


def noise(seed: int, rows: int, height: int, width: int, sigma: float) -> Array:
    """The maps [rows, height, width] of a seed, as the float32 numbers that they are."""
    key = 0xCBF29CE484222325
    for byte in f"{seed} noise".encode():
        key = (key ^ byte) * 0x100000001B3 % 2**64
    a, b = key % WORD, key // WORD
    places = height * width
    found = np.zeros((rows, places))
    for i in range(rows):
        row = _mix((_mix(i ^ a) + b) % WORD)
        for p in range(places):
            total = 0
            for word in (p, places + p, 2 * places + p):
                u = (row ^ _mix((_mix(word ^ b) + a) % WORD)) * 0x2C1B3C6D % WORD
                u = (u ^ _shifted(u, 15)) * 0x297A2D39 % WORD
                u = (u + _shifted(u, 16)) % WORD
                for byte in u.to_bytes(4, "little", signed=False):
                    total += byte - 256 if byte > 127 else byte
            found[i, p] = total + 6  # twelve halves
    scaled = found.astype(np.float32) * np.float32(sigma / np.sqrt(65535))
    return scaled.astype(np.float64).reshape(rows, height, width)


def activated(z: Array, maps: Array, stride: tuple[int, int] = (1, 1), crop: tuple[int, int] = (0, 0)) -> Array:
    """ReLU(z^m + n^m), map m reading channel m mod channels, and its mean over every window of the stride."""
    channels, height, width = z.shape
    (down, across), (above, left) = stride, crop
    inner = z[:, above : height - above, left : width - left]
    rows, columns = inner.shape[1:]
    found = np.zeros((len(maps), -(-rows // down), -(-columns // across)))
    for m in range(len(maps)):
        for y in range(found.shape[1]):
            for x in range(found.shape[2]):
                seen = [
                    max(inner[m % channels, i, j] + maps[m, i, j], 0.0)
                    for i in range(y * down, min((y + 1) * down, rows))
                    for j in range(x * across, min((x + 1) * across, columns))
                ]
                found[m, y, x] = sum(seen) / len(seen)
    return found


def product(weight: Array, bias: Array, a: Array) -> Array:
    """z^c = Σ_m w^{c,m} a^m + b^c at every position. weight: [C, M], a: [M, H, W]."""
    found = np.zeros((len(weight), *a.shape[1:]))
    for c in range(len(weight)):
        found[c] = sum(weight[c, m] * a[m] for m in range(len(a))) + bias[c]
    return found


def weight_update(e: Array, a: Array) -> Array:
    """Δw^{c,m} = Σ_positions e^c ⊙ a^m; returns [C, M]."""
    return np.array([[np.sum(e[c] * a[m]) for m in range(len(a))] for c in range(len(e))])


def convolved(weight: Array, bias: Array, x: Array) -> Array:
    """A 3×3 convolution with padding 1. weight: [C, 3, 3] of one input channel, x: [H, W]."""
    framed = np.pad(x, 1)
    height, width = x.shape
    found = np.zeros((len(weight), height, width))
    for c in range(len(weight)):
        for y in range(height):
            for k in range(width):
                found[c, y, k] = np.sum(weight[c] * framed[y : y + 3, k : k + 3]) + bias[c]
    return found


def convolution_update(e: Array, x: Array) -> Array:
    """ΔW of ``convolved``: its weight gradient with e as the cotangent; returns [C, 3, 3]."""
    framed = np.pad(x, 1)
    _, height, width = e.shape
    found = np.zeros((len(e), 3, 3))
    for i in range(3):
        for j in range(3):
            found[:, i, j] = np.sum(e * framed[i : i + height, j : j + width], axis=(1, 2))
    return found
