"""The reference interpreter: a wiring plan, executed as Algorithm 1 (corrected form) is written, one call at a time.

Slow and plain on purpose. It runs the operator graph operator by operator, then the recursion ``align`` over the error
edges, and knows nothing of tasks, lanes or emitted code: it is what those are tested against.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import prod
from typing import Any, TypeAlias

import numpy
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from reclra_graph.ir.operators import OPAQUE, Operator, Ref, references
from reclra_graph.ir.regions import LOCAL, Region
from reclra_graph.ir.tasks import Call
from reclra_graph.ir.wiring import Edge, WiringPlan
from reclra_graph.options import AS_WEIGHT, rank_of
from reclra_graph.reference_back import Back
from reclra_graph.reference_rules import ends, loss_of, outer_product, readout_error
from reclra_graph.rules import adjoint, discrepancy, implicit, layout, mirror, precision, rule, synapse, target
from reclra_graph.rules.fit import OUTER
from reclra_graph.rules.forms import Convolution, convolution, what_learns
from reclra_graph.rules.operators import apply_chain, function, resolve
from reclra_graph.rules.table import carry, update


def reference_step(
    plan: WiringPlan,
    parameters: dict[str, Tensor],
    synapses: dict[str, Tensor],
    inputs: Sequence[Tensor],
    y: Tensor | Mapping[str, Tensor],
    modules: Mapping[str, nn.Module] | None = None,
) -> Tensor:
    """One training step with plain SGD: changes ``parameters`` (key → tensor, buffers and constants among them) and
    ``synapses`` (``"9->5"`` → tensor) in place; returns the loss, a 0-dim tensor. ``inputs`` are the graph's, in order;
    ``y`` is the target, by the output's label where there are several; ``modules`` holds the opaque sub-modules, with
    parameters of their own that equal ``parameters``."""
    with torch.no_grad():
        return _Step(plan, parameters, synapses, inputs, y, modules or {}).run()


def reference_mirror(
    plan: WiringPlan,
    parameters: dict[str, Tensor],
    synapses: dict[str, Tensor],
    inputs: Sequence[Tensor],
    modules: Mapping[str, nn.Module] | None = None,
) -> None:
    """Mirror mode: ``synapses`` whose rule is "mirror" learn from noise, with plain SGD and in place, and nothing else
    does. The rest as for ``reference_step``."""
    with torch.no_grad():
        _Step(plan, parameters, synapses, inputs, {}, modules or {}).mirror()


_Draws: TypeAlias = tuple[Tensor, Any, Any]


def _drawing() -> _Draws:
    """Where torch's, Python's and numpy's random numbers stand."""
    return torch.get_rng_state(), random.getstate(), numpy.random.get_state()


def _draw_on(state: _Draws) -> None:
    torch.set_rng_state(state[0])
    random.setstate(state[1])
    numpy.random.set_state(state[2])


