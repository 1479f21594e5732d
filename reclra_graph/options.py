"""The options of a compilation, and their check: everything wrong is found at once."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from reclra_graph.errors import Problem

WIRINGS = ("auto", "flat", "chain", "blocks", "reverse")
SYNAPSE_RULES = ("eq6", "fixed", "kp", "dkp", "mirror", "sign", "readout")
MIRRORING = ("kp", "sign")
"""Rules that need a forward weight to mirror: those of ``adjoint`` edges, and so of the wiring "reverse"."""
AS_WEIGHT = ("kp",)
"""Rules under which the E of an ``adjoint`` edge moves as its weight does."""
FORMS = ("dense", "implicit", "lowrank(r)", "conv", "channel", "token", "adjoint")
"""Forms of an error synapse; r is a whole number of at least 1."""
SIGNS = ("descend", "printed")
LOSSES = ("cross-entropy", "causal-lm", "mse", "bce-with-logits")
FRONTENDS = ("auto", "export", "record")
OPTIMIZERS = ("sgd", "momentum", "adamw")
UPDATES = ("analytic", "local_vjp")
PLACEMENTS = ("auto", "pipeline")
AUTOCASTS = ("bfloat16", "float16")
MEMORY_FORMATS = ("auto", "contiguous", "channels_last")
OPTIMISATIONS = ("straight", "factors", "shared", "batch", "group")
"""What makes a step faster and can be left out: errors of regions without an activation made at once (``straight``),
updates that need no such error (``factors``), one matrix that learns for all dense synapses of a source (``shared``),
and on a GPU one product for all synapses that leave a region (``batch``), and one for the updates of layers of one size
(``group``)."""
TOGETHER = ("shared", "batch", "group")
"""Those over several regions. The planner, which adds up what regions cost one by one, leaves them out of account."""


@dataclass(frozen=True)
class Wired:
    """A wiring that was read from a file.

    ``place`` names the file. ``edges`` are ``"9->5"``; ``forms``, ``rules`` and ``shapes`` hold (edge, what the file
    says of its synapse) where it says so. ``model`` is the digest of the regions that a plan.json was made for, or
    empty. ``placement``: (region, GPU), where the file says which region lives where. ``branches``: (edge, numbers of
    its branches), where the file lists them one by one; their rules and shapes go by names such as ``"9->5.2"``.
    """

    place: str
    edges: tuple[str, ...]
    forms: tuple[tuple[str, str], ...] = ()
    rules: tuple[tuple[str, str], ...] = ()
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    model: str = ""
    placement: tuple[tuple[int, int], ...] = ()
    branches: tuple[tuple[str, tuple[int, ...]], ...] = ()


Wiring: TypeAlias = str | tuple[str, ...] | Wired
"""A wiring's name, its edges such as ``("9->5", "5->4")``, or what a file says."""

_UNITS: dict[str, int] = {"": 1, "b": 1, **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)},
          **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)}}  # fmt: skip
_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)")


def byte_count(text: int | str) -> int | str:
    """``"2GiB"``, ``"512 MB"`` or a plain number as bytes; what cannot be read comes back as it is."""
    found = _BYTES.fullmatch(text.strip()) if isinstance(text, str) else None
    if found is None or found[2].lower() not in _UNITS:
        return text
    unit: int = _UNITS[found[2].lower()]
    return round(float(found[1]) * unit)


