"""Rules of the operators that carry a state of their own: recurrent ones, and those that reduce time to one step.

What reduces time gives, in the step graph, its result for every prefix. Here stand the refusals of what needs the
whole sequence, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeseq.export.graph.edit import constant
from edgeseq.export.streaming.held import initial_states, started_from
from edgeseq.export.streaming.lookahead import both_halves, check_turned, is_turned
from edgeseq.export.streaming.registry import REARRANGE, RULES, Argument, first, streams, values
from edgeseq.export.streaming.step_graph import StepGraph, TimeAxis, Timed, refuse
from edgeseq.export.streaming.turning import batch_first, turned
from edgeseq.export.streaming.windows import late

_LOWEST = float(np.finfo(np.float32).min)


@streams("LSTM", "GRU", "RNN")
def _recurrent(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed | None]:
    x = first(node, arguments[:5])
    if is_turned(node, x):
        check_turned(step, node)
    if len(arguments) > 4 and arguments[4] is not None:
        raise refuse(node, "it has a mask", "export without mask_zero and Masking")
    if any(isinstance(a, ir.Value) and not _is_zero(v) for a, v in zip(arguments[5:], node.inputs[5:], strict=True)):
        raise refuse(node, "it has an initial state", "export without initial_state")
    given = initial_states(node, arguments[5:], x)
    if given and is_turned(node, x):
        raise refuse(node, "it runs backwards and has an initial state", "export without initial_state")
    if x.axes != (1, 0) or x.offline is not TimeAxis.FULL:
        raise refuse(node, "it does not run over the time axis", REARRANGE)
    bounded = step.plan.lookahead is not None and x.delay and not given and not is_read(node.outputs[1:])
    if is_turned(node, x) or bounded:
        return [both_halves(step, node, x)]
    # A call has rows from before the sequence, or of it, never both: those before leave the state as it is.
    x = late(step, x, max([0, *(state.delay - x.delay for state in given)]))
    x = late(step, x, -x.delay % step.rows_a_granule(x.hop))
    kind = node.op_type.lower()
    units = node.attributes.get_int("hidden_size")
    states = [step.state(f"{kind}_{part}", (units,)) for part in (("h", "c") if kind == "lstm" else ("h",))]
    lead = step.constant([0])
    before = list(states)
    for i, state in enumerate(arguments[5:7]):
        if isinstance(state, Timed):
            before[i] = started_from(step, states[i], state, x)
    initial = [step.op("Unsqueeze", state, lead) for state in before]
    inputs = [x.value, *values(arguments)[1:4], *[None] * (4 - len(arguments))][:4]
    every = replace(x, batch=2, past=None, blank=False)
    last_steps: Sequence[ir.Value]  # the rows of h, and those of c where something reads it
    last: Sequence[ir.Value]
    if kind == "lstm" and is_read(node.outputs[2:]):
        y, last_steps, last = _cell_by_cell(step, node, inputs, before)
    else:
        y, *kept = step.ops(node.op_type, 1 + len(states), *inputs, None, *initial, **node.attributes)
        last_steps, last = [y], [step.op("Squeeze", each, lead) for each in kept]
    for state, after in zip(states, last, strict=True):
        if x.delay:
            started = step.op("Greater", step.next_base(x.hop), step.scalar(x.delay))
            step.cuts.add(int(x.delay * x.hop))
        step.carry(state, step.op("Where", started, after, state) if x.delay else after)
    # Offline Y_h and Y_c (1, B, U) are the last row of Y (T, 1, B, U): the step graph gives that row for every prefix.
    return [replace(every, value=y), *(replace(every, value=v, offline=TimeAxis.GONE) for v in last_steps)]


def is_read(outputs: Sequence[ir.Value]) -> bool:
    """Whether anything reads one of these values of the offline graph."""
    return any(value.is_graph_output() or list(value.uses()) for value in outputs)


def _cell_by_cell(
    step: StepGraph, node: ir.Node, inputs: list[ir.Value | None], states: list[ir.Value]
) -> tuple[ir.Value, list[ir.Value], Sequence[ir.Value]]:
    """An LSTM that gives its c after every step, too, where ONNX's gives the last one: (Y, [h, c], their last)."""
    x, *weights = inputs
    lead = step.constant([0])
    row, *before = (ir.val(name) for name in ("row", "h", "c"))
    lifted = [ir.node("Unsqueeze", [value, lead]) for value in (row, *before)]
    x1, h1, c1 = (each.outputs[0] for each in lifted)
    cell = ir.node("LSTM", [x1, *weights, None, h1, c1], attributes=dict(node.attributes), num_outputs=3)
    after = [ir.node("Squeeze", [value, lead]) for value in cell.outputs[1:]]
    given = [ir.node("Identity", each.outputs) for each in after]
    results = [each.outputs[0] for each in (*after, *given)]
    assert x is not None
    last, rows = scan(
        step, 0, states, [x], inputs=[*before, row], body=[*lifted, cell, *after, *given], results=results
    )
    every = [step.op("Unsqueeze", value, step.constant([1])) for value in rows]
    return every[0], every, last


