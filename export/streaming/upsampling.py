"""The rule of the transposed convolution: several rows for each row of its input.

Row o of the full result is the sum of ``w[j] · x[n]`` over all j, n with ``o = n · stride + j · dilation``: with row n
of the input all results before ``(n + 1) · stride`` are final. A chunk's are computed anew from its rows and the few
before it that reach into them, never from partial sums: the arithmetic is that of the offline model.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import onnx_ir as ir

from edgeseq.export.graph.edit import constant
from edgeseq.export.streaming.registry import REARRANGE, Argument, first, streams, values
from edgeseq.export.streaming.step_graph import StepGraph, TimeAxis, Timed, refuse, then


@streams("ConvTranspose")
def _conv_transpose(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed]:
    x, weight = first(node, arguments), constant(node.inputs[1])
    attributes = node.attributes
    if weight is None or weight.ndim != 3 or x.axis != 2 or x.offline is not TimeAxis.FULL:
        raise refuse(node, "only a 1-D transposed convolution over time with constant weights streams", REARRANGE)
    if attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or "output_shape" in attributes:
        raise refuse(node, "its padding is left to ONNX Runtime", "give pads, and neither auto_pad nor output_shape")
    (stride,), (dilation,) = attributes.get_ints("strides", [1]), attributes.get_ints("dilations", [1])
    before, after = attributes.get_ints("pads", [0, 0])
    (more,) = attributes.get_ints("output_padding", [0])
    kernel, after = arguments[1], after - more  # rows of the full result that are left out, negative for more rows
    if x.backwards:
        if after < 0:
            raise refuse(node, "it adds rows at the end of reversed time", "set output_padding to 0")
        before, after = after, before
        turned = np.ascontiguousarray(weight[:, :, ::-1])
        kernel = step.constant(turned, f"{node.inputs[1].name}_backwards")  # type: ignore[union-attr]
    taps = [j * dilation for j in range(weight.shape[2])]
    reach = taps[-1]
    # Zeros stand for what the first and the last rows see outside the sequence; at the start, the history's own do.
    if not x.blank and ((x.delay > 0 and before <= reach - stride) or after <= reach - stride):
        x = replace(x, value=step.masked(x, step.scalar(0.0, np.float32)))
    # Where the last kernel ends before its stride does, a row is there for certain only when the next sample is.
    wait = max(0, after + stride - 1 - reach)
    kept = max((reach + wait) // stride, -(-wait // stride))
    rows = step.with_history(x, kept, what="convtranspose") if kept else x.value
    y = step.copy(
        node,
        [rows, *values([kernel, *arguments[2:]])],
        pads=[kept * stride - wait, max(0, reach + 1 - stride + wait)],
        output_padding=[max(0, stride - 1 - reach - wait)],
        auto_pad="NOTSET",
    )[0]
    past, future = _influence(taps, stride, before)
    result = replace(
        x,
        value=y,
        hop=x.hop / stride,
        delay=x.delay * stride + before + wait,
        rows=then(x.rows, stride, reach + 1 - stride - before - after, 1),
        blank=False,
        past=None if x.past is None else x.past + past * x.hop,
        future=x.future + future * x.hop,
    )
    step.takes_whole_rows(result.hop)
    return [result]


def _influence(taps: list[int], stride: int, before: int) -> tuple[Fraction, Fraction]:
    """How many rows of the input, before and after its own place, influence a row of the result at most."""
    ways = [
        Fraction(row, stride) - (row + before - tap) // stride
        for row in range(stride)
        for tap in taps
        if (row + before - tap) % stride == 0
    ]
    return max(Fraction(0), *ways), max(Fraction(0), *(-way for way in ways))
