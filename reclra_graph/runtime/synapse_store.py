"""The synapses that a step works on: those that users see, and the matrices through which some of them learn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType

import torch
from torch import Tensor


class SynapseStore:
    """``named`` are the synapses by name. Those of the emitted file's SHARED learn through a matrix each source has
    for them; ``settled`` multiplies it into them, so that users meet synapses as they act, and never a matrix."""

    def __init__(self, module: ModuleType, seed: int, device: torch.device) -> None:
        self.module = module
        self.named: dict[str, Tensor] = module.synapses(seed, device)
        self.groups: Mapping[str, tuple[str, ...]] = module.__dict__.get("SHARED", {})
        self.matrices = {name: self.named.pop(name) for name in self.groups}
        self.beside: tuple[tuple[str, ...], ...] = module.__dict__.get("BESIDE", ())
        self._all: dict[str, Tensor] = {}

    def settled(self) -> dict[str, Tensor]:
        """The synapses as they act."""
        if not all(torch.equal(value, torch.eye(*value.shape).to(value)) for value in self.matrices.values()):
            self.module.settle(self.all())
        return self.named

    def all(self) -> dict[str, Tensor]:
        """What the emitted step takes as E: always the same dict, with what is in ``named`` now."""
        self._all.clear()
        self._all.update(self.named)
        self._all.update(self.matrices)
        return self._all

    def buffers(self) -> dict[str, Tensor]:
        """All memory of E, each part of it once: the buffers of synapses that lie one behind the other under the name
        of the first, everything else under its own."""
        found = dict(self.all())
        for names in self.beside:
            whole = self.module.beside(*(self.named[name] for name in names))
            if whole.data_ptr() == self.named[names[0]].data_ptr():
                for name in names:
                    del found[name]
                found[names[0]] = whole
        return found

    def unpacked(self, buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """E with views of such buffers, or of others like them."""
        found = dict(buffers)
        for names in self.beside:
            if names[0] in buffers and any(name not in buffers for name in names):
                found.update(
                    zip(
                        names,
                        buffers[names[0]].split_with_sizes([len(self.named[name]) for name in names]),
                        strict=True,
                    )
                )
        return found

    def buffer_of(self, name: str) -> str:
        """The name under which ``buffers`` has the memory of a synapse."""
        first = next((names[0] for names in self.beside if name in names), name)
        return name if name in self.buffers() else first

    def deltas(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Directions of descent of the synapses from those of everything that a settled step moves."""
        made = {name: value for name, value in found.items() if name not in self.matrices}
        for matrix, names in self.groups.items():
            if matrix in found:
                made.update({name: self.named[name] @ found[matrix].to(self.named[name].device) for name in names})
        return made

    def place(self, device: torch.device) -> None:
        """Bring every synapse to the lane that owns it, lane 0 being on ``device``."""
        moved = False
        for name, (_, _, lane) in self.module.SYNAPSES.items():
            held = self.matrices if name in self.matrices else self.named
            home = self.module.lane_device(lane, device)
            if held[name].device != home:
                held[name], moved = held[name].to(home), True
        if moved and self.beside:
            self.module.lay_out(self.named)  # what was moved alone is a view of one buffer no more


def besides(wholes: Mapping[int, Tensor]) -> Callable[..., Tensor]:
    """What the emitted file calls ``beside``, where tensors are recorded and have no addresses. ``wholes``: the buffer
    of each first part, by the part's id."""

    def beside(*parts: Tensor) -> Tensor:
        whole = wholes.get(id(parts[0]))
        return whole if whole is not None and len(whole) == sum(len(part) for part in parts) else torch.cat(parts)

    return beside
