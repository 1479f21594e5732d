"""The parts of an emitted file whose regions live on GPUs of their own, in micro-batches or overlapping steps."""

from __future__ import annotations

from reclra_graph.ir.homes import homes
from reclra_graph.ir.operators import OPAQUE, Argument
from reclra_graph.ir.schedule import Run, Schedule
from reclra_graph.ir.tasks import Task
from reclra_graph.passes.template import LANES as TOGETHER

MICRO_BATCHES = """# Equal parts that a batch is cut into; B is the size of one.
MICRO_BATCHES = {count}
"""

PLACES = """# Parameters and buffers that live elsewhere than on lane 0: name -> lane.
PLACES = {places}
"""

LANES = '''

class Lanes:
    """Lanes are CUDA streams, each on a GPU of its own as far as there are any. Without a GPU they are nothing: work
    runs line by line."""

    streams = {}  # device of lane 0 -> streams of the other lanes
    roads = {}  # (device, lane) -> stream for copies from one to the other
@left@
    def __init__(self, device):
        self.cuda, self.events, self.brought, self.current = device.type == "cuda", {}, {}, 0
        self.home = device
        if self.cuda:
            if device not in self.streams:
                self.streams[device] = [torch.cuda.Stream(lane_device(lane, device)) for lane in range(1, LANES)]
            self.queues = [torch.cuda.current_stream(device), *self.streams[device]]
            begin = self.queues[0].record_event()
            for queue in self.queues[1:]:
                queue.wait_event(begin)
            for queue in self.abroad():  # after what has been done between steps with what lives there
                queue.wait_stream(torch.cuda.current_stream(queue.device))

    @contextlib.contextmanager
    def lane(self, number):
        """Queue what follows on a lane."""
        before, self.current = self.current, number
        with torch.cuda.stream(self.queues[number]) if self.cuda else contextlib.nullcontext():
            yield
        self.current = before

    @property
    def device(self):
        """Device of the current lane."""
        return self.queues[self.current].device if self.cuda else self.home

    def record(self, event):
        """Mark that everything queued on this lane so far is done."""
        if self.cuda:
            self.events[event] = self.queues[self.current].record_event()

    def wait(self, event):
        """Let this lane go on only after an event of another; values made there may be read then."""
        if self.cuda:
            self.queues[self.current].wait_event(self.events[event])

    def abroad(self):
        """The lanes on other GPUs than lane 0's."""
        return [queue for queue in self.queues if queue.device != self.queues[0].device]
@end@
    def here(self, value):
        """A value on this lane's device: itself, or a copy made once."""
        if not self.cuda or value.device == self.queues[self.current].device:
            return value
        key = self.current, id(value)
        if key not in self.brought:
            road = self.roads.get((value.device, self.current)) or torch.cuda.Stream(value.device)
            self.roads[value.device, self.current] = road
            # The copy runs on this stream of the other device, and holds up no lane there. It begins when this lane has
            # come here: after what this lane waits for.
            with torch.cuda.stream(road):
                self.brought[key] = value.to(self.device, non_blocking=True), value
        return self.brought[key][0]

'''

END = '''
    def end(self):
        """Let what follows the step on other GPUs wait for the lanes there, too: what lives there may be read then."""
        for queue in self.abroad() if self.cuda else ():
            torch.cuda.current_stream(queue.device).wait_stream(queue)
'''

LEFT = """    left = {}  # device of lane 0 -> what the step before left: its events, each lane's end, its values
"""

OVERLAP = '''
    def wait_previous(self, event):
        """Let this lane go on only after an event of the step before, where there was one."""
        events = self.left[self.home][0] if self.home in self.left else {}
        if event in events:
            self.queues[self.current].wait_event(events[event])

    def leave(self, loss, values):
        """End the step without waiting for its lanes, where the next may begin. Its values live until the end of the
        next step: only then every lane is sure to be done with them."""
        if self.cuda:
            for event in self.left[self.home][1] if self.home in self.left else ():
                for queue in self.queues:
                    queue.wait_event(event)
            self.left[self.home] = self.events, [queue.record_event() for queue in self.queues], values
        return loss
'''

JOIN = '''
def join(device):
    """Let every GPU's current stream go on only after all lanes: before parameters are read elsewhere, or changed."""
    for event in Lanes.left[device][1] if device in Lanes.left else ():
        for home in {lane_device(lane, device) for lane in range(LANES)}:
            torch.cuda.current_stream(home).wait_event(event)

'''

PLACE = '''
def place(model, device):
    """Move a model's parameters and buffers to the lanes where they live, with lane 0 on `device`."""
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        home = lane_device(PLACES.get(name, 0), device)
        if value.device != home:
            value.data = value.data.to(home)

'''

CHECK_MICRO = """    if size % MICRO_BATCHES:
        raise ValueError(f"RG601 a batch of {size} cannot be cut into {MICRO_BATCHES} equal micro-batches")
"""


def apart(schedule: Schedule) -> bool:
    """Whether regions live on lanes of their own."""
    return bool(schedule.tasks.plan.placement) and len(schedule.lanes) > 1


def more_tables(schedule: Schedule) -> str:
    """What only micro-batches and placed regions need to know."""
    count = schedule.tasks.micro_batches
    text = MICRO_BATCHES.format(count=count) if count > 1 else ""
    if not apart(schedule):
        return text
    lane_of = {action.task: action.lane for action in schedule.actions if isinstance(action, Run)}
    places = {name[2:-1]: lane for name, lane in homes(schedule.tasks, lane_of).items() if name[:2] == "P[" and lane}
    for operator in schedule.tasks.plan.regions.graph.operators:
        if operator.target == OPAQUE:  # all that a sub-module holds lives where it runs
            lane = next(lane_of[task.name] for task in schedule.tasks.tasks if _runs(task, operator.args[0]))
            held = [item.key for item in schedule.tasks.plan.regions.graph.held]
            places.update({key: lane for key in held if key.startswith(f"{operator.args[0]}.") and lane})
    rows = "".join(f"    {name!r}: {lane},\n" for name, lane in sorted(places.items(), key=lambda item: item[1]))
    return text + PLACES.format(places=f"{{\n{rows}}}" if rows else "{}")


def _runs(task: Task, path: Argument) -> bool:
    """Whether a task runs the sub-module at a path as it is."""
    return any(item.function == "opaque" and item.args[0] == path for item in task.calls)


def lanes_text(schedule: Schedule) -> str:
    """How lanes work: together behind one forward pass, or apart."""
    if not apart(schedule):
        return TOGETHER
    overlap = schedule.overlap
    text = LANES.replace("@left@\n", LEFT + "\n" if overlap else "\n")
    mirrors = any(edge.rule == "mirror" for edge in schedule.tasks.plan.edges)  # which never overlap
    text = text.replace("@end@\n", (END if mirrors or not overlap else "") + (OVERLAP if overlap else "") + "\n")
    return text + PLACE + (JOIN if overlap else "")
