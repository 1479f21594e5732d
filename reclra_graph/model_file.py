"""Load the model that a command line names: a Python file, ``package.module:factory``, ``model.pt2`` or ``model.onnx``.

A Python file offers ``model`` (an nn.Module) or ``build_model()``, and ``example_inputs`` and ``example_kwargs``: the
arguments of one call. Everything that is wrong and can be told apart is found at once. Python files are run, as
``python FILE`` would run them; saved pickles are never opened, whatever their names.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from reclra_graph.check_model import check_model, plain_model
from reclra_graph.errors import ModelError, Problem, UsageError
from reclra_graph.example_inputs import NamedInput, make_input
from reclra_graph.formats.found import Failure, Found, present

_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_PICKLED = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin")
_SUFFIXES = (".py", ".pt2", ".onnx")


@dataclass(frozen=True)
class LoadedModel:
    """A model and a call that it accepts; ``name`` is safe as the name of a folder.

    example_inputs: the positional arguments, a tuple of tensors, constants and nests of these. example_kwargs: those
    given by keyword.
    """

    name: str
    model: nn.Module
    example_inputs: Any
    example_kwargs: dict[str, Any]


def safe_name(text: str) -> str:
    """``text`` as a folder name: letters, digits, ``_``, ``-`` and inner dots, at most 80 of them; never empty."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text)[:80].strip("._-") or "model"


def load_model(argument: str, inputs: Sequence[str] = ()) -> LoadedModel:
    """The model and the example inputs that ``argument`` offers: ``net.py``, ``net.pt2``, ``net.onnx`` or
    ``package.module:factory``.

    ``inputs`` are shapes such as ``"64x1x28x28"``, ``"64x128:int64"`` or, for an argument by keyword,
    ``"ids=64x128:int64"``; where given, they stand in for the file's own examples: random numbers for floats, zeros for
    whole numbers.

    Raises UsageError where a shape in ``inputs`` is not one (RG108), ModelError for all else (RG101 to RG126, RG205);
    either way with every problem found.
    """
    made = [make_input(text) for text in inputs]
    usage = [item for item in made if isinstance(item, Problem)]
    given = [item for item in made if isinstance(item, NamedInput)]
    names = [item.name for item in given if item.name]
    for name in sorted({name for name in names if names.count(name) > 1}):
        usage.append(Problem("RG108", f"{name} is given {names.count(name)} times", f"--input {name}=..."))
    loaded: LoadedModel | None = None
    problems: list[Problem] = []
    with neighbours(argument):
        try:
            found = _reader(argument)()
        except Failure as failure:
            problems += failure.problems
        else:
            problems += found.problems
            loaded = _loaded(_name(argument), found, given)
    if inputs:
        problems = [item for item in problems if item.code not in ("RG106", "RG107")]
    if loaded is not None:
        problems += check_model(loaded.model, loaded.example_inputs, loaded.example_kwargs)
    if usage:
        raise UsageError(usage + problems)
    if problems or loaded is None:
        raise ModelError(problems)
    return loaded


def _loaded(name: str, found: Found, given: Sequence[NamedInput]) -> LoadedModel:
    """The model with its own examples, or with those that were asked for, on the model's device."""
    model = plain_model(found.model)
    if not given:
        return LoadedModel(name, model, found.args, found.kwargs)
    device = next((item.device for item in model.parameters() if not item.is_meta), torch.device("cpu"))
    made = [(item.name, item.tensor.to(device)) for item in given]
    positional = tuple(tensor for key, tensor in made if not key)
    return LoadedModel(name, model, positional, {key: tensor for key, tensor in made if key})


def _reader(argument: str) -> Callable[[], Found]:
    """What reads the model that ``argument`` names. Raises Failure: RG101 or RG102 where nothing can."""
    from reclra_graph.formats import python_source

    if not _is_file_name(argument):
        return lambda: python_source.from_module(argument)
    path = _path(argument)
    place, suffix = str(path), path.suffix.lower()
    if suffix == ".py":
        return lambda: python_source.from_file(path)
    if suffix == ".pt2":
        from reclra_graph.formats.pt2 import from_program

        return lambda: from_program(path)
    if suffix == ".onnx":
        from reclra_graph.formats.onnx_file import from_onnx

        return lambda: from_onnx(path)
    present(path)
    if suffix in _PICKLED:
        advice = (
            "Write a .py file that builds the model, or save it with torch.export.save as .pt2; pickles are never "
            "opened, since opening one runs its code."
        )
        raise Failure(Problem("RG102", f"{path.name} is a saved pickle, not Python source", place, advice))
    raise Failure(Problem("RG102", f"{path.name} does not end in {', '.join(_SUFFIXES)}", place))


@contextmanager
def neighbours(argument: str) -> Iterator[None]:
    """Let the model file import the files beside it while the context lasts, and forget those imports afterwards.

    Two model files in different folders may so both have a neighbour called ``layers``.
    """
    folder = _folder(argument)
    if folder is None or folder in sys.path:
        yield
        return
    before = {name.partition(".")[0] for name in sys.modules}
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
        tops = {name.partition(".")[0] for name in sys.modules} - before
        local = {top for top in tops if top in sys.modules and _folder_of(sys.modules[top]) == folder}
        for name in [name for name in sys.modules if name.partition(".")[0] in local]:
            del sys.modules[name]


def _folder(argument: str) -> str | None:
    """The folder whose files the model may import, None where there is no such folder, or the model is no program."""
    try:
        if not _is_file_name(argument):
            return str(Path.cwd())
        path = _path(argument)
        return str(path.resolve().parent) if path.suffix.lower() == ".py" else None
    except (OSError, ValueError):
        return None


def _folder_of(module: ModuleType) -> str | None:
    """The folder from which a top-level module was found."""
    spec = getattr(module, "__spec__", None)
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return str(Path(next(iter(spec.submodule_search_locations))).parent)
    return str(Path(spec.origin).parent) if spec.origin else None


def _is_file_name(argument: str) -> bool:
    return argument.endswith(_SUFFIXES) or not _FACTORY.fullmatch(argument)


def _path(argument: str) -> Path:
    path = Path(argument)
    try:
        return path.expanduser()
    except RuntimeError:  # there is no such user
        return path


def _name(argument: str) -> str:
    if _is_file_name(argument):
        return safe_name(Path(argument).stem)
    module, _, factory = argument.partition(":")
    return safe_name(module.rpartition(".")[2] if factory in ("model", "build_model") else factory)
