"""Copies of a model to trace: the model itself, and the session's random numbers, stay as they are."""

from __future__ import annotations

import contextlib
import copy
import random
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def twin(model: nn.Module, parameters: Mapping[int, Any] | None = None) -> nn.Module:
    """A copy of the model in train mode, with values of its own; ``parameters``: what stands for the parameters in it,
    by their ids, instead of copies."""
    # Weights that an older weight_norm or spectral_norm computed are attributes that deepcopy refuses.
    computed: dict[int, Any] = dict(parameters or {})
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                computed[id(value)] = value.detach().clone()
    return copy.deepcopy(model, computed).train()


def with_caches(model: nn.Module, ran: nn.Module) -> nn.Module:
    """The model, or a copy of it that holds the tables which ``ran``, a copy, made as it ran.

    A buffer that forward() gives another shape, and that is not saved, is no state but a cache, made again wherever it
    does not fit: in the copy it is a constant.
    """
    saved, shapes = set(model.state_dict()), {key: item.shape for key, item in model.named_buffers()}
    remade = [key for key, item in ran.named_buffers() if key in shapes and key not in saved
              and item.shape != shapes[key]]  # fmt: skip
    if not remade:
        return model
    warm = copy.deepcopy(model)
    for key in remade:
        path, _, name = key.rpartition(".")
        module = warm.get_submodule(path)
        delattr(module, name)
        setattr(module, name, ran.get_buffer(key).detach())
    return warm


class _Alias(nn.Module):
    """Another name of a module."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.__dict__["original"] = original  # not a sub-module: its parameters have one name

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.__dict__["original"](*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["original"], name)


class _ListAlias(_Alias):
    """Another name of a module that holds others in a row, as ``nn.ModuleList`` does."""

    def __iter__(self) -> Iterator[Any]:
        return iter(self.__dict__["original"])

    def __len__(self) -> int:
        return len(self.__dict__["original"])

    def __getitem__(self, key: Any) -> Any:
        return self.__dict__["original"][key]


def one_name_each(model: nn.Module) -> nn.Module:
    """The model with every sub-module registered once, under its first name in ``named_modules()``. A buffer that is
    written under two names breaks PyTorch's functionalisation."""
    seen = {model}

    def visit(module: nn.Module) -> None:
        for name, child in list(module._modules.items()):
            if child is not None and child in seen:
                module._modules[name] = (_ListAlias if hasattr(type(child), "__iter__") else _Alias)(child)
            elif child is not None:
                seen.add(child)
                visit(child)

    visit(model)
    return model


def bare_twin(module: nn.Module, made: nn.Module) -> nn.Module:
    """``made`` with the parameters, buffers and sub-modules of ``module`` under the same names, and no code of theirs.

    Parameters do not ask for gradients: what runs on them may write to them, as the model does under no_grad.
    """
    return _same_names(module, made, {})


def _same_names(module: nn.Module, made: nn.Module, known: dict[object, Any]) -> nn.Module:
    known[module] = made  # what the model has twice (a tied weight, a shared layer) stays one thing
    for name, parameter in module._parameters.items():
        if parameter is not None and parameter not in known:
            known[parameter] = nn.Parameter(parameter.detach(), requires_grad=False)
        made.register_parameter(name, None if parameter is None else known[parameter])
    persistent = module.state_dict(keep_vars=True)
    for name, buffer in module._buffers.items():
        made.register_buffer(name, buffer, persistent=name in persistent)
    for name, child in module._modules.items():
        if child is None:
            made.add_module(name, None)
        elif child not in known:  # a module has one name, its first: see one_name_each
            made.add_module(name, _same_names(child, nn.Module(), known))
    return made


def outside_draws() -> tuple[object, ...]:
    """The state of Python's and numpy's random numbers: another one after a run that drew some."""
    numpy = sys.modules.get("numpy")
    kind, words, place, *_ = numpy.random.get_state() if numpy else ("", b"", 0)
    return random.getstate(), kind, bytes(words), place


@contextlib.contextmanager
def undisturbed(seed: int | None = None) -> Iterator[None]:
    """Leave torch's, Python's and numpy's random numbers as they were; inside, begin with ``seed`` if one is given."""
    numpy = sys.modules.get("numpy")
    states = random.getstate(), numpy.random.get_state() if numpy else None
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            if seed is not None:
                torch.manual_seed(seed)
                random.seed(seed)
                if numpy:
                    numpy.random.seed(seed)
            yield
    finally:
        random.setstate(states[0])
        if numpy:
            numpy.random.set_state(states[1])
