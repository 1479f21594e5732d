"""OperatorGraph → RegionGraph: which operators learn together, where error neurons stand, how each parameter learns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import reclra_graph as rg
from reclra_graph.ir.regions import Region, RegionGraph
from reclra_graph.passes.partition import partition
from tests.models import ResidualCNN, Signum, captured, figure1_regions, mlp, regions_of, residual_cnn, tied, two_inputs


def short(name: str) -> str:
    return name.rpartition(".")[2]


def layers(regions: RegionGraph) -> list[Region]:
    return [region for region in regions.regions if region.kind != "input"]


def words_of(regions: RegionGraph, region: Region) -> list[str]:
    """Operators of a region as words, φ in angle brackets, sizes left out."""
    graph = regions.graph
    words = []
    for name in region.operators:
        operator = graph.by_name[name]
        if operator.target == "operator.getitem" or operator.target.startswith("aten.sym_"):
            continue
        word = operator.target.split(".")[1].strip("_")
        words.append(f"<{word}>" if name in region.activation else word)
    return words


def rules_of(region: Region) -> dict[str, str]:
    return {update.parameter: short(update.rule) for update in region.updates}


class Lambda(nn.Module):
    """Any function between layers."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.function(x)  # type: ignore[operator]
        return result


def test_one_region_per_layer() -> None:
    _, regions = figure1_regions()
    assert [region.kind for region in regions.regions] == ["input", *["layer"] * 9]
    assert [region.name for region in layers(regions)] == [str(number) for number in range(0, 18, 2)]
    assert [region.shape for region in layers(regions)] == [(16,), (4,), (16,), (16,), (4,), (16,), (16,), (4,), (10,)]
    assert [region.units for region in layers(regions)] == [16, 4, 16, 16, 4, 16, 16, 4, 10]
    assert [words_of(regions, region) for region in layers(regions)] == [["linear", "<tanh>"]] * 8 + [["linear"]]
    assert regions.output == 9
    assert regions.edges == tuple((number, number + 1) for number in range(9))
    for region in layers(regions):
        path = region.name
        assert rules_of(region) == {f"{path}.weight": "linear_weight", f"{path}.bias": "linear_bias"}
        assert [update.position for update in region.updates] == [1, 2]
    assert regions.frozen == ()


ACTIVATIONS: list[tuple[nn.Module, str]] = [
    (nn.Tanh(), "tanh"), (nn.ReLU(), "relu"), (nn.ELU(), "elu"), (nn.Sigmoid(), "sigmoid"), (nn.GELU(), "gelu"),
    (nn.SiLU(), "silu"), (Signum(), "sign"), (nn.Softplus(), "softplus"),
]  # fmt: skip


@pytest.mark.parametrize(("activation", "name"), ACTIVATIONS, ids=lambda item: str(item))
def test_activations(activation: nn.Module, name: str) -> None:
    regions = regions_of(nn.Sequential(nn.Linear(3, 4), activation, nn.Linear(4, 2)), torch.zeros(2, 3))
    first, second = layers(regions)
    assert words_of(regions, first) == ["linear", f"<{name}>"]
    assert (first.pre, first.post) == ("linear", first.activation[0])
    # The output's activation is the loss's business: z_L = h_L.
    assert words_of(regions, second) == ["linear"]
    assert second.activation == ()
    assert second.pre == second.post


def test_without_activation_phi_is_the_identity() -> None:
    regions = regions_of(nn.Sequential(nn.Linear(3, 4), nn.Identity(), nn.Linear(4, 2)), torch.zeros(2, 3))
    first = layers(regions)[0]
    assert (first.activation, first.pre, first.post) == ((), "linear", "linear")


