"""Graph clean-up after tf2onnx: fewer nodes, the same numbers.

Each rule looks at one node and either rewrites its neighbourhood or leaves it; ``clean_up`` applies ``RULES`` until
none applies. What a library does well (identity and dead-node elimination, common subexpressions, shape inference) is
left to onnx-ir's passes. Invariant: for every input the cleaned graph gives the same output up to float rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

Rule = Callable[[ir.Node], bool]

UNARY = {"Relu", "Tanh", "Sigmoid", "Elu", "Selu", "LeakyRelu", "Softplus", "Softsign", "Erf", "Exp", "Neg", "Abs"}
UNARY |= {"HardSigmoid", "HardSwish", "Sqrt", "Reciprocal", "Identity", "Cast", "Clip", "Gelu", "Mish", "Celu"}
UNARY |= {"Log", "Not", "Sign", "ThresholdedRelu", "Shrink"}
BINARY = {"Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Pow", "And", "Or"}
BINARY |= {"Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal"}
ELEMENTWISE = UNARY | BINARY | {"Where"}


def clean_up(model: ir.Model) -> None:
    """Simplify the graph in place."""
    passes.LiftConstantsToInitializersPass(lift_all_constants=True)(model)
    _tidy(model)
    while _apply_rules(model.graph):
        _tidy(model)
    passes.RemoveUnusedOpsetsPass()(model)
    for value in [value for node in model.graph for value in node.outputs if value not in model.graph.outputs]:
        value.shape = None  # tf2onnx' own, before rewrites
    passes.ShapeInferencePass()(model)


def _apply_rules(graph: ir.Graph) -> bool:
    applied = False
    for rule in RULES:
        for node in list(graph):
            applied |= node.graph is not None and rule(node)
    return applied


def _tidy(model: ir.Model) -> None:
    passes.IdentityEliminationPass()(model)
    passes.DeduplicateInitializersPass()(model)  # first: expressions of equal constants are common ones
    passes.CommonSubexpressionEliminationPass()(model)
    passes.RemoveUnusedNodesPass()(model)
    passes.TopologicalSortPass()(model)
    passes.ShapeInferencePass()(model)  # a rule that needs to know a shape refuses what has none, as new values


def constant(value: ir.Value | None) -> np.ndarray[Any, Any] | None:
    """The value of an initializer, or None for anything that depends on the input."""
    if value is None or value.const_value is None or value.producer() is not None:
        return None
    return value.const_value.numpy()


def permutation(node: ir.Node) -> list[int]:
    """The ``perm`` of a Transpose."""
    return list(node.attributes["perm"].as_ints())


def _insert_after(node: ir.Node, new: Sequence[ir.Node]) -> None:
    assert node.graph is not None
    node.graph.insert_after(node, new)


def _replace(old: ir.Value, new: ir.Value) -> None:
    """Let every reader of ``old``, the graph's outputs included, read ``new``."""
    new.shape, new.type = new.shape or old.shape, new.type or old.type
    if old.is_graph_output():
        new.name, old.name = old.name, None
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def _initializer(graph: ir.Graph, array: np.ndarray[Any, Any], base: str) -> ir.Value:
    name = base
    while name in graph.initializers:
        name += "'"
    value = ir.val(name, const_value=ir.tensor(array, name=name))
    graph.register_initializer(value)
    return value


def _only_reader(value: ir.Value | None) -> bool:
    return value is not None and len(list(value.uses())) == 1 and not value.is_graph_output()


def _producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node that makes the value, if it is of this type and nothing else reads the value."""
    producer = value.producer() if value is not None else None
    return producer if producer is not None and producer.op_type == op_type and _only_reader(value) else None


def _cancel(node: ir.Node, source: ir.Value | None) -> bool:
    """Let the readers of the node read ``source``; not where the graph's output would become its input."""
    if source is None or (node.outputs[0].is_graph_output() and source.is_graph_input()):
        return False
    _replace(node.outputs[0], source)
    return True


