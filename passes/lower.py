"""WiringPlan → TaskGraph: one training step as tasks, each with what it reads and writes.

Before:  regions and error edges.
After:   forward tasks region by region, the loss with e_L, and for every region that an error reaches: displace
         (d = E e_j, Eq. 3), target (y = φ(h − β d), Eq. 3), error (e = mismatch(z, y), Eq. 4), update (ΔW, Eq. 5, and
         ΔE, Eq. 6) and optimise. A parameter that several regions share is optimised once, from the sum. Two tasks
         that touch the same storage, one of them writing, are ordered by an edge.

This file says in which order tasks are made; ``lower_forward.py``, ``lower_errors.py``, ``send_back.py`` and
``lower_updates.py`` make them, and ``lower_state.py`` holds what they share.
"""

from __future__ import annotations

from reclra_graph.ir.tasks import TaskGraph
from reclra_graph.ir.wiring import WiringPlan, dense_matrix
from reclra_graph.passes.group import groups
from reclra_graph.passes.lower_errors import losses, region_error
from reclra_graph.passes.lower_forward import bookkeeping, buffer_updates, forward_pass
from reclra_graph.passes.lower_state import Lowering
from reclra_graph.passes.lower_updates import learn_from_sums, region_update, shared_updates, synapse_update
from reclra_graph.passes.mirrors import mirror_update, mirrors, noises
from reclra_graph.passes.names import value_names
from reclra_graph.passes.readouts import readouts
from reclra_graph.passes.send_back import mirror_weights, send_back
from reclra_graph.passes.shared import shared_sources
from reclra_graph.passes.storage import storage_order


def lower(plan: WiringPlan, without: tuple[str, ...] = ()) -> TaskGraph:
    """The task graph of one step: tasks in an order in which they can run; ``without``: optimisations that are left out
    (``reclra_graph.options.OPTIMISATIONS``). Raises ModelError RG303 where a parameter
    has no local derivative."""
    state = Lowering(plan, *value_names(plan.regions), {store: [] for store in learn_from_sums(plan)}, without)
    shared = shared_sources(plan, without)
    state.matrices = plan.matrix_of | {edge.name: dense_matrix(edge) for item in shared for edge in plan.alone[item]}
    late = bookkeeping(state.graph)
    forward_pass(state, late)
    noises(state)
    losses(state)
    for number in plan.regions.outputs:
        send_back(state, state.regions[number])
    # An error is there before those who hear it: by length of the error path, of equals the last region first.
    reached = [state.regions[number] for number in sorted(plan.level, key=lambda item: (plan.level[item], -item))]
    for region in reached:
        if region.id not in plan.regions.outputs:
            readouts(state, region)
            region_error(state, region)
            send_back(state, region)
    mirrors(state)
    state.groups = groups(state, reached)
    for region in reached:
        region_update(state, region)
        synapse_update(state, region)
        mirror_update(state, region)
    shared_updates(state)
    mirror_weights(state)
    buffer_updates(state, late)
    return TaskGraph(plan, tuple(state.tasks), storage_order(state.tasks), shared=shared)
