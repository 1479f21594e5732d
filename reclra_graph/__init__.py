"""reclra-graph: trains existing PyTorch models without backpropagation.

    import reclra_graph as rg

    step = rg.compile(model, example_inputs, gpus=5)   # model: any nn.Module, unchanged
    loss = step(x, target)                             # one training step; the model's own parameters move

The rule is recursive Local Representation Alignment (Ororbia, Mali, Kifer, Giles, AAAI 2023). Names are imported when
they are first used, so that ``import reclra_graph`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reclra_graph.api import assign_grads, compile, load, replace_conv, stack
    from reclra_graph.diagnostics import Diagnostics
    from reclra_graph.errors import ModelError, Problem, ReclraError, StepError, UsageError, VerificationError
    from reclra_graph.options import Options
    from reclra_graph.pconv import PerturbativeConv2d
    from reclra_graph.runtime.compiled import CompiledStep
    from reclra_graph.runtime.stacked import StackedStep
    from reclra_graph.train.fit import fit
    from reclra_graph.train.trainer import Trainer

__version__ = "0.1.0"

__all__ = [
    "CompiledStep",
    "Diagnostics",
    "ModelError",
    "Options",
    "PerturbativeConv2d",
    "Problem",
    "ReclraError",
    "StackedStep",
    "StepError",
    "Trainer",
    "UsageError",
    "VerificationError",
    "__version__",
    "assign_grads",
    "compile",
    "fit",
    "load",
    "replace_conv",
    "stack",
]

_HOME = {
    "CompiledStep": "runtime.compiled",
    "Diagnostics": "diagnostics",
    "ModelError": "errors",
    "Options": "options",
    "PerturbativeConv2d": "pconv",
    "Problem": "errors",
    "ReclraError": "errors",
    "StackedStep": "runtime.stacked",
    "StepError": "errors",
    "Trainer": "train.trainer",
    "UsageError": "errors",
    "VerificationError": "errors",
    "assign_grads": "api",
    "compile": "api",
    "fit": "train.fit",
    "load": "api",
    "replace_conv": "api",
    "stack": "api",
}

# A checkout on a system without symbolic links has two small text files where `passes` and `cli` should be linked.
_here = Path(__file__).resolve().parent
if not (_here / "passes" / "__init__.py").exists():
    __path__.append(str(_here.parent))


def __getattr__(name: str) -> object:
    """Import a public name when it is first used (PEP 562). Raises AttributeError for any other name."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, whether imported yet or not."""
    return sorted({*globals(), *__all__})
