"""The emitted step, the reference interpreter and the numpy oracle agree to 1e-12 in float64.

The cases cover every pair of settings (net, activation, wiring, sign of Eq. 6, norm, kappa, gain, loss, lanes) at least
once; a test below says so. Parameters, synapses and the loss are compared after one step and after ten.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from itertools import combinations, product

import numpy as np
import pytest

import reclra_graph as rg
from reclra_graph.reference import reference_step
from tests.differential.numpy_reclra import Edge, Rule, train_step
from tests.differential.residual_mlps import (
    ACTIVATIONS,
    algorithm_1_edges,
    array,
    batch,
    build,
    differences,
    draw_synapses,
    edge_of,
    names_of,
    random_edges,
    to_numpy,
)

TOLERANCE = 1e-12
LAST = 7


@dataclass(frozen=True)
class Case:
    """One combination of settings."""

    activation: str
    wiring: str
    g: int
    projected: bool
    loss: str
    sign: str
    norm: int
    kappa: tuple[tuple[int, float], ...]
    gain: bool
    gpus: int

    def __str__(self) -> str:
        return "-".join("kappa" if isinstance(value, tuple) and value else str(value) for value in astuple(self))


CHOICES: tuple[tuple[object, ...], ...] = (
    (*ACTIVATIONS, "mixed"),
    ("flat", "chain", "blocks", "algorithm 1", "random"),
    (2, 3),
    (False, True),
    ("cross-entropy", "mse", "bce-with-logits"),
    ("descend", "printed"),
    (2, 1),
    ((), ((2, 0.5), (5, 3.0), (7, 1.5))),
    (False, True),
    (1, 3),
)


def pairs_of(row: tuple[object, ...]) -> set[tuple[tuple[int, object], tuple[int, object]]]:
    """All pairs of settings in a row, each setting with its column."""
    return set(combinations(enumerate(row), 2))


def covering_rows() -> list[tuple[object, ...]]:
    """Rows with every pair of settings: activations times wirings, the other columns chosen to cover most new pairs."""
    rest = list(product(*CHOICES[2:]))
    covered: set[tuple[tuple[int, object], tuple[int, object]]] = set()
    rows = []
    for head in product(*CHOICES[:2]):
        best = max(rest, key=lambda tail: len(pairs_of((*head, *tail)) - covered))
        rows.append((*head, *best))
        covered |= pairs_of(rows[-1])
    return rows


CASES = [Case(*row) for row in covering_rows()]  # type: ignore[arg-type]


def edges_of(case: Case) -> tuple[Edge, ...] | None:
    """The edges a wiring must have; None where the compiler chooses them ("blocks")."""
    if case.wiring == "flat":
        return tuple((LAST, layer) for layer in range(1, LAST))
    if case.wiring == "chain":
        return tuple((layer + 1, layer) for layer in range(1, LAST))
    if case.wiring == "algorithm 1":
        return algorithm_1_edges(LAST, case.g)
    if case.wiring == "random":
        return random_edges(LAST, seed=len(case.activation) + 10 * case.g)
    return None


def rule_of(case: Case, synapses: str = "eq6") -> Rule:
    """The case's numbers. sign(z - y)/beta under the printed sign grows fastest: it gets the smaller rates."""
    steep = case.gain and case.norm == 1
    return Rule(
        loss=case.loss,
        lr=0.05,
        beta=0.5 if steep else 0.2,
        gamma=0.005 if steep else 0.1,
        kappa=dict(case.kappa),
        norm=case.norm,
        sign=case.sign,
        synapses=synapses,
        gain=case.gain,
    )


def compare(case: Case, *, synapses: str = "eq6", steps: int = 10, own_synapses: bool = True) -> None:
    """Train three copies of one net side by side and compare them after the first and the last step."""
    net = build(case.g, case.projected, case.activation)
    x, target = batch(net, case.loss)
    rule = rule_of(case, synapses)
    edges = edges_of(case)
    step = rg.compile(
        net,
        (x[:3],),  # updates are means over the batch that comes, not over the example's
        gpus=case.gpus,
        wiring=names_of(edges) if edges and case.wiring not in ("flat", "chain") else case.wiring,
        rule=synapses,
        beta=rule.beta,
        gamma=rule.gamma,
        kappa=dict(case.kappa),
        norm=case.norm,
        sign=case.sign,
        gain=case.gain,
        loss=case.loss,
        lr=rule.lr,
    )
    if edges is not None:
        assert {edge_of(name) for name in step.synapses} == set(edges)
    else:
        assert step.plan.depth == 2
        if not case.projected:  # nets with narrow layers may take those as relays instead of the blocks' ends
            assert step.plan.relays == tuple(range(case.g, LAST, case.g))
    assert step.plan.regions.output == LAST

    start, mine = to_numpy(net), to_numpy(net)
    if own_synapses:
        E = draw_synapses(step.synapses)
    else:
        E = {edge_of(name): array(synapse) for name, synapse in step.synapses.items()}
    double = build(case.g, case.projected, case.activation)
    double_P = double.state_dict()
    double_E = {name: synapse.detach().clone() for name, synapse in step.synapses.items()}

    for number in range(1, steps + 1):
        ours = train_step(mine, E, rule, array(x), array(target))
        losses = {
            "emitted": float(step(x, target)),
            "reference": float(reference_step(step.plan, double_P, double_E, (x,), target)),
        }
        if number not in (1, steps):
            continue
        found = {
            "emitted": differences(net, step.synapses, mine, E),
            "reference": differences(double, double_E, mine, E),
        }
        for who, table in found.items():
            wrong = {name: gap for name, gap in table.items() if not gap <= TOLERANCE}
            assert not wrong, (who, number, wrong)
            assert abs(losses[who] - ours) <= TOLERANCE, (who, number, losses[who], ours)

    # A comparison of things that never moved would prove nothing; where z and y are signs, e is often zero.
    for number, layer in enumerate(net.linears, start=1):
        assert mine.phi[number] == "signum" or not np.array_equal(array(layer.weight), start.W[number]), number
    for number, layer in net.projections.items():
        assert mine.phi[number] == "signum" or not np.array_equal(array(layer.weight), start.P[number]), number


def test_the_cases_cover_every_pair_of_settings() -> None:
    covered = set().union(*(pairs_of(astuple(case)) for case in CASES))
    for (first, some), (second, others) in combinations(enumerate(CHOICES), 2):
        assert {((first, a), (second, b)) for a in some for b in others} <= covered


@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_and_ten_steps_agree(case: Case) -> None:
    compare(case)


@pytest.mark.parametrize("wiring", ["flat", "random"])
def test_fixed_synapses_agree_and_stay(wiring: str) -> None:
    compare(Case("tanh", wiring, 2, True, "cross-entropy", "descend", 2, (), False, 1), synapses="fixed")


@pytest.mark.parametrize("wiring", ["chain", "blocks"])
def test_the_compilers_own_synapses_agree(wiring: str) -> None:
    compare(Case("elu", wiring, 3, True, "cross-entropy", "descend", 2, (), False, 1), own_synapses=False)
