"""Which closed form belongs to which operator: the one place that maps ATen operators to ``carry`` and ``updates``.

Both look-ups return a ``Call`` whose first argument is ``Ref("_")``, the error at the operator's output; ``Ref("B")``
is the batch size; other references are values of the operator graph. None means: no closed form, so a region ends
before the operator (carry), or the parameter has no analytic rule (update).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from reclra_graph.ir.operators import Argument, Operator, OperatorGraph, Ref
from reclra_graph.ir.tasks import Call
from reclra_graph.rules.operators import function, short

ERROR = Ref("_")
COUNT = Ref("B")

NORMS = {"_native_batch_norm_legit_functional", "layer_norm", "native_layer_norm", "group_norm", "native_group_norm"}
"""Normalisations with an affine part of their own; errors pass over them as they are."""
_RESHAPES = {"view", "reshape", "flatten", "_unsafe_view", "squeeze", "unsqueeze", "unflatten"}
MOVES = {*_RESHAPES, "permute", "transpose", "clone", "contiguous"}
"""Operators that only bring numbers to other places or shapes."""
_COPIES = {"clone", "alias", "detach", "contiguous", "lift_fresh_copy", "positive"}
_CONVOLUTIONS = {
    "conv1d",
    "conv2d",
    "conv3d",
    "convolution",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
}
_LOW_INPUT = {
    f"rules.{name}"
    for name in (
        "updates.linear_weight", "updates.matmul_weight", "updates.conv_weight", "updates.batch_norm_scale",
        "updates.layer_norm_scale", "updates.group_norm_scale", "carry.avg_pooled", "carry.adaptive_avg_pooled",
        "carry.max_pooled",
    )
}  # fmt: skip
"""Rules that take the operator's input next to the error, and want to know where the two differ in precision."""


def bound(operator: Operator) -> dict[str, Argument]:
    """An ATen operator's arguments by the names of its schema, defaults filled in."""
    names: dict[str, Argument] = {}
    given = dict(operator.kwargs)
    schema: Any = function(operator.target)._schema  # type: ignore[attr-defined]
    for index, argument in enumerate(schema.arguments):
        if index < len(operator.args):
            value = operator.args[index]
        elif argument.name in given:
            value = given[argument.name]
        else:
            value = (
                tuple(argument.default_value) if isinstance(argument.default_value, list) else argument.default_value
            )
        names[argument.name] = value
    return names


def parameters_read(operator: Operator, graph: OperatorGraph) -> tuple[tuple[int, str], ...]:
    """(argument position, value name) of every parameter that the operator takes directly."""
    names = graph.parameter_names
    return tuple((i, arg.name) for i, arg in enumerate(operator.args) if isinstance(arg, Ref) and arg.name in names)


def derived_read(operator: Operator, graph: OperatorGraph) -> tuple[str, ...]:
    """Values the operator reads that are computed from parameters alone, the parameters themselves apart."""
    return tuple(name for name in operator.reads if name in graph.derived and name not in graph.parameter_names)


def data_read(operator: Operator, graph: OperatorGraph) -> tuple[str, ...]:
    """Values the operator reads that hold the batch's data: no parameters, buffers, sizes, or what these alone give."""
    return tuple(name for name in operator.reads if name not in graph.without_data)


def _call(module: str, name: str, *args: Argument) -> Call:
    return Call(f"rules.{module}.{name}", (ERROR, *args))


def repeated(value: Argument, count: int) -> tuple[Argument, ...]:
    """A size given once for all dimensions, or per dimension, as one number per dimension."""
    items = value if isinstance(value, tuple) else (value,)
    return items * count if len(items) == 1 else items


def _same_shape(graph: OperatorGraph, operator: Operator, value: str) -> bool:
    return operator.type is not None and value in graph.types and graph.types[value].shape == operator.type.shape


def carry(operator: Operator, graph: OperatorGraph, value: str) -> Call | None:
    """How the error passes from the operator's output to its input ``value``. Errors are float32 on both sides of a
    cast that autocast puts between the two."""
    swapped = {name: value for name in operator.reads if name != value and value in graph.cast_from(name)}
    if swapped:
        operator = replace(operator, args=_renamed(operator.args, swapped), kwargs=_renamed(operator.kwargs, swapped))
    return _raising(_carry(operator, graph, value), graph)


def _renamed(argument: Any, names: dict[str, str]) -> Any:
    if isinstance(argument, Ref):
        return Ref(names.get(argument.name, argument.name))
    return tuple(_renamed(item, names) for item in argument) if isinstance(argument, tuple) else argument


def _raising(call: Call | None, graph: OperatorGraph) -> Call | None:
    """The call, told the precision of the operator's input where a rule does not take just any."""
    if call is None or call.function not in _LOW_INPUT or not isinstance(call.args[1], Ref):
        return call
    given = call.args[1].name
    return replace(call, kwargs=(("low", graph.types[given].dtype),)) if graph.is_low(given) else call


