"""Every lane on a device of its own, without any: each operator must find all its tensors on its lane's device."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from reclra_graph.ir.regions import RegionGraph
from reclra_graph.ir.schedule import Run
from reclra_graph.runtime.compiled import CompiledStep
from reclra_graph.runtime.loader import load_source
from tests.differential.test_shared_synapses import Repeated
from tests.models import LocalNet, batch_for, build, mlp, regions_of
from tests.unit.test_opaque_step import Net as Opaque


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.a, self.b = (nn.Linear(6, size) for size in (6, 6, 3, 2))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = torch.tanh(self.first(x))
        return {"a": self.a(torch.relu(self.second(z))), "b": self.b(z)}


class Devices(TorchDispatchMode):
    """Remembers on which lane's device each storage is, and every operator that reads one of another device."""

    def __init__(self) -> None:
        super().__init__()
        self.lane = 0
        self.home: dict[int, int] = {}
        self.kept: list[Tensor] = []
        self.wrong: list[str] = []

    def put(self, value: Tensor, lane: int) -> Tensor:
        self.home[value.untyped_storage()._cdata] = lane
        self.kept.append(value)
        return value

    def of(self, value: Tensor) -> int:
        return self.home.get(value.untyped_storage()._cdata, self.lane)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor) and self.of(value) != self.lane:
                self.wrong.append(f"{func} on lane {self.lane} reads {tuple(value.shape)} of lane {self.of(value)}")
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self.put(value, self.of(value))
        return result


def strays(step: CompiledStep) -> list[str]:
    """What operators of one step read of other devices, each lane being on one of its own."""
    module, devices = load_source(step.source, "<step>"), Devices()
    places = getattr(module, "PLACES", {})
    brought: dict[tuple[int, int], Tensor] = {}

    class Lanes(module.Lanes):  # type: ignore[misc, name-defined]
        @contextlib.contextmanager
        def lane(self, number: int) -> Iterator[None]:
            before, devices.lane = devices.lane, number
            yield
            devices.lane = before

        def here(self, value: Tensor) -> Tensor:
            if devices.of(value) == devices.lane:
                return value
            if (devices.lane, id(value)) not in brought:
                with _disable_current_modes():
                    copied = value.clone()
                brought[devices.lane, id(value)] = devices.put(copied, devices.lane)
                devices.kept.append(value)
            return brought[devices.lane, id(value)]

    def optimise(store: dict[str, Tensor], name: str, delta: Tensor, lr: float) -> None:
        if places or store is E:
            assert devices.of(store[name]) == devices.lane, name
        assert devices.of(delta) == devices.lane, name

    module.__dict__["Lanes"] = Lanes
    P = {key: devices.put(value, places.get(key, 0)) for key, value in step.storage().items()}
    E = {key: devices.put(value, module.SYNAPSES[key][2]) for key, value in step.store.all().items()}
    inputs, target = batch_for(step, 4)
    for value in tree_leaves((inputs, target)):
        devices.put(value, 0)
    with devices:
        module.step(P, E, *inputs, target, optimise=optimise, **step.settings())
    return devices.wrong


NETS: dict[str, tuple[Callable[[], nn.Module], Tensor, dict[str, Any]]] = {
    "mlp": (lambda: mlp(6, 8, 4, 3), torch.zeros(4, 6), {}),
    "repeated": (Repeated, torch.zeros(4, 4), {}),
    "local": (LocalNet, torch.zeros(4, 6), {}),
    "two_outputs": (Heads, torch.zeros(4, 6), {"loss": (("a", "cross-entropy"), ("b", "mse"))}),
    "opaque": (Opaque, torch.randn(4, 4, generator=torch.Generator().manual_seed(0)), {}),
}


@cache
def regions(name: str) -> tuple[nn.Module, RegionGraph]:
    make, x, usual = NETS[name]
    torch.manual_seed(0)
    model = make()
    return model, regions_of(model, x, **usual)


@pytest.mark.parametrize(
    "options",
    [{}, {"synapse": "lowrank(2)"}, {"micro_batches": 2}, {"placement": "pipeline"}, {"overlap_steps": True}],
    ids=str,
)
@pytest.mark.parametrize("name", NETS)
def test_no_lane_reads_what_is_elsewhere(name: str, options: dict[str, Any]) -> None:
    step = build(*regions(name), **{"gpus": 4, "wiring": "flat", "synapse": "implicit", **NETS[name][2], **options})
    assert len(step.schedule.lanes) > 1
    assert strays(step) == []


def test_the_run_of_an_opaque_sub_module_stays_where_it_was() -> None:
    away = 0
    for gpus in (2, 3, 4, 5):
        step = build(*regions("opaque"), gpus=gpus, wiring="flat")
        lanes = {action.task: action.lane for action in step.schedule.actions if isinstance(action, Run)}
        away += lanes["update:2"] != 0
        assert re.search(r"= opaque_vjp\(M\['inner'\], \w+, \[", step.source)
    assert away


class Gpu(int):
    """A GPU by its number."""

    type = "cuda"


class Stream:
    """Notes which streams it has waited for."""

    def __init__(self, device: Gpu) -> None:
        self.device = device
        self.after: list[Stream] = []

    def record_event(self) -> Stream:
        return self

    def wait_event(self, event: Stream) -> None:
        self.after.append(event)

    wait_stream = wait_event


@pytest.mark.parametrize("options", [{}, {"placement": "pipeline"}, {"overlap_steps": True}], ids=str)
def test_the_streams_of_other_gpus_wait_for_the_step_and_it_for_them(options: dict[str, Any]) -> None:
    step = build(*regions("mlp"), gpus=3, **options)
    module = load_source(step.source, "<step>")
    usual = {Gpu(number): Stream(Gpu(number)) for number in range(3)}
    cuda = SimpleNamespace(Stream=Stream, current_stream=usual.__getitem__)
    module.__dict__.update(torch=SimpleNamespace(cuda=cuda), lane_device=lambda lane, device: Gpu(lane))
    lanes = module.__dict__["Lanes"](Gpu(0))
    for number in (1, 2):
        assert usual[Gpu(number)] in lanes.queues[number].after
        assert lanes.queues[number] not in usual[Gpu(number)].after
    if "overlap_steps" in options:
        lanes.leave(None, {})
        module.__dict__["join"](Gpu(0))
    else:
        assert "    lanes.end()\n    return loss\n" in step.source
        lanes.end()
    for number in (1, 2):
        assert lanes.queues[number] in usual[Gpu(number)].after


def test_a_step_is_joined_wherever_its_first_lane_was() -> None:
    step = build(*regions("mlp"), gpus=3, overlap_steps=True)
    step.join()
    joined: list[Gpu] = []
    step.module.__dict__["Lanes"].left[Gpu(1)] = None
    step.module.__dict__["join"] = joined.append
    step.join()
    assert joined == [Gpu(1)]
