"""The arms of ``reclra bench epochs``: compiled backpropagation, and this compiler's step with one form of synapse."""

from __future__ import annotations

import copy
import itertools
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.bench.epochs_cases import MOMENTUM, Candidate
from reclra_graph.bench.step_arms import cross_entropy

RULES = ("fixed", "eq6")
WIRING = "flat"


@dataclass(frozen=True)
class Arm:
    """``form``: of the error synapses; "" for backpropagation. ``compiled``: by Inductor, as a whole as far as each can
    be: backprop's forward pass, loss and derivatives; the step from its first operator to its last."""

    name: str
    form: str = ""
    compiled: bool = True

    @property
    def peer(self) -> bool:
        """Whether it is backpropagation."""
        return not self.form


ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("backprop-compiled"),
        Arm("backprop-eager", compiled=False),
        Arm("dense", "dense"),
        Arm("channel", "channel"),
        Arm("token", "token"),
        Arm("dense-eager", "dense", compiled=False),
    )
}
"""By name, in the order of the tables."""

FAST = ("channel", "token")
"""Forms that are measured beside ``dense`` only: what they cost in accuracy belongs to what they gain."""

_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, fused=True),
    "momentum": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=MOMENTUM, fused=True),
    "adamw": lambda parameters, lr: torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0, fused=True),
}
_NUMBERS = itertools.count()

State: TypeAlias = dict[str, dict[str, Any]]


class Learner(ABC):
    """A model that learns. ``state()`` is a copy of all that it has learned, which ``load()`` brings back."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @abstractmethod
    def learn(self, inputs: Tensor, target: Tensor, lr: float) -> Tensor:
        """One training step; the loss. Raises StepError RG604 where it, or an input, is not finite and that is seen."""

    @abstractmethod
    def state(self) -> State:
        """A copy of what is learned: parameters, buffers, synapses, the optimiser's memory."""

    @abstractmethod
    def load(self, state: State) -> None:
        """Learn on from a ``state()``."""

    def why(self) -> str:
        """Why the last step was not compiled although it should be, or ""."""
        return ""

    def plan(self) -> dict[str, Any]:
        """What is to be told of its error synapses."""
        return {}


class Backprop(Learner):
    """forward, loss, backward, and PyTorch's fused optimiser."""

    def __init__(self, model: nn.Module, candidate: Candidate, compiled: bool) -> None:
        super().__init__(model)
        self.optimizer = _OPTIMIZERS[candidate.optimizer](model.parameters(), candidate.lr)

        def forward(inputs: Tensor, target: Tensor) -> Tensor:
            return cross_entropy(model(inputs), target)

        # What Dynamo compiled hangs on the code: with one of its own, no arm looks through what belongs to another.
        forward.__code__ = forward.__code__.replace(co_name=f"forward_{next(_NUMBERS)}")
        self.objective = torch.compile(forward, mode="max-autotune") if compiled else forward

    def learn(self, inputs: Tensor, target: Tensor, lr: float) -> Tensor:
        """One training step; the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.objective(inputs, target)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.detach()

    def state(self) -> State:
        """A copy of what is learned."""
        return copy.deepcopy({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()})

    def load(self, state: State) -> None:
        """Learn on from a ``state()``."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))


class Aligned(Learner):
    """The compiled step of rec-LRA in flat wiring, or that step as Inductor compiles it whole. Errors are divided by β
    before they are used (``gain``), so that hidden layers learn with the rate of the last."""

    def __init__(self, model: nn.Module, candidate: Candidate, arm: Arm, rule: str, inputs: Tensor, seed: int) -> None:
        super().__init__(model)
        channels_last = inputs.dim() == 4 and inputs.is_contiguous(memory_format=torch.channels_last)
        self.step = rg.compile(
            model, (inputs,), wiring=WIRING, synapse=arm.form, rule=rule, gain=True, seed=seed, momentum=MOMENTUM,
            optimizer=candidate.optimizer,  # no rate, which would be part of the file: one compilation serves all
            memory_format="channels_last" if channels_last else "contiguous",
        )  # fmt: skip
        self.run: Any = self.step.fused() if arm.compiled else self.step

    def learn(self, inputs: Tensor, target: Tensor, lr: float) -> Tensor:
        """One training step; the loss."""
        self.step.lr = lr
        loss: Tensor = self.run(inputs, target)
        return loss

    def state(self) -> State:
        """A copy of what is learned."""
        return copy.deepcopy({"model": self.model.state_dict(), "step": self.step.state_dict()})

    def load(self, state: State) -> None:
        """Learn on from a ``state()``."""
        self.model.load_state_dict(state["model"])
        self.step.load_state_dict(state["step"])

    def why(self) -> str:
        """Why the last step ran as it is, or ""."""
        return str(getattr(self.run, "why", ""))

    def plan(self) -> dict[str, Any]:
        """The plan, and how many synapses of each form it has."""
        plan = self.step.plan
        forms = Counter(edge.form for edge in plan.edges)
        return {
            "digest": self.step.program.digest, "wiring": plan.wiring, "regions": len(plan.regions.sites),
            "synapses": dict(sorted(forms.items())), "synapse_bytes": plan.synapse_bytes,
        }  # fmt: skip


def learner(arm: Arm, model: nn.Module, candidate: Candidate, rule: str, inputs: Tensor, seed: int) -> Learner:
    """A learner of that arm. ``inputs``: of one batch. Raises ReclraError where the model cannot be compiled."""
    if arm.peer:
        return Backprop(model, candidate, arm.compiled)
    return Aligned(model, candidate, arm, rule, inputs, seed)
