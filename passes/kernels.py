"""Kernels: the arithmetic and the memory traffic of whatever PyTorch runs, counted operator by operator."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

_FREE = {"_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "sym_size", "_local_scalar_dense"}
"""Operators that launch no kernel although they are no views."""
_PICKS = {"embedding", "index_select", "gather", "index"}
"""Operators that read no more of a table than what they return."""

_ATEN = torch.ops.aten
_FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    # PyTorch has formulas for attention on a GPU, none for the same on the CPU.
    _ATEN._scaled_dot_product_flash_attention_for_cpu: flop_registry[_ATEN._scaled_dot_product_flash_attention],
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _ATEN._scaled_dot_product_flash_attention_backward
    ],
}

Kernel = tuple[int, int]
"""(floating-point operations, bytes read and written) of one kernel."""


class CountKernels(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, appends a ``Kernel`` to ``found`` for every operator that is no view.

    Operations: two for every multiplication with addition of products and convolutions (PyTorch's own formulas), one
    for every number read or written, whichever are more, of everything else.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[Kernel] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._schema.name.partition("::")[2]
        if not func.is_view and name not in _FREE:
            results = _tensors(out)
            given = results if name in _PICKS else _tensors((args, kwargs))
            moved = _bytes(given) + _bytes(results)
            formula = _FORMULAS.get(func._overloadpacket)
            if formula is not None:
                flops = int(formula(*args, **kwargs, out_val=out))
            else:
                flops = max((item.numel() for item in (*given, *results)), default=0)
            self.found.append((flops, moved))
        return out


def _tensors(value: Any) -> list[Tensor]:
    return [item for item in tree_leaves(value) if isinstance(item, Tensor)]


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of memory behind tensors: of a dimension that repeats a value without holding it twice, one."""
    return sum(
        item.element_size() * prod(size for size, step in zip(item.shape, item.stride(), strict=True) if step != 0)
        for item in tensors
        if item.layout is torch.strided
    )
