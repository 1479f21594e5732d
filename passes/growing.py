"""A region while the partition still grows it."""

from __future__ import annotations

from dataclasses import dataclass

from reclra_graph.ir.operators import Operator


@dataclass
class Growing:
    """Operators of a region so far; ``end`` is the value it has reached, ``post`` its representation once it is closed.

    ``swallowed`` says that operators between layers went into it, since no error neurons can stand there."""

    core: list[str]
    end: str
    first: Operator
    block: str
    activation: tuple[str, ...] = ()
    post: str = ""
    kind: str = "layer"
    swallowed: bool = False
