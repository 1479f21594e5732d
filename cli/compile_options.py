"""The options of ``reclra compile`` as values: its own command and every other that compiles a model reads them here.

A command has them from the signature of ``compile_command``, so that an option that is added there is one of all.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Annotated, Any, get_args, get_origin

import typer
from typer.models import OptionInfo

from reclra_graph.errors import Problem, UsageError
from reclra_graph.methods.registry import method_of

REWRITING = ("replace_conv", "masks", "sigma")
"""Arguments of the command that change the model before it is compiled."""
NOT_OPTIONS = ("ctx", "method", "model", "inputs", "out", "as_json", "quiet", *REWRITING)
"""Arguments of the command that say what is compiled, and how that is told."""


def parts(text: str) -> list[str]:
    """Items between commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def losses(text: str) -> str | dict[str, str]:
    """``mse``, or ``class=cross-entropy,box=mse``."""
    return dict((*item.split("=", 1), "")[:2] for item in parts(text)) if "=" in text else text  # type: ignore[misc]


def number(text: str) -> int | str:
    """A whole number; what is none stays a text, which the options refuse."""
    try:
        return int(text)
    except ValueError:
        return text


def decimal_or_text(text: str) -> float | str:
    """A number; what is none stays a text, which the options refuse."""
    try:
        return float(text)
    except ValueError:
        return text


def _kappa(text: str) -> dict[Any, Any]:
    """``3=0.5,7=2``."""
    found: dict[Any, Any] = {}
    for region, _, value in (item.partition("=") for item in parts(text)):
        found[number(region.strip())] = decimal_or_text(value)
    return found


def _decimal(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return -1.0  # which the options refuse


READERS: dict[str, Callable[[Any], Any]] = {
    "depth": number,
    "relays": lambda given: None if given is None else tuple(number(item) for item in parts(given)),
    "wiring": lambda given: tuple(parts(given)) if "->" in given else given,
    "kappa": lambda given: _kappa(given or ""),
    "loss": losses,
    "class_weights": lambda given: tuple(_decimal(item) for item in parts(given or "")),
    "without": lambda given: given or (),
    "betas": lambda given: tuple(decimal_or_text(item) for item in parts(given)),
}
"""How the words of an option become what rg.compile takes; an option that is not here is taken as it comes."""


def read_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of rg.compile, from the arguments of a command."""
    return {
        name: READERS.get(name, lambda value: value)(value) for name, value in given.items() if name not in NOT_OPTIONS
    }


def typed(ctx: typer.Context, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options that the user gave; the others have their default values, which a method may know better."""
    sources = {name: ctx.get_parameter_source(name) for name in options}
    return {name: options[name] for name, source in sources.items() if source is not None and source.name != "DEFAULT"}


def with_method(method: str, ctx: typer.Context, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of ``reclra compile``, with a method's in the places of those that the user did not give.

    Raises UsageError RG405 for an unknown method, and for one that is no compiled step."""
    found = method_of(method)
    if found.loop != "step":
        cause = f"{method} is no compiled step: it has a loop of its own"
        raise UsageError(Problem("RG405", cause, "method", f"Train with it: `reclra train MODEL --method {method}`."))
    return {**options, **found.options, **typed(ctx, options)}


def signature_with(
    command: Callable[..., Any],
    own: Callable[..., Any],
    panels: Mapping[str, Sequence[str]],
    rest: str,
    without: Sequence[str] = (),
) -> inspect.Signature:
    """The arguments of ``own`` and, behind them, the options of ``command`` that it has not itself, for typer.

    panels: heading in the help → options below it; those that stand nowhere come below ``rest``. ``without``: options
    of ``command`` that are left out.
    """
    mine = inspect.signature(own, eval_str=True).parameters.values()
    kept = [item for item in mine if item.kind is not inspect.Parameter.VAR_KEYWORD]
    names = {item.name for item in kept}
    theirs = inspect.signature(command, eval_str=True).parameters.values()
    kept += [item for item in theirs if item.name not in (*names, *NOT_OPTIONS, *without)]
    panel_of = {name: title for title, listed in panels.items() for name in listed}
    return inspect.Signature([_in_panel(item, panel_of.get(item.name, rest)) for item in kept])


def _in_panel(parameter: inspect.Parameter, title: str) -> inspect.Parameter:
    """The same option below a heading; keyword arguments only, so that the order is of no matter."""
    kind = parameter.annotation
    keyword = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
    if get_origin(kind) is not Annotated or not isinstance(get_args(kind)[1], OptionInfo):
        return keyword
    plain, option, *_ = get_args(kind)
    option = copy(option)
    option.rich_help_panel = title
    return keyword.replace(annotation=Annotated[plain, option])
