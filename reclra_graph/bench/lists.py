"""Lists of models: one ``source name`` on a line, ``#`` begins a comment.

Beside the libraries and our own models a source may be ``file``: the name is then a model file, as ``reclra compile``
takes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from reclra_graph.bench import open_models
from reclra_graph.errors import Problem, UsageError

SOURCES = ("own", "torchvision", "timm", "transformers", "file")


@dataclass(frozen=True, order=True)
class Entry:
    """One model of a list; prints as it stands there."""

    source: str
    name: str

    def __str__(self) -> str:
        return f"{self.source} {self.name}"


def parse(text: str, place: str = "") -> tuple[Entry, ...]:
    """The entries of a list in order, each once. Raises UsageError RG801 with every line that is wrong."""
    entries: dict[Entry, None] = {}
    problems: list[Problem] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split(maxsplit=1)
        if not words:
            continue
        where = f"{place}:{number}" if place else f"line {number}"
        if len(words) != 2:
            problems.append(Problem("RG801", f"{line.strip()!r} is not `source name`", where))
        elif words[0] not in SOURCES:
            problems.append(Problem("RG801", f"{words[0]!r} is none of {', '.join(SOURCES)}", where))
        else:
            entries[Entry(words[0], words[1].strip())] = None
    if not entries and not problems:
        problems.append(Problem("RG801", "the list names no model", place))
    if problems:
        raise UsageError(problems)
    return tuple(entries)


def named(which: str) -> tuple[Entry, ...]:
    """The list called ``"own"``, ``"open"`` or ``"all"`` (both), or the one in a file of that path.

    Raises UsageError RG801 where there is no such file, or a line of it is wrong.
    """
    if which == "open":
        return parse(open_models.TEXT)
    if which == "own":
        return own_entries()
    if which == "all":
        return (*own_entries(), *parse(open_models.TEXT))
    try:
        text = Path(which).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(Problem("RG801", f"the list cannot be read: {reason}", which)) from None
    return parse(text, which)


def own_entries() -> tuple[Entry, ...]:
    """The project's own models, in the order of their registry. Raises UsageError RG802 without numpy, which some of
    them call."""
    try:
        from reclra_graph.bench.own import names
    except ModuleNotFoundError as error:
        advice = "Install the extra: `pip install 'reclra-graph[zoo]'`."
        raise UsageError(Problem("RG802", f"{error.name} is not installed", "own", advice)) from None

    return tuple(Entry("own", name) for name in names())


def selected(entries: Iterable[Entry], names: Iterable[str]) -> tuple[Entry, ...]:
    """The entries whose name, or ``source/name``, is among ``names``. Raises UsageError RG801 for a name that is in
    no entry."""
    known = tuple(entries)
    wanted = tuple(names)
    given = set(wanted)
    found = tuple(item for item in known if item.name in given or f"{item.source}/{item.name}" in given)
    have = {text for item in found for text in (item.name, f"{item.source}/{item.name}")}
    missing = [name for name in wanted if name not in have]
    if missing:
        raise UsageError(Problem("RG801", f"the list has no {', '.join(missing)}", "--models"))
    return found