def merge_transposes(node: ir.Node) -> bool:
    """Transpose(Transpose(x)) is one Transpose, or x itself."""
    before = node.inputs[0].producer() if node.op_type == "Transpose" and node.inputs[0] is not None else None
    if before is None or before.op_type != "Transpose":
        return False
    inner, outer = permutation(before), permutation(node)
    perm = [inner[axis] for axis in outer]
    if perm == sorted(perm):
        return _cancel(node, before.inputs[0])
    merged = ir.node("Transpose", [before.inputs[0]], attributes={"perm": perm})
    _insert_after(node, [merged])
    _replace(node.outputs[0], merged.outputs[0])
    return True


def cancel_squeezes(node: ir.Node) -> bool:
    """Squeeze and Unsqueeze of the same axes, in either order, cancel."""
    opposite = {"Squeeze": "Unsqueeze", "Unsqueeze": "Squeeze"}.get(node.op_type)
    before = node.inputs[0].producer() if opposite and node.inputs[0] is not None else None
    if before is None or before.op_type != opposite or len(node.inputs) < 2 or len(before.inputs) < 2:
        return False
    axes, axes_before = constant(node.inputs[1]), constant(before.inputs[1])
    if axes is None or axes_before is None or sorted(axes.tolist()) != sorted(axes_before.tolist()):
        return False
    return _cancel(node, before.inputs[0])


def merge_reshapes(node: ir.Node) -> bool:
    """Reshape(Reshape(x)) is one Reshape, where its zeros, "as in the input", mean the same of x."""
    before = node.inputs[0].producer() if node.op_type == "Reshape" and node.inputs[0] is not None else None
    if before is None or before.op_type != "Reshape" or "allowzero" in {**node.attributes, **before.attributes}:
        return False
    shape, shape_before = constant(node.inputs[1]), constant(before.inputs[1])
    if shape is None:
        return False
    kept = [axis for axis, size in enumerate(shape) if size == 0]
    if kept and (shape_before is None or any(shape_before[axis] != 0 for axis in kept)):
        return False
    merged = ir.node("Reshape", [before.inputs[0], node.inputs[1]], name=node.name)
    _insert_after(node, [merged])
    _replace(node.outputs[0], merged.outputs[0])
    return True


def cancel_reversals(node: ir.Node) -> bool:
    """Reversing the same axes twice is nothing."""
    axes = _reversed_axes(node)
    before = node.inputs[0].producer() if axes and node.inputs[0] is not None else None
    if before is None or _reversed_axes(before) != axes:
        return False
    return _cancel(node, before.inputs[0])


def _reversed_axes(node: ir.Node) -> list[int]:
    """The axes that a Slice reverses, all of each; none if it does anything else."""
    if node.op_type != "Slice" or len(node.inputs) != 5:
        return []
    values = [constant(v) for v in node.inputs[1:]]
    if any(v is None for v in values):
        return []
    starts, ends, axes, steps = (v.tolist() for v in values if v is not None)
    whole = all(start == -1 for start in starts) and all(step == -1 for step in steps)
    return sorted(axes) if whole and all(end <= -np.iinfo(np.int32).max for end in ends) else []


