"""Rules as the emitted file shows them: few lines that can be read, and that compute what the rule computes."""

from __future__ import annotations

import ast
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from reclra_graph.ir.operators import Ref
from reclra_graph.ir.tasks import Call
from reclra_graph.passes.printing import rule_lines, unparsed
from reclra_graph.rules import rule

Z, T, B, SYNAPSE, GAMMA = Ref("z9"), Ref("target"), Ref("B"), Ref("E[9->5]"), Ref("gamma")
PLAIN = (0.0, None, None, False)


def lines(function: str, *args: Any) -> list[str]:
    """The lines that a call of a rule is printed as, its result named r."""

    def read(value: str) -> ast.expr:
        if value[1:2] == "[":
            return ast.Subscript(ast.Name(value[0], ast.Load()), ast.Constant(value[2:-1]), ast.Load())
        return ast.Name(value, ast.Load())

    call = Call(f"rules.{function}", args, (), ("r",))
    return [f"{name} = {unparsed(expression)}" for name, expression in rule_lines(call, read, "r")]


LOSSES: dict[str, tuple[str, tuple[Any, ...], list[str]]] = {
    "classes": ("cross_entropy", (Z, T), ["r = F.cross_entropy(z9, target)"]),
    "classes, error": (
        "cross_entropy_error",
        (Z, T, 5, 1, 1, *PLAIN, B),
        ["r = torch.softmax(z9, 1) - F.one_hot(target, 5)"],
    ),
    "sequence": ("cross_entropy", (Z, T, -1), ["r = F.cross_entropy(z9.flatten(0, -2), target.flatten())"]),
    "sequence, error": (
        "cross_entropy_error",
        (Z, T, 5, 4, -1, *PLAIN, B),
        [
            "r_a = target.unsqueeze(-1)",
            "r = torch.softmax(z9, -1).scatter_add_(-1, r_a, torch.full_like(r_a, -1.0, dtype=z9.dtype)) / 4",
        ],
    ),
    "causal": (
        "cross_entropy",
        (Z, T, -1, 0.0, None, None, True),
        ["r = F.cross_entropy(z9.flatten(0, -2), F.pad(target[:, 1:], (0, 1), value=-100).flatten())"],
    ),
    "causal, error": (
        "cross_entropy_error",
        (Z, T, 5, 4, -1, 0.0, None, None, True, B),
        [
            "r_a = F.pad(target[:, 1:], (0, 1), value=-100).unsqueeze(-1)",
            "r_b = r_a.ne(-100)",
            "r_c = r_b.to(z9.dtype)",
            "r_d = r_c * (B / r_c.sum().clamp(min=1))",
            "r = (torch.softmax(z9, -1) * r_d).scatter_add_(-1, torch.where(r_b, r_a, 0), -r_d)",
        ],
    ),
    "all options": (
        "cross_entropy",
        (Z, T, -1, 0.1, 2, (1.0, 2.0, 0.5, 1.0, 1.0)),
        [
            "r = F.cross_entropy(z9.flatten(0, -2), target.flatten(), "
            "weight=z9.new_tensor([1.0, 2.0, 0.5, 1.0, 1.0]), ignore_index=2, label_smoothing=0.1)"
        ],
    ),
    "probabilities, error": (
        "soft_cross_entropy_error",
        (Z, Z, 5, 4, -1),
        ["r = (torch.softmax(z9, -1) * z9.sum(-1, keepdim=True) - z9) / 4"],
    ),
    "values": ("mse", (Z, Z), ["r = (z9 - z9).square().sum() / (2 * z9.shape[0])"]),
    "values, batch elsewhere": ("mse", (Z, Z, B), ["r = (z9 - z9).square().sum() / (2 * B)"]),
}


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_losses(name: str) -> None:
    function, args, wanted = LOSSES[name]
    assert lines(f"loss.{function}", *args) == wanted


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("ignore", [None, 2])
@pytest.mark.parametrize("weights", [None, (1.0, 2.0, 0.5, 1.0, 1.0)])
@pytest.mark.parametrize("axis", [1, -1])
def test_the_lines_of_an_error_compute_it(
    axis: int, weights: tuple[float, ...] | None, ignore: int | None, smoothing: float
) -> None:
    z = torch.randn((3, 4, 5) if axis == -1 else (3, 5, 4), dtype=torch.float64)
    values = {"z9": z, "target": torch.randint(5, (3, 4)), "B": 3}
    options = (5, 4, axis, smoothing, ignore, weights, False)
    check("loss.cross_entropy_error", (Z, T, *options, B), values)
    check("loss.cross_entropy", (Z, T, *options[2:]), values)


def check(function: str, args: tuple[Any, ...], values: dict[str, Any]) -> None:
    """Run the printed lines, and the rule itself; the values that they read must stay as they were."""
    names = {"torch": torch, "F": F, **values}
    if "E[9->5]" in values:
        names["E"] = {"9->5": values["E[9->5]"]}
    before = {key: value.clone() for key, value in values.items() if isinstance(value, torch.Tensor)}
    wanted = rule(f"rules.{function}")(*(values[item.name] if isinstance(item, Ref) else item for item in args))
    exec("\n".join(lines(function, *args)), names)
    torch.testing.assert_close(names["r"], wanted, rtol=0, atol=0)
    assert all(torch.equal(values[key], value) for key, value in before.items())


