"""A machine that runs a schedule's tasks one call at a time, in any order of actions it is given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from reclra_graph.ir.operators import DeviceArgument, Ref, TorchConstant
from reclra_graph.ir.schedule import Action, Free, Run, Schedule
from reclra_graph.ir.tasks import Call
from reclra_graph.rules import rule
from reclra_graph.rules.operators import function


class Machine:
    """``P``: parameters, buffers and constants by key; ``E``: synapses. Both change in place."""

    def __init__(self, schedule: Schedule, P: Mapping[str, Tensor], E: Mapping[str, Tensor]) -> None:
        self.schedule = schedule
        self.P = {key: value.detach().clone() for key, value in P.items()}
        self.E = {key: value.detach().clone() for key, value in E.items()}

    def run(self, actions: Iterable[Action], inputs: Sequence[Tensor], target: Any) -> Tensor:
        """Run the tasks in this order and return the loss. Raises KeyError where a value is read that is not there."""
        rates = self.schedule.tasks.plan.rates
        check = next(call for task in self.schedule.tasks.tasks for call in task.calls if call.function == "check")
        names = [item.name for item in check.args[1:] if isinstance(item, Ref)]
        self.values: dict[str, Any] = dict(zip(names, inputs, strict=True))
        self.values.update(target=target, B=inputs[0].shape[0], lr=rates.lr, beta=rates.beta, gamma=rates.gamma)
        with torch.no_grad():
            for action in actions:
                if isinstance(action, Run):
                    for call in self.schedule.tasks.by_name[action.task].calls:
                        self.call(call)
                elif isinstance(action, Free):
                    for value in action.values:
                        del self.values[value]
        loss: Tensor = self.values["loss"]
        return loss

    def call(self, call: Call) -> None:
        """One line of a task."""
        if call.function == "after":
            return
        if call.function == "check":
            assert all(bool(torch.isfinite(self.given(item, True)).all()) for item in call.args)
        elif call.function == "optimise":
            store, delta, lr = (self.given(item, True) for item in call.args)
            store.sub_(delta, alpha=lr)
        else:
            rules = call.function.startswith("rules.")
            work = rule(call.function) if rules else function(call.function)
            result = work(
                *(self.given(item, rules) for item in call.args), **{k: self.given(v, rules) for k, v in call.kwargs}
            )
            parts = tuple(result) if call.unpack else (result,)
            self.values.update(
                {name: part for name, part in zip(call.results, parts, strict=bool(call.results)) if name}
            )

    def given(self, argument: Any, rules: bool) -> Any:
        """The value of an argument: operators take lists where rules take tuples."""
        if isinstance(argument, Ref):
            if argument.name == "_":
                return argument
            if argument.name[1:2] == "[":
                stores = {"P": self.P, "E": self.E, "T": self.values["target"]}
                return stores[argument.name[0]][argument.name[2:-1]]
            return self.values[argument.name]
        if isinstance(argument, TorchConstant):
            return getattr(torch, argument.name)
        if isinstance(argument, DeviceArgument):
            return torch.device("cpu")
        if isinstance(argument, tuple):
            items = [self.given(item, rules) for item in argument]
            return tuple(items) if rules else items
        return argument
