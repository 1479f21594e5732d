"""The text of the emitted optimiser: what ``optimise(store, name, delta, lr)`` does to a parameter or a synapse.

Each is torch.optim's of the same name, one parameter at a time, on the lane where its update was computed. State is
made when a parameter first learns, and lives beside it.
"""

from __future__ import annotations

from reclra_graph.ir.wiring import Rates

_SGD = '''def sgd(store, name, delta, lr):
    """store[name] <- store[name] - lr * delta"""
    store[name].sub_(delta.to(store[name].device), alpha=lr)
'''

_DECAYED = '''def sgd(store, name, delta, lr):
    """store[name] <- (1 - lr * decay) * store[name] - lr * delta"""
    store[name].mul_(1 - lr * {decay}).sub_(delta.to(store[name].device), alpha=lr)
'''

_SPLIT = "({synapses} if name in SYNAPSES else {decay})"
"""A decay of synapses that is not that of parameters."""

_STATE = '''
    def __init__(self):
        self.state = {}

    def kept(self, value, name, slot):
        """What is remembered of a parameter or a synapse, zeros at first; it follows to another device."""
        key = ("E." if name in SYNAPSES else "") + f"{name}|{slot}"
        if key not in self.state:
            self.state[key] = value.new_zeros((), dtype=torch.float64) if slot[0] == "b" else torch.zeros_like(value)
        if self.state[key].device != value.device:
            self.state[key] = self.state[key].to(value.device)
        return self.state[key]

    def __call__(self, store, name, delta, lr):
        value = store[name]
        delta = delta.to(value.device)@decay@
'''

_MOMENTUM = (
    '''class Momentum:
    """v <- momentum * v + delta, store[name] <- store[name] - lr * v, as torch.optim.SGD."""

    slots = ("v",)
'''
    + _STATE
    + """        v = self.kept(value, name, "v").mul_({momentum}).add_(delta)
        value.sub_(lr * v)


momentum = Momentum()
"""
)

_ADAMW = (
    '''class AdamW:
    """m and v are running means of delta and of its square, b1 and b2 those of ones: m / b1 and v / b2 have no bias
    towards zero. store[name] moves by lr * m / (sqrt(v) + eps) of these, as torch.optim.AdamW."""

    slots = ("b1", "b2", "m", "v")
'''
    + _STATE
    + """        b1 = self.kept(value, name, "b1").mul_({first}).add_(1 - {first})
        b2 = self.kept(value, name, "b2").mul_({second}).add_(1 - {second})
        m = self.kept(value, name, "m").lerp_(delta, 1 - {first})
        v = self.kept(value, name, "v").mul_({second}).addcmul_(delta, delta, value=1 - {second})
        value.sub_(lr / b1 * (m / (v.sqrt() / b2.sqrt() + {eps})))


adamw = AdamW()
"""
)


def optimiser_text(rates: Rates) -> str:
    """The definition of the optimiser, under its name in ``Rates``."""
    decay = repr(rates.weight_decay)
    apart = rates.synapse_decay is not None
    if apart:
        decay = _SPLIT.replace("{synapses}", repr(rates.synapse_decay)).replace("{decay}", decay)
    if rates.optimizer == "sgd":
        return _DECAYED.replace("{decay}", decay) if rates.weight_decay or apart else _SGD
    text = _MOMENTUM if rates.optimizer == "momentum" else _ADAMW
    line = f"\n        value.mul_(1 - lr * {decay})"
    if rates.optimizer == "momentum":  # torch.optim has the parameters' decay in the gradient
        line = f" + {rates.weight_decay!r} * value"
        if apart:
            line = f"""
        if name in SYNAPSES:
            value.mul_(1 - lr * {rates.synapse_decay!r})
        else:
            delta = delta{line}"""
    numbers = {"momentum": rates.momentum, "first": rates.betas[0], "second": rates.betas[1], "eps": rates.eps}
    for name, number in numbers.items():
        text = text.replace(f"{{{name}}}", repr(number))
    return text.replace("@decay@", line if rates.weight_decay or apart else "")
