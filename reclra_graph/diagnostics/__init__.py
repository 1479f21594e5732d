"""Diagnostics while training: how near a step's updates are to backprop's, and its synapses to the weights."""

from __future__ import annotations

from reclra_graph.diagnostics.look import WHAT, Diagnostics, Writer
from reclra_graph.diagnostics.record import EdgeLook, Look, ParameterLook, RegionLook
from reclra_graph.diagnostics.writers import JsonLines, TensorBoard, read_looks

__all__ = [
    "WHAT", "Diagnostics", "EdgeLook", "JsonLines", "Look", "ParameterLook", "RegionLook", "TensorBoard", "Writer",
    "read_looks",
]  # fmt: skip
