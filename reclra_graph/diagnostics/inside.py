"""What a step computes inside, by the reference interpreter: errors, displacements, and what each synapse sends.

Nothing learns here, and nothing that was given is changed. Synapses send by the emitted step's own calls, so that no
implicit or low-rank one is ever made whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from reclra_graph.diagnostics.measures import Figure, Sums, finite, mean_norm
from reclra_graph.ir.operators import Ref
from reclra_graph.ir.regions import Region
from reclra_graph.ir.wiring import Edge, Loss
from reclra_graph.passes.synapse_calls import displaced
from reclra_graph.reference import Interpreter
from reclra_graph.reference_back import Back
from reclra_graph.reference_rules import loss_of
from reclra_graph.rules import layout, rule, target
from reclra_graph.rules.synapse import flat
from reclra_graph.runtime.compiled import CompiledStep


def send(step: CompiledStep, edge: Edge, e: Tensor, synapses: Mapping[str, Tensor], low: bool = False) -> Tensor:
    """d_i = E_{j→i} e_j (Eq. 3) of any form. e: [B, *shape of j]; returns [B, *shape of i]. ``synapses``: E as the step
    has it. ``low``: in the precision of the step's products, instead of the synapse's own."""
    matrix = step.plan.matrix_of.get(edge.name)
    if matrix is not None:
        e = flat(e, step.plan.regions.regions[edge.source].shape) @ synapses[matrix.name].T
    call = displaced(step.plan, edge, "e", "d", None)
    values: dict[str, Tensor] = {"e": e, **{f"E[{name}]": value for name, value in synapses.items()}}
    run = step.module.implicit if call.function == "rules.implicit.displace" else rule(call.function)
    args = [values[item.name] if isinstance(item, Ref) else item for item in call.args]
    found: Tensor = run(*args, **(dict(call.kwargs) if low else {}))
    return found


class Inside(Interpreter):
    """The forward pass and the recursion of a step on a batch; ``look`` runs both and returns the loss.

    ``trace``: keep what the derivatives between regions need (``sent_angles``), as much memory as backprop takes."""

    def __init__(
        self,
        step: CompiledStep,
        given: Sequence[Tensor],
        goal: Tensor | Mapping[str, Tensor],
        modules: Mapping[str, nn.Module],
        trace: bool,
    ) -> None:
        home = given[0].device
        held = {key: value.to(home) for key, value in step.storage().items()}
        synapses = {name: value.to(home) for name, value in step.store.all().items()}
        rates = replace(step.plan.rates, lr=step.lr, beta=step.beta, gamma=step.gamma)
        super().__init__(replace(step.plan, rates=rates), held, synapses, given, goal, modules)
        self.step, self.trace = step, trace
        self.arrived: dict[str, Tensor] = {}
        self.live: dict[str, Tensor] = {}

    def look(self) -> Tensor:
        """Everything, without a change; returns the loss."""
        with torch.no_grad():
            self.forward()
            return self.recursion()

    def forward(self) -> None:
        """Every value of the graph. Where derivatives are asked for they begin at the representations that an error is
        sent to: what only leads up to the first of these costs nothing."""
        if not self.trace:
            super().forward()
            return
        ends = {self.regions[edge.target].post for edge in self.plan.edges}
        self.values = _Growing(self.values, ends)
        with torch.enable_grad():
            super().forward()
        for name in ends | {self.regions[edge.source].pre for edge in self.plan.edges}:
            self.live[name] = self.values[name]
        self.values = {name: _detached(value) for name, value in self.values.items()}

    def _sent(self, edge: Edge, e: Tensor, *_: Any) -> Tensor:
        self.arrived[edge.name] = found = send(self.step, edge, e, self.synapses, low=True)
        return found

    def loss_of(self, z: Tensor, y: Tensor, output: Region, kind: Loss) -> Tensor:
        """The loss of one result of forward()."""
        return loss_of(z.to(self._dtype(output.id)), y, output, kind, self.batch)[0]

    def _phi(self, region: Region) -> Any:
        return self._chain(region)

    def learn(self, region: Region) -> None:
        """Nothing: the updates are the step's own."""

    def _synapse(self, *_: Any) -> None:
        """Nothing, likewise."""

    def _outer(self, *_: Any) -> None:
        """Nothing, likewise."""

    def _send_back(self, source: Region) -> None:
        """What goes back over adjoint edges is noted for each of them, the branches of one connection together."""
        edges = [edge for edge in self.plan.outgoing.get(source.id, ()) if edge.form == "adjoint"]
        if edges:
            back = Back(self.plan, self.values, self.synapses, self._call, self.batch)
            back.send(source, self.errors[source.id])
            for edge in edges:
                self.arrived[edge.name] = self.samples(self.regions[edge.target], back.displacements[edge.target])
        super()._send_back(source)

    def samples(self, region: Region, value: Tensor) -> Tensor:
        """A value of a region with the batch in front."""
        return layout.to_samples(value, region.layout.dim, region.layout.before, region.layout.after)

    def error(self, region: Region) -> Figure:
        """‖e_i‖, mean over the samples."""
        e = self.errors.get(region.id)
        return (None, "no error reaches it") if e is None else mean_norm(self.samples(region, e))

    def displacement(self, region: Region) -> Figure:
        """‖d_i‖ over all edges together, mean over the samples."""
        d = self._total(region)
        return d if isinstance(d, tuple) else mean_norm(self.samples(region, d))

    def discrepancy(self, region: Region) -> Figure:
        """κ_i ‖z_i − y_i‖_p^q of Eq. 2 with p = q, mean over the samples."""
        d = self._total(region)
        if isinstance(d, tuple):
            return d
        rates, chain = self.plan.rates, self._chain(region)
        h, z = self.values[region.pre], self.values[region.post]
        y = target.target(h, d, rates.beta, chain)
        if self.graph.is_low(region.post):
            z = target.representation(h, chain)
        gap = (z - y).double().abs()
        total = float((gap if rates.norm == 1 else gap.square()).sum())
        return finite(rates.kappa_of(region.id) * total / self.batch)

    def _total(self, region: Region) -> Tensor | Figure:
        if region.id in self.plan.regions.outputs and region.id not in self.displacements:
            return None, "an output has the loss's own error, and no target"
        if region.id not in self.displacements:
            return None, "no error reaches it"
        return target.total(*self.displacements[region.id])

    def sent_angles(self) -> dict[str, Figure]:
        """For every edge j → i the angle between what E sends of e_j and (∂h_j/∂z_i)ᵀ e_j, over the whole batch: what
        would be sent by backprop from h_j to z_i, whatever lies between the two. Asks for ``trace``."""
        found: dict[str, Figure] = {}
        for source, edges in self.plan.outgoing.items():
            posts = list(dict.fromkeys(self.regions[edge.target].post for edge in edges))
            carried = dict(zip(posts, self._carried(self.regions[source], posts), strict=True))
            for edge in edges:
                region = self.regions[edge.target]
                wanted, sums = carried[region.post], Sums()
                if edge.rule == "readout":
                    found[edge.name] = None, "a readout sends an error of its own"
                elif edge.name not in self.arrived:
                    found[edge.name] = None, "nothing was sent over this edge alone"
                elif isinstance(wanted, str):
                    found[edge.name] = None, wanted
                else:
                    sums.add(self.arrived[edge.name].flatten(1), self.samples(region, wanted).flatten(1))
                    found[edge.name] = sums.angle("what is sent", "the derivative")
        return found

    def _carried(self, source: Region, posts: Sequence[str]) -> list[Tensor | str]:
        """(∂h_j/∂z_i)ᵀ e_j for each z_i, or why there is none."""
        h, e = self.live[source.pre], self.errors.get(source.id)
        if e is None:
            return ["no error reaches the source"] * len(posts)
        if not h.requires_grad:
            return ["h of the source does not depend on z of the target by any derivative"] * len(posts)
        ends = [self.live[post] for post in posts]
        try:
            found = torch.autograd.grad(h, ends, e.to(h.dtype), retain_graph=True, allow_unused=True)
        except RuntimeError as error:  # an operator that PyTorch cannot differentiate
            return [f"PyTorch gives no derivative: {str(error).splitlines()[0]}"] * len(posts)
        lost = "h of the source does not depend on z of the target by any derivative"
        return [lost if item is None else item for item in found]


class _Growing(dict[str, Any]):
    """Values of a forward pass under autograd: derivatives begin at those named ``ends``."""

    def __init__(self, values: Mapping[str, Any], ends: set[str]) -> None:
        super().__init__(values)
        self.ends = ends

    def __setitem__(self, name: str, value: Any) -> None:
        begins = name in self.ends and not value.requires_grad
        super().__setitem__(name, value.detach().requires_grad_() if begins else value)


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    return type(value)(_detached(item) for item in value) if isinstance(value, (tuple, list)) else value
