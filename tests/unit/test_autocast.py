"""Steps under autocast as objects: the policy, the option, what is saved and loaded, and the other ways to run them."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.ir.operators import CAST, Ref
from reclra_graph.ir.regions import RegionGraph
from reclra_graph.ir.text import from_text, to_text
from reclra_graph.passes.autocast import autocast
from reclra_graph.passes.pipeline import explain_model
from reclra_graph.runtime.compiled import CompiledStep
from reclra_graph.runtime.fused import FusedStep
from reclra_graph.verify import verify
from tests.models import changed, snapshot
from tests.unit import test_opaque_step
from tests.unit.command import Call
from tests.unit.refusals import refused


class Mixed(nn.Module):
    """One operator of every kind that autocast tells apart; a weight that two layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.scale = nn.Linear(4, 6), nn.LayerNorm(6), nn.Parameter(torch.ones(6))
        self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.nn.functional.softplus(self.first(x))
        x = self.norm(x + self.second(x) * self.scale)
        x = torch.cat([x, torch.einsum("bi,ij->bj", x, self.second.weight)], 1)
        x = torch.softmax(x, 1)[:, :6]
        logits: Tensor = self.head(x.exp())
        return logits


def regions() -> RegionGraph:
    return explain_model(Mixed(), (torch.zeros(5, 4),), {})


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def batch() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(12, 6, generator=draw), torch.randint(3, (12,), generator=draw)


def compiled(**options: object) -> CompiledStep:
    given: dict[str, object] = {"autocast": "bfloat16", "lr": 0.1, **options}
    return rg.compile(net(), batch()[0], **given)  # type: ignore[arg-type]


# dtype of the results under autocast to bfloat16 ("low") on either kind of device
POLICY = {
    "linear": ("low", "low"),
    "softplus": ("low", "float32"),
    "layer_norm": ("float32", "float32"),
    "einsum": ("low", "low"),
    "cat": ("float32", "float32"),
    "softmax": ("float32", "float32"),
    "exp": ("float32", "float32"),
}


@pytest.mark.parametrize(("device", "column"), [("cpu", 0), ("cuda", 1)])
@pytest.mark.parametrize("low", ["bfloat16", "float16"])
def test_the_policy_is_pytorchs(device: str, column: int, low: str) -> None:
    found = verify(autocast(regions(), low, device, 5)).graph
    assert found.autocast == low
    for name, dtypes in POLICY.items():
        wanted = low if dtypes[column] == "low" else dtypes[column]
        results = [item for item in found.operators if item.target.split(".")[1] == name]
        assert results, name
        assert {item.type.dtype for item in results if item.type is not None} == {wanted}, (name, device)
    with torch.autocast("cpu", getattr(torch, low)):
        assert Mixed()(torch.zeros(5, 4)).dtype == getattr(torch, low)
    assert {item.type.dtype for item in found.held if item.type.dtype != "int64"} == {"float32"}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_regions_stay_what_they_were(device: str) -> None:
    plain = regions()
    found = autocast(plain, "bfloat16", device, 5)
    assert found.digest == plain.digest
    casts = [item for item in found.graph.operators if item.target == CAST]
    assert casts
    for before, after in zip(plain.regions, found.regions, strict=True):
        assert (after.pre, after.post, after.updates) == (before.pre, before.post, before.updates)
        assert [name for name in after.operators if found.graph.by_name[name] not in casts] == list(before.operators)
        assert set(before.activation) <= set(after.activation)
    # A value is cast once to a dtype, a parameter once in each region that reads it.
    made = [(item.args[0], item.type, found.region_of[item.name]) for item in casts]
    assert len(made) == len(set(made))
    held = {Ref(item.name) for item in found.graph.held}
    data = [(source, kind) for source, kind, _ in made if source not in held]
    assert len(data) == len(set(data))
    assert from_text(to_text(found)) == found
    assert autocast(plain, "bfloat16", device, 5) == found


def test_without_it_nothing_is_cast() -> None:
    plain = compiled(autocast=None)
    assert plain.plan.regions.graph.autocast == ""
    assert "float16" not in plain.source
    assert plain.source == rg.compile(net(), batch()[0], lr=0.1).source
    assert plain.program.digest != compiled().program.digest


@pytest.mark.parametrize("value", ["float32", "bf16", "", True, torch.bfloat16])
def test_other_dtypes_are_refused(value: object) -> None:
    refused(rg.UsageError, lambda: compiled(autocast=value), "RG405")


def test_masters_are_wanted() -> None:
    x, target = batch()
    refused(rg.ModelError, lambda: rg.compile(net().bfloat16(), x.bfloat16(), autocast="bfloat16"), "RG121")
    plain, step = (rg.compile(net().double(), x.double(), autocast=low) for low in (None, "float16"))
    assert torch.equal(step(x.double(), target), plain(x.double(), target))  # as torch.autocast leaves float64 alone
    assert all(torch.equal(value, snapshot(plain)[key]) for key, value in snapshot(step).items())


