"""What reading a model gives, how reading one fails, and the words for it."""

from __future__ import annotations

import linecache
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import nn

from reclra_graph.errors import Problem

Call = tuple[tuple[Any, ...], dict[str, Any], list[Problem]]
"""Positional and keyword arguments of an example call, and everything that is wrong with them."""


@dataclass(frozen=True)
class Found:
    """A model, and the example call that came with it; ``problems`` are those of the example alone."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    problems: tuple[Problem, ...] = ()


class Failure(Exception):
    """Carries the problems of a step that cannot go on out of it."""

    def __init__(self, *problems: Problem) -> None:
        self.problems = problems
        super().__init__("\n".join(map(str, problems)))


def present(path: Path) -> None:
    """Nothing where ``path`` is a file. Raises Failure: RG101 where there is none, RG102 for a folder."""
    place = str(path)
    try:
        folder, missing = path.is_dir(), not path.exists()
    except (OSError, ValueError) as error:
        raise Failure(Problem("RG101", f"the file cannot be read: {reason(error)}", place)) from None
    if missing:
        raise Failure(Problem("RG101", f"there is no file {place!r}", place))
    if folder:
        raise Failure(Problem("RG102", f"{place!r} is a folder, not a model file", place))


def read_bytes(path: Path, size: int = -1) -> bytes:
    """The first ``size`` bytes of a file, or all. Raises Failure: RG101 where it cannot be read, RG102 for a folder."""
    present(path)
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise Failure(Problem("RG101", f"the file cannot be read: {reason(error)}", str(path))) from None


def reason(error: BaseException) -> str:
    """Why the system refused, without its numbers."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def what(error: BaseException) -> str:
    """The exception's type and the first line of its message."""
    first = first_line(error)
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of the exception's message that is not empty, cut at 300 characters."""
    return next((line.strip()[:300] for line in str(error).splitlines() if line.strip()), "")


def user_line(error: BaseException, folder: Path) -> str:
    """``file:line: source`` of the deepest frame that lies in the user's folder, "" where none does."""
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_relative_to(folder):
        return f"{error.filename}:{error.lineno}"
    best = ""
    trace: TracebackType | None = error.__traceback__
    here = Path(__file__).parent
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if Path(name).is_relative_to(folder) and "site-packages" not in name and Path(name).parent != here:
            source = linecache.getline(name, trace.tb_lineno).strip()
            best = f"{name}:{trace.tb_lineno}" + (f": {source}" if source else "")
        trace = trace.tb_next
    return best
