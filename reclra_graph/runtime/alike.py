"""Whether two models compute the same but for their numbers, as far as it can be seen without running them."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, type)
_OWN = {*vars(nn.Module())} - {"_forward_hooks", "_forward_pre_hooks"}
"""What every module has, and is no setting of it: compared elsewhere, or of no matter."""


def built_otherwise(first: nn.Module, other: nn.Module) -> str:
    """The first difference between the models' modules, by name and class, or between what they hold: names, shapes,
    dtypes, and what is frozen. "" where there is none."""
    for one, two in zip_longest(first.named_modules(), other.named_modules()):
        if one is None or two is None or one[0] != two[0] or type(one[1]) is not type(two[1]):
            return f"{_shown(two)}, where the first has {_shown(one)}"
    held, others = _held(first), _held(other)
    for name in {**held, **others}:
        if held.get(name) != others.get(name):
            return f"{name} {others.get(name, 'missing')}, where the first has it {held.get(name, 'missing')}"
    return ""


def set_otherwise(first: nn.Module, other: nn.Module) -> tuple[str, ...]:
    """All differences in the settings of modules that are built alike; they may matter or not. What is not seen
    through, such as objects of other kinds, counts as one."""
    found = []
    for one, two in zip(first.named_modules(), other.named_modules(), strict=True):
        mine, yours = _settings(one[1]), _settings(two[1])
        found += [
            f"{_shown(two)} with another {key} than the first"
            for key in {**mine, **yours}
            if key not in mine or key not in yours or not _same(mine[key], yours[key])
        ]
    return tuple(found)


def _shown(item: tuple[str, nn.Module] | None) -> str:
    return "nothing more" if item is None else f"{item[0] or 'the model'} {type(item[1]).__name__}"


def _held(module: nn.Module) -> dict[str, str]:
    """What there is to know of parameters and buffers but their numbers."""
    found = {name: "frozen " * (not value.requires_grad) + _kind(value) for name, value in module.named_parameters()}
    return found | {name: _kind(value) for name, value in module.named_buffers()}


def _kind(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"


def _settings(module: nn.Module) -> dict[str, Any]:
    return {key: value for key, value in vars(module).items() if key not in _OWN}


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
