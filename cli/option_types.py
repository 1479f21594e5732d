"""The options of ``reclra compile`` and its kin: their types, and what --help says of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from reclra_graph.methods.registry import METHODS
from reclra_graph.options import (
    AUTOCASTS,
    FORMS,
    FRONTENDS,
    LOSSES,
    MEMORY_FORMATS,
    OPTIMISATIONS,
    OPTIMIZERS,
    PLACEMENTS,
    SIGNS,
    SYNAPSE_RULES,
    UPDATES,
    WIRINGS,
)

STEPS = tuple(name for name, method in METHODS.items() if method.loop == "step")
"""Methods that are compiled steps."""
MODEL_HELP = (
    "A Python file that offers `model` or `build_model()`, and `example_inputs`; package.module:factory; "
    "a program that torch.export.save wrote (.pt2); or an ONNX file (.onnx)."
)
INPUT_HELP = (
    "Shape of an example input, such as 64x1x28x28 or 64x128:int64, by keyword as ids=64x128:int64; "
    "once for each input of the model."
)


def _one_of(names: Sequence[object]) -> str:
    return ", ".join(map(str, names))


Model = Annotated[str, typer.Argument(help=MODEL_HELP, show_default=False)]
Inputs = Annotated[list[str] | None, typer.Option("--input", help=INPUT_HELP, metavar="SHAPE")]
Method = Annotated[
    str | None,
    typer.Option(
        help=f"A method by name, in the place of options that are not given: {_one_of(STEPS)}.", show_default=False
    ),
]
Output = Annotated[str | None, typer.Option(help="The result that has the loss, such as logits or 0.")]
Frontend = Annotated[str, typer.Option(help=f"How the model is captured: {_one_of(FRONTENDS)}.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, errors too.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]

Gpus = Annotated[int, typer.Option(help="GPUs to schedule for.")]
Depth = Annotated[str, typer.Option(help="Longest error path in edges, or auto.")]
Relays = Annotated[str | None, typer.Option(help="Regions that pass errors on: ids or module paths, such as 2,5,8.")]
Wiring = Annotated[
    str, typer.Option(help=f'{_one_of(WIRINGS)}, error edges: "9->5,9->2", or a .json file: edges, or a plan.json.')
]
SynapseMemory = Annotated[
    str | None, typer.Option(help="What all error synapses may take, such as 2GiB.", show_default=False)
]
GpuMemory = Annotated[str | None, typer.Option(help="What each GPU can hold, such as 80GB.", show_default=False)]
Rule = Annotated[str, typer.Option(help=f"How error synapses learn: {_one_of(SYNAPSE_RULES)}.")]
Beta = Annotated[float, typer.Option(help="Scale of the displacement of a pre-activation.")]
Gamma = Annotated[
    float | None,
    typer.Option(help="Rate of the error synapses; else what suits their rule.", show_default="0.01, or 1 for kp"),
]
Kappa = Annotated[str | None, typer.Option(help="Coefficients of regions by id, such as 3=0.5,7=2.")]
Norm = Annotated[int, typer.Option(help="p = q of the discrepancy: 1 or 2.")]
Sign = Annotated[str, typer.Option(help=f"Sign of the synapses' update: {_one_of(SIGNS)}.")]
Gain = Annotated[bool, typer.Option("--gain", help="Divide errors by beta before they are passed on.")]
Loss = Annotated[str, typer.Option(help=f"{_one_of(LOSSES)}; or one for each result: class=cross-entropy,box=mse.")]
LabelSmoothing = Annotated[float, typer.Option(help="Of losses over classes.")]
IgnoreIndex = Annotated[int | None, typer.Option(help="Class index of targets that do not count.", show_default=False)]
ClassWeights = Annotated[str | None, typer.Option(help="Of losses over classes, such as 1,1,5.")]
MicroBatches = Annotated[int, typer.Option(help="Equal parts that every batch is cut into; parameters learn once.")]
Placement = Annotated[str, typer.Option(help=f"{_one_of(PLACEMENTS)}: pipeline gives each GPU regions of its own.")]
OverlapSteps = Annotated[
    bool, typer.Option("--overlap-steps", help="Let a step begin in regions that the one before has updated.")
]
Without = Annotated[
    list[str] | None, typer.Option("--without", help=f"An optimisation to leave out: {_one_of(OPTIMISATIONS)}.")
]
Recompute = Annotated[
    bool, typer.Option("--recompute", help="Compute activations again where they are read late: less memory.")
]
Device = Annotated[str, typer.Option(help="Whose costs to plan with: unit, cpu, v100, a100, h200, or a JSON file.")]
Profile = Annotated[bool, typer.Option("--profile", help="Measure costs on this machine; what was measured is kept.")]
Optimizer = Annotated[str, typer.Option(help=f"{_one_of(OPTIMIZERS)}.")]
Lr = Annotated[float, typer.Option(help="Learning rate.")]
Update = Annotated[str, typer.Option(help=f"How regions learn: {_one_of(UPDATES)}.")]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse derivatives inside regions (local_vjp).")]
Seed = Annotated[int, typer.Option(help="Seed of the error synapses.")]
ReplaceConv = Annotated[
    str | None,
    typer.Option(help="pconv: fixed noise in the place of convolutions' windows, but the first's.", show_default=False),
]
Masks = Annotated[
    int | None, typer.Option(help="Of --replace-conv: maps of noise for each input channel.", show_default="1")
]
Sigma = Annotated[float | None, typer.Option(help="Of --replace-conv: deviation of the noise.", show_default="0.1")]
Synapse = Annotated[str, typer.Option(help=f"Form of the error synapses where it fits: auto, {_one_of(FORMS)}.")]
Out = Annotated[Path | None, typer.Option(help="Folder for the files.", show_default="build/NAME")]
Momentum = Annotated[float, typer.Option(help="Of the optimizer momentum.")]
Betas = Annotated[str, typer.Option(help="Of the optimizer adamw: what is kept of both running means.")]
Eps = Annotated[float, typer.Option(help="Of the optimizer adamw.")]
WeightDecay = Annotated[float, typer.Option(help="Decay of parameters and synapses, as torch.optim has it.")]
SynapseDecay = Annotated[
    float | None, typer.Option(help="Decay of synapses in place of --weight-decay, decoupled.", show_default=False)
]
MirrorNoise = Annotated[float, typer.Option(help="Deviation of the noise of the rule mirror.")]
MemoryFormat = Annotated[
    str,
    typer.Option(
        help=f"Of images, in which the step shall be fastest: {_one_of(MEMORY_FORMATS)}, which is the input's."
    ),
]
Autocast = Annotated[
    str | None,
    typer.Option(help=f"Dtype of products, beside float32 parameters: {_one_of(AUTOCASTS)}.", show_default=False),
]
