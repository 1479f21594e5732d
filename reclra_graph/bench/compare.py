"""How far apart two tensors, or two sets of tensors, are."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

FAR = float("inf")


def difference(found: Tensor, wanted: Tensor) -> float:
    """The largest absolute difference, over the largest finite size in ``wanted`` where that is above 1.

    Equal infinities and NaN at the same places count as equal; tensors of other shapes, dtypes, or with different
    whole numbers are infinitely far apart.
    """
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return FAR
    if not wanted.numel():
        return 0.0
    if not (wanted.is_floating_point() or wanted.is_complex()):
        return 0.0 if torch.equal(found, wanted) else FAR
    if wanted.is_complex():
        found, wanted = torch.view_as_real(found), torch.view_as_real(wanted)
    same = (found == wanted) | (found.isnan() & wanted.isnan())
    gap = torch.where(same, torch.zeros_like(wanted), (found - wanted).abs())
    if not bool(gap.isfinite().all()):
        return FAR
    finite = wanted[wanted.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    return float(gap.max()) / max(1.0, scale)


def furthest(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> tuple[float, str]:
    """(largest difference, its key) over two sets of tensors; a key that only one has is infinitely far."""
    worst, where = 0.0, ""
    for key in {**wanted, **found}:
        gap = difference(found[key], wanted[key]) if key in found and key in wanted else FAR
        if gap > worst:
            worst, where = gap, key
    return worst, where
