"""Tape → ExportedProgram: the recorded operators again, functional, with the model's own keys.

Before:  a tape, whose operators may write in place, and the model that it was recorded from.
After:   a program for the shapes of the batch, as torch.export makes it: parameters and buffers are inputs under their
         own names, writes to buffers are outputs, nodes keep their module path and the user's line.

Operators whose result has a size that only the data tell (``nonzero``, ``x[mask]``) pass torch.export as stand-ins with
the size that they had on the tape, and are themselves again in the program: run on other data, they find other sizes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Set
from types import MappingProxyType
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node
from torch.fx import traceback as fx_traceback
from torch.fx.node import map_arg

from reclra_graph.passes.draws import draws, without_last_outputs
from reclra_graph.passes.places import module_of
from reclra_graph.passes.tape import Interrupted, Out, Rerun, Tape, draws_aside, tensors_in
from reclra_graph.passes.twin import bare_twin

_library: Any = torch.library.Library("reclra", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define("stand_in(str name, Tensor[] tensors, int[][] sizes, str[] dtypes) -> Tensor[]")


def _stand_in(name: str, tensors: list[Tensor], sizes: list[list[int]], dtypes: list[str]) -> list[Tensor]:
    return [tensors[0].new_empty(size, dtype=getattr(torch, dtype)) for size, dtype in zip(sizes, dtypes, strict=True)]


torch.library.register_fake("reclra::stand_in", _stand_in, lib=_library)

# Views that torch.export writes out as other views, sizes and all.
_WRITTEN_OUT = {
    f"aten.{name}" for name in ("flatten.using_ints", "reshape.default", "unflatten.int", "expand_as.default")
}


NONE: Mapping[Any, Callable[..., Any]] = MappingProxyType({})
"""No operator is written out as others."""


def replay(
    model: nn.Module,
    tape: Tape,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    decompositions: Mapping[Any, Callable[..., Any]] = NONE,
) -> ExportedProgram:
    """The tape as a functional program that takes the batch as forward() does, the operators in ``decompositions``
    written out.

    Raises Interrupted where torch.export refuses an operator.
    """
    held = tape.unsized | _written_out(tape)
    player = _Player(tape, held)
    aside = draws_aside(tape)

    class Replay(nn.Module):
        def replayed(self, *args: Any, **kwargs: Any) -> Any:
            state = dict(self.named_parameters()) | dict(self.named_buffers())
            with fx_traceback.preserve_node_meta():
                results = player.run(*(state[key] for key in tape.keys), *tensors_in((args, kwargs)))
            outputs = pytree.tree_map(lambda leaf: results[leaf.index] if isinstance(leaf, Out) else leaf, tape.outputs)
            return outputs, [player.drawn[node] for node in aside]  # torch.export drops what is no result

        forward = replayed  # stack traces begin at functions called forward: this one has no place in them

    # The placeholders are named as forward() names its arguments.
    Replay.forward.__signature__ = inspect.signature(type(model).forward)  # type: ignore[attr-defined]
    try:
        exported = torch.export.export(bare_twin(model, Replay()), args, dict(kwargs), strict=False)
        program: ExportedProgram = exported.run_decompositions(dict(decompositions))
    except Exception as error:  # an operator that has no functional form
        raise Interrupted(module_of(player.last)[0] if player.last else "") from error
    _take_places(program, {node.name: node for node in held})
    without_last_outputs(program, sum(len(tensors_in(node.meta["val"])) for node in aside))
    return program


class _Player(Rerun):
    """Runs the tape's operators again, those of ``held`` as stand-ins; new nodes take the old ones' metadata."""

    def __init__(self, tape: Tape, held: Set[Node]) -> None:
        super().__init__(tape.graph)
        self.held = held
        self.last: Node | None = None
        self.drawn: dict[Node, Any] = {}

    def run_node(self, n: Node) -> Any:
        self.last = n
        if n not in self.held:
            value = super().run_node(n)
            if draws(n):
                self.drawn[n] = value
            return value
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        value = n.meta["val"]
        results = [value] if isinstance(value, Tensor) else list(value)
        sizes = [list(result.shape) for result in results]
        dtypes = [str(result.dtype).removeprefix("torch.") for result in results]
        with fx_traceback.set_current_meta(n):
            made = torch.ops.reclra.stand_in(n.name, tensors_in((args, kwargs)), sizes, dtypes)
        return made[0] if isinstance(value, Tensor) else made


def _written_out(tape: Tape) -> set[Node]:
    """Views of values without a fixed size that torch.export would write out with this batch's (``view(5)``)."""
    found: set[Node] = set()
    loose = set(tape.unsized)
    for node in tape.graph.graph.nodes:
        if not loose.isdisjoint(node.all_input_nodes):
            loose.add(node)
            if str(node.target) in _WRITTEN_OUT and not any(_writes(user, node) for user in node.users):
                found.add(node)
    return found


def _writes(node: Node, value: Node) -> bool:
    """Whether an operator writes to ``value`` in place."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    arguments = zip(node.target._schema.arguments, node.args, strict=False)
    return any(given is value and declared.is_write for declared, given in arguments)


def _in_order(tensors: Iterator[Node]) -> Callable[[Node], Node]:
    return lambda _: next(tensors)


def _take_places(program: ExportedProgram, originals: dict[str, Node]) -> None:
    """Stand-ins become the operators that they stood for."""
    graph = program.graph
    for node in list(graph.nodes):
        if node.target is not torch.ops.reclra.stand_in.default:
            continue
        original = originals[node.args[0]]
        args, kwargs = map_arg((original.args, original.kwargs), _in_order(iter(node.args[1])))
        with graph.inserting_before(node):
            again = graph.create_node("call_function", original.target, tuple(args), dict(kwargs), original.name)
        again.meta = dict(node.meta)
        if isinstance(original.meta["val"], Tensor):
            again.meta["val"] = node.meta["val"][0]
            for part in list(node.users):
                part.replace_all_uses_with(again)
                program.graph_signature.replace_all_uses(part.name, again.name)  # of a result of the model's
                graph.erase_node(part)
        node.replace_all_uses_with(again)
        graph.erase_node(node)
    program.graph_module.recompile()
