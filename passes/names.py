"""Names in the emitted file: the paper's (h3, z3, y3, d3, e3), never the model's own.

A model's strings reach generated code only as dictionary keys through ``repr``; every identifier is made here.
"""

from __future__ import annotations

import builtins
import keyword
import re

from reclra_graph.ir.operators import CAST, OPAQUE, OperatorGraph
from reclra_graph.ir.regions import RegionGraph
from reclra_graph.rules.operators import short
from reclra_graph.verify.program import AUTOGRAD

RESERVED = frozenset(
    {
        "torch", "F", "P", "E", "C", "B", "M", "T", "lr", "beta", "gamma", "lanes", "here", "loss", "target",
        "optimise", "step", "synapses", "sgd", "momentum", "adamw", "Momentum", "AdamW",
        "check", "check_inputs", "mirror", "lane_device", "contextlib", "opaque",
        "opaque_vjp", "PLAN", "SYNAPSES", "INPUTS", "TARGETS", "LANES", "SMALLEST_BATCH", "Lanes", "aten", "math",
        "operator", "constants", "record", "wait", "lane", "self", "print", "device", "implicit", "implicit_key",
        "settle", "complete", "SHARED", "beside", "lay_out", "BESIDE", "unit",
    }
)  # fmt: skip

_SHORT = {
    "_native_batch_norm_legit_functional": "bn",
    "native_layer_norm": "ln",
    "layer_norm": "ln",
    "group_norm": "gn",
    "native_dropout": "dropout",
    "_unsafe_view": "view",
    "max_pool2d": "pool",
    "avg_pool2d": "pool",
    "adaptive_avg_pool2d": "pool",
    "conv1d": "conv",
    "conv2d": "conv",
    "conv3d": "conv",
}
_PARTS = {
    "_native_batch_norm_legit_functional": ("", "mean", "invstd", "new_mean", "new_var"),
    "native_dropout": ("", "mask"),
}


def identifier(text: str, fallback: str) -> str:
    """``text`` where it is a plain ASCII identifier that means nothing else in the file, else ``fallback``."""
    if text in AUTOGRAD or (hasattr(builtins, text) and text != "input"):
        return fallback  # the file uses builtins, and its verifier wants no word of autograd in it
    plain = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text) and not keyword.iskeyword(text)
    clashes = text in RESERVED or re.fullmatch(r"[a-zA-Z]+\d+(_\w*)?|_+|d[WbE]_?\w*", text)
    return text if plain and not clashes and not text.startswith("__") else fallback


class Namer:
    """Hands out each identifier once."""

    def __init__(self) -> None:
        self.taken: set[str] = set(RESERVED)

    def new(self, wanted: str) -> str:
        """``wanted``, or ``wanted_2``, ``wanted_3``, … where it is taken."""
        name, number = wanted, 1
        while name in self.taken:
            number += 1
            name = f"{wanted}_{number}"
        self.taken.add(name)
        return name


def _cast_label(source: str, region: int) -> str:
    """What a cast is a cast of: a value by its name, a parameter as W or b of its region."""
    if not source.startswith("P["):
        return source
    return {"weight": "W", "bias": "b"}.get(source[2:-1].rpartition(".")[2], "p") + str(region)


def value_names(regions: RegionGraph) -> tuple[dict[str, str], Namer]:
    """Emitted name of every value: inputs, ``P[key]`` for parameters and buffers, ``B`` for the batch size."""
    graph: OperatorGraph = regions.graph
    namer = Namer()
    names: dict[str, str] = {}
    for index, item in enumerate(graph.inputs):
        fallback = "x" if len(graph.inputs) == 1 else f"x{index + 1}"
        names[item.name] = namer.new(identifier(item.name, fallback))
    for held in graph.held:
        names[held.name] = f"P[{held.key}]"
    for region in regions.regions:
        if region.kind != "input":
            names[region.post] = namer.new(f"z{region.id}")
            if region.pre != region.post:
                names[region.pre] = namer.new(f"h{region.id}")
    for region in regions.regions:
        for name in region.operators:
            operator = graph.by_name[name]
            if operator.target == OPAQUE:
                names[name] = namer.new(f"run{region.id}")
            if name in names or operator.types:
                continue
            if operator.target == "aten.sym_size.int" and operator.size == "B":
                names[name] = "B"
                continue
            if graph.autocast and operator.target == CAST and operator.type is not None:
                names[name] = namer.new(f"{_cast_label(names[operator.reads[0]], region.id)}_{operator.type.short}")
                continue
            label = _SHORT.get(short(operator.target), short(operator.target).strip("_"))
            if operator.target == "operator.getitem":
                source = graph.by_name.get(operator.reads[0])
                parts = _PARTS.get(short(source.target), ()) if source else ()
                part = operator.args[1]
                label = parts[part] if isinstance(part, int) and part < len(parts) and parts[part] else "part"
                if part == 0 and source:
                    label = _SHORT.get(short(source.target), "part")
            names[name] = namer.new(f"{identifier(label + '_', 'v_').rstrip('_')}{region.id}")
    return names, namer
