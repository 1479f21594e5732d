"""Eq. 6 of all dense synapses that leave one region as that of one matrix, which they share.

Before:  d5 = e6 @ E["6->5"].T;  dE_6_5 = gamma / B * (E["6->5"] @ (e6.T @ e6));  optimise(E, "6->5", dE_6_5, lr)
         d4 = e6 @ E["6->4"].T;  dE_6_4 = gamma / B * (E["6->4"] @ (e6.T @ e6));  optimise(E, "6->4", dE_6_4, lr)
After:   s6 = e6 @ E["6->dense"].T;  d5 = s6 @ E["6->5"].T;  d4 = s6 @ E["6->4"].T
         dM6 = gamma / B * (s6.T @ e6);  optimise(E, "6->dense", dM6, lr)

Eq. 6 makes E(t) = E(0) M(t) under plain SGD, with or without weight decay: M begins as the identity, of as many rows as
the source has units, and E itself is not written. The change is that of E but for rounding. Whoever reads
``CompiledStep.synapses``, or saves them, gets E M: what M has learned is multiplied into E first, and M begins anew
(``settle`` of the emitted file). Off with ``without=("shared",)``.

Not under momentum, which would have to be settled with M, nor under AdamW, whose steps are no multiples of E from the
right; not where a budget for synapses was asked for, which the matrix would exceed; not for a synapse that several runs
of a layer use; not for errors that are maps.
"""

from __future__ import annotations

from reclra_graph.ir.wiring import WiringPlan

FEWER = 2
"""The units of all targets together must be so many times those of the source: else the matrix saves nothing."""


def shared_sources(plan: WiringPlan, without: tuple[str, ...]) -> tuple[int, ...]:
    """Regions whose dense synapses learn through one matrix."""
    if "shared" in without or plan.rates.optimizer != "sgd" or plan.budget:
        return ()
    found = []
    for source, edges in sorted(plan.alone.items()):
        region = plan.regions.regions[source]
        if edges and len(region.shape) == 1 and sum(edge.shape[0] for edge in edges) >= FEWER * region.units:
            found.append(source)
    return tuple(found)
