"""One rule per ONNX operator: what it does to time, and how one chunk of it is computed.

Here are the operators that work on each step alone, and those that slide along time. Those that move axes are in
``edgeseq.export.streaming.axes``, and those that carry a state of their own in ``edgeseq.export.streaming.memory``. To
support one more operator, add one function; ``docs/streaming.md`` has a worked example.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgeseq.export.graph.edit import constant
from edgeseq.export.graph.elementwise import ELEMENTWISE
from edgeseq.export.streaming import filled as filled  # noqa: PLC0414  registers its rules
from edgeseq.export.streaming import masked as masked  # noqa: PLC0414
from edgeseq.export.streaming import memory as memory  # noqa: PLC0414
from edgeseq.export.streaming import upsampling as upsampling  # noqa: PLC0414
from edgeseq.export.streaming.axes import as_gone, last_step, repeated, time_second
from edgeseq.export.streaming.held import at_every_step, first_step
from edgeseq.export.streaming.products import attention, leads_to_softmax, product_of_two
from edgeseq.export.streaming.registry import REARRANGE, RULES, Argument, farthest, first, streams, values
from edgeseq.export.streaming.step_graph import StepGraph, TimeAxis, Timed, refuse, then
from edgeseq.export.streaming.windows import aligned, due, same_padding, slide, summed_in_turn

__all__ = ["POINTWISE", "RULES", "Argument"]

_FAR = 10**9  # an open end: this from TensorFlow, the largest integer from others
_LOWEST = float(np.finfo(np.float32).min)

# Operators that work on each step alone.

POINTWISE = {
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
POINTWISE |= {"Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Not", "And", "Or", "ThresholdedRelu"}

# f(0) = 0: rows of zeros stay zeros.
_ZERO_TO_ZERO = {
    "Relu",
    "Tanh",
    "Elu",
    "Selu",
    "LeakyRelu",
    "Softsign",
    "Erf",
    "Neg",
    "Abs",
    "Sqrt",
    "Identity",
    "Sign",
}


@streams(*sorted(POINTWISE))
def _pointwise(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed]:
    timed = at_every_step([a for a in arguments if isinstance(a, Timed)])
    if {a.offline for a in timed} == {TimeAxis.LAST, TimeAxis.GONE}:  # the last step's mask, and the last output
        timed = [time_second(step, as_gone(step, a)) for a in timed]
    head = timed[0]
    if any(a.offline is not head.offline for a in timed):
        raise refuse(
            node,
            "it combines every step with a value of the whole sequence, so early outputs depend on late samples",
            "pool at the end of the model only",
        )
    if any(isinstance(a, ir.Value) and a.shape is not None and len(a.shape) > 1 for a in arguments):
        timed = [time_second(step, a) for a in timed]
        head = timed[0]
    most = max((len(a.shape) for a in arguments if isinstance(a, ir.Value) and a.shape is not None), default=0)
    if most > head.rank and not head.gone:
        timed = [_with_leading_axes(step, a, most - a.rank) for a in timed]
        head = timed[0]
    if any((a.axes, a.rank, a.time_major) != (head.axes, head.rank, head.time_major) for a in timed):
        weighs = leads_to_softmax(node)
        raise attention(node) if weighs else refuse(node, "its inputs have time at different axes", REARRANGE)
    for argument in arguments:
        if isinstance(argument, ir.Value):
            _constant_along_time(node, argument, head)
    held = all(a.held for a in timed)
    if node.op_type == "Sum":
        timed = summed_in_turn(step, node, timed)
        arguments = [*timed, *(a for a in arguments if not isinstance(a, Timed))]
    late = aligned(step, node, timed)
    in_turn = iter(late)
    inputs = [next(in_turn).value if isinstance(a, Timed) else a for a in arguments]
    past, future = farthest(late)
    blank = node.op_type in _ZERO_TO_ZERO and head.blank
    return [replace(late[0], value=step.copy(node, inputs)[0], past=past, future=future, blank=blank, held=held)]


def _with_leading_axes(step: StepGraph, x: Timed, n: int) -> Timed:
    y = step.op("Unsqueeze", x.value, step.constant(list(range(n))))
    step.knows_sizes(y, [*[1] * n, *step.sizes(x)])
    return replace(x, value=y, batch=x.batch + n, axis=x.axis + n, rank=x.rank + n)


@streams("MatMul")
def _matmul(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed]:
    x, weight = arguments
    if isinstance(x, Timed) and isinstance(weight, Timed):
        return product_of_two(step, node, arguments)
    if not isinstance(x, Timed) or isinstance(weight, Timed) or weight is None:
        raise refuse(node, "the product is not (tensor over time) x (constant)", REARRANGE)
    x = time_second(step, x)
    if weight.shape is None or len(weight.shape) != 2 or x.lift(-1) == x.axis:
        raise refuse(node, "the product mixes time steps", REARRANGE)
    if x.lift(-1) == x.batch:
        raise refuse(node, "it mixes the sequences of a batch", REARRANGE)
    return [replace(x, value=step.copy(node, [x.value, weight])[0], blank=False)]


@streams("Gemm")
def _gemm(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed]:
    x = first(node, arguments)
    attributes = node.attributes
    weight, bias = constant(node.inputs[1]), constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if not x.gone or weight is None or attributes.get_int("transA", 0) != 0:
        raise refuse(node, "only a Gemm of one vector a sequence by a constant streams", "use a MatMul")
    x = time_second(step, x)
    if x.lift(-1) == x.batch:
        raise refuse(node, "it mixes the sequences of a batch", REARRANGE)
    weight = weight.T if attributes.get_int("transB", 0) else weight
    weight = np.asarray(weight * attributes.get_float("alpha", 1.0), np.float32)
    y = step.op("MatMul", x.value, step.constant(weight, f"{node.inputs[1].name}_turned"))  # type: ignore[union-attr]
    if bias is not None:
        scaled = np.asarray(bias * attributes.get_float("beta", 1.0), np.float32)
        y = step.op("Add", y, step.constant(scaled, f"{node.inputs[2].name}_scaled"))  # type: ignore[union-attr]
    return [replace(x, value=y, blank=False)]


@streams("Concat")
def _concat(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed]:
    timed = [a for a in arguments if isinstance(a, Timed)]
    head = timed[0]
    alike = head.axes, head.offline, head.time_major
    if len(timed) < len(arguments) or any((a.axes, a.offline, a.time_major) != alike for a in timed):
        raise refuse(node, "its inputs are not all over time at the same axis", REARRANGE)
    axis = head.lift(node.attributes.get_int("axis"))
    if axis == head.axis:
        raise refuse(node, "it joins sequences end to end", "join channels instead")
    if axis == head.batch:
        raise refuse(node, "it joins batches", "join channels instead")
    late = aligned(step, node, timed)
    past, future = farthest(late)
    y = step.copy(node, values(late), axis=axis)[0]
    blank, held = all(x.blank for x in late), all(x.held for x in late)
    return [replace(late[0], value=y, past=past, future=future, blank=blank, held=held)]


@streams("Softmax", "LogSoftmax", "LayerNormalization")
def _along_channels(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed | None]:
    x = first(node, arguments)
    one = node.op_type != "LayerNormalization"  # that one takes every axis from its own on
    x = x if one else time_second(step, x)
    axis = x.lift(node.attributes.get_int("axis", -1))
    over = {axis} if one else set(range(axis, x.rank + x.gone))
    if x.axis in over:
        raise refuse(node, f"{node.op_type} over time needs the whole sequence", "normalise over channels instead")
    if x.batch in over:
        raise refuse(node, "it mixes the sequences of a batch", "normalise over channels instead")
    inputs = [x.value, *values(arguments)[1:]]
    return [replace(x, value=step.copy(node, inputs, axis=axis)[0], blank=False)]


@streams("BatchNormalization")
def _batch_normalization(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed]:
    x = first(node, arguments)
    if node.attributes.get_int("training_mode", 0):
        raise refuse(node, "it is in training mode, so it mixes the sequences of a batch", "export it in evaluation")
    if x.gone:  # channels are the axis behind the batch, in the step graph, too
        order = [x.batch, *(axis for axis in range(x.rank + 1) if axis not in x.axes), x.axis]
        x = replace(x, value=step.op("Transpose", x.value, perm=order), batch=0, axis=x.rank)
    if x.batch != 0 or x.axis == 1:
        raise refuse(node, "its channels are at the axis of time", REARRANGE)
    return [replace(x, value=step.copy(node, [x.value, *values(arguments)[1:]])[0], blank=False)]


@streams("Dropout")
def _dropout(_step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed]:
    return [first(node, arguments)]  # at inference it passes its input on


# Operators that make more rows of each sample, or slide along time.


@streams("Resize")
def _resize(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed]:
    x = first(node, arguments)
    scales = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    how = [node.attributes.get_string(name, "") for name in ("mode", "coordinate_transformation_mode", "nearest_mode")]
    if scales is None or how != ["nearest", "asymmetric", "floor"] or x.gone:
        raise refuse(node, "only a repetition of steps (nearest, asymmetric, floor) streams", "repeat the steps")
    if scales[x.axis] == 1 and scales[x.batch] == 1:
        return [replace(x, value=step.copy(node, values(arguments))[0])]
    times = float(scales[x.axis])
    if x.merged or times < 1 or times != int(times) or any(s != 1 for axis, s in enumerate(scales) if axis != x.axis):
        raise refuse(node, f"it resizes by {scales.tolist()}", "repeat whole steps, and time alone")
    return [repeated(replace(x, value=step.copy(node, values(arguments))[0]), int(times))]


@streams("Conv")
def _conv(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed]:
    x, weight = first(node, arguments), constant(node.inputs[1])
    if weight is None or weight.ndim != 3 or x.axes != (0, 2) or x.offline is not TimeAxis.FULL:
        raise refuse(node, "only a 1-D convolution over time with constant weights streams", REARRANGE)
    reach = (weight.shape[2] - 1) * node.attributes.get_ints("dilations", [1])[0]
    stride, before, after = _window(step, node, x, reach)
    rows, result = slide(step, node, x, reach=reach, stride=stride, before=before, after=after)
    kernel = arguments[1]
    if x.backwards:
        turned = np.ascontiguousarray(weight[:, :, ::-1])
        kernel = step.constant(turned, f"{node.inputs[1].name}_backwards")  # type: ignore[union-attr]
    y = step.copy(node, [rows, *values([kernel, *arguments[2:]])], pads=[0, 0], auto_pad="NOTSET")[0]
    return [replace(result, value=y)]


@streams("MaxPool", "AveragePool")
def _pool(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed]:
    x = first(node, arguments)
    attributes = node.attributes
    sizes = attributes.get_ints("kernel_shape")
    right = x.axes == (0, 2) and x.rank == 3 and len(sizes) == 1 and x.offline is TimeAxis.FULL
    if not right or attributes.get_int("ceil_mode", 0) != 0:
        raise refuse(node, "only a 1-D pool over time, with ceil_mode=0, streams", REARRANGE)
    (size,) = sizes
    reach = (size - 1) * attributes.get_ints("dilations", [1])[0]
    stride, before, after = _window(step, node, x, reach)
    x = due(step, x) if before or after else x
    fill = _LOWEST if node.op_type == "MaxPool" else 0.0
    rows, result = slide(step, node, x, reach=reach, stride=stride, before=before, after=after, fill=fill)
    plain = {"pads": [0, 0], "auto_pad": "NOTSET"}
    y = step.copy(node, [rows], **plain)[0]
    if node.op_type == "AveragePool" and (before or after) and not attributes.get_int("count_include_pad", 0):
        there = replace(x, value=step.op("Cast", step.valid(x), to=ir.DataType.FLOAT), blank=True)
        step.knows_sizes(there.value, [1])
        counted, _ = slide(step, node, there, reach=reach, stride=stride, before=before, after=after)
        share = step.op("Max", step.copy(node, [counted], **plain)[0], step.scalar(1 / size, np.float32))
        y = step.op("Div", y, share)  # the mean over the window, by the share of it that belongs to the sequence
    return [replace(result, value=y)]


def _window(step: StepGraph, node: ir.Node, x: Timed, reach: int) -> tuple[int, int, int]:
    """(stride, rows of padding before, and after) of a convolution or a pool."""
    (stride,) = node.attributes.get_ints("strides", [1])
    how = node.attributes.get_string("auto_pad", "NOTSET")
    if how in ("SAME_UPPER", "SAME_LOWER"):
        total = same_padding(step, node, x, reach, stride)
        less, more = total // 2, total - total // 2
        return (stride, less, more) if how == "SAME_UPPER" else (stride, more, less)
    before, after = node.attributes.get_ints("pads", [0, 0]) if how == "NOTSET" else (0, 0)
    return stride, before, after


@streams("Pad")
def _pad(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed]:
    x, pads = first(node, arguments), constant(node.inputs[1])
    if pads is None or x.gone or len(node.inputs) > 3 or node.attributes.get_string("mode", "constant") != "constant":
        raise refuse(node, "only a padding by constants, as wide as another one says, streams", "pad with zeros")
    number = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if not pads.any():
        return [x]
    before, after = int(pads[x.axis]), int(pads[x.axis + x.rank])
    if not any(pads[[x.axis, x.axis + x.rank, x.batch, x.batch + x.rank]]):
        return [replace(x, value=step.copy(node, values(arguments))[0], blank=False)]
    across = pads.copy()
    across[[x.axis, x.axis + x.rank]] = 0
    if any(across) or x.merged or x.offline is not TimeAxis.FULL:
        raise refuse(node, "it pads time and other axes", "pad time alone, and the others alone")
    fill = 0.0 if number is None else float(number.item())
    if before <= 0 or after < 0 or x.backwards:
        rows, result = slide(step, node, x, reach=0, before=before, after=after, fill=fill)
        return [replace(result, value=rows)]
    # The rows before the first need not wait for their turn: what slides over them takes them up at once.
    if (x.delay or after) and not (x.blank and fill == 0.0):
        x = replace(x, value=step.masked(x, step.scalar(fill, np.float32)))
    return [
        replace(
            x,
            delay=x.delay - before,
            fill=fill,
            blank=x.blank and fill == 0.0,
            rows=then(x.rows, 1, before + after, 1),
            past=None if x.past is None else x.past + before * x.hop,
            future=x.future - before * x.hop,
        )
    ]


@streams("Slice")
def _slice(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed]:
    x = first(node, arguments)
    starts, ends, axes, steps = (constant(v) for v in (*node.inputs[1:5], *[None] * (5 - len(node.inputs))))
    if starts is None or ends is None:
        raise refuse(node, "where it cuts depends on the input", "slice with constant starts and ends")
    named = [x.lift(int(a)) for a in (axes if axes is not None else range(len(starts)))]
    strides = steps.tolist() if steps is not None else [1] * len(starts)
    keep = []
    for axis, start, end, stride in zip(named, starts.tolist(), ends.tolist(), strides, strict=True):
        if axis == x.batch and (start, end >= _FAR, stride) != (0, True, 1):
            raise refuse(node, "it selects sequences of a batch", REARRANGE)
        if axis != x.axis:
            keep.append((start, end, axis, stride))
        else:
            x = _steps_of(step, node, x, (start, end, stride))
    if not keep:
        return [x]
    columns = [step.constant([part[i] for part in keep]) for i in range(4)]
    return [replace(x, value=step.op("Slice", x.value, *columns))]


def _steps_of(step: StepGraph, node: ir.Node, x: Timed, wanted: tuple[int, int, int]) -> Timed:
    """``x[start:end:stride]`` over time."""
    start, end, stride = wanted
    x = due(step, x) if start < 0 else x
    to_the_end = end >= _FAR
    if stride == -1 and (start == -1 or start >= _FAR) and end <= -_FAR:
        if x.offline is not TimeAxis.FULL:
            raise refuse(node, "it reverses what is no sequence any more", REARRANGE)
        return replace(x, backwards=not x.backwards)
    if (start, stride) == (-1, 1) and to_the_end and x.offline is not TimeAxis.LAST:
        return last_step(node, x, TimeAxis.LAST)
    one = x.offline is TimeAxis.LAST and start in (0, -1) and end not in (0, -1)
    if stride == 1 and ((start == 0 and to_the_end) or one):
        return x
    if (start, end, stride) == (0, 1, 1):
        return first_step(step, node, x, TimeAxis.LAST)
    if start < 0 or stride < 1 or not (to_the_end or end < 0) or x.offline is not TimeAxis.FULL:
        raise refuse(node, "it cuts the sequence at a fixed place", "select the last step, or every step")
    rows, result = slide(step, node, x, reach=0, stride=stride, before=-start, after=0 if to_the_end else end)
    if stride > 1:
        rows = step.op("Slice", rows, *(step.constant([n]) for n in (0, 2**63 - 1, x.axis, stride)))
    return replace(result, value=rows)


def _constant_along_time(node: ir.Node, value: ir.Value, x: Timed) -> None:
    """Refuse a constant that has another value at another step, or that the step tensor's extra axis would shift."""
    if value.shape is None:
        raise refuse(node, "the shape of a constant is unknown", "give it as an initializer")
    if len(value.shape) > x.rank:
        raise refuse(node, f"a constant of shape {list(value.shape)} adds axes before time", "drop its leading axes")
    for axis, size in enumerate(value.shape, start=x.rank - len(value.shape)):
        if size != 1 and x.lift(axis) == x.batch:
            raise refuse(
                node, f"a constant of shape {list(value.shape)} varies along the batch", "export with a dynamic batch"
            )
        if size != 1 and (axis == x.axis if not x.gone else axis < x.axis):
            raise refuse(
                node, f"a constant of shape {list(value.shape)} varies along time", "a stream has no fixed length"
            )
