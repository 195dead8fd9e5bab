"""The rule of a recurrent layer under a mask: at a masked step it keeps its state, and gives its last h again.

The valid rows of a chunk are moved to its front, the native operator runs over as many as there are, from the state
that is carried, and each row takes the h after the valid rows up to its own: that of the state for none. A chunk, or a
single step, costs one operator and a few moves; a loop over the steps would cost many times as much. Rows from before
the sequence are masked, too. By choice, never by a product: what stands at a masked step, NaN for one, goes nowhere.

ONNX Runtime gives zeros for a sequence of which no step is valid, and no standard says so: such a sequence runs over
one row, whose result is not taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgeseq.export.graph.edit import constant, permutation
from edgeseq.export.streaming.lookahead import (
    attributes_of,
    check_turned,
    declare,
    directions_of,
    folded,
    is_turned,
    reach,
    unfolded,
    weights_of,
)
from edgeseq.export.streaming.memory import is_read, scan
from edgeseq.export.streaming.registry import REARRANGE, Argument, farthest, streams, values
from edgeseq.export.streaming.step_graph import StepGraph, TimeAxis, Timed, refuse
from edgeseq.export.streaming.windows import aligned, late


@streams("MaskedLSTM", "MaskedGRU", "MaskedRNN")
def _masked(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed | None]:
    x, mask = _together(step, node, arguments)
    behind = step.plan.lookahead is not None and x.delay > 0 and not is_read(node.outputs[1:])
    if is_turned(node, x) or behind:
        return [both_halves(step, node, x, mask)]
    x, mask = _on_time(step, x, mask)
    valid = _of_the_sequence(step, mask)
    op_type, units = node.op_type.removeprefix("Masked"), node.attributes.get_int("hidden_size")
    parts = ("h", "c") if op_type == "LSTM" else ("h",)
    states = [step.state(f"{op_type.lower()}_{part}", (units,)) for part in parts]
    weights = [*values(arguments)[1:4], None][:3]
    run = _step_by_step if op_type == "LSTM" and is_read(node.outputs[2:]) else _compact
    rows, last = run(step, node, x, [valid, *weights], states)
    for state, after in zip(states, last, strict=True):
        step.carry(state, after)
    every = replace(x, batch=2, past=None, blank=False)
    y, *others = (step.op("Unsqueeze", each, step.constant([1])) for each in rows)
    # Offline Y_h and Y_c (1, B, U) are those that the last row holds; the step graph gives them for every prefix.
    return [replace(every, value=y), *(replace(every, value=v, offline=TimeAxis.GONE) for v in (y, *others))]


def _together(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> tuple[Timed, Timed]:
    """The rows (T, B, C), and the mask (B, T) of the same rows."""
    x, mask = arguments[0], arguments[4]
    if not isinstance(x, Timed) or not isinstance(mask, Timed) or any(isinstance(a, Timed) for a in arguments[1:4]):
        raise refuse(node, "its weights depend on the input, or its mask does not", "make the weights constants")
    if is_turned(node, x):
        check_turned(step, node)
    if any(value is not None and not _is_zero(value) for value in node.inputs[5:]):
        raise refuse(node, "it has an initial state", "export without initial_state")
    full = x.offline is TimeAxis.FULL and mask.offline is TimeAxis.FULL
    if x.axes != (1, 0) or mask.axes != (0, 1) or mask.rank != 2 or not full:
        raise refuse(node, "it does not run over the time axis, as its mask does", REARRANGE)
    x, mask = aligned(step, node, [x, mask])
    _, future = farthest([x, mask])
    return replace(x, future=future), mask


def _on_time(step: StepGraph, x: Timed, mask: Timed) -> tuple[Timed, Timed]:
    # A call has rows from before the sequence, or of it, never both, as for the operator without a mask.
    lag = -x.delay % step.rows_a_granule(x.hop)
    return late(step, x, lag), late(step, mask, lag)


def _is_zero(value: ir.Value) -> bool:
    fixed = constant(value)
    return fixed is not None and not fixed.any()


def _of_the_sequence(step: StepGraph, mask: Timed) -> ir.Value:
    """(B, T): the mask, and False before the sequence."""
    if not mask.delay:
        return mask.value
    step.cuts.add(int(mask.delay * mask.hop))

    def started() -> ir.Value:
        begun = step.op("Greater", step.next_base(mask.hop), step.scalar(mask.delay))
        return step.op("And", mask.value, begun)

    return step.once(("started", mask.value), started)


def _compact(
    step: StepGraph, node: ir.Node, x: Timed, given: Sequence[ir.Value | None], states: Sequence[ir.Value]
) -> tuple[list[ir.Value], list[ir.Value]]:
    """One native operator over the valid rows: h after every row, [(T, B, U)], and the states after the last."""
    valid, *weights = given
    assert valid is not None
    ones = step.once(("ones", valid), lambda: step.op("Cast", valid, to=ir.DataType.INT32))
    order = step.once(("order", valid), lambda: _order(step, ones))
    place = step.once(("place", valid), lambda: _place(step, ones))
    count = step.once(("count", valid), lambda: step.op("ReduceSum", ones, step.constant([1]), keepdims=0))
    least = step.once(("least", valid), lambda: step.op("Max", count, step.scalar(1, np.int32)))

    lead = step.constant([0])
    front = _swapped(step, step.op("GatherND", _batch_first(step, x), order, batch_dims=1))
    initial = [step.op("Unsqueeze", state, lead) for state in states]
    inputs = [front, *weights, least, *initial]
    y, _, *last_c = step.ops(node.op_type.removeprefix("Masked"), 1 + len(states), *inputs, **node.attributes)
    every = step.op("Concat", initial[0], step.op("Squeeze", y, step.constant([1])), axis=0)
    held = step.op("GatherND", _swapped(step, every), place, batch_dims=1)
    last = [step.op("Gather", held, step.scalar(-1), axis=1)]
    for state, after in zip(states[1:], last_c, strict=True):
        some = step.once(("some", valid), lambda: _some(step, count))
        last.append(step.op("Where", some, step.op("Squeeze", after, lead), state))
    return [_swapped(step, held)], last


def both_halves(step: StepGraph, node: ir.Node, x: Timed, mask: Timed) -> Timed:
    """Y (T, D, B, U) of a node that runs backwards, or both ways, in blocks; at a masked step it holds anything.

    Rows outside the sequence are masked, too. Blocks and windows are cut from the rows as they are, and only then are
    the valid ones moved to the front: a masked step is no step of the lookahead's.
    """
    promise = step.plan.lookahead
    assert promise is not None
    sides = directions_of(node, x)
    delay = declare(step, node, x) if any(sides) else x.delay
    ahead = delay - x.delay
    kind, units = node.op_type.removeprefix("Masked").lower(), node.attributes.get_int("hidden_size")
    rows = step.with_history(x, ahead, what=kind) if ahead else x.value
    valid = _all_valid(step, mask, ahead)
    final = replace(x, value=step.slice(rows, 0, 0, -ahead) if ahead else rows)
    halves = []
    for index, backward in enumerate(sides):
        one = ir.node(node.op_type, [], attributes=attributes_of(node, index, "reverse" if backward else "forward"))
        weights = weights_of(step, node, index)
        if backward:
            halves.append(_blocks(step, one, x, [rows, valid, *weights]))
        else:
            now = step.once(("final", valid), lambda: step.slice(valid, 1, 0, -ahead)) if ahead else valid
            states = [step.state(f"{kind}_{part}", (units,)) for part in (("h", "c") if kind == "lstm" else ("h",))]
            (y,), last = _compact(step, one, final, [now, *weights], states)
            for state, after in zip(states, last, strict=True):
                step.carry(state, after)
            halves.append(step.op("Unsqueeze", y, step.constant([1])))
    y = halves[0] if len(halves) == 1 else step.op("Concat", *halves, axis=1)
    future = reach(step, x) if any(sides) else x.future
    return replace(x, value=y, batch=2, delay=delay, past=None, future=future, blank=False)


def _all_valid(step: StepGraph, mask: Timed, ahead: int) -> ir.Value:
    """(B, ahead + T): the mask of the last rows and of this call's, False outside the sequence."""

    def write() -> ir.Value:
        known = mask.value
        if ahead:
            ones = step.once(("as float", mask.value), lambda: step.op("Cast", mask.value, to=ir.DataType.FLOAT))
            step.copies_sizes(mask.value, ones)
            history = step.with_history(replace(mask, value=ones), ahead, what="mask")
            known = step.op("Cast", history, to=ir.DataType.BOOL)
        inside = step.inside(mask.hop, mask.rows, mask.delay + ahead)
        return step.op("And", known, step.slice(inside, 1, 0, -mask.delay) if mask.delay else inside)

    return step.once(("all valid", mask.value, ahead), write)


