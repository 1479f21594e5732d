"""nn.Module → a copy with pseudo-convolutions in the place of its convolutions: a rewriting ahead of the other passes.

Before:  nn.Conv2d(64, 128, 3, stride=2, padding=1, bias=False), run on maps of 32×32
After:   PerturbativeConv2d(64, 128, size=(32, 32), stride=(2, 2), masks=1, sigma=0.1, seed=…, bias=False)

The operator graph says in which order convolutions run, on maps of which size, and what they give. As in the authors'
code (``reclra_graph.pconv``) the first one stays, since something must tell patterns apart, and so do 1×1 convolutions,
which have no window that noise could stand for. A convolution without padding looks at nothing beyond the border: its
replacement leaves out as many positions there. What cannot be replaced is kept, with a reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from reclra_graph.check_model import plain_model
from reclra_graph.errors import ModelError, Problem, UsageError
from reclra_graph.ir.operators import OperatorGraph, Ref
from reclra_graph.options import Options
from reclra_graph.passes.capture import capture
from reclra_graph.passes.twin import twin, undisturbed
from reclra_graph.pconv import SIGMA, PerturbativeConv2d, mask_problems
from reclra_graph.rules import implicit
from reclra_graph.rules.operators import short
from reclra_graph.structure import called

REPLACEMENTS = ("pconv",)
"""What convolutions can be replaced by."""
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_DEFAULT = Options()

Sizes = tuple[tuple[int, int], tuple[int, int]]
"""(height, width) of a convolution's input, and of its result."""


@dataclass(frozen=True)
class Replacement:
    """The new model, and what became of each convolution: (module path, why it is kept, or "" where it is replaced), in
    the order in which they run; those that do not run come last."""

    model: nn.Module
    convolutions: tuple[tuple[str, str], ...]

    @property
    def replaced(self) -> tuple[str, ...]:
        """Paths of the pseudo-convolutions."""
        return tuple(path for path, reason in self.convolutions if not reason)

    @property
    def lines(self) -> tuple[str, ...]:
        """What became of each convolution, for a reader."""
        return tuple(f"{path}: {f'kept, {why}' if why else 'replaced'}" for path, why in self.convolutions)


def replace_conv(
    model: nn.Module,
    example_inputs: Any,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    masks: int = 1,
    sigma: float = SIGMA,
    seed: int = 0,
    maps: str = "buffers",
    options: Options = _DEFAULT,
) -> Replacement:
    """A copy of a model with pseudo-convolutions; the model itself stays as it is, its weights and its mode too.

    example_inputs, example_kwargs: one call of forward(), as ``rg.compile`` takes it. masks: maps for each input
    channel; 1 keeps the channels, k² the number of parameters of a k×k convolution. sigma: σ of the maps. seed: of the
    maps, by each layer's path, and of the new weights, whatever torch's own random numbers are; the others are copied.
    maps: where they are held, "buffers" or "regenerated". options: how the model is captured, and which of its results
    count.

    Raises UsageError RG405 for numbers that cannot be; ModelError where the model cannot be captured, RG130 where it
    has no convolution that can be replaced.
    """
    if problems := mask_problems(masks, sigma):
        raise UsageError(problems)
    model = plain_model(model)
    graph, _ = capture(model, *called(example_inputs, example_kwargs), options)
    ran = _sizes(model, graph)
    first = next(iter(ran), None)
    found = tuple((path, _reason(model, path, ran, path == first)) for path in _convolutions(model, ran))
    if all(reason for _, reason in found):
        raise ModelError(Problem("RG130", _nothing(found), type(model).__name__))
    copy = twin(model)
    for before, after in zip(model.modules(), copy.modules(), strict=True):
        after.training = before.training
    with undisturbed(seed):
        for path, reason in found:
            if reason:
                continue
            old = copy.get_submodule(path)
            assert isinstance(old, nn.Conv2d)
            own_seed, _ = implicit.key(seed, path)
            _become(old, _instead(old, ran[path][0], masks, sigma, own_seed, maps))
    return Replacement(copy, found)


def _nothing(kept: tuple[tuple[str, str], ...]) -> str:
    if not kept:
        return "the model has no convolution among its modules"
    return "no convolution can be replaced: " + "; ".join(f"{path} {reason}" for path, reason in kept)


def _convolutions(model: nn.Module, ran: Mapping[str, Any]) -> tuple[str, ...]:
    """Paths of all convolutions, each once: those that run in their order, then the others."""
    paths = [path for path, module in model.named_modules() if isinstance(module, _ConvNd)]
    return (*(path for path in ran if path in paths), *(path for path in paths if path not in ran))


