"""The registry of streaming rules, and what rules share.

A rule gets the step graph, the offline node, and for each input either a ``Timed`` tensor, a constant of the step
graph, or None; it writes nodes for a chunk and returns a ``Timed`` for each output that it can stream. A rule that
cannot keep the law refuses with the reason and what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

import onnx_ir as ir

from edgeseq.export.streaming.step_graph import StepGraph, Timed, refuse

Argument = Timed | ir.Value | None
Rule = Callable[[StepGraph, ir.Node, list[Argument]], Sequence[Timed | None]]
RULES: dict[str, Rule] = {}

REARRANGE = "rearrange the model so that this axis operation leaves batch and time alone"


def streams(*op_types: str) -> Callable[[Rule], Rule]:
    """Register the decorated rule for these operators."""

    def register(rule: Rule) -> Rule:
        for op_type in op_types:
            RULES[op_type] = rule
        return rule

    return register


def first(node: ir.Node, arguments: list[Argument]) -> Timed:
    """The only argument over time, which must be the first."""
    head, *rest = arguments
    if not isinstance(head, Timed) or any(isinstance(a, Timed) for a in rest):
        raise refuse(node, "its weights or shape depend on the input", "make them constants")
    return head


def values(arguments: Sequence[Argument]) -> list[ir.Value | None]:
    """What a node of the step graph reads."""
    return [a.value if isinstance(a, Timed) else a for a in arguments]


def farthest(timed: Sequence[Timed]) -> tuple[Fraction | None, Fraction]:
    """The receptive field of a combination: (past, future)."""
    pasts = [x.past for x in timed]
    return None if None in pasts else max(p for p in pasts if p is not None), max(x.future for x in timed)
