"""The entries of implicit synapses: the same in numpy, in the reference and in the emitted file, for every tile and
dtype, and statistically like independent draws from 256 equal levels."""

from __future__ import annotations

from math import prod, sqrt
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from reclra_graph.passes import template
from reclra_graph.rules import implicit
from tests.differential.numpy_forms import Array
from tests.differential.numpy_forms import implicit as transcribed

SHAPES = ((1, 1), (1, 5), (7, 1), (5, 4), (6, 7), (33, 10), (257, 130))


def emitted() -> dict[str, Any]:
    """The functions of the emitted file, which need torch alone."""
    names: dict[str, Any] = {}
    exec(template.IMPORTS + template.IMPLICIT, names)
    return names


STEP = emitted()


def key(seed: int, name: str) -> Tensor:
    return torch.tensor(implicit.key(seed, name), dtype=torch.int32)


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_three_readings_give_the_same_entries(rows: int, columns: int) -> None:
    wanted = transcribed(3, "9->5", rows, columns)
    words = key(3, "9->5")
    assert torch.equal(implicit.matrix(words, rows, columns), torch.from_numpy(wanted))
    assert STEP["implicit_key"](3, "9->5") == words.tolist()
    whole = STEP["implicit"](torch.eye(columns, dtype=torch.float64), words, (rows,))
    np.testing.assert_allclose(whole.T.numpy(), wanted, rtol=1e-13, atol=0)


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_the_key_is_that_of_the_emitted_file(seed: int) -> None:
    for name in ("9->5", "10->1", "1000000->2"):
        assert list(implicit.key(seed, name)) == STEP["implicit_key"](seed, name)
        assert all(-(2**31) <= word < 2**31 for word in implicit.key(seed, name))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_numbers_do_not_depend_on_tile_and_dtype(dtype: torch.dtype) -> None:
    """Errors that pick one column out leave nothing to round but the scale; those of 0 and a power of two neither."""
    rows, columns = 70, 37
    words = key(1, "4->2")
    levels = (transcribed(1, "4->2", rows, columns) * sqrt(columns * 65535 / 12)).round(1)
    for tile in (None, 1, 3, 148, 1000, 10**9):
        found = STEP["implicit"](torch.eye(columns, dtype=dtype) * sqrt(columns * 65535 / 12), words, (rows,), tile)
        assert found.dtype == dtype
        assert found.shape == (columns, rows)
        precision = torch.finfo(dtype).eps
        np.testing.assert_allclose(found.T.double().numpy(), levels, rtol=3 * precision, atol=0)


@pytest.mark.parametrize(("source", "target"), [((), (3,)), ((1,), ()), ((4,), (2, 3)), ((2, 3), (4, 2, 2))])
def test_shapes(source: tuple[int, ...], target: tuple[int, ...]) -> None:
    e = torch.randn(5, *source, dtype=torch.float64)
    wanted = e.reshape(5, -1).numpy() @ transcribed(0, "2->1", prod(target), prod(source)).T
    for found in (STEP["implicit"](e, key(0, "2->1"), list(target)), implicit.displace(e, key(0, "2->1"), target)):
        assert found.shape == (5, *target)
        np.testing.assert_allclose(found.reshape(5, -1).numpy(), wanted, rtol=0, atol=1e-13)


# -- statistics ------------------------------------------------------------------------------------------------------

ROWS, COLUMNS = 1400, 400
KEYS = ((0, "54->1"), (7, "3->2"))


def normal(seed: int, name: str) -> Array:
    """Entries of deviation one."""
    return transcribed(seed, name, ROWS, COLUMNS) * sqrt(COLUMNS)


@pytest.mark.parametrize(("seed", "name"), KEYS)
def test_mean_deviation_and_levels(seed: int, name: str) -> None:
    """Within four or five deviations of what independent entries would show."""
    entries = normal(seed, name)
    count = entries.size
    assert abs(entries.mean()) < 4 / sqrt(count)
    assert abs(entries.var() - 1) < 4 * sqrt(0.8 / count)  # the variance of a uniform variable's square is 0.8
    levels = np.bincount((entries * sqrt(65535 / 12) + 127.5).round().astype(int).ravel(), minlength=256)
    assert len(levels) == 256
    chi_square = float(((levels - count / 256) ** 2 / (count / 256)).sum())
    assert abs(chi_square - 255) < 5 * sqrt(2 * 255)
    for axis in (0, 1):
        means = entries.mean(axis) * sqrt(entries.shape[axis])
        assert np.abs(means).max() < 5.5
        assert abs(means.std() - 1) < 5 / sqrt(2 * len(means))


@pytest.mark.parametrize(("seed", "name"), KEYS)
def test_rows_and_columns_are_not_correlated(seed: int, name: str) -> None:
    """All pairs of rows, and all pairs of columns: correlations are those of independent draws, the largest too, and
    the largest singular value is the one that random matrix theory gives."""
    entries = normal(seed, name).astype(np.float32)
    for rows in (entries, entries.T):
        products = (rows @ rows.T / sqrt(rows.shape[1]))[np.triu_indices(len(rows), 1)].astype(np.float64)
        assert abs(products.mean()) < 5 / sqrt(len(products))
        assert abs(products.var() - 1) < 0.03
        assert abs((products**4).mean() - 3) < 0.1
        assert np.abs(products).max() < 6.2
    largest = float(np.linalg.norm(entries.T @ entries, 2)) ** 0.5
    assert abs(largest / (sqrt(ROWS) + sqrt(COLUMNS)) - 1) < 0.03


def test_synapses_are_independent_of_each_other() -> None:
    """Other names and other seeds: no correlation at the same place, nor row against row, nor one column on."""
    first = normal(0, "54->1")
    for seed, name in ((0, "54->2"), (0, "54->10"), (1, "54->1"), (0, "53->1")):
        other = normal(seed, name)
        for shifted in (other, np.roll(other, 1, 0), np.roll(other, 1, 1), np.roll(other, 4, 1)):
            assert abs(float((first * shifted).mean())) * sqrt(first.size) < 4.5
        crossed = first[:200] @ other[:200].T / sqrt(COLUMNS)
        assert np.abs(crossed).max() < 5.7


def test_no_two_rows_are_alike() -> None:
    """As many rows as the largest map of a ResNet-50 has units."""
    words = key(0, "54->1")
    few = implicit.matrix(words, 802_816, 8)
    found = torch.unique(torch.round(few * sqrt(8 * 65535 / 12) + 127.5).to(torch.int64) @ 256 ** torch.arange(8))
    assert len(found) > 802_816 - 3
