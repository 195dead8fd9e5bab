"""A tensor with its batch in front, as a state has it, and back again."""

from __future__ import annotations

from dataclasses import replace

from edgeseq.export.streaming.step_graph import StepGraph, Timed


def batch_first(step: StepGraph, x: Timed) -> tuple[Timed, list[int] | None]:
    """``x`` with its batch in front, and how to turn that back."""
    order = [x.batch, *(axis for axis in range(x.rank + x.gone) if axis != x.batch)]
    if x.batch == 0:
        return x, None
    return turned(step, x, order), [order.index(axis) for axis in range(len(order))]


def turned(step: StepGraph, x: Timed, perm: list[int] | None) -> Timed:
    """``x`` transposed; None leaves it."""
    if perm is None:
        return x
    y = step.op("Transpose", x.value, perm=perm)
    step.copies_sizes(x.value, y)
    return replace(x, value=y, axis=perm.index(x.axis), batch=perm.index(x.batch))
