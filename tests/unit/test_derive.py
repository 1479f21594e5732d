"""Derivatives of single operators, traced once: right for every batch size, shared by operators of other names."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.ir.operators import Operator, OperatorGraph, Ref, TensorType, references
from reclra_graph.ir.tasks import Call
from reclra_graph.passes import derive as module
from reclra_graph.passes.capture import capture
from reclra_graph.passes.derive import NoDerivative, derive
from reclra_graph.rules.operators import function, resolve
from tests.models import captured
from tests.unit.test_layouts import values_of

Move = Callable[[Tensor], Tensor]

# On [B, 4, 6]. Many read the batch size, or a multiple of it, in their derivatives.
MOVES: tuple[Move, ...] = (
    lambda z: z.flatten(0, 1),
    lambda z: z.flatten(),
    lambda z: z.transpose(0, 1).flatten(0, 1),
    lambda z: z.reshape(z.shape[0] * 2, 2, 6),
    lambda z: z.sum(0),
    lambda z: z.mean(),
    lambda z: z.mean((0, 2)),
    lambda z: z.std(0),
    lambda z: z.mean(0, keepdim=True).expand(z.shape[0], 4, 6),
    lambda z: z[:1].expand_as(z),
    lambda z: z.repeat(2, 1, 1),
    lambda z: z.repeat_interleave(3, 0),
    lambda z: torch.cat((z, 2 * z)),
    lambda z: torch.stack((z, z.tanh())),
    lambda z: z[:, 1:3],
    lambda z: z[:, :, None],
    lambda z: z.select(1, 2),
    lambda z: z.unflatten(2, (2, 3)),
    lambda z: z.permute(2, 0, 1),
    lambda z: F.pad(z, (1, 2)),
    lambda z: z.cumsum(1),
    lambda z: z.amax(2),
    lambda z: z.sort(2)[0],
    lambda z: z.topk(2, 2)[0],
    lambda z: z.logsumexp(1),
    lambda z: z.softmax(2),
    lambda z: z.log_softmax(0),
    lambda z: z.norm(dim=2),
    lambda z: z.prod(1),
    lambda z: z.exp() / (1 + z.abs()),
    lambda z: F.gelu(z),
    lambda z: F.silu(z),
    lambda z: F.softplus(z),
    lambda z: F.hardswish(z),
    lambda z: F.leaky_relu(z),
    lambda z: z.clamp(-0.5, 0.5),
    lambda z: torch.where(z > 0, z, z * z),
    lambda z: torch.maximum(z, z.tanh()),
    lambda z: F.layer_norm(z, (6,)),
    lambda z: F.group_norm(z, 2),
    lambda z: F.instance_norm(z),
    lambda z: F.batch_norm(z, None, None, training=True),
    lambda z: F.avg_pool1d(z, 2),
    lambda z: F.max_pool1d(z, 2),
    lambda z: F.adaptive_avg_pool1d(z, 3),
    lambda z: F.interpolate(z, scale_factor=2.0),
    lambda z: F.unfold(z.unsqueeze(1), 2),
    lambda z: torch.bmm(z, z.transpose(1, 2)),
    lambda z: z @ z[0].t(),
    lambda z: torch.einsum("bij,bkj->bik", z, z),
    lambda z: F.scaled_dot_product_attention(z.unsqueeze(1), z.unsqueeze(1), z.unsqueeze(1)),
    lambda z: torch.cdist(z, z),
    lambda z: F.cosine_similarity(z, z.roll(1, 0), dim=2),
    lambda z: F.glu(z, 2),
    lambda z: z.index_select(1, torch.tensor([2, 0, 0])),
    lambda z: z[:, torch.tensor([1, 1, 3])],
    lambda z: z.gather(2, z.argsort(2)),
    lambda z: torch.zeros_like(z).scatter_add(2, z.argsort(2), z),
    lambda z: torch.tril(z),
    lambda z: z.flip(0),
    lambda z: z.masked_fill(z > 0, 0.0),
    lambda z: torch.fft.rfft(z, dim=2).abs(),
    lambda z: torch.linalg.inv(torch.bmm(z, z.transpose(1, 2)) + torch.eye(4)),
    lambda z: torch.lerp(z, z.sin(), 0.3),
)


class Moves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0 * sum(move(x).abs().sum() for move in MOVES)


@cache
def everything() -> tuple[OperatorGraph, dict[str, Tensor]]:
    """The graph of all moves, and its constants by their values' names."""
    found, constants = capture(Moves(), (torch.randn(3, 4, 6),), {}, rg.Options())
    assert found.batch == "B"
    return found, {item.name: constants[item.key] for item in found.held}


