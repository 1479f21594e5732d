"""A model from Python: a file, run as ``python FILE`` would run it, or ``package.module:factory``."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType
from typing import Any

from torch import nn

from reclra_graph.errors import Problem
from reclra_graph.example_inputs import call_of, kind_of
from reclra_graph.formats.found import Failure, Found, read_bytes, reason, user_line, what

Names = dict[str, Any]


def from_file(path: Path) -> Found:
    """The model and the example inputs at the top level of a Python file. Raises Failure: RG101 to RG109."""
    return _found(_execute(path, _compile(path)), str(path), "")


def from_module(argument: str) -> Found:
    """The same for ``package.module:factory``. Raises Failure: RG101 to RG109."""
    module, _, factory = argument.partition(":")
    return _found(_import(module), argument, factory)


def _found(names: Names, place: str, factory: str) -> Found:
    inputs, keywords = names.get("example_inputs"), names.get("example_kwargs")
    failure: Failure | None = None
    model: nn.Module | None = None
    try:
        made = _find_model(names, place, factory)
        model = made[0]
        if len(made) == 2:
            inputs, keywords = made[1], None
    except Failure as error:
        failure = error
    args, kwargs, wrong = call_of(inputs, keywords, place)
    if failure is not None or model is None:
        raise Failure(*(failure.problems if failure else ()), *wrong)
    return Found(model, args, kwargs, tuple(wrong))


# -- the source -------------------------------------------------------------------------------------------------------


def _compile(path: Path) -> CodeType:
    place, source = str(path), read_bytes(path)
    try:
        return compile(source, str(path.resolve()), "exec", dont_inherit=True)
    except SyntaxError as error:
        where = f"{place}:{error.lineno}" if error.lineno else place
        shown = f": {error.text.strip()}" if error.text and error.text.strip() else ""
        raise Failure(Problem("RG102", f"{error.msg}{shown}", where)) from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise Failure(Problem("RG102", f"Python cannot parse it: {reason(error)}", place)) from None


def _execute(path: Path, code: CodeType) -> Names:
    # The prefix keeps a model file called torch.py or json.py from replacing the module of that name.
    name = f"reclra_model_{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None:
        raise Failure(Problem("RG102", f"Python cannot import {path.name}", str(path)))
    module = importlib.util.module_from_spec(spec)
    previous = sys.modules.get(name)
    sys.modules[name] = module
    done = False
    try:
        exec(code, module.__dict__)
        done = True
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        cause = f"it stops with {what(error)}"
        raise Failure(Problem("RG103", cause, user_line(error, path.resolve().parent) or str(path))) from None
    finally:
        if not done:
            if previous is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = previous
    return module.__dict__


def _import(name: str) -> Names:
    try:
        return importlib.import_module(name).__dict__
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) and error.name else None
        if missing is not None and (name == missing or name.startswith(missing + ".")):
            advice = "Check the spelling, and that the package is installed or lies in this folder."
            raise Failure(Problem("RG101", f"there is no module {missing!r}", name, advice)) from None
        if isinstance(error, SyntaxError) and error.filename:
            raise Failure(Problem("RG102", str(error.msg), f"{error.filename}:{error.lineno}")) from None
        advice = f'Run `python -c "import {name}"` and mend what it raises.'
        place = user_line(error, Path.cwd()) or name
        raise Failure(Problem("RG103", f"it stops with {what(error)}", place, advice)) from None


# -- the model --------------------------------------------------------------------------------------------------------

Made = tuple[nn.Module] | tuple[nn.Module, Any]
"""A model, and the example inputs where a factory returns them too."""


def _find_model(names: Names, place: str, factory: str) -> Made:
    if factory:
        return _by_name(names, place, factory)
    model = names.get("model")
    if isinstance(model, nn.Module):
        return (model,)
    build = names.get("build_model")
    if callable(build):
        return _call(build, "build_model()", place)
    if model is not None:
        if isinstance(model, type) and issubclass(model, nn.Module):
            advice = f"Call it: `model = {model.__name__}(...)`."
            raise Failure(Problem("RG104", f"`model` is the class {model.__name__}", place, advice))
        raise Failure(Problem("RG104", f"`model` is {kind_of(model)}, not an nn.Module", place))
    if build is not None:
        raise Failure(Problem("RG104", f"`build_model` is {kind_of(build)}, not a function", place))
    modules = {name: value for name, value in names.items() if isinstance(value, nn.Module)}
    # A loss module beside the model is no second model: it has nothing to train.
    trainable = {name: value for name, value in modules.items() if any(True for _ in value.parameters())} or modules
    distinct = {id(value): value for value in trainable.values()}
    if len(distinct) == 1:
        return (next(iter(distinct.values())),)
    if distinct:
        listed = ", ".join(trainable)
        raise Failure(Problem("RG105", f"{len(distinct)} models stand at its top level ({listed})", place))
    file_name = names.get("__name__")
    classes = [
        name
        for name, value in names.items()
        if isinstance(value, type) and issubclass(value, nn.Module) and value.__module__ == file_name
    ]
    if classes:
        advice = f"Add `model = {classes[-1]}(...)`, or a `build_model()`, at the top level of the file."
        cause = f"it defines {', '.join(classes)} but makes no model"
        raise Failure(Problem("RG104", cause, place, advice))
    raise Failure(Problem("RG104", "it has neither `model` nor `build_model()`", place))


def _by_name(names: Names, place: str, factory: str) -> Made:
    first, *rest = factory.split(".")
    if first not in names:
        raise Failure(Problem("RG104", f"the module has no {first!r}", place, "Check the name after the colon."))
    value = names[first]
    for part in rest:
        if not hasattr(value, part):
            raise Failure(Problem("RG104", f"{first!r} has no {part!r}", place, "Check the name after the colon."))
        value = getattr(value, part)
    if isinstance(value, nn.Module):
        return (value,)
    if not callable(value):
        raise Failure(Problem("RG104", f"{factory!r} is {kind_of(value)}, not an nn.Module or a function", place))
    return _call(value, f"{factory}()", place)


def _call(factory: Callable[[], object], shown: str, place: str) -> Made:
    try:
        made = factory()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        code = getattr(factory, "__code__", None)
        folder = Path(code.co_filename).parent if code is not None else Path.cwd()
        where = user_line(error, folder) or place
        raise Failure(Problem("RG109", f"{shown} stops with {what(error)}", where)) from None
    if isinstance(made, nn.Module):
        return (made,)
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module):
        return made
    cause = f"{shown} returns {kind_of(made)}, not an nn.Module or a pair of one and its example inputs"
    raise Failure(Problem("RG109", cause, place))
