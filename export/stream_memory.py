"""Rules of the operators that carry a state of their own: recurrent ones, and those that reduce time to one step.

What reduces time gives, in the step graph, its result for every prefix. Here stand the refusals of what needs the
whole sequence, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgeseq.export.graph_edit import constant
from edgeseq.export.stream_graph import StepGraph, TimeAxis, Timed, refuse
from edgeseq.export.stream_registry import REARRANGE, Argument, first, streams, values
from edgeseq.export.stream_windows import late

_LOWEST = float(np.finfo(np.float32).min)


@streams("LSTM", "GRU", "RNN")
def _recurrent(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed | None]:
    x = first(node, arguments)
    if node.attributes.get_string("direction", "forward") != "forward" or x.backwards:
        raise refuse(
            node, "its backward half starts at the end of the sequence", "train a causal model, or run offline"
        )
    if len(arguments) > 4 and arguments[4] is not None:
        raise refuse(node, "it has a mask", "export without mask_zero and Masking")
    if any(a is not None and not _is_zero(v) for a, v in zip(arguments[5:], node.inputs[5:], strict=True)):
        raise refuse(node, "it has an initial state", "export without initial_state")
    if x.axis != 0 or x.offline is not TimeAxis.FULL:
        raise refuse(node, "it does not run over the time axis", REARRANGE)
    # A call has rows from before the sequence, or of it, never both: those before leave the state as it is.
    x = late(step, x, -x.delay % step.rows_a_granule(x.hop))
    kind = node.op_type.lower()
    units = node.attributes.get_int("hidden_size")
    states = [step.state(f"{kind}_{part}", (units,)) for part in (("h", "c") if kind == "lstm" else ("h",))]
    lead = step.constant([0])
    initial = [step.op("Unsqueeze", state, lead) for state in states]
    inputs = [x.value, *values(arguments)[1:4], *[None] * (4 - len(arguments))][:4]
    y, *last = step.ops(node.op_type, 1 + len(states), *inputs, None, *initial, **node.attributes)
    for state, successor in zip(states, last, strict=True):
        after = step.op("Squeeze", successor, lead)
        if x.delay:
            started = step.op("Greater", step.next_base(x.hop), step.scalar(x.delay))
            after = step.op("Where", started, after, state)
            step.cuts.add(int(x.delay * x.hop))
        step.carry(state, after)
    # Offline Y_h (1, B, U) is the last row of Y (T, 1, B, U): the step graph gives that row for every prefix.
    every = replace(x, value=y, past=None, blank=False)
    return [every, replace(every, offline=TimeAxis.GONE)]


def _is_zero(value: ir.Value | None) -> bool:
    fixed = constant(value)
    return fixed is not None and not fixed.any()


_NEEDS = {
    "Shape": "it asks for the length of the sequence, which a stream does not know",
    "Size": "it asks for the length of the sequence, which a stream does not know",
    "ReverseSequence": "it reverses each sequence by its own length, so the first output needs the last sample",
    "CumSum": "it counts over the whole sequence, as a mask does",
    "TopK": "it sorts the whole sequence, as a mask does",
    "InstanceNormalization": "it normalises over the whole sequence",
    "GroupNormalization": "it normalises over the whole sequence",
}


@streams(*_NEEDS, "Loop", "Scan", "If", "Range", "NonZero")
def _whole_sequence(_step: StepGraph, node: ir.Node, _arguments: list[Argument]) -> list[Timed]:
    reason = _NEEDS.get(node.op_type, "it works on the whole sequence")
    raise refuse(node, reason, "make the model causal (without mask_zero and Masking), or run it offline")


# Operators that reduce time to one step: the step graph gives the result for every prefix.


@streams("GlobalMaxPool", "GlobalAveragePool")
def _global_pool(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed]:
    x = first(node, arguments)
    if x.axis != 2 or x.rank != 3:
        raise refuse(node, "only a pool over time alone streams", REARRANGE)
    return _over_time(step, node, x, "ReduceMax" if node.op_type == "GlobalMaxPool" else "ReduceMean", keepdims=True)


@streams("ReduceMax", "ReduceMean", "ReduceSum", "ReduceMin", "ReduceProd", "ReduceL2")
def _reduce(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed]:
    x = first(node, arguments)
    given = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    axes = sorted(x.lift(int(a)) for a in (given if given is not None else range(x.rank)))
    if (1 if x.axis == 0 else 0) in axes:
        raise refuse(node, "it mixes the sequences of a batch", "reduce over channels or time only")
    keepdims = bool(node.attributes.get_int("keepdims", 1))
    if x.axis not in axes:
        y = step.op(node.op_type, x.value, step.constant(axes), keepdims=int(keepdims))
        return [replace(x, value=y, axis=x.axis if keepdims else x.axis - sum(a < x.axis for a in axes))]
    if axes != [x.axis]:
        raise refuse(node, "it reduces time together with other axes", "pool over time alone first")
    return _over_time(step, node, x, node.op_type, keepdims=keepdims)


def _over_time(step: StepGraph, node: ir.Node, x: Timed, op_type: str, *, keepdims: bool) -> list[Timed]:
    running = _RUNNING.get(op_type)
    if running is None or x.offline is not TimeAxis.FULL:
        raise refuse(
            node, "only a maximum, minimum, sum and mean over time have a running form", "pool with one of them"
        )
    if x.axis == 0:
        raise refuse(node, "time is its first axis", "pool with the batch first")
    y = running(step, x)
    gone = TimeAxis.LAST if keepdims else TimeAxis.GONE
    return [replace(x, value=y, past=None, offline=gone, backwards=False, blank=False)]


def _running_extreme(step: StepGraph, x: Timed, op_type: str, worst: float) -> ir.Value:
    if x.delay:
        x = replace(x, value=step.masked(x, step.scalar(worst, np.float32)))
    best = step.state(op_type.lower(), step.sizes(x), initial=worst)
    before, row = ir.val("before"), ir.val("row")
    now = ir.node(op_type, [before, row])
    out = ir.node("Identity", now.outputs)
    results = [now.outputs[0], out.outputs[0]]
    last, rows = _scan(step, x, [best], [x.value], inputs=[before, row], body=[now, out], results=results)
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
    last, rows = _scan(
        step, x, states, scanned, inputs=inputs, body=[*body, narrow], results=[*results, narrow.outputs[0]]
    )
    for state, successor in zip(states, last, strict=True):
        step.carry(state, successor)
    return rows


_RUNNING: dict[str, Callable[[StepGraph, Timed], ir.Value]] = {
    "ReduceMax": lambda step, x: _running_extreme(step, x, "Max", _LOWEST),
    "ReduceMin": lambda step, x: _running_extreme(step, x, "Min", -_LOWEST),
    "ReduceSum": lambda step, x: _running_sum(step, x, mean=False),
    "ReduceMean": lambda step, x: _running_sum(step, x, mean=True),
}


def _scan(
    step: StepGraph,
    x: Timed,
    states: list[ir.Value],
    scanned: list[ir.Value],
    *,
    inputs: list[ir.Value],
    body: list[ir.Node],
    results: list[ir.Value],
) -> tuple[Sequence[ir.Value], ir.Value]:
    """ONNX Scan over time: the same arithmetic, in the same order, for a step and for a chunk."""
    for value, state in zip(inputs, states, strict=False):
        value.type, value.shape = state.type, state.shape
    inputs[len(states)].type = ir.TensorType(ir.DataType.FLOAT)
    for result, like in zip(results, [*inputs[: len(states)], inputs[len(states)]], strict=True):
        result.type = like.type
    graph = ir.Graph(inputs, results, nodes=body, name="running", opset_imports={"": 18})
    outputs = step.ops(
        "Scan",
        len(results),
        *states,
        *scanned,
        body=graph,
        num_scan_inputs=len(scanned),
        scan_input_axes=[x.axis] * len(scanned),
        scan_output_axes=[x.axis],
    )
    return outputs[:-1], outputs[-1]