class _Step:
    def __init__(
        self,
        plan: WiringPlan,
        parameters: dict[str, Tensor],
        synapses: dict[str, Tensor],
        inputs: Sequence[Tensor],
        y: Tensor | Mapping[str, Tensor],
        modules: Mapping[str, nn.Module],
    ) -> None:
        self.modules = modules
        self.plan, self.parameters, self.synapses, self.y = plan, parameters, synapses, y
        self.graph, self.regions = plan.regions.graph, plan.regions.regions
        self.low = plan.regions.low or None
        self.batch = next(
            value.shape[0]
            for item, value in zip(self.graph.inputs, inputs, strict=True)
            if item.type.shape[:1] == (self.graph.batch,)
        )
        self.device = inputs[0].device
        self.values: dict[str, Any] = {item.name: value for item, value in zip(self.graph.inputs, inputs, strict=True)}
        for held in self.graph.held:
            self.values[held.name] = parameters[held.key].detach().clone()
        self.drawn: dict[str, _Draws] = {}
        self.errors: dict[int, Tensor] = {}
        self.displacements: dict[int, list[Tensor]] = {}
        self.deltas: dict[str, Tensor] = {}
        self.moved: dict[str, Tensor] = {}
        self.noises: dict[int, Tensor] = {}

    def run(self) -> Tensor:
        """The step; returns its loss."""
        self.forward()
        loss = self.recursion()
        self.write()
        return loss

    def mirror(self) -> None:
        self.forward()
        for edge in self.plan.edges:
            if edge.rule == "mirror":
                self._outer(edge, None)
        for name, moved in self.moved.items():
            self.synapses[name].add_(moved)

    def forward(self) -> None:
        """The model's own operators; behind them, the noise of mirrors is drawn, region by region."""
        for operator in self.graph.operators:
            if operator.target == OPAQUE:
                self.values[operator.name] = self._opaque(operator, self.values, {})
                continue
            args = [resolve(item, self.values, self.device) for item in operator.args]
            kwargs = {key: resolve(item, self.values, self.device) for key, item in operator.kwargs}
            self.values[operator.name] = function(operator.target)(*args, **kwargs)
        for number in sorted({edge.target for edge in self.plan.edges if edge.rule == "mirror"}):
            self.noises[number] = mirror.noise(self.values[self.regions[number].post])

    def recursion(self) -> Tensor:
        """The outputs' errors, and ``align`` from each; returns the loss."""
        total = None
        outputs = [self.regions[number] for number in self.plan.regions.outputs]
        for output, kind in zip(outputs, self.plan.losses, strict=True):
            y = self.y[kind.label] if isinstance(self.y, Mapping) else self.y
            z = self.values[output.post].to(self._dtype(output.id))
            value, error = loss_of(z, y, output, kind, self.batch)
            self.errors[output.id] = discrepancy.scaled(error, self.plan.rates.kappa_of(output.id))
            total = value if total is None else total + value
        for output in outputs:
            self.learn(output)
        for output in outputs:
            self.align(output)
        assert total is not None
        return total

    def write(self) -> None:
        """Plain SGD, and the buffers' new values."""
        rates = self.plan.rates
        for edge in self.plan.edges:
            if edge.form == "adjoint" and edge.rule in AS_WEIGHT:
                self.moved[edge.synapse] = -rates.lr * adjoint.mirrored(rates.gamma, self.deltas[edge.weight])
        for key, delta in self.deltas.items():
            self.parameters[key].sub_(rates.lr * delta)
        for name, moved in self.moved.items():
            self.synapses[name].add_(moved)
        for buffer in self.graph.buffers:
            if buffer.updated is not None:
                self.parameters[buffer.key].copy_(self.values[buffer.updated])

    def _dtype(self, number: int) -> torch.dtype:
        """The dtype of a region's error."""
        found: torch.dtype = getattr(torch, self.plan.regions.error_type(number).dtype)
        return found

    def align(self, source: Region) -> None:
        """The recursion of Algorithm 1: send the error of one region on; a region that has heard from all that send to
        it computes its own error, learns, and sends on in turn."""
        self._send_back(source)
        e = layout.to_samples(self.errors[source.id], source.layout.dim, source.layout.before, source.layout.after)
        e = e.to(self._dtype(self.plan.regions.output))
        for edge in self.plan.outgoing.get(source.id, ()):
            if edge.form == "adjoint":
                continue
            region = self.regions[edge.target]
            arrives = e
            if edge.rule == "readout":
                z = self.values[region.post]
                arrives = readout_error(self.plan, edge, z, self.y, self.synapses[edge.synapse], self.batch)
            sent = self._sent(edge, arrives, source, region)
            if edge.rule == "eq6":
                self._synapse(edge, sent, e, source, region)
            elif edge.rule in OUTER:
                self._outer(edge, arrives)
            d = layout.from_samples(sent, region.layout.dim, region.layout.before, region.layout.after)
            self._deliver(region, d.to(self._dtype(region.id)))

    def _deliver(self, region: Region, d: Tensor) -> None:
        """Let a displacement arrive; the last one gives the region its error. All adjoint edges from one region deliver
        together."""
        self.displacements.setdefault(region.id, []).append(d)
        edges = self.plan.incoming[region.id]
        waiting = {(edge.source, "" if edge.form == "adjoint" else edge.name) for edge in edges}
        if len(self.displacements[region.id]) < len(waiting):
            return
        rates, h, z = self.plan.rates, self.values[region.pre], self.values[region.post]
        total = target.total(*self.displacements[region.id])
        y = target.target(h, total, rates.beta, self._phi(region))
        if self.graph.is_low(region.post):
            z = target.representation(h, self._phi(region))
        error = discrepancy.mismatch(z, y, rates.norm, rates.kappa_of(region.id))
        self.errors[region.id] = discrepancy.gained(error, rates.beta) if rates.gain else error
        self.learn(region)
        self.align(region)

    def _send_back(self, source: Region) -> None:
        """d over all adjoint edges that leave a region, and Eq. 6 for those that learn by it."""
        back = Back(self.plan, self.values, self.synapses, self._call, self.batch)
        back.send(source, self.errors[source.id])
        for name, delta in back.outers.items():
            change, held = -self.plan.rates.lr * delta, self.moved.get(name)
            self.moved[name] = change if held is None else held + change
        for number, d in back.displacements.items():
            self._deliver(self.regions[number], d)

    def _phi(self, region: Region) -> Any:
        chain = self._chain(region)
        assert torch.equal(apply_chain(chain, self.values[region.pre]), self.values[region.post])
        return chain

    def _chain(self, region: Region) -> Any:
        chain = []
        before = region.pre
        for name in region.activation:
            operator = self.graph.by_name[name]
            args = tuple(Ref("_") if item == Ref(before) else item for item in operator.args)
            chain.append((operator.target, args, operator.kwargs))
            before = name
        return tuple(chain)

    def _sent(self, edge: Edge, e: Tensor, source: Region, region: Region) -> Tensor:
        """d over one edge (Eq. 3)."""
        if rank_of(edge.form):
            whole = self.synapses[f"{edge.synapse}.A"] @ self.synapses[f"{edge.synapse}.B"]
            return synapse.dense_displace(e, whole, source.shape, region.shape, low=self.low)
        weights = self.synapses[edge.synapse]
        if edge.form == "implicit":
            whole = implicit.matrix(weights, region.units, source.units, e.dtype)
            if edge.rule == "eq6":
                whole = whole @ self.synapses[self.plan.matrix_of[edge.name].name]
            return synapse.dense_displace(e, whole, source.shape, region.shape)
        if edge.form == "conv":
            form = self._convolution(edge)
            rest = (form.stride, form.padding, form.output_padding, form.dilation, form.groups)
            return synapse.conv_displace(e, weights, *rest, low=self.low)
        displace = getattr(synapse, f"{edge.form}_displace")
        axes = self._places(edge, source, region)
        found: Tensor = displace(e, weights, source.shape, region.shape, *axes, low=self.low)
        return found

    def _places(self, edge: Edge, source: Region, region: Region) -> tuple[Any, ...]:
        """What a form wants to know beside the shapes: where features stand, in the regions or in E's rows."""
        if edge.form == "token":
            return (source.axis, region.axis)
        return (self.plan.rows_by_position(region),) if edge.form == "dense" else ()

    def _convolution(self, edge: Edge) -> Convolution:
        found = convolution(self.plan.regions, edge.source, edge.target)
        assert found is not None, edge
        return found

    def _synapse(self, edge: Edge, d: Tensor, e: Tensor, source: Region, region: Region) -> None:
        """Note the change of a synapse: it acts once all errors have been sent."""
        rates, name = self.plan.rates, what_learns(self.plan, edge)
        rate = (rates.gamma, self.batch, True)
        if edge.form == "implicit" and name in self.moved:
            return  # another edge has brought the change that all share
        if edge.form == "implicit" or rank_of(edge.form):
            delta = synapse.dense_eq6_few(self.synapses[name], e, *rate, source.shape, low=self.low)
            if edge.form == "implicit":
                delta = delta * self.plan.matrix_of[edge.name].runs
        elif edge.form == "conv":
            form = self._convolution(edge)
            delta = synapse.conv_eq6(
                d, e, self.synapses[name], *rate, prod(source.shape[1:]), form.stride, form.padding, form.dilation,
                form.groups, low=self.low,
            )  # fmt: skip
        else:
            learn = getattr(synapse, f"{edge.form}_eq6")
            first = d if edge.form == "dense" else self.synapses[name]
            axes = self._places(edge, source, region)
            delta = learn(first, e, *rate, source.shape, region.shape, *axes, low=self.low)
        self._move(name, delta * (-rates.lr if rates.sign == "descend" else rates.lr))

    def _move(self, name: str, change: Tensor) -> None:
        held = self.moved.get(name)
        self.moved[name] = change if held is None else held + change

    def _outer(self, edge: Edge, e: Tensor | None) -> None:
        """Note the change of a synapse by a rule that knows nothing of E. ``e``: what it carried, if anything did."""
        a, b = ends(self.plan, self.values, edge, self.noises.get(edge.target), e)
        delta = outer_product(self.plan, edge, a, b, self.synapses[edge.synapse], self.batch)
        self._move(edge.synapse, -self.plan.rates.lr * delta)

    def learn(self, region: Region) -> None:
        """Eq. 5 for every parameter of the region, or its local derivative where the plan says so."""
        if self.plan.update_of.get(region.id) == LOCAL:
            for key, delta in self._local(region).items():
                held = self.deltas.get(key)
                self.deltas[key] = delta if held is None else held + delta
            return
        for item in region.updates:
            error = self.errors[region.id]
            route = (*item.path, item.operator)
            for over, value in pairwise(route):
                call = carry(self.graph.by_name[over], self.graph, value)
                assert call is not None
                error = self._call(call, error)
            found = update(self.graph.by_name[item.operator], self.graph, item.position)
            assert found is not None
            delta = self._call(found, error)
            held = self.deltas.get(item.parameter)
            self.deltas[item.parameter] = delta if held is None else held + delta

    def _local(self, region: Region) -> dict[str, Tensor]:
        """PyTorch's own derivative of z_i by the region's parameters, against e_i; other regions' values are fixed."""
        moving = {item.name: item.key for item in self.graph.parameters if item.key in region.parameters}
        members = [item for item in self.graph.operators if item.name in {*region.operators, *self.graph.derived}]

        def forward(*parameters: Tensor) -> Tensor:
            values = {**self.values, **dict(zip(moving, parameters, strict=True))}
            changed = set(moving)
            for operator in members:
                if not any(name in changed for name in operator.reads) or "bernoulli" in operator.target:
                    continue
                changed.add(operator.name)
                if operator.target == OPAQUE:
                    values[operator.name] = self._opaque(operator, values, values)
                    continue
                args = [resolve(item, values, self.device) for item in operator.args]
                kwargs = {key: resolve(item, values, self.device) for key, item in operator.kwargs}
                if operator.target == "aten.native_dropout.default":  # the mask that was drawn stays
                    mask = self.values[operator.name][1]
                    values[operator.name] = (args[0] * mask / (1 - args[1]), mask)
                else:
                    values[operator.name] = function(operator.target)(*args, **kwargs)
            found: Tensor = values[region.post]
            return found

        with torch.enable_grad():
            leaves = [self.values[name].detach().requires_grad_() for name in moving]
            result = forward(*leaves)
        error, unit = self.errors[region.id], torch.ones(())
        if result.dtype == torch.float16 and self.low:
            unit = precision.local_unit(error, self.batch, region.units // region.features)
        error = (error * unit).to(result.dtype)
        found = torch.autograd.grad(result, leaves, error, allow_unused=True)
        return {
            key: torch.zeros_like(leaf) if delta is None else delta / unit / self.batch
            for key, leaf, delta in zip(moving.values(), leaves, found, strict=True)
        }

    def _opaque(self, operator: Operator, values: dict[str, Any], parameters: dict[str, Any]) -> list[Tensor]:
        """The results of an opaque sub-module, with other values for its parameters where some are given."""
        path, args, kwargs, held = operator.args
        assert isinstance(path, str)
        assert isinstance(kwargs, tuple)
        keys = {item.name: item.key.removeprefix(f"{path}.") for item in self.graph.parameters}
        given = {keys[name]: parameters[name] for name in references(held) if name in parameters}
        named = {str(pair[0]): resolve(pair[1], values, self.device) for pair in kwargs if isinstance(pair, tuple)}
        again = operator.name in self.drawn
        before = _drawing()
        if again:  # for its derivative: with the numbers that were drawn, and leaving its buffers alone
            _draw_on(self.drawn[operator.name])
            given = {key: item.clone() for key, item in self.modules[path].named_buffers()} | given
        else:
            self.drawn[operator.name] = before
        try:
            result = functional_call(self.modules[path], given, tuple(resolve(args, values, self.device)), named)
        finally:
            if again:
                _draw_on(before)
        return [item for item in tree_leaves(result) if isinstance(item, Tensor)]

    def _call(self, call: Call, error: Tensor, more: Mapping[str, Any] | None = None) -> Tensor:
        values = {**self.values, "_": error, "B": self.batch, **(more or {})}

        def given(argument: Any) -> Any:
            if isinstance(argument, Ref):
                return values[argument.name]
            return tuple(given(item) for item in argument) if isinstance(argument, tuple) else argument

        result: Tensor = rule(call.function)(*(given(item) for item in call.args), **dict(call.kwargs))
        return result


Interpreter = _Step
"""One step in parts, for those who look inside: ``forward`` fills ``values``; ``recursion`` fills ``errors`` and
``displacements``, and what parameters and synapses are to learn; ``write`` changes what was given."""
