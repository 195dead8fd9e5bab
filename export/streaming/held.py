"""The first step of a sequence, which a stream takes once and holds: ``x[:, 0]``, and initial states made of it.

Of what is computed from the first step alone, every row from the first on is the same (``Timed.held``): one value for
the whole sequence, but known from the start, so that every step may be combined with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgeseq.export.streaming.registry import REARRANGE, Argument
from edgeseq.export.streaming.step_graph import StepGraph, TimeAxis, Timed, refuse
from edgeseq.export.streaming.turning import batch_first, turned


def first_step(step: StepGraph, node: ir.Node, x: Timed, offline: TimeAxis) -> Timed:
    """``x`` where the offline graph goes on with its first step alone: a state has it."""
    if x.backwards or x.offline is not TimeAxis.FULL or x.merged:
        raise refuse(node, "the first step of reversed time is the last one", "select the first step before reversing")
    if node.inputs[0].dtype is not ir.DataType.FLOAT:  # type: ignore[union-attr]
        raise refuse(node, "only a first step of floats is held", "select the first step behind the embedding")
    x, back = batch_first(step, x)
    sizes, at = step.sizes(x), x.axis - 1
    state = step.state("first", [*sizes[:at], 1, *sizes[at:]])
    others = step.constant([axis for axis in range(x.rank) if axis not in x.axes])
    is_first = step.op("Unsqueeze", step.op("Equal", step.numbers(x.hop), step.scalar(x.delay)), others)
    is_past = step.op("Unsqueeze", step.op("Greater", step.base(x.hop), step.scalar(x.delay)), others)
    chosen = step.op("Where", is_first, x.value, step.scalar(0.0, np.float32))
    here = step.op("ReduceSum", chosen, step.constant([x.axis]), keepdims=1)
    now = step.op("Where", is_past, state, here)
    step.carry(state, now)
    rows = step.op("Where", is_first, x.value, now)
    held = replace(x, value=rows, past=None, offline=offline, held=True, blank=False)
    return turned(step, held, back)


def at_every_step(timed: Sequence[Timed]) -> list[Timed]:
    """The tensors, where some have every step: those that are held have it, too."""
    if not any(x.offline is TimeAxis.FULL for x in timed):
        return list(timed)
    return [replace(x, offline=TimeAxis.FULL) if x.held and x.offline is TimeAxis.LAST else x for x in timed]


def initial_states(node: ir.Node, arguments: Sequence[Argument], x: Timed) -> list[Timed]:
    """The initial states of a recurrence over ``x`` that are made of the first step.

    Raises:
        NotStreamableError: they depend on more of the sequence.
    """
    given = [a for a in arguments if isinstance(a, Timed)]
    for state in given:
        if not (state.held and state.gone):
            raise refuse(
                node,
                "its initial state depends on more of the sequence than its first step",
                "export without initial_state, or make it of x[:, 0]",
            )
        if (state.hop, state.rows) != (x.hop, x.rows) or state.drop(state.batch) != 1:
            raise refuse(node, "its initial state is of another sequence than its input", REARRANGE)
    return given


def started_from(step: StepGraph, state: ir.Value, given: Timed, x: Timed) -> ir.Value:
    """What a recurrence over ``x`` goes on from, (B, U): ``given`` (1, B, U) in the call with its first row."""
    last = step.slice(given.value, given.axis, -1)
    start = step.op("Squeeze", last, step.constant(sorted({0, given.axis} if given.axis else {0, 1})))
    begins = step.op("Equal", step.base(x.hop), step.scalar(x.delay))
    value = step.op("Where", begins, start, state)
    value.type, value.shape = state.type, state.shape
    return value
