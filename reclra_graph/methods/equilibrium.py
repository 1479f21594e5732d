"""The loop of equilibrium propagation (E-Prop of the paper's tables), on any chain of dense and convolutional layers.

One batch:

    s⁰: free phase       every s_l settles at φ_l(A_l s_{l−1} + A_{l+1}ᵀ s_{l+1}), from below and from above
    sᵝ: clamped phase    the same from there on, while the loss pulls the output: − β ∂C/∂s_L
    ΔA_l = (s⁰_l s⁰_{l−1}ᵀ − sᵝ_l sᵝ_{l−1}ᵀ) / β

No derivative is taken but the loss's own at the output, which is a closed form; A_lᵀ is the adjoint of a linear map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from reclra_graph.errors import ModelError, Problem, UsageError
from reclra_graph.methods.affine import Layer, layer_of
from reclra_graph.methods.chain import links_of
from reclra_graph.methods.looped import LoopedLearner
from reclra_graph.methods.optimizers import Make
from reclra_graph.methods.settings import above, at_least, one_of, whole
from reclra_graph.methods.traced import finite
from reclra_graph.rules.equilibrium import contrast, drive, nudged, settle

NUDGES = ("random", "positive", "both")
STARTS = ("forward", "zeros")


@dataclass(frozen=True)
class Settings:
    """The numbers of equilibrium propagation.

    nudge: β. nudge_sign: of β, "random" for each batch (as in the source), "positive", or "both": the clamped phase
    twice, +β against −β, which leaves an error of β² instead of β (Laborieux et al. 2021). free_steps, clamped_steps:
    of the phases; step_size: ε of each. Where the free phase is cut short, its states still move in the clamped phase:
    with one sign that is mistaken for the loss's pull, with "both" it cancels, and fewer steps will do. start: of the
    free phase, the states that a "forward" pass gives, or "zeros". layer_rates: for every layer, first layer first, a
    factor of the learning rate; none: 1 each.
    """

    nudge: float = 0.5
    nudge_sign: str = "random"
    free_steps: int = 100
    clamped_steps: int = 20
    step_size: float = 0.5
    start: str = "forward"
    layer_rates: Sequence[float] = ()

    def __post_init__(self) -> None:
        """Raises UsageError RG405 for all that is wrong."""
        problems = [
            *above("nudge", self.nudge),
            *one_of("nudge_sign", self.nudge_sign, NUDGES),
            *whole("free_steps", self.free_steps),
            *whole("clamped_steps", self.clamped_steps),
            *above("step_size", self.step_size),
            *one_of("start", self.start, STARTS),
            *(problem for item in self.layer_rates for problem in at_least("layer_rates", item)),
        ]
        if not problems and self.step_size > 1:
            cause = f"step_size is {self.step_size!r}"
            problems.append(Problem("RG405", cause, "step_size", "Give a number above 0 and of at most 1."))
        if problems:
            raise UsageError(problems)


class EquilibriumPropagation(LoopedLearner):
    """Learns by equilibrium propagation: see this file's text. ``given``: fields of ``Settings``, and the options
    common to all loops.

    The model is then an energy model: what it predicts is the output that the free phase settles at, ``predict(x)``,
    and not what one pass of ``model(x)`` gives.

    Raises UsageError RG405 for impossible options; ModelError RG460 for a model that is no chain of such layers.
    """

    name = "eprop"

    def __init__(self, model: nn.Module, example_inputs: Any, make: Make, **given: Any) -> None:
        self.settings = Settings(**{key: given[key] for key in given if key in Settings.__dataclass_fields__})
        super().__init__(model, example_inputs, make, **given)
        self.layers = self._found()
        rates = tuple(self.settings.layer_rates) or (1.0,) * len(self.layers)
        if len(rates) != len(self.layers):
            cause = f"there are {len(rates)} layer_rates for {len(self.layers)} layers"
            raise UsageError(Problem("RG405", cause, "layer_rates", "Give one number for each layer, or none."))
        learning = self.traced.learning()
        factors: dict[str, float] = {}
        for layer, rate in zip(self.layers, rates, strict=True):
            factors.update({key: rate for key, _, _ in layer.updates})
        self.optimise([([learning[key]], factor) for key, factor in factors.items()])

    def _found(self) -> tuple[Layer, ...]:
        """The model's layers. Raises ModelError with everything that is in the way."""
        found, problems = [], []
        for link in links_of(self.traced.regions, self.name, blocks=False):
            layer, wrong = layer_of(self.traced, link, self.name)
            problems.extend(wrong)
            if layer is not None:
                found.append(layer)
        if problems:
            raise ModelError(problems)
        return tuple(found)

    @torch.no_grad()
    def learn(self, x: Any, y: Tensor, lr: float) -> Tensor:
        """One batch: two phases, and every parameter learns from what differs. Returns the loss at the end of the free
        phase; StepError as in ``Learner``."""
        inputs = self.traced.inputs(x)
        batch = self.traced.batch(inputs)
        goal = self.traced.target(y, batch)
        values = self.traced.forward(inputs)
        free = self._settled(self._start(values), values, batch, self.settings.free_steps)
        loss, _ = self.traced.loss(free[-1], goal, batch)
        finite(loss, inputs)
        beta = self.settings.nudge
        if self.settings.nudge_sign == "random":
            beta *= 1 - 2 * int(torch.randint(2, (), generator=self.draws))
        steps = self.settings.clamped_steps
        before = self._hebbian(free, values, batch)
        if self.settings.nudge_sign == "both":
            pushed = self._settled(free, values, batch, steps, goal, -beta)
            before, width = self._hebbian(pushed, values, batch), 2 * beta
        else:
            width = beta
        after = self._hebbian(self._settled(free, values, batch, steps, goal, beta), values, batch)
        learning = self.traced.learning()
        self.step({learning[key]: contrast(before[key], after[key], width) for key in before}, lr)
        return loss

    @torch.no_grad()
    def predict(self, x: Any) -> Tensor:
        """The output at which the free phase settles: what the model predicts under this method."""
        inputs = self.traced.inputs(x)
        values, batch = self.traced.forward(inputs), self.traced.batch(inputs)
        return self._settled(self._start(values), values, batch, self.settings.free_steps)[-1]

    def _start(self, values: Mapping[str, Any]) -> list[Tensor]:
        """s_1 … s_L before the free phase. values: of a forward pass."""
        states: list[Tensor] = [values[layer.region.post] for layer in self.layers]
        return states if self.settings.start == "forward" else [torch.zeros_like(item) for item in states]

    def _settled(
        self,
        states: list[Tensor],
        values: Mapping[str, Any],
        batch: int,
        steps: int,
        goal: Tensor | None = None,
        beta: float = 0.0,
    ) -> list[Tensor]:
        """All states after so many steps at once; with a goal, the loss pulls the output by β."""
        rate, last = self.settings.step_size, len(states) - 1
        first: dict[str, Any] | None = None  # what the input says never changes
        for _ in range(steps):
            ups = [first or self.layers[0].up(self.traced, values[self.layers[0].start], values)]
            first = ups[0]
            ups += [self.layers[i].up(self.traced, states[i - 1], values) for i in range(1, last + 1)]
            moved = []
            for i, (layer, up) in enumerate(zip(self.layers, ups, strict=True)):
                h = up[layer.region.pre]
                if i < last:
                    h = drive(h, self.layers[i + 1].down(states[i + 1], ups[i + 1], batch))
                elif goal is not None:
                    h = nudged(h, self.traced.loss(states[i], goal, batch)[1], beta)
                moved.append(settle(states[i], h, rate, layer.activation))
            states = moved
        return states

    def _hebbian(self, states: list[Tensor], values: Mapping[str, Any], batch: int) -> dict[str, Tensor]:
        """What every parameter joins at these states, by key."""
        found: dict[str, Tensor] = {}
        below = values[self.layers[0].start]
        for layer, s in zip(self.layers, states, strict=True):
            for key, product in layer.hebbian(s, layer.up(self.traced, below, values), batch).items():
                found[key] = found[key] + product if key in found else product
            below = s
        return found
