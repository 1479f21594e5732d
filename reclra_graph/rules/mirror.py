"""Weight mirrors: noise at a region, and how another region responds to it (Akrout, Wilson, Humphreys, Lillicrap,
Tweed, "Deep Learning without Weight Transport", NeurIPS 2019).

ξ_i = σ n_i is normal noise of mean 0 and deviation σ. The response of j is h_j(z_i + ξ_i) − h_j(z_i), the operators
between the two run again; for one linear layer it is W ξ_i. By Stein's lemma, the mean of ξ_i (response of j)ᵀ / σ² is
the transpose of the Jacobian of h_j by z_i, itself the mean over z_i + ξ_i, whatever stands between the two: no
derivative is taken, and a step function will do. One σ stands with the response, the other makes n_i of ξ_i.
"""

from __future__ import annotations

import torch
from torch import Tensor


def noise(z: Tensor) -> Tensor:
    """n_i: like z_i in shape and dtype, drawn from torch's generator."""
    return torch.randn_like(z)


def noisy(z: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """z_i + ξ_i."""
    return z + sigma * noise


def response(h: Tensor, moved: Tensor, sigma: float, dtype: str | None = None) -> Tensor:
    """−(response of j) / σ, of h_j and what the noise makes of it; in another dtype, where one is given."""
    if dtype is not None:
        h, moved = h.to(getattr(torch, dtype)), moved.to(getattr(torch, dtype))
    return (h - moved) / sigma


def size(*responses: Tensor) -> Tensor:
    """The mean square of what ``response`` gave: a 0-dim tensor, nan where anything is not finite."""
    total = responses[0].square().mean()
    for item in responses[1:]:
        total = total + item.square().mean()
    return total / len(responses)