def _is_zero(value: ir.Value | None) -> bool:
    fixed = constant(value)
    return fixed is not None and not fixed.any()


_COUNTS = "it counts over the whole sequence, as a mask does"
_MAKE_CAUSAL = "make the model causal, or run it offline"
_NEEDS = {
    "Shape": "it asks for the length of the sequence, which a stream does not know",
    "Size": "it asks for the length of the sequence, which a stream does not know",
    "ReverseSequence": "it reverses each sequence by its own length, so the first output needs the last sample",
    "InstanceNormalization": "it normalises over the whole sequence",
    "GroupNormalization": "it normalises over the whole sequence",
}


@streams(*_NEEDS, "Loop", "Scan", "If", "Range", "NonZero")
def _whole_sequence(_step: StepGraph, node: ir.Node, _arguments: list[Argument]) -> list[Timed]:
    reason = _NEEDS.get(node.op_type, "it works on the whole sequence")
    raise refuse(node, reason, _MAKE_CAUSAL)


@streams("CumSum")
def _running_total(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed]:
    x, axis = first(node, arguments), constant(node.inputs[1])
    if node.inputs[0].dtype is not ir.DataType.FLOAT:  # type: ignore[union-attr]
        raise refuse(node, _COUNTS, _MAKE_CAUSAL)
    if axis is None or x.offline is not TimeAxis.FULL or x.lift(int(axis)) == x.batch:
        raise refuse(node, "only a sum along an axis that is known, and not along the batch, streams", REARRANGE)
    if x.lift(int(axis)) != x.axis:
        return [replace(x, value=step.copy(node, values(arguments))[0])]
    if x.backwards or node.attributes.get_int("reverse", 0) != 0:
        raise refuse(node, "it sums from the end of the sequence", "sum from the start")
    if x.delay and not x.blank:
        x = replace(x, value=step.masked(x, step.scalar(0.0, np.float32)))
    x, back = batch_first(step, x)
    sizes, at = step.sizes(x), x.axis - 1
    # The sum so far stands before the chunk: the additions of the offline run, in its order, to the last bit.
    total = step.state("cumsum", [*sizes[:at], 1, *sizes[at:]])
    sums = step.op("CumSum", step.op("Concat", total, x.value, axis=x.axis), step.scalar(x.axis))
    step.carry(total, step.slice(sums, x.axis, -1))
    exclusive = node.attributes.get_int("exclusive", 0)
    y = step.slice(sums, x.axis, 0, -1) if exclusive else step.slice(sums, x.axis, 1)
    return [turned(step, replace(x, value=y, past=None, blank=False), back)]


# Operators that reduce time to one step: the step graph gives the result for every prefix.


@streams("GlobalMaxPool", "GlobalAveragePool")
def _global_pool(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed]:
    x = first(node, arguments)
    if x.axis != 2 or x.rank != 3:
        raise refuse(node, "only a pool over time alone streams", REARRANGE)
    return _over_time(step, node, x, "ReduceMax" if node.op_type == "GlobalMaxPool" else "ReduceMean", keepdims=True)


