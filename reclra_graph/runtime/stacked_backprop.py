"""Many runs of a small net by backpropagation, in one step: the yardstick for ``StackedStep``, as cheap as that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from reclra_graph.runtime.compiled import CompiledStep
from reclra_graph.runtime.stacked import StackedStep
from reclra_graph.runtime.traced import (
    Traced,
    batch_size,
    finished,
    guard_stores,
    instead,
    one_lane,
    optimiser_for,
    share_repeated,
)


class StackedBackprop(StackedStep):
    """As ``StackedStep``, but for what moves the parameters: the gradient of the same loss by autograd, over the
    forward pass of the step's own file, with the step's own optimiser. Everything with ``requires_grad`` learns; there
    are no synapses, and β and γ mean nothing."""

    kind = "stacked backprop"

    def held_by(self, run: CompiledStep) -> dict[str, Tensor]:
        """As of ``StackedStep``, without synapses."""
        found, remembered = run.storage(), dict[str, Tensor]()
        for name in _learning(run):
            for slot in getattr(run.optimiser, "slots", ()):
                remembered[f"{name}|{slot}"] = run.optimiser.kept(found[name], name, slot)
        return {f"P[{key}]": value for key, value in found.items()} | {
            f"S[{slot}]": value for slot, value in remembered.items()
        }

    def traced(
        self, given: Sequence[Tensor], goal: Tensor | dict[str, Tensor], lr: Tensor, more: Mapping[str, Tensor]
    ) -> Traced:
        """The step of one run."""
        step = self.runs[0]
        goals = [goal] if isinstance(goal, Tensor) else list(goal.values())
        held = self.held_by(step)
        keys = [name[2:-1] for name in held if name[0] == "P"]
        slots = [name[2:-1] for name in held if name[0] == "S"]
        ends = list(accumulate((len(keys), len(slots), len(given), len(goals), 1 + len(more))))
        learning = _learning(step)
        synapses = step.store.all()
        flat = [*held.values(), *given, *goals, lr, *more.values(), *synapses.values()]

        def run(*tensors: Tensor) -> list[Tensor]:
            stored = dict(zip(keys, tensors[: ends[0]], strict=True))
            remembered = dict(zip(slots, tensors[ends[0] : ends[1]], strict=True))
            targets = tensors[ends[2] : ends[3]]
            target: Any = targets[0] if isinstance(goal, Tensor) else dict(zip(goal, targets, strict=True))
            rates = dict(zip(("lr", *more), tensors[ends[3] : ends[4]], strict=True))
            unread = dict(zip(synapses, tensors[ends[4] :], strict=True))
            moving = {name: stored[name].detach().requires_grad_() for name in learning}
            found: dict[str, Any] = {}

            def check(loss: Tensor, *inputs: Tensor) -> None:
                found["gradients"] = torch.autograd.grad(loss, list(moving.values()), allow_unused=True)
                finite = torch.isfinite(loss.detach()) & rates["going"]
                for value in inputs:
                    finite = finite & torch.isfinite(value).all()
                found.update(loss=loss.detach(), finite=finite)

            with torch.enable_grad(), instead(step.module.__dict__, check=check):
                step.module.step(
                    {**stored, **moving}, unread, *tensors[ends[1] : ends[2]], target,
                    optimise=lambda *_: None, **step.settings(),
                )  # fmt: skip
            optimise = optimiser_for(step, remembered)
            for name, gradient in zip(learning, found["gradients"], strict=True):
                if gradient is not None:  # as torch.optim does where a parameter has none
                    optimise(stored, name, gradient, rates["lr"])
            return [found["loss"], found["finite"]]

        # The derivative of the CPU's fused attention, taken apart, is silently another.
        files = instead(step.module.__dict__, check_inputs=lambda *_: None, Lanes=one_lane(step))
        with files, sdpa_kernel(SDPBackend.MATH):
            plain = make_fx(run, tracing_mode="fake")(*flat)
        module = make_fx(torch.func.functionalize(plain), tracing_mode="fake")(*flat)
        module.graph.eliminate_dead_code(_is_kept)  # nothing reads targets and updates, nor synapses therefore
        share_repeated(module)
        guard_stores(module)
        return finished(module, batch_size(step, given, goal))


def _learning(run: CompiledStep) -> list[str]:
    return [name for name, parameter in run.model.named_parameters() if parameter.requires_grad]


def _is_kept(node: Node) -> bool:
    """What is no dead code, read or not: random numbers are, unlike for fx."""
    return node.op in ("placeholder", "output") or node.target is torch.ops.aten.copy_.default
