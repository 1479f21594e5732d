"""Make the configuration of a transformers model tiny, whatever the model, by the names that its sizes go by.

No model type is named here. Sizes of the same kind become equal, so that widths stay divisible by heads; what a
configuration derives from its sizes is left out of the arguments, so that it is derived again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LAYERS, WIDTH, INNER, HEADS, HEAD, RANK, VOCABULARY, POSITIONS, PIXELS = 2, 32, 64, 4, 8, 16, 99, 64, 64
EXPERTS, WINDOW, FRAMES, LABELS, MULTIPLIER = 4, 8, 4, 10, 8

Sizes = Callable[[Any], Any]


def _at_most(limit: int) -> Sizes:
    return lambda value: min(value, limit)


def _pattern(*names: str) -> re.Pattern[str]:
    """Matches the names, each behind any prefix that ends in ``_``."""
    return re.compile(r"(?:\w+_)?(?:" + "|".join(names) + ")")


def _heads(value: int) -> int:
    """A power of two, at most ``HEADS``, so that it divides every width."""
    return 1 << (min(value, HEADS).bit_length() - 1) if value > 0 else value


_LAYERS = _pattern(
    "num_hidden_layers", "n_layers?", "num_layers", "(?:num_)?(?:encoder|decoder)_layers", "depth", "layers"
)

_COUNTS: tuple[tuple[re.Pattern[str], Sizes], ...] = (
    (_pattern("first_k_dense_replace", "num_dense_layers", "n_group", "topk_group", "num_expert_group"), _at_most(1)),
    (_pattern("num_nextn_predict_layers", "num_kv_shared_layers"), _at_most(0)),
    (re.compile(r"(?!.*shared)(?:\w+_)?(?:num_|n_)(?:\w+_)?experts"), _at_most(EXPERTS)),
    (_pattern("experts_per_tok(?:en)?", "moe_(?:top_?)?k", "num_selected_experts"), _at_most(2)),
    (_pattern("vocab_size", "vocab_size_per_layer_input"), _at_most(VOCABULARY)),
    (
        _pattern("max(?:_2d)?_position_embeddings", "n_positions", "max_source_positions", "max_target_positions"),
        _at_most(POSITIONS),
    ),
    (re.compile("n_ctx|context_length|max_seq_len|max_sequence_length"), _at_most(POSITIONS)),
    (_pattern("sliding_window", "attention_window", "(?:attention|mamba)_chunk_size"), _at_most(WINDOW)),
    (re.compile("chunk_size"), _at_most(WINDOW)),
    (_pattern("num_frames"), _at_most(FRAMES)),
)

_WIDTHS: tuple[tuple[re.Pattern[str], Sizes], ...] = (
    (_pattern("(?:num|n)_(?:\\w+_)?heads?", "attention_heads"), _heads),
    (_pattern("head_dim", "dim_head", "head_size", "d_head", "d_kv", "qk_(?:rope|nope)_head_dim"), _at_most(HEAD)),
    (_pattern("qk_head_dim"), _at_most(2 * HEAD)),
    (_pattern("rotary_dim"), _at_most(HEAD // 2)),
    (_pattern("num_latents"), _at_most(RANK)),
    (_pattern("lora_rank"), _at_most(RANK)),
    (
        _pattern("intermediate_size", "ffn_dim", "ffn_hidden_size", "d_ff", "n_inner", "d_inner", "mlp_dim"),
        _at_most(INNER),
    ),
    (_pattern("state_size", "d_state"), _at_most(HEAD)),
    (_pattern("time_step_rank"), _at_most(2)),
    (_pattern("n_groups"), _at_most(2)),
    (
        _pattern(
            "hidden_size", "d_model", "d_latents", "n_embd", "embed_dim", "hidden_dim", "embedding_size",
            "embedding_dim", "emb_dim", "word_embed_proj_dim", "projection_dim", "project_dim", "hidden_channels",
            "hidden_width", "conv_dim",
            "classifier_proj_size", "codevector_dim", "tdnn_dim", "xvector_output_dim", "lru_width", "output_dim",
            "neck_hidden_sizes?", "prediction_head_hidden_size", "dim", "width",
        ),
        _at_most(WIDTH),
    ),
)  # fmt: skip

_DEPTHS = re.compile(
    r"depths?|block_sizes|num_block_repeats|layers|blocks_per_stage|stage_num(?:b_of)?_(?:blocks|layers)"
)
_SCALED = re.compile(
    r"(?:\w+_)?(?:hidden_sizes|embed_dims?|embed_dim_per_stage|channels|dims?|widths?|stage_channels|in_channels"
    r"|stem_channels|out_channels|sizes|mid_channels|hidden_dim|embedding_size|projection_dim|neck_dim)"
)
_MULTIPLIERS = re.compile(r"width_coefficient|width_multiplier")
_TOKEN = re.compile(r"(?!num_)\w*token_(?:id|ids|index)")
_MISSING = {
    "vocab_size": VOCABULARY,
    "head_dim": HEAD,
    "num_key_value_heads": HEADS,
    "num_experts_per_tok": 2,
    "n_routed_experts": EXPERTS,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "pad_token_id": 0,
    "mask_token_id": 3,
}
"""Sizes without a default that some models cannot do without."""

_DERIVED = ("transformers_version", "architectures", "layer_types", "stage_names", "out_features", "out_indices")


@dataclass(frozen=True)
class Level:
    """How far to go: ``depth``, layers at most, and blocks in a stage; ``widths``: "named" (each by its name), "scaled"
    (all by one factor, for families whose widths depend on one another) or "kept"; ``repaired``: give
    values to what has none by default, and sections that fit to rotary embeddings that are cut into some."""

    depth: int
    widths: str
    repaired: bool = False


LEVELS = (
    Level(LAYERS, "named"),
    Level(LAYERS, "named", repaired=True),
    Level(LAYERS + 1, "named"),
    Level(LAYERS, "scaled"),
    Level(1000, "named"),
    Level(LAYERS, "kept"),
)
"""What to try, the smallest first."""


def shrunk(config: Mapping[str, Any], level: Level) -> dict[str, Any]:
    """Arguments for the configuration's class, from the values that it has by default."""
    sizes = {key: value for key, value in config.items() if not key.startswith("_")}
    layers = {value for key, value in sizes.items() if _whole(value) and _LAYERS.fullmatch(key) and value > level.depth}
    factor = _factor(sizes)
    small: dict[str, Any] = {}
    for key, value in sizes.items():
        if isinstance(value, Mapping):
            small[key] = shrunk(value, level) if "model_type" in value else _table(key, value, level)
        elif isinstance(value, (list, tuple)):
            if not _derived(key, value, layers):
                small[key] = _listed(key, value, level, factor)
        elif key not in _DERIVED:
            small[key] = _size(key, value, level)
    return _settled(small, level.repaired) if level.widths == "named" else small


