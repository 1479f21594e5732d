"""One run of a model on real tensors, written down operator by operator.

Before:  an nn.Module in train mode, a batch.
After:   a graph of the operators that this batch passed, whatever Python decided on the way; every node with its module
         path and the user's line. Tensors made outside of torch (numpy) are constants in it, as are numbers that were
         read from tensors. In-place operators stay as they are.

``replay.py`` makes a functional program of it, ``record.py`` finds out what in it depends on the batch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch._dynamo import config as dynamo_config
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Interpreter, Node
from torch.fx import traceback as fx_traceback
from torch.fx.experimental.proxy_tensor import make_fx

from reclra_graph.passes.draws import draws
from reclra_graph.passes.patched import patched


@dataclass(frozen=True)
class Tape:
    """What one run did: the graph takes ``keys`` (parameters, then buffers), then the tensors of the batch in order."""

    graph: GraphModule
    keys: tuple[str, ...]
    outputs: Any
    """What forward() returned, dataclasses as dicts, with an ``Out`` for every tensor."""
    unsized: frozenset[Node]
    """Nodes whose results have a size that only the data tell, as of ``nonzero``."""


@dataclass(frozen=True)
class Out:
    """The place of a tensor in what forward() returned: the graph's output of this number."""

    index: int


class Interrupted(Exception):
    """The run raised an error; ``path`` is the innermost module that it came from."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


def tensors_in(batch: Any) -> list[Tensor]:
    """The tensors of nested dicts, lists and tuples, in order."""
    return [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]


def tape(copied: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], deep: bool = False) -> Tape:
    """Run ``copied`` (a copy of a model, which is not used again) on the batch and write down every operator.

    ``deep`` writes down what autograd calls in the end, in place of what the model called: then the derivatives that a
    forward() takes of itself are on the tape too. Raises Interrupted, from whatever forward() or the tracer raised.
    """
    # A tensor under several names (a tied weight) goes in once, under the first.
    state = dict(copied.named_parameters()) | dict(copied.named_buffers())
    before = [(module, dict(module._buffers)) for module in copied.modules()]
    leaves, form = pytree.tree_flatten((args, dict(kwargs)))
    leaves = [clone(leaf) for leaf in leaves]
    outputs: Any = None

    def run(*_: Tensor) -> list[Tensor]:
        nonlocal outputs
        positional, named = pytree.tree_unflatten(leaves, form)
        result = copied(*positional, **named)
        # A buffer that forward() replaced, rather than changed in place, is changed in place at the end.
        with torch.no_grad():
            for module, buffers in before:
                for name, buffer in buffers.items():
                    new = module._buffers[name]
                    if buffer is not None and new is not None and new is not buffer:
                        buffer.copy_(new.detach() if new.requires_grad else new)
        outputs, results = skeleton(result)
        return results

    tracer = make_fx(run, pre_dispatch=not deep, _error_on_data_dependent_ops=False, record_stack_traces=True)
    with (
        # TorchScript runs other operators once it has optimised what it saw; what torch.compile made runs as it was.
        torch.jit.optimized_execution(False),  # type: ignore[attr-defined]
        dynamo_config.patch(error_on_nested_fx_trace=False),
        _python_decides(),
        followed(copied) as trail,
    ):
        try:
            graph = tracer(*state.values(), *tensors_in(leaves))
        except Exception as error:  # whatever user code and the tracer raise; the caller knows what to try next
            raise Interrupted(trail.failed[0] if trail.failed else "") from error
    _tidy(graph)
    return Tape(graph, tuple(state), outputs, _unsized(graph))


def clone(leaf: Any) -> Any:
    """A tensor with memory of its own, in a batch that forward() may write to; anything else as it is."""
    if not isinstance(leaf, Tensor):
        return leaf
    return leaf.detach().clone().requires_grad_(leaf.requires_grad)


def skeleton(result: Any) -> tuple[Any, list[Tensor]]:
    """What forward() returned with an Out for every tensor, and the tensors."""
    tensors: list[Tensor] = []
    return _skeleton(result, tensors), tensors


def _skeleton(result: Any, tensors: list[Tensor]) -> Any:
    if isinstance(result, Tensor):
        tensors.append(result)
        return Out(len(tensors) - 1)
    if isinstance(result, Mapping):
        return {key: _skeleton(item, tensors) for key, item in result.items()}
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        fields = dataclasses.fields(result)
        return {field.name: _skeleton(getattr(result, field.name), tensors) for field in fields}
    if isinstance(result, tuple):
        items = [_skeleton(item, tensors) for item in result]
        return type(result)(*items) if hasattr(result, "_fields") else tuple(items)
    if isinstance(result, list):
        return [_skeleton(item, tensors) for item in result]
    return result if isinstance(result, (bool, int, float, str)) else None


@dataclass
class Trail:
    """Where a run is: the (path, class) of each module that it is in, and the modules that raised, innermost first."""

    stack: list[tuple[str, str]]
    failed: list[str]


@contextlib.contextmanager
def followed(copied: nn.Module) -> Iterator[Trail]:
    """Follow the runs of ``copied``, which is not used again: nodes traced inside say which module made them."""
    trail = Trail([], [])

    def say() -> None:
        fx_traceback.current_meta["nn_module_stack"] = {str(place): item for place, item in enumerate(trail.stack)}

    def follow(path: str, kind: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def follows(*args: Any, **kwargs: Any) -> Any:
            trail.stack.append((path, kind))
            say()
            try:
                return forward(*args, **kwargs)
            except Exception:
                trail.failed.append(path)
                raise
            finally:
                trail.stack.pop()
                say()

        return follows

    for path, module in copied.named_modules():
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        module.forward = follow(path, kind, module.forward)
    with fx_traceback.preserve_node_meta():
        yield trail


@contextlib.contextmanager
def _python_decides() -> Iterator[None]:
    """Inside, torch.cond and torch.while_loop are Python's own if and while: the tape holds one path."""

    def cond(pred: Any, true_fn: Callable[..., Any], false_fn: Callable[..., Any], operands: Any = ()) -> Any:
        return true_fn(*operands) if pred else false_fn(*operands)

    def while_loop(cond_fn: Callable[..., Any], body_fn: Callable[..., Any], carried_inputs: Any) -> Any:
        while cond_fn(*carried_inputs):
            carried_inputs = body_fn(*carried_inputs)
        return carried_inputs

    operators = torch._higher_order_ops
    with patched(torch, cond=cond), patched(operators, cond=cond, while_loop=while_loop):
        yield


