"""transformers: any model type, its configuration made tiny, with the head that suits it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from reclra_graph.bench.inputs import candidates
from reclra_graph.bench.loader import BATCH, finished
from reclra_graph.bench.model import ZooModel
from reclra_graph.bench.shrink import LABELS, LEVELS, Level, shrunk
from reclra_graph.errors import ModelError, Problem

LARGEST = 100_000_000
"""Parameters of the largest model that is built; a configuration that shrinks no further is refused."""

# Heads in the order of preference. An encoder that is trained on masked words is brought to classify its texts.
_TRANSLATORS = ("SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ")
_MASKED = ("SEQUENCE_CLASSIFICATION", "MASKED_LM")
_HEADS = (
    "CAUSAL_LM", "SEQUENCE_CLASSIFICATION", "IMAGE_CLASSIFICATION", "VIDEO_CLASSIFICATION", "CTC",
    "AUDIO_CLASSIFICATION", "TIME_SERIES_CLASSIFICATION", "SEMANTIC_SEGMENTATION",
)  # fmt: skip


def load_transformers(name: str) -> ZooModel:
    """The model type ``name`` with a causal-LM, sequence-to-sequence or classification head, else the plain model;
    ``name@base`` asks for the plain model.

    Raises ModelError: RG802 for a model type that the installed version does not have, RG803 where it cannot be made
    small enough or accepts none of the inputs tried.
    """
    transformers = importlib.import_module("transformers")
    transformers.logging.set_verbosity_error()
    kind, _, form = name.partition("@")
    auto: Any = importlib.import_module("transformers.models.auto.modeling_auto")
    mapping = importlib.import_module("transformers.models.auto.configuration_auto").CONFIG_MAPPING
    if kind not in mapping or form not in ("", "base"):
        raise ModelError(
            Problem("RG802", f"transformers {transformers.__version__} has no model type {name!r}", "transformers")
        )
    failure: Exception | None = None
    for level in (*LEVELS, None):
        try:
            config = _config(mapping[kind], level)
            builder, head = _builder(auto, config, form == "base")
            return _loaded(name, builder, config, head)
        except Exception as error:  # sizes that do not go together; larger ones may
            failure = failure or error
    assert failure is not None
    if isinstance(failure, ModelError):
        raise failure
    cause = f"{type(failure).__name__}: {failure}".strip().splitlines()[0]
    raise ModelError(Problem("RG803", f"the model type cannot be made small: {cause}", name)) from failure


def _config(kind: Any, level: Level | None) -> Any:
    """The configuration of a class, shrunk to a level; as it is by default where there is none."""
    default = kind()
    if level is None:
        return default
    sizes = shrunk(default.to_dict(), level)
    for key in ("model_type", "torch_dtype", "id2label", "label2id"):
        sizes.pop(key, None)
    sizes.update(use_cache=False, dtype="float32", num_labels=LABELS)
    if "lags_sequence" in sizes:  # a time series: nothing tells how much of it is to be foretold, or by what
        sizes.update(prediction_length=8, context_length=16, num_time_features=1)
        sizes.pop("feature_size", None)
    return kind(**sizes)


def _builder(auto: Any, config: Any, base: bool) -> tuple[type[nn.Module], bool]:
    """(model class, whether it has a head) for a configuration."""
    if not base:
        for head in _heads(auto, config):
            found = getattr(auto, f"MODEL_FOR_{head}_MAPPING", {}).get(type(config), None)
            if found is not None:
                return _first(found), True
    found = auto.MODEL_MAPPING.get(type(config), None)
    if found is None:
        raise ModelError(Problem("RG802", "transformers offers no model for this configuration", type(config).__name__))
    return _first(found), False


def _heads(auto: Any, config: Any) -> Iterator[str]:
    if getattr(config, "is_encoder_decoder", False):
        yield from _TRANSLATORS
    elif auto.MODEL_FOR_MASKED_LM_MAPPING.get(type(config), None) is not None:
        yield from _MASKED
    yield from _HEADS


def _first(found: Any) -> type[nn.Module]:
    builder: type[nn.Module] = found[0] if isinstance(found, (tuple, list)) else found
    return builder


def _loaded(name: str, builder: type[nn.Module], config: Any, head: bool) -> ZooModel:
    with torch.device("meta"):
        count = sum(item.numel() for item in builder(config).parameters())
    if count > LARGEST:
        raise ModelError(Problem("RG803", f"its smallest form has {count:,} parameters", name))
    torch.manual_seed(0)
    model = builder(config)
    return finished(name, model, candidates(model, config, BATCH), head)
