"""Whether two models compute the same but for their numbers, as far as it can be seen without running them."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, type)


def unlike(first: nn.Module, other: nn.Module) -> str:
    """The first difference that may matter: of the modules' names, classes and settings, or of what is frozen; "" where
    there is none. What is not seen through, such as objects of other kinds, counts as one."""
    for one, two in zip_longest(first.named_modules(), other.named_modules()):
        if one is None or two is None or one[0] != two[0] or type(one[1]) is not type(two[1]):
            return f"{_shown(two)}, where the first has {_shown(one)}"
        mine, yours = _settings(one[1]), _settings(two[1])
        for key in {**mine, **yours}:
            if key not in mine or key not in yours or not _same(mine[key], yours[key]):
                return f"{_shown(two)} with another {key} than the first"
    for (name, value), (_, twin) in zip(first.named_parameters(), other.named_parameters(), strict=False):
        if value.requires_grad != twin.requires_grad:
            return f"{name} {'learning' if twin.requires_grad else 'frozen'}, unlike the first"
    return ""


def _shown(item: tuple[str, nn.Module] | None) -> str:
    return "nothing more" if item is None else f"{item[0] or 'the model'} {type(item[1]).__name__}"


def _settings(module: nn.Module) -> dict[str, Any]:
    return {key: value for key, value in vars(module).items() if key[:1] != "_" and key != "training"}


def _same(one: Any, two: Any) -> bool:
    if one is two:
        return True
    if type(one) is not type(two):
        return False
    if isinstance(one, Tensor):
        return one.shape == two.shape and one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, (tuple, list)):
        return len(one) == len(two) and all(map(_same, one, two))
    if isinstance(one, dict):
        return list(one) == list(two) and all(_same(one[key], two[key]) for key in one)
    return isinstance(one, _PLAIN) and bool(one == two)