def _listed(key: str, value: Sequence[Any], level: Level, factor: int) -> Sequence[Any]:
    """A list with an entry for each stage."""
    if key == "attention_types":  # pairs of (kinds of layers, how often)
        return [[kinds, min(count, max(1, level.depth // len(kinds)))] for kinds, count in value]
    if not value or not all(_whole(item) for item in value):
        return value
    if _DEPTHS.fullmatch(key):
        return [min(item, level.depth) for item in value]
    if key == "image_size":
        return [min(item, PIXELS) for item in value]
    if level.widths == "named" and key in ("conv_dim", "tdnn_dim"):
        return [min(item, WIDTH) for item in value]
    if level.widths != "kept" and _SCALED.fullmatch(key) and max(value) > 3:
        return [max(item // factor, 1) if item > 3 else item for item in value]
    return value


def _size(key: str, value: Any, level: Level) -> Any:
    """One size, made smaller where its name is known."""
    if isinstance(value, float):
        if key == "depth_coefficient":
            return min(value, 1.0)
        return value / MULTIPLIER if level.widths == "scaled" and _MULTIPLIERS.fullmatch(key) else value
    if value is None and level.repaired:
        return _MISSING.get(key)
    if not _whole(value):
        return value
    if key == "image_size":
        return min(value, PIXELS)
    if _LAYERS.fullmatch(key):
        return min(value, level.depth)
    if level.widths == "scaled" and _SCALED.fullmatch(key) and value > 3:
        return max(value // MULTIPLIER, 1)
    for pattern, size in _COUNTS + (_WIDTHS if level.widths == "named" else ()):
        if pattern.fullmatch(key):
            return size(value)
    if _TOKEN.fullmatch(key) and value >= VOCABULARY:
        return VOCABULARY - 1 - value % 8
    return value


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _derived(key: str, value: Sequence[Any], layers: set[int]) -> bool:
    """Whether a configuration works this list out from its sizes: one with an entry for each layer."""
    return key in _DERIVED or (len(value) in layers and not _DEPTHS.fullmatch(key))


def _factor(sizes: Mapping[str, Any]) -> int:
    """What the widths of stages are divided by: a power of two that leaves the narrowest at least 16 wide; 1 where
    another number multiplies all of them."""
    if any(_MULTIPLIERS.fullmatch(key) for key in sizes):
        return 1
    narrowest = min(
        (
            min(value)
            for key, value in sizes.items()
            if isinstance(value, (list, tuple)) and value and all(_whole(item) for item in value)
            if _SCALED.fullmatch(key) and min(value) > 3
        ),
        default=16,
    )
    return 1 << (max(narrowest // 16, 1).bit_length() - 1)


def _table(key: str, value: Mapping[str, Any], level: Level) -> dict[str, Any]:
    """A table inside a configuration: entries for layers that are gone go too, sections of a rotary embedding (time,
    height, width) fill half a head."""
    found = {name: item for name, item in value.items() if not (str(name).isdecimal() and int(name) >= level.depth)}
    cut = isinstance(found.get("mrope_section"), (list, tuple)) or (level.repaired and key.startswith("rope_"))
    if level.widths == "named" and cut:
        found["mrope_section"] = [HEAD // 2 - 2, 1, 1]
    return found


def _settled(sizes: dict[str, Any], repaired: bool) -> dict[str, Any]:
    """State-space blocks: heads times head size is the width times its expansion. Shared heads: no more than heads,
    and as many where ``repaired``."""
    for expand, heads, head in (
        ("expand", "num_heads", "head_dim"),
        ("mamba_expand", "mamba_n_heads", "mamba_d_head"),
        ("mamba_expand", "mamba_num_heads", "mamba_head_dim"),
        ("mamba_expand", "n_mamba_heads", "mamba_headdim"),
    ):
        if all(_whole(sizes.get(name)) for name in (expand, heads, head, "hidden_size")):
            sizes[head] = min(sizes[head], HEAD)
            sizes[heads] = sizes[expand] * sizes["hidden_size"] // sizes[head]
            if _whole(sizes.get("mamba_d_ssm")):
                sizes["mamba_d_ssm"] = sizes[heads] * sizes[head]
    for heads, shared in (("num_attention_heads", "num_key_value_heads"), ("n_head", "num_kv_heads")):
        if _whole(sizes.get(heads)) and _whole(sizes.get(shared)):
            sizes[shared] = sizes[heads] if repaired else min(sizes[shared], sizes[heads])
    return sizes
