"""The command line: ``reclra`` and ``reclra-compile``. Nothing here imports torch before the arguments are read."""

from __future__ import annotations


def main() -> None:
    """Entry point of ``reclra``: exits with 0 (done), 1 (the model cannot be compiled) or 2 (wrong usage)."""
    from reclra_graph.cli.app import app, run

    run(app, "reclra")


def compile_main() -> None:
    """Entry point of ``reclra-compile``, which is ``reclra compile``; exits as ``main`` does."""
    from reclra_graph.cli.app import compile_app, run

    run(compile_app, "reclra-compile")
