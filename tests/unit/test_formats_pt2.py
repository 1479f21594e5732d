"""Programs saved by torch.export: what comes back, and files that are damaged, or something else."""

from __future__ import annotations

import contextlib
import copy
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from reclra_graph.errors import ModelError
from reclra_graph.model_file import LoadedModel, load_model
from tests.unit.pt2_files import Net, edited, graph_edited, refused, save_net


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pt2") / "net.pt2"
    save_net(path)
    return path


def test_module_tree_and_inputs_come_back(saved: Path) -> None:
    loaded = load_model(str(saved))
    assert isinstance(loaded, LoadedModel)
    assert loaded.name == "net"
    assert set(loaded.model.state_dict()) == set(Net().state_dict())
    assert [type(module).__name__ for module in loaded.model.modules()] == ["Net", "Sequential", "Linear", "Linear"]
    assert loaded.example_inputs[0].shape == (5, 4)
    assert loaded.example_kwargs["scale"]["by"].shape == (3,)
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())


def test_it_runs_trains_and_can_be_copied(saved: Path) -> None:
    loaded = load_model(str(saved))
    original = Net()
    original.load_state_dict(loaded.model.state_dict())
    scale = {"by": torch.full((3,), 2.0)}
    for model in (loaded.model.train(), copy.deepcopy(loaded.model).eval()):
        x = torch.randn(7, 4)
        assert torch.equal(model(x, scale=scale)["logits"], original(x, scale=scale)["logits"])
        assert torch.equal(model(x=x, scale=scale)["logits"], original(x, scale=scale)["logits"])
    loaded.model(torch.randn(7, 4), scale=scale)["logits"].sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.model.parameters())
    with pytest.raises(TypeError, match=r"takes \(x, scale=\)"):
        loaded.model(torch.randn(7, 4))


def test_input_option_replaces_the_stored_inputs(saved: Path) -> None:
    assert load_model(str(saved), ["3x4"]).example_inputs[0].shape == (3, 4)


def test_a_program_without_stored_inputs(saved: Path, tmp_path: Path) -> None:
    path = edited(saved, tmp_path, {"data/sample_inputs/model.pt": lambda _: b""})
    assert refused(path).codes == ("RG106",)
    assert load_model(str(path), ["3x4"]).example_inputs[0].shape == (3, 4)


# -- damaged files, and others ----------------------------------------------------------------------------------------


def test_missing_and_folder(tmp_path: Path) -> None:
    assert refused(tmp_path / "missing.pt2").codes == ("RG101",)
    (tmp_path / "folder.pt2").mkdir()
    assert refused(tmp_path / "folder.pt2").codes == ("RG102",)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.99])
def test_cut_short(saved: Path, tmp_path: Path, share: float) -> None:
    content = saved.read_bytes()
    path = tmp_path / "net.pt2"
    path.write_bytes(content[: int(len(content) * share)])
    assert refused(path).codes == ("RG110",)


@pytest.mark.parametrize(
    "content", [b"model = 3\n", b"PK\x03\x04 and no more", b"\x89PNG\r\n", b"PK\x05\x06" + bytes(18)]
)
def test_not_a_program(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "net.pt2").write_bytes(content)
    assert refused(tmp_path / "net.pt2").codes == ("RG110",)


def test_bits_that_fell_over(saved: Path, tmp_path: Path) -> None:
    content = bytearray(saved.read_bytes())
    path = tmp_path / "net.pt2"
    for start in range(0, len(content), 997):
        content[start] ^= 0xFF
        path.write_bytes(content)
        with contextlib.suppress(ModelError):  # and no other
            load_model(str(path))
        content[start] ^= 0xFF


def test_another_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "net.pt2", "w") as archive:
        archive.writestr("net/readme.txt", "nothing")
    assert refused(tmp_path / "net.pt2").codes == ("RG110",)


def test_another_version_of_the_schema(saved: Path, tmp_path: Path) -> None:
    def newer(model: Any) -> None:
        model["schema_version"]["major"] = 999

    (problem,) = refused(graph_edited(saved, tmp_path, newer)).problems
    assert problem.code == "RG110"
    assert "999" in problem.cause


def test_operators_of_other_libraries_are_named(saved: Path, tmp_path: Path) -> None:
    def foreign(model: Any) -> None:
        nodes = model["graph_module"]["graph"]["nodes"]
        nodes[0]["target"] = "torch.ops.mylib.first.default"
        nodes[1]["target"] = "torch.ops.mylib.second.default"

    error = refused(graph_edited(saved, tmp_path, foreign))
    assert error.codes == ("RG205", "RG205")
    assert "mylib.first" in error.problems[0].cause
