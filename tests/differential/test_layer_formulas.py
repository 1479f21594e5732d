"""Updates of layers other than dense ones, against torch.autograd in the test.

Every net is stage -> flatten -> linear with one error edge from the output to the stage and no activation, so the
stage's error is known in closed form: e_1 = h_1 - (h_1 - beta d_1), d_1 = E e_L. A layer's update must be its weight
gradient with e_1 (divided by the batch) as the cotangent at h_1, which autograd gives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import reclra_graph as rg

BETA = 0.1
CLASSES = 3
BATCH = 5


class Net(nn.Module):
    """A stage, and a linear layer on its flattened output."""

    def __init__(self, stage: nn.Module, example: Tensor) -> None:
        super().__init__()
        self.stage = stage
        with torch.no_grad():
            units = stage(example).flatten(1).shape[1]
        self.head = nn.Linear(units, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """[B, ...] to [B, classes]."""
        return cast(Tensor, self.head(self.stage(x).flatten(1)))


class Scaled(nn.Module):
    """A linear layer without bias, then a scale and a shift of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4, bias=False)
        self.scale = nn.Parameter(torch.rand(4) + 0.5)
        self.shift = nn.Parameter(torch.rand(4))

    def forward(self, x: Tensor) -> Tensor:
        """[B, 6] to [B, 4]."""
        return cast(Tensor, self.linear(x)) * self.scale + self.shift


class TwoBranches(nn.Module):
    """Two convolutions of one input whose results are added: one pre-activation, two sources."""

    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.skip = nn.Conv2d(4, 6, 1, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 4, H, W] to [B, 6, H/2, W/2]."""
        return cast(Tensor, self.main(x)) + cast(Tensor, self.skip(x))


IMAGE = (4, 9, 8)
STAGES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv": (lambda: nn.Conv2d(4, 6, 3), IMAGE),
    "conv without bias": (lambda: nn.Conv2d(4, 6, (2, 3), bias=False), IMAGE),
    "conv stride that leaves a rest": (lambda: nn.Conv2d(4, 6, 3, stride=(3, 2)), IMAGE),
    "conv stride, padding": (lambda: nn.Conv2d(4, 6, 5, stride=2, padding=(1, 3)), IMAGE),
    "conv dilation": (lambda: nn.Conv2d(4, 6, 3, dilation=(2, 3), padding=2), IMAGE),
    "conv groups": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), IMAGE),
    "conv depthwise, stride, dilation": (lambda: nn.Conv2d(4, 8, 3, 2, padding=2, dilation=2, groups=4), IMAGE),
    "conv padding same": (lambda: nn.Conv2d(4, 6, (3, 5), padding="same"), IMAGE),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2), (4, 11)),
    "conv3d": (lambda: nn.Conv3d(2, 4, (1, 3, 2), stride=(1, 2, 1), padding=(0, 1, 1)), (2, 3, 5, 4)),
    "two convolutions added": (TwoBranches, IMAGE),
    "conv, max pool": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.MaxPool2d(3, 2, padding=1)), IMAGE),
    "conv, average pool": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.AvgPool2d(2)), IMAGE),
    "conv, adaptive pool": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.AdaptiveAvgPool2d((2, 3))), IMAGE),
    "linear over positions": (lambda: nn.Linear(8, 5), IMAGE),
    "scale and shift": (Scaled, (6,)),
    "batch norm of the input": (lambda: nn.BatchNorm2d(4), IMAGE),
    "batch norm 1d of the input": (lambda: nn.BatchNorm1d(6), (6,)),
    "layer norm of the input": (lambda: nn.LayerNorm((9, 8)), IMAGE),
    "group norm of the input": (lambda: nn.GroupNorm(2, 4), IMAGE),
}
NORMED: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv, batch norm": (lambda: nn.Conv2d(4, 6, 3), lambda: nn.BatchNorm2d(6), IMAGE),
    "linear, batch norm": (lambda: nn.Linear(6, 5), lambda: nn.BatchNorm1d(5), (6,)),
    "conv, group norm": (lambda: nn.Conv2d(4, 6, 3), lambda: nn.GroupNorm(3, 6), IMAGE),
    "linear, layer norm": (lambda: nn.Linear(6, 5), lambda: nn.LayerNorm(5), (6,)),
}


def compiled(stage: nn.Module, x: Tensor) -> tuple[Net, rg.CompiledStep]:
    """The float64 net around the stage and its step, with a dense synapse."""
    torch.manual_seed(0)
    net = Net(stage, x.float() if x.is_floating_point() else x).double()
    step = rg.compile(net, (x,), wiring=("2->1",), beta=BETA, lr=0.1)
    assert step.plan.regions.output == 2
    return net, step


def expected(net: Net, step: rg.CompiledStep, x: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and every parameter's gradient by the formulas above."""
    h = net.stage(x)
    logits = net.head(h.flatten(1))
    error = torch.softmax(logits, dim=1) - functional.one_hot(target, CLASSES)
    synapse = step.synapses["2->1"].detach()
    assert synapse.shape == (h[0].numel(), CLASSES)
    displacement = (error @ synapse.T).reshape(h.shape)
    cotangent = (h - (h - BETA * displacement)).detach() / len(x)
    names, parameters = zip(*net.stage.named_parameters(), strict=True)
    local = torch.autograd.grad(h, parameters, cotangent)
    head = torch.autograd.grad(functional.cross_entropy(logits, target), list(net.head.parameters()))
    found = {f"stage.{name}": gradient for name, gradient in zip(names, local, strict=True)}
    found |= {f"head.{name}": gradient for (name, _), gradient in zip(net.head.named_parameters(), head, strict=True)}
    return functional.cross_entropy(logits, target).detach(), found


