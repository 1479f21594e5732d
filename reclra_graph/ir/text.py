"""Every value of the compiler prints as text, and the text reads back to an equal value.

The text is Python's own constructor syntax, one element of a tuple per line where it does not fit on one, so that two
dumps can be compared with any diff. Reading never evaluates code: the syntax tree is walked, and only the classes
registered here, literals, ``inf`` and ``nan`` are accepted.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
from typing import Any, TypeVar

T = TypeVar("T", bound=type)

_CLASSES: dict[str, type] = {}
_WIDTH = 118


def register(cls: T) -> T:
    """Class decorator: let ``from_text`` build this frozen dataclass."""
    _CLASSES[cls.__name__] = cls
    return cls


def _atom(value: Any, memo: dict[int, str]) -> str:
    """One-line form of any value; defaults are left out. ``memo`` holds what was printed before, by identity."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    known = memo.get(id(value))
    if known is not None:
        return known
    if isinstance(value, tuple):
        inner = ", ".join([_atom(item, memo) for item in value])
        text = f"({inner},)" if len(value) == 1 else f"({inner})"
    elif dataclasses.is_dataclass(value):
        first = dataclasses.fields(value)[0].name if dataclasses.fields(value) else ""
        parts = [_atom(item, memo) if name == first else f"{name}={_atom(item, memo)}" for name, item in _said(value)]
        text = f"{type(value).__name__}({', '.join(parts)})"
    else:
        raise TypeError(f"{type(value).__name__} has no text form")
    memo[id(value)] = text
    return text


def _said(value: Any) -> list[tuple[str, Any]]:
    """(name, value) of the fields that are not at their defaults."""
    said = []
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        usual = field.default is not dataclasses.MISSING and item == field.default
        if not (usual and type(item) is type(field.default)):
            said.append((field.name, item))
    return said


def _block(value: Any, indent: int, memo: dict[int, str]) -> str:
    """Form of a value that may break over lines."""
    line = _atom(value, memo)
    pad = " " * (indent + 4)
    if indent + len(line) <= _WIDTH:
        return line
    if isinstance(value, tuple):
        rows = "".join(f"{pad}{_block(item, indent + 4, memo)},\n" for item in value)
        return f"(\n{rows}{' ' * indent})"
    if dataclasses.is_dataclass(value):
        rows = "".join(f"{pad}{name}={_block(item, indent + 4, memo)},\n" for name, item in _said(value))
        return f"{type(value).__name__}(\n{rows}{' ' * indent})"
    return line


def to_text(value: Any, stamp: str = "") -> str:
    """Text of a compiler value; ``stamp`` names the pass that made it, in a leading comment.

    Raises TypeError where a field holds something that has no text form.
    """
    head = f"# {stamp}\n" if stamp else ""
    return f"{head}{_block(value, 0, {})}\n"


def from_text(text: str) -> Any:
    """The value that ``to_text`` printed. Raises ValueError on anything else; never runs code."""
    try:
        return _read(ast.parse(text.strip() + "\n", mode="eval").body)
    except (SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(f"not the text of a compiler value: {error}") from None


def _read(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=value) if value is None or isinstance(value, (bool, int, float, str)):
            return value
        case ast.Tuple(elts=items):
            return tuple(_read(item) for item in items)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_read(operand)
        case ast.Name(id="inf" | "nan" as name):
            return float(name)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords) if name in _CLASSES:
            named = {str(keyword.arg): _read(keyword.value) for keyword in keywords}
            return _CLASSES[name](*(_read(arg) for arg in args), **named)
    raise ValueError(f"line {node.lineno}: {ast.unparse(node)[:60]!r} is not part of a compiler value")


def digest(value: Any) -> str:
    """Sixteen hex digits of the SHA-256 of the value's one-line form: equal values, equal digests, in every process."""
    return hashlib.sha256(_atom(value, {}).encode()).hexdigest()[:16]