def graph() -> OperatorGraph:
    return everything()[0]


@cache
def values(size: int) -> dict[str, Any]:
    torch.manual_seed(size)
    return values_of(graph(), torch.randn(size, 4, 6), everything()[1])


def run(calls: list[Call], known: dict[str, Any], batch: int) -> dict[str, Any]:
    """The results of calls, run one by one."""
    store = {**known, "B": batch}
    for call in calls:
        args = [resolve(item, store, torch.device("cpu")) for item in call.args]
        kwargs = {key: resolve(item, store, torch.device("cpu")) for key, item in call.kwargs}
        found = function(call.function)(*args, **kwargs)
        found = found if call.unpack else (found,)
        store.update({name: value for name, value in zip(call.results, found, strict=True) if name})
    return store


def namer() -> Callable[[str], str]:
    counter = itertools.count()
    return lambda text: f"{text}_{next(counter)}"


def differentiable() -> list[Operator]:
    """Operators of the graph with a floating-point result and a floating-point argument, one of each kind."""
    found: dict[tuple[Any, ...], Operator] = {}
    for operator in graph().operators:
        reads = [name for name in operator.reads if name in graph().types]
        moving = any(graph().types[name].dtype == "float32" for name in reads)
        if moving and operator.type is not None and operator.type.dtype == "float32":
            sizes = tuple(graph().types[name].shape for name in reads)
            found.setdefault((operator.target, sizes, operator.type.shape, len(operator.args)), operator)
    return list(found.values())


def test_every_operator_for_batches_of_any_size() -> None:
    operators = [item for item in differentiable() if item.target != "operator.getitem"]
    assert len(operators) > 80
    for operator in operators:
        wanted = tuple(
            name for name in operator.reads if graph().types.get(name, TensorType((), "int64")).dtype == "float32"
        )
        calls, found = derive(operator, graph(), [(None, "error")], wanted, namer())
        assert "1000003" not in repr(calls), operator
        for size in (2, 5):
            held = values(size)

            def forward(*moving: Tensor, held: dict[str, Any] = held, wanted: tuple[str, ...] = wanted,
                        operator: Operator = operator) -> Tensor:  # fmt: skip
                known = {**held, **dict(zip(wanted, moving, strict=True))}
                args = [resolve(item, known, torch.device("cpu")) for item in operator.args]
                kwargs = {key: resolve(item, known, torch.device("cpu")) for key, item in operator.kwargs}
                result: Tensor = function(operator.target)(*args, **kwargs)
                return result

            out, pull = torch.func.vjp(forward, *(held[name] for name in wanted))
            error = torch.randn_like(out)
            got = run(calls, {**held, "error": error}, size)
            for name, value in zip(wanted, pull(error), strict=True):
                mine = got[found[name]] if name in found else torch.zeros_like(value)
                assert mine.shape == value.shape, operator
                torch.testing.assert_close(mine, value, rtol=1e-4, atol=1e-5, msg=str(operator))


