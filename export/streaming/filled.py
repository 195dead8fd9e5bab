"""Tensors full of one number, with the sizes of another one: ``zeros_like``, ``ones_like``.

The sizes of a sequence are unknown to a stream, but those of a chunk are not. ``mark_filled`` says what is meant by one
operator, ``FillLike``, before the graph is walked; it stands in no file. Keras asks for such tensors where masks are
joined.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from edgeseq.export.graph.edit import constant, initializer
from edgeseq.export.graph.edit import replace as replace_value
from edgeseq.export.streaming.registry import Argument, streams
from edgeseq.export.streaming.step_graph import StepGraph, Timed, refuse


def mark_filled(model: ir.Model) -> None:
    """Let ``FillLike(tensor, number)`` stand for a number that is expanded to the sizes of a tensor, in place."""
    for node in list(model.graph):
        found = _filled(node)
        if found is None:
            continue
        like, number = found
        fixed = initializer(model.graph, number, f"{node.outputs[0].name}_number")
        fill = ir.node("FillLike", [like, fixed], name=node.name)
        model.graph.insert_before(node, fill)
        replace_value(node.outputs[0], fill.outputs[0])
    passes.RemoveUnusedNodesPass()(model)


def _filled(node: ir.Node) -> tuple[ir.Value, np.ndarray] | None:
    """The tensor whose sizes the result has, and the number, of rank 0, that it is full of."""
    if node.op_type == "Expand":
        number, shape = constant(node.inputs[0]), node.inputs[1]
    elif node.op_type == "ConstantOfShape":
        given, shape = node.attributes.get_tensor("value", None), node.inputs[0]
        number = np.zeros(1, np.float32) if given is None else given.numpy()
    else:
        return None
    source = None if shape is None else shape.producer()
    while source is not None and source.op_type == "Cast" and source.inputs[0] is not None:
        source = source.inputs[0].producer()
    whole = source is not None and source.op_type == "Shape" and not {"start", "end"} & set(source.attributes)
    if source is None or not whole or number is None or number.size != 1 or source.inputs[0] is None:
        return None
    return source.inputs[0], number.reshape(())


@streams("FillLike")
def _fill_like(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed]:
    like, number = arguments
    if not isinstance(like, Timed) or not isinstance(number, ir.Value):
        raise refuse(node, "what it is full of depends on the input", "multiply instead")
    y = step.op("Expand", number, step.op("Shape", like.value))
    return [replace(like, value=y, blank=False, past=Fraction(0), future=Fraction(0))]
