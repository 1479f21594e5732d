"""The loop of TP and DTP, on any model that is a chain of layers or blocks.

One batch, as in Algorithm 1 of Lee et al. 2015:

    z_l = f_l(z_{l−1}), l = 1 … L             one forward pass; nothing of a link's own derivative leaves it
    y_{L−1} = z_{L−1} − η̂ ∂C/∂z_{L−1}         the last link's own derivative ("penultimate"), or
    y_L = z_L − η̂ e_L                         the loss's error at the output ("output")
    y_{l−1} = z_{l−1} − G_l(z_l) + G_l(y_l)   DTP; TP: y_{l−1} = G_l(y_l)
    G_l learns from ‖G_l(f_l(z_{l−1} + ε)) − (z_{l−1} + ε)‖²
    f_l learns from ‖f_l(z_{l−1}) − y_l‖², the last link from the loss

f_l and G_l take their derivatives by autograd, each inside itself: every link starts at a detached value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from reclra_graph.errors import ModelError, UsageError
from reclra_graph.methods.chain import Link, links_of, steps_of
from reclra_graph.methods.inverses import Inverse
from reclra_graph.methods.looped import LoopedLearner, grouped, stepped
from reclra_graph.methods.optimizers import Make, own
from reclra_graph.methods.settings import above, at_least, one_of, whole
from reclra_graph.methods.traced import chain_of, finite
from reclra_graph.options import OPTIMIZERS
from reclra_graph.rules.discrepancy import mismatch
from reclra_graph.rules.target_propagation import difference_target, distance, first_target, noisy

FIRST = ("penultimate", "output")
ACTIVATIONS = ("own", "identity")


@dataclass(frozen=True)
class Settings:
    """The numbers of TP and DTP.

    difference: DTP's correction. first_target: where targets begin, behind the last link ("output") or before it
    ("penultimate", as in the source). target_rate: η̂ of the first target. noise: σ of ε. inverse_activation: φ of G_l,
    that of the region whose z it gives ("own") or none ("identity"). inverse_optimizer, inverse_lr: of all G_l;
    inverse_steps: how often they learn per batch.

    TP wants a larger η̂ than DTP: its targets hold what G_l fails to give back, and a small step drowns in that.
    """

    difference: bool = True
    first_target: str = "penultimate"
    target_rate: float = 0.1
    noise: float = 0.1
    inverse_activation: str = "own"
    inverse_optimizer: str = "adamw"
    inverse_lr: float = 1e-3
    inverse_steps: int = 1

    def __post_init__(self) -> None:
        """Raises UsageError RG405 for all that is wrong."""
        problems = [
            *one_of("difference", self.difference, (True, False)),
            *one_of("first_target", self.first_target, FIRST),
            *one_of("inverse_activation", self.inverse_activation, ACTIVATIONS),
            *one_of("inverse_optimizer", self.inverse_optimizer, OPTIMIZERS),
            *above("target_rate", self.target_rate),
            *at_least("noise", self.noise),
            *at_least("inverse_lr", self.inverse_lr),
            *whole("inverse_steps", self.inverse_steps),
        ]
        if problems:
            raise UsageError(problems)


class TargetPropagation(LoopedLearner):
    """Learns by TP or DTP: see this file's text. ``given``: fields of ``Settings``, and the options common to all
    loops.

    Raises UsageError RG405 for impossible options; ModelError, RG460 where the model is no chain of layers or blocks,
    or has a step function.
    """

    def __init__(self, model: nn.Module, example_inputs: Any, make: Make, **given: Any) -> None:
        self.settings = Settings(**{key: given[key] for key in given if key in Settings.__dataclass_fields__})
        self.name = "dtp" if self.settings.difference else "tp"
        super().__init__(model, example_inputs, make, **given)
        self.links = links_of(self.traced.regions, self.name)
        if problems := steps_of(self.links, self.traced.regions, self.name):
            raise ModelError(problems)
        self.optimise([(list(self.traced.learning().values()), 1.0)])
        self.draws = torch.Generator(self.traced.device).manual_seed(self.options.seed)
        self.inverses = self._made_inverses()
        make = own(self.settings.inverse_optimizer, {})
        self.inverse_optimiser = make(grouped([(list(self.inverses.parameters()), 1.0)]), self.settings.inverse_lr)

    def _made_inverses(self) -> nn.ModuleDict:
        """Every G_l under the id of its link's last region: the same numbers on every device."""
        same = self.settings.inverse_activation == "own"
        draws = torch.Generator().manual_seed(self.options.seed)
        like = next(self.model.parameters())
        found = nn.ModuleDict()
        for link in (self.links[number] for number in self._inverted):
            activation = chain_of(self.traced, link.before) if same else ()
            found[str(link.end.id)] = Inverse(link.end, link.before, activation, draws, like)
        return found

    @property
    def _inverted(self) -> range:
        """Links (from 0) with an inverse: all but the first, and the last only where targets begin behind it."""
        return range(1, len(self.links) - (self.settings.first_target == "penultimate"))

    def parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """The inverses and their optimiser."""
        return {"inverses": self.inverses, "inverse_optimizer": self.inverse_optimiser}

    def learn(self, x: Any, y: Tensor, lr: float) -> Tensor:
        """One batch: targets from G as it is, then every f_l and G_l learns. Returns the loss; StepError as in
        ``Learner``."""
        inputs = self.traced.inputs(x)
        batch = self.traced.batch(inputs)
        goal = self.traced.target(y, batch)
        values, ends = self._forward(inputs)
        starts = [values[link.start] for link in self.links]
        z = [end.detach() for end in ends]
        loss, error = self.traced.loss(z[-1], goal, batch)
        finite(loss, inputs)
        errors = [*self._errors(z, error, ends, starts), error]
        learning = self.traced.learning()
        sent = [(end, e / batch) for end, e in zip(ends, errors, strict=True) if end.requires_grad]
        found = torch.autograd.grad(
            [end for end, _ in sent], list(learning.values()), [e for _, e in sent], allow_unused=True
        )
        self._invert(values, starts, batch)
        self.step(dict(zip(learning.values(), found, strict=True)), lr)
        self.traced.move_buffers(values)
        return loss

    def _forward(self, inputs: list[Tensor]) -> tuple[dict[str, Any], list[Tensor]]:
        """All values, each z_l detached from what made it; and every z_l with what its own link remembers."""
        ends = {link.end.post: link.end for link in self.links}
        found: list[Tensor] = []
        values = self.traced.values(inputs)
        with torch.enable_grad():
            for operator in self.traced.graph.operators:
                value = self.traced.run(operator, values)
                if operator.name in ends:
                    found.append(value)
                    value = value.detach()
                    # Of the last link alone the derivative by its input is wanted.
                    last = len(found) == len(ends) - 1 and self.settings.first_target == "penultimate"
                    value = value.requires_grad_() if last else value
                values[operator.name] = value
        return values, found

    @torch.no_grad()
    def _errors(self, z: list[Tensor], error: Tensor, ends: list[Tensor], starts: list[Tensor]) -> list[Tensor]:
        """z_l − y_l of all links but the last."""
        last = len(z) - 1
        if last == 0:
            return []
        found: list[Tensor] = []
        if self.settings.first_target == "penultimate":
            slope = torch.autograd.grad(ends[last], starts[last], error, retain_graph=True)[0]
            y = first_target(z[last - 1], slope, self.settings.target_rate)
            found.append(mismatch(z[last - 1], y, 2, 1.0))
        else:
            y = first_target(z[last], error, self.settings.target_rate)
        for number in reversed(self._inverted):
            inverse = self.inverses[str(self.links[number].end.id)]
            back = inverse(y)
            y = difference_target(z[number - 1], inverse(z[number]), back) if self.settings.difference else back
            found.append(mismatch(z[number - 1], y, 2, 1.0))
        return found[::-1]

    def _invert(self, values: dict[str, Any], starts: list[Tensor], batch: int) -> None:
        """Let every G_l learn to undo f_l around where the net is."""
        for _ in range(self.settings.inverse_steps):
            deltas: dict[nn.Parameter, Tensor | None] = {}
            for number in self._inverted:
                link, z = self.links[number], starts[number].detach()
                noise = torch.randn(z.shape, generator=self.draws, dtype=z.dtype, device=z.device)
                around = noisy(z, noise, self.settings.noise)
                inverse = self.inverses[str(link.end.id)]
                held = list(inverse.parameters())
                with torch.enable_grad():
                    error = distance(inverse(self._through(link, around, values)), around, batch)
                deltas.update(zip(held, torch.autograd.grad(error, held), strict=True))
            stepped(self.inverse_optimiser, deltas)

    @torch.no_grad()
    def _through(self, link: Link, start: Tensor, values: dict[str, Any]) -> Tensor:
        """f_l(start), whose buffers stay where they are."""
        table = {**values, link.start: start}
        for operator in link.operators:
            table[operator.name] = self.traced.run(operator, table)
        end: Tensor = table[link.end.post]
        return end
