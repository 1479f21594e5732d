"""The loss of a run outside a compiled step: for backpropagation, and to judge any model by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reclra_graph.errors import ModelError, Problem, UsageError
from reclra_graph.rules import loss as rules
from reclra_graph.structure import label, tensors

_USUAL = ("logits", "out")


@dataclass(frozen=True)
class Objective:
    """One of ``reclra_graph.options.LOSSES`` of one result, with the options that rg.compile has for it.

    ``output``: the result's label; None for "logits", "out", or the first."""

    kind: str = "cross-entropy"
    output: str | None = None
    smoothing: float = 0.0
    ignore: int | None = None
    weights: tuple[float, ...] = ()

    @property
    def classes(self) -> bool:
        """Whether targets are classes."""
        return self.kind in ("cross-entropy", "causal-lm")

    def result(self, output: Any) -> Tensor:
        """The result, among all that forward() returned. Raises ModelError RG409 where it is not there."""
        found = {label(path): value for path, value in tensors(output) if value.is_floating_point()}
        names = (self.output,) if self.output is not None else (*_USUAL, *list(found)[:1])
        name = next((item for item in names if item in found), None)
        if name is None:
            cause = f"forward() returns no {self.output!r}; it returns {', '.join(found) or 'no tensor'}"
            raise ModelError(Problem("RG409", cause, "output"))
        return found[name]

    def loss(self, output: Any, target: Tensor) -> Tensor:
        """The loss of what forward() returned, a mean over the batch, as ``reclra_graph.rules.loss`` has it: 0-dim."""
        return self.of(self.result(output), target)

    def of(self, z: Tensor, target: Tensor) -> Tensor:
        """The loss of the result itself."""
        if self.kind == "mse":
            return rules.mse(z, target)
        if self.kind == "bce-with-logits":
            return rules.bce_with_logits(z, target)
        weights, shift, axis = self.weights or None, self.kind == "causal-lm", axis_of(z, target)
        if target.is_floating_point():
            return rules.soft_cross_entropy(z, target, axis, self.smoothing, weights)
        return rules.cross_entropy(z, target, axis, self.smoothing, self.ignore, weights, shift)

    def wrong(self, z: Tensor, target: Tensor, top: int = 1) -> tuple[Tensor, int]:
        """How many targets are not among the ``top`` classes with the highest score in the result z, and how many
        count. For losses that know no classes: the sum of the loss over the samples, and their number."""
        if not self.classes:
            return self.of(z, target) * len(target), len(target)
        axis = axis_of(z, target)
        z = z.movedim(axis, -1)
        if target.is_floating_point():
            target = target.movedim(axis, -1).argmax(-1)
        if self.kind == "causal-lm":
            z, target = z[:, :-1], target[:, 1:]
        missed = (z.topk(top, -1).indices != target.unsqueeze(-1)).all(-1)
        counts = torch.ones_like(missed) if self.ignore is None else target != self.ignore
        return (missed & counts).sum(), int(counts.sum())


def axis_of(z: Tensor, target: Tensor) -> int:
    """The dimension of the classes: the last one of a sequence's scores, [B, T, C], else dimension 1."""
    if z.dim() < 3:
        return 1 if z.dim() == 2 else -1
    last = target.shape == z.shape[:-1]
    return -1 if last and (z.dim() == 3 or target.shape != (z.shape[0], *z.shape[2:])) else 1


def objective(options: Mapping[str, Any]) -> Objective:
    """The objective that options of rg.compile describe. Raises UsageError RG405 for losses of several results."""
    loss, output = options.get("loss", "cross-entropy"), options.get("output")
    if isinstance(loss, Mapping):
        if len(loss) != 1:
            cause = f"a loss for each of {len(loss)} results: a data set has one target"
            raise UsageError(Problem("RG405", cause, "loss", "Give one loss, and name its result with --output."))
        ((output, loss),) = loss.items()
    return Objective(
        str(loss), output, float(options.get("label_smoothing", 0.0)), options.get("ignore_index"),
        tuple(float(item) for item in options.get("class_weights") or ()),
    )  # fmt: skip
