"""Load any model of torchvision, timm or transformers, one of our own, or a model file, with inputs and a target."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import warnings
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import nn

from reclra_graph.bench.model import Inputs, ZooModel, dry_run, objective
from reclra_graph.errors import ModelError, Problem
from reclra_graph.model_file import load_model
from reclra_graph.structure import called

BATCH = 2
"""Samples per batch: batch normalisation needs more than one."""

_HELD: list[Any] = []


def load(source: str, name: str, seed: int = 0) -> ZooModel:
    """The model ``name`` of ``source`` (own, torchvision, timm, transformers or file); weights, inputs and target are
    drawn from ``seed``.

    Raises ModelError: RG802 where the library is not installed or has no such model, RG803 where no inputs were found
    that the model accepts.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the libraries say of their own names and defaults
        torch.manual_seed(seed)
        if source == "own":
            from reclra_graph.bench.own import build

            return build(name)
        if source == "file":
            return _file(name)
        library = imported(source)
        if source == "transformers":
            from reclra_graph.bench.hugging import load_transformers

            return load_transformers(name)
        return _torchvision(library, name) if source == "torchvision" else _timm(library, name)


def imported(library: str) -> ModuleType:
    """A library of the zoo. All three import torchvision, whose schemas are declared first.

    Raises ModelError RG802 where it is not installed.
    """
    if importlib.util.find_spec(library) is None:
        advice = "Install the extra: `pip install 'reclra-graph[zoo]'`."
        raise ModelError(Problem("RG802", f"{library} is not installed", library, advice))
    declare_torchvision()
    return importlib.import_module(library)


def declare_torchvision() -> None:
    """Declare two of torchvision's operators where its binary cannot: beside a CPU-only torch.

    The binary links against CUDA; without it these operators have no schema, and registering their fake kernels,
    which nothing guards, fails the import of torchvision and of all that import it.
    """
    if _HELD or torch.cuda.is_available() or importlib.util.find_spec("torchvision") is None:
        return
    library: Any = torch.library.Library  # not annotated by torch
    fragment = library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            fragment.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _HELD.append(fragment)  # the schemas vanish with the object


def finished(name: str, model: nn.Module, candidates: Iterable[Inputs], head: bool) -> ZooModel:
    """The model with the first of some inputs that it accepts in train mode, and a loss and target that suit them.

    Raises ModelError RG803 where it accepts none; the cause is what it said of the first.
    """
    failure: Exception | None = None
    for inputs in candidates:
        try:
            loss, target = objective(dry_run(model, inputs), head)
        except Exception as error:  # whatever the model raises says that it wants other inputs
            failure = failure or error
            continue
        return ZooModel(name, model, inputs, loss, target, head)
    cause = f"no inputs found that {type(model).__name__} accepts: {type(failure).__name__}: {failure}"
    raise ModelError(Problem("RG803", cause.strip().splitlines()[0], name)) from failure


def _file(name: str) -> ZooModel:
    """A model file's own model and inputs; what is given by position beside keywords is given by its name."""
    loaded = load_model(name)
    args, kwargs = called(loaded.example_inputs, loaded.example_kwargs)
    if args and kwargs:
        args, kwargs = (), dict(inspect.signature(loaded.model.forward).bind(*args, **kwargs).arguments)
    return finished(loaded.name, loaded.model, [kwargs or args], True)


def _torchvision(library: ModuleType, name: str) -> ZooModel:
    models = library.models
    if name not in models.list_models():
        raise _unknown("torchvision", library.__version__, name)
    builder = models.get_model_builder(name)
    free: dict[str, Any] = {"weights": None}
    if "weights_backbone" in inspect.signature(builder).parameters:
        free["weights_backbone"] = None
    return finished(name, builder(**free), _pictures(models, builder.__module__, name), True)


def _pictures(models: Any, module: str, name: str) -> Iterator[Inputs]:
    """Images at the size that the model's published weights were evaluated at (128 pixels where it has a class for
    each); clips from the fewest frames on."""
    try:
        size = models.get_model_weights(name).DEFAULT.transforms.keywords.get("crop_size", 128)
    except (ValueError, AttributeError):  # no weights were published
        size = 224
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    frames = ((4,), (8,), (16,), (32,)) if ".video" in module else ((),)
    for count in frames:
        yield (torch.randn(BATCH, 3, *count, height, width),)


def _timm(library: ModuleType, name: str) -> ZooModel:
    if not library.is_model(name):
        raise _unknown("timm", library.__version__, name)
    model: nn.Module = library.create_model(name, pretrained=False)
    settings: Any = getattr(model, "pretrained_cfg", None) or {}
    size = tuple(settings.get("input_size") or (3, 224, 224))
    return finished(name, model, [(torch.randn(BATCH, *size),)], getattr(model, "num_classes", 0) > 0)


def _unknown(library: str, version: str, name: str) -> ModelError:
    return ModelError(Problem("RG802", f"{library} {version} has no model {name!r}", f"{library} {name}"))