@dataclass(frozen=True)
class Options:
    """What ``rg.compile`` and ``reclra-compile`` take beside the model and its example inputs.

    gpus: lanes to schedule for (≥ 1). depth: longest error path in edges, or "auto". relays: region ids or module
    paths that pass errors on, or None to choose. wiring: one of WIRINGS, edges, or what a file says.
    synapse_memory: bytes that all error synapses may take together; None: four times the parameters, or 256 MiB
    where that is more, kept as far as dense and shared synapses can. gpu_memory: bytes that each GPU has for
    parameters, activations, synapses and their updates; None: no limit. rule: learning rule of the error synapses.
    beta, gamma, kappa, norm (p = q), sign, gain: the rule's numbers, see ``reclra_graph.ir.wiring.Rates``; gamma
    None: what suits the rule (``synapse_rate``). update: how regions learn, "analytic" where a closed form exists, or
    "local_vjp" everywhere but before step functions. strict: refuse local_vjp, and derivatives over which errors go
    back. optimizer: of parameters and synapses alike, as torch.optim has them; lr, momentum, betas, eps,
    weight_decay: its numbers. synapse_decay: of synapses alone, decoupled from their optimiser, in place of
    weight_decay; None: as parameters. mirror_noise: σ of the rule "mirror". seed: of the synapses.
    synapse_entries: largest dense synapse, in entries; bigger ones share their weights over positions ("channel",
    "token"). synapse: form of all error synapses that it fits, one of FORMS, or "auto".
    loss: one for the result named by ``output`` (None: "logits", "out", or the first), or (label, loss) pairs.
    label_smoothing, ignore_index, class_weights: of "cross-entropy" and "causal-lm", as torch has them. frontend: the
    rung of the capture ladder, "auto" for the first that works. device: what costs are those of, by a name of
    ``reclra_graph.ir.device.DEVICES`` or a JSON file; "unit" is the paper's unit-cost model. profile: measure
    costs on this machine, instead of taking them from the device's numbers.
    micro_batches: parts that a batch is cut into; parameters learn once, from all. placement: "pipeline" gives every
    GPU regions of its own, and their part of the forward pass; "auto" does so where there are several micro-batches or
    overlapping steps. overlap_steps: let a step begin in regions that the one before has updated. without: names of
    OPTIMISATIONS to leave out. recompute: make activations again where they are read late. memory_format: of images
    and maps, which dense synapses follow; "auto" that of the example inputs. autocast: the dtype of products, one of
    AUTOCASTS; parameters, synapses, errors and what the optimiser remembers stay float32. None: everything has the
    dtype that the model has.
    """

    gpus: int = 1
    depth: int | str = "auto"
    relays: tuple[int | str, ...] | None = None
    wiring: Wiring = "auto"
    synapse_memory: int | None = None
    gpu_memory: int | None = None
    rule: str = "eq6"
    beta: float = 0.1
    gamma: float | None = None
    kappa: tuple[tuple[int, float], ...] = ()
    norm: int = 2
    sign: str = "descend"
    gain: bool = False
    loss: str | tuple[tuple[str, str], ...] = "cross-entropy"
    optimizer: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    synapse_decay: float | None = None
    mirror_noise: float = 0.1
    update: str = "analytic"
    strict: bool = False
    seed: int = 0
    synapse_entries: int = 1 << 22
    synapse: str = "auto"
    output: str | None = None
    label_smoothing: float = 0.0
    ignore_index: int | None = None
    class_weights: tuple[float, ...] = ()
    frontend: str = "auto"
    device: str = "unit"
    profile: bool = False
    micro_batches: int = 1
    placement: str = "auto"
    overlap_steps: bool = False
    without: tuple[str, ...] = ()
    recompute: bool = False
    memory_format: str = "auto"
    autocast: str | None = None

    @property
    def synapse_rate(self) -> float:
        """γ: what was asked for, or else what suits the rule: 1 for a rule with a scale of its own, else 0.01."""
        return self.gamma if self.gamma is not None else 0.01 if self.rule in ("eq6", "fixed") else 1.0

    @property
    def wired(self) -> Wiring:
        """The wiring, "auto" settled where the rule leaves one alone: a rule that mirrors forward weights takes the
        edges against them."""
        reverse = self.wiring == "auto" and self.rule in MIRRORING and self.relays is None
        return "reverse" if reverse else self.wiring

    @property
    def placed(self) -> bool:
        """Whether regions are to live on GPUs of their own."""
        return self.placement == "pipeline" or self.micro_batches > 1 or self.overlap_steps

    @property
    def loss_labels(self) -> tuple[str, ...]:
        """Labels of the results that a loss was asked for by name."""
        if isinstance(self.loss, tuple):
            return tuple(label for label, _ in self.loss)
        return () if self.output is None else (self.output,)

    def loss_of(self, label: str) -> str:
        """The loss of a result."""
        return self.loss if isinstance(self.loss, str) else dict(self.loss)[label]

    def _losses(self) -> tuple[object, ...]:
        return (self.loss,) if not isinstance(self.loss, tuple) else tuple(item for _, item in self.loss)

    def problems(self) -> tuple[Problem, ...]:
        """Everything that is wrong with the options themselves, whatever the model."""
        found: list[Problem] = []
        if not _whole(self.gpus) or self.gpus < 1:
            found.append(Problem("RG401", f"gpus is {self.gpus!r}, not a whole number of at least 1", "gpus"))
        if self.depth != "auto" and (not _whole(self.depth) or int(self.depth) < 1):
            found.append(
                Problem("RG402", f"depth is {self.depth!r}, not 'auto' or a whole number of at least 1", "depth")
            )
        if isinstance(self.wiring, str) and self.wiring not in WIRINGS and "->" not in self.wiring:
            found.append(Problem("RG404", f"there is no wiring named {self.wiring!r}", "wiring"))
        for name, budget in (("synapse_memory", self.synapse_memory), ("gpu_memory", self.gpu_memory)):
            if budget is not None and (not _whole(budget) or budget < 1):
                found.append(Problem("RG405", f"{name} is {budget!r}", name, 'Give bytes, such as "2GiB" or "512MiB".'))
        for name, value, allowed in (
            ("rule", self.rule, SYNAPSE_RULES),
            ("sign", self.sign, SIGNS),
            *(("loss", item, LOSSES) for item in self._losses()),
            ("frontend", self.frontend, FRONTENDS),
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("update", self.update, UPDATES),
            ("norm", self.norm, (1, 2)),
            ("placement", self.placement, PLACEMENTS),
            ("memory_format", self.memory_format, MEMORY_FORMATS),
            *((("autocast", self.autocast, AUTOCASTS),) if self.autocast is not None else ()),
            *(("without", item, OPTIMISATIONS) for item in self.without),
        ):
            if value not in allowed or isinstance(value, bool):
                choices = ", ".join(repr(item) for item in allowed)
                found.append(Problem("RG405", f"{name} is {value!r}", name, f"Choose one of {choices}."))
        if self.synapse != "auto" and not known_form(self.synapse):
            choices = ", ".join(repr(item) for item in ("auto", *FORMS))
            found.append(Problem("RG405", f"synapse is {self.synapse!r}", "synapse", f"Choose one of {choices}."))
        numbers = (
            ("beta", self.beta, True), ("gamma", self.synapse_rate, False), ("lr", self.lr, False),
            ("eps", self.eps, False), ("momentum", self.momentum, False), ("weight_decay", self.weight_decay, False),
            ("synapse_decay", 0.0 if self.synapse_decay is None else self.synapse_decay, False),
            ("mirror_noise", self.mirror_noise, True),
        )  # fmt: skip
        for name, number, positive in numbers:
            if not _finite(number) or number < 0 or (positive and number == 0):
                wanted = "a number above 0" if positive else "a number of at least 0"
                found.append(Problem("RG405", f"{name} is {number!r}", name, f"Give {wanted}."))
        if (
            not isinstance(self.betas, tuple)
            or len(self.betas) != 2
            or not all(_finite(item) and 0 <= item < 1 for item in self.betas)
        ):
            cause = f"betas is {self.betas!r}"
            found.append(Problem("RG405", cause, "betas", "Give two numbers of at least 0 and below 1."))
        if isinstance(self.loss, tuple) and (not self.loss or self.output is not None):
            cause = "loss names no result" if not self.loss else "output and a loss for each result exclude each other"
            found.append(Problem("RG405", cause, "loss"))
        if not _finite(self.label_smoothing) or not 0 <= self.label_smoothing < 1:
            cause = f"label_smoothing is {self.label_smoothing!r}"
            found.append(Problem("RG405", cause, "label_smoothing", "Give a number of at least 0 and below 1."))
        if self.ignore_index is not None and not _whole(self.ignore_index):
            cause = f"ignore_index is {self.ignore_index!r}"
            found.append(Problem("RG405", cause, "ignore_index", "Give a whole number."))
        if not all(_finite(item) and item >= 0 for item in self.class_weights):
            found.append(Problem("RG405", "class_weights holds other than numbers of at least 0", "class_weights"))
        if not _whole(self.seed) or not 0 <= self.seed < 1 << 63:
            found.append(Problem("RG405", f"seed is {self.seed!r}", "seed", "Give a whole number from 0 to 2**63 - 1."))
        if not _whole(self.micro_batches) or self.micro_batches < 1:
            cause = f"micro_batches is {self.micro_batches!r}"
            found.append(Problem("RG405", cause, "micro_batches", "Give a whole number of at least 1."))
        for region, number in self.kappa:
            if not _whole(region) or not _finite(number) or number <= 0:
                cause = f"kappa has {number!r} for region {region!r}"
                found.append(Problem("RG405", cause, "kappa", "Give region ids with numbers above 0."))
        if self.strict and self.update == "local_vjp":
            found.append(Problem("RG304", "strict=True and update='local_vjp' exclude each other", "strict"))
        return tuple(found)


@lru_cache(maxsize=1 << 10)  # the planner asks for each of its many edges
def rank_of(form: str) -> int:
    """r of the form ``lowrank(r)``; 0 for every other."""
    found = re.fullmatch(r"lowrank\(([1-9][0-9]{0,8})\)", form)
    return int(found[1]) if found else 0


def known_form(form: object) -> bool:
    """Whether there is such a form of an error synapse."""
    return isinstance(form, str) and (form in FORMS or rank_of(form) > 0) and form != "lowrank(r)"


def _finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