def check(net: Net, step: rg.CompiledStep, x: Tensor) -> None:
    """assign_grads gives the expected gradients; one step moves the parameters along them."""
    target = torch.tensor([0, 2, 1, 1, 0])[: len(x)]
    loss, wanted = expected(net, step, x, target)
    assert abs(float(rg.assign_grads(step, x, target)) - float(loss)) < 1e-12
    start = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert float((parameter.grad - wanted[name]).abs().max()) < 1e-12, name
    step(x, target)
    for name, parameter in net.named_parameters():
        assert float((parameter.detach() - (start[name] - 0.1 * wanted[name])).abs().max()) < 1e-12, name


@pytest.mark.parametrize("name", sorted(STAGES))
def test_a_layers_update_is_its_own_weight_gradient(name: str) -> None:
    make, shape = STAGES[name]
    torch.manual_seed(1)
    x = torch.randn(BATCH, *shape, dtype=torch.float64)
    net, step = compiled(make(), x)
    check(net, step, x)


@pytest.mark.parametrize("padding_idx", [None, 3])
def test_an_embeddings_rows_gather_the_errors_of_their_tokens(padding_idx: int | None) -> None:
    tokens = torch.tensor([[0, 3, 3, 6], [1, 0, 5, 3], [6, 6, 6, 6], [3, 1, 2, 0], [5, 5, 3, 1]])
    net, step = compiled(nn.Embedding(7, 3, padding_idx=padding_idx), tokens)
    check(net, step, tokens)
    assert isinstance(net.stage, nn.Embedding)
    assert net.stage.weight.grad is not None
    assert not net.stage.weight.grad[4].any()


def test_batch_norms_running_statistics_are_those_of_a_forward_pass() -> None:
    torch.manual_seed(1)
    x = torch.randn(BATCH, *IMAGE, dtype=torch.float64)
    net, step = compiled(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)), x)
    twin = Net(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)), x.float()).double()
    twin.load_state_dict(net.state_dict())
    twin(x)
    step(x, torch.tensor([0, 2, 1, 1, 0]))
    for name, buffer in net.named_buffers():
        assert torch.allclose(buffer, dict(twin.named_buffers())[name], rtol=0, atol=1e-12), name