def test_norm_pool_and_dropout_around_the_activation() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.AvgPool2d(2),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Dropout(0.5),
        nn.MaxPool2d(2),
        nn.Tanh(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(6, 3),
    )
    regions = regions_of(model, torch.zeros(3, 1, 8, 8))
    first, second, third = layers(regions)
    # Error neurons stand behind the pool: h has its shape. What follows φ carries none.
    assert words_of(regions, first)[:4] == ["conv2d", "native_batch_norm_legit_functional", "avg_pool2d", "<relu>"]
    assert words_of(regions, first)[-1] == "native_dropout"
    assert first.shape == (4, 4, 4)
    assert words_of(regions, second)[:4] == ["conv2d", "native_dropout", "max_pool2d", "<tanh>"]
    assert second.shape == (6, 2, 2)
    assert words_of(regions, third) == ["linear"]
    assert rules_of(first) == {
        "0.weight": "conv_weight", "0.bias": "channel_bias", "1.weight": "batch_norm_scale", "1.bias": "channel_bias",
    }  # fmt: skip
    # The way from h back to the convolution, nearest to h first.
    update = {item.parameter: item for item in first.updates}
    graph = regions.graph
    assert [graph.by_name[name].target.split(".")[1] for name in update["0.weight"].path] == [
        "avg_pool2d", "getitem", "_native_batch_norm_legit_functional",
    ]  # fmt: skip
    assert [graph.by_name[name].target.split(".")[1] for name in update["1.weight"].path] == ["avg_pool2d", "getitem"]


def test_a_region_ends_where_no_error_can_be_carried() -> None:
    # exp is no linear map: error neurons stand before it, and it counts as the non-linearity only when it comes first.
    model = nn.Sequential(nn.Linear(3, 4), Lambda(lambda h: h.cumsum(1)), nn.Tanh(), nn.Linear(4, 2))
    regions = regions_of(model, torch.zeros(2, 3))
    first = layers(regions)[0]
    assert (first.pre, first.activation, first.post) == ("linear", (), "linear")
    assert words_of(regions, first) == ["linear", "cumsum", "tanh"]


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 8, 3, stride=2, padding=1),
        nn.Conv2d(4, 8, 3, padding=2, dilation=2, groups=4),
        nn.Conv2d(4, 4, 3, groups=4, bias=False),
        nn.Conv2d(4, 6, (3, 1), padding="same"),
        nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1),
    ],
    ids=["stride", "dilation and groups", "depthwise", "same", "transposed"],
)
def test_convolutions_have_closed_forms(conv: nn.Conv2d) -> None:
    size = conv(torch.zeros(1, 4, 8, 8)).numel()
    regions = regions_of(nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(size, 2)), torch.zeros(2, 4, 8, 8))
    first = layers(regions)[0]
    assert first.shape == tuple(conv(torch.zeros(1, 4, 8, 8)).shape[1:])
    wanted = {"0.weight": "conv_weight", "0.bias": "channel_bias"}
    assert rules_of(first) == {key: rule for key, rule in wanted.items() if key != "0.bias" or conv.bias is not None}


def test_other_ranks_and_tables() -> None:
    line = regions_of(
        nn.Sequential(nn.Conv1d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(24, 2)), torch.zeros(2, 2, 8)
    )
    assert rules_of(layers(line)[0]) == {"0.weight": "conv_weight", "0.bias": "channel_bias"}
    words = nn.Sequential(nn.Embedding(9, 4), nn.LayerNorm(4), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2))
    regions = regions_of(words, torch.zeros(2, 3, dtype=torch.int64))
    assert rules_of(layers(regions)[0]) == {
        "0.weight": "embedding_weight", "1.weight": "layer_norm_scale", "1.bias": "layer_norm_shift",
    }  # fmt: skip
    assert layers(regions)[0].shape == (3, 4)


