"""A traced step over the tensors of several runs, stacked: what one run computes is computed for all of them at once.

Before:  h = addmm(b, x, W.T)                  copy_(W, where(finite, new, W))
After:   h = add(b[:, None], bmm(x, W.mT))     copy_(W, where(finite[:, None, None], new, W))

torch.vmap says how, operator by operator, so that any rule that a step can be traced with can be stacked. What is
stored stands behind each run's own check of its loss: one that is not finite changes nothing in its own run, and
concerns no other.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import decomposition_table
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.experimental.proxy_tensor import make_fx

from reclra_graph.runtime.traced import Traced, finished, share_repeated

_aten: Any = torch.ops.aten
_functorch: Any = torch._C._functorch
_COPY = _aten.copy.default
_VIEWS = {_aten.view.default, _aten._unsafe_view.default}
_APART = {_aten.native_batch_norm_backward.default}
"""Operators whose batching rules give no derivative of a scale that they are not told of."""


def vmapped(single: Traced, tensors: Sequence[Tensor], stacked: Sequence[bool]) -> Traced:
    """The step of S runs from that of one. ``tensors``: like those that it shall take, of which the ``stacked`` ones
    have a first dimension S and the others serve all runs; all that the step changes is stacked. Nothing is computed.

    The module gives (losses [S], nan where nothing was learned; finite [S], bool). Random numbers are drawn for each
    run. Raises whatever torch.vmap raises for an operator that cannot be stacked.
    """
    stores = _without_stores(single.module)
    run = _Runner(single.module).run
    over = tuple(0 if item else None for item in stacked)

    def all_runs(*given: Tensor) -> list[Tensor]:
        loss, finite, *values = torch.vmap(run, in_dims=over, randomness="different")(*given)
        for index, value in zip(stores, values, strict=True):
            given[index].copy_(value)
        return [torch.where(finite, loss, torch.nan), finite]

    with _quietly():
        module = make_fx(torch.func.functionalize(all_runs), tracing_mode="fake")(*tensors)
    _without_copies(module)
    share_repeated(module)
    return finished(module, single.size)


def _without_stores(module: GraphModule) -> list[int]:
    """Let a graph that changes its inputs return the new values, behind its own two results, instead. Returns which
    input each is for."""
    graph = module.graph
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    end = next(node for node in graph.nodes if node.op == "output")
    stores: list[int] = []
    values: list[Node] = []
    for node in list(graph.nodes):
        if node.target is _aten.copy_.default and node.args[0] in inputs:
            assert isinstance(node.args[1], Node)
            stores.append(inputs.index(node.args[0]))
            values.append(node.args[1])
            graph.erase_node(node)
    end.args = ([*end.args[0], *values],)
    module.recompile()
    return stores


def _without_copies(module: GraphModule) -> None:
    """Remove copies of a value over one that it is like in everything, as functionalised stores leave them."""
    for node in list(module.graph.nodes):
        if node.target is _COPY:
            old, new = (item.meta["val"] for item in node.args[:2])
            if old.shape == new.shape and old.dtype == new.dtype:
                node.replace_all_uses_with(node.args[1])
                module.graph.erase_node(node)


class _Runner(Interpreter):
    """Runs a graph under torch.vmap. For operators that have no batching rule it takes PyTorch's decomposition where
    there is one, so that vmap does not fall back to one run after the other."""

    def run_node(self, n: Node) -> Any:
        if n.target is _aten.as_strided.default:
            source = n.args[0]
            assert isinstance(source, Node)
            if self.env[source].stride() != source.meta["val"].stride():
                raise RuntimeError(f"{n.target} reads memory as it lies, and of several runs it lies otherwise")
        return super().run_node(n)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is _COPY:
            store, value = args
            return value.to(store.dtype).expand_as(store)
        if target in _VIEWS:  # what several runs compute may lie in memory in another order than what one does
            return torch.reshape(*args)
        apart = decomposition_table.get(target)
        if apart is None:
            return super().call_function(target, args, kwargs)
        if target not in _APART:
            _functorch._set_vmap_fallback_enabled(False)
            try:
                return super().call_function(target, args, kwargs)
            except RuntimeError:
                pass  # it has no rule
            finally:
                _functorch._set_vmap_fallback_enabled(True)
        return apart(*args, **kwargs)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without PyTorch's warnings that one run after the other takes longer than all at once."""
    usual = _functorch._is_vmap_fallback_enabled()
    _functorch._set_vmap_fallback_warning_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        _functorch._set_vmap_fallback_warning_enabled(True)
        _functorch._set_vmap_fallback_enabled(usual)
