"""What is searched: for each option its choices, or its range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from reclra_graph.errors import Problem, UsageError
from reclra_graph.options import FORMS, SYNAPSE_RULES, WIRINGS, Options, known_form


class Draws(Protocol):
    """The part of an Optuna trial that suggests values."""

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """One of ``choices``."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float:
        """A number from ``low`` to ``high``."""


@dataclass(frozen=True)
class Space:
    """Choices of wirings, forms of the synapses and their rules; ranges of beta, gamma and the learning rate.

    Ranges are searched on a logarithmic scale; a range whose ends are equal is a constant.
    """

    wirings: tuple[str, ...] = ("auto", "flat", "blocks", "chain")
    synapses: tuple[str, ...] = ("auto", "dense", "lowrank(16)")
    rules: tuple[str, ...] = ("eq6", "fixed")
    gains: tuple[bool, ...] = (False, True)
    beta: tuple[float, float] = (0.01, 1.0)
    gamma: tuple[float, float] = (0.001, 1.0)
    lr: tuple[float, float] = (0.003, 1.0)

    def problems(self) -> tuple[Problem, ...]:
        """Everything that is wrong with it."""
        found: list[Problem] = []
        for name, chosen, allowed in (("wirings", self.wirings, WIRINGS), ("rules", self.rules, SYNAPSE_RULES)):
            wrong = [item for item in chosen if item not in allowed]
            if wrong or not chosen:
                cause = f"{wrong[0]!r} is none of them" if wrong else "there is nothing to choose from"
                choices = ", ".join(map(repr, allowed))
                found.append(Problem("RG405", cause, f"--{name}", f"Choose from {choices}, joined by commas."))
        strange = [item for item in self.synapses if item != "auto" and not known_form(item)]
        if strange or not self.synapses:
            cause = f"{strange[0]!r} is none of them" if strange else "there is nothing to choose from"
            choices = ", ".join(("auto", *FORMS))
            found.append(Problem("RG405", cause, "--synapses", f"Choose from {choices}, joined by commas."))
        for name, (low, high) in (("beta", self.beta), ("gamma", self.gamma), ("lr", self.lr)):
            if not 0 < low <= high < float("inf"):
                cause = f"{low:g}:{high:g} is no range of numbers above 0"
                found.append(Problem("RG405", cause, f"--{name}", "Give LOW:HIGH, or one number."))
        return tuple(found)

    def draw(self, trial: Draws) -> dict[str, Any]:
        """Options of one trial, by name."""
        drawn: dict[str, Any] = {
            "wiring": trial.suggest_categorical("wiring", self.wirings),
            "synapse": trial.suggest_categorical("synapse", self.synapses),
            "rule": trial.suggest_categorical("rule", self.rules),
            "gain": trial.suggest_categorical("gain", self.gains),
        }
        for name, (low, high) in (("beta", self.beta), ("lr", self.lr)):
            drawn[name] = low if low == high else trial.suggest_float(name, low, high, log=True)
        low, high = self.gamma
        if drawn["rule"] == "fixed":
            drawn["gamma"] = Options().synapse_rate  # which the rule does not read
        else:
            drawn["gamma"] = low if low == high else trial.suggest_float("gamma", low, high, log=True)
        return drawn


def span(name: str, text: str) -> tuple[float, float]:
    """``"0.01:1"`` or ``"0.1"`` as a range. Raises UsageError RG405 where it is neither."""
    try:
        numbers = [float(part) for part in text.split(":")]
        low, high = numbers if len(numbers) == 2 else (*numbers, *numbers)
    except ValueError:
        raise UsageError(
            Problem("RG405", f"{text!r} is no range", f"--{name}", "Give LOW:HIGH, or one number.")
        ) from None
    return low, high
