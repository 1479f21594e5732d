"""A program that ``torch.export.save`` wrote: ``model.pt2``.

Nothing in the file is run while it is read, see ``pt2_scan``. The program is the one that was saved: exported in eval
mode, its batch norms use their stored statistics and its dropouts do nothing, in training too.
"""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.pt2_archive import PT2ArchiveReader

from reclra_graph.errors import Problem
from reclra_graph.example_inputs import call_of
from reclra_graph.formats.found import Failure, Found, first_line, read_bytes, what
from reclra_graph.formats.graph_model import graph_model, keep_places, scope
from reclra_graph.formats.pt2_scan import operators, scan

_ADVICE = "Save it again with torch.export.save, and copy it whole."
_OWN = re.compile(r"torch\.ops\.(aten|prims|higher_order)\..*|_operator\..*|math\..*|torch\.sym_\w+|torch\._sym_\w+")


def from_program(path: Path) -> Found:
    """The program's module, and the example inputs stored with it.

    Raises Failure: RG101 and RG102 where there is no such file, RG110 where it is no saved program or is damaged, RG111
    where reading it would mean to run what stands in it, RG205 for operators of other libraries.
    """
    start, place = read_bytes(path, 4), str(path)
    if start[:1] == b"\x80":
        raise Failure(Problem("RG111", "it is a pickle: opening it would run its code", place))
    if not start.startswith(b"PK"):
        raise Failure(Problem("RG110", "it is no archive, so no saved program", place))
    with _quiet():
        try:
            reader = PT2ArchiveReader(place)
            problems = scan(reader, place)
            foreign = [] if problems else _foreign(json.loads(reader.read_string("models/model.json")))
        except Exception as error:  # a damaged archive fails anywhere inside its reader
            raise Failure(_unreadable(path, error)) from None
        if problems:
            raise Failure(*problems)
        if foreign:
            raise Failure(
                *(Problem("RG205", f"it calls {name}, which is not PyTorch's own", place) for name in foreign)
            )
        try:
            program = _load(place)
            model = _module(program)
        except Exception as error:  # saved by another version, or edited
            raise Failure(Problem("RG110", f"torch cannot read it: {what(error)}", place, _ADVICE)) from None
    if not program.example_inputs:
        return Found(model, (), {}, (Problem("RG106", "the program was saved without example inputs", place),))
    args, kwargs = program.example_inputs
    args, kwargs, wrong = call_of(args, kwargs, place)
    return Found(model, args, kwargs, tuple(wrong))


def _load(place: str) -> ExportedProgram:
    # Not torch.export.load: where reading fails, it tries an older format, and unpickles that.
    from torch.export.pt2_archive._package import load_pt2

    program: ExportedProgram = load_pt2(place).exported_programs["model"]
    return program


def _unreadable(path: Path, error: Exception) -> Problem:
    """Why the archive cannot be read: it is another kind of archive, or damaged."""
    place = str(path)
    names = _record_names(place)
    if any(name.endswith((".pkl", "/data.pkl")) for name in names):
        cause = "it holds a pickle, as torch.save writes it: opening it would run its code"
        return Problem("RG111", cause, place)
    if names and "archive_format" not in names:
        return Problem("RG110", "it is an archive, but no program saved by this PyTorch", place, _ADVICE)
    return Problem("RG110", f"the archive is damaged: {first_line(error)}", place, _ADVICE)


def _record_names(place: str) -> list[str]:
    try:
        names: list[str] = torch._C.PyTorchFileReader(place).get_all_records()
    except (RuntimeError, ValueError):  # damaged as a whole, or in a name
        return []
    return names


def _foreign(model: Any) -> list[str]:
    """Operators that PyTorch itself does not have."""
    return sorted({name for name in operators(model) if not _OWN.fullmatch(name) or name == "torch.ops.aten.from_file"})


def _module(program: ExportedProgram) -> nn.Module:
    # Guards are code from the file; what they would check of the inputs, a compiled step checks itself.
    flat = program.module(check_guards=False)
    graph: fx.Graph = flat.graph
    spec = program.call_spec
    assert spec.in_spec is not None
    assert spec.out_spec is not None
    signature = program.module_call_graph[0].signature
    names = (signature.forward_arg_names if signature is not None else None) or ()
    kinds: dict[str, Any] = {}
    for node in graph.nodes:
        kinds.update((node.meta.get("nn_module_stack") or {}).values())
    model = graph_model(_text(kinds.get("", "SavedProgram")), graph, names, spec.in_spec, spec.out_spec)
    _adopt(model, flat, "", kinds)
    keep_places(graph)
    return model


def _text(kind: Any) -> str:
    return kind if isinstance(kind, str) else kind.__name__


def _adopt(model: nn.Module, flat: nn.Module, prefix: str, kinds: dict[str, Any]) -> None:
    """Move what ``flat`` holds below ``model``, into modules that are called as the original's were."""
    model._parameters.update(flat._parameters)
    model._buffers.update(flat._buffers)
    model._non_persistent_buffers_set |= flat._non_persistent_buffers_set
    for name, value in vars(flat).items():
        if isinstance(value, torch.Tensor):  # a constant of forward()
            model.register_buffer(name, value, persistent=False)
    for name, child in flat._modules.items():
        path = f"{prefix}.{name}" if prefix else name
        if child is None or isinstance(child, fx.GraphModule):  # the body of a branch or loop
            model._modules[name] = child
            continue
        own = scope(_text(kinds.get(path, "ModuleList")))
        _adopt(own, child, path, kinds)
        model._modules[name] = own


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what torch says of a damaged file from the terminal: what matters comes back as a coded error."""
    logger = logging.getLogger("torch.export")
    disabled, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = disabled
