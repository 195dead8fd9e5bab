"""Rules of operators on tensors whose batch and time are one axis: a step is then a sequence of a batch of its own.

``MERGED`` has every rule for such tensors. What leaves batch and time alone wherever they stand keeps its ordinary
rule; what works on each sequence of a batch, whatever it does along the other axes, runs as it is.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from edgeseq.export.streaming.registry import REARRANGE, Argument, Rule, first, values
from edgeseq.export.streaming.rules import POINTWISE, RULES
from edgeseq.export.streaming.step_graph import StepGraph, Timed, refuse

_AS_EVER = {"MatMul", "Concat", "Softmax", "LogSoftmax", "LayerNormalization", "BatchNormalization", "Dropout"}
_AS_EVER |= {"Transpose", "Squeeze", "Unsqueeze", "Split", "Slice", "Gather", "Tile", "Expand", "Reshape", "Flatten"}
_AS_EVER |= {"Pad", "Resize", "TopK", "ArgMax", "ArgMin", "CumSum", "Einsum"}
_AS_EVER |= {"ReduceMax", "ReduceMin", "ReduceSum", "ReduceMean", "ReduceProd", "ReduceL1", "ReduceL2"}
_AS_EVER |= {"ReduceSumSquare"}

_OF_EACH_SEQUENCE = {"Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool", "Gemm"}
_OF_EACH_SEQUENCE |= {"InstanceNormalization", "GroupNormalization", "LpNormalization"}


def _each_sequence(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed]:
    x = first(node, arguments)
    if x.batch != 0 or node.attributes.get_int("transA", 0) != 0:
        raise refuse(node, "batch and time, as one axis, do not stand first", REARRANGE)
    y, *_ = step.copy(node, values(arguments))
    return [replace(x, value=y, blank=False)]


def _recurrent(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed]:
    """Along an axis that is not time, in either direction, from states that may depend on the step."""
    x = arguments[0]
    if not isinstance(x, Timed) or x.axis != 1 or any(isinstance(a, Timed) for a in arguments[1:5]):
        raise refuse(node, "batch and time, as one axis, are not its batch", REARRANGE)
    if len(arguments) > 4 and arguments[4] is not None:
        raise refuse(node, "it has a mask", "export without mask_zero and Masking")
    if any(isinstance(a, Timed) and (a.axes, a.delay, a.hop) != (x.axes, x.delay, x.hop) for a in arguments[5:]):
        raise refuse(node, "its initial state is of other steps than its input", REARRANGE)
    every, *last = step.copy(node, values(arguments))
    y = replace(x, value=every, batch=2, axis=2, blank=False)
    return [y, *(replace(y, value=value, batch=1, axis=1) for value in last)]


MERGED: dict[str, Rule] = {
    **{op_type: RULES[op_type] for op_type in (*sorted(_AS_EVER | POINTWISE), "Shape", "Size")},
    **dict.fromkeys(_OF_EACH_SEQUENCE, _each_sequence),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
}