def test_the_command_line(reclra: Call) -> None:
    model = "import torch\nmodel = torch.nn.Linear(4, 3)\nexample_inputs = (torch.zeros(2, 4),)\n"
    Path("net.py").write_text(model)
    assert reclra("compile", "net.py", "--autocast", "float16", "--quiet").status == 0
    assert json.loads(Path("build/net/plan.json").read_text())["autocast"] == "float16"
    assert ".half()" in Path("build/net/step.py").read_text()
    assert reclra("compile", "net.py", "--quiet").status == 0
    assert json.loads(Path("build/net/plan.json").read_text())["autocast"] is None
    result = reclra("compile", "net.py", "--autocast", "float8")
    assert result.status == 2
    assert "RG405" in result.err


@pytest.mark.parametrize("low", ["bfloat16", "float16"])
def test_a_saved_step_goes_on_where_it_stopped(low: str, tmp_path: Path) -> None:
    inputs, target = batch()
    step = compiled(autocast=low, optimizer="momentum")
    step(inputs, target)
    step.save(tmp_path / "net")
    torch.save(step.model.state_dict(), tmp_path / "model.pt")
    again = net()
    again.load_state_dict(torch.load(tmp_path / "model.pt"))
    loaded = rg.load(tmp_path / "net", again)
    assert loaded.plan == step.plan
    loaded.load_state_dict(step.state_dict())
    for _ in range(2):
        assert torch.equal(loaded(inputs, target), step(inputs, target))
    assert all(torch.equal(value, snapshot(loaded)[key]) for key, value in snapshot(step).items())


def test_gradients_are_float32() -> None:
    inputs, target = batch()
    step = compiled()
    before = snapshot(step)
    optimizer = torch.optim.AdamW([*step.model.parameters(), *step.synapses.values()], lr=0.01)
    first = rg.assign_grads(step, inputs, target)
    assert changed(step, before) == set()
    assert first.dtype == torch.float32
    for held in (*step.model.parameters(), *step.synapses.values()):
        assert held.grad is not None
        assert held.grad.dtype == torch.float32
    for _ in range(10):
        optimizer.step()
        rg.assign_grads(step, inputs, target)
    assert rg.assign_grads(step, inputs, target) < first


@pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))) or sys.platform != "linux",
    reason="Inductor needs a C++ compiler",
)
@pytest.mark.parametrize("low", ["bfloat16", "float16"])
def test_a_fused_step_is_the_step(low: str, tmp_path: Path) -> None:
    step = compiled(autocast=low)
    twin = CompiledStep(copy.deepcopy(step.model), step.program, step.constants)
    fused = FusedStep(twin, folder=tmp_path)
    inputs, target = batch()
    start = snapshot(step)
    # Inductor keeps numbers in float32 between operators that it joins: it rounds less often.
    torch.testing.assert_close(fused(inputs, target), step(inputs, target), rtol=1e-2, atol=0)
    assert fused.why == ""
    after = snapshot(twin)
    for key, value in snapshot(step).items():
        assert after[key].dtype == value.dtype
        if not torch.equal(value, start[key]):
            moved = (value - start[key]).norm()
            assert float((after[key] - value).norm() / moved) < 2**-6, key


def test_modules_that_run_as_they_are_get_float32() -> None:
    torch.manual_seed(0)
    step = rg.compile(test_opaque_step.Net(), torch.randn(6, 4), lr=0.1, autocast="bfloat16")
    inputs, target = test_opaque_step.batch()
    before = snapshot(step)
    losses = [float(step(inputs, target)) for _ in range(5)]
    assert losses[-1] < losses[0]
    assert {key for key in changed(step, before) if key.startswith("P.")} == {key for key in before if key[:2] == "P."}


def test_tables_of_positions_stay_float32() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.register_buffer("rate", torch.arange(1.0, 5.0)[None])

        def forward(self, x: Tensor) -> Tensor:
            place = torch.arange(x.shape[1], dtype=torch.float32)[:, None]
            with torch.autocast("cpu", enabled=False):
                table = (place @ self.rate).cos()
            logits: Tensor = self.layer(x * table).mean(1)
            return logits

    graph = explain_model(Turned(), (torch.zeros(2, 5, 4),), {})
    found = autocast(graph, "bfloat16", "cpu", 2).graph
    dtypes = {item.target: item.type.dtype for item in found.operators if item.type is not None}
    assert (dtypes["aten.matmul.default"], dtypes["aten.linear.default"]) == ("float32", "bfloat16")
    refused(rg.UsageError, lambda: autocast(graph, "bfloat16", "meta", 2), "RG405")
