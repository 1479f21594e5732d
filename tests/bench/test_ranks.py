"""The rank correlation of the cost benchmark, against values known by hand."""

from __future__ import annotations

import pytest

from tests.bench.cost_model import rank_correlation, ranks


def test_ranks_share_where_values_are_equal() -> None:
    assert ranks([30.0, 10.0, 20.0]) == [3, 1, 2]
    assert ranks([1.0, 2.0, 2.0, 5.0]) == [1, 2.5, 2.5, 4]
    assert ranks([7.0, 7.0]) == [1.5, 1.5]


def test_rank_correlation() -> None:
    assert rank_correlation([1, 2, 3, 4], [10, 200, 201, 9000]) == 1
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == -1
    assert rank_correlation([1, 1, 1], [1, 2, 3]) == 0
    # 1 − 6 Σ d² / (n (n² − 1)) with d = (0, 1, −1, 0)
    assert rank_correlation([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(1 - 6 * 2 / (4 * 15))