def _blocks(step: StepGraph, node: ir.Node, x: Timed, given: Sequence[ir.Value | None]) -> ir.Value:
    """Y (T, 1, B, U) of the backward half: each block's window by itself, its valid rows moved to the front."""
    rows, valid, *weights = given
    promise = step.plan.lookahead
    assert promise is not None
    assert rows is not None
    assert valid is not None
    units = node.attributes.get_int("hidden_size")

    def fold() -> ir.Value:
        ones = step.op("Transpose", step.op("Cast", valid, to=ir.DataType.INT32), perm=[1, 0])
        return step.op("Transpose", folded(step, x, ones, ()), perm=[1, 0])

    ones = step.once(("folded", valid), fold)  # (N · B, window)
    order = step.once(("order of blocks", valid), lambda: _order(step, ones))
    count = step.op("Max", step.op("ReduceSum", ones, step.constant([1]), keepdims=0), step.scalar(1, np.int32))
    windows = _swapped(step, folded(step, x, rows, step.sizes(x)))
    front = _swapped(step, step.op("GatherND", windows, order, batch_dims=1))
    (y,) = step.ops(node.op_type.removeprefix("Masked"), 1, front, *weights, count, **node.attributes)
    # The number of valid rows before it is where a valid row stands.
    before = step.op("Sub", _place(step, ones), step.op("Cast", step.op("Unsqueeze", ones, step.constant([2])), to=7))
    place = step.slice(before, 1, 0, promise.chunk)
    kept = step.op("GatherND", _swapped(step, step.op("Squeeze", y, step.constant([1]))), place, batch_dims=1)
    return unfolded(step, x, kept, units)


