"""The mirror mode of a compiled step: synapses learn from noise, and nothing else does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from reclra_graph.errors import CODES, Problem, StepError, UsageError
from reclra_graph.runtime.opaque_runs import in_training

if TYPE_CHECKING:
    from reclra_graph.runtime.compiled import CompiledStep


def mirror(step: CompiledStep, given: Sequence[Tensor]) -> Tensor:
    """What ``CompiledStep.mirror`` does, on the tensors that the graph takes."""
    function = getattr(step.module, "mirror", None)
    if function is None:
        cause = "no synapse of this step has the rule 'mirror'"
        raise UsageError(
            Problem("RG405", cause, "mirror()", "Compile with rule='mirror', or take training steps only.")
        )
    step.join()
    step.place(given[0].device)
    settings = {key: value for key, value in step.settings().items() if key != "beta"}
    opaque = list(settings.get("M", {}).values())
    buffers = [(item, item.clone()) for module in opaque for item in module.buffers()]
    try:
        with in_training(opaque):
            size: Tensor = function(step.storage(), step.store.all(), *given, optimise=step.optimiser, **settings)
    except FloatingPointError:
        cause = "an input, or how a layer responds to noise, is not finite; the synapses are as they were"
        raise StepError(Problem("RG604", cause, "mirror()")) from None
    except ValueError as error:
        code, _, cause = str(error).partition(" ")
        if code in CODES:
            raise StepError(Problem(code, cause, "mirror()")) from None
        raise
    for item, before in buffers:  # what sub-modules that run as they are keep of a batch
        item.copy_(before)
    return size