def _carry(operator: Operator, graph: OperatorGraph, value: str) -> Call | None:
    if operator.target == "operator.getitem":
        source = graph.by_name.get(value)
        return _call("carry", "same") if source and operator.args[1] == 0 and source.types else None
    if not operator.target.startswith("aten."):
        return None
    name = short(operator.target)
    args = bound(operator)
    if name in ("cat", "stack"):
        return _joined(name, args, graph, value)
    first = next(iter(args.values()), None) == Ref(value)
    if operator.reads.count(value) != 1 or sum(item == Ref(value) for item in args.values()) != 1:
        return None
    if name in NORMS:
        return _call("carry", "same") if first else None
    if name == "native_dropout" and first:
        mask = next((n for n in graph.users[operator.name] if graph.by_name[n].args[1] == 1), None)
        return _call("carry", "masked", Ref(mask), 1.0 - float(args["p"])) if mask else None  # type: ignore[arg-type]
    if name in _COPIES and first:
        return _call("carry", "same")
    if name in _RESHAPES and first:
        return _call("carry", "reshaped", Ref(value))
    if name == "permute" and first:
        rank = len(graph.types[value].shape)
        return _call("carry", "permuted", tuple(int(d) % rank for d in args["dims"]))  # type: ignore[union-attr,arg-type]
    if name == "transpose" and first:
        return _call("carry", "transposed", args["dim0"], args["dim1"])
    if name in ("add", "sub", "mul", "div", "neg", "rsub") and _same_shape(graph, operator, value):
        return _arithmetic(name, args, value, first)
    rank = len(graph.types[value].shape) if value in graph.types else 0
    if first and rank == 4:
        return _pooling(name, args, value)
    return None


def _arithmetic(name: str, args: dict[str, Argument], value: str, first: bool) -> Call | None:
    other = args.get("other") if first else args.get("self")
    alpha = args.get("alpha", 1)
    if name == "neg" or (name == "rsub" and first and alpha == 1):
        return _call("carry", "negated")
    if name in ("add", "sub") and (first or alpha == 1):
        return _call("carry", "same" if first or name == "add" else "negated")
    if name == "mul":
        return _call("carry", "scaled", other)
    if name == "div" and first and args.get("rounding_mode") is None:
        return _call("carry", "divided", other)
    return None


def _pooling(name: str, args: dict[str, Argument], value: str) -> Call | None:
    if name == "adaptive_avg_pool2d":
        return _call("carry", "adaptive_avg_pooled", Ref(value))
    if name not in ("avg_pool2d", "max_pool2d"):
        return None
    kernel = repeated(args["kernel_size"], 2)
    stride = repeated(args["stride"], 2) if args["stride"] else kernel
    window = (kernel, stride, repeated(args["padding"], 2))
    if name == "max_pool2d":
        return _call("carry", "max_pooled", Ref(value), *window, repeated(args["dilation"], 2), args["ceil_mode"])
    rest = (args["ceil_mode"], args["count_include_pad"], args["divisor_override"])
    return _call("carry", "avg_pooled", Ref(value), *window, *rest)


def _joined(name: str, args: dict[str, Argument], graph: OperatorGraph, value: str) -> Call | None:
    """Over a concatenation or a stack: the part of the error that stands where the value went."""
    tensors, dim = args["tensors"], args["dim"]
    assert isinstance(tensors, tuple)
    assert isinstance(dim, int)
    names = [item.name for item in tensors if isinstance(item, Ref)]
    if names.count(value) != 1 or len(names) != len(tensors) or any(item not in graph.types for item in names):
        return None
    place, rank = names.index(value), len(graph.types[value].shape)
    if name == "stack":
        return _call("carry", "selected", dim % (rank + 1), place)
    sizes = [graph.types[item].shape[dim] for item in names]
    if not all(isinstance(size, int) for size in sizes):
        return None
    start = sum(int(size) for size in sizes[:place])
    return _call("carry", "sliced", dim % rank, start, sizes[place])


def update(operator: Operator, graph: OperatorGraph, position: int) -> Call | None:
    """How the parameter at argument ``position`` learns from the error at the operator's output."""
    return _raising(_update(operator, graph, position), graph)