def _sizes(model: nn.Module, graph: OperatorGraph) -> dict[str, list[Sizes]]:
    """By module path, in the order in which convolutions first run: the different sizes on which they run; an empty
    list for other than images."""
    found: dict[str, list[Sizes]] = {}
    convolutions = {path for path, module in model.named_modules() if isinstance(module, _ConvNd)}
    for operator in graph.operators:
        if operator.module not in convolutions or "conv" not in operator.target:
            continue
        sizes = found.setdefault(operator.module, [])
        source = operator.args[0]
        if short(operator.target) not in ("conv2d", "convolution") or not isinstance(source, Ref):
            continue
        given = graph.types[_outside(graph, source.name, operator.module)].shape[-2:]
        made = operator.type.shape[-2:] if operator.type else ()
        pair: Any = (given, made)
        if all(isinstance(size, int) for size in (*given, *made)) and pair not in sizes:
            sizes.append(pair)
    return found


def _outside(graph: OperatorGraph, value: str, module: str) -> str:
    """What a module's convolution is given, ahead of the padding that the module has put around it."""
    while value in graph.by_name:
        operator = graph.by_name[value]
        if operator.module != module or "conv" in operator.target:
            break
        value = operator.reads[0]
    return value


def _reason(model: nn.Module, path: str, ran: Mapping[str, list[Sizes]], first: bool) -> str:
    """Why a convolution is kept; "" where it can be replaced."""
    module = model.get_submodule(path)
    kind = type(module).__name__
    if path not in ran:
        return "does not run on the way to a result with a loss"
    if first:
        return "is the first convolution"
    if type(module) is not nn.Conv2d:
        return f"is of the class {kind}, not nn.Conv2d"
    if max(module.kernel_size) == 1:
        return "is 1×1: it has no window"
    if module.groups > 1:
        return f"has {module.groups} groups"
    if max(module.dilation) > 1:
        return f"has the dilation {module.dilation}"
    if not all(parameter.requires_grad for parameter in module.parameters()):
        return "does not learn: requires_grad is False"
    if any(getattr(module, name) for name in _HOOKS):
        return "has hooks, as those of weight norm are"
    if _shared(model, module):
        return "shares its weight with another module"
    if len(ran[path]) > 1:
        return "runs on maps of several sizes: " + ", ".join(_times(given) for given, _ in ran[path])
    if not ran[path]:
        return "runs on maps whose size is not fixed"
    (given, made) = ran[path][0]
    if _crop(given, made, module.stride) is None:
        return f"gives {_times(made)} from {_times(given)}, which no stride and no crop of a pseudo-convolution does"
    return ""


def _shared(model: nn.Module, module: nn.Conv2d) -> bool:
    mine = set(module.parameters(recurse=False))
    return any(mine & set(other.parameters(recurse=False)) for other in model.modules() if other is not module)


def _times(size: tuple[int, ...]) -> str:
    return "×".join(map(str, size))


def _crop(given: tuple[int, int], made: tuple[int, int], stride: tuple[int, ...]) -> tuple[int, int] | None:
    """The fewest positions to leave out at each border, so that the result has the convolution's size; None where
    there are none."""
    found = []
    for size, wanted, step in zip(given, made, stride, strict=True):
        fits = (crop for crop in range((size + 1) // 2) if -(-(size - 2 * crop) // step) == wanted)
        found.append(next(fits, None))
    above, left = found
    return None if above is None or left is None else (above, left)


def _instead(old: nn.Conv2d, sizes: Sizes, masks: int, sigma: float, seed: int, maps: str) -> PerturbativeConv2d:
    """A pseudo-convolution for a convolution; made on the CPU, so that weights are the same for every device."""
    given, made = sizes
    crop = _crop(given, made, old.stride)
    assert crop is not None
    made_anew = PerturbativeConv2d(
        old.in_channels, old.out_channels, size=given, stride=(old.stride[0], old.stride[-1]), masks=masks, sigma=sigma,
        seed=seed, bias=old.bias is not None, crop=crop, maps=maps, dtype=old.weight.dtype,
    )  # fmt: skip
    return made_anew.to(old.weight.device).train(old.training)


def _become(old: nn.Module, new: nn.Module) -> None:
    """Turn a module into another where it stands, so that whoever refers to it, by whatever name, has the new one."""
    old.__class__ = new.__class__
    old.__dict__ = new.__dict__
