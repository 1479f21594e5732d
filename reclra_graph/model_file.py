"""Load the model that a command line names: a Python file, or ``package.module:factory``.

A model file offers ``model`` (an nn.Module) or ``build_model()``, and ``example_inputs`` (a tensor, or a tuple of
tensors). Everything that is wrong and can be told apart is found at once. Python files are run, as ``python FILE``
would run them; saved pickles are never opened.
"""

from __future__ import annotations

import importlib
import importlib.util
import linecache
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType, TracebackType
from typing import Any, TypeVar

from torch import Tensor, nn

from reclra_graph.errors import ModelError, Problem, UsageError
from reclra_graph.example_inputs import check_inputs, kind_of, make_input

T = TypeVar("T")

_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_SAVED = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin")


@dataclass(frozen=True)
class LoadedModel:
    """A model and inputs that it runs on; ``name`` is safe as the name of a folder."""

    name: str
    model: nn.Module
    example_inputs: tuple[Tensor, ...]


class _Failure(Exception):
    """Carries one problem out of a step that cannot go on."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(str(problem))


def safe_name(text: str) -> str:
    """``text`` as a folder name: letters, digits, ``_``, ``-`` and inner dots, at most 80 of them; never empty."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text)[:80].strip("._-") or "model"


def load_model(argument: str, inputs: Sequence[str] = ()) -> LoadedModel:
    """The model and the example inputs that ``argument`` (``net.py`` or ``package.module:factory``) offers.

    ``inputs`` are shapes such as ``"64x1x28x28"`` or ``"64x128:int64"``, one per input of the model; where given, they
    stand in for the file's own ``example_inputs``: random numbers for floats, zeros for whole numbers.

    Raises UsageError where a shape in ``inputs`` is not one (RG108), ModelError for all else (RG101 to RG109); either
    way with every problem found.
    """
    made = [make_input(text) for text in inputs]
    usage = [item for item in made if isinstance(item, Problem)]
    examples = tuple(item for item in made if isinstance(item, Tensor))
    found: list[Problem] = []
    with neighbours(argument):
        try:
            namespace, place, factory = _namespace(argument)
        except _Failure as failure:
            found.append(failure.problem)
        else:
            model = _attempt(found, lambda: _find_model(namespace, place, factory))
            if not inputs:
                examples, wrong = check_inputs(namespace.get("example_inputs"), place)
                found += wrong
    if usage:
        raise UsageError(usage + found)
    if found or model is None:
        raise ModelError(found)
    return LoadedModel(_name(argument), model, examples)


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
    """The folder whose files the model may import, None where there is no such folder."""
    try:
        return str(_path(argument).resolve().parent if _is_file_name(argument) else Path.cwd())
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
    return argument.endswith(".py") or not _FACTORY.fullmatch(argument)


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


def _attempt(found: list[Problem], make: Callable[[], T]) -> T | None:
    """``make()``, or None with its problem noted."""
    try:
        return make()
    except _Failure as failure:
        found.append(failure.problem)
        return None


# -- the file ---------------------------------------------------------------------------------------------------------


def _namespace(argument: str) -> tuple[dict[str, Any], str, str]:
    """(top-level names, place for messages, factory or "") of the file or module named."""
    if not _is_file_name(argument):
        module, _, factory = argument.partition(":")
        return _import(module), argument, factory
    path = _path(argument)
    return _execute(path, _compile(path)), str(path), ""


def _compile(path: Path) -> CodeType:
    place = str(path)
    try:
        kind = "a folder" if path.is_dir() else "missing" if not path.exists() else ""
        source = b"" if kind else path.read_bytes()
    except (OSError, ValueError) as error:
        raise _Failure(Problem("RG101", f"the file cannot be read: {_reason(error)}", place)) from None
    if kind == "missing":
        raise _Failure(Problem("RG101", f"there is no file {place!r}", place))
    if kind:
        raise _Failure(Problem("RG102", f"{place!r} is {kind}, not a Python file", place))
    if path.suffix in _SAVED:
        advice = "Write a .py file that builds the model; pickles are never opened, since opening one runs its code."
        raise _Failure(Problem("RG102", f"{path.name} is a saved pickle, not Python source", place, advice))
    if path.suffix != ".py":
        raise _Failure(Problem("RG102", f"{path.name} does not end in .py", place))
    try:
        return compile(source, str(path.resolve()), "exec", dont_inherit=True)
    except SyntaxError as error:
        where = f"{place}:{error.lineno}" if error.lineno else place
        shown = f": {error.text.strip()}" if error.text and error.text.strip() else ""
        raise _Failure(Problem("RG102", f"{error.msg}{shown}", where)) from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise _Failure(Problem("RG102", f"Python cannot parse it: {_reason(error)}", place)) from None