def _update(operator: Operator, graph: OperatorGraph, position: int) -> Call | None:
    if not operator.target.startswith("aten."):
        return None
    name = short(operator.target)
    args = bound(operator)
    names = list(args)
    role = names[position] if position < len(names) else ""
    if name == "linear" or name in _CONVOLUTIONS or name in ("matmul", "mm", "addmm"):
        return _weighted(name, operator, graph, args, role)
    if name in NORMS:
        return _affine(name, operator, graph, args, role)
    parameter = operator.args[position]
    assert isinstance(parameter, Ref)
    shape = graph.types[parameter.name].shape
    if name == "embedding" and role == "weight" and args["scale_grad_by_freq"] is False and args["sparse"] is False:
        return _call("updates", "embedding_weight", args["indices"], COUNT, shape[0], args["padding_idx"])
    if name in ("add", "sub") and args.get("alpha", 1) == 1 and operator.type is not None:
        return _call("updates", "added" if role == "self" or name == "add" else "subtracted", COUNT, shape)
    if name == "mul" and isinstance(args["other"], Ref):
        other = args["other"] if role == "self" else args["self"]
        return _call("updates", "multiplied", other, COUNT, shape) if other != parameter else None
    return None


def _weighted(name: str, operator: Operator, graph: OperatorGraph, args: dict[str, Argument], role: str) -> Call | None:
    rank = len(operator.type.shape) if operator.type else 0
    if name == "linear":
        if role == "weight":
            return _call("updates", "linear_weight", args["input"], COUNT, rank)
        return _call("updates", "linear_bias", COUNT, rank) if role == "bias" else None
    if name == "addmm" and args["alpha"] == 1 and args["beta"] == 1:
        if role == "self" and isinstance(args["self"], Ref) and len(graph.types[args["self"].name].shape) == 1:
            return _call("updates", "linear_bias", COUNT, rank)
        return _call("updates", "matmul_weight", args["mat1"], COUNT, rank) if role == "mat2" else None
    if name in ("matmul", "mm"):
        left, right = (args["self"], args["other"]) if name == "matmul" else (args["self"], args["mat2"])
        if not isinstance(left, Ref) or not isinstance(right, Ref) or role not in ("other", "mat2") or rank < 2:
            return None
        plain = len(graph.types[right.name].shape) == 2 and len(graph.types[left.name].shape) == rank
        return _call("updates", "matmul_weight", left, COUNT, rank) if plain else None
    if name not in _CONVOLUTIONS:
        return None
    if role == "bias":
        return _call("updates", "channel_bias", COUNT, rank)
    source = args["input"]
    if role != "weight" or not isinstance(source, Ref) or len(graph.types[source.name].shape) != rank:
        return None
    spatial = rank - 2
    padding = padding_of(args, graph, spatial)
    if padding is None:
        return None
    transposed = args["transposed"] if name == "convolution" else name.startswith("conv_transpose")
    return _call(
        "updates", "conv_weight", source, args["weight"], COUNT, repeated(args["stride"], spatial), padding,
        repeated(args["dilation"], spatial), transposed, repeated(args.get("output_padding", 0), spatial),
        args["groups"],
    )  # fmt: skip


def padding_of(args: dict[str, Argument], graph: OperatorGraph, spatial: int) -> tuple[Argument, ...] | None:
    """Padding as numbers; None where ``padding="same"`` pads one side more than the other."""
    padding = args["padding"]
    if padding == "valid":
        return (0,) * spatial
    if padding != "same":
        return repeated(padding, spatial)
    weight = args["weight"]
    assert isinstance(weight, Ref)
    kernel = graph.types[weight.name].shape[2:]
    dilation = repeated(args["dilation"], spatial)
    reach = [int(d) * (int(k) - 1) for d, k in zip(dilation, kernel, strict=True)]  # type: ignore[arg-type]
    return None if any(r % 2 for r in reach) else tuple(r // 2 for r in reach)


def _affine(name: str, operator: Operator, graph: OperatorGraph, args: dict[str, Argument], role: str) -> Call | None:
    source = args["input"]
    if not isinstance(source, Ref):
        return None
    rank = len(graph.types[source.name].shape)
    if name == "_native_batch_norm_legit_functional":
        if role == "bias":
            return _call("updates", "channel_bias", COUNT, rank)
        parts = {
            graph.by_name[n].args[1]: n
            for n in graph.users[operator.name]
            if graph.by_name[n].args[0] == Ref(operator.name)
        }
        if role != "weight" or 1 not in parts or 2 not in parts or args["training"] is not True:
            return None
        return _call("updates", "batch_norm_scale", source, Ref(parts[1]), Ref(parts[2]), COUNT, args["eps"])
    if "layer_norm" in name:
        shape = args["normalized_shape"]
        if role == "bias":
            return _call("updates", "layer_norm_shift", COUNT, rank, shape)
        return (
            _call("updates", "layer_norm_scale", source, COUNT, rank, shape, args["eps"]) if role == "weight" else None
        )
    if name == "group_norm":
        if role == "bias":
            return _call("updates", "channel_bias", COUNT, rank)
        return (
            _call("updates", "group_norm_scale", source, COUNT, rank, args["num_groups"], args["eps"])
            if role == "weight"
            else None
        )
    return None
