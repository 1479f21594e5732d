"""Nested arguments and results of forward(): where the tensors lie in them.

A path is a tuple: the position or the keyword of an argument, then keys, indices or field names inside it.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

Path = tuple[int | str, ...]


def _children(value: object) -> Iterator[tuple[int | str, Any]]:
    """(key, item) of a mapping, sequence or dataclass; nothing for any other value."""
    if isinstance(value, Mapping):
        yield from ((key, item) for key, item in value.items() if isinstance(key, (int, str)))
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        yield from zip(value._fields, value, strict=True)
    elif isinstance(value, (tuple, list)):
        yield from enumerate(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))


def tensors(value: object, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """(path, tensor) for every tensor in a nest, in order."""
    if isinstance(value, Tensor):
        yield path, value
        return
    for key, item in _children(value):
        yield from tensors(item, (*path, key))


def arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[tuple[Path, Tensor]]:
    """(path, tensor) for every tensor among the arguments of a call."""
    return [*tensors(args), *tensors(dict(kwargs))]


def at(args: tuple[Any, ...], kwargs: Mapping[str, Any], path: Path) -> Any:
    """The value at a path among the arguments of a call. Raises LookupError or AttributeError where there is none."""
    first, *rest = path
    value: Any = args[first] if isinstance(first, int) else kwargs[first]
    for key in rest:
        value = value[key] if isinstance(value, Mapping) or isinstance(key, int) else getattr(value, key)
    return value


def replaced(value: Any, given: Mapping[Path, Any], path: Path = ()) -> Any:
    """A copy of a nest with the tensors at the paths given replaced; all other values are the same objects."""
    if isinstance(value, Tensor):
        return given.get(path, value)
    items = {key: replaced(item, given, (*path, key)) for key, item in _children(value)}
    if not items:
        return value
    if isinstance(value, Mapping):
        changed = dict(value)
        changed.update(items)
        return changed
    if isinstance(value, tuple):
        return type(value)(*items.values()) if hasattr(value, "_fields") else tuple(items.values())
    if isinstance(value, list):
        return list(items.values())
    twin = copy.copy(value)
    for key, item in items.items():
        object.__setattr__(twin, str(key), item)
    return twin


def label(path: Path) -> str:
    """``"logits"``, ``"aux.0"``: how a result is called in options and targets; ``"output"`` for a single tensor."""
    return ".".join(str(key) for key in path) or "output"


def called(inputs: Any, keywords: Mapping[str, Any] | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(args, kwargs) of a call: a mapping holds keyword arguments, a tuple or list positional ones; anything else is
    the one argument itself."""
    named = dict(keywords or {})
    if isinstance(inputs, Mapping):
        return (), {**{str(key): item for key, item in inputs.items()}, **named}
    plain = isinstance(inputs, (tuple, list)) and not hasattr(inputs, "_fields")
    return (tuple(inputs) if plain else (inputs,)), named


def called_as(
    inputs: Any, keywords: Mapping[str, Any] | None, paths: Sequence[Path]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(args, kwargs) of a call of forward() in which tensors lie at these paths, from those of a call of the step."""
    args, kwargs = called(inputs, keywords)
    positional = any(isinstance(path[0], int) for path in paths)
    if not args and positional:
        args, kwargs = (kwargs,), {}  # a mapping that is one positional argument
    elif kwargs == {} and len(args) == len(paths) and not positional:
        kwargs, args = {str(path[0]): value for path, value in zip(paths, args, strict=True)}, ()
    return args, kwargs


def identifier(path: Path) -> str:
    """A path as one Python identifier: ``("batch", "image")`` gives ``"batch_image"``."""
    text = re.sub(r"\W+", "_", "_".join(str(key) for key in path), flags=re.ASCII)
    return text if text[:1].isalpha() or text[:1] == "_" else f"x{text}"