def sink_transpose(node: ir.Node) -> bool:
    """f(Transpose(x), Transpose(y), constant) is Transpose(f(x, y, constant')) for elementwise f."""
    if node.op_type not in ELEMENTWISE or node.graph is None:
        return False
    moving = [v.producer() for v in node.inputs if v is not None and constant(v) is None]
    perms = {tuple(permutation(p)) if p is not None and p.op_type == "Transpose" else None for p in moving}
    if len(perms) != 1 or None in perms:
        return False
    perm = list(perms.pop() or ())
    inputs: list[ir.Value | None] = []
    for value in node.inputs:
        fixed = constant(value)
        if value is None or (fixed is not None and fixed.ndim == 0):
            inputs.append(value)
        elif fixed is None:
            producer = value.producer()
            assert producer is not None
            inputs.append(producer.inputs[0])
        elif fixed.ndim > len(perm):
            return False
        else:
            aligned = fixed.reshape((1,) * (len(perm) - fixed.ndim) + fixed.shape).transpose(np.argsort(perm))
            inputs.append(_initializer(node.graph, aligned, f"{value.name}_t"))
    moved = ir.node(node.op_type, inputs, attributes=dict(node.attributes), name=node.name)
    back = ir.node("Transpose", [moved.outputs[0]], attributes={"perm": perm})
    moved.outputs[0].type = node.outputs[0].type
    _insert_after(node, [moved, back])
    _replace(node.outputs[0], back.outputs[0])
    return True


def drop_needless_relu(node: ir.Node) -> bool:
    """Relu(x) is x where x cannot be negative."""
    source = node.inputs[0] if node.op_type == "Relu" else None
    if source is None or node.outputs[0].is_graph_output() or not _never_negative(source):
        return False
    _replace(node.outputs[0], source)
    return True


def _never_negative(value: ir.Value) -> bool:
    producer = value.producer()
    if producer is None:
        return False
    if producer.op_type in {"Relu", "Sigmoid", "Softmax", "Abs", "Exp"}:
        return True
    if producer.op_type in {"Add", "Sum", "Mul", "Max", "Transpose"}:
        return all(v is not None and _never_negative(v) for v in producer.inputs)
    return False


def merge_sums(node: ir.Node) -> bool:
    """A chain of two-input Adds is one Sum."""
    if node.op_type not in ("Add", "Sum") or node.outputs[0].dtype is not ir.DataType.FLOAT:  # Sum takes no integers
        return False
    terms: list[ir.Value | None] = []
    for value in node.inputs:
        before = value.producer() if value is not None and constant(value) is None else None
        chained = before is not None and before.op_type in ("Add", "Sum") and _none_constant([*before.inputs, value])
        terms += before.inputs if before is not None and chained and len(list(value.uses())) == 1 else [value]  # type: ignore[union-attr]
    if len(terms) == len(node.inputs) or not _none_constant(terms):
        return False
    merged = ir.node("Sum", terms, name=node.name)
    _insert_after(node, [merged])
    _replace(node.outputs[0], merged.outputs[0])
    return True


def _none_constant(values: Sequence[ir.Value | None]) -> bool:
    # A constant, a bias, is left to the node that adds it.
    return all(v is not None and constant(v) is None for v in values)


def fold_into_conv(node: ir.Node) -> bool:
    """Conv followed by Mul or Add with one number per channel is a Conv with other weights."""
    if node.op_type not in ("Mul", "Add") or node.graph is None:
        return False
    for value, other in _either_way(node):
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
                _initializer(node.graph, new_weight.astype(weight.dtype), f"{conv.inputs[1].name}_f"),  # type: ignore[union-attr]
                _initializer(node.graph, new_bias.astype(weight.dtype), f"{conv.outputs[0].name}_bias"),
            ],
            attributes=dict(conv.attributes),
            name=conv.name,
        )
        _insert_after(node, [folded])
        _replace(node.outputs[0], folded.outputs[0])
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
    turn = _producer(node.inputs[0], "Transpose") if node.op_type == "Conv" else None
    if turn is not None and permutation(turn) != [0, 2, 1]:
        return False
    scale = _producer(turn.inputs[0] if turn is not None else node.inputs[0], "Mul")
    groups = node.attributes["group"].as_int() if "group" in node.attributes else 1
    channels = weight.shape[0] if node.op_type == "MatMul" else weight.shape[1] * groups
    axis = 1 if node.op_type == "Conv" and turn is None else -1  # where the channels stand before the Transpose
    for source, other in _either_way(scale):
        factor = _per_channel(constant(other), channels, axis, source)
        if factor is None:
            continue
        if node.op_type == "Conv":  # (outputs, inputs of a group, taps)
            factor = np.repeat(factor.reshape(groups, -1), weight.shape[0] // groups, axis=0)
        scaled = _initializer(node.graph, (weight * factor[..., None]).astype(weight.dtype), f"{node.name}_weight")
        new = [] if turn is None else [ir.node("Transpose", [source], attributes={"perm": [0, 2, 1]})]
        inputs = [new[0].outputs[0] if new else source, scaled, *node.inputs[2:]]
        _put_instead(node, [*new, ir.node(node.op_type, inputs, attributes=dict(node.attributes), name=node.name)])
        return True
    return False


def _either_way(node: ir.Node | None) -> list[tuple[ir.Value | None, ir.Value | None]]:
    """The two inputs of a commutative node, in both orders."""
    return [] if node is None else [(node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])]


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