def _execute(path: Path, code: CodeType) -> dict[str, Any]:
    # The prefix keeps a model file called torch.py or json.py from replacing the module of that name.
    name = f"reclra_model_{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None:
        raise _Failure(Problem("RG102", f"Python cannot import {path.name}", str(path)))
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
        cause = f"it stops with {_what(error)}"
        raise _Failure(Problem("RG103", cause, _user_line(error, path.resolve().parent) or str(path))) from None
    finally:
        if not done:
            if previous is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = previous
    return module.__dict__


def _import(name: str) -> dict[str, Any]:
    try:
        return importlib.import_module(name).__dict__
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) and error.name else None
        if missing is not None and (name == missing or name.startswith(missing + ".")):
            advice = "Check the spelling, and that the package is installed or lies in this folder."
            raise _Failure(Problem("RG101", f"there is no module {missing!r}", name, advice)) from None
        if isinstance(error, SyntaxError) and error.filename:
            raise _Failure(Problem("RG102", str(error.msg), f"{error.filename}:{error.lineno}")) from None
        advice = f'Run `python -c "import {name}"` and mend what it raises.'
        place = _user_line(error, Path.cwd()) or name
        raise _Failure(Problem("RG103", f"it stops with {_what(error)}", place, advice)) from None


# -- the model --------------------------------------------------------------------------------------------------------


def _find_model(namespace: dict[str, Any], place: str, factory: str) -> nn.Module:
    if factory:
        return _by_name(namespace, place, factory)
    model = namespace.get("model")
    if isinstance(model, nn.Module):
        return model
    build = namespace.get("build_model")
    if callable(build):
        return _call(build, "build_model()", place)
    if model is not None:
        if isinstance(model, type) and issubclass(model, nn.Module):
            advice = f"Call it: `model = {model.__name__}(...)`."
            raise _Failure(Problem("RG104", f"`model` is the class {model.__name__}", place, advice))
        raise _Failure(Problem("RG104", f"`model` is {kind_of(model)}, not an nn.Module", place))
    if build is not None:
        raise _Failure(Problem("RG104", f"`build_model` is {kind_of(build)}, not a function", place))
    modules = {name: value for name, value in namespace.items() if isinstance(value, nn.Module)}
    # A loss module beside the model is no second model: it has nothing to train.
    trainable = {name: value for name, value in modules.items() if any(True for _ in value.parameters())} or modules
    distinct = {id(value): value for value in trainable.values()}
    if len(distinct) == 1:
        return next(iter(distinct.values()))
    if distinct:
        names = ", ".join(trainable)
        raise _Failure(Problem("RG105", f"{len(distinct)} models stand at its top level ({names})", place))
    file_name = namespace.get("__name__")
    classes = [
        name
        for name, value in namespace.items()
        if isinstance(value, type) and issubclass(value, nn.Module) and value.__module__ == file_name
    ]
    if classes:
        advice = f"Add `model = {classes[-1]}(...)`, or a `build_model()`, at the top level of the file."
        cause = f"it defines {', '.join(classes)} but makes no model"
        raise _Failure(Problem("RG104", cause, place, advice))
    raise _Failure(Problem("RG104", "it has neither `model` nor `build_model()`", place))


def _by_name(namespace: dict[str, Any], place: str, factory: str) -> nn.Module:
    first, *rest = factory.split(".")
    if first not in namespace:
        raise _Failure(Problem("RG104", f"the module has no {first!r}", place, "Check the name after the colon."))
    value = namespace[first]
    for part in rest:
        if not hasattr(value, part):
            raise _Failure(Problem("RG104", f"{first!r} has no {part!r}", place, "Check the name after the colon."))
        value = getattr(value, part)
    if isinstance(value, nn.Module):
        return value
    if not callable(value):
        raise _Failure(Problem("RG104", f"{factory!r} is {kind_of(value)}, not an nn.Module or a function", place))
    return _call(value, f"{factory}()", place)


def _call(factory: Callable[[], object], shown: str, place: str) -> nn.Module:
    try:
        model = factory()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        code = getattr(factory, "__code__", None)
        folder = Path(code.co_filename).parent if code is not None else Path.cwd()
        where = _user_line(error, folder) or place
        raise _Failure(Problem("RG109", f"{shown} stops with {_what(error)}", where)) from None
    if not isinstance(model, nn.Module):
        raise _Failure(Problem("RG109", f"{shown} returns {kind_of(model)}, not an nn.Module", place))
    return model


# -- words ------------------------------------------------------------------------------------------------------------


def _reason(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def _what(error: BaseException) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _user_line(error: BaseException, folder: Path) -> str:
    """``file:line: source`` of the deepest frame that lies in the user's folder, "" where none does."""
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_relative_to(folder):
        return f"{error.filename}:{error.lineno}"
    best = ""
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if Path(name).is_relative_to(folder) and "site-packages" not in name and name != __file__:
            source = linecache.getline(name, trace.tb_lineno).strip()
            best = f"{name}:{trace.tb_lineno}" + (f": {source}" if source else "")
        trace = trace.tb_next
    return best
