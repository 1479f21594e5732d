"""Blocks: the parts of a model that repeat, from its own module tree."""

from __future__ import annotations

from reclra_graph.ir.operators import OperatorGraph


def find_blocks(graph: OperatorGraph) -> tuple[str, ...]:
    """Paths of the modules that repeat: the outermost whose class occurs again and that hold two layers or more.

    PyTorch's own containers count only where no class of the model's own repeats.
    """
    owners: dict[str, set[str]] = {}
    for parameter in graph.parameters:
        for key in (parameter.key, *parameter.tied):
            owner = key.rpartition(".")[0]
            parts = owner.split(".")
            for depth in range(1, len(parts)):
                owners.setdefault(".".join(parts[:depth]), set()).add(owner)
    classes = dict(graph.modules)
    holders = [(path, kind) for path, kind in graph.modules if len(owners.get(path, ())) >= 2]
    for containers in (False, True):
        kinds = [kind for _, kind in holders]
        repeated = [
            path
            for path, kind in holders
            if kinds.count(kind) > 1
            and kind not in ("ModuleList", "ModuleDict")
            and (containers or kind != "Sequential")
        ]
        outermost = [path for path in repeated if not any(path.startswith(other + ".") for other in repeated)]
        if len(outermost) > 1:
            return tuple(path for path in classes if path in outermost)
    return ()


def block_of(module: str, blocks: tuple[str, ...]) -> str:
    return next((path for path in blocks if module == path or module.startswith(path + ".")), "")
