"""Sums with a factor → sums of products.

Before:  ``add(x, a @ b, alpha=c)``
After:   ``add(x, mul(a @ b, c))``

Inductor (torch 2.11 to 2.13) takes a sum with a matrix product for ``addmm`` and overlooks the sum's own factor: what
it compiles of the first form adds ``a @ b`` itself. Every graph that is given to it goes through here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule

_SUMS = (torch.ops.aten.add.Tensor, torch.ops.aten.sub.Tensor)


def plain_sums(module: GraphModule) -> None:
    """Write the factor of every sum of two tensors out as a multiplication."""
    for node in list(module.graph.nodes):
        alpha: Any = node.kwargs.get("alpha", 1)
        if node.target not in _SUMS or alpha == 1:
            continue
        first, second = node.args
        if not isinstance(second, torch.fx.Node):
            continue  # a number: no product
        with module.graph.inserting_before(node):
            scaled = module.graph.call_function(torch.ops.aten.mul.Tensor, (second, alpha))
            scaled.meta["val"] = second.meta["val"]
        node.args, node.kwargs = (first, scaled), {}
