"""Error synapses against a transcription in numpy that loops over samples, positions and features, in float64.

What a shared E does between two grids is two plain matrices: an average over positions of the source, and a choice of
one of those averages for every position of the target. Every case says by hand on which grid E works.
"""

from __future__ import annotations

from itertools import product
from math import ceil, floor, prod

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from reclra_graph.rules import synapse

Array = NDArray[np.float64]
Shape = tuple[int, ...]

BATCH = 3
FIRST, LAST = 0, -1
IN_ORDER: Shape = (-1,)  # as many positions on both sides, in another number of dimensions
# (positions of the source, positions of the target, the grid on which E works; () is one mean for all positions).
GRIDS: dict[str, tuple[Shape, Shape, Shape]] = {
    "vector to vector": ((), (), ()),
    "vector to sequence": ((), (4,), ()),
    "vector to map": ((), (2, 3), ()),
    "vector to volume": ((), (2, 3, 2), ()),
    "sequence to vector": ((4,), (), ()),
    "map to vector": ((2, 3), (), ()),
    "one position to many": ((1, 1), (2, 3), ()),
    "many positions to one": ((2, 3), (1,), ()),
    "equal sequences": ((4,), (4,), (4,)),
    "equal maps": ((2, 3), (2, 3), (2, 3)),
    "equal volumes": ((2, 3, 2), (2, 3, 2), (2, 3, 2)),
    "longer sequence": ((7,), (3,), (3,)),
    "shorter sequence": ((3,), (7,), (3,)),
    "larger map": ((5, 4), (2, 2), (2, 2)),
    "smaller map": ((2, 2), (5, 4), (2, 2)),
    "wider, but lower map": ((2, 6), (5, 3), (2, 3)),
    "as large, but turned": ((2, 3), (3, 2), (2, 2)),
    "a row and a column": ((1, 4), (4, 1), ()),
    "larger volume": ((4, 3, 2), (2, 3, 1), (2, 3, 1)),
    "smaller volume": ((2, 1, 2), (2, 3, 4), (2, 1, 2)),
    "map to its patches": ((2, 3), (6,), IN_ORDER),
    "patches to their map": ((6,), (2, 3), IN_ORDER),
    "map to patches and a class": ((2, 3), (7,), ()),
    "patches and a class to map": ((7,), (2, 3), ()),
    "windows to map": ((4, 2, 2), (4, 4), IN_ORDER),
    "equal in four dimensions": ((2, 2, 1, 2), (2, 2, 1, 2), IN_ORDER),
    "other in four dimensions": ((2, 2, 1, 2), (2, 2, 1, 3), ()),
}
WIDTHS = ((2, 5), (5, 2))
AXES = ((FIRST, FIRST), (FIRST, LAST), (LAST, FIRST), (LAST, LAST))


def averages(positions: Shape, grid: Shape) -> Array:
    """[places of the grid, positions]: adaptive average pooling, window by window; () is one window over all."""
    if not grid:
        return np.full((1, prod(positions)), 1 / prod(positions))
    if grid == IN_ORDER:
        return np.eye(prod(positions))
    found = np.zeros((prod(grid), prod(positions)))
    for row, place in enumerate(np.ndindex(*grid)):
        windows = [
            range(floor(i * size / small), ceil((i + 1) * size / small))
            for i, size, small in zip(place, positions, grid, strict=True)
        ]
        for position in product(*windows):
            found[row, np.ravel_multi_index(position, positions)] = 1 / prod(len(window) for window in windows)
    return found


def choices(positions: Shape, grid: Shape) -> Array:
    """[positions, places of the grid]: the place whose value a position gets."""
    if not grid:
        return np.ones((prod(positions), 1))
    if grid == IN_ORDER:
        return np.eye(prod(positions))
    found = np.zeros((prod(positions), prod(grid)))
    for row, position in enumerate(np.ndindex(*positions)):
        place = [floor(i * small / size) for i, size, small in zip(position, positions, grid, strict=True)]
        found[row, np.ravel_multi_index(place, grid)] = 1
    return found


def shape_of(positions: Shape, width: int, axis: int) -> Shape:
    return (width, *positions) if axis == FIRST else (*positions, width)


def rows(values: Tensor, axis: int) -> Array:
    """[B, positions, features]."""
    last = np.moveaxis(values.numpy(), 1, -1) if axis == FIRST else values.numpy()
    return np.asarray(last.reshape(len(last), -1, last.shape[-1]))


def transcribed(e: Array, E: Array, source: Shape, target: Shape, grid: Shape, gamma: float) -> tuple[Array, Array]:
    """d of every sample, position and feature, and γ d eᵀ on the grid, mean over samples and places."""
    average, choice = averages(source, grid), choices(target, grid)
    places = len(average)
    d = np.zeros((len(e), len(choice), len(E)))
    delta = np.zeros_like(E)
    for sample in range(len(e)):
        for place in range(places):
            seen = sum(average[place, p] * e[sample, p] for p in range(e.shape[1]))
            sent = np.array([sum(E[i, j] * seen[j] for j in range(E.shape[1])) for i in range(len(E))])
            delta += gamma * np.outer(sent, seen) / (len(e) * places)
            for position in range(len(choice)):
                d[sample, position] += choice[position, place] * sent
    return d, delta