def _order(step: StepGraph, ones: ir.Value) -> ir.Value:
    """(B, T, 1): the places of the valid rows in their order, those of the masked ones behind them."""
    _, order = step.ops("TopK", 2, ones, step.op("Shape", ones, start=1, end=2), axis=1)
    return step.op("Unsqueeze", order, step.constant([2]))


def _place(step: StepGraph, ones: ir.Value) -> ir.Value:
    """(B, T, 1): how many rows of the chunk, up to each, are valid."""
    so_far = step.op("Cast", step.op("CumSum", ones, step.scalar(1)), to=ir.DataType.INT64)
    return step.op("Unsqueeze", so_far, step.constant([2]))


def _some(step: StepGraph, count: ir.Value) -> ir.Value:
    """(B, 1): whether a row of the chunk is valid."""
    return step.op("Unsqueeze", step.op("Greater", count, step.scalar(0, np.int32)), step.constant([1]))


def _batch_first(step: StepGraph, x: Timed) -> ir.Value:
    """(B, T, C) of (T, B, C)."""
    turn = x.value.producer()
    if turn is not None and turn.op_type == "Transpose" and permutation(turn) == [1, 0, 2]:
        before = turn.inputs[0]
        assert before is not None
        return before
    return _swapped(step, x.value)


def _swapped(step: StepGraph, value: ir.Value) -> ir.Value:
    return step.op("Transpose", value, perm=[1, 0, 2])


def _step_by_step(
    step: StepGraph, node: ir.Node, x: Timed, given: Sequence[ir.Value | None], states: Sequence[ir.Value]
) -> tuple[list[ir.Value], list[ir.Value]]:
    """An LSTM that gives its c after every row, too: [h, c], each (T, B, U), and both after the last row."""
    valid, *weights = given
    assert valid is not None
    row, is_valid, *before = (ir.val(name) for name in ("row", "is_valid", "h", "c"))
    is_valid.type = ir.TensorType(ir.DataType.BOOL)
    lead = step.constant([0])
    x1, h1, c1 = lifted = [ir.node("Unsqueeze", [value, lead]) for value in (row, *before)]
    cell = ir.node(
        "LSTM",
        [x1.outputs[0], *weights, None, h1.outputs[0], c1.outputs[0]],
        attributes=dict(node.attributes),
        num_outputs=3,
    )
    fresh = [ir.node("Squeeze", [value, lead]) for value in cell.outputs[1:]]
    wide = ir.node("Unsqueeze", [is_valid, step.constant([1])])
    after = [ir.node("Where", [wide.outputs[0], new.outputs[0], old]) for new, old in zip(fresh, before, strict=True)]
    copies = [ir.node("Identity", each.outputs) for each in after]
    last, rows = scan(
        step,
        0,
        list(states),
        [x.value, step.op("Transpose", valid, perm=[1, 0])],
        inputs=[*before, row, is_valid],
        body=[*lifted, cell, *fresh, wide, *after, *copies],
        results=[each.outputs[0] for each in (*after, *copies)],
    )
    return list(rows), list(last)
