"""A schedule over several devices → segments: stretches of one device's work that can be launched in one go.

Before:  actions in host order, on lanes that live on several devices.
After:   segments. Each is on one device, and nothing in it waits for another device, or is waited for by one before it
         ends: what it needs is there when it begins, and what it gives is taken when it has ended. Launched in the
         order given, each behind the segments of its own device and those it names, they keep the schedule's order.

A device's actions are cut where a lane waits for another device, behind what another device waits for, and behind the
loss's check, which the host looks at. Nothing else cuts, so there are as few segments as the hand-overs allow. Lanes of
one device go side by side inside a segment; at its ends they meet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from reclra_graph.ir.homes import homes
from reclra_graph.ir.operators import Ref
from reclra_graph.ir.schedule import Copy, Free, Record, Run, Schedule, Wait
from reclra_graph.ir.tasks import Task


@dataclass(frozen=True)
class Part:
    """A task on a lane, or a half of one that is cut: ``"first"`` up to the check, or without the optimiser's own
    steps; ``"second"`` what is left."""

    task: str
    lane: int
    half: str = ""


Item: TypeAlias = Part | Record | Wait | Free


@dataclass(frozen=True)
class Segment:
    """Work of one device in host order, behind ``copies`` of what other devices made. ``after``: the segments of other
    devices that have to be done, by number. ``check``: whether the host looks at the loss behind it."""

    device: int
    items: tuple[Item, ...]
    copies: tuple[Copy, ...] = ()
    after: tuple[int, ...] = ()
    check: bool = False


@dataclass(eq=False)
class _Open:
    device: int
    first: float = -1
    """Place in host order of its first task; -1 while it has none."""
    items: list[Item] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)
    after: list[_Open] = field(default_factory=list)
    check: bool = False


def segments(schedule: Schedule, devices: Mapping[int, int]) -> tuple[Segment, ...]:
    """The segments of a schedule whose lanes are on ``devices`` (lane to number), in the order to launch them.

    Without a placement the parameters are on lane 0's device, and its optimiser steps for what other devices computed
    stand in a last segment. Raises ValueError where steps overlap, or where something waits for such an optimiser step.
    """
    if schedule.overlap:
        raise ValueError("steps overlap: their events reach from one to the next")
    return _Cutting(schedule, devices).result()


class _Cutting:
    def __init__(self, schedule: Schedule, devices: Mapping[int, int]) -> None:
        self.schedule, self.devices = schedule, devices
        lane_of = {action.task: action.lane for action in schedule.actions if isinstance(action, Run)}
        home = homes(schedule.tasks, lane_of)
        self.abroad = {
            name: [store for store, _ in steps]
            for name, lane in lane_of.items()
            if (steps := _optimised(schedule.tasks.by_name[name]))
            and any(devices[home.get(store, 0)] != devices[lane] for store, _ in steps)
        }
        late = next((first for first, _ in schedule.tasks.edges if first in self.abroad), "")
        if late:
            raise ValueError(f"work waits for {late}, which changes what is on another device")
        source = {action.event: devices[action.lane] for action in schedule.actions if isinstance(action, Record)}
        waits = [action for action in schedule.actions if isinstance(action, Wait)]
        self.given = {item.event for item in waits if source[item.event] != devices[item.lane]}
        self.kept = {
            delta for name in self.abroad for _, delta in _optimised(schedule.tasks.by_name[name])
        }  # read in the last segment
        self.open = {number: _Open(number) for number in devices.values()}
        self.closed: list[_Open] = []
        self.marks: dict[str, list[_Open]] = {}

    def result(self) -> tuple[Segment, ...]:
        for place, action in enumerate(self.schedule.actions):
            device = self.devices[action.lane]
            if isinstance(action, Run):
                self._run(place, action)
            elif isinstance(action, Record):
                self.open[device].items.append(action)
                self.marks[action.event] = [self.open[device]] if self.open[device].first >= 0 else self._before(device)
                if action.event in self.given:
                    self._close(device)
            elif isinstance(action, Wait):
                self._wait(action)
            elif isinstance(action, Copy):
                if self.devices[action.source] != device:
                    self.open[device].copies.append(action)
            else:
                values = tuple(value for value in action.values if value not in self.kept)
                self.open[device].items.append(Free(values, action.lane))
        for device in self.open:
            self._close(device)
        if self.abroad:
            self._optimise()
        order = sorted(self.closed, key=lambda item: item.first)
        number = {id(item): index for index, item in enumerate(order)}
        return tuple(
            Segment(item.device, _inside(item.items), tuple(item.copies),
                    tuple(sorted({number[id(other)] for other in item.after})), item.check)
            for item in order
        )  # fmt: skip

    def _run(self, place: int, action: Run) -> None:
        device = self.devices[action.lane]
        task = self.schedule.tasks.by_name[action.task]
        checks = any(call.function == "check" for call in task.calls)
        if action.task in self.abroad:
            if all(call.function in ("optimise", "after") for call in task.calls):
                return
            self._add(place, Part(action.task, action.lane, "first"))
        elif checks:
            more = task.calls[-1].function != "check"
            self._add(place, Part(action.task, action.lane, "first" if more else ""))
            self.open[device].check = True
            self._close(device)
            if more:
                self._add(place, Part(action.task, action.lane, "second"))
        else:
            self._add(place, Part(action.task, action.lane))

    def _add(self, place: int, part: Part) -> None:
        segment = self.open[self.devices[part.lane]]
        segment.items.append(part)
        if segment.first < 0:
            segment.first = place + (part.half == "second") / 2

    def _wait(self, action: Wait) -> None:
        device = self.devices[action.lane]
        others = [item for item in self.marks[action.event] if item.device != device]
        if not others:
            self.open[device].items.append(action)
            return
        if self.open[device].first >= 0:
            self._close(device)
        self.open[device].after += others

    def _before(self, device: int) -> list[_Open]:
        """What is known to be done where a device's open segment begins."""
        last = [item for item in self.closed if item.device == device][-1:]
        return last + self.open[device].after

    def _close(self, device: int) -> None:
        """End a device's segment, where it has work; what stands in one without stays for the next."""
        if self.open[device].first >= 0:
            self.closed.append(self.open[device])
            self.open[device] = _Open(device)

    def _optimise(self) -> None:
        """The optimiser's steps on lane 0's device for what was computed elsewhere, behind everything else."""
        lane_of = {action.task: action.lane for action in self.schedule.actions if isinstance(action, Run)}
        last = _Open(self.devices[0], len(self.schedule.actions))
        for item in self.closed:
            if item.device != last.device:
                last.after = [other for other in last.after if other.device != item.device] + [item]
        for name in self.abroad:
            steps = _optimised(self.schedule.tasks.by_name[name])
            last.copies += [Copy(delta, lane_of[name], 0) for _, delta in steps]
            last.items.append(Part(name, 0, "second"))
        self.closed.append(last)


def _optimised(task: Task) -> list[tuple[str, str]]:
    """(what is changed, by what) of the optimiser's steps in a task."""
    steps = [call.args[:2] for call in task.calls if call.function == "optimise"]
    return [(store.name, delta.name) for store, delta in steps if isinstance(store, Ref) and isinstance(delta, Ref)]


def _inside(items: list[Item]) -> tuple[Item, ...]:
    """Items without the records and waits that a segment's ends make needless, and without empty Frees."""
    recorded = {item.event for item in items if isinstance(item, Record)}
    waited = {item.event for item in items if isinstance(item, Wait)}
    used = recorded & waited
    return tuple(
        item
        for item in items
        if not (isinstance(item, (Record, Wait)) and item.event not in used)
        and not (isinstance(item, Free) and not item.values)
    )
