"""Example inputs: every form that a file may give them in, ``--input``, and every way in which they can be wrong."""

from __future__ import annotations

import collections
import dataclasses
import json
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import reclra_graph.api
from reclra_graph.errors import ModelError, Problem, UsageError
from reclra_graph.example_inputs import call_of, checked, leaves, make_input
from reclra_graph.model_file import LoadedModel, load_model
from tests.unit.command import GOOD, Call
from tests.unit.command import write as write_here

HEAD = "import torch\nfrom torch import nn\nmodel = nn.Linear(4, 2)\n"
Pair = collections.namedtuple("Pair", ["first", "second"])


@dataclasses.dataclass
class Batch:
    image: Any
    label: Any = None


def loaded(folder: Path, text: str, *inputs: str) -> LoadedModel:
    path = folder / "net.py"
    path.write_text(HEAD + textwrap.dedent(text), encoding="utf-8")
    return load_model(str(path), inputs)


def refused(folder: Path, text: str, *inputs: str) -> tuple[str, ...]:
    with pytest.raises(ModelError) as caught:
        loaded(folder, text, *inputs)
    assert all(problem.place and problem.cause and problem.advice for problem in caught.value.problems)
    return caught.value.codes


@pytest.mark.parametrize("value", ["torch.zeros(5, 4)", "[torch.zeros(5, 4)]", "nn.Parameter(torch.zeros(5, 4))"])
def test_one_tensor_or_a_list(tmp_path: Path, value: str) -> None:
    found = loaded(tmp_path, f"example_inputs = {value}\n")
    (example,) = found.example_inputs
    assert tuple(example.shape) == (5, 4)
    assert not example.requires_grad
    assert found.example_kwargs == {}


def test_nests_and_constants(tmp_path: Path) -> None:
    found = loaded(
        tmp_path, "example_inputs = ({'ids': torch.zeros(2, 3), 'more': [torch.ones(3, 1), None]}, True, 2.5, 'same')\n"
    )
    first, *rest = found.example_inputs
    assert first["ids"].shape == (2, 3)
    assert first["more"][1] is None
    assert rest == [True, 2.5, "same"]


def test_a_mapping_holds_keyword_arguments(tmp_path: Path) -> None:
    found = loaded(tmp_path, "example_inputs = {'input_ids': torch.zeros(2, 3), 'mask': None}\n")
    assert found.example_inputs == ()
    assert list(found.example_kwargs) == ["input_ids", "mask"]


def test_example_kwargs_beside_example_inputs(tmp_path: Path) -> None:
    found = loaded(tmp_path, "example_inputs = torch.zeros(2, 3)\nexample_kwargs = {'scale': torch.ones(1)}\n")
    assert len(found.example_inputs) == 1
    assert found.example_kwargs["scale"].shape == (1,)
    alone = loaded(tmp_path, "example_kwargs = {'x': torch.ones(2, 3)}\n")
    assert alone.example_inputs == ()
    assert alone.example_kwargs["x"].shape == (2, 3)


def test_inputs_need_not_share_a_batch(tmp_path: Path) -> None:
    found = loaded(tmp_path, "example_inputs = (torch.zeros(7, 4), torch.zeros(2, 12, dtype=torch.int64))\n")
    assert [tuple(item.shape) for item in found.example_inputs] == [(7, 4), (2, 12)]


def test_a_named_tuple_or_dataclass_is_one_argument() -> None:
    for value in (Pair(torch.zeros(2, 3), 1), Batch(torch.zeros(2, 3))):
        args, kwargs, problems = call_of(value, None, "net.py")
        assert args == (value,)
        assert kwargs == {}
        assert problems == []


def test_places_of_leaves() -> None:
    found = [place for place, _ in leaves((Pair(1, [2]), Batch(3)), {"x": {"y": 4}})]
    assert found == [
        "example_inputs[0].first",
        "example_inputs[0].second[0]",
        "example_inputs[1].image",
        "example_inputs[1].label",
        "example_inputs['x']['y']",
    ]


