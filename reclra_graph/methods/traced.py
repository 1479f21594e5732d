"""A model's operator graph, run operator by operator on the model's own parameters, for the loops of the methods."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from reclra_graph.api import make_options
from reclra_graph.check_model import plain_model
from reclra_graph.errors import ModelError, Problem, StepError, UsageError
from reclra_graph.ir.operators import Dim, Operator, Ref
from reclra_graph.ir.regions import Region
from reclra_graph.ir.tasks import Call
from reclra_graph.passes.calls import sized
from reclra_graph.passes.capture import capture
from reclra_graph.passes.emit_head import smallest_batch
from reclra_graph.passes.partition import partition
from reclra_graph.passes.target_types import target_types
from reclra_graph.passes.wire import wire
from reclra_graph.rules import layout, loss, rule
from reclra_graph.rules.operators import Chain, function, resolve
from reclra_graph.runtime.compiled import check_model
from reclra_graph.structure import at, called
from reclra_graph.verify import verify

OPTIONS = (
    "loss", "output", "label_smoothing", "ignore_index", "class_weights", "frontend", "seed",
    "momentum", "betas", "eps", "weight_decay",
)  # fmt: skip
"""The options of ``rg.compile`` that every loop takes, with the same meaning."""


class TracedModel:
    """The model, captured and partitioned as ``rg.compile`` does it.

    ``options`` holds the common options, ``regions`` the regions with their graph. Raises UsageError for impossible
    options, ModelError for a model that cannot be captured.
    """

    def __init__(self, model: nn.Module, example_inputs: Any, given: Mapping[str, Any]) -> None:
        self.model = plain_model(model)
        self.options = make_options(**given, wiring="flat")
        if problems := self.options.problems():
            raise UsageError(problems)
        graph, constants = capture(self.model, *called(example_inputs), self.options)
        check_model(self.model, verify(graph))
        self.graph, self.constants = graph, constants
        self.regions = verify(partition(graph))
        plan = verify(wire(self.regions, self.options))  # for what it says of losses and targets
        self.losses, self.targets = plan.losses, target_types(plan)

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""
        return next(self.model.parameters()).device

    def learning(self) -> dict[str, nn.Parameter]:
        """The parameters that learn, by key: those that ask for it and have a rule in the partition."""
        keys = {key for region in self.regions.regions for key in region.parameters}
        return {name: item for name, item in self.model.named_parameters() if name in keys}

    def values(self, inputs: Iterable[Tensor]) -> dict[str, Any]:
        """What a run begins with: the inputs, and the model's own parameters and buffers, by value name."""
        held: dict[str, Tensor] = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        for key, value in self.constants.items():
            if key not in held or held[key].shape != value.shape:
                held[key] = value.to(self.device)
        found: dict[str, Any] = {item.name: value for item, value in zip(self.graph.inputs, inputs, strict=True)}
        found.update({item.name: held[item.key] for item in self.graph.held})
        return found

    def run(self, operator: Operator, values: dict[str, Any]) -> Any:
        """The operator's result for the values that it reads."""
        args = [resolve(item, values, self.device) for item in operator.args]
        kwargs = {key: resolve(item, values, self.device) for key, item in operator.kwargs}
        return function(operator.target)(*args, **kwargs)

    @torch.no_grad()
    def forward(self, inputs: Iterable[Tensor]) -> dict[str, Any]:
        """Every value of one forward pass. Buffers stay where they are."""
        values = self.values(inputs)
        for operator in self.graph.operators:
            values[operator.name] = self.run(operator, values)
        return values

    @torch.no_grad()
    def move_buffers(self, values: Mapping[str, Any]) -> None:
        """Take over what a forward pass made of running statistics and the like."""
        held = dict(self.model.named_buffers())
        for buffer in self.graph.buffers:
            if buffer.updated is not None and buffer.key in held:
                held[buffer.key].copy_(values[buffer.updated].detach())

    def inputs(self, x: Any) -> list[Tensor]:
        """The graph's inputs, from a batch in the form of ``example_inputs``. Raises StepError RG601."""
        args, kwargs = called(x)
        found: list[Tensor] = []
        problems = []
        for item in self.graph.inputs:
            try:
                value = at(args, kwargs, item.path)
            except (LookupError, AttributeError, TypeError):
                value = None
            if isinstance(value, Tensor):
                found.append(value.detach())
            else:
                problems.append(Problem("RG601", f"input {item.name} is missing", "learn()"))
        if not problems:
            batch = self.batch(found)
            for item, value in zip(self.graph.inputs, found, strict=True):
                kind = (item.type.shape, item.type.dtype)
                problems += self._misfits(f"input {item.name}", value, *kind, batch, "RG601")
            if 0 < batch < smallest_batch(self.graph):
                problems.append(Problem("RG601", "batch norm needs a batch of at least 2, not of 1", "learn()"))
        if problems:
            raise StepError(problems)
        return found

    def batch(self, inputs: Iterable[Tensor]) -> int:
        """Samples in a batch; 0 where its first input has no dimension."""
        for item, value in zip(self.graph.inputs, inputs, strict=True):
            if item.type.shape[:1] == (self.graph.batch,):
                return value.shape[0] if value.dim() else 0
        return self.graph.batch if isinstance(self.graph.batch, int) else 0

    def target(self, y: Any, batch: int) -> Tensor:
        """The target, checked. Raises StepError RG602, or RG603 for classes and probabilities out of range."""
        (label, (shape, dtype, classes, ignored)) = next(iter(self.targets.items()))
        if not isinstance(y, Tensor):
            raise StepError(Problem("RG602", f"the target is a {type(y).__name__}, not a tensor", "learn()"))
        problems = self._misfits(f"the target {label}".strip(), y, shape, dtype, batch, "RG602")
        if not problems and y.device.type == "cpu":
            counted = y if ignored is None else y[y != ignored]
            low, high = (float(counted.min()), float(counted.max())) if counted.numel() else (0.0, 0.0)
            if classes > 0 and not 0 <= low <= high < classes:
                cause = f"classes lie between {low:.0f} and {high:.0f}, not between 0 and {classes - 1}"
                problems.append(Problem("RG603", cause, "learn()"))
            if classes == -1 and not 0 <= low <= high <= 1:
                problems.append(Problem("RG603", "targets of binary cross-entropy lie between 0 and 1", "learn()"))
        if problems:
            raise StepError(problems)
        return y.detach()

    def _misfits(
        self, name: str, value: Tensor, shape: tuple[Dim, ...], dtype: str, batch: int, code: str
    ) -> list[Problem]:
        wanted = [sized(size, batch) for size in shape]
        if list(value.shape) == wanted and value.dtype == getattr(torch, dtype) and batch:
            if value.device == self.device:
                return []
            return [Problem(code, f"{name} is on {value.device}, the model on {self.device}", "learn()")]
        seen = f"{str(value.dtype).removeprefix('torch.')} of shape {list(value.shape)}"
        return [Problem(code, f"{name} is {seen}, not {dtype} of shape {list(shape)}", "learn()")]

    def loss(self, z: Tensor, y: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """The loss of an output, a mean over the batch, and its error e_L per sample, of the shape of z."""
        kind, output = self.losses[0], self.regions.regions[self.regions.output]
        place = (output.layout.dim, output.layout.before, output.layout.after)
        z = layout.to_samples(z, *place)
        y = layout.to_samples(y, *place) if y.dim() > 1 else y
        if kind.classes:
            form = (kind.axis, kind.smoothing, kind.ignore, kind.weights or None, kind.kind == "causal-lm")
            value = loss.cross_entropy(z, y, *form)
            error = loss.cross_entropy_error(z, y, output.features, output.units // output.features, *form, batch)
        elif kind.kind == "mse":
            value, error = loss.mse(z, y), loss.mse_error(z, y)
        else:
            value, error = loss.bce_with_logits(z, y), loss.bce_with_logits_error(z, y)
        return value, layout.from_samples(error, *place)


def finite(value: Tensor, inputs: Iterable[Tensor]) -> None:
    """Refuse to learn from a loss or an input that is not finite. Raises StepError RG604."""
    seen = [value, *(item for item in inputs if item.is_floating_point())]
    if not all(bool(torch.isfinite(item).all()) for item in seen):
        cause = "the loss or an input is not finite; the parameters are as they were"
        raise StepError(Problem("RG604", cause, "learn()"))


def called_rule(call: Call, error: Tensor, values: Mapping[str, Any], batch: int) -> Tensor:
    """A closed form of ``reclra_graph.rules.table``, on the error given and the values that it names."""
    table = {**values, "_": error, "B": batch}

    def given(argument: Any) -> Any:
        if isinstance(argument, Ref):
            return table[argument.name]
        return tuple(given(item) for item in argument) if isinstance(argument, tuple) else argument

    result: Tensor = rule(call.function)(*(given(item) for item in call.args), **dict(call.kwargs))
    return result


def chain_of(traced: TracedModel, region: Region) -> Chain:
    """φ of a region, as ``apply_chain`` takes it."""
    chain, before = [], region.pre
    for name in region.activation:
        operator = traced.graph.by_name[name]
        chain.append((operator.target, tuple(Ref("_") if item == Ref(before) else item for item in operator.args),
                      operator.kwargs))  # fmt: skip
        before = name
    return tuple(chain)


def misfit(state: Mapping[str, Any], mine: Mapping[str, Any], place: str = "") -> list[Problem]:
    """What of a ``state()`` does not fit a learner whose own is ``mine``: other keys, or tensors of other shapes."""
    problems = [
        Problem("RG605", f"the state {'lacks' if key in mine else 'has'} {place}{key}", f"{place}{key}")
        for key in sorted({*state} ^ {*mine})
    ]
    for key in (key for key in mine if key in state):
        one, other = mine[key], state[key]
        if isinstance(one, Tensor) != isinstance(other, Tensor):
            problems.append(Problem("RG605", f"{place}{key} is a {type(other).__name__}", f"{place}{key}"))
        elif isinstance(one, Tensor) and one.shape != other.shape:
            cause = f"{place}{key} is {tuple(other.shape)} in the state, {tuple(one.shape)} here"
            problems.append(Problem("RG605", cause, f"{place}{key}"))
        elif isinstance(one, str) and one != other:
            problems.append(Problem("RG605", f"{place}{key} is {other!r} in the state, {one!r} here", f"{place}{key}"))
    return problems


def refuse(problems: list[Problem]) -> None:
    """Raise them as one ModelError, if there are any."""
    if problems:
        raise ModelError(problems)
