"""A batch in several micro-batches: how their losses add up to the loss of the whole batch, and a finite check that
leaves the input where it is."""

from __future__ import annotations

import torch
from torch import Tensor

from reclra_graph.rules.loss import Weights, following, ignored
from reclra_graph.rules.target import total


def seen(x: Tensor) -> Tensor:
    """0 where every number is finite, else nan: all that the check of a step needs of an input. A 0-dim tensor."""
    return (x * 0.0).sum()


def mean(*losses: Tensor) -> Tensor:
    """The loss of a batch from those of equal micro-batches. 0-dim tensors."""
    return total(*losses) / len(losses)


def share(target: Tensor, dtype: str, ignore: int | None, weights: Weights, shift: bool) -> Tensor:
    """How much the targets of a micro-batch count: their number without the ignored ones, or the sum of their classes'
    weights. target: class indices; options as ``rules.loss.cross_entropy`` has them. A 0-dim tensor of ``dtype``."""
    kind = getattr(torch, dtype)
    if shift:
        target, ignore = following(target, ignore), ignored(ignore)
    counts = None if ignore is None else target.ne(ignore)
    if weights is None:
        return (target.eq(target) if counts is None else counts).sum().to(kind)
    w = target.new_tensor(list(weights), dtype=kind) if isinstance(weights, tuple) else weights
    if counts is None:
        return w[target].sum()
    return (w[torch.where(counts, target, 0)] * counts).sum()


def size(share: Tensor, whole: Tensor, batch: int, count: int) -> Tensor:
    """The batch size with which a micro-batch's error has the scale that it has in the whole batch: a loss over targets
    that count unequally is a mean over all that count. ``batch`` samples in each of ``count`` micro-batches."""
    return share / whole * (batch * count)


def weighted(count: int, *given: Tensor) -> Tensor:
    """The loss of a batch from ``count`` losses of micro-batches, followed by their shares. One without targets that
    count has no loss of its own (nan) and adds nothing; nan where none has any."""
    losses, shares = given[:count], given[count:]
    parts = [torch.where(part > 0, loss * part, 0.0) for loss, part in zip(losses, shares, strict=True)]
    return total(*parts) / total(*shares)
