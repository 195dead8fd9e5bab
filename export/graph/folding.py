"""Clean-up rules that fold a scale, a shift or a padding into the weights of its neighbour.

Each folds in float64 where it multiplies, and leaves what it does not know the shape of.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from edgeseq.export.graph.edit import (
    constant,
    either_way,
    has_one_reader,
    initializer,
    insert_after,
    permutation,
    producer,
    put_instead,
    replace,
)
from edgeseq.export.graph.elementwise import BINARY, UNARY


def fold_into_conv(node: ir.Node) -> bool:
    """Conv followed by Mul or Add with one number per channel is a Conv with other weights."""
    if node.op_type not in ("Mul", "Add") or node.graph is None:
        return False
    for value, other in either_way(node):
        conv = value.producer() if value is not None else None
        per_channel = constant(other)
        if conv is None or conv.op_type != "Conv" or per_channel is None or len(list(conv.outputs[0].uses())) != 1:
            continue
        weight, bias = constant(conv.inputs[1]), constant(conv.inputs[2]) if len(conv.inputs) > 2 else None
        if weight is None or (len(conv.inputs) > 2 and bias is None):
            continue
        channels, rank = weight.shape[0], weight.ndim
        aligned = per_channel.reshape((1,) * (rank - per_channel.ndim) + per_channel.shape)
        if aligned.shape not in ((1, channels) + (1,) * (rank - 2), (1,) * rank):
            continue
        factor = np.broadcast_to(aligned.reshape(-1), (channels,)).astype(np.float64)
        old_bias = np.zeros(channels) if bias is None else bias
        new_weight = weight * factor.reshape(-1, *(1,) * (rank - 1)) if node.op_type == "Mul" else weight
        new_bias = old_bias * factor if node.op_type == "Mul" else old_bias + factor
        folded = ir.node(
            "Conv",
            [
                conv.inputs[0],
                initializer(node.graph, new_weight.astype(weight.dtype), f"{conv.inputs[1].name}_f"),  # type: ignore[union-attr]
                initializer(node.graph, new_bias.astype(weight.dtype), f"{conv.outputs[0].name}_bias"),
            ],
            attributes=dict(conv.attributes),
            name=conv.name,
        )
        insert_after(node, [folded])
        replace(node.outputs[0], folded.outputs[0])
        return True
    return False


def fold_scale_before(node: ir.Node) -> bool:
    """Conv or MatMul of an input times one number per channel is the same of other weights.

    Not so for a shift before it: the padding of a convolution is zero after the shift, and a mean far from zero that is
    subtracted from the products, not from the input, costs digits.
    """
    weight = constant(node.inputs[1]) if node.op_type in ("Conv", "MatMul") else None
    if weight is None or node.graph is None or weight.ndim != (3 if node.op_type == "Conv" else 2):
        return False
    turn = producer(node.inputs[0], "Transpose") if node.op_type == "Conv" else None
    if turn is not None and permutation(turn) != [0, 2, 1]:
        return False
    scale = producer(turn.inputs[0] if turn is not None else node.inputs[0], "Mul")
    groups = node.attributes["group"].as_int() if "group" in node.attributes else 1
    channels = weight.shape[0] if node.op_type == "MatMul" else weight.shape[1] * groups
    axis = 1 if node.op_type == "Conv" and turn is None else -1  # where the channels stand before the Transpose
    for source, other in either_way(scale):
        factor = _per_channel(constant(other), channels, axis, source)
        if factor is None:
            continue
        if node.op_type == "Conv":  # (outputs, inputs of a group, taps)
            factor = np.repeat(factor.reshape(groups, -1), weight.shape[0] // groups, axis=0)
        scaled = initializer(node.graph, (weight * factor[..., None]).astype(weight.dtype), f"{node.name}_weight")
        new = [] if turn is None else [ir.node("Transpose", [source], attributes={"perm": [0, 2, 1]})]
        inputs = [new[0].outputs[0] if new else source, scaled, *node.inputs[2:]]
        put_instead(node, [*new, ir.node(node.op_type, inputs, attributes=dict(node.attributes), name=node.name)])
        return True
    return False


def _per_channel(
    value: np.ndarray[Any, Any] | None, channels: int, axis: int, source: ir.Value | None
) -> np.ndarray[Any, Any] | None:
    """A constant that has one number, or one for each channel at ``axis`` of ``source``, as (channels,).

    None also where ``source`` is not known to have these channels: one channel times six numbers is six channels.
    """
    if value is None or source is None or value.ndim > 3:
        return None
    shape = source.shape
    if value.ndim == 3 and (shape is None or len(shape) != 3):
        return None  # it might give the product more axes than its other factor has
    if value.size != 1 and (shape is None or shape[axis] != channels):
        return None
    expected = [1, 1, 1]
    expected[axis] = channels
    aligned = value.reshape((1,) * (3 - value.ndim) + value.shape)
    if aligned.size != 1 and list(aligned.shape) != expected:
        return None
    return np.broadcast_to(aligned.reshape(-1), (channels,)).astype(np.float64)


def fold_into_matmul(node: ir.Node) -> bool:
    """MatMul, or MatMul and Add, followed by Mul with one number per column is a MatMul with other weights."""
    if node.op_type != "Mul" or node.graph is None:
        return False
    for value, other in either_way(node):
        add = producer(value, "Add")
        product = producer(value if add is None else add.inputs[0], "MatMul")
        weight = constant(product.inputs[1]) if product is not None else None
        shift = constant(add.inputs[1]) if add is not None else None
        factor = constant(other)
        if product is None or weight is None or weight.ndim != 2 or (add is not None and shift is None):
            continue
        # Constants of more axes might give the result more axes, too.
        if factor is None or factor.ndim > 1 or (shift is not None and shift.ndim > 1):
            continue
        scaled = initializer(node.graph, (weight * factor).astype(weight.dtype), f"{node.name}_weight")
        new = [ir.node("MatMul", [product.inputs[0], scaled], name=product.name)]
        if shift is not None:
            moved = initializer(node.graph, (shift * factor).astype(weight.dtype), f"{node.name}_bias")
            new.append(ir.node("Add", [new[0].outputs[0], moved], name=node.name))
        put_instead(node, new)
        return True
    return False


def merge_shifts(node: ir.Node) -> bool:
    """x plus a constant plus a constant is x plus one constant."""
    if node.op_type != "Add" or node.graph is None:
        return False
    for value, other in either_way(node):
        for source, first in either_way(producer(value, "Add")):
            number, further = constant(first), constant(other)
            if number is None or further is None:
                continue
            total = initializer(node.graph, number + further, f"{node.name}_sum")
            put_instead(node, [ir.node("Add", [source, total], name=node.name)])
            return True
    return False


def fold_pad(node: ir.Node) -> bool:
    """Conv of an input padded with zeros along its last axis is a Conv with larger pads."""
    if node.op_type != "Conv" or node.graph is None or "auto_pad" in node.attributes:
        return False
    turn = producer(node.inputs[0], "Transpose")
    if turn is None and node.inputs[0] is not None:
        pad = node.inputs[0].producer()  # several convolutions may share a padding: each takes it up
    else:
        pad = producer(turn.inputs[0], "Pad") if turn is not None else None
    if pad is None or pad.op_type != "Pad" or (turn is not None and permutation(turn) != [0, 2, 1]):
        return False
    amount, mode = constant(pad.inputs[1]), pad.attributes.get("mode")
    if amount is None or amount.size != 6 or (mode is not None and mode.as_string() != "constant"):
        return False
    if len(pad.inputs) > 3 or (len(pad.inputs) == 3 and pad.inputs[2] is not None and constant(pad.inputs[2]) != 0):
        return False
    time = 2 if turn is None else 1
    before, after = int(amount[time]), int(amount[time + 3])
    if min(before, after) < 0 or np.count_nonzero(np.delete(amount, [time, time + 3])):
        return False
    old = node.attributes["pads"].as_ints() if "pads" in node.attributes else (0, 0)
    new = [ir.node("Transpose", [pad.inputs[0]], attributes={"perm": [0, 2, 1]})] if turn is not None else []
    attributes = {**node.attributes, "pads": ir.AttrInt64s("pads", [old[0] + before, old[1] + after])}
    inputs = [new[0].outputs[0] if new else pad.inputs[0], *node.inputs[1:]]
    new.append(ir.node("Conv", inputs, attributes=attributes, name=node.name))
    insert_after(node, new)
    replace(node.outputs[0], new[-1].outputs[0])
    return True


def fold_crop(node: ir.Node) -> bool:
    """A Conv or pool with padding whose padded end, or start, is cut off again is one with less padding.

    Many causal models in PyTorch are written so, also with an activation before the cut; without this rule each such
    layer would put zeros in the place of rows that it then throws away.
    """
    window = _padded_before(node) if node.op_type == "Slice" and node.graph is not None else None
    if window is None or window.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return False
    pads = window.attributes.get_ints("pads", [])
    cuts = [constant(value) for value in node.inputs[1:]]
    if len(pads) != 2 or list(window.attributes.get_ints("strides", [1])) != [1] or len(cuts) < 3:
        return False
    if any(cut is None or cut.size != 1 for cut in cuts) or window.attributes.get_int("ceil_mode", 0) != 0:
        return False
    start, end, axis, step = (int(cut.item()) for cut in [*cuts, np.array([1])][:4] if cut is not None)
    end = 0 if end >= np.iinfo(np.int32).max else end
    if axis not in (2, -1) or step != 1 or start < 0 or end > 0 or start > pads[0] or -end > pads[1]:
        return False
    attributes = {**window.attributes, "pads": ir.AttrInt64s("pads", [pads[0] - start, pads[1] + end])}
    if node.inputs[0] is not window.outputs[0]:
        for value in _values_between(window, node):
            value.shape = None
        replace(node.outputs[0], node.inputs[0])  # type: ignore[arg-type]
        node = window
    put_instead(node, [ir.node(window.op_type, window.inputs, attributes=attributes, name=window.name)])
    return True


_PADDED = {"Conv", "MaxPool", "AveragePool"}


def _padded_before(cut: ir.Node) -> ir.Node | None:
    """The node with padding whose rows the cut has, each changed on its own in between, if nothing else reads them."""
    value = cut.inputs[0]
    while has_one_reader(value) and value is not None and (node := value.producer()) is not None:
        if node.op_type in _PADDED:
            return node if len(node.outputs) == 1 else None
        moving = [v for v in node.inputs if v is not None and constant(v) is None]
        fixed = [c for v in node.inputs if (c := constant(v)) is not None]
        if node.op_type not in UNARY | BINARY | {"PRelu"} or len(moving) != 1:
            return None
        if any(c.ndim > 3 or (c.ndim and c.shape[-1] != 1) for c in fixed):
            return None
        value = moving[0]
    return None


def _values_between(window: ir.Node, cut: ir.Node) -> list[ir.Value]:
    """What stands between the two, their own outputs included."""
    found, value = [cut.outputs[0]], cut.inputs[0]
    while value is not None and value is not window.outputs[0]:
        found.append(value)
        producer = value.producer()
        assert producer is not None
        value = next(v for v in producer.inputs if v is not None and constant(v) is None)
    return [*found, window.outputs[0]]