def _tidy(graph: GraphModule) -> None:
    """Drop switches of the gradient mode: what was made without gradients is detached where others use it."""
    learning, without = True, []
    for node in list(graph.graph.nodes):
        if node.target is torch._C._set_grad_enabled:
            learning = bool(node.args[0])
            graph.graph.erase_node(node)
        elif not learning and isinstance(node.meta.get("val"), Tensor):
            without.append(node)
    inside = set(without)
    for node in without:
        outside = [user for user in node.users if user not in inside and user.op == "call_function"]
        if not outside or node.op != "call_function":
            continue
        with graph.graph.inserting_after(node):
            detached = graph.graph.call_function(torch.ops.aten.detach.default, (node,))
        detached.meta = dict(node.meta)
        for user in outside:
            user.replace_input_with(node, detached)
    graph.recompile()


def reads_number(node: Node) -> bool:
    """Whether the node does nothing but hand a tensor's value to Python."""
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.data_dependent_output in node.target.tags


class Rerun(Interpreter):
    """Runs a tape's operators again, without the numbers that Python has had."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.casting: list[torch.autocast] = []

    def run_node(self, n: Node) -> Any:
        """The value of one node."""
        if reads_number(n):
            return None
        # On the tape these two only mark where autocast begins and ends.
        if n.target is torch.amp.autocast_mode._enter_autocast:
            device, dtype, enabled, cache = n.args
            self.casting.append(torch.autocast(device, dtype, enabled, cache))  # type: ignore[arg-type]
            return self.casting[-1].__enter__()  # type: ignore[no-untyped-call]
        if n.target is torch.amp.autocast_mode._exit_autocast:
            return self.casting.pop().__exit__(None, None, None)
        return super().run_node(n)


def _unsized(graph: GraphModule) -> frozenset[Node]:
    """The nodes that cannot be run without data."""
    found: set[Node] = set()

    class Sizes(Rerun):
        def run_node(self, n: Node) -> Any:
            try:
                return super().run_node(n)
            except Exception:  # each operator says in its own way that it wants the data
                found.add(n)
                return pytree.tree_map_only(Tensor, _empty, n.meta["val"])

    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        Sizes(graph).run(*(_empty(node.meta["val"]) for node in graph.graph.nodes if node.op == "placeholder"))
    return frozenset(found)


def _empty(value: Tensor) -> Tensor:
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)


def draws_aside(tape: Tape) -> list[Node]:
    """Operators that draw random numbers which no result of the graph is made of: Python alone read them, or nobody.
    What is drawn later depends on them all the same."""
    live: set[Node] = set()
    aside: list[Node] = []
    for node in reversed(tape.graph.graph.nodes):
        if node.op == "output" or node in live:
            live.update(node.all_input_nodes)
        elif draws(node):
            aside.append(node)
    return aside[::-1]
