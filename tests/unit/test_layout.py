"""Layouts with the batch elsewhere than in front: what is moved where, index by index."""

from __future__ import annotations

from itertools import product
from math import prod

import pytest
import torch

from reclra_graph.rules.layout import from_samples, to_samples

BATCH = 3
CASES = [(rank, dim, *parts) for rank in range(1, 5) for dim in range(rank) for parts in product((1, 2), (1, 4))]


@pytest.mark.parametrize(("rank", "dim", "before", "after"), CASES)
def test_every_number_goes_to_its_sample_and_back(rank: int, dim: int, before: int, after: int) -> None:
    sizes = [5, 2, 3, 4][:rank]
    sizes[dim] = before * BATCH * after
    v = torch.arange(prod(sizes)).reshape(sizes)
    s = to_samples(v, dim, before, after)
    parts = [size for size in (before, after) if size > 1]
    assert list(s.shape) == [BATCH, *sizes[:dim], *parts, *sizes[dim + 1 :]]
    for first, sample, last in product(range(before), range(BATCH), range(after)):
        found = s[sample]
        for index, size in ((first, before), (last, after)):
            found = found.select(dim, index) if size > 1 else found
        assert torch.equal(found, v.select(dim, (first * BATCH + sample) * after + last))
    assert torch.equal(from_samples(s, dim, before, after), v)


def test_with_the_batch_in_front_nothing_is_done() -> None:
    v = torch.randn(3, 2)
    assert to_samples(v, 0, 1, 1) is v
    assert from_samples(v, 0, 1, 1) is v
    assert to_samples(v, 1, 1, 1).data_ptr() == v.data_ptr()