@pytest.mark.parametrize("activation", ["identity", "tanh"])
@pytest.mark.parametrize("name", sorted(NORMED))
def test_an_error_passes_a_normalisation_as_it_is(name: str, activation: str) -> None:
    """Layer, norm, phi: e_1 = phi(h) - phi(h - beta d) stands at h, the norm's output, and is the cotangent there for
    the norm's scale and shift; Eq. 5 takes no derivative, so the same e_1 is the layer's output error too."""
    make_layer, make_norm, shape = NORMED[name]
    torch.manual_seed(1)
    x = torch.randn(BATCH, *shape, dtype=torch.float64)
    target = torch.tensor([0, 2, 1, 1, 0])
    layer, norm = make_layer(), make_norm()
    phi = nn.Tanh() if activation == "tanh" else nn.Identity()
    net, step = compiled(nn.Sequential(layer, norm, phi), x)
    a = layer(x)
    h = norm(a)
    z = phi(h)
    error = torch.softmax(net.head(z.flatten(1)), dim=1) - functional.one_hot(target, CLASSES)
    displacement = (error @ step.synapses["2->1"].T).reshape(h.shape)
    cotangent = (z - phi(h - BETA * displacement)).detach() / BATCH
    of_norm = torch.autograd.grad(h, list(norm.parameters()), cotangent, retain_graph=True)
    of_layer = torch.autograd.grad(a, list(layer.parameters()), cotangent)
    parameters = [*norm.parameters(), *layer.parameters()]
    rg.assign_grads(step, x, target)
    for parameter, gradient in zip(parameters, (*of_norm, *of_layer), strict=True):
        assert parameter.grad is not None
        assert float((parameter.grad - gradient).abs().max()) < 1e-12, tuple(parameter.shape)


@pytest.mark.parametrize(
    "phi",
    [nn.ELU(0.5), nn.GELU("tanh"), nn.ReLU(inplace=True), nn.Sequential(nn.Tanh(), nn.Dropout(0.4))],
    ids=["elu with alpha", "gelu by tanh", "relu in place", "tanh and dropout"],
)
def test_a_target_takes_the_activation_with_its_own_settings(phi: nn.Module) -> None:
    """y = phi(h - beta d) with the layer's own phi; a dropout behind z masks what the next layer sees, not e."""
    torch.manual_seed(1)
    x = torch.randn(BATCH, 6, dtype=torch.float64)
    target = torch.tensor([0, 2, 1, 1, 0])
    layer = nn.Linear(6, 5)
    net, step = compiled(nn.Sequential(layer, phi), x)
    activation = next(phi.children(), phi)
    h = layer(x)
    torch.manual_seed(3)
    seen = phi(h.clone())
    logits = net.head(seen)
    error = torch.softmax(logits, dim=1) - functional.one_hot(target, CLASSES)
    displacement = (error @ step.synapses["2->1"].T).detach()
    cotangent = (activation(h.clone()) - activation(h - BETA * displacement)).detach() / BATCH
    parameters = [*layer.parameters(), *net.head.parameters()]
    wanted = [
        *torch.autograd.grad(h, list(layer.parameters()), cotangent, retain_graph=True),
        *torch.autograd.grad(functional.cross_entropy(logits, target), list(net.head.parameters())),
    ]
    torch.manual_seed(3)
    rg.assign_grads(step, x, target)
    for parameter, gradient in zip(parameters, wanted, strict=True):
        assert parameter.grad is not None
        assert float((parameter.grad - gradient).abs().max()) < 1e-12, tuple(parameter.shape)


class TwoInputs(nn.Module):
    """Two inputs of different widths, each through its own layer, summed before the non-linearity."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(6, 5)
        self.right = nn.Linear(3, 5, bias=False)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor, extra: Tensor) -> Tensor:
        """[B, 6] and [B, 3] to [B, classes]."""
        return cast(Tensor, self.head(torch.tanh(self.left(x) + self.right(extra))))


def test_two_inputs_summed_into_one_pre_activation_learn_from_one_error() -> None:
    torch.manual_seed(1)
    net = TwoInputs().double()
    x, extra = torch.randn(BATCH, 6, dtype=torch.float64), torch.randn(BATCH, 3, dtype=torch.float64)
    target = torch.tensor([0, 2, 1, 1, 0])
    step = rg.compile(net, (x, extra), wiring="flat", beta=BETA)
    with torch.no_grad():
        h = net.left(x) + net.right(extra)
        error = torch.softmax(net.head(torch.tanh(h)), dim=1) - functional.one_hot(target, CLASSES)
        e = torch.tanh(h) - torch.tanh(h - BETA * (error @ step.synapses["2->1"].T))
    rg.assign_grads(step, (x, extra), target)
    for parameter, wanted in (
        (net.left.weight, e.T @ x),
        (net.left.bias, e.sum(0)),
        (net.right.weight, e.T @ extra),
        (net.head.weight, error.T @ torch.tanh(h)),
        (net.head.bias, error.sum(0)),
    ):
        assert parameter.grad is not None
        assert float((parameter.grad - wanted / BATCH).abs().max()) < 1e-12, tuple(parameter.shape)
