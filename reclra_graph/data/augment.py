"""Random crops and mirror images, for a whole batch at once."""

from __future__ import annotations

import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor


def drawn(*words: object) -> torch.Generator:
    """A generator of its own for what is named by some words and numbers: the same in every process, and whatever else
    was drawn before."""
    key = hashlib.sha256(" ".join(map(str, words)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)


def augmented(images: Tensor, border: int, flip: bool, draw: torch.Generator) -> Tensor:
    """Each image shifted by up to ``border`` pixels either way, what comes in being 0, and where ``flip`` says so
    mirrored every other time. images: [B, C, H, W]; returns the same shape.

    Equal to padding with ``border`` zeros, cutting out H x W at a random place and mirroring, image by image; here
    it is one look-up. ``draw``: of the CPU; what is drawn does not depend on where the images are.
    """
    count, _, height, width = images.shape
    down, across = torch.randint(2 * border + 1, (2, count), generator=draw)
    mirror = torch.rand(count, generator=draw) < 0.5 if flip else torch.zeros(count, dtype=torch.bool)
    columns = torch.arange(width)
    columns = torch.where(mirror[:, None], width - 1 - columns, columns) + across[:, None]
    rows = torch.arange(height) + down[:, None]
    at = torch.arange(count)[:, None, None]
    padded, device = F.pad(images, (border,) * 4), images.device
    # Advanced indices on both sides of a slice come first: [B, H, W, C].
    found = padded[at.to(device), :, rows[:, :, None].to(device), columns[:, None, :].to(device)]
    return found.permute(0, 3, 1, 2).contiguous()