@pytest.mark.parametrize(
    ("value", "codes"),
    [
        ("()", ("RG107",)),
        ("{}", ("RG107",)),
        ("3", ("RG107",)),
        ("'x'", ("RG107",)),
        ("(None, 'x', 3)", ("RG107",)),
        ("torch.tensor(1.0)", ("RG107",)),
        ("(torch.tensor(1.0), torch.tensor(2))", ("RG107",)),
        ("torch.zeros(0, 4)", ("RG107",)),
        ("(torch.zeros(2, 4), torch.zeros(2, 0))", ("RG107",)),
        ("{'not a name': torch.zeros(2, 4)}", ("RG107",)),
        ("{0: torch.zeros(2, 4)}", ("RG107",)),
        ("({1, 2}, torch.zeros(2, 4))", ("RG107",)),
        ("({'a': object(), 'b': torch.zeros(2, 0)}, range(3))", ("RG107",) * 3),
        ("None", ("RG106",)),
    ],
)
def test_what_is_refused(tmp_path: Path, value: str, codes: tuple[str, ...]) -> None:
    assert refused(tmp_path, f"example_inputs = {value}\n") == codes


def test_a_numpy_array_is_refused_with_what_may_be_given(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        loaded(tmp_path, "import numpy\nexample_inputs = (numpy.zeros((2, 4)), torch.zeros(2, 4))\n")
    (problem,) = caught.value.problems
    assert problem.cause == "it is a ndarray, not a tensor"
    assert problem.place.endswith("net.py: example_inputs[0]")
    assert "dataclasses" in problem.advice


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("", ("RG106",)),
        ("example_kwargs = 3\n", ("RG107",)),
        ("example_kwargs = {}\n", ("RG107",)),
        ("example_inputs = {'x': torch.zeros(2, 4)}\nexample_kwargs = {'x': torch.zeros(2, 4)}\n", ("RG107",)),
    ],
)
def test_wrong_keyword_arguments(tmp_path: Path, text: str, codes: tuple[str, ...]) -> None:
    assert refused(tmp_path, text) == codes


def test_checked_is_for_the_api_too() -> None:
    assert checked((torch.zeros(2, 3),), {"edge_index": torch.zeros(2, 9)}) == []
    (problem,) = checked((), {"x": torch.tensor(1.0)})
    assert problem.code == "RG107"
    assert problem.place == "example_inputs"


# -- --input ----------------------------------------------------------------------------------------------------------


def test_input_option_stands_in_for_example_inputs(tmp_path: Path) -> None:
    found = loaded(tmp_path, "example_inputs = 'wrong'\n", "2x3x4", "6:int64")
    first, second = found.example_inputs
    assert tuple(first.shape) == (2, 3, 4)
    assert first.dtype is torch.float32
    assert second.dtype is torch.int64
    assert second.tolist() == [0] * 6


def test_input_option_by_name(tmp_path: Path) -> None:
    found = loaded(tmp_path, "", "5x4", "input_ids=2x16:int64", "scale=3")
    assert len(found.example_inputs) == 1
    assert {name: tuple(item.shape) for name, item in found.example_kwargs.items()} == {
        "input_ids": (2, 16),
        "scale": (3,),
    }


def test_the_same_name_twice(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        loaded(tmp_path, "", "x=2x4", "x=2x4")
    assert caught.value.codes == ("RG108",)


@pytest.mark.parametrize("text", ["=2x3", "1x=2x3", "a b=2x3", "x=", "x=y=2x3", "a.b=2x3", "x=2x3:text"])
def test_wrong_names(text: str) -> None:
    made = make_input(text)
    assert isinstance(made, Problem)
    assert made.code == "RG108"


@pytest.mark.parametrize(
    "text",
    ["", "x", "64x", "x64", "64x0x2", "-3x4", "3.5x2", "64,128", "6 4x2", "64x128:", "64x128:floaty", "9" * 30, "²x3"],
)
def test_wrong_shapes(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        loaded(tmp_path, "example_inputs = torch.zeros(2, 4)\n", text)
    assert caught.value.codes == ("RG108",)
    assert caught.value.exit_status == 2


def test_the_command_line_hands_keyword_arguments_on(reclra: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def compile(model: object, example_inputs: object, **rest: Any) -> None:
        seen.update(rest, inputs=example_inputs)
        raise ModelError(Problem("RG201", "enough", "here"))

    monkeypatch.setattr(reclra_graph.api, "compile", compile)
    write_here(GOOD)
    assert reclra("compile", "net.py", "--input", "2x4", "--input", "mask=2x16:bool", "--json").codes() == ["RG201"]
    assert [tuple(item.shape) for item in seen["inputs"]] == [(2, 4)]
    mask: Tensor = seen["example_kwargs"]["mask"]
    assert mask.dtype is torch.bool
    assert json.dumps(list(mask.shape)) == "[2, 16]"
