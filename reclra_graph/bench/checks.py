"""The checks that a model of the zoo must pass; each returns what it found, with ``ok`` and, where not, the cause."""

from __future__ import annotations

import copy
import math
import random
import statistics
import time
from typing import Any

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import reclra_graph as rg
from reclra_graph.bench.compare import FAR, difference, furthest
from reclra_graph.bench.model import ZooModel, call, chosen, labelled
from reclra_graph.ir.operators import OPAQUE
from reclra_graph.passes.quiet import hushed
from reclra_graph.reference import reference_step
from reclra_graph.runtime.compiled import CompiledStep
from reclra_graph.structure import at

STEPS = 20
RATES = (0.1, 0.01, 0.001)
"""Learning rates to try, each from the same start, until the loss has fallen."""

EXACT, CLOSE = 1e-9, 1e-4
"""Largest relative difference that counts as equal, in float64 and in float32."""


def export_alone(zoo: ZooModel) -> str:
    """``torch.export`` with a free batch, else as the example is, decomposed: what a compilation is compared with."""
    failure: Exception | None = None
    for free in (True, False):
        twin = copy.deepcopy(zoo.model).train()
        # An export that fails leaves marks on its tensors, which would free the sizes in the next one too.
        args, kwargs = pytree.tree_map(_fresh, (zoo.args, zoo.kwargs))
        shapes: Any = pytree.tree_map(_free, args or kwargs) if free else None
        try:
            with hushed(), torch.random.fork_rng(devices=[]):
                program = torch.export.export(twin, args, kwargs or None, dynamic_shapes=shapes, strict=False)
                program.run_decompositions({})
        except Exception as error:  # a model that cannot be exported has no time to compare with
            failure = error
            continue
        return "free batch" if free else "fixed batch"
    assert failure is not None
    raise failure


