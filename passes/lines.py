"""Lines of the user's own files, in tracebacks and traces."""

from __future__ import annotations


def users_file(path: str) -> bool:
    """Whether a file is the user's own: not PyTorch's, not this compiler's, and no text that was compiled at run time."""
    path = path.replace("\\", "/")
    return "/torch/" not in path and "/reclra_graph/" not in path and not path.startswith(("<", "torch/"))


def first_line(error: BaseException) -> str:
    """The first line of an exception's message that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else "(no message)"


def users_line(error: BaseException) -> str:
    """``file:line`` of the innermost frame of a traceback that is the user's own, or nothing."""
    place, trace = "", error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if users_file(name) and not name.endswith("/passes/capture.py"):
            place = f"{name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place
