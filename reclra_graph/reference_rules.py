"""What the reference interpreter does for synapse rules beside Eq. 6: changes by outer products, readouts, and how a
region responds to noise at another. One call at a time, from the operator graph; nothing of tasks or emitted code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

from reclra_graph.ir.operators import Operator
from reclra_graph.ir.regions import Region
from reclra_graph.ir.wiring import Edge, Loss, WiringPlan
from reclra_graph.rules import discrepancy, layout, loss, mirror, outer, readout
from reclra_graph.rules.forms import convolution
from reclra_graph.rules.operators import function, resolve
from reclra_graph.rules.way import mask_of, way


def as_samples(plan: WiringPlan, region: Region, value: Tensor) -> Tensor:
    """A value of a region's as synapses take it."""
    dtype: torch.dtype = getattr(torch, plan.regions.synapse_dtype)
    place = (region.layout.dim, region.layout.before, region.layout.after)
    return layout.to_samples(value, *place).to(dtype)


def loss_of(z: Tensor, y: Tensor, output: Region, kind: Loss, batch: int) -> tuple[Tensor, Tensor]:
    """A loss and the error that it causes at z_L, both in the output's own layout."""
    place = (output.layout.dim, output.layout.before, output.layout.after)
    z = layout.to_samples(z, *place)
    if y.dim() > 1:
        y = layout.to_samples(y, *place)
    if kind.classes:
        form = (kind.axis, kind.smoothing, kind.ignore, kind.weights or None, kind.kind == "causal-lm")
        positions = output.units // output.features
        error = loss.cross_entropy_error(z, y, output.features, positions, *form, batch)
        value = loss.cross_entropy(z, y, *form)
    elif kind.kind == "mse":
        value, error = loss.mse(z, y), loss.mse_error(z, y)
    else:
        value, error = loss.bce_with_logits(z, y), loss.bce_with_logits_error(z, y)
    return value, layout.from_samples(error, *place)


def readout_error(
    plan: WiringPlan, edge: Edge, z: Tensor, target: Tensor | Mapping[str, Tensor], synapse: Tensor, batch: int
) -> Tensor:
    """κ_j times the error of the loss of j for Eᵀ z_i, as synapses take it."""
    output = plan.regions.regions[edge.source]
    kind = plan.losses[plan.regions.outputs.index(output.id)]
    logits = _read_out(plan, edge, as_samples(plan, plan.regions.regions[edge.target], z), synapse)
    place = (output.layout.dim, output.layout.before, output.layout.after)
    y = target[kind.label] if isinstance(target, Mapping) else target
    _, error = loss_of(layout.from_samples(logits, *place), y, output, kind, batch)
    return as_samples(plan, output, discrepancy.scaled(error, plan.rates.kappa_of(output.id)))


def ends(
    plan: WiringPlan, values: Mapping[str, Any], edge: Edge, noise: Tensor | None, e: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What stands at an edge's target and at its source, as synapses take it. ``noise``: n_i, for a mirror; ``e``: what
    the edge carried, for all others."""
    source, target = plan.regions.regions[edge.source], plan.regions.regions[edge.target]
    if edge.rule != "mirror":
        assert e is not None
        return as_samples(plan, target, values[target.post]), e
    assert noise is not None
    after, rates = _disturbed(plan, values, edge, noise), plan.rates
    b = mirror.response(values[source.pre], after, rates.mirror_noise, plan.regions.synapse_dtype)
    return as_samples(plan, target, noise), as_samples(plan, source, b)


def outer_product(plan: WiringPlan, edge: Edge, a: Tensor, b: Tensor, synapse: Tensor, batch: int) -> Tensor:
    """γ a bᵀ for one edge, a and b as synapses take them."""
    source, target = plan.regions.regions[edge.source], plan.regions.regions[edge.target]
    gamma, low = plan.rates.gamma, plan.regions.low or None
    if edge.form == "conv":
        form = convolution(plan.regions, edge.source, edge.target)
        assert form is not None
        places = prod(source.shape[1:])
        rest = (form.stride, form.padding, form.dilation, form.groups)
        return outer.conv(a, b, synapse, gamma, batch, places, *rest, low=low)
    found: Callable[..., Tensor] = getattr(outer, edge.form)
    return found(a, b, gamma, batch, source.shape, target.shape, *_more(plan, edge), low=low)


def _read_out(plan: WiringPlan, edge: Edge, z: Tensor, synapse: Tensor) -> Tensor:
    """Eᵀ z_i, of the shape that the output has among samples; z as synapses take it."""
    source, target = plan.regions.regions[edge.source], plan.regions.regions[edge.target]
    low = plan.regions.low or None
    if edge.form == "conv":
        form = convolution(plan.regions, edge.source, edge.target)
        assert form is not None
        return readout.conv(z, synapse, form.stride, form.padding, form.dilation, form.groups, low=low)
    found: Callable[..., Tensor] = getattr(readout, edge.form)
    return found(z, synapse, source.shape, target.shape, *_more(plan, edge), low=low)


def _more(plan: WiringPlan, edge: Edge) -> tuple[Any, ...]:
    source, target = plan.regions.regions[edge.source], plan.regions.regions[edge.target]
    if edge.form == "token":
        return (source.axis, target.axis)
    return (plan.rows_by_position(target),) if edge.form == "dense" else ()


def _disturbed(plan: WiringPlan, values: Mapping[str, Any], edge: Edge, noise: Tensor) -> Tensor:
    """h_j where z_i has the noise n_i on it, times σ: every operator between the two once more."""
    graph, regions = plan.regions.graph, plan.regions.regions
    z = values[regions[edge.target].post]
    found = {**values, regions[edge.target].post: z + plan.rates.mirror_noise * noise}
    for operator in way(plan.regions, edge.target, (edge.source,)):
        found[operator.name] = _again(operator, found, values, mask_of(operator, graph), z.device)
    result: Tensor = found[regions[edge.source].pre]
    return result


def _again(
    operator: Operator, found: Mapping[str, Any], values: Mapping[str, Any], mask: str, device: torch.device
) -> Any:
    args = [resolve(item, dict(found), device) for item in operator.args]
    kwargs = {key: resolve(item, dict(found), device) for key, item in operator.kwargs}
    if mask:
        keep = 1.0 - args[1]
        return args[0] * values[mask] / (keep or 1.0), values[mask]
    return function(operator.target)(*args, **kwargs)
