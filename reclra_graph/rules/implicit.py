"""Implicit error synapses: dense ones whose numbers are made anew from a key wherever they are used.

Entry (i, k) depends on the key, i and k alone, so that it is the same on every device and for every tiling:

    r_i = mix(mix(i ⊕ a) + b)                  of the row; (a, b) are the two 32-bit words of the key
    c_w = mix(mix(w ⊕ b) + a)                  of a column of words; word w holds the entries 4w … 4w + 3
    u = (r_i ⊕ c_w) · 0x2C1B3C6D;  u = (u ⊕ u ≫ 15) · 0x297A2D39;  u = u + u ≫ 16
    E_ik = (byte k mod 4 of u, −128 … 127, + ½) / √(columns · (256² − 1) / 12)

All of it in whole numbers of 32 bits that wrap around, ≫ keeping the sign. No two rows of a matrix share r_i, since mix
is one to one. An entry is uniform on 256 levels, of mean 0 and of the deviation of a dense synapse. ``matrix`` is this
text, slow and plain; the emitted file has a function that never holds more than a tile.
"""

from __future__ import annotations

from math import prod, sqrt

import torch
from torch import Tensor

_WORD = (1 << 32) - 1
_HALF = 1 << 31


def key(seed: int, name: str) -> tuple[int, int]:
    """The key of a synapse, two signed 32-bit words: the 64-bit FNV-1a hash of ``"seed name"``, low word first."""
    found = 0xCBF29CE484222325
    for byte in f"{seed} {name}".encode():
        found = (found ^ byte) * 0x100000001B3 % (1 << 64)
    low, high = (((word + _HALF) & _WORD) - _HALF for word in (found, found >> 32))
    return low, high


def _mix(x: Tensor) -> Tensor:
    """A well-mixed one-to-one map of 0 … 2³² − 1, in 64-bit integers (constants: Wellons' hash-prospector)."""
    x = (x ^ (x >> 16)) * 0x21F0AAAD & _WORD
    x = (x ^ (x >> 15)) * 0x735A2D97 & _WORD
    return x ^ (x >> 15)


def signed(x: Tensor) -> Tensor:
    """0 … 2³² − 1 as the signed numbers of 32 bits with the same digits, in int64."""
    return ((x + _HALF) & _WORD) - _HALF


def hashed(words: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """r_i of every row and c_w of every column of words, 0 … 2³² − 1, int64 [rows] and [columns]. words: the key, int32
    [2]."""
    a, b = (words.to(torch.int64) & _WORD).unbind()
    row = _mix(_mix(torch.arange(rows, device=words.device) ^ a) + b & _WORD)
    column = _mix(_mix(torch.arange(columns, device=words.device) ^ b) + a & _WORD)
    return row, column


def matrix(words: Tensor, rows: int, columns: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """E of [rows, columns], whole. words: the key, int32 [2]."""
    row, column = hashed(words, rows, -(-columns // 4))
    u = (row[:, None] ^ column) * 0x2C1B3C6D & _WORD
    u = (u ^ (signed(u) >> 15) & _WORD) * 0x297A2D39 & _WORD
    u = u + (signed(u) >> 16) & _WORD
    entries = torch.stack([(u >> shift) + 128 & 255 for shift in (0, 8, 16, 24)], 2).flatten(1)[:, :columns] - 128
    return (entries.to(dtype) + 0.5) / sqrt(columns * (256**2 - 1) / 12)


def displace(e: Tensor, words: Tensor, target: tuple[int, ...]) -> Tensor:
    """d_i = E_{j→i} e_j (Eq. 3), or of what M_j makes of e_j. e: [B, …]; returns [B, *target]."""
    e = e.reshape(e.shape[0], -1)
    return (e @ matrix(words, prod(target), e.shape[1], e.dtype).T).reshape(-1, *target)
