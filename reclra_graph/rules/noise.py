"""Gaussian maps in place of stored ones: numbers that depend on a key and their own place alone.

They are sums of the bytes that implicit synapses are made of (``rules.implicit``). With r_i the word of row i and c_w
that of word w, u(i, w) is the word that mixes the two, and its four bytes are taken as −128 … 127:

    n_ip = σ / √65535 · Σ (byte + ½)          over the 12 bytes of u(i, p), u(i, P + p) and u(i, 2P + p)

A byte and a half has the mean 0 and the variance (256² − 1)/12, so that n_ip has the deviation σ exactly: the sum of 12
uniform numbers, symmetric, of 3,061 levels, no larger than 6 σ, and of kurtosis 2.9 where a normal distribution has 3.
Everything before the product with σ is done in whole numbers of 32 bits that wrap around: no device can differ.
"""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

from reclra_graph.rules import implicit

_BYTES = 12


def words(seed: int, rows: int, places: int) -> tuple[Tensor, Tensor]:
    """What maps are made from: r_i of every row and c_w of three words for every place, int32 [rows] and [3 places]."""
    key = torch.tensor(implicit.key(seed, "noise"), dtype=torch.int32)
    row, column = implicit.hashed(key, rows, _BYTES // 4 * places)
    return implicit.signed(row).to(torch.int32), implicit.signed(column).to(torch.int32)


def gaussian(rows: Tensor, columns: Tensor, sigma: float) -> Tensor:
    """Maps of mean 0 and deviation σ. rows: [M], columns: [3 P], both int32; returns float32 [M, P]."""
    u = (rows[:, None] ^ columns) * 0x2C1B3C6D
    u = (u ^ (u >> 15)) * 0x297A2D39
    u = u + (u >> 16)
    u = u ^ -0x7F7F7F80  # every byte as 0 … 255, two of them added at a time
    pairs = (u & 0xFF00FF) + ((u >> 8) & 0xFF00FF)
    sums = (pairs + (pairs >> 16)) & 0xFFFF
    total = sums.reshape(rows.shape[0], _BYTES // 4, -1).sum(1, dtype=torch.int32)
    return (total - (255 * _BYTES // 2)).to(torch.float32) * (sigma / sqrt(_BYTES * (256**2 - 1) / 12))
