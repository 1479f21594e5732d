"""Random small nets and random wirings, the same in every run."""

from __future__ import annotations

import random
from functools import cache

import torch
from torch import Tensor, nn

from reclra_graph.ir.regions import RegionGraph
from reclra_graph.ir.schedule import Schedule
from tests.models import Signum, SkipMLP, SmallCNN, build, regions_of

NETS = 8
SCHEDULES = range(10)
ACTIVATIONS: tuple[type[nn.Module], ...] = (nn.Tanh, nn.ReLU, Signum, nn.SiLU, nn.ELU, nn.Sigmoid)


@cache
def net(number: int) -> tuple[nn.Module, RegionGraph, tuple[Tensor, ...]]:
    """Net ``number``, its regions, and a batch for it: MLPs with random skips, and two small CNNs."""
    chance = random.Random(number)
    torch.manual_seed(number)
    if number < 6:
        depth, width = 2 + number, chance.randint(3, 6)
        pairs = [(source, target) for target in range(1, depth) for source in range(target)]
        skips = chance.sample(pairs, k=min(len(pairs), chance.randint(1, 3)))
        activations = chance.sample(ACTIVATIONS, k=3)
        model: nn.Module = SkipMLP(width, depth, skips, activations)
        inputs = (torch.randn(4, width),)
    else:
        model = SmallCNN(4, chance.choice(ACTIVATIONS))
        inputs = (torch.randn(4, 2, 8, 8),)
    return model, regions_of(model, *inputs), inputs


def wiring(regions: RegionGraph, seed: int) -> tuple[str, ...]:
    """Random error edges: a tree where the seed is even, else a DAG with up to three edges into a region."""
    chance = random.Random(seed)
    joined = [regions.output]
    waiting = [region.id for region in regions.regions if region.learns and region.id != regions.output]
    chance.shuffle(waiting)
    edges = []
    for region in waiting:
        count = 1 if seed % 2 == 0 else chance.randint(1, min(3, len(joined)))
        edges += [f"{source}->{region}" for source in chance.sample(joined, k=count)]
        joined.append(region)
    return tuple(edges)


@cache
def random_schedule(number: int) -> Schedule:
    """A schedule of a random net under a random wiring on two to five lanes."""
    chance = random.Random(1000 + number)
    model, regions, _ = net(number % NETS)
    wired = "auto" if number % 5 == 0 else wiring(regions, chance.randint(0, 99))
    options = {"synapse_entries": 1} if number % 3 == 0 else {}
    return build(model, regions, gpus=chance.randint(2, 5), wiring=wired, **options).schedule