def test_residual_blocks_and_projections() -> None:
    regions = residual_cnn().plan.regions
    assert [(region.name, region.block, region.ends_block) for region in layers(regions)] == [
        ("stem", "", False),
        ("blocks.0.conv1", "blocks.0", False),
        ("blocks.0.conv2", "blocks.0", True),
        ("blocks.1.conv1", "blocks.1", False),
        ("blocks.1.conv2", "blocks.1", True),
        ("head", "", False),
    ]
    # h of a block's last region is the sum; its z is the block's output. The projection learns from the same error.
    last = regions.regions[5]
    graph = regions.graph
    assert graph.by_name[last.pre].target == "aten.add.Tensor"
    assert {key for key in rules_of(last) if "skip" in key} == {"blocks.1.skip.weight", "blocks.1.skip.bias"}
    assert graph.by_name[regions.regions[3].pre].target == "aten.add.Tensor"
    # A pool between blocks belongs to the region before it and carries no error neurons.
    assert words_of(regions, regions.regions[1])[-2:] == ["<relu>", "max_pool2d"]


def test_the_projection_of_a_residual_mlp_shares_its_region() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.p = nn.Linear(5, 4), nn.Linear(4, 6), nn.Linear(5, 6, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.p(x) + self.b(torch.tanh(self.a(x))))

    regions = regions_of(nn.Sequential(Block(), nn.Linear(6, 3)), torch.zeros(2, 5))
    assert [set(rules_of(region)) for region in layers(regions)] == [
        {"0.a.weight", "0.a.bias"}, {"0.b.weight", "0.b.bias", "0.p.weight"}, {"1.weight", "1.bias"},
    ]  # fmt: skip
    assert layers(regions)[1].units == 6


def test_pre_activation_blocks() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.n1, self.c1 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
            self.n2, self.c2 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            h = self.c1(torch.relu(self.n1(x)))
            return x + self.c2(torch.relu(self.n2(h)))  # type: ignore[no-any-return]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.body = nn.Conv2d(1, 4, 3, padding=1), nn.Sequential(Block(), Block())
            self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            z = torch.relu(self.norm(self.body(self.stem(x))))
            logits: Tensor = self.head(z.mean((2, 3)))
            return logits

    regions = regions_of(Net(), torch.zeros(3, 1, 5, 5))
    ends = [region for region in layers(regions) if region.ends_block]
    assert [region.block for region in ends] == ["body.0", "body.1"]
    for region in ends:
        # The block's output, the sum, carries the error neurons.
        assert regions.graph.by_name[region.post].target == "aten.add.Tensor"
        assert region.activation == ()
    assert sorted(key for region in layers(regions) for key in region.parameters) == sorted(
        key for key, _ in Net().named_parameters()
    )
    step = rg.compile(Net(), torch.zeros(3, 1, 5, 5), wiring="blocks")
    assert set(step.plan.relays) == {region.id for region in ends}
    assert bool(step(torch.randn(4, 1, 5, 5), torch.tensor([0, 1, 2, 0])).isfinite())


