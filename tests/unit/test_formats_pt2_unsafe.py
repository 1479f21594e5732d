"""Files with the name of a saved program that would run code: pickles in disguise, libraries, code in the graph."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from reclra_graph.formats.pt2_scan import _plain_expression
from reclra_graph.model_file import load_model
from tests.unit.command import Call
from tests.unit.pt2_files import Bomb, edited, graph_edited, refused, save_net, torch_saved

SIZE = "Symbol('s77', positive=True, integer=True)"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pt2") / "net.pt2"
    save_net(path)
    return path


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """The file that exists where something was run."""
    path = tmp_path / "it_ran"
    assert os.system(f"touch {path}") == 0
    assert path.exists()
    path.unlink()
    return path


def pickled_entry(kind: str, path_name: str, config: str) -> Callable[[bytes], bytes]:
    def rewrite(old: bytes) -> bytes:
        value = json.loads(old)
        entry = next(iter(value["config"].values()))
        value["config"]["body.0.weight" if kind == "weights" else "bomb"] = {
            **entry,
            "path_name": path_name,
            "use_pickle": config == "pickle",
        }
        return json.dumps(value).encode()

    return rewrite


WEIGHTS, CONSTANTS = "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"


def test_a_pickle_in_disguise(tmp_path: Path, trace: Path) -> None:
    path = tmp_path / "net.pt2"
    for protocol in range(2, 6):
        path.write_bytes(pickle.dumps(Bomb(trace), protocol))
        assert refused(path).codes == ("RG111",)
    path.write_bytes(pickle.dumps(Bomb(trace), 0))
    assert refused(path).codes == ("RG110",)
    torch.save(Bomb(trace), path)
    assert refused(path).codes == ("RG111",)
    torch.save(Bomb(trace), path, _use_new_zipfile_serialization=False)
    assert refused(path).codes == ("RG111",)
    assert not trace.exists()


def test_a_pickle_in_an_archive_of_the_older_format(tmp_path: Path, trace: Path) -> None:
    path = tmp_path / "net.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("version", "8.8")
        archive.writestr("serialized_exported_program.json", "{}")
        for name in ("state_dict", "constants", "example_inputs"):
            archive.writestr(f"serialized_{name}.pt", torch_saved(Bomb(trace)))
    assert refused(path).codes == ("RG110",)
    assert not trace.exists()


@pytest.mark.parametrize("place", ["samples", "weights", "legacy weights", "constants", "custom", "opaque", "library"])
def test_pickles_and_libraries_inside_a_program(saved: Path, tmp_path: Path, trace: Path, place: str) -> None:
    bomb = lambda _: torch_saved((Bomb(trace),))  # noqa: E731
    bare = lambda _: pickle.dumps(Bomb(trace))  # noqa: E731
    changes: dict[str, dict[str, Callable[[bytes], bytes]]] = {
        "samples": {"data/sample_inputs/model.pt": bomb},
        "weights": {"data/weights/weight_0": bomb, WEIGHTS: pickled_entry("weights", "weight_0", "pickle")},
        "legacy weights": {"data/weights/model.pt": bomb},
        "constants": {"data/constants/tensor_9": bomb, CONSTANTS: pickled_entry("constants", "tensor_9", "pickle")},
        "custom": {"data/constants/custom_obj_0": bomb, CONSTANTS: pickled_entry("constants", "custom_obj_0", "")},
        "opaque": {"data/constants/opaque_obj_0": bare, CONSTANTS: pickled_entry("constants", "opaque_obj_0", "")},
        "library": {"data/aotinductor/model/model.so": lambda _: b"\x7fELF"},
    }
    error = refused(edited(saved, tmp_path, changes[place]))
    assert set(error.codes) == {"RG111"}
    assert not trace.exists()


def call(trace: Path) -> str:
    return f"__import__('os').system('touch {trace}')"


def in_size(model: Any, text: str) -> None:
    model["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0]["as_expr"]["expr_str"] = text


def in_input_name(model: Any, text: str) -> None:
    graph = model["graph_module"]["graph"]
    name = f"x={text}"
    graph["tensor_values"][name] = graph["tensor_values"].pop("x")
    for item in (*graph["inputs"], *(entry["arg"] for node in graph["nodes"] for entry in node["inputs"])):
        if item.get("as_tensor", {}).get("name") == "x":
            item["as_tensor"]["name"] = name
    for spec in model["graph_module"]["signature"]["input_specs"]:
        if spec.get("user_input", {}).get("arg", {}).get("as_tensor", {}).get("name") == "x":
            spec["user_input"]["arg"]["as_tensor"]["name"] = name


def in_keyword(model: Any, text: str) -> None:
    signature = model["graph_module"]["module_call_graph"][0]["signature"]
    signature["in_spec"] = signature["in_spec"].replace("scale", f"a': {text}, 'b")


def in_guard(model: Any, text: str) -> None:
    model["guards_code"] = [text]


def in_enumeration(model: Any, text: str) -> None:
    signature = model["graph_module"]["module_call_graph"][0]["signature"]
    value = json.loads(signature["in_spec"])
    context = {"__enum__": True, "fqn": "bomb_module:Bomb", "name": "A"}
    value[1]["children_spec"][1]["context"] = json.dumps([context])
    signature["in_spec"] = json.dumps(value)


@pytest.mark.parametrize("edit", [in_size, in_input_name, in_keyword, in_enumeration])
def test_code_in_the_graph(
    saved: Path, tmp_path: Path, trace: Path, edit: Callable[[Any, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bomb_module.py").write_text(f"import os\nos.system('touch {trace}')\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = graph_edited(saved, tmp_path, lambda model: edit(model, call(trace)))
    assert "RG111" in refused(path).codes
    assert not trace.exists()


def test_guards_are_never_compiled(saved: Path, tmp_path: Path, trace: Path) -> None:
    path = graph_edited(saved, tmp_path, lambda model: in_guard(model, f"{call(trace)} == 0"))
    loaded = load_model(str(path))
    loaded.model(*loaded.example_inputs, **loaded.example_kwargs)
    assert not trace.exists()


@pytest.mark.parametrize("place", ["samples", "size", "guard"])
def test_the_same_files_do_run_code_elsewhere(saved: Path, tmp_path: Path, trace: Path, place: str) -> None:
    if place == "samples":
        path = edited(saved, tmp_path, {"data/sample_inputs/model.pt": lambda _: torch_saved((Bomb(trace),))})
    else:
        edit = in_size if place == "size" else in_guard
        path = graph_edited(saved, tmp_path, lambda model: edit(model, f"{call(trace)} == 0"))
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.suppress(Exception):
            torch.export.load(path).module()(torch.zeros(5, 4), scale={"by": torch.ones(3)})
    finally:
        logging.disable(logging.NOTSET)
    assert trace.exists()


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        (SIZE, True),
        (f"Add(Mul(Integer(2), {SIZE}), Integer(-1))", True),
        (f"FloorDiv(Add({SIZE}, Integer(1)), Integer(2))", True),
        ("Max(1, s0 + 3)", True),
        ("Float('0.5', precision=53)", True),
        (f"StrictLessThan({SIZE}, Integer(9))", True),
        ("Symbol(__import__('os').name)", False),
        ("exec('1')", False),
        ("eval", True),  # a name by itself does nothing
        ("s0.__class__", False),
        ("(lambda: 1)()", False),
        ("[1 for _ in s0]", False),
        ("Symbol('s0')('x')", False),
        ("Integer('os.name')", False),
        ("Symbol('s0; import os')", False),
        ("f'{s0}'", False),
        ("s0 if s0 else s1", False),
        ("(", False),
        ("", False),
    ],
)
def test_sizes_are_arithmetic(text: str, plain: bool) -> None:
    assert _plain_expression(text) is plain


def test_the_command_line_tells_it(reclra: Call, trace: Path) -> None:
    torch.save(Bomb(trace), "net.pt2")
    result = reclra("compile", "net.pt2", "--json")
    assert result.status == 1
    assert result.codes() == ["RG111"]
    assert not trace.exists()
    assert not Path("build").exists()
