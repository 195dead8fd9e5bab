"""One rule per ONNX operator: what it does to time, and how one chunk of it is computed.

A rule gets the step graph, the offline node, and for each input either a ``Timed`` tensor, a constant of the step
graph, or None; it writes nodes for a chunk of any length T >= 1 and returns a ``Timed`` for each output that it can
stream. A rule that cannot keep the law refuses with the reason and what to do. To support one more operator, add one
function here; ``docs/streaming.md`` has a worked example.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgeseq.export.cleanup import ELEMENTWISE, constant, permutation
from edgeseq.export.stream_graph import StepGraph, TimeAxis, Timed, refuse

Argument = Timed | ir.Value | None
Rule = Callable[[StepGraph, ir.Node, list[Argument]], Sequence[Timed | None]]
RULES: dict[str, Rule] = {}

_END = int(np.iinfo(np.int64).max)
_LOWEST = float(np.finfo(np.float32).min)
_REARRANGE = "rearrange the model so that this axis operation leaves batch and time alone"


def streams(*op_types: str) -> Callable[[Rule], Rule]:
    """Register the decorated rule for these operators."""

    def register(rule: Rule) -> Rule:
        for op_type in op_types:
            RULES[op_type] = rule
        return rule

    return register


# Operators that work on each step alone.


_POINTWISE = {
    *ELEMENTWISE,
    "Pow",
    "Mod",
    "PRelu",
    "Sign",
    "Log",
    "Sin",
    "Cos",
    "Tan",
    "Floor",
    "Ceil",
    "Round",
    "Where",
}
_POINTWISE |= {"Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Not", "And", "Or", "ThresholdedRelu"}


@streams(*sorted(_POINTWISE))
def _pointwise(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed]:
    timed = [a for a in arguments if isinstance(a, Timed)]
    first = timed[0]
    if any(a.offline is not first.offline for a in timed):
        raise refuse(
            node,
            "it combines every step with a value of the whole sequence, so early outputs depend on late samples",
            "pool at the end of the model only",
        )
    if any((a.axis, a.rank) != (first.axis, first.rank) for a in timed):
        raise refuse(node, "its inputs have time at different axes", _REARRANGE)
    for argument in arguments:
        if isinstance(argument, ir.Value):
            _constant_along_time(node, argument, first)
    return [replace(first, value=step.copy(node, _values(arguments))[0], past=_farthest(timed))]


@streams("MatMul")
def _matmul(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed]:
    x, weight = arguments
    if not isinstance(x, Timed) or isinstance(weight, Timed) or weight is None:
        raise refuse(node, "the product is not (tensor over time) x (constant)", "attention over time cannot stream")
    if weight.shape is None or len(weight.shape) != 2 or x.lift(-1) == x.axis:
        raise refuse(node, "the product mixes time steps", _REARRANGE)
    return [replace(x, value=step.copy(node, _values(arguments))[0])]


@streams("Concat")
def _concat(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed]:
    timed = [a for a in arguments if isinstance(a, Timed)]
    first = timed[0]
    if len(timed) < len(arguments) or any((a.axis, a.offline) != (first.axis, first.offline) for a in timed):
        raise refuse(node, "its inputs are not all over time at the same axis", _REARRANGE)
    axis = first.lift(node.attributes.get_int("axis"))
    if axis == first.axis:
        raise refuse(node, "it joins sequences end to end", "join channels instead")
    return [replace(first, value=step.copy(node, _values(arguments), axis=axis)[0], past=_farthest(timed))]


@streams("Softmax", "LogSoftmax", "LayerNormalization")
def _along_channels(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed | None]:
    x = _first(node, arguments)
    axis = x.lift(node.attributes.get_int("axis", -1))
    if axis == x.axis or (node.op_type == "LayerNormalization" and axis < x.axis):
        raise refuse(node, f"{node.op_type} over time needs the whole sequence", "normalise over channels instead")
    return [replace(x, value=step.copy(node, _values(arguments), axis=axis)[0])]


@streams("Transpose")
def _transpose(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed]:
    x = _first(node, arguments)
    perm = [x.lift(axis) for axis in permutation(node)]
    if x.gone:
        perm.insert(x.axis, x.axis)
    y = step.copy(node, [x.value], perm=perm)[0]
    return [replace(x, value=y, axis=perm.index(x.axis))]


@streams("Squeeze")
def _squeeze(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed]:
    x = _first(node, arguments)
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if axes is None:
        raise refuse(node, "the axes are not constant", "give them as an initializer")
    dropped = sorted(x.lift(int(axis)) for axis in axes)
    offline = x.offline
    if x.axis in dropped:
        if offline is not TimeAxis.LAST:
            raise refuse(node, "it drops the time axis, which holds one step only by accident", _REARRANGE)
        dropped.remove(x.axis)
        offline = TimeAxis.GONE
    y = step.op("Squeeze", x.value, step.constant(dropped)) if dropped else x.value
    axis = x.axis - sum(d < x.axis for d in dropped)
    return [replace(x, value=y, axis=axis, offline=offline)]


@streams("Gather")
def _gather(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed]:
    table, tokens = arguments
    if not isinstance(tokens, Timed) or not isinstance(table, ir.Value) or node.attributes.get_int("axis", 0) != 0:
        raise refuse(node, "only a look-up of tokens in a constant table streams", _REARRANGE)
    return [replace(tokens, value=step.copy(node, _values(arguments))[0])]


# Operators with a memory.


@streams("Conv")
def _conv(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed]:
    x = _first(node, arguments)
    weight = constant(node.inputs[1])
    if weight is None or weight.ndim != 3 or x.axis != 2 or x.offline is not TimeAxis.FULL:
        raise refuse(node, "only a 1-D convolution over time with constant weights streams", _REARRANGE)
    attributes = node.attributes
    reach = (weight.shape[2] - 1) * attributes.get_ints("dilations", [1])[0]
    if attributes.get_ints("strides", [1])[0] != 1:
        raise refuse(node, "a stride over time gives fewer outputs than samples", "use stride 1")
    if attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        raise refuse(node, "its padding depends on the length", 'use padding="causal"')
    left, right = attributes.get_ints("pads", [0, 0])
    if right > 0:
        raise refuse(node, f'it needs {right} future steps (padding="same")', 'train with padding="causal"')
    if left != reach:
        raise refuse(
            node,
            f'a reach of {reach} steps needs {reach} steps of left padding, got {left} (padding="valid")',
            'train with padding="causal"',
        )
    joined = _with_history(step, x.value, reach, channels=weight.shape[1] * attributes.get_int("group", 1))
    y = step.copy(node, [joined, *_values(arguments[1:])], pads=[0, 0])[0]
    return [replace(x, value=y, past=_add(x.past, reach))]


def _with_history(step: StepGraph, x: ir.Value, reach: int, channels: int) -> ir.Value:
    """The chunk (B, C, T) behind the ``reach`` steps that came before it."""
    if reach == 0:
        return x
    history = step.state("conv", (channels, reach))
    joined = step.op("Concat", history, x, axis=2)
    step.carry(history, step.op("Slice", joined, *(step.constant([n]) for n in (-reach, _END, 2))))
    return joined


@streams("LSTM", "GRU", "RNN")
def _recurrent(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed | None]:
    x = _first(node, arguments)
    if node.attributes.get_string("direction", "forward") != "forward":
        raise refuse(
            node, "its backward half starts at the end of the sequence", "train a causal model, or run offline"
        )
    if any(argument is not None for argument in arguments[4:]):
        raise refuse(node, "it has a mask or an initial state", "export without mask_zero, Masking and initial_state")
    if x.axis != 0 or x.offline is not TimeAxis.FULL:
        raise refuse(node, "it does not run over the time axis", _REARRANGE)
    kind = node.op_type.lower()
    units = node.attributes.get_int("hidden_size")
    states = [step.state(f"{kind}_{part}", (units,)) for part in (("h", "c") if kind == "lstm" else ("h",))]
    lead = step.constant([0])
    initial = [step.op("Unsqueeze", state, lead) for state in states]
    inputs = [*_values(arguments), *[None] * (5 - len(arguments))][:5]
    y, *last = step.ops(node.op_type, 1 + len(states), *inputs, *initial, **node.attributes)
    for state, successor in zip(states, last, strict=True):
        step.carry(state, step.op("Squeeze", successor, lead))
    # Offline Y_h (1, B, U) is the last row of Y (T, 1, B, U): the step graph gives that row for every prefix.
    every = Timed(y, 0, None)
    return [every, replace(every, offline=TimeAxis.GONE)]


@streams("Shape", "Size", "ReverseSequence", "Loop", "Scan", "If", "Range", "NonZero", "CumSum", "TopK")
def _whole_sequence(_step: StepGraph, node: ir.Node, _arguments: list[Argument]) -> list[Timed]:
    reason = {
        "Shape": "it asks for the length of the sequence, which a stream does not know",
        "Size": "it asks for the length of the sequence, which a stream does not know",
        "ReverseSequence": "time runs backwards, so the first output needs the last sample",
    }.get(node.op_type, "it works on the whole sequence")
    raise refuse(node, reason, "make the model causal, or run it offline")


# Operators that reduce time to one step: the step graph gives the result for every prefix.


@streams("Slice")
def _last_step(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed]:
    x = _first(node, arguments)
    starts, ends, axes, steps = (constant(v) for v in (*node.inputs[1:5], *[None] * (5 - len(node.inputs))))
    if starts is None or ends is None or (steps is not None and any(steps != 1)):
        raise refuse(node, "it reverses, strides, or depends on the input", "slice with constant starts and ends")
    named = [x.lift(int(a)) for a in (axes if axes is not None else range(len(starts)))]
    keep = []
    offline = x.offline
    for axis, start, end in zip(named, starts, ends, strict=True):
        if axis != x.axis:
            keep.append((axis, start, end))
        elif x.offline is TimeAxis.FULL and start == -1 and end >= np.iinfo(np.int32).max:
            offline = TimeAxis.LAST
        elif not (start == 0 and end >= np.iinfo(np.int32).max):
            raise refuse(node, "it cuts the sequence at a fixed place", "select the last step, or every step")
    y = x.value
    if keep:
        y = step.op("Slice", y, *(step.constant([int(k[i]) for k in keep]) for i in (1, 2, 0)))
    return [replace(x, value=y, offline=offline)]


@streams("ReduceMax", "ReduceMean", "ReduceSum", "ReduceMin", "ReduceProd", "ReduceL2")
def _reduce(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed]:
    x = _first(node, arguments)
    given = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    axes = sorted(x.lift(int(a)) for a in (given if given is not None else range(x.rank)))
    if (1 if x.axis == 0 else 0) in axes:
        raise refuse(node, "it mixes the sequences of a batch", "reduce over channels or time only")
    keepdims = bool(node.attributes.get_int("keepdims", 1))
    if x.axis not in axes:
        y = step.op(node.op_type, x.value, step.constant(axes), keepdims=int(keepdims))
        axis = x.axis if keepdims else x.axis - sum(a < x.axis for a in axes)
        return [replace(x, value=y, axis=axis)]
    running = {"ReduceMax": _running_max, "ReduceMean": _running_mean}.get(node.op_type)
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if axes != [x.axis] or running is None or x.offline is not TimeAxis.FULL or shape is None:
        raise refuse(node, "only a maximum and a mean over time alone have a running form", "pool with one of them")
    carried = [n for axis, n in enumerate(shape) if axis not in (0, x.axis)]
    if not all(isinstance(n, int) for n in carried) or x.axis == 0:
        raise refuse(node, "the pooled tensor has axes of unknown size", "give the model a known number of channels")
    y = running(step, x, [n for n in carried if isinstance(n, int)])
    return [Timed(y, x.axis, None, TimeAxis.LAST if keepdims else TimeAxis.GONE)]


def _running_max(step: StepGraph, x: Timed, shape: list[int]) -> ir.Value:
    highest = step.state("max", shape, initial=_LOWEST)
    before, row = ir.val("before"), ir.val("row")
    now = ir.node("Max", [before, row])
    out = ir.node("Identity", now.outputs)
    last, rows = _scan(
        step, x, [highest], inputs=[before, row], body=[now, out], results=[now.outputs[0], out.outputs[0]]
    )
    step.carry(highest, last[0])
    return rows


def _running_mean(step: StepGraph, x: Timed, shape: list[int]) -> ir.Value:
    # Sums in float64: over 1e5 steps a float32 sum would drift by more than the law allows.
    total = step.state("sum", shape, dtype="float64")
    count = step.state("count", [1] * len(shape), dtype="float64")
    one = step.constant(np.ones((), np.float64), "one")
    before, counted, row = ir.val("before"), ir.val("counted"), ir.val("row")
    wide = ir.node("Cast", [row], attributes={"to": ir.DataType.DOUBLE})
    sum_ = ir.node("Add", [before, wide.outputs[0]])
    n = ir.node("Add", [counted, one])
    mean = ir.node("Div", [sum_.outputs[0], n.outputs[0]])
    narrow = ir.node("Cast", mean.outputs, attributes={"to": ir.DataType.FLOAT})
    body = [wide, sum_, n, mean, narrow]
    results = [sum_.outputs[0], n.outputs[0], narrow.outputs[0]]
    last, rows = _scan(step, x, [total, count], inputs=[before, counted, row], body=body, results=results)
    step.carry(total, last[0])
    step.carry(count, last[1])
    return rows


def _scan(
    step: StepGraph,
    x: Timed,
    states: list[ir.Value],
    *,
    inputs: list[ir.Value],
    body: list[ir.Node],
    results: list[ir.Value],
) -> tuple[Sequence[ir.Value], ir.Value]:
    """ONNX Scan over time: the same arithmetic, in the same order, for a step and for a chunk."""
    for value, state in zip(inputs, states, strict=False):
        value.type, value.shape = state.type, state.shape
    inputs[-1].type = ir.TensorType(ir.DataType.FLOAT)
    for result, like in zip(results, inputs, strict=True):
        result.type = like.type
    graph = ir.Graph(inputs, results, nodes=body, name="running", opset_imports={"": 18})
    outputs = step.ops(
        "Scan",
        len(results),
        *states,
        x.value,
        body=graph,
        num_scan_inputs=1,
        scan_input_axes=[x.axis],
        scan_output_axes=[x.axis],
    )
    return outputs[:-1], outputs[-1]


# Shared by the rules.


def _first(node: ir.Node, arguments: list[Argument]) -> Timed:
    first, *rest = arguments
    if not isinstance(first, Timed) or any(isinstance(a, Timed) for a in rest):
        raise refuse(node, "its weights or shape depend on the input", "make them constants")
    return first


def _values(arguments: Sequence[Argument]) -> list[ir.Value | None]:
    return [a.value if isinstance(a, Timed) else a for a in arguments]


def _constant_along_time(node: ir.Node, value: ir.Value, x: Timed) -> None:
    """Refuse a constant that has another value at another step, or that the step tensor's extra axis would shift."""
    if value.shape is None:
        raise refuse(node, "the shape of a constant is unknown", "give it as an initializer")
    if len(value.shape) > x.rank:
        raise refuse(node, f"a constant of shape {list(value.shape)} adds axes before time", "drop its leading axes")
    for axis, size in enumerate(value.shape, start=x.rank - len(value.shape)):
        if size != 1 and (axis == x.axis if not x.gone else axis < x.axis):
            raise refuse(
                node, f"a constant of shape {list(value.shape)} varies along time", "a stream has no fixed length"
            )


def _farthest(timed: Sequence[Timed]) -> int | None:
    pasts = [t.past for t in timed]
    return None if None in pasts else max(p for p in pasts if p is not None)


def _add(past: int | None, more: int) -> int | None:
    return None if past is None else past + more