def drawn(source: Shape, widths: tuple[int, int]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    e = torch.randn((BATCH, *source), generator=generator, dtype=torch.float64)
    return e, torch.randn((widths[1], widths[0]), generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("axes", AXES, ids=["first-first", "first-last", "last-first", "last-last"])
@pytest.mark.parametrize("widths", WIDTHS, ids=["widening", "narrowing"])
@pytest.mark.parametrize("name", sorted(GRIDS))
def test_a_shared_synapse_between_any_two_shapes(name: str, widths: tuple[int, int], axes: tuple[int, int]) -> None:
    here, there, grid = GRIDS[name]
    source, target = shape_of(here, widths[0], axes[0]), shape_of(there, widths[1], axes[1])
    e, E = drawn(source, widths)
    assert (synapse.features(target, axes[1]), synapse.features(source, axes[0])) == E.shape
    wanted, delta = transcribed(rows(e, axes[0]), E.numpy(), here, there, grid, gamma=0.3)
    d = synapse.token_displace(e, E, source, target, *axes)
    assert d.shape == (BATCH, *target)
    assert np.abs(rows(d, axes[1]) - wanted).max() < 1e-12
    if not grid and prod(there) > 1:
        assert 0 in d.stride()  # one value for all positions: repeated, not copied
    for descend, sign in ((True, 1), (False, -1)):
        found = synapse.token_eq6(E, e, 0.3, BATCH, descend, source, target, *axes)
        assert np.abs(found.numpy() - sign * delta).max() < 1e-12
    if axes == (FIRST, FIRST):
        assert torch.equal(synapse.channel_displace(e, E, source, target), d)
        assert torch.equal(synapse.channel_eq6(E, e, 0.3, BATCH, True, source, target), -found)


@pytest.mark.parametrize("axis", [FIRST, LAST])
@pytest.mark.parametrize("positions", [(4,), (2, 3)])
def test_position_by_position_is_a_dense_synapse_of_equal_blocks(axis: int, positions: Shape) -> None:
    """A dense E with the shared one at every position sends the same d; the shared one learns their mean."""
    widths, places = (3, 2), prod(positions)
    source, target = shape_of(positions, 3, axis), shape_of(positions, 2, axis)
    e, E = drawn(source, widths)
    eye = torch.eye(places, dtype=torch.float64)
    dense = torch.kron(E, eye) if axis == FIRST else torch.kron(eye, E)
    d = synapse.token_displace(e, E, source, target, axis, axis)
    torch.testing.assert_close(d, synapse.dense_displace(e, dense, source, target), rtol=0, atol=1e-12)
    whole = synapse.dense_eq6(d, e, 0.3, BATCH, True, source, target)
    torch.testing.assert_close(whole, synapse.dense_eq6_few(dense, e, 0.3, BATCH, True, source), rtol=0, atol=1e-12)
    split = (
        whole.reshape(2, places, 3, places)
        if axis == FIRST
        else whole.reshape(places, 2, places, 3).permute(1, 0, 3, 2)
    )
    blocks = split.diagonal(dim1=1, dim2=3).mean(-1)
    shared = synapse.token_eq6(E, e, 0.3, BATCH, True, source, target, axis, axis)
    torch.testing.assert_close(shared, blocks, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("source", "target"), [((), (3,)), ((3,), ()), ((), ()), ((), (2, 3)), ((2, 3), ())])
def test_a_region_of_one_unit_may_have_no_dimension_but_the_batch(source: Shape, target: Shape) -> None:
    units = (prod(source), prod(target))
    e, E = drawn(source, units)
    d = synapse.dense_displace(e, E, source, target)
    assert d.shape == (BATCH, *target)
    wanted = torch.einsum("ij,bj->bi", E, e.reshape(BATCH, -1))
    assert float((d.reshape(BATCH, -1) - wanted).abs().max()) < 1e-12
    moved = 0.3 * torch.einsum("bi,bj->ij", wanted, e.reshape(BATCH, -1)) / BATCH
    for found in (
        synapse.dense_eq6(d, e, 0.3, BATCH, True, source, target),
        synapse.dense_eq6_few(E, e, 0.3, BATCH, True, source),
    ):
        assert float((found - moved).abs().max()) < 1e-12


def test_a_shared_synapse_to_and_from_a_region_without_dimensions() -> None:
    e, E = drawn((4, 2), (2, 1))
    d = synapse.token_displace(e, E, (4, 2), (), LAST, LAST)
    torch.testing.assert_close(d, e.mean(1) @ E[0], rtol=0, atol=1e-12)
    e, E = drawn((), (1, 2))
    d = synapse.token_displace(e, E, (), (4, 2), LAST, LAST)
    torch.testing.assert_close(d, (e[:, None] * E[:, 0])[:, None].expand(BATCH, 4, 2), rtol=0, atol=1e-12)
