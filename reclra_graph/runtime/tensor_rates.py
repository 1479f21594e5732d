"""Numbers of a step that become tensors where it is recorded, so that they may differ from run to run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

_FACTORS = ("alpha", "value")


class TensorFactors(TorchFunctionMode):
    """PyTorch's functions with a tensor for a factor that they take as a number alone.

    Before:  torch.addmm(h, e, E.T, alpha=-beta)    torch.sub(a, b, alpha=beta)    torch.addcmul(a, b, c, value=beta)
    After:   torch.addmm(h, e * -beta, E.T)         torch.sub(a, b * beta)         torch.addcmul(a, b * beta, c)

    All of them multiply what they add, and so its first part, by the factor.
    """

    def __torch_function__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        rest = dict(kwargs or {})
        factors = [rest.pop(name) for name in _FACTORS if isinstance(rest.get(name), Tensor)]
        for factor in factors:
            args = (args[0], args[1] * factor, *args[2:])
        return func(*args, **rest)