@streams(
    *("ReduceMax", "ReduceMin", "ReduceSum", "ReduceMean", "ReduceProd"), *("ReduceL1", "ReduceL2", "ReduceSumSquare")
)
def _reduce(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed]:
    x = first(node, arguments)
    given = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    axes = sorted(x.lift(int(a)) for a in (given if given is not None else range(x.rank)))
    if x.batch in axes:
        raise refuse(node, "it mixes the sequences of a batch", "reduce over channels or time only")
    keepdims = bool(node.attributes.get_int("keepdims", 1))
    if x.axis not in axes:
        y = step.op(node.op_type, x.value, step.constant(axes), keepdims=int(keepdims))
        batch, axis = x.without([] if keepdims else axes)
        return [replace(x, value=y, batch=batch, axis=axis)]
    sizes = node.inputs[0].shape if node.inputs[0] is not None and not x.gone else None
    beside = [a for a in axes if a != x.axis]
    if sizes is None or any(sizes[a] != 1 for a in beside):
        raise refuse(node, "it reduces time together with other axes", "pool over time alone first")
    (pooled,) = _over_time(step, node, x, node.op_type, keepdims=keepdims)
    if keepdims or not beside:
        return [pooled]
    batch, axis = pooled.without(beside)
    return [replace(pooled, value=step.op("Squeeze", pooled.value, step.constant(beside)), batch=batch, axis=axis)]


def _over_time(step: StepGraph, node: ir.Node, x: Timed, op_type: str, *, keepdims: bool) -> list[Timed]:
    if x.offline is TimeAxis.LAST:  # one step alone
        last = step.constant([x.rank])
        y = step.op(op_type, step.op("Unsqueeze", x.value, last), last, keepdims=0)
        return [replace(x, value=y, offline=TimeAxis.LAST if keepdims else TimeAxis.GONE, blank=False)]
    running = _RUNNING.get(op_type)
    if running is None or x.offline is not TimeAxis.FULL:
        raise refuse(
            node, "only a maximum, minimum, sum and mean over time have a running form", "pool with one of them"
        )
    back = None
    if x.batch - (x.axis < x.batch) != 0:
        x, back = batch_first(step, x)
    gone = TimeAxis.LAST if keepdims else TimeAxis.GONE
    if step.plan.pooling_window is not None:
        pooled = replace(_over_window(step, node, x, op_type, step.plan.pooling_window), offline=gone)
        return [turned(step, pooled, back)]
    pooled = replace(x, value=running(step, x), past=None, offline=gone, backwards=False, blank=False)
    return [turned(step, pooled, back)]


_IN_WINDOWS = {"ReduceMax": "MaxPool", "ReduceMean": "AveragePool"}


def _over_window(step: StepGraph, node: ir.Node, x: Timed, op_type: str, n_rows: int) -> Timed:
    """The pool over the last rows alone, or over all where there are fewer: a windowed pool, padded before."""
    if op_type not in _IN_WINDOWS or x.rank != 3 or x.batch != 0 or x.backwards:
        raise refuse(node, "only a maximum and a mean, forward, are taken over a window", "leave out pooling_window")
    step.windowed = True
    attributes = {"kernel_shape": [n_rows], "pads": [n_rows - 1, 0], "strides": [1]}
    windows = ir.node(_IN_WINDOWS[op_type], [ir.val("rows")], attributes=attributes, name=node.name)
    if x.axis == 2:
        (y,) = RULES[windows.op_type](step, windows, [x])
        assert y is not None
        return y
    turned = replace(_each(step, x, "Transpose", x.value, perm=[0, 2, 1]), axis=2)
    (y,) = RULES[windows.op_type](step, windows, [turned])
    assert y is not None
    return replace(y, value=step.op("Transpose", y.value, perm=[0, 2, 1]), axis=1)


def _running_extreme(step: StepGraph, x: Timed, op_type: str, worst: float) -> ir.Value:
    if x.delay:
        x = replace(x, value=step.masked(x, step.scalar(worst, np.float32)))
    best = step.state(op_type.lower(), step.sizes(x), initial=worst)
    before, row = ir.val("before"), ir.val("row")
    now = ir.node(op_type, [before, row])
    out = ir.node("Identity", now.outputs)
    results = [now.outputs[0], out.outputs[0]]
    last, (rows,) = scan(step, x.axis, [best], [x.value], inputs=[before, row], body=[now, out], results=results)
    step.carry(best, last[0])
    return rows


