"""Whether a program saved by torch.export can be read without running anything that stands in it.

``torch.export.load`` unpickles some of what it finds, loads compiled libraries, evaluates the text of expressions, and
pastes names into generated code. None of this happens to a file that passes here: whatever is neither plain data nor
a tensor is a problem, RG111.
"""

from __future__ import annotations

import ast
import io
import json
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch.export.pt2_archive import PT2ArchiveReader

from reclra_graph.errors import Problem
from reclra_graph.formats.found import first_line

_MODEL = "models/model.json"
_SAMPLES = "data/sample_inputs/model.pt"
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_DATA = re.compile(r"data/(weights/weight|constants/tensor)_\d+")
# Text beside the model, and what the archive says of itself.
_BESIDE = re.compile(
    r"extra/.*|\.?data/[a-z_]+|\.format_version|archive_format|archive_version|byteorder|version", re.S
)

_WORD = re.compile(r"[\w.:/ -]*")
# Read as text, or not read at all: guards are code, and are never compiled here (``check_guards=False``).
_TEXT = {"metadata", "as_string", "as_strings", "guards_code", "torch_version", "verifiers"}
_TREES = {"in_spec", "out_spec"}
# What sizes are made of: sympy's classes, and those of torch.utils._sympy.functions.
_CLASSES = {
    "Symbol", "Dummy", "Integer", "Rational", "Float", "Add", "Mul", "Pow", "Max", "Min", "Abs", "Piecewise", "Tuple",
    "ExprCondPair", "Equality", "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan", "Eq",
    "Ne", "Lt", "Le", "Gt", "Ge", "And", "Or", "Not", "floor", "ceiling", "FloorDiv", "ModularIndexing", "Where",
    "PythonMod", "Mod", "CleanDiv", "CeilDiv", "CeilToInt", "FloorToInt", "LShift", "RShift", "PowByNatural",
    "FloatPow", "FloatTrueDiv", "IntTrueDiv", "TruncToFloat", "TruncToInt", "RoundToInt", "RoundDecimal", "ToFloat",
    "Identity", "IsNonOverlappingAndDenseIndicator",
}  # fmt: skip
_TAKE_TEXT = {"Symbol", "Dummy", "Float"}
_ARITHMETIC = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.operator, ast.unaryop, ast.cmpop, ast.Name, ast.Load,
    ast.Tuple, ast.keyword,
)  # fmt: skip


def scan(reader: PT2ArchiveReader, place: str) -> list[Problem]:
    """Everything in the archive that could only be read by running it (RG111), or is not what torch.export saves
    (RG110)."""
    names = reader.get_file_names()
    found = [Problem("RG110", f"it lacks {name}", place) for name in (_MODEL, _SAMPLES, *_CONFIGS) if name not in names]
    for name in names:
        if name not in (_MODEL, _SAMPLES, *_CONFIGS) and not _DATA.fullmatch(name) and not _BESIDE.fullmatch(name):
            found.append(Problem("RG111", f"it holds {name!r}, which is neither a graph nor a tensor", place))
    if found:
        return found
    for name in _CONFIGS:
        for key, entry in json.loads(reader.read_string(name))["config"].items():
            if entry["use_pickle"] or not _DATA.fullmatch(f"{name.rpartition('/')[0]}/{entry['path_name']}"):
                found.append(Problem("RG111", f"{key!r} is stored as a pickled object", place))
    samples = reader.read_bytes(_SAMPLES)
    try:
        if samples:
            torch.load(io.BytesIO(samples), weights_only=True)
    except Exception as error:  # a pickle that asks for anything beyond tensors, or is no pickle at all
        found.append(Problem("RG111", f"its example inputs are more than tensors: {first_line(error)}", place))
    for cause in sorted(set(_unsafe(json.loads(reader.read_string(_MODEL)), ""))):
        found.append(Problem("RG111", cause, place))
    return found


def operators(model: Any) -> Iterator[str]:
    """The names of all operators in a saved graph's JSON, those of inner graphs too."""
    if isinstance(model, dict):
        for key, value in model.items():
            if key == "target" and isinstance(value, str):
                yield value
            elif key not in _TEXT:
                yield from operators(value)
    elif isinstance(model, list):
        for item in model:
            yield from operators(item)


def _unsafe(value: Any, key: str) -> Iterator[str]:
    """What is wrong with the strings in ``value``, which stands under ``key``."""
    if key in _TEXT:
        return
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _unsafe(str(name), "a name")
            yield from _unsafe(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from _unsafe(item, key)
    elif isinstance(value, str):
        if key == "expr_str":
            if not _plain_expression(value):
                yield f"the size {value[:80]!r} is more than arithmetic"
        elif key in _TREES:
            yield from _unsafe_tree(json.loads(value))
        elif not _WORD.fullmatch(value):
            yield f"the name {value[:80]!r} is not a plain one"


def _plain_expression(text: str) -> bool:
    """Whether ``text`` is arithmetic on names and numbers: nothing that evaluating it could call or reach."""
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    words: set[int] = set()  # strings in the places where a class takes one
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if not isinstance(node.func, ast.Name) or node.func.id not in _CLASSES:
                return False
            words.update(id(item) for item in node.args[:1] if node.func.id in _TAKE_TEXT)
        elif isinstance(node, ast.Constant):
            if isinstance(node.value, str) and not (id(node) in words and re.fullmatch(r"[\w.+-]+", node.value)):
                return False
            if not isinstance(node.value, (bool, int, float, str)):
                return False
        elif not isinstance(node, _ARITHMETIC):
            return False
    return True


def _unsafe_tree(value: Any) -> Iterator[str]:
    """The same for the description of a nest of arguments: reading it may import modules by their names."""
    if isinstance(value, dict):
        if "__enum__" in value or value.get("default_factory_module", "builtins") != "builtins":
            yield "its arguments need a class from another module"
        for key, item in value.items():
            yield from _unsafe_tree(str(key))
            yield from _unsafe_tree(item)
    elif isinstance(value, list):
        for item in value:
            yield from _unsafe_tree(item)
    elif isinstance(value, str) and not _WORD.fullmatch(value):
        try:
            inner = json.loads(value)
        except ValueError:
            inner = None
        if inner is None or isinstance(inner, str):
            yield f"the name {value[:80]!r} of an argument is not a plain one"
        else:
            yield from _unsafe_tree(inner)
