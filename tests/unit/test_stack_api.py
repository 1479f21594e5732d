"""``rg.stack``: models of one architecture, with seeds and constants of their own, compiled once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.runtime.alike import built_otherwise, set_otherwise
from reclra_graph.runtime.stacked_backprop import StackedBackprop
from tests.models import mlp
from tests.unit.refusals import refused
from tests.unit.stacks import gap


class Net(nn.Module):
    """A table that is no buffer, a number, a function, and a path that depends on the weights' own setting."""

    def __init__(self, seed: int, table: Tensor | None = None, scale: float = 2.0, act: Any = torch.tanh) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)
        self.table = torch.ones(5) if table is None else table
        self.scale, self.act, self.seed = scale, act, seed

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.act(self.scale * self.first(x) + self.table))
        return logits


class Branch(nn.Module):
    """Its path depends on its weights, so that it can only be recorded."""

    def __init__(self, seed: int, shift: float) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)
        with torch.no_grad():
            self.first.bias[0] = shift

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        z = torch.tanh(h) if float(self.first.bias.sum()) > 0 else torch.relu(h)
        logits: Tensor = self.last(z)
        return logits


def batch(runs: int = 2) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(runs, 6, 4, generator=draw), torch.randint(3, (runs, 6), generator=draw)


def stacked(models: list[nn.Module], **options: Any) -> rg.StackedStep:
    step = rg.stack(models, torch.zeros(6, 4), **options)
    step.fused = False
    return step


def compared(build: Callable[[int], nn.Module], seeds: tuple[int, ...], **options: Any) -> None:
    """Each run beside the compiled step of a model like its own."""
    x, y = batch(len(seeds))
    step = stacked([build(seed) for seed in range(len(seeds))], seeds=seeds, **options)
    alone = [rg.compile(build(run), torch.zeros(6, 4), seed=seed, **options) for run, seed in enumerate(seeds)]
    for _ in range(2):
        step(x, y)
        for number, run in enumerate(alone):
            run(x[number], y[number])
    assert max(map(gap, step.unstack(), alone)) < 1e-6


def test_seeds_are_those_of_the_single_runs() -> None:
    compared(lambda seed: Net(seed), (7, 3), optimizer="momentum")
    names = [run.store.named["2->1"] for run in stacked([Net(0), Net(0)], seed=4).runs]
    for number, synapse in enumerate(names):
        torch.testing.assert_close(synapse, rg.compile(Net(0), torch.zeros(6, 4), seed=4 + number).synapses["2->1"])


def test_implicit_synapses_have_keys_of_their_own() -> None:
    compared(lambda seed: Net(seed), (1, 2), synapse="implicit")


def test_what_a_model_holds_beside_its_state_is_its_own() -> None:
    compared(lambda seed: Net(seed, table=torch.full((5,), float(seed))), (0, 1))


def test_backpropagation_of_the_same_runs() -> None:
    step = stacked([Net(0), Net(1)], backprop=True, optimizer="adamw", lr=0.01)
    assert isinstance(step, StackedBackprop)
    x, y = batch()
    first = step(x, y)
    for _ in range(20):
        last = step(x, y)
    assert bool((last < first).all())


def test_runs_and_seeds_are_counted() -> None:
    for models, seeds in (([], None), ([Net(0)], [1, 2]), ([Net(0), Net(1)], [1])):
        refused(rg.UsageError, lambda m=models, s=seeds: rg.stack(m, torch.zeros(6, 4), seeds=s), "RG405")  # type: ignore[misc]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (Net(1, scale=3.0), "another scale"),
        (Net(1, act=torch.relu), "another act"),
        (Net(1).requires_grad_(False), "first.weight frozen float32[5, 4], where the first has it float32[5, 4]"),
        (mlp(4, 5, 3), "the model Sequential, where the first has the model Net"),
    ],
)
def test_models_that_compute_something_else_are_refused(other: nn.Module, said: str) -> None:
    error = refused(rg.ModelError, lambda: stacked([Net(0), other]), "RG621")
    assert said in str(error)


def test_models_of_other_sizes_or_dtypes_are_refused() -> None:
    for other in (mlp(4, 6, 3), nn.Sequential(nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 3))):
        with pytest.raises(rg.ModelError, match="RG621"):
            stacked([mlp(4, 5, 3), other])
    with pytest.raises(rg.ModelError, match=r"0.weight float64\[5, 4\]"):
        stacked([mlp(4, 5, 3), mlp(4, 5, 3).double()])
    one = Net(0)
    with pytest.raises(rg.ModelError, match=r"run 1 and run 0 have one tensor for P\[first.weight\]"):
        stacked([one, one])
    refused(rg.ModelError, lambda: stacked([Net(0), nn.DataParallel(Net(1))]), "RG125")


def test_a_recorded_path_must_be_that_of_every_model() -> None:
    compared(lambda seed: Branch(seed, 5.0), (0, 1))
    error = refused(rg.ModelError, lambda: stacked([Branch(0, 5.0), Branch(1, -9.0)]), "RG621")
    assert "another path" in str(error)


def test_what_cannot_matter_is_no_difference() -> None:
    assert built_otherwise(Net(0), Net(1)) == ""
    assert set_otherwise(Net(0).eval(), Net(0).train()) == ()
    assert set_otherwise(Net(0), Net(1)) == ("the model Net with another seed than the first",)  # capture will tell
    two, three = (nn.Sequential(*(nn.Dropout(0.1 * count) for _ in range(count))) for count in (2, 3))
    assert built_otherwise(two, three) == "2 Dropout, where the first has nothing more"
    assert set_otherwise(two, three[:2]) == tuple(f"{item} Dropout with another p than the first" for item in range(2))
