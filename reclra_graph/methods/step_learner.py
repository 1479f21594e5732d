"""A compiled step as a learner: run as it is, compiled as a whole, or by CUDA graphs; with its own optimiser, or one of
torch.optim."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from reclra_graph.api import assign_grads
from reclra_graph.errors import Problem, UsageError
from reclra_graph.methods.optimizers import Make
from reclra_graph.runtime.compiled import OPTIMIZER, CompiledStep

RUNS = ("eager", "fused", "graphed")
"""How a step runs: the emitted file as it stands, compiled by Inductor, or captured as CUDA graphs."""


class StepLearner:
    """``step(x, y)`` at the rate of each call."""

    def __init__(self, step: CompiledStep, run: str = "eager", optimizer: Make | None = None) -> None:
        """run: one of RUNS. optimizer: of torch.optim, for parameters and synapses, in the place of the step's own; the
        step then runs as it is.

        Raises UsageError RG405 where both are asked for, RG606 where CUDA graphs are and the model is elsewhere."""
        if optimizer is not None and run != "eager":
            cause = f"run is {run!r}, with an optimiser of torch.optim, which such a step has no place for"
            raise UsageError(Problem("RG405", cause, "run", "Use the optimizer sgd, momentum or adamw, or run eager."))
        self.step, self.model = step, step.model
        self.run: Any = step.fused() if run == "fused" else step.graphed() if run == "graphed" else step
        self.optimizer: torch.optim.Optimizer | None = None
        if optimizer is not None:
            learning = [item for item in step.model.parameters() if item.requires_grad]
            self.optimizer = optimizer([*learning, *step.synapses.values()], step.lr)

    def learn(self, x: Any, y: Tensor, lr: float) -> Tensor:
        """One training step; the loss. Raises StepError as the step itself does: nothing has changed then."""
        if self.optimizer is None:
            self.step.lr = lr
            loss: Tensor = self.run(x, y)
            return loss
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        loss = assign_grads(self.step, x, y)
        self.optimizer.step()
        return loss

    def state(self) -> dict[str, Any]:
        """A copy of parameters, buffers, synapses, and what the optimiser remembers.

        Synapses and the matrices through which some learn are kept apart, as the step holds them: ``step.state_dict()``
        multiplies them out, after which a run would go on with other roundings than one that nobody had looked at."""
        named = {f"E.{name}": value for name, value in self.step.store.named.items()}
        remembered = {f"{OPTIMIZER}{key}": value for key, value in self.step.optimiser_state.items()}
        found: dict[str, Any] = {
            "model": self.model.state_dict(), "step": {**named, **remembered}, "matrices": self.step.store.matrices,
        }  # fmt: skip
        if self.optimizer is not None:
            found["optimizer"] = self.optimizer.state_dict()
        return copy.deepcopy(found)

    def load(self, state: dict[str, Any]) -> None:
        """Learn on from a ``state()``. Raises ModelError RG605 where it is another plan's."""
        self.model.load_state_dict(state["model"])
        self.step.load_state_dict(state["step"])
        for name, value in self.step.store.matrices.items():
            value.copy_(state["matrices"][name])
        if self.optimizer is not None:
            self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))

    def why(self) -> str:
        """Why the last step ran as it is although it should be compiled or captured, or ""."""
        return str(getattr(self.run, "why", ""))
