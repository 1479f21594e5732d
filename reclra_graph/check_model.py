"""Models that no compilation could make train, found before any is tried, all at once.

What only running the model can tell, that it rejects its inputs or reaches no parameter, is found later (RG201, RG302).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from reclra_graph.errors import Problem
from reclra_graph.example_inputs import kind_of, leaves

Named = Sequence[tuple[str, Tensor]]

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_SHOWN = 3


def plain_model(model: nn.Module) -> nn.Module:
    """The module itself where ``model`` is what torch.compile returned for it: both share all parameters."""
    while type(model).__name__ == "OptimizedModule" and isinstance(model._modules.get("_orig_mod"), nn.Module):
        model = model.get_submodule("_orig_mod")
    return model


def check_model(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Problem]:
    """Everything about the model's tensors, and those of the example call, that rules it out; nothing is run.

    RG104 for what is no nn.Module, RG125 for the wrappers of parallel training, RG126 for a ScriptModule; these alone.
    Else RG120 for tensors on several devices, RG121 for parameters that are not float32 or float64 alike, RG122 for
    tensors without values, RG123 for parameters without a shape yet, RG124 for kinds of tensor that have no rules.
    """
    if not isinstance(model, nn.Module):
        return [Problem("RG104", f"the model is {kind_of(model)}, not an nn.Module", "model")]
    kind = type(model).__name__
    if isinstance(model, _WRAPPERS):
        return [Problem("RG125", f"the model is wrapped in {kind}", kind)]
    if isinstance(model, torch.jit.ScriptModule):
        return [Problem("RG126", "the model was made by torch.jit", kind)]
    parameters: Named = list(model.named_parameters())
    buffers: Named = list(model.named_buffers())
    lazy = [(name, item) for name, item in (*parameters, *buffers) if is_lazy(item)]
    problems = [Problem("RG123", f"{_listed(lazy)} have no shape yet", kind)] if lazy else []
    parameters, buffers = _made(parameters), _made(buffers)
    inputs = [(label, item) for label, item in leaves(args, kwargs) if isinstance(item, Tensor)]
    problems += _without_values(parameters, buffers, inputs, kind)
    problems += _devices(parameters, buffers, inputs, kind)
    problems += _dtypes([(name, item) for name, item in parameters if item.requires_grad], kind)
    problems += _kinds(model, [*parameters, *buffers], inputs, kind)
    return problems


def _made(tensors: Named) -> Named:
    return [(name, item) for name, item in tensors if not is_lazy(item)]


def _listed(tensors: Iterable[tuple[str, object]]) -> str:
    names = [name for name, _ in tensors]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _without_values(parameters: Named, buffers: Named, inputs: Named, kind: str) -> Iterator[Problem]:
    for what, place, tensors in (("parameters", kind, parameters), ("buffers", kind, buffers), ("inputs", "", inputs)):
        empty = [
            (name, item) for name, item in tensors if item.is_meta or isinstance(item, torch._subclasses.FakeTensor)
        ]
        if empty:
            yield Problem("RG122", f"{what} have a shape but no values: {_listed(empty)}", place or empty[0][0])


def _devices(parameters: Named, buffers: Named, inputs: Named, kind: str) -> Iterator[Problem]:
    """Tensors without dimensions may stay on the CPU, as torch's own operators allow."""
    held = [(name, item) for name, item in (*parameters, *buffers) if item.ndim or item.device.type != "cpu"]
    where: dict[str, list[tuple[str, object]]] = {}
    for name, item in held:
        if not item.is_meta:
            where.setdefault(str(item.device), []).append((name, item))
    if len(where) > 1:
        shown = "; ".join(f"{device}: {_listed(tensors)}" for device, tensors in sorted(where.items()))
        yield Problem("RG120", f"the model's tensors are on {len(where)} devices: {shown}", kind)
    for name, item in inputs:
        if where and item.ndim and not item.is_meta and str(item.device) not in where:
            home = " and ".join(sorted(where))
            advice = f'Move the input to where the model is: `.to("{min(where)}")`.'
            yield Problem("RG120", f"the input is on {item.device}, the model on {home}", name, advice)


def _dtypes(parameters: Named, kind: str) -> Iterator[Problem]:
    """What is wrong with the dtypes of the parameters that learn."""
    complex_ = [(name, item) for name, item in parameters if item.is_complex()]
    if complex_:
        advice = (
            "Hold the real and the imaginary part in a real parameter, and call torch.view_as_complex in forward()."
        )
        yield Problem("RG121", f"complex parameters: {_listed(complex_)}", kind, advice)
    real = [(name, item) for name, item in parameters if not item.is_complex()]
    small = [(name, item) for name, item in real if item.dtype not in (torch.float32, torch.float64)]
    if small:
        dtypes = " and ".join(sorted({_name(item) for _, item in small}))
        yield Problem("RG121", f"parameters in {dtypes}: {_listed(small)}", kind)
    wide = [(name, item) for name, item in real if item.dtype == torch.float64]
    single = [(name, item) for name, item in real if item.dtype == torch.float32]
    if wide and single:
        cause = f"parameters in float32 ({_listed(single)}) and in float64 ({_listed(wide)})"
        yield Problem("RG121", cause, kind, "Call model.float() or model.double() before you compile it.")


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


# What makes a tensor one of a kind that has no rules, how it is called, and what to do.
_STRANGE: tuple[tuple[Callable[[Tensor], bool], str, str], ...] = (
    (
        lambda item: item.is_quantized,
        "quantised tensors",
        "Train the model as it was before it was quantised, and quantise the result.",
    ),
    (
        lambda item: item.layout != torch.strided or item.is_nested,
        "sparse or nested tensors, or others without strides",
        "Call .to_dense(), or hold indices and values in tensors of their own.",
    ),
    (
        lambda item: item.is_inference(),
        "tensors made in inference mode",
        "Build and load them outside torch.inference_mode(), or clone them outside it.",
    ),
    (
        lambda item: is_traceable_wrapper_subclass(item),
        "tensors that wrap others, such as distributed or quantised ones",
        "Give a model whose parameters are plain tensors.",
    ),
)


def _kinds(model: nn.Module, held: Named, inputs: Named, kind: str) -> Iterator[Problem]:
    for strange, called, advice in _STRANGE:
        for place, tensors in ((kind, held), ("", inputs)):
            found = [(name, item) for name, item in tensors if strange(item)]
            if found:
                yield Problem("RG124", f"{called}: {_listed(found)}", place or found[0][0], advice)
    quantised = [
        (path or kind, module)
        for path, module in model.named_modules()
        if type(module).__module__.startswith("torch.ao.nn.") and "quantized" in type(module).__module__.split(".")
    ]
    if quantised:
        yield Problem("RG124", f"quantised modules: {_listed(quantised)}", kind, _STRANGE[0][2])
