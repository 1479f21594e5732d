"""Bottlenecks by the model's graph."""

from __future__ import annotations

from reclra_graph.passes.bottlenecks import dominators, narrow_cuts, narrow_dominators
from tests.property.small_plans import graph_of

CHAIN = {1: set[int](), 2: {1}, 3: {2}, 4: {3}, 5: {4}, 6: {5}}
DIAMOND = {1: set[int](), 2: {1}, 3: {1}, 4: {2, 3}, 5: {4}, 6: {4}, 7: {5, 6}}
"""Two diamonds: 1 to {2, 3} to 4 to {5, 6} to the output."""
LANES = {1: set[int](), 2: {1}, 3: {2}, 4: {3}, 5: {1}, 6: {5}, 7: {6}, 8: {4, 7}}
"""Two branches of three regions each, from 1 to the output."""


def test_every_path_leads_through_a_dominator() -> None:
    assert dominators(graph_of([8] * 6, CHAIN)) == (1, 2, 3, 4, 5)
    assert dominators(graph_of([8] * 7, DIAMOND)) == (1, 4)
    assert dominators(graph_of([8] * 8, LANES)) == (1,)


def test_of_dominators_in_a_row_the_narrowest_counts() -> None:
    assert narrow_dominators(graph_of([8, 9, 2, 9, 8, 3], CHAIN)) == (3,)
    assert narrow_dominators(graph_of([8] * 7, DIAMOND)) == (1, 4)


def test_cuts_are_the_narrowest_sets_that_part_the_model() -> None:
    assert narrow_cuts(graph_of([16, 9, 2, 9, 16, 3], CHAIN)) == (3,)
    # No single region parts the branches: the narrowest of each do.
    assert narrow_cuts(graph_of([64, 16, 2, 16, 16, 3, 16, 10], LANES)) == (3, 6)


def test_a_model_as_wide_everywhere_has_no_narrow_cut() -> None:
    assert narrow_cuts(graph_of([8] * 6, CHAIN)) == ()
