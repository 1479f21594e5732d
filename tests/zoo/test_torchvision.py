"""torchvision's residual networks, unchanged: one step equals the reference interpreter's."""

from __future__ import annotations

import copy
from types import ModuleType

import pytest
import torch

import reclra_graph as rg
from reclra_graph.reference import reference_step

pytestmark = pytest.mark.zoo


@pytest.mark.parametrize(("name", "regions", "blocks"), [("resnet18", 18, 8), ("resnet50", 50, 16)])
def test_one_step_equals_the_reference(torchvision: ModuleType, name: str, regions: int, blocks: int) -> None:
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(num_classes=10).double()
    x, target = torch.randn(4, 3, 64, 64, dtype=torch.float64), torch.randint(0, 10, (4,))
    step = rg.compile(model, x, gpus=5, lr=0.01)
    # One region per convolution and the head; the projection of a skip shares the pre-activation it is added to.
    assert len(step.plan.regions.regions) - 1 == regions
    assert (step.plan.wiring, step.plan.depth, len(step.plan.relays)) == ("blocks", 2, blocks)
    twin = copy.deepcopy(model)
    held = {**{key: value.detach() for key, value in twin.named_parameters()}, **dict(twin.named_buffers())}
    synapses = {key: value.clone() for key, value in step.synapses.items()}
    loss = step(x, target)
    assert float((loss - reference_step(step.plan, held, synapses, (x,), target)).abs()) < 1e-12
    for key, value in model.state_dict().items():
        assert float((value - held[key]).abs().max()) < 1e-12, key
