"""ONNX files: which tensors train, which inputs are made, and every way in which a file can be wrong."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from reclra_graph.errors import ModelError
from reclra_graph.model_file import load_model
from tests.unit.command import Call
from tests.unit.onnx_files import floats, load, model, node, refused

MLP = [
    node("Gemm", "x a.weight a.bias", "h", transB=1, name="/a/Gemm"),
    node("Tanh", "h", "z", name="/Tanh"),
    node("Gemm", "z b.weight b.bias", "y", transB=1, name="/b/Gemm"),
]
WEIGHTS = {"a.weight": floats(3, 4), "a.bias": floats(3), "b.weight": floats(2, 3), "b.bias": floats(2)}


def test_weights_keep_their_names_and_train(tmp_path: Path) -> None:
    loaded = load(tmp_path, model(MLP, {"x": ("N", 4)}, WEIGHTS))
    assert loaded.name == "net"
    assert type(loaded.model).__name__ == "made"
    assert list(loaded.model.state_dict()) == ["a.weight", "a.bias", "b.weight", "b.bias"]
    assert all(isinstance(item, nn.Parameter) for item in loaded.model.parameters())
    (x,) = loaded.example_inputs
    assert x.shape == (2, 4)
    a, b = (WEIGHTS[name] for name in ("a.weight", "b.weight"))
    h = np.tanh(x.numpy() @ a.T + WEIGHTS["a.bias"])
    wanted = h @ b.T + WEIGHTS["b.bias"]
    for each in (loaded.model, copy.deepcopy(loaded.model).train()):
        np.testing.assert_allclose(each(x).detach().numpy(), wanted, rtol=1e-5, atol=1e-6)
    loaded.model(x).sum().backward()
    assert all(item.grad is not None for item in loaded.model.parameters())


def test_what_does_not_train(tmp_path: Path) -> None:
    nodes = [
        node("BatchNormalization", "x scale shift mean var", "n"),
        node("Clip", "n - high", "c"),
        node("Mul", "c half", "m"),
        node("Where", "keep m fill", "w"),
        node("Add", "w mask", "y"),
    ]
    weights = {
        "scale": floats(3), "shift": floats(3), "mean": floats(3), "var": np.ones(3, np.float32),
        "high": np.array(6, np.float32), "half": np.array(0.5, np.float32), "keep": np.array([True, False, True]),
        "fill": np.array([-1e9], np.float32), "mask": np.array([0, -np.inf, 0], np.float32),
    }  # fmt: skip
    loaded = load(tmp_path, model(nodes, {"x": (2, 3)}, weights))
    assert [name for name, _ in loaded.model.named_parameters()] == ["scale", "shift"]
    assert {name for name, _ in loaded.model.named_buffers()} == {"mean", "var", "fill", "mask"}


def test_a_single_factor_trains_where_it_has_a_name_of_its_own(tmp_path: Path) -> None:
    nodes = [node("Mul", "x val_7", "a"), node("Mul", "a scale", "b"), node("Add", "b val_8", "y")]
    weights = {name: floats(1) for name in ("val_7", "scale", "val_8")}
    loaded = load(tmp_path, model(nodes, {"x": (2, 3)}, weights))
    assert [name for name, _ in loaded.model.named_parameters()] == ["scale", "val_8"]


def test_embedding_table_and_shared_weights(tmp_path: Path) -> None:
    nodes = [
        node("Identity", "table", "same"),
        node("Gather", "table ids", "e"),
        node("Transpose", "same", "t", perm=[1, 0]),
        node("MatMul", "e t", "y"),
    ]
    proto = model(nodes, {"ids": ("N", 5)}, {"table": floats(7, 3)}, kinds={"ids": TensorProto.INT64})
    loaded = load(tmp_path, proto)
    assert [name for name, _ in loaded.model.named_parameters()] == ["table"]
    assert loaded.example_inputs[0].dtype is torch.int64
    assert loaded.model(torch.tensor([[1, 2, 3, 4, 5]])).shape == (1, 5, 7)


def test_names_that_modules_cannot_have(tmp_path: Path) -> None:
    nodes = [node("Add", f"{'x' if not index else f'v{index}'} {name}", f"v{index + 1}") for index, name in enumerate(
        ("a", "a.b", "training", "onnx::Add_3", "forward.x", ".")
    )]  # fmt: skip
    weights = {name: floats(3) for name in ("a", "a.b", "training", "onnx::Add_3", "forward.x", ".")}
    loaded = load(tmp_path, model(nodes, {"x": (2, 3)}, weights, outputs="v6"))
    names = [name for name, _ in loaded.model.named_parameters()]
    assert len(set(names)) == 6
    x = loaded.example_inputs[0]
    total = x + torch.from_numpy(sum(weights.values()))
    torch.testing.assert_close(loaded.model(x), total)


def test_several_outputs_are_a_dict(tmp_path: Path) -> None:
    nodes = [node("Relu", "x", "logits"), node("Shape", "x", "sizes")]
    proto = model(nodes, {"x": (2, 3)}, {}, outputs="logits sizes", kinds={"sizes": TensorProto.INT64})
    loaded = load(tmp_path, proto)
    result = loaded.model(*loaded.example_inputs)
    assert list(result) == ["logits", "sizes"]
    assert result["sizes"].tolist() == [2, 3]


def test_functions_of_the_file_are_inlined(tmp_path: Path) -> None:
    proto = model([node("Twice", "x", "y", domain="mine")], {"x": (2, 3)}, {})
    body = [node("Add", "a a", "b")]
    proto.functions.append(helper.make_function("mine", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 20)]))
    loaded = load(tmp_path, proto)
    x = loaded.example_inputs[0]
    assert torch.equal(loaded.model(x), 2 * x)


def test_inputs_by_keyword_and_wrong_calls(tmp_path: Path) -> None:
    loaded = load(tmp_path, model(MLP, {"x": ("N", 4)}, WEIGHTS), "x=3x4")
    assert loaded.example_kwargs["x"].shape == (3, 4)
    assert loaded.model(**loaded.example_kwargs).shape == (3, 2)
    with pytest.raises(TypeError, match="takes"):
        loaded.model()


# -- inputs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "made"),
    [
        ((3, 4), (3, 4)),
        (("batch", 4), (2, 4)),
        ((None, 4), (2, 4)),
        (("N", 4, "N"), (2, 4, 2)),
        (("N", "time"), None),
        (("N", None, 4), None),
    ],
)
def test_shapes_of_inputs(tmp_path: Path, shape: tuple[int | str | None, ...], made: tuple[int, ...] | None) -> None:
    proto = model([node("Relu", "x", "y")], {"x": shape}, {})
    if made is not None:
        assert load(tmp_path, proto).example_inputs[0].shape == made
        return
    (problem,) = refused(tmp_path, proto).problems
    assert problem.code == "RG106"
    assert "--input 2x" in problem.advice
    assert load(tmp_path, proto, "2x7x4").example_inputs[0].shape == (2, 7, 4)


def test_an_input_that_is_no_tensor(tmp_path: Path) -> None:
    proto = model([node("Relu", "x", "y")], {"x": (2, 3)}, {})
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, (2,)))
    proto.graph.input.append(helper.make_value_info("more", kind))
    proto.graph.input.append(helper.make_tensor_value_info("words", TensorProto.STRING, (2,)))
    error = refused(tmp_path, proto)
    assert error.codes == ("RG114", "RG114")
    assert "sequence_type" in error.problems[0].cause


def test_a_graph_without_inputs(tmp_path: Path) -> None:
    proto = model([node("Relu", "w", "y")], {}, {"w": floats(3)})
    assert refused(tmp_path, proto).codes == ("RG114",)


# -- wrong files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"x = 3\n", b"\x80\x04\x95", b"PK\x03\x04", bytes(range(256)), b"\x08\x0a"])
def test_not_onnx(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(ModelError) as caught:
        load_model(str(tmp_path / "net.onnx"))
    assert caught.value.codes == ("RG112",)


def test_missing_and_folder(tmp_path: Path) -> None:
    (tmp_path / "folder.onnx").mkdir()
    for name, code in (("missing.onnx", "RG101"), ("folder.onnx", "RG102")):
        with pytest.raises(ModelError) as caught:
            load_model(str(tmp_path / name))
        assert caught.value.codes == (code,)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_cut_short(tmp_path: Path, share: float) -> None:
    content = model(MLP, {"x": ("N", 4)}, WEIGHTS).SerializeToString()
    (tmp_path / "net.onnx").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ModelError) as caught:
        load_model(str(tmp_path / "net.onnx"))
    assert caught.value.codes == ("RG112",)


def test_bits_that_fell_over(tmp_path: Path) -> None:
    content = bytearray(model(MLP, {"x": ("N", 4)}, WEIGHTS).SerializeToString())
    for place in range(0, len(content), 5):
        content[place] ^= 0xFF
        (tmp_path / "net.onnx").write_bytes(content)
        with contextlib.suppress(ModelError):  # and no other
            load_model(str(tmp_path / "net.onnx"))
        content[place] ^= 0xFF


def test_a_graph_that_the_checker_refuses(tmp_path: Path) -> None:
    proto = model([node("Relu", "nowhere", "y")], {"x": (2, 3)}, {})
    (problem,) = refused(tmp_path, proto).problems
    assert problem.code == "RG112"
    assert "nowhere" in problem.cause


def test_an_old_operator_set(tmp_path: Path) -> None:
    proto = model([node("Relu", "x", "y")], {"x": (2, 3)}, {}, opset=6)
    assert refused(tmp_path, proto).codes == ("RG114",)


def beside(folder: Path) -> Path:
    path = folder / "net.onnx"
    weights = WEIGHTS | {"a.weight": floats(3, 4)}
    onnx.save(
        model(MLP, {"x": ("N", 4)}, weights), path, save_as_external_data=True, location="net.data", size_threshold=0
    )
    return path


def test_tensors_in_a_file_beside_it(tmp_path: Path) -> None:
    loaded = load_model(str(beside(tmp_path)))
    np.testing.assert_array_equal(loaded.model.get_parameter("a.weight").detach().numpy(), floats(3, 4))


def test_the_file_beside_it_is_missing_or_cut_short(tmp_path: Path) -> None:
    path = beside(tmp_path)
    data = tmp_path / "net.data"
    data.write_bytes(data.read_bytes()[:20])
    for word in ("cut short", "not there"):
        with pytest.raises(ModelError) as caught:
            load_model(str(path))
        (problem,) = caught.value.problems
        assert problem.code == "RG113"
        assert word in problem.cause
        assert problem.place == str(data)
        data.unlink(missing_ok=True)


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "a/../../b"])
def test_tensors_outside_its_own_folder(tmp_path: Path, location: str) -> None:
    path = beside(tmp_path)
    proto = onnx.load(path, load_external_data=False)
    for item in proto.graph.initializer:
        for entry in item.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError) as caught:
        load_model(str(path))
    assert caught.value.codes == ("RG113",)
    assert "outside" in caught.value.problems[0].cause


def test_each_operator_that_is_not_known_is_named(tmp_path: Path) -> None:
    branch = helper.make_graph([node("Relu", "x", "b")], "b", [], [helper.make_tensor_value_info("b", 1, None)])
    nodes = [
        node("Hardmax", "x", "a", name="first"),
        node("Hardmax", "a", "b1"),
        node("FastGelu", "b1", "c", domain="com.microsoft"),
        node("If", "yes", "d", then_branch=branch, else_branch=branch),
        node("MaxPool", "images", "p i", kernel_shape=[2, 2]),
        node("GRU", "steps w r", "g", hidden_size=1),
        node("Add", "c d", "y"),
    ]
    weights = {"yes": np.array(True), "w": floats(1, 3, 2), "r": floats(1, 3, 1)}
    inputs = {"x": (2, 3), "images": (1, 1, 4, 4), "steps": (2, 1, 2)}
    error = refused(tmp_path, model(nodes, inputs, weights, outputs="y g p i", kinds={"i": TensorProto.INT64}))
    assert set(error.codes) == {"RG114"}
    assert [problem.cause for problem in error.problems] == [
        "the operator Hardmax is not known (2 times)",
        "the operator com.microsoft::FastGelu is not known",
        "the operator If is not known",
        "MaxPool: its output 2 is used",
        "GRU: linear_before_reset is 0",
    ]
    assert error.problems[0].place.endswith("net.onnx: first")


def test_other_things_that_cannot_be_read(tmp_path: Path) -> None:
    proto = model([node("Relu", "x", "y")], {"x": (2, 3)}, {})
    values = helper.make_tensor("s", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("si", TensorProto.INT64, [1], [0])
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [3]))
    proto.graph.initializer.append(helper.make_tensor("words", TensorProto.STRING, [1], [b"a"]))
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["t"], value_string="text"))
    error = refused(tmp_path, proto)
    assert error.codes == ("RG114",) * 3
    assert [problem.cause for problem in error.problems] == [
        "Constant with value_string",
        "sparse weights",
        "the weight 'words' holds text",
    ]


def test_the_command_line_compiles_one(reclra: Call, tmp_path: Path) -> None:
    onnx.save(model(MLP, {"x": ("N", 4)}, WEIGHTS), tmp_path / "net.onnx")
    value = reclra("compile", "net.onnx", "--json").json()
    assert value["ok"] is True
    assert [region["name"] for region in value["regions"]] == ["input", "a", "b"]
    (tmp_path / "bad.onnx").write_bytes(b"")
    result = reclra("compile", "bad.onnx", "--json")
    assert result.status == 1
    assert result.codes() == ["RG112"]
