"""The fixed parts of the emitted file: its docstring and the few lines that deal with streams, synapses and checks."""

DOCSTRING = '''"""One training step of {model}, without backpropagation.

Recursive local representation alignment (Ororbia, Mali, Kifer, Giles; AAAI 2023): the error at the output travels over
error synapses E to the regions r1, r2, …; each compares its representation z with a target y = phi(h - beta d) and
learns from its own mismatch e. Written by reclra-graph {version}; plan {digest}; {wiring} wiring of depth {depth},
{edges} synapses, {lanes}.{note}

This file needs torch alone, and nothing else of what wrote it:

    import torch, step                        # step.py: this file
    model = ...                               # the {model} it was compiled for, in train mode
    P = {state}
    E = step.synapses(seed={seed})
    for {inputs}, target in batches:
        loss = step.step(P, E, {inputs}, target, lr={lr})

P holds the model's parameters and buffers and shares their storage: the model itself learns. Save E beside the model.
To use another optimiser, pass a function `optimise(store, name, delta, lr)`; delta is a direction of descent, a mean
over the batch. Names: h pre-activation, z representation, d displacement, y target, e error, dW and db updates.
"""
'''

IMPORTS = """
import contextlib
import math
import operator

import torch
import torch.nn.functional as F

aten = torch.ops.aten
"""

TABLES = """
PLAN = {digest!r}
# Error synapses: name -> (shape, standard deviation at the start, lane that owns it).
SYNAPSES = {synapses}
# Inputs: name -> (shape with B for the batch, dtype).
INPUTS = {inputs}
# Targets: label, where there are several -> (shape, dtype, number of classes, class index that is ignored);
# in place of a number of classes, 0 means values and -1 probabilities.
TARGETS = {targets}
SMALLEST_BATCH = {smallest}
LANES = {lanes}
{more}"""

LANES = '''

class Lanes:
    """Lanes are CUDA streams, spread over the GPUs present. Without a GPU they are nothing: work runs line by line."""

    streams = {}  # device of lane 0 -> streams of the other lanes

    def __init__(self, device):
        self.cuda, self.events, self.brought, self.current = device.type == "cuda", {}, {}, 0
        if self.cuda:
            if device not in self.streams:
                self.streams[device] = [torch.cuda.Stream(lane_device(lane, device)) for lane in range(1, LANES)]
            self.queues = [torch.cuda.current_stream(device), *self.streams[device]]

    @contextlib.contextmanager
    def lane(self, number):
        """Queue what follows on a lane."""
        before, self.current = self.current, number
        with torch.cuda.stream(self.queues[number]) if self.cuda else contextlib.nullcontext():
            yield
        self.current = before

    def record(self, event):
        """Mark that everything queued on this lane so far is done."""
        if self.cuda:
            self.events[event] = torch.cuda.Event()
            self.events[event].record(self.queues[self.current])

    def wait(self, event):
        """Let this lane go on only after an event of another; values made there may be read then."""
        if self.cuda:
            self.queues[self.current].wait_event(self.events[event])
            for queue in {torch.cuda.current_stream(other.device) for other in self.queues}:
                if queue.device != self.queues[self.current].device:  # copies leave on that device's own stream
                    queue.wait_event(self.events[event])

    def here(self, value):
        """A value on this lane's device: itself, or a copy made once."""
        if not self.cuda or value.device == self.queues[self.current].device:
            return value
        key = self.current, id(value)
        if key not in self.brought:
            self.brought[key] = value.to(self.queues[self.current].device, non_blocking=True), value
        return self.brought[key][0]

'''

