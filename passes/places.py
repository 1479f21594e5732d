"""Where in the user's own files a traced node or an error comes from."""

from __future__ import annotations

import os
import re

import torch

from reclra_graph import pconv

_FRAME = re.compile(r'File "([^"]+)", line (\d+), in ')


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says anything."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else "(no message)"


def users(path: str) -> bool:
    """Whether a file is the user's own: not PyTorch's, not one of the passes that run the model nor the layer that they
    put into it, and no text that was compiled at run time."""
    if "/torch/" in path.replace("\\", "/") or path.startswith(("<", "torch/")):
        return False
    return os.path.dirname(path) != os.path.dirname(__file__) and path != pconv.__file__


def user_line(error: BaseException) -> str:
    """``file:line`` of the innermost call in the traceback that is the user's."""
    place, trace = "", error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if users(name):
            place = f"{name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def source_line(node: torch.fx.Node) -> str:
    """``folder/file.py:12`` of the innermost frame that is the user's, from the trace that tracing leaves on a node."""
    frames = [frame for frame in _FRAME.findall(node.meta.get("stack_trace") or "") if users(frame[0])]
    if not frames:
        return ""
    path, line = frames[-1]
    return f"{'/'.join(path.replace(chr(92), '/').split('/')[-2:])}:{line}"


def module_of(node: torch.fx.Node) -> tuple[str, str]:
    """(path, class name) of the module that ran the node."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return "", ""
    path, kind = stack[-1]
    name = kind if isinstance(kind, str) else kind.__name__
    if path.startswith("_empty_nn_module_stack"):  # a placeholder of the tracer's, for questions about sizes
        return "", ""
    return re.sub(r"@\d+", "", path), name.rsplit(".", 1)[-1]
