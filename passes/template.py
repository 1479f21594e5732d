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
over the batch, which it leaves as it is: two parameters may have the same. Names: h pre-activation, z representation,
d displacement, y target, e error, dW and db updates.
"""
'''

MIRRORS = """
mirror(P, E, {inputs}) lets synapses learn from noise, by how the layers behind respond to it, and nothing else."""

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
# Error synapses: name -> (shape, standard deviation at the start, lane that owns it).{starts}
SYNAPSES = {synapses}{shared}
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
            for queue in self.abroad():  # after what has been done between steps with what lives there
                queue.wait_stream(torch.cuda.current_stream(queue.device))

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

    def abroad(self):
        """The lanes on other GPUs than lane 0's."""
        return [queue for queue in self.queues if queue.device != self.queues[0].device]

    def end(self):
        """Let what follows the step on other GPUs wait for the lanes there, too: what lives there may be read then."""
        for queue in self.abroad() if self.cuda else ():
            torch.cuda.current_stream(queue.device).wait_stream(queue)

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
@starts@    return @made@


@optimiser@

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

IDENTITY = """
# "identity": a matrix M_j, through which synapses of one source send, and by which they learn."""
KEY = """
# "key": what an implicit synapse is made from, wherever it is used."""

SHARED = """
# Synapses that stay as they are, by the matrix that learns for them: what acts is E[name] @ E[matrix], which settle(E)
# writes down. That is how they would learn themselves, for plain SGD alone.
SHARED = {shared}"""

NORMAL_STARTS = """        values = torch.randn(shape, generator=generator, dtype=torch.float64) * deviation
        made[name] = values.to(lane_device(lane, device), dtype)
"""

IDENTITY_STARTS = """        if deviation == "identity":
            made[name] = torch.eye(*shape, dtype=dtype, device=lane_device(lane, device))
            continue
"""

KEY_STARTS = """        if deviation == "key":
            words = implicit_key(seed, name)
            made[name] = torch.tensor(words, dtype=torch.int32, device=lane_device(lane, device))
            continue
"""

BESIDE = """
# Synapses that the step uses together: views of one buffer, in this order.
BESIDE = {beside}"""

BATCH = '''
def beside(*parts):
    """Synapses one above the other: the buffer that they are views of, or else a copy, which takes its time."""
    first, end = parts[0], parts[0].storage_offset()
    home = first.untyped_storage().data_ptr()
    for part in parts:
        if part.storage_offset() != end or part.untyped_storage().data_ptr() != home or not part.is_contiguous():
            return torch.cat(parts)
        end += part.numel()
    return first.as_strided((sum(len(part) for part in parts), first.shape[1]), first.stride())


def lay_out(E):
    """Make the synapses of BESIDE views of one buffer: new tensors with the numbers of the old ones."""
    for names in BESIDE:
        parts = [E[name] for name in names]
        E.update(zip(names, torch.cat(parts).split([len(part) for part in parts])))
    return E

'''

SETTLE = '''
def complete(E, device):
    """Give E the matrices of SHARED that it does not have, as when it comes from a saved step: identities."""
    for matrix, names in SHARED.items():
        if matrix not in E:
            columns, home = E[names[0]].shape[1], lane_device(SYNAPSES[matrix][2], device)
            E[matrix] = torch.eye(columns, dtype=E[names[0]].dtype, device=home)


def settle(E):
    """Multiply what the matrices of SHARED have learned into their synapses, which then are what acts; the matrices
    begin anew. Nothing changes for the steps that follow, but for rounding: call it before you read E, or save it."""
    for matrix, names in SHARED.items():
        for name in names:
            E[name].copy_(E[name] @ E[matrix].to(E[name].device))
        E[matrix].copy_(torch.eye(*E[matrix].shape))

'''

IMPLICIT = '''
def implicit_key(seed, name):
    """Two words of 32 bits for an implicit synapse: the 64-bit FNV-1a hash of seed and name."""
    found = 0xCBF29CE484222325
    for byte in f"{seed} {name}".encode():
        found = (found ^ byte) * 0x100000001B3 % 2**64
    return [(word + 2**31) % 2**32 - 2**31 for word in (found, found >> 32)]


def implicit(e, key, shape, tile=None):
    """E e of a synapse that is not stored: [B, ...] to [B, *shape]. An entry of E depends on the key, its row and its
    column alone: hashes of the two are mixed into a word, in 32-bit integers that wrap around, and the four bytes of a
    word are four entries of a row. Made in tiles of so many entries, which on a CPU stay in its cache."""
    e = e.reshape(e.shape[0], -1)
    rows, columns = math.prod(shape), e.shape[1]
    words = -(-columns // 4)

    def hashed(count, a, b):
        found = torch.arange(count, device=e.device) ^ a
        for added in (b, 0):
            found = (found ^ (found >> 16)) * 0x21F0AAAD % 2**32
            found = (found ^ (found >> 15)) * 0x735A2D97 % 2**32
            found = ((found ^ (found >> 15)) + added) % 2**32
        return ((found + 2**31) % 2**32 - 2**31).to(torch.int32)

    a, b = (key.to(torch.int64) % 2**32).unbind()
    row, column = hashed(rows, a, b)[:, None], hashed(words, b, a)
    count = min(rows, max(1, (tile or (2**18 if e.device.type == "cpu" else 2**26)) // (4 * words)))
    word = torch.empty((count, words), dtype=torch.int32, device=e.device)
    shifted, entries = torch.empty_like(word), e.new_empty((count, 4 * words))
    d = e.new_empty((e.shape[0], rows))
    for start in range(0, rows, count):
        end = min(start + count, rows)
        u, v, entry = word[: end - start], shifted[: end - start], entries[: end - start]
        torch.bitwise_xor(row[start:end], column, out=u).mul_(0x2C1B3C6D)
        u.bitwise_xor_(torch.bitwise_right_shift(u, 15, out=v)).mul_(0x297A2D39)
        u.add_(torch.bitwise_right_shift(u, 16, out=v))
        entry.copy_(u.view(torch.int8))
        torch.mm(e, entry[:, :columns].T, out=d[:, start:end])
    # An entry is a byte and a half, of the deviation that a dense synapse has.
    d.add_(e.sum(1, keepdim=True), alpha=0.5).div_(math.sqrt(columns * (256**2 - 1) / 12))
    return d.reshape(-1, *shape)

'''

UNIT = '''
def unit(v, terms=1):
    """The power of two that brings v to magnitudes of at most 1, and to less where a sum of so many terms would leave
    the range of float16. Products of errors are divided by it again, in float32: nothing vanishes or overflows."""
    size = (v.abs().amax().float() * (1 + terms / 2**15)).clamp(min=2.0**-60)
    return torch.frexp(size)[0] / size

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
    ends = [(result, error.to(result.device)) for result, error in zip(results, errors)
            if error is not None and result.requires_grad]
    home = next((error.device for error in errors if error is not None), None)
    wanted = [*inputs, *(module.get_parameter(name) for name in names)]
    moving = [value for value in wanted if value.requires_grad]
    found = [None] * len(moving)
    if ends and moving:
        found = torch.autograd.grad([end for end, _ in ends], moving, [error for _, error in ends], allow_unused=True)
    left = iter(found)
    found = [next(left) if value.requires_grad else None for value in wanted]
    found = [torch.zeros_like(value) if error is None else error for value, error in zip(wanted, found)]
    return [value.to(home) for value in found]

'''
