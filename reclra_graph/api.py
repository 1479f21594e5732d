"""The Python API: ``compile``, ``load``, ``assign_grads`` and ``replace_conv``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reclra_graph.check_model import plain_model
from reclra_graph.errors import ModelError, Problem, UsageError
from reclra_graph.export.plan_json import read_plan
from reclra_graph.ir.program import StepProgram
from reclra_graph.ir.schedule import Schedule
from reclra_graph.ir.text import from_text
from reclra_graph.options import Options, byte_count
from reclra_graph.passes import replace_conv as rewriting
from reclra_graph.passes.pipeline import compile_model
from reclra_graph.passes.same_graph import constants_of
from reclra_graph.pconv import SIGMA
from reclra_graph.runtime.compiled import CompiledStep
from reclra_graph.runtime.stacked import StackedStep
from reclra_graph.runtime.stacked_backprop import StackedBackprop
from reclra_graph.structure import called
from reclra_graph.verify import verify
from reclra_graph.wiring_file import SUFFIX, read_wiring


def compile(  # named as torch.compile is
    model: nn.Module,
    example_inputs: Any,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    gpus: int = 1,
    depth: int | str = "auto",
    relays: Sequence[int | str] | None = None,
    wiring: str | Sequence[str | tuple[int, int]] = "auto",
    synapse_memory: int | str | None = None,
    gpu_memory: int | str | None = None,
    rule: str = "eq6",
    beta: float = 0.1,
    gamma: float | None = None,
    kappa: Mapping[int, float] | None = None,
    norm: int = 2,
    sign: str = "descend",
    gain: bool = False,
    loss: str | Mapping[str, str] = "cross-entropy",
    output: str | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    class_weights: Sequence[float] = (),
    optimizer: str = "sgd",
    lr: float = 0.1,
    momentum: float = 0.9,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    synapse_decay: float | None = None,
    mirror_noise: float = 0.1,
    update: str = "analytic",
    strict: bool = False,
    seed: int = 0,
    synapse_entries: int = 1 << 22,
    synapse: str = "auto",
    frontend: str = "auto",
    micro_batches: int = 1,
    placement: str = "auto",
    overlap_steps: bool = False,
    without: Sequence[str] = (),
    recompute: bool = False,
    memory_format: str = "auto",
    autocast: str | None = None,
    device: str = "unit",
    profile: bool = False,
    progress: Callable[[str], None] | None = None,
) -> CompiledStep:
    """A training step for ``model`` without backpropagation. The model is not changed, only read.

    example_inputs: what forward() takes: a tensor; a tuple or list of positional arguments, each a tensor or a nest of
        dicts, tuples, lists and dataclasses with tensors in it; or a mapping of keyword arguments. Arguments without a
        tensor are constants of the step. The batch is the first dimension of the first tensor; its size stays free
        where the model allows it. example_kwargs: keyword arguments beside positional ones.
    gpus: lanes to schedule for. depth: longest error path in edges, or "auto". relays: regions (ids or module paths)
        that pass errors on. wiring: "auto", "flat", "chain", "blocks", "reverse" (against every connection of the
        forward pass), edges as "9->5" or (9, 5), or the path of a .json file: a list of edges, {"edges": [...],
        "forms": {"9->5": "channel"}, "placement": [[9, 1], ...]} with the GPU of every region if they shall have one,
        or a plan.json, edited or not.
    synapse_memory: what all error synapses may take, in bytes or as "2GiB"; forms that need less are chosen until they
        fit. By default four times the parameters or 256 MiB. gpu_memory: the same for each GPU and everything on it.
    rule: learning of the error synapses, "eq6", "fixed", "dkp" (direct Kolen-Pollack), "mirror" (weight mirrors, see
        ``CompiledStep.mirror``; ``mirror_noise``: σ of their noise) or "readout" (edges from outputs are readouts with
        an error of their own, all others learn by "dkp"); on edges against a weight, which the wiring "reverse" has,
        "kp" (Kolen-Pollack: E moves as the weight does) or "sign" (E = s sign(W)). beta, gamma: β and γ of the rule;
        gamma is 0.01 for Eq. 6 and 1 for the others unless given. kappa: region id → κ_i.
    norm: p = q of the discrepancy, 2 or 1. sign: of Eq. 6, "descend" or "printed". gain: divide e_i by β.
    loss: "cross-entropy" (classes in the last dimension of a sequence's output, [B, T, C], else in dimension 1),
        "causal-lm" (the same, each position predicting the next target), "mse" (half the squared distance) or
        "bce-with-logits"; where forward() returns several tensors, of the one called ``output`` ("logits", "0",
        "aux.0"; by default "logits", "out", or the first), or a mapping from such labels to losses.
    label_smoothing, ignore_index, class_weights: of the losses over classes, as torch.nn.functional has them.
    optimizer: of ``step(x, target)``, for parameters and synapses: "sgd", "momentum" or "adamw", as torch.optim has
        them, on each parameter's lane as soon as its update is there. lr, momentum, betas, eps, weight_decay: its
        numbers. synapse_decay: of the synapses, decoupled, in place of weight_decay.
    update: "analytic" (closed forms). strict: refuse anything else. seed: of the synapses.
    synapse_entries: largest dense synapse, in entries; a bigger one shares its weights over positions.
    synapse: form of every error synapse that it fits: "dense", "implicit" (dense, but made anew from a seed wherever it
        is used), "lowrank(r)", "conv", "channel", "token" or "adjoint" (against a connection of the forward pass, E in
        the place of its weight: all edges of the wiring "reverse"); the others, and all with "auto", as said above.
    frontend: "auto", "export" or "record": how the model is captured (see docs/limits.md).
    micro_batches: equal parts that every batch is cut into; parameters learn once, from all of them. placement:
        "pipeline" gives each GPU regions of its own and their part of the forward pass, as "auto" does where there are
        micro-batches or overlapping steps. overlap_steps: let the next step begin in regions that are updated already;
        call ``step.join()`` before you read parameters elsewhere.
    without: optimisations to leave out, of ``reclra_graph.options.OPTIMISATIONS``; the step learns the same.
    recompute: compute activations again where targets and updates read them, instead of holding them from the forward
        pass on: the same numbers from less memory, in a little more time (``step.fused()`` does so anyway, in less).
    memory_format: "contiguous" or "channels_last", the format of images in which the step shall be fastest (the rows of
        dense synapses follow it; any format gives the same numbers); "auto": that of the example inputs.
    autocast: "bfloat16" or "float16": products are computed in it, as torch.autocast has it on the device that the
        model is on, while parameters, synapses, errors and what the optimiser remembers stay float32.
    device: the kind of device that costs are those of: "cpu", "v100", "a100", "h200", a JSON file that describes one
        (docs/architecture.md), or "unit", the paper's unit-cost model. profile: measure costs on the model's own device
        instead; what was measured is kept in the user's cache folder.
    progress: told the name of each pass as it starts.

    Raises UsageError for impossible options, ModelError (all problems at once) where the model cannot be compiled.
    """
    model = plain_model(model)
    args, kwargs = called(example_inputs, example_kwargs)
    options = make_options(
        gpus=gpus, depth=depth, relays=relays, wiring=wiring, synapse_memory=synapse_memory,
        gpu_memory=gpu_memory, rule=rule, beta=beta, gamma=gamma, kappa=kappa, norm=norm,
        sign=sign, gain=gain, loss=loss, output=output, label_smoothing=label_smoothing, ignore_index=ignore_index,
        class_weights=class_weights, optimizer=optimizer, lr=lr, momentum=momentum, betas=betas,
        eps=eps, weight_decay=weight_decay, synapse_decay=synapse_decay, mirror_noise=mirror_noise, update=update,
        strict=strict, seed=seed,
        synapse_entries=synapse_entries, synapse=synapse, frontend=frontend, micro_batches=micro_batches,
        placement=placement, overlap_steps=overlap_steps, without=without, recompute=recompute,
        memory_format=memory_format, autocast=autocast, device=device, profile=profile,
    )  # fmt: skip
    found = compile_model(model, args, kwargs, options, progress)
    return CompiledStep(model, found.program, found.constants, found.seconds)


def stack(
    models: Sequence[nn.Module],
    example_inputs: Any,
    *,
    seeds: Sequence[int] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    backprop: bool = False,
    progress: Callable[[str], None] | None = None,
    **options: Any,
) -> StackedStep:
    """One training step for many runs of a small net at once: several models of one architecture, each with numbers of
    its own, over which the step of ``rg.compile(models[0], example_inputs, **options)`` goes together.

    ``losses = step(x, target)`` takes a batch for each run, x [S, B, ...], or one for all, [B, ...]. Each run learns as
    it would alone. ``step.lr``, ``step.beta`` and ``step.gamma`` take a number, or one for each run;
    ``step.unstack()`` writes what was learned into the models.

    seeds: of the synapses of each run; by default ``seed``, ``seed + 1``, ... backprop: let the same runs learn by
    backpropagation, with the same losses and optimiser, as the yardstick.

    Raises what ``compile`` raises, UsageError RG405 where there is no model or another number of seeds, and ModelError
    RG620 where such a step cannot be stacked, RG621 where the models differ in more than their numbers.
    """
    models, count = [plain_model(model) for model in models], len(models)
    seeds = [int(options.get("seed", 0)) + number for number in range(count)] if seeds is None else list(seeds)
    if not models or len(seeds) != count:
        cause = f"{len(seeds)} seeds are given for {count} models" if models else "there are no models"
        raise UsageError(Problem("RG405", cause, "stack()", "Give at least one model, and a seed for each or none."))
    chosen = {**options, "seed": seeds[0]}
    first = compile(models[0], example_inputs, example_kwargs=example_kwargs, progress=progress, **chosen)
    call = called(example_inputs, example_kwargs)
    runs = [first]
    for number, model in enumerate(models[1:], 1):
        constants = constants_of(model, models[0], first, call, make_options(**chosen), f"run {number}")
        runs.append(CompiledStep(model, first.program, constants, first.seconds, seeds[number]))
    return (StackedBackprop if backprop else StackedStep)(runs)


def make_options(**given: Any) -> Options:
    """Options as the API takes them, in the frozen form that the passes read. Raises ModelError where a wiring's file
    cannot be read (RG101, RG441)."""
    relays, wiring, loss = given.get("relays"), given.get("wiring", "auto"), given.get("loss", "cross-entropy")
    given["relays"] = None if relays is None else tuple(relays)
    if isinstance(wiring, str):
        given["wiring"] = read_wiring(wiring) if wiring.endswith(SUFFIX) else wiring
    else:
        given["wiring"] = tuple(_edge(item) for item in wiring)
    for name in ("synapse_memory", "gpu_memory"):
        given[name] = byte_count(given[name]) if given.get(name) is not None else None
    given["loss"] = tuple((str(key), item) for key, item in loss.items()) if isinstance(loss, Mapping) else loss
    given["kappa"] = tuple(
        sorted((given.get("kappa") or {}).items(), key=lambda item: (isinstance(item[0], str), item))
    )
    if isinstance(given.get("betas"), Sequence):
        given["betas"] = tuple(given["betas"])
    without = given.get("without") or ()
    given["without"] = (without,) if isinstance(without, str) else tuple(without)
    given["class_weights"] = tuple(float(item) for item in given.get("class_weights") or ())
    return Options(**given)


def _edge(item: str | tuple[int, int]) -> str:
    return item if isinstance(item, str) else "->".join(str(end) for end in item)


def load(directory: str | Path, model: nn.Module) -> CompiledStep:
    """A step that ``step.save(directory)`` wrote, bound to ``model``: step.py as it stands there, edited or not.

    Raises ModelError: RG702 where files are missing or damaged, RG605 where the model is another.
    """
    folder = Path(directory)
    try:
        source = (folder / "step.py").read_text(encoding="utf-8")
        plan = (folder / "plan.json").read_text(encoding="utf-8")
        timetable = from_text((folder / "schedule.txt").read_text(encoding="utf-8"))
        saved = torch.load(folder / "synapses.pt", map_location="cpu", weights_only=True)
        held = folder / "constants.pt"
        constants = torch.load(held, map_location="cpu", weights_only=True) if held.exists() else {}
    except Exception as error:  # a damaged file can fail in any way inside its reader
        cause = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise ModelError(Problem("RG702", f"cannot read the saved step: {cause}", str(folder))) from error
    if not isinstance(timetable, Schedule) or not isinstance(saved, dict):
        raise ModelError(Problem("RG702", "schedule.txt holds no schedule, or synapses.pt no synapses", str(folder)))
    verify(timetable)
    stamp = timetable.digest
    if read_plan(plan).digest != stamp:
        raise ModelError(Problem("RG702", "plan.json and schedule.txt are not of the same plan", str(folder)))
    step = CompiledStep(model, StepProgram(timetable, source, (), stamp), constants)
    step.load_state_dict(saved)
    return step


def assign_grads(
    step: CompiledStep, inputs: Any, target: Tensor | Mapping[str, Tensor], kwargs: Mapping[str, Any] | None = None
) -> Tensor:
    """Compute one step's updates and put them into ``.grad`` instead of applying them; returns the loss.

    ``.grad`` of every parameter that learns, and of every synapse, is set (not added to) to its direction of descent,
    a mean over the batch: any torch optimiser, scheduler or clipping can go on from there. As in any forward pass in
    train mode, running statistics move on. Pass
    ``step.synapses.values()`` to the optimiser as well, or leave them out to keep them fixed.
    """
    loss, parameters, synapses = step.deltas(inputs, target, kwargs)
    for name, parameter in step.model.named_parameters():
        if name in parameters:
            parameter.grad = parameters[name]
    for name, delta in synapses.items():
        step.synapses[name].grad = delta
    return loss


def replace_conv(
    model: nn.Module,
    example_inputs: Any,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    masks: int = 1,
    sigma: float = SIGMA,
    seed: int = 0,
    maps: str = "buffers",
    report: Callable[[str], None] | None = None,
) -> nn.Module:
    """A copy of ``model`` with pseudo-convolutions (``rg.PerturbativeConv2d``) in the place of its convolutions; the
    model itself is not changed. The same arguments give the same copy, wherever and whenever.

    The first convolution stays one, and so does whatever a pseudo-convolution cannot stand for: 1×1 convolutions,
    groups, dilation, a layer that runs on maps of several sizes, …

    example_inputs, example_kwargs: as ``rg.compile`` takes them. masks: maps of noise for each input channel; 1 keeps
    the number of channels, k² the number of parameters of k×k convolutions. sigma: deviation of the maps. seed: of the
    maps and of the new weights. maps: "buffers" holds the maps, "regenerated" makes them anew in every forward pass.
    report: told in a line what became of each convolution, in the order in which they run.

    Raises UsageError for impossible numbers; ModelError where the model cannot be captured, RG130 where it has no
    convolution that can be replaced.
    """
    found = rewriting.replace_conv(
        model, example_inputs, example_kwargs, masks=masks, sigma=sigma, seed=seed, maps=maps
    )
    if report is not None:
        for line in found.lines:
            report(line)
    return found.model