def test_operators_that_differ_in_names_share_one_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.gelu(F.gelu(x) * 2) + F.gelu(x[:, :3]).sum()

    found = captured(Twice(), torch.randn(3, 4))
    gelus = [item for item in found.operators if item.target == "aten.gelu.default"]
    traced: list[Any] = []
    original = module.make_fx

    def counted(*args: Any, **kwargs: Any) -> Any:
        traced.append(args)
        return original(*args, **kwargs)

    module._solved.cache_clear()
    monkeypatch.setattr(module, "make_fx", counted)
    made = [derive(item, found, [(None, "e")], item.reads, namer()) for item in gelus]
    assert len(gelus) == 3
    assert len(traced) == 2  # two sizes
    (first, one), (second, two), _ = made
    assert [call.function for call in first] == [call.function for call in second] == ["aten.gelu_backward.default"]
    assert first[0].args == (Ref("e"), Ref(gelus[0].reads[0]))
    assert second[0].args == (Ref("e"), Ref(gelus[1].reads[0]))
    assert one.keys() == {gelus[0].reads[0]}
    assert two.keys() == {gelus[1].reads[0]}
    # Another dtype, another argument, another wish: traces of their own.
    double = replace(found, inputs=(replace(found.inputs[0], type=TensorType(("B", 4), "float64")),))
    with_double = replace(gelus[0], type=TensorType(("B", 4), "float64"))
    derive(with_double, double, [(None, "e")], gelus[0].reads, namer())
    derive(replace(gelus[0], kwargs=(("approximate", "tanh"),)), found, [(None, "e")], gelus[0].reads, namer())
    assert len(traced) == 4


def test_the_forward_result_is_read_where_the_derivative_needs_it() -> None:
    class Tanh(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x)

    found = captured(Tanh(), torch.randn(3, 4))
    (tanh,) = found.operators
    calls, _ = derive(tanh, found, [(None, "e")], tanh.reads, namer())
    assert [call.function for call in calls] == ["aten.tanh_backward.default"]
    assert calls[0].args == (Ref("e"), Ref(tanh.name))


def test_an_expanded_sum_holds_the_batch_size_by_its_name() -> None:
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.flatten(0, 1).mean(0)

    found = captured(Mean(), torch.randn(3, 4, 6))
    (mean,) = (item for item in found.operators if item.target.startswith("aten.mean"))
    calls, _ = derive(mean, found, [(None, "e")], mean.reads, namer())
    numbers = [int(number) for number in re.findall(r"\d+", repr(calls))]
    assert max(numbers) < 100  # no stand-in of the batch size, and no multiple of it
    assert "sym_size" in repr(calls) or "Ref(name='B')" in repr(calls)


def test_what_a_batch_norm_already_computed_is_not_computed_again() -> None:
    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.norm(x)
            return found

    found = captured(Norm(), torch.randn(3, 4))
    (norm,) = (item for item in found.operators if "batch_norm" in item.target)
    parts = {item.args[1]: item.name for item in found.operators if item.target == "operator.getitem"}
    calls, made = derive(norm, found, [(0, "e")], norm.reads[:2], namer())
    assert not [call for call in calls if call.function == norm.target]
    read = {name for call in calls for name in references(call.args)}
    assert {parts[1], parts[2]} <= read  # mean and inverse deviation
    assert made.keys() == set(norm.reads[:2])


def test_the_batch_size_is_told_by_its_stand_in() -> None:
    hint = module._BATCH_HINT
    assert [module._expression(size) for size in (4, hint, 3 * hint, 3 * hint + 1)] == [4, "B", "3*B", 3 * hint + 1]
    asked: list[int] = []

    def multiple(factor: int) -> Ref:
        asked.append(factor)
        return Ref(f"{factor} B")

    given = [5, hint, [2 * hint, -1, 0], True, 0.5, None]
    wanted = (5, Ref("1 B"), (Ref("2 B"), -1, 0), True, 0.5, None)
    assert module._argument(given, {}, multiple) == wanted
    assert asked == [1, 2]


@pytest.mark.parametrize("move", [torch.sign, torch.round, torch.floor, lambda z: (z > 0).to(z.dtype)])
def test_steps_have_a_derivative_of_zero(move: Move) -> None:
    class Step(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return move(x)

    found = captured(Step(), torch.randn(3, 4))
    for operator in found.operators:
        if found.types[operator.reads[0]].dtype == "float32" and operator.type == TensorType(("B", 4)):
            assert derive(operator, found, [(None, "e")], operator.reads, namer()) == ([], {})


def test_without_a_derivative() -> None:
    class Gamma(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.gammainc(x, x)

    found = captured(Gamma(), torch.rand(3, 4))
    (operator,) = found.operators
    for _ in range(2):  # the second time too: what failed is not held for an answer
        with pytest.raises(NoDerivative):
            derive(operator, found, [(None, "e")], operator.reads, namer())
