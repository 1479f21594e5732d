"""One-operator ONNX models: (operator, inputs, weights or sizes, attributes, operator set)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.unit.onnx_files import Array, floats, ints


@dataclass(frozen=True)
class Case:
    """An operator applied to ``inputs``, which are fed, and ``weights``, which stand in the file; None is left out."""

    kind: str
    inputs: tuple[Array, ...]
    weights: tuple[Array | None, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = 20
    outputs: int = 1

    def __str__(self) -> str:
        detail = "-".join(f"{key}={value}" for key, value in self.attributes.items())
        return f"{self.kind}-{self.opset}-{'x'.join(map(str, self.inputs[0].shape))}-{len(self.weights)}{detail}"


def one(
    kind: str,
    *inputs: Array,
    weights: tuple[Array | None, ...] = (),
    opset: int = 20,
    outputs: int = 1,
    **attributes: Any,
) -> Case:
    """A case, in few words."""
    return Case(kind, inputs, weights, attributes, opset, outputs)


X = floats(2, 3, 4)
IMAGE = floats(2, 4, 7, 6)
SIGNAL = floats(2, 4, 9)
TRUE = np.array([[True, False], [True, True]])
FALSE = np.array([[False, False], [True, False]])

UNARY = (
    "Abs", "Asinh", "Atan", "Ceil", "Cos", "Cosh", "Erf", "Exp", "Floor", "HardSwish", "Identity", "IsNaN", "Mish",
    "Neg", "Relu", "Round", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Tan", "Tanh", "Elu", "Celu",
    "Selu", "LeakyRelu", "HardSigmoid", "ThresholdedRelu", "Gelu", "Softmax", "LogSoftmax", "GlobalAveragePool",
    "Flatten", "Transpose",
)  # fmt: skip
POSITIVE = ("Log", "Sqrt", "Reciprocal", "Acosh")
SMALL = ("Acos", "Asin", "Atanh")
BINARY = (
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Max",
    "Min",
    "Sum",
    "Mean",
)
REDUCE = ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSumExp")


def cases() -> Iterator[Case]:
    """All of them."""
    yield from (one(kind, X) for kind in UNARY)
    yield from (one(kind, np.abs(X) + 1) for kind in POSITIVE)
    yield from (one(kind, np.tanh(X) * 0.9) for kind in SMALL)
    yield from (one(kind, X, floats(3, 1, seed=1)) for kind in BINARY)
    yield from (one(kind, TRUE, FALSE) for kind in ("And", "Or", "Xor"))
    yield one("Not", TRUE)
    yield one("Where", TRUE, floats(2, 2), floats(2, 2, seed=1))
    yield one("Div", ints(7, -7, 8), ints(2, 2, -3))
    yield one("Mod", ints(7, -7, 8), ints(2, 3, -3))
    yield one("Mod", X, floats(4, seed=1), fmod=1)
    yield one("Pow", np.abs(X), weights=(np.array(1.5, np.float32),))
    yield one("Pow", ints(2, 3), weights=(ints(3),))
    yield one("PRelu", IMAGE, weights=(floats(4, 1, 1),))
    yield one("Elu", X, alpha=0.3)
    yield one("Selu", X, alpha=1.2, gamma=0.7)
    yield one("Gelu", X, approximate="tanh")
    yield one("Clip", X, weights=(np.array(-0.5, np.float32), np.array(0.5, np.float32)))
    yield one("Clip", X, weights=(None, np.array(0.5, np.float32)))
    yield one("Clip", X, opset=6, min=-0.5, max=0.25)
    yield one("Softmax", X, axis=1)
    yield one("IsInf", np.array([np.inf, -np.inf, 1], np.float32), detect_negative=0)
    yield one("Dropout", X, opset=9, ratio=0.5)
    # products
    yield one("MatMul", X, weights=(floats(4, 5),))
    yield one("MatMul", X, floats(2, 4, 3))
    yield one("Gemm", floats(3, 4), weights=(floats(5, 4), floats(5)), transB=1)
    yield one("Gemm", floats(4, 3), weights=(floats(4, 5), floats(3, 1)), transA=1, alpha=0.5, beta=2.0)
    yield one("Einsum", X, floats(4, 5), equation="bij,jk->bik")
    # windows
    for opset in (11, 20):
        yield one(
            "Conv",
            IMAGE,
            weights=(floats(6, 2, 3, 3), floats(6)),
            opset=opset,
            group=2,
            strides=[2, 1],
            pads=[1, 1, 1, 1],
        )
    yield one("Conv", IMAGE, weights=(floats(3, 4, 3, 2),), dilations=[2, 1], pads=[0, 1, 2, 0])
    yield one("Conv", SIGNAL, weights=(floats(3, 4, 3),), auto_pad="SAME_UPPER", strides=[2])
    yield one("Conv", SIGNAL, weights=(floats(3, 4, 4),), auto_pad="SAME_LOWER")
    yield one(
        "ConvTranspose",
        IMAGE,
        weights=(floats(4, 3, 3, 3), floats(3)),
        strides=[2, 2],
        pads=[1, 1, 1, 1],
        output_padding=[1, 1],
    )
    yield one("ConvTranspose", SIGNAL, weights=(floats(4, 3, 3),), strides=[2], pads=[0, 1])
    yield one("MaxPool", IMAGE, kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 0])
    yield one("MaxPool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], pads=[0, 1, 1, 1])
    yield one("MaxPool", IMAGE, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
    yield one("AveragePool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    yield one("AveragePool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 0, 1, 0], count_include_pad=1)
    yield one(
        "Resize",
        IMAGE,
        weights=(None, np.array([1, 1, 2, 2], np.float32)),
        mode="nearest",
        nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
    )
    yield one("Resize", IMAGE, weights=(None, np.array([1, 1, 2, 1.5], np.float32)), mode="nearest")
    yield one("Resize", IMAGE, weights=(None, np.array([1, 1, 2, 2], np.float32)), mode="linear")
    yield one(
        "Resize",
        IMAGE,
        weights=(None, None, ints(2, 4, 11, 9)),
        mode="linear",
        coordinate_transformation_mode="align_corners",
    )
    yield one("GlobalMaxPool", IMAGE)
    yield one("GlobalAveragePool", IMAGE)
    yield one("DepthToSpace", IMAGE[:, :, :4, :4], blocksize=2)
    yield one("DepthToSpace", IMAGE[:, :, :4, :4], blocksize=2, mode="CRD")
    yield one("SpaceToDepth", IMAGE[:, :, :4, :4], blocksize=2)
    yield one("GridSample", IMAGE, np.tanh(floats(2, 3, 3, 2, seed=1)), mode="linear")
    # normalisation
    yield one("BatchNormalization", IMAGE, weights=(floats(4), floats(4), floats(4), np.abs(floats(4))))
    yield one("LayerNormalization", X, weights=(floats(4), floats(4)), axis=-1)
    yield one("LayerNormalization", X, weights=(floats(3, 4),), axis=1)
    yield one("InstanceNormalization", IMAGE, weights=(floats(4), floats(4)))
    yield one("GroupNormalization", IMAGE, weights=(floats(4), floats(4)), num_groups=2, opset=21)
    yield one("LRN", floats(4, 4, 3, 3), size=3)
    yield one("LpNormalization", X, axis=1)
    # reductions
    for name in REDUCE:
        yield one(f"Reduce{name}", X, weights=(ints(0, 2),), keepdims=0)
        yield one(f"Reduce{name}", X, opset=11, axes=[1])
    yield one("ReduceSum", X)
    yield one("ReduceMax", X, weights=(np.zeros(0, np.int64),), noop_with_empty_axes=1)
    yield one("ArgMax", X, axis=1, keepdims=0)
    yield one("ArgMin", X, axis=2, select_last_index=1)
    yield one("TopK", X, weights=(ints(2),), axis=-1, outputs=2)
    yield one("CumSum", X, weights=(np.array(1, np.int64),), exclusive=1, reverse=1)
    # shapes
    yield one("Shape", X, start=1)
    yield one("Size", X)
    yield one("Reshape", X, weights=(ints(0, -1),))
    yield one("Flatten", X, axis=2)
    yield one("Flatten", X, axis=0)
    yield one("Transpose", X, perm=[1, 2, 0])
    yield one("Squeeze", floats(2, 1, 3, 1), weights=(ints(-1),))
    yield one("Squeeze", floats(2, 1, 3, 1), opset=11)
    yield one("Unsqueeze", X, weights=(ints(0, -1),))
    yield one("Unsqueeze", X, opset=11, axes=[1])
    yield one("Concat", X, floats(2, 1, 4), axis=1)
    yield one("Split", X, weights=(ints(1, 3),), axis=2, outputs=2)
    yield one("Split", floats(7, 2), num_outputs=3, outputs=3)
    yield one("Expand", floats(3, 1), weights=(ints(2, 1, 5),))
    yield one("Tile", X, weights=(ints(1, 2, 3),))
    yield one("Slice", X, weights=(ints(1, -3), ints(9, -1), ints(0, 2)))
    yield one("Slice", X, weights=(ints(-1), ints(-100), ints(2), ints(-2)))
    yield one("Slice", X, opset=9, starts=[0, 1], ends=[2, 3], axes=[0, 2])
    yield one("Gather", X, weights=(ints(-1, 0),), axis=1)
    yield one("Gather", X, weights=(np.array(1, np.int64),), axis=2)
    yield one("GatherElements", X[:, :2], weights=(ints([[0, -1], [1, 2]], [[3, 0], [0, -4]]),), axis=2)
    yield one("GatherND", X, weights=(ints([0, 1], [1, 2]),))
    yield one("ScatterElements", X, weights=(ints([[0, 1]]), floats(1, 1, 2)), axis=2)
    yield one("ScatterElements", X, weights=(ints([[0, 1]]), floats(1, 1, 2)), axis=2, reduction="add")
    yield one("ScatterND", X, weights=(ints([0, 1], [1, 2]), floats(2, 4)))
    yield one("NonZero", np.sign(X))
    yield one("Trilu", floats(4, 5), weights=(np.array(1, np.int64),), upper=0)
    for mode in ("constant", "reflect", "edge"):
        yield one("Pad", X, weights=(ints(0, 1, 2, 0, 1, 0),), mode=mode)
    yield one("Pad", X, weights=(ints(0, 1, 0, 1), np.array(2, np.float32), ints(0, 2)))
    yield one("EyeLike", floats(3, 4), k=1)
    yield one("OneHot", ints(1, -1, 0), weights=(np.array(3, np.int64), floats(2)), axis=0)
    yield one("Cast", X, to=7)
    yield one("Cast", ints(0, 2), to=9)
    yield one("CastLike", X, ints(1))