def _running_sum(step: StepGraph, x: Timed, *, mean: bool) -> ir.Value:
    # Sums in float64: over 1e5 steps a float32 sum would drift by more than the law allows.
    sizes = step.sizes(x)
    if x.delay:
        x = replace(x, value=step.masked(x, step.scalar(0.0, np.float32)))
    total = step.state("sum", sizes, dtype="float64")
    states, scanned = [total], [x.value]
    before, row = ir.val("before"), ir.val("row")
    wide = ir.node("Cast", [row], attributes={"to": ir.DataType.DOUBLE})
    sum_ = ir.node("Add", [before, wide.outputs[0]])
    body, inputs, results = [wide, sum_], [before, row], [sum_.outputs[0]]
    given = sum_.outputs[0]
    if mean:
        states.append(step.state("count", [1] * len(sizes), dtype="float64"))
        counted, one = ir.val("counted"), step.scalar(1.0, np.float64)
        inputs = [before, counted, row]
        if x.delay:
            scanned.append(step.op("Cast", step.valid(x), to=ir.DataType.DOUBLE))
            one = ir.val("one", dtype=ir.DataType.DOUBLE)
            inputs.append(one)
        n = ir.node("Add", [counted, one])
        least = step.scalar(1.0, np.float64)
        given_node = ir.node("Max", [n.outputs[0], least])  # before the first row nothing is divided by nothing
        share = ir.node("Div", [sum_.outputs[0], given_node.outputs[0]])
        body += [n, given_node, share]
        results.append(n.outputs[0])
        given = share.outputs[0]
    narrow = ir.node("Cast", [given], attributes={"to": ir.DataType.FLOAT})
    last, (rows,) = scan(
        step, x.axis, states, scanned, inputs=inputs, body=[*body, narrow], results=[*results, narrow.outputs[0]]
    )
    for state, successor in zip(states, last, strict=True):
        step.carry(state, successor)
    return rows


def _each(step: StepGraph, x: Timed, op_type: str, *inputs: ir.Value, **attributes: Any) -> Timed:
    y = step.op(op_type, *inputs, **attributes)
    step.copies_sizes(x.value, y)
    return replace(x, value=y)


_RUNNING: dict[str, Callable[[StepGraph, Timed], ir.Value]] = {
    "ReduceMax": lambda step, x: _running_extreme(step, x, "Max", _LOWEST),
    "ReduceMin": lambda step, x: _running_extreme(step, x, "Min", -_LOWEST),
    "ReduceSum": lambda step, x: _running_sum(step, x, mean=False),
    "ReduceMean": lambda step, x: _running_sum(step, x, mean=True),
    "ReduceL1": lambda step, x: _running_sum(step, _each(step, x, "Abs", x.value), mean=False),
    "ReduceSumSquare": lambda step, x: _running_sum(step, _each(step, x, "Mul", x.value, x.value), mean=False),
    "ReduceL2": lambda step, x: step.op("Sqrt", _RUNNING["ReduceSumSquare"](step, x)),
}


def scan(
    step: StepGraph,
    axis: int,
    states: list[ir.Value],
    scanned: list[ir.Value],
    *,
    inputs: list[ir.Value],
    body: list[ir.Node],
    results: list[ir.Value],
) -> tuple[Sequence[ir.Value], Sequence[ir.Value]]:
    """ONNX Scan over time: the same arithmetic, in the same order, for a step and for a chunk.

    ``inputs`` of the body are the states and rows of ``scanned``; ``results`` the next states and rows of float32.
    Returns the last states, and all rows.
    """
    for value, state in zip(inputs, states, strict=False):
        value.type, value.shape = state.type, state.shape
    inputs[len(states)].type = ir.TensorType(ir.DataType.FLOAT)
    n_rows = len(results) - len(states)
    for result, like in zip(results, [*inputs[: len(states)], *[inputs[len(states)]] * n_rows], strict=True):
        result.type = like.type
    graph = ir.Graph(inputs, results, nodes=body, name="running", opset_imports={"": 18})
    outputs = step.ops(
        "Scan",
        len(results),
        *states,
        *scanned,
        body=graph,
        num_scan_inputs=len(scanned),
        scan_input_axes=[axis] * len(scanned),
        scan_output_axes=[axis] * n_rows,
    )
    return outputs[: len(states)], outputs[len(states) :]