class Both(nn.Module):
    """A layer that leads to the output directly and over another layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        return (h * self.b(h)).exp() + torch.sin(self.c(h)).exp()


def test_the_output_without_parameters() -> None:
    # log_softmax is the last layer's activation; behind a global pooling the last layer reaches up to the output.
    log = regions_of(
        nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.LogSoftmax(dim=1)), torch.zeros(2, 4)
    )
    assert [region.kind for region in log.regions] == ["input", "layer", "layer"]
    assert words_of(log, log.regions[2]) == ["linear", "<log_softmax>"]
    assert log.regions[log.output].post == log.graph.output
    pooled = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    tail = regions_of(pooled, torch.zeros(2, 1, 5, 5))
    assert [region.kind for region in tail.regions] == ["input", "layer", "layer"]
    last = tail.regions[tail.output]
    assert (last.learns, last.shape, last.pre, last.post) == (True, (3,), tail.graph.output, tail.graph.output)
    step = rg.compile(pooled, torch.zeros(2, 1, 5, 5))
    assert {edge.name for edge in step.plan.edges} == {"2->1"}
    assert step.plan.update == ((1, "analytic"), (2, "local_vjp"))
    # All layers that lead to the output alone are taken in; one that leads to other layers too is not.
    both = regions_of(Both(), torch.zeros(2, 4))
    assert [(region.name, region.kind) for region in both.regions[1:]] == [("a", "layer"), ("b", "layer")]
    assert both.regions[2].parameters == ("b.weight", "b.bias", "c.weight", "c.bias")


def test_several_inputs_share_region_0() -> None:
    regions = two_inputs().plan.regions
    assert [region.name for region in regions.regions] == ["input", "conv", "side", "out"]
    assert regions.edges == ((0, 1), (0, 2), (1, 2), (2, 3))


def test_operators_on_the_input_belong_to_region_0() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.layer((x.flatten(1) - 0.5) / 0.25)
            return logits

    regions = regions_of(Scaled(), torch.zeros(2, 2, 2))
    assert words_of(regions, regions.regions[0])[-2:] == ["sub", "div"]
    assert regions.regions[0].kind == "input"
    assert [region.name for region in layers(regions)] == ["layer"]


def test_tied_weights_learn_where_they_are_used() -> None:
    regions = tied().plan.regions
    assert [region.name for region in layers(regions)] == ["first", "second", "again", "again", "head"]
    users = [region.id for region in layers(regions) if "first.weight" in region.parameters]
    assert users == [1, 2]
    assert [region.id for region in layers(regions) if "again.weight" in region.parameters] == [3, 4]


def test_what_does_not_learn_is_listed_with_its_reason() -> None:
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
            self.spare = nn.Linear(2, 2)
            self.dead = nn.Linear(4, 4)
            self.a.bias.requires_grad_(False)
            for item in self.b.parameters():
                item.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            z = torch.tanh(self.a(x))
            self.dead(z)
            logits: Tensor = self.c(torch.tanh(self.b(z)))
            return logits

    model = Partly()
    step = rg.compile(model, torch.zeros(2, 4), lr=0.5)
    assert dict(step.plan.regions.frozen) == {
        "a.bias": "requires_grad is False",
        "b.weight": "requires_grad is False",
        "b.bias": "requires_grad is False",
        "spare.weight": "not used by forward()",
        "spare.bias": "not used by forward()",
        "dead.weight": "not used by forward()",
        "dead.bias": "not used by forward()",
    }
    assert [region.learns for region in layers(step.plan.regions)] == [True, False, True]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    step(torch.randn(3, 4), torch.tensor([0, 1, 2]))
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {"a.weight", "c.weight", "c.bias"}


def test_errors_are_found_together() -> None:
    frozen = mlp(3, 4, 2).requires_grad_(False)
    for model, inputs, code in (
        (nn.Sequential(nn.Tanh(), nn.ReLU()), torch.zeros(2, 3), "RG301"),
        (frozen, torch.zeros(2, 3), "RG302"),
    ):
        with pytest.raises(rg.ModelError) as refused:
            partition(captured(model, inputs))
        assert refused.value.codes == (code,)

    class Edges(nn.Module):
        """Two layers over the edges of a graph, and no one value behind them that tells the nodes apart."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(4, 6)
            self.register_buffer("edges", torch.tensor([0, 1, 1, 0]))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            messages = torch.cat((torch.tanh(self.a(x[self.edges])), torch.tanh(self.b(x[self.edges]))), 1)
            zeros = messages.new_zeros(x.shape[0], 12)
            return zeros.index_add(0, self.edges, messages), zeros.index_add(0, self.edges.flip(0), messages)

    both = (("0", "mse"), ("1", "mse"))
    with pytest.raises(rg.ModelError) as refused:
        partition(captured(Edges(), torch.zeros(3, 4), loss=both))
    assert refused.value.codes == ("RG305", "RG305")
    assert [problem.cause.split()[0] for problem in refused.value.problems] == ["a", "b"]


def test_every_region_names_its_line() -> None:
    regions = regions_of(ResidualCNN(), torch.zeros(2, 1, 6, 6))
    assert all(region.line.startswith("tests/models.py:") for region in layers(regions))
