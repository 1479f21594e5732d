"""The reference interpreter's adjoint edges: an error carried back operator by operator, one call at a time.

What has no closed form is left to autograd, for a single operator whose inputs are the step's own values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from reclra_graph.ir.operators import Operator, Ref
from reclra_graph.ir.regions import LOCAL, Region
from reclra_graph.ir.tasks import Call
from reclra_graph.ir.wiring import Edge, WiringPlan
from reclra_graph.rules import adjoint as adjoint_rules
from reclra_graph.rules import precision
from reclra_graph.rules.operators import function, resolve, short
from reclra_graph.rules.table import NORMS
from reclra_graph.rules.way_back import (
    CARRIED,
    PART,
    SYNAPSE,
    WEIGHTED,
    adjoint,
    carried,
    outer,
    positions,
    sign_scale,
    ways,
    weight_value,
)

Run = Callable[[Call, Tensor, Mapping[str, Any]], Tensor]
"""Runs a call on an error, with further values by name."""


@dataclass
class Back:
    """One region's error on its way back. ``displacements``: at z_i of each region, the sum over all branches.
    ``outers``: by synapse, γ d eᵀ of Eq. 6, mean over batch and positions, for edges that learn by it."""

    plan: WiringPlan
    values: Mapping[str, Any]
    synapses: Mapping[str, Tensor]
    run: Run
    batch: int
    displacements: dict[int, Tensor] = field(default_factory=dict)
    outers: dict[str, Tensor] = field(default_factory=dict)

    def send(self, source: Region, error: Tensor) -> None:
        """Carry the error of a region back to all that hear it over adjoint edges. error: as z of the source."""
        regions, graph = self.plan.regions, self.plan.regions.graph
        edges = [edge for edge in self.plan.outgoing.get(source.id, ()) if edge.form == "adjoint"]
        by_weight = {edge.weight: edge for edge in edges if edge.weight}
        ends = {regions.regions[edge.target].post: edge.target for edge in edges}
        local = self.plan.update_of.get(source.id) == LOCAL
        at: dict[str, dict[int | None, Tensor]] = {source.pre: {None: error}}

        def arrive(value: str, found: Tensor, part: int | None = None) -> None:
            held = at.setdefault(value, {})
            held[part] = held[part] + found if part in held else found

        for name, links in groupby(ways(regions).of(source.id).towards(ends), key=lambda link: link.operator):
            operator, errors, rest = graph.by_name[name], at.pop(name), []
            for link in links:
                if link.how == PART:
                    arrive(link.value, errors[None], int(str(operator.args[1])))
                elif link.how == WEIGHTED:
                    arrive(link.value, self._weighted(operator, link.value, by_weight[link.weight], errors[None]))
                elif link.how == CARRIED and not (local and short(operator.target) in NORMS):
                    call = carried(operator, graph, link.value)
                    assert call is not None
                    arrive(link.value, self.run(call, errors[None] if None in errors else errors[0], {}))
                else:
                    rest.append(link.value)
            for value, found in self._pulled(operator, rest, errors, source).items():
                arrive(value, found)
        for value, target in ends.items():
            dtype = getattr(torch, regions.error_type(target).dtype)
            self.displacements[target] = at[value][None].to(dtype)

    def _weighted(self, operator: Operator, value: str, edge: Edge, error: Tensor) -> Tensor:
        graph, low = self.plan.regions.graph, self.plan.regions.low or None
        error = error.to(getattr(torch, self.plan.regions.synapse_dtype))
        if edge.rule == "sign":
            weight = self.values[weight_value(graph, operator, value)]
            synapse = adjoint_rules.signed(weight, sign_scale(operator, graph))
        else:
            synapse = self.synapses[edge.synapse]
        call = adjoint(operator, graph)
        assert call is not None
        more: dict[str, Any] = {SYNAPSE.name: synapse}
        found = self.run(Call(call.function, call.args, (("low", low),)), error, more)
        if edge.rule == "eq6":
            rates, product = self.plan.rates, self._outer(operator, value, found, error)
            delta = adjoint_rules.outer_eq6(product, rates.gamma, positions(operator, graph), rates.sign == "descend")
            held = self.outers.get(edge.synapse)
            self.outers[edge.synapse] = delta if held is None else held + delta
        return found

    def _outer(self, operator: Operator, value: str, a: Tensor, b: Tensor) -> Tensor:
        """a bᵀ in the layout of an operator's weight, mean over the batch: a at its data ``value``, b at its output."""
        call = outer(operator, self.plan.regions.graph, value, Ref("a"))
        assert call is not None
        return self.run(Call(call.function, call.args, (("low", self.plan.regions.low or None),)), b, {"a": a})

    def _pulled(
        self, operator: Operator, wanted: list[str], errors: Mapping[int | None, Tensor], source: Region
    ) -> dict[str, Tensor]:
        """PyTorch's derivative of one operator, against the errors at its results."""
        if not wanted:
            return {}
        with torch.enable_grad():
            leaves = {name: self.values[name].detach().requires_grad_() for name in wanted}
            given = {**self.values, **leaves}
            args = [resolve(item, given, source_device(errors)) for item in operator.args]
            kwargs = {key: resolve(item, given, source_device(errors)) for key, item in operator.kwargs}
            result = function(operator.target)(*args, **kwargs)
        found: dict[str, Tensor] = {}
        for part, error in errors.items():
            made, unit = result if part is None else result[part], torch.ones(())
            if made.dtype == torch.float16 and error.dtype == torch.float32:
                unit = precision.local_unit(error, self.batch, source.units // source.features)
            lowered = (error * unit).to(made.dtype)
            grads = torch.autograd.grad(made, list(leaves.values()), lowered, allow_unused=True, retain_graph=True)
            for name, grad in zip(leaves, grads, strict=True):
                if grad is not None:
                    raised = grad.to(error.dtype) / unit if grad.dtype in (torch.float16, torch.bfloat16) else grad
                    found[name] = found[name] + raised if name in found else raised
        return found


def source_device(errors: Mapping[int | None, Tensor]) -> torch.device:
    """Where the errors are."""
    return next(iter(errors.values())).device