def _put_instead(node: ir.Node, new: Sequence[ir.Node]) -> None:
    for each in new:
        each.outputs[0].type = node.outputs[0].type
    _insert_after(node, new)
    _replace(node.outputs[0], new[-1].outputs[0])


def fold_into_matmul(node: ir.Node) -> bool:
    """MatMul, or MatMul and Add, followed by Mul with one number per column is a MatMul with other weights."""
    if node.op_type != "Mul" or node.graph is None:
        return False
    for value, other in _either_way(node):
        add = _producer(value, "Add")
        product = _producer(value if add is None else add.inputs[0], "MatMul")
        weight = constant(product.inputs[1]) if product is not None else None
        shift = constant(add.inputs[1]) if add is not None else None
        factor = constant(other)
        if product is None or weight is None or weight.ndim != 2 or (add is not None and shift is None):
            continue
        # Constants of more axes might give the result more axes, too.
        if factor is None or factor.ndim > 1 or (shift is not None and shift.ndim > 1):
            continue
        scaled = _initializer(node.graph, (weight * factor).astype(weight.dtype), f"{node.name}_weight")
        new = [ir.node("MatMul", [product.inputs[0], scaled], name=product.name)]
        if shift is not None:
            moved = _initializer(node.graph, (shift * factor).astype(weight.dtype), f"{node.name}_bias")
            new.append(ir.node("Add", [new[0].outputs[0], moved], name=node.name))
        _put_instead(node, new)
        return True
    return False


def merge_shifts(node: ir.Node) -> bool:
    """x plus a constant plus a constant is x plus one constant."""
    if node.op_type != "Add" or node.graph is None:
        return False
    for value, other in _either_way(node):
        for source, first in _either_way(_producer(value, "Add")):
            number, further = constant(first), constant(other)
            if number is None or further is None:
                continue
            total = _initializer(node.graph, number + further, f"{node.name}_sum")
            _put_instead(node, [ir.node("Add", [source, total], name=node.name)])
            return True
    return False


def fold_pad(node: ir.Node) -> bool:
    """Conv of an input padded with zeros along its last axis is a Conv with larger pads."""
    if node.op_type != "Conv" or node.graph is None or "auto_pad" in node.attributes:
        return False
    turn = _producer(node.inputs[0], "Transpose")
    pad = _producer(turn.inputs[0] if turn is not None else node.inputs[0], "Pad")
    if pad is None or (turn is not None and permutation(turn) != [0, 2, 1]):
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
    _insert_after(node, new)
    _replace(node.outputs[0], new[-1].outputs[0])
    return True


RULES: tuple[Rule, ...] = (
    merge_transposes,
    cancel_squeezes,
    merge_reshapes,
    cancel_reversals,
    sink_transpose,
    drop_needless_relu,
    fold_pad,
    fold_into_conv,
    fold_scale_before,
    fold_into_matmul,
    merge_shifts,
    merge_sums,
)
