"""``--replace-conv``: pseudo-convolutions in the place of a model's convolutions, before it is compiled."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from reclra_graph.errors import Problem

if TYPE_CHECKING:
    from reclra_graph.model_file import LoadedModel
    from reclra_graph.options import Options


def replacement_problems(kind: str | None, masks: int | None, sigma: float | None) -> list[Problem]:
    """What is wrong with --replace-conv, --masks and --sigma."""
    from reclra_graph.passes.replace_conv import REPLACEMENTS
    from reclra_graph.pconv import SIGMA, mask_problems

    if kind is None:
        given = [name for name, value in (("--masks", masks), ("--sigma", sigma)) if value is not None]
        return [Problem("RG405", f"{name} says nothing without --replace-conv", name) for name in given]
    known = () if kind in REPLACEMENTS else (f"replace_conv is {kind!r}, not one of {', '.join(REPLACEMENTS)}",)
    wrong = [Problem("RG405", cause, "--replace-conv") for cause in known]
    return [*wrong, *mask_problems(1 if masks is None else masks, SIGMA if sigma is None else sigma)]


def rewritten(
    loaded: LoadedModel, kind: str | None, masks: int | None, sigma: float | None, options: Options
) -> tuple[LoadedModel, list[dict[str, Any]]]:
    """The model as --replace-conv asks for it, and what became of each convolution; ``options.seed`` is that of the
    maps and of the new weights. Raises ModelError, as ``passes.replace_conv`` does."""
    if kind is None:
        return loaded, []
    from reclra_graph.passes.replace_conv import replace_conv
    from reclra_graph.pconv import SIGMA

    found = replace_conv(
        loaded.model, loaded.example_inputs, loaded.example_kwargs, masks=1 if masks is None else masks,
        sigma=SIGMA if sigma is None else sigma, seed=options.seed, options=options,
    )  # fmt: skip
    said = [{"module": path, "kept": reason or None} for path, reason in found.convolutions]
    return replace(loaded, model=found.model), said
