"""Nested arguments and results: paths to tensors, and steps that take what forward() takes."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.runtime.compiled import CompiledStep
from reclra_graph.structure import arguments, at, called, identifier, label, replaced, tensors
from tests.models import changed, snapshot

Pair = namedtuple("Pair", ("left", "right"))


@dataclass
class Batch:
    image: Tensor
    side: Any
    scale: float = 2.0


@dataclass(frozen=True)
class Frozen:
    image: Tensor


def nest() -> tuple[Any, dict[str, Tensor]]:
    t = {key: torch.full((2,), float(index)) for index, key in enumerate("abcdef")}
    value = ({"one": t["a"], 2: [t["b"], None]}, Batch(t["c"], Pair(t["d"], 7)), [Frozen(t["e"]), "text"], t["f"])
    return value, t


def test_every_tensor_has_a_path_that_leads_to_it() -> None:
    value, t = nest()
    found = dict(tensors(value))
    assert found == {
        (0, "one"): t["a"],
        (0, 2, 0): t["b"],
        (1, "image"): t["c"],
        (1, "side", "left"): t["d"],
        (2, 0, "image"): t["e"],
        (3,): t["f"],
    }
    for path, tensor in arguments(value, {"more": {"deep": t["a"]}}):
        assert at(value, {"more": {"deep": t["a"]}}, path) is tensor
    for path in ((4,), (0, "two"), (1, "nothing"), (2, 5), ("more",)):
        with pytest.raises((LookupError, AttributeError)):
            at(value, {}, path)


def test_replacing_makes_a_new_nest_and_leaves_the_old_one() -> None:
    value, t = nest()
    new = {path: item + 10 for path, item in tensors(value)}
    other = replaced(value, new)
    assert {path: item.tolist() for path, item in tensors(other)} == {path: i.tolist() for path, i in new.items()}
    assert value[0]["one"] is t["a"]
    assert [item.tolist() for _, item in tensors(value)] == [[float(number)] * 2 for number in range(6)]
    assert type(other[1]) is Batch
    assert type(other[1].side) is Pair
    assert type(other[2][0]) is Frozen
    assert other[1].scale == 2.0
    assert other[0][2][1] is None
    assert replaced("text", {}) == "text"
    ordered = OrderedDict(b=t["a"], a=t["b"])
    assert list(replaced(ordered, {("a",): t["c"]})) == ["b", "a"]


@pytest.mark.parametrize(
    ("path", "name", "python"),
    [
        ((), "output", "x"),
        (("logits",), "logits", "logits"),
        ((0,), "0", "x0"),
        (("aux", 0), "aux.0", "aux_0"),
        (("a b", "c-d"), "a b.c-d", "a_b_c_d"),
        (("данные",), "данные", "_"),
    ],
)
def test_labels_and_names(path: tuple[int | str, ...], name: str, python: str) -> None:
    assert label(path) == name
    assert identifier(path) == python
    assert identifier(path).isidentifier()


def test_calls() -> None:
    x = torch.zeros(1)
    assert called(x) == ((x,), {})
    assert called((x, 3)) == ((x, 3), {})
    assert called([x, None]) == ((x, None), {})
    assert called({"a": x}) == ((), {"a": x})
    assert called((x,), {"b": 1}) == ((x,), {"b": 1})
    pair = Pair(x, x)
    assert called(pair) == ((pair,), {})  # one argument, not two


# -- steps -----------------------------------------------------------------------------------------------------------


class Two(nn.Module):
    """Two inputs, however they come in; ``take`` finds them among the arguments."""

    def __init__(self, take: Callable[..., tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.image, self.side, self.head = nn.Linear(4, 5), nn.Linear(3, 5), nn.Linear(5, 2)
        self.take = take

    def logits(self, image: Tensor, side: Tensor) -> Tensor:
        found: Tensor = self.head(torch.tanh(self.image(image) + self.side(side)))
        return found


class Positional(Two):
    def forward(self, image: Tensor, side: Tensor) -> Tensor:
        return self.logits(image, side)


class Keywords(Two):
    def forward(self, *, image: Tensor, side: Tensor | None = None, scale: float = 1.0) -> Tensor:
        assert side is not None
        return self.logits(image * scale, side)


class Nested(Two):
    def forward(self, batch: Any, flag: bool = True, nothing: None = None) -> Tensor:
        assert flag
        assert nothing is None
        return self.logits(*self.take(batch))


class Lists(NamedTuple):
    image: Tensor
    rest: list[Tensor]


def same(image: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
    return image, side


WAYS: dict[str, tuple[Callable[[], nn.Module], Callable[[Tensor, Tensor], Any]]] = {
    "a tuple": (lambda: Positional(same), lambda a, b: (a, b)),
    "a list": (lambda: Positional(same), lambda a, b: [a, b]),
    "keywords": (lambda: Keywords(same), lambda a, b: {"image": a, "side": b}),
    "keywords in another order": (lambda: Keywords(same), lambda a, b: {"side": b, "image": a}),
    "a dict": (lambda: Nested(lambda v: (v["image"], v["side"])), lambda a, b: ({"image": a, "side": b},)),
    "a dict in lists": (lambda: Nested(lambda v: (v[0]["x"], v[1][0])), lambda a, b: ([{"x": a}, [b, None]],)),
    "a dataclass": (lambda: Nested(lambda v: (v.image, v.side)), lambda a, b: (Batch(a, b),)),
    "a named tuple": (lambda: Nested(lambda v: (v.image, v.rest[0])), lambda a, b: (Lists(a, [b]),)),
    "constants beside": (lambda: Nested(lambda v: v), lambda a, b: ((a, b), True, None)),
}


def reference_of(model: nn.Module, image: Tensor, side: Tensor, target: Tensor) -> tuple[float, dict[str, Tensor]]:
    """Loss and parameters of the same layers behind two plain arguments, after one step."""
    plain = Positional(same).double()
    plain.load_state_dict(model.state_dict())
    loss = rg.compile(plain, (image, side))((image, side), target)
    return float(loss), plain.state_dict()


@pytest.mark.parametrize("way", WAYS)
def test_steps_take_what_forward_takes(way: str) -> None:
    make, put = WAYS[way]
    model = make().double()
    image, side = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 3, dtype=torch.float64)
    target = torch.tensor([0, 1, 1])
    wanted, state = reference_of(model, image, side, target)
    step = rg.compile(model, put(torch.zeros_like(image), torch.zeros_like(side)))
    assert float(step(put(image, side), target)) == wanted
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=0, atol=0)
    # Any batch, and gradients as well.
    rg.assign_grads(step, put(image.repeat(2, 1), side.repeat(2, 1)), target.repeat(2))
    before = snapshot(step)
    for wrong in (put(image, side[:2]), put(image[:, :2], side), put(image, None), put(image.float(), side)):  # type: ignore[arg-type]
        with pytest.raises(rg.StepError) as refused:
            step(wrong, target)
        assert set(refused.value.codes) == {"RG601"}
    assert changed(step, before) == set()


def test_inputs_that_are_missing_or_too_many() -> None:
    image, side = torch.randn(3, 4), torch.randn(3, 3)
    step = rg.compile(Keywords(same), {"image": image, "side": side})
    target = torch.tensor([0, 1, 1])
    for wrong in ({"image": image}, {"image": image, "side": side, "more": side}, {"image": image, "sides": side}, ()):
        with pytest.raises(rg.StepError) as refused:
            step(wrong, target)
        assert set(refused.value.codes) == {"RG601"}
    step((image, side), target)  # in the order of the example's keywords


def test_constants_among_the_arguments_are_part_of_the_step() -> None:
    image, side, target = torch.randn(3, 4), torch.randn(3, 3), torch.tensor([0, 1, 1])
    losses = {}
    for scale in (0.0, 2.0):
        torch.manual_seed(1)
        step = rg.compile(Keywords(same), {"image": image, "side": side, "scale": scale})
        losses[scale] = float(step({"image": image, "side": side, "scale": 9.0}, target))
        torch.manual_seed(1)
        twin = Keywords(same)
        wanted = nn.functional.cross_entropy(twin(image=image, side=side, scale=scale), target)
        assert abs(losses[scale] - wanted.item()) < 1e-6
    assert losses[0.0] != losses[2.0]


def test_keyword_arguments_beside_positional_ones() -> None:
    class Mixed(Two):
        def forward(self, image: Tensor, *, side: Tensor) -> Tensor:
            return self.logits(image, side)

    image, side = torch.randn(3, 4), torch.randn(3, 3)
    step = rg.compile(Mixed(same), image, example_kwargs={"side": side})
    paths = [item.path for item in step.plan.regions.graph.inputs]
    assert paths == [(0,), ("side",)]
    target = torch.tensor([0, 1, 1])
    assert bool(step(image, target, {"side": side}).isfinite())
    rg.assign_grads(step, image, target, {"side": side})
    with pytest.raises(rg.StepError) as refused:
        step(image, target)
    assert refused.value.codes == ("RG601",)


def test_inputs_that_do_not_lead_with_the_batch() -> None:
    class Edges(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 2)

        def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
            sent = torch.zeros_like(nodes).index_add(0, edges[1], nodes[edges[0]])
            return self.b(torch.tanh(self.a(sent)))

    edges = torch.tensor([[0, 1, 2, 0, 1, 2, 0], [1, 2, 0, 0, 1, 1, 2]])
    step = rg.compile(Edges(), (torch.zeros(5, 4), edges))
    shapes = [item.type.shape for item in step.plan.regions.graph.inputs]
    assert shapes == [("B", 4), (2, 7)]
    for size in (3, 8):
        assert bool(step((torch.randn(size, 4), edges), torch.arange(size) % 2).isfinite())
    with pytest.raises(rg.StepError) as refused:
        step((torch.randn(5, 4), edges[:, :4]), torch.arange(5) % 2)
    assert refused.value.codes == ("RG601",)


def test_saved_steps_take_nests_too(tmp_path: Any) -> None:
    model = Nested(lambda v: (v["image"], v["side"]))
    batch = {"image": torch.randn(3, 4), "side": torch.randn(3, 3)}
    step = rg.compile(model, (batch,))
    again: CompiledStep = rg.load(step.save(tmp_path / "net"), model)
    assert [item.path for item in again.plan.regions.graph.inputs] == [(0, "image"), (0, "side")]
    assert bool(again((batch,), torch.tensor([0, 1, 1])).isfinite())
    assert bool(again(batch, torch.tensor([0, 1, 1])).isfinite())  # the one argument itself
    assert replace(Batch(batch["image"], None), scale=1.0).scale == 1.0