RUNTIME = '''
def lane_device(lane, device="cpu"):
    """Device of a lane when lane 0 is on `device`: the GPUs in turn."""
    device = torch.device(device)
    if device.type != "cuda":
        return device
    first = torch.cuda.current_device() if device.index is None else device.index
    return torch.device("cuda", (first + lane) % torch.cuda.device_count())


def synapses(seed=@seed@, device="cpu", dtype=torch.@dtype@):
    """New error synapses, normally distributed: the same numbers on every device."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, (shape, deviation, lane) in SYNAPSES.items():
        values = torch.randn(shape, generator=generator, dtype=torch.float64) * deviation
        made[name] = values.to(lane_device(lane, device), dtype)
    return made


def sgd(store, name, delta, lr):
    """store[name] <- store[name] - lr * delta"""
    store[name].sub_(delta.to(store[name].device), alpha=lr)


def check_inputs(inputs, target, size=0):
    """Refuse inputs and targets that the step was not compiled for, before anything is computed; size: of the batch."""
    targets = {"": target} if torch.is_tensor(target) else target
    given = {f"input {name}": (inputs[name], *wanted) for name, wanted in INPUTS.items()}
    given |= {f"the target {label}".strip(): (targets[label], *wanted[:2]) for label, wanted in TARGETS.items()}
    for name, (value, shape, dtype) in given.items():
        wanted = [n if isinstance(n, int) else size * int(n.strip("B*") or 1) for n in shape]
        if list(value.shape) != wanted or value.dtype != getattr(torch, dtype) or size == 0:
            code = "RG601" if name.startswith("input") else "RG602"
            seen = f"{str(value.dtype).removeprefix('torch.')} of shape {list(value.shape)}"
            raise ValueError(f"{code} {name} is {seen}, not {dtype} of shape {list(shape)}")
    if size < SMALLEST_BATCH:
        raise ValueError(f"RG601 batch norm needs a batch of at least {SMALLEST_BATCH}, not of {size}")
@check_range@

def check(loss, *inputs):
    """Refuse to learn from a loss or an input that is not finite; nothing has been changed yet."""
    finite = torch.isfinite(loss)
    for value in inputs:
        finite = finite & torch.isfinite(value).all()
    if not finite:
        raise FloatingPointError("RG604 the loss or an input is not finite; the parameters are as they were")

'''

CHECK_CLASSES = """    for label, (_, _, classes, ignored) in TARGETS.items():
        if classes > 0 and targets[label].device.type == "cpu":
            counted = targets[label] if ignored is None else targets[label][targets[label] != ignored]
            low, high = (int(counted.min()), int(counted.max())) if counted.numel() else (0, 0)
            if not 0 <= low <= high < classes:
                raise ValueError(f"RG603 classes lie between {low} and {high}, not between 0 and {classes - 1}")
"""

CHECK_RANGE = """    for label, (_, _, classes, _) in TARGETS.items():
        value = targets[label]
        if classes == -1 and value.device.type == "cpu" and not bool(((value >= 0) & (value <= 1)).all()):
            raise ValueError("RG603 targets of binary cross-entropy lie between 0 and 1")
"""

OPAQUE = '''
def opaque(module, args, kwargs, through):
    """Run a sub-module that could not be captured, as it is. Returns the tensors of its result, and the run itself.
    `through`: whether errors pass on to its inputs. The step takes these sub-modules as M, by their paths:
    `M=dict(model.named_modules())`."""
    given = [value for value in (*args, *kwargs.values()) if torch.is_tensor(value)]
    with torch.enable_grad():
        inputs = [value.detach().requires_grad_(through and value.is_floating_point()) for value in given]
        left = iter(inputs)
        args, kwargs = torch.utils._pytree.tree_map(lambda v: next(left) if torch.is_tensor(v) else v, (args, kwargs))
        results = [v for v in torch.utils._pytree.tree_leaves(module(*args, **kwargs)) if torch.is_tensor(v)]
    return [value.detach() for value in results], (inputs, results)


def opaque_vjp(module, run, errors, names):
    """The only use of autograd: from a sub-module's results to its own inputs and parameters, and no further."""
    inputs, results = run
    ends = [(result, error) for result, error in zip(results, errors) if error is not None and result.requires_grad]
    wanted = [*inputs, *(module.get_parameter(name) for name in names)]
    moving = [value for value in wanted if value.requires_grad]
    found = [None] * len(moving)
    if ends and moving:
        found = torch.autograd.grad([end for end, _ in ends], moving, [error for _, error in ends], allow_unused=True)
    left = iter(found)
    found = [next(left) if value.requires_grad else None for value in wanted]
    return [torch.zeros_like(value) if error is None else error for value, error in zip(wanted, found)]

'''