# Shape and axis of the features of the source, the same of the target; d, and γ d eᵀ.
SYNAPSES: dict[str, tuple[tuple[Any, ...], list[str], list[str]]] = {
    "vector to vector": (
        ((4,), (6,), 0, 0),
        ["r = z9 @ E['9->5'].T"],
        ["r = gamma / B * (E['9->5'] @ (z9.T @ z9))"],
    ),
    "vector to map": (
        ((4,), (6, 2, 3), 0, 0),
        ["r = (z9 @ E['9->5'].T).reshape(-1, 6, 1, 1).expand(-1, 6, 2, 3)"],
        ["r = gamma / B * (E['9->5'] @ (z9.T @ z9))"],
    ),
    "vector to sequence": (
        ((4,), (3, 2), -1, -1),
        ["r = (z9 @ E['9->5'].T).reshape(-1, 1, 2).expand(-1, 3, 2)"],
        ["r = gamma / B * ((z9 @ E['9->5'].T).T @ z9)"],
    ),
    "equal maps": (
        ((4, 2, 3), (6, 2, 3), 0, 0),
        ["r = (E['9->5'] @ z9.flatten(2)).reshape(-1, 6, 2, 3)"],
        ["r_a = z9.flatten(2).mT.flatten(0, -2)", "r = gamma / (B * 6) * (E['9->5'] @ (r_a.T @ r_a))"],
    ),
    "smaller map to larger": (
        ((4, 2, 2), (6, 4, 4), 0, 0),
        ["r = F.interpolate((E['9->5'] @ z9.flatten(2)).reshape(-1, 6, 2, 2), size=(4, 4))"],
        ["r_a = z9.flatten(2).mT.flatten(0, -2)", "r = gamma / (B * 4) * (E['9->5'] @ (r_a.T @ r_a))"],
    ),
    "equal sequences": (
        ((5, 4), (5, 6), -1, -1),
        ["r = z9 @ E['9->5'].T"],
        ["r_a = z9.flatten(0, -2)", "r = gamma / (B * 5) * (E['9->5'] @ (r_a.T @ r_a))"],
    ),
    "from many classes": (
        ((5, 9), (5, 2), -1, -1),
        ["r = z9 @ E['9->5'].T"],
        ["r_a = z9.flatten(0, -2)", "r = gamma / (B * 5) * ((r_a @ E['9->5'].T).T @ r_a)"],
    ),
    "longer sequence to shorter": (
        ((6, 4), (3, 6), -1, -1),
        ["r = torch.adaptive_avg_pool1d(z9.movedim(-1, 1), 3).mT @ E['9->5'].T"],
        [
            "r_a = torch.adaptive_avg_pool1d(z9.movedim(-1, 1), 3).mT.flatten(0, -2)",
            "r = gamma / (B * 3) * (E['9->5'] @ (r_a.T @ r_a))",
        ],
    ),
    "patches and a class to a map": (
        ((7, 4), (6, 2, 3), -1, 0),
        ["r = (z9.mean(1) @ E['9->5'].T).reshape(-1, 6, 1, 1).expand(-1, 6, 2, 3)"],
        ["r_a = z9.mean(1)", "r = gamma / B * (E['9->5'] @ (r_a.T @ r_a))"],
    ),
    "a map to its patches": (
        ((4, 2, 3), (6, 6), 0, -1),
        ["r = z9.flatten(2).mT @ E['9->5'].T"],
        ["r_a = z9.flatten(2).mT.flatten(0, -2)", "r = gamma / (B * 6) * (E['9->5'] @ (r_a.T @ r_a))"],
    ),
}


@pytest.mark.parametrize("name", sorted(SYNAPSES))
def test_synapses(name: str) -> None:
    (source, target, first, second), displace, learn = SYNAPSES[name]
    shapes = (source, target, first, second)
    assert lines("synapse.token_displace", Z, SYNAPSE, *shapes) == displace
    assert lines("synapse.token_eq6", SYNAPSE, Z, GAMMA, B, True, *shapes) == learn
    weights = torch.randn(target[second], source[first])
    values = {"z9": torch.randn(3, *source), "E[9->5]": weights, "gamma": 0.1, "B": 3}
    check("synapse.token_displace", (Z, SYNAPSE, *shapes), values)
    check("synapse.token_eq6", (SYNAPSE, Z, GAMMA, B, False, *shapes), values)
    if first == second == 0:
        assert lines("synapse.channel_displace", Z, SYNAPSE, source, target) == displace
        assert lines("synapse.channel_eq6", SYNAPSE, Z, GAMMA, B, True, source, target) == learn


@pytest.mark.parametrize(
    ("place", "there", "back"),
    [
        ((1, 1, 1), "r = z9.movedim(1, 0)", "r = z9.movedim(0, 1)"),
        ((0, 1, 4), "r = torch.unflatten(z9, 0, (-1, 4))", "r = z9.flatten(0, 1)"),
        ((0, 4, 1), "r = torch.unflatten(z9, 0, (4, -1)).movedim(1, 0)", "r = z9.movedim(0, 1).flatten(0, 1)"),
        ((1, 2, 4), "r = torch.unflatten(z9, 1, (2, -1, 4)).movedim(2, 0)", "r = z9.movedim(0, 2).flatten(1, 3)"),
    ],
)
def test_layouts(place: tuple[int, int, int], there: str, back: str) -> None:
    assert lines("layout.to_samples", Z, *place) == [there]
    assert lines("layout.from_samples", Z, *place) == [back]
