"""Every error a user can meet, with its code, cause, place and remedy.

    Exception
    └── ReclraError                 one or more coded problems, all found at once
        ├── UsageError              wrong options: exit status 2 on the command line
        ├── ModelError              the model cannot be compiled: exit status 1
        ├── VerificationError       a verifier found a broken invariant (a bug here, or an edited plan)
        └── StepError               a training step refused its input, or met a loss that is not finite

A code never changes its meaning. ``docs/errors/`` has a page for each; tests compare the two, and run the examples.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

CODES: dict[str, tuple[str, str]] = {
    # code: (name, remedy)
    "RG101": (
        "file-not-found",
        "Check the path; a model is a .py, .pt2 or .onnx file, or `package.module:factory`.",
    ),
    "RG102": (
        "not-python",
        "Give a .py file that Python can parse, a .pt2 or .onnx file, or `package.module:factory`.",
    ),
    "RG103": ("import-failed", "Run the file by itself with `python FILE` and mend what it raises."),
    "RG104": ("no-model", "Define `model = ...` (an nn.Module) or `def build_model()` at the top level of the file."),
    "RG105": ("several-models", "Name one of them `model`, or offer a `build_model()`."),
    "RG106": (
        "no-example-inputs",
        "Define `example_inputs = (tensor, ...)` in the file, or pass `--input 64x1x28x28` for each input.",
    ),
    "RG107": (
        "bad-example-inputs",
        "Example inputs are what forward() takes, with at least one tensor whose first dimension is the batch.",
    ),
    "RG108": ("bad-input-shape", "Write a shape as numbers joined by x, e.g. `--input 64x1x28x28`."),
    "RG109": ("factory-failed", "Call the factory by itself and mend what it raises; it must return an nn.Module."),
    "RG110": ("bad-saved-program", "Save the program again with torch.export.save, by this version of PyTorch."),
    "RG111": (
        "unsafe-content",
        "Save the model with torch.export.save, tensors and plain arguments only; what runs code is never opened.",
    ),
    "RG112": ("bad-onnx", "Give a whole ONNX model that onnx.checker accepts."),
    "RG113": ("onnx-data-missing", "Copy the files that the ONNX model keeps its tensors in beside it."),
    "RG114": ("onnx-unsupported", "Export the model with other operators, or build it in a .py file."),
    "RG120": ("several-devices", 'Move the model and its inputs to one device, e.g. `model.to("cuda:0")`.'),
    "RG121": ("parameter-dtype", "Call model.float() before you compile it: what is learned is lost in fewer bits."),
    "RG122": (
        "no-values",
        "Build the model outside torch.device('meta') and FakeTensorMode, or load its weights first.",
    ),
    "RG123": ("uninitialised", "Run the model once on the example inputs: its lazy modules then know their shapes."),
    "RG124": ("unsupported-tensor", "Give a model whose parameters are plain dense tensors."),
    "RG125": ("wrapped-model", "Pass the model inside: `model.module`."),
    "RG126": ("script-module", "Pass the nn.Module that was scripted or traced."),
    "RG130": (
        "nothing-to-replace",
        "Leave --replace-conv out, or give a model with a second nn.Conv2d that has a window and no groups.",
    ),
    "RG201": ("inputs-rejected", "Call `model(*example_inputs)` by itself; it must run in train mode."),
    "RG202": ("capture-failed", "The line shown could not be traced; move data-dependent Python out of forward()."),
    "RG203": (
        "unsupported-output",
        "Return a floating-point tensor in which each sample of the batch has its own part.",
    ),
    "RG204": ("unsupported-value", "Only tensors and numbers can travel through a compiled step."),
    "RG205": ("custom-operator", "Only PyTorch's own operators run in a file that imports torch alone."),
    "RG301": ("no-parameters", "There is nothing to train: give a model with parameters."),
    "RG302": (
        "nothing-learns",
        "Set requires_grad on the parameters that should learn, in layers that reach the output.",
    ),
    "RG303": (
        "no-update-rule",
        "Rewrite the line with a layer that has a rule (docs/limits.md lists them), or freeze it.",
    ),
    "RG304": ("local-vjp-refused", "Drop strict=True, or rewrite the layer with operators that have an analytic rule."),
    "RG305": (
        "batch-not-leading",
        "Let the layer work on values that tell samples apart, or give a loss to one result only.",
    ),
    "RG401": ("bad-gpus", "Ask for at least one GPU: `--gpus 1`."),
    "RG402": ("bad-depth", "Choose a depth between 1 and the number of regions below the output."),
    "RG403": ("bad-relays", "Name relays by region id or module path, as `reclra explain` and plan.json list them."),
    "RG404": ("bad-wiring", 'Use "auto", "flat", "chain", "blocks", "reverse", or edges such as ["9->5", "5->4"].'),
    "RG405": ("bad-option", "Use one of the values listed."),
    "RG406": ("loss-misfit", "Choose a loss that fits the output, or change the last layer."),
    "RG407": ("dead-region", "Give the region an incoming error edge, so that it is reached from the output."),
    "RG408": ("error-cycle", "Error edges must form no cycle: an error never returns to its source."),
    "RG409": ("unknown-output", "Use one of the labels that the cause lists, in `output` or in `loss`."),
    "RG430": ("unknown-device", "Choose a device by name, or describe one in a JSON file."),
    "RG431": (
        "bad-device-file",
        "Write one JSON object with flops, bandwidth, launch, link, latency and memory, each a number above 0.",
    ),
    "RG440": ("over-budget", "Give the budget that the cause names, or a smaller model or batch."),
    "RG441": (
        "bad-wiring-file",
        'Give a list of edges, an object {"edges": [...], "forms": {...}}, or a plan.json.',
    ),
    "RG442": ("bad-synapse", "Give each edge a form that fits it, a known rule, and the shape of that form or none."),
    "RG443": ("bad-placement", "Place every region once, on a GPU below `--gpus`; or leave the placement out."),
    "RG445": (
        "no-way-back",
        "Use another wiring, or freeze the region; errors go back over operators that PyTorch can differentiate.",
    ),
    "RG450": (
        "uncuttable-batch",
        "Leave micro_batches at 1, or give a model whose batch size is free and comes first.",
    ),
    "RG460": (
        "method-misfit",
        "Use a method that takes such a model (docs/methods.md), or change what the cause names.",
    ),
    "RG501": (
        "invariant-broken",
        "This is a bug in reclra-graph (or an edited file); please report it with the model.",
    ),
    "RG601": ("input-shape", "Feed inputs with the shapes and dtypes that the step was compiled for."),
    "RG602": ("target-shape", "Feed targets with the shape and dtype that the loss expects."),
    "RG603": ("target-range", "Class indices lie between 0 and the number of classes minus one."),
    "RG604": ("not-finite", "Look for NaN in the data, or lower lr; the parameters are as they were before this step."),
    "RG605": ("different-model", "Load the plan with the model that it was compiled for."),
    "RG606": (
        "no-cuda-graph",
        "Call the step itself, which runs everywhere; graphs need CUDA and a step that can be captured.",
    ),
    "RG620": (
        "not-stackable",
        "Train the runs one after the other, or write the line that the cause names in plain tensor operators.",
    ),
    "RG621": ("unlike-runs", "Build every model by the same code; they may differ in their numbers alone."),
    "RG701": ("unwritable", "Choose another folder with --out, or change its permissions."),
    "RG702": ("bad-saved-step", "Save the step again with `step.save(dir)`."),
    "RG703": ("missing-data", "Give --data a folder that holds the data set's official files."),
    "RG704": ("bad-data", "The file is damaged or is not what its name says; fetch it again."),
    "RG710": ("another-run", "Give the settings that the run was begun with, another --out, or --fresh to begin anew."),
    "RG711": ("bad-checkpoint", "Begin anew with --fresh, or give another --out."),
    "RG712": ("extra-missing", "Install the extra that is named: pip install 'reclra-graph[images]'."),
    "RG713": ("data-misfit", "Bring a model for these samples, or other samples."),
    "RG801": (
        "bad-zoo-list",
        "Write one `source name` on a line; the sources are own, torchvision, timm, transformers and file.",
    ),
    "RG802": ("no-such-zoo-model", "Check the name, and the version of the library that is installed."),
    "RG803": ("zoo-model-rejected", "Bring the model by a file of your own, with example inputs that it accepts."),
    "RG804": ("zoo-time-limit", "Give the model more time with --timeout, or fewer neighbours with --jobs."),
    "RG805": ("zoo-memory-limit", "Give the model more memory with --memory."),
    "RG806": ("zoo-process-ended", "Run `python -m reclra_graph.bench.worker` on the model by itself; read its log."),
    "RG807": ("zoo-check-failed", "This is a bug in reclra-graph; please report it with the model."),
    "RG808": ("bench-loss", "Give a lower --lr, or more --rounds; a time is no result where nothing is learned."),
    "RG809": ("bench-cell-failed", "Read the cause, and the log in the folder --work; run it again with --fresh."),
    "RG901": ("search-extra-missing", "Install it: pip install 'reclra-graph[search]'."),
    "RG902": ("another-search", "Give another folder with --out, or remove this one."),
    "RG910": ("tensorboard-extra-missing", "Install it: pip install 'reclra-graph[tensorboard]'."),
}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: what (code, cause), where (place), and what to do (remedy)."""

    code: str
    cause: str
    place: str = ""
    remedy: str = ""

    @property
    def name(self) -> str:
        """The code's name, e.g. ``file-not-found``."""
        return CODES[self.code][0]

    @property
    def advice(self) -> str:
        """The remedy given, or else the code's own."""
        return self.remedy or CODES[self.code][1]

    @property
    def page(self) -> str:
        """The page of the documentation that explains the code."""
        return f"docs/errors/{self.code}.md"

    def __str__(self) -> str:
        where = f"\n    at: {self.place}" if self.place else ""
        return f"{self.code} {self.name}: {self.cause}{where}\n    do: {self.advice}\n    see: {self.page}"


class ReclraError(Exception):
    """Base of all errors raised on purpose; ``problems`` holds every one found, not only the first."""

    exit_status = 1

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    @property
    def codes(self) -> tuple[str, ...]:
        """The codes of all problems, in the order they were found."""
        return tuple(problem.code for problem in self.problems)


class UsageError(ReclraError):
    """Options that cannot be meant: exit status 2."""

    exit_status = 2


class ModelError(ReclraError):
    """The model, or the file it comes from, cannot be compiled."""


class VerificationError(ReclraError):
    """A value between two passes breaks an invariant; the place names the offending part."""


class StepError(ReclraError, ValueError):
    """A training step was refused before anything was changed."""