def _fresh(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _free(value: Any) -> Any:
    return {0: torch.export.Dim.AUTO} if isinstance(value, Tensor) and value.dim() else None


def compiled(zoo: ZooModel) -> CompiledStep:
    """The step of a model in train mode."""
    zoo.model.train()
    return rg.compile(zoo.model, zoo.inputs, loss=zoo.loss, lr=RATES[1], **zoo.options)


def seeded(seed: int) -> None:
    """Seed every generator that a model may draw from: torch's, numpy's and Python's own."""
    torch.manual_seed(seed)
    numpy.random.seed(seed % (1 << 32))
    random.seed(seed)


def accounted(model: nn.Module, step: CompiledStep) -> dict[str, Any]:
    """Every parameter that requires grad is updated by a region, or is listed with the reason."""
    regions = step.plan.regions
    updated = {key for region in regions.regions for key in region.parameters}
    frozen = dict(regions.frozen)
    aliases = {key: item.key for item in regions.graph.parameters for key in item.tied}
    wanted = [key for key, item in model.named_parameters() if item.requires_grad]
    missing = [key for key in wanted if not {key, aliases.get(key, key)} & (updated | set(frozen))]
    unexplained = [key for key, reason in frozen.items() if not reason]
    reasons: dict[str, list[str]] = {}
    for key, reason in frozen.items():
        reasons.setdefault(reason, []).append(key)
    found = {
        "ok": not missing and not unexplained,
        "all": len(wanted),
        "updated": len(updated),
        "frozen": {reason: {"count": len(keys), "first": keys[:3]} for reason, keys in reasons.items()},
    }
    if not found["ok"]:
        lost = missing + unexplained
        found["cause"] = f"{len(lost)} parameters are neither updated nor listed with a reason"
        found["where"] = ", ".join(lost[:5])
    return found


def falls(zoo: ZooModel, step: CompiledStep, seed: int) -> dict[str, Any]:
    """``STEPS`` steps on the one batch lower the loss, measured before and after under the same seed."""
    held = {key: value.clone() for key, value in step.storage().items()}
    synapses = {key: value.clone() for key, value in step.synapses.items()}
    before, found, times = math.nan, [], []
    for lr in RATES:
        for store, start in ((step.storage(), held), (step.synapses, synapses)):
            for key, value in start.items():
                store[key].copy_(value)
        step.lr = lr
        after, told_by = FAR, ""
        try:
            for number in range(STEPS + 1):
                seeded(seed + number % STEPS)  # the last measures under the masks of the first
                started = time.perf_counter()
                after = float(step(zoo.inputs, zoo.target))
                times.append(time.perf_counter() - started)
                if number == 0:
                    before = after
        except rg.StepError as error:
            if "RG604" not in error.codes:
                raise
            after, told_by = FAR, "RG604"
        found.append({"lr": lr, "after": after if math.isfinite(after) else None, "code": told_by})
        if after < before:
            break
    moved = sum(not torch.equal(value, held[key]) for key, value in zoo.model.named_parameters() if key in held)
    result = {
        "ok": after < before,
        "before": before if math.isfinite(before) else None,
        "after": found[-1]["after"],
        "lr": found[-1]["lr"],
        "tried": found,
        "moved": moved,
        "step_seconds": round(statistics.median(times), 4) if times else None,
    }
    if not result["ok"]:
        result["cause"] = f"{STEPS} steps did not lower the loss of {before:.6g} at any rate of {RATES}"
    return result


def evaluated(zoo: ZooModel, original: nn.Module, seed: int) -> dict[str, Any]:
    """A fresh copy of the model with the trained state gives, in eval mode, what the trained model gives."""
    fresh = copy.deepcopy(original)
    fresh.load_state_dict(zoo.model.state_dict())
    outputs = []
    for model in (zoo.model, fresh):
        model.eval()
        seeded(seed)
        with torch.no_grad():
            outputs.append(dict(labelled(call(model, zoo.inputs))))
    zoo.model.train()
    worst, where = furthest(outputs[0], outputs[1])
    return _compared(worst, where, 1e-6, "the trained model differs in eval mode from a copy with its state")


def stepped(zoo: ZooModel, seed: int) -> dict[str, dict[str, Any]]:
    """One step equals the reference interpreter's ("reference"); its loss and its buffers are those of the model's own
    forward() in train mode under the same seed ("forward", "buffers")."""
    limit = EXACT if next(zoo.model.parameters()).dtype == torch.float64 else CLOSE
    twin = copy.deepcopy(zoo.model).train()
    seeded(seed)
    with torch.no_grad():
        own = plain_loss(call(twin, zoo.inputs), zoo.loss, zoo.target)
    # A buffer that is not saved and gets another shape is a cache: forward() makes it again wherever it is read.
    caches = [
        key
        for key, value in zoo.model.named_buffers()
        if key not in zoo.model.state_dict() and twin.get_buffer(key).shape != value.shape
    ]
    buffers = {key: value for key, value in twin.named_buffers() if key not in caches}
    del twin
    step = compiled(zoo)
    held = {key: value.clone() for key, value in step.storage().items()}
    synapses = {key: value.clone() for key, value in step.synapses.items()}
    graph = step.plan.regions.graph
    apart = copy.deepcopy(zoo.model).train()
    opaque = [str(item.args[0]) for item in graph.operators if item.target == OPAQUE]
    modules = {path: apart.get_submodule(path) for path in opaque}
    seeded(seed)
    loss = step(zoo.inputs, zoo.target)
    seeded(seed)
    inputs = [at(zoo.args, zoo.kwargs, item.path) for item in graph.inputs]
    wanted = reference_step(step.plan, held, synapses, inputs, zoo.target, modules)
    for path, module in modules.items():  # an opaque sub-module moves buffers of its own
        held.update({f"{path}.{key}": value for key, value in module.named_buffers()})
    worst, where = furthest(step.storage(), held)
    gap, synapse = furthest(step.synapses, synapses)
    if gap > worst:
        worst, where = gap, f"E.{synapse}"
    gap = difference(loss, wanted)
    if gap > worst:
        worst, where = gap, "loss"
    equal = _compared(worst, where, limit, "one step differs from the reference interpreter's")
    worst, where = furthest({key: zoo.model.get_buffer(key) for key in buffers}, buffers)
    remade = {"caches": caches} if caches else {}
    return {
        "reference": equal,
        "forward": _compared(
            difference(loss, own.to(loss.dtype)), "loss", limit, "the loss differs from forward()'s under the same seed"
        ),
        "buffers": {
            **_compared(worst, where, limit, "a buffer differs from what forward() leaves in train mode"),
            **remade,
        },
    }


def plain_loss(output: Any, loss: str | dict[str, str], target: Any) -> Tensor:
    """The loss of a model's output by PyTorch's own functions, a 0-dim tensor; the sum where there are several."""
    if isinstance(loss, dict):
        found = dict(labelled(output))
        parts = [plain_loss(found[label], kind, target[label]) for label, kind in loss.items()]
        return torch.stack(parts).sum()
    z = chosen(output)
    if loss == "mse":
        return F.mse_loss(z, target, reduction="sum") / (2 * z.shape[0])
    if loss == "bce-with-logits":
        return F.binary_cross_entropy_with_logits(z, target, reduction="sum") / z.shape[0]
    if loss == "causal-lm":
        z, target = z[:, :-1], target[:, 1:]
    return F.cross_entropy(z.transpose(1, 2) if z.dim() == 3 else z, target)


def _compared(worst: float, where: str, limit: float, cause: str) -> dict[str, Any]:
    found = {"ok": worst <= limit, "difference": worst if math.isfinite(worst) else None, "where": where}
    return found if found["ok"] else {**found, "cause": f"{cause}: by {worst:.3g}"}
