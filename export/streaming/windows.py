"""What slides along time: the rows that a window needs, from before this chunk and within it.

One function, ``slide``, answers for convolutions, pools, paddings, crops and strides alike: how much later the result
comes, which rows must be kept, and where zeros stand for rows outside the sequence.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgeseq.export.streaming.merging import merged, parted
from edgeseq.export.streaming.registry import farthest, values
from edgeseq.export.streaming.step_graph import StepGraph, Timed, refuse, then
from edgeseq.model_file import Timing

_LONG = 100_000  # samples of which no window inside the model is too long


def slide(
    step: StepGraph,
    node: ir.Node,
    x: Timed,
    *,
    reach: int,
    stride: int = 1,
    before: int = 0,
    after: int = 0,
    fill: float = 0.0,
) -> tuple[ir.Value, Timed]:
    """The rows on which windows without padding, one every ``stride`` rows, give this chunk's results.

    Args:
        step: the step graph.
        node: for messages.
        x: what the windows slide over.
        reach: rows that a window sees beside its first.
        stride: rows from one window to the next.
        before: rows of ``fill`` before the sequence; negative to leave out rows of it.
        after: rows of ``fill`` behind it; negative to leave out rows.
        fill: what a window sees outside the sequence.

    Returns:
        The rows, and what is known about the results (its ``value`` is that of ``x``, to be replaced).
    """
    if x.delay < 0 and (before > 0 or after > 0 or x.backwards):
        x = due(step, x)
    if x.backwards:  # windows in the order of the samples are the same, seen from the other end
        if stride != 1:
            raise refuse(node, "a stride over reversed time counts from the end", "use stride 1")
        before, after = after, before
    # Result j sees rows j·stride - before to j·stride - before + reach. The last of them must have come, and of rows
    # that are left out at the end it must be certain that there are so many more that it cannot be one of those.
    needed = reach if after >= 0 else max(reach, reach - after - _certain(step, x))
    delay = max(0, -((stride - 1 - needed + before - x.delay) // stride))
    hop = x.hop * stride
    step.takes_whole_rows(hop)
    outside = (before > 0 and x.delay > 0) or after > 0
    if outside and not (x.blank and fill == 0.0):
        number = step.scalar(fill, np.float32)
        x = replace(x, value=step.masked(x, number))
    lead = delay * stride + before - x.delay  # rows before the chunk that its first window sees
    rows = x.value
    if lead > 0:
        rows = step.with_history(x, lead, fill if x.delay >= 0 else x.fill, what=node.op_type.lower())
    elif lead < 0:
        rows = step.slice(rows, x.axis, -lead)
    if lead > reach:  # more windows fit than results are due
        rows = step.slice(rows, x.axis, 0, reach + 1 - stride - lead)
    result = replace(
        x,
        hop=hop,
        delay=delay,
        rows=then(x.rows, 1, before + after - reach - 1 + stride, stride),
        blank=False,
        past=None if x.past is None else x.past + before * x.hop,
        future=x.future + (reach - before) * x.hop,
    )
    return rows, result


def _certain(step: StepGraph, x: Timed) -> int:
    """How many rows, beside those that have come, there are in any case: the padding at the end of a convolution."""
    granule, timing = step.plan.granule, Timing((0, 0), rows=x.rows)
    period = math.prod(divide for *_, divide in x.rows)
    first = _LONG // granule
    calls = range(first, first + period)  # from call to call the difference repeats, and is no smaller at the start
    come = ((n, math.floor(n * granule / x.hop) - x.delay) for n in calls)
    return max(0, min(timing.count_rows(n * granule - step.plan.phase) - rows for n, rows in come))


def due(step: StepGraph, x: Timed) -> Timed:
    """``x`` with the rows that stand before its first, where there are such, at their turn: a padding written out."""
    if x.delay >= 0:
        return x
    rows = step.slice(step.with_history(x, -x.delay, x.fill, what="pad"), x.axis, 0, x.delay)
    step.copies_sizes(x.value, rows)
    return replace(x, value=rows, delay=0)


def same_padding(step: StepGraph, node: ir.Node, x: Timed, reach: int, stride: int) -> int:
    """How many rows of padding let windows one every ``stride`` rows give a row for each begun stride.

    Raises:
        NotStreamableError: it depends on the length, of which too little is promised.
    """
    if stride == 1:
        return reach
    if step.plan.length_modulo is None:
        raise refuse(
            node, "its padding depends on the length", 'use padding="causal" or "valid", or pads that you give'
        )
    modulus, remainder = step.plan.length_modulo
    period = stride * math.prod(divide for *_, divide in x.rows)
    start = _LONG // modulus * modulus + remainder
    timing = Timing((0, 0), rows=x.rows)
    over = {timing.count_rows(start + i * modulus) % stride for i in range(period)}
    if len(over) > 1:
        raise refuse(
            node,
            f"its padding depends on the length, which is {remainder} modulo {modulus} by your promise, too little",
            f"promise it modulo {math.lcm(modulus, math.ceil(stride * x.hop))}, or more",
        )
    return max(0, reach + 1 - (over.pop() or stride))


def late(step: StepGraph, x: Timed, by: int) -> Timed:
    """``x``, as many rows later: a delay line."""
    if by == 0:
        return x
    if x.merged:
        return merged(step, late(step, parted(step, x), by))
    if step.dtype(x.value) is ir.DataType.BOOL:  # no state is: one and zero stand for it
        rows = step.once(("late mask", x.value, by), lambda: _late_mask(step, x, by))
        step.knows_dtype(rows, ir.DataType.BOOL)
    else:
        rows = step.delayed(x, by)
    step.copies_sizes(x.value, rows)
    return replace(x, value=rows, delay=x.delay + by)


def _late_mask(step: StepGraph, x: Timed, by: int) -> ir.Value:
    ones = step.once(("as float", x.value), lambda: step.op("Cast", x.value, to=ir.DataType.FLOAT))
    step.copies_sizes(x.value, ones)
    return step.op("Cast", step.delayed(replace(x, value=ones), by), to=ir.DataType.BOOL)


def summed_in_turn(step: StepGraph, node: ir.Node, timed: list[Timed]) -> list[Timed]:
    """Tensors, all as late as the latest, with the sum of ``timed``.

    What comes early is added up first and then delayed as one, since the delay lines of the sum of a TCN's skip
    connections would otherwise be most of its state.
    """
    waiting: list[Timed] = []
    for delay in sorted({x.delay for x in timed}):
        if len(waiting) > 1 and len({step.sizes(x) for x in waiting}) == 1:
            past, future = farthest(waiting)
            total = replace(waiting[0], value=step.op("Sum", *values(waiting)), past=past, future=future, blank=False)
            step.copies_sizes(waiting[0].value, total.value)
            waiting = [total]
        waiting = aligned(step, node, [*waiting, *(x for x in timed if x.delay == delay)])
    return waiting


def aligned(step: StepGraph, node: ir.Node, timed: list[Timed]) -> list[Timed]:
    """The tensors, each as late as the latest.

    Raises:
        NotStreamableError: they are at different rates, or run in different directions.
    """
    first = timed[0]
    if any((x.hop, x.rows) != (first.hop, first.rows) for x in timed):
        raise refuse(
            node,
            "its inputs have different numbers of steps for the same sequence",
            "give both branches the same strides and paddings",
        )
    if any(x.backwards != first.backwards for x in timed):
        raise refuse(
            node,
            "it combines time with reversed time, so the first output needs the last sample",
            "reverse both branches, or none",
        )
    latest = max(x.delay for x in timed)
    return [late(step, x, latest - x.delay) for x in timed]
