"""Batch and time as one axis, (batch · time, ...), and as two again: what TimeDistributed and ``view(B * T, C)`` do.

A chunk's steps are then that many sequences of one step, so whatever works on each sequence of a batch alone works on
each step alone. Invariant: such a tensor has ``axis == batch``, and ``time_major`` says which of the two comes first.
"""

from __future__ import annotations

from dataclasses import replace

from edgeseq.export.streaming.step_graph import StepGraph, Timed


def parted(step: StepGraph, x: Timed) -> Timed:
    """``x``, whose batch and time are one axis, with the two side by side again."""
    sizes, at = step.sizes(x), x.axis
    batch, time = step.batch_size(), step.constant([-1])
    both = [time, batch] if x.time_major else [batch, time]
    rest = [[step.constant(part)] if part else [] for part in (sizes[:at], sizes[at:])]
    shape = step.op("Concat", *rest[0], *both, *rest[1], axis=0)
    y = step.op("Reshape", x.value, shape)
    step.copies_sizes(x.value, y)
    batch_axis, time_axis = (at + 1, at) if x.time_major else (at, at + 1)
    return replace(x, value=y, batch=batch_axis, axis=time_axis, rank=x.rank + 1, time_major=False)


def merged(step: StepGraph, x: Timed) -> Timed:
    """``x``, whose batch and time stand side by side, with the two as one axis."""
    sizes, at = step.sizes(x), min(x.axes)
    y = step.op("Reshape", x.value, step.constant([*sizes[:at], -1, *sizes[at:]]))
    step.copies_sizes(x.value, y)
    return replace(x, value=y, batch=at, axis=at, rank=x.rank - 1, time_major=x.axis < x.batch)
