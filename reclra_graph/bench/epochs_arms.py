"""The arms of ``reclra bench epochs``: compiled backpropagation, and this compiler's step with one form of synapse."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.bench.epochs_cases import MOMENTUM, Candidate
from reclra_graph.bench.step_arms import cross_entropy
from reclra_graph.methods.backprop import BackpropLearner
from reclra_graph.methods.optimizers import own
from reclra_graph.methods.step_learner import StepLearner

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


class Backprop(BackpropLearner):
    """forward, loss, backward, and PyTorch's fused optimiser; its loss is not looked at, which would take time."""

    def __init__(self, model: nn.Module, candidate: Candidate, compiled: bool) -> None:
        make = own(candidate.optimizer, {"momentum": MOMENTUM})
        super().__init__(model, cross_entropy, make, candidate.lr, compiled=compiled, checked=False)

    def why(self) -> str:
        """Nothing: torch.compile says so itself."""
        return ""

    def plan(self) -> dict[str, Any]:
        """It has no error synapses to tell of."""
        return {}


class Aligned(StepLearner):
    """The compiled step of rec-LRA in flat wiring, or that step as Inductor compiles it whole. Errors are divided by β
    before they are used (``gain``), so that hidden layers learn with the rate of the last."""

    def __init__(self, model: nn.Module, candidate: Candidate, arm: Arm, rule: str, inputs: Tensor, seed: int) -> None:
        channels_last = inputs.dim() == 4 and inputs.is_contiguous(memory_format=torch.channels_last)
        step = rg.compile(
            model, (inputs,), wiring=WIRING, synapse=arm.form, rule=rule, gain=True, seed=seed, momentum=MOMENTUM,
            optimizer=candidate.optimizer,  # no rate, which would be part of the file: one compilation serves all
            memory_format="channels_last" if channels_last else "contiguous",
        )  # fmt: skip
        super().__init__(step, "fused" if arm.compiled else "eager")

    def plan(self) -> dict[str, Any]:
        """The plan, and how many synapses of each form it has."""
        plan = self.step.plan
        forms = Counter(edge.form for edge in plan.edges)
        return {
            "digest": self.step.program.digest, "wiring": plan.wiring, "regions": len(plan.regions.sites),
            "synapses": dict(sorted(forms.items())), "synapse_bytes": plan.synapse_bytes,
        }  # fmt: skip


Arms: TypeAlias = Backprop | Aligned


def learner(arm: Arm, model: nn.Module, candidate: Candidate, rule: str, inputs: Tensor, seed: int) -> Arms:
    """A learner of that arm. ``inputs``: of one batch. Raises ReclraError where the model cannot be compiled."""
    if arm.peer:
        return Backprop(model, candidate, arm.compiled)
    return Aligned(model, candidate, arm, rule, inputs, seed)
