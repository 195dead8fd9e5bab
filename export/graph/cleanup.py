"""Graph clean-up after tf2onnx: fewer nodes, the same numbers.

Each rule looks at one node and either rewrites its neighbourhood or leaves it; ``clean_up`` applies ``RULES`` until
none applies. What a library does well (identity and dead-node elimination, common subexpressions, shape inference) is
left to onnx-ir's passes. Invariant: for every input the cleaned graph gives the same output up to float rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from edgeseq.export.graph.edit import cancel, constant, initializer, insert_after, permutation, replace
from edgeseq.export.graph.elementwise import ELEMENTWISE
from edgeseq.export.graph.folding import (
    fold_crop,
    fold_into_conv,
    fold_into_matmul,
    fold_pad,
    fold_scale_before,
    merge_shifts,
)

Rule = Callable[[ir.Node], bool]


def clean_up(model: ir.Model) -> None:
    """Simplify the graph in place."""
    names = [value.name for value in model.graph.outputs]
    ports = list(range(len(names)))
    passes.LiftConstantsToInitializersPass(lift_all_constants=True)(model)
    _tidy(model, ports)
    while _apply_rules(model.graph):
        _tidy(model, ports)
    _give_each_port_its_value(model.graph, names, ports)
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


def _tidy(model: ir.Model, ports: list[int]) -> None:
    passes.IdentityEliminationPass()(model)
    passes.DeduplicateInitializersPass()(model)  # first: expressions of equal constants are common ones
    _merge_equal_outputs(model.graph, ports)
    passes.CommonSubexpressionEliminationPass()(model)
    _merge_equal_outputs(model.graph, ports)
    passes.RemoveUnusedNodesPass()(model)
    passes.TopologicalSortPass()(model)
    passes.ShapeInferencePass()(model)  # a rule that needs to know a shape refuses what has none, as new values


def _merge_equal_outputs(graph: ir.Graph, ports: list[int]) -> None:
    """Let the graph give each value once, and ``ports`` say which of its outputs each port is.

    A value that is two outputs has one name for both, and onnx-ir's passes lose one of them, or put an Identity between
    the two, which the rules would work on for ever.
    """
    given = [_repeated_output(value) or value for value in graph.outputs]
    once = list(dict.fromkeys(given))
    ports[:] = [once.index(given[i]) for i in ports]
    graph.outputs.clear()
    graph.outputs.extend(once)


def _repeated_output(value: ir.Value) -> ir.Value | None:
    """The graph's output that this output is an Identity of, if it is."""
    producer = value.producer()
    source = producer.inputs[0] if producer is not None and producer.op_type == "Identity" else None
    return source if source is not None and source.is_graph_output() else None


def _give_each_port_its_value(graph: ir.Graph, names: Sequence[str | None], ports: Sequence[int]) -> None:
    given = list(graph.outputs)
    graph.outputs.clear()
    for name, i in zip(names, ports, strict=True):
        value = given[i]
        if value in graph.outputs:
            again = ir.node("Identity", [value])
            graph.append(again)
            again.outputs[0].type, again.outputs[0].shape, value = value.type, value.shape, again.outputs[0]
        value.name = name
        graph.outputs.append(value)


def merge_transposes(node: ir.Node) -> bool:
    """Transpose(Transpose(x)) is one Transpose, or x itself."""
    before = node.inputs[0].producer() if node.op_type == "Transpose" and node.inputs[0] is not None else None
    if before is None or before.op_type != "Transpose":
        return False
    inner, outer = permutation(before), permutation(node)
    perm = [inner[axis] for axis in outer]
    if perm == sorted(perm):
        return cancel(node, before.inputs[0])
    merged = ir.node("Transpose", [before.inputs[0]], attributes={"perm": perm})
    insert_after(node, [merged])
    replace(node.outputs[0], merged.outputs[0])
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
    return cancel(node, before.inputs[0])


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
    insert_after(node, [merged])
    replace(node.outputs[0], merged.outputs[0])
    return True


def cancel_reversals(node: ir.Node) -> bool:
    """Reversing the same axes twice is nothing."""
    axes = _reversed_axes(node)
    before = node.inputs[0].producer() if axes and node.inputs[0] is not None else None
    if before is None or _reversed_axes(before) != axes:
        return False
    return cancel(node, before.inputs[0])


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
            inputs.append(initializer(node.graph, aligned, f"{value.name}_t"))
    moved = ir.node(node.op_type, inputs, attributes=dict(node.attributes), name=node.name)
    back = ir.node("Transpose", [moved.outputs[0]], attributes={"perm": perm})
    moved.outputs[0].type = node.outputs[0].type
    insert_after(node, [moved, back])
    replace(node.outputs[0], back.outputs[0])
    return True


def drop_needless_relu(node: ir.Node) -> bool:
    """Relu(x) is x where x cannot be negative."""
    source = node.inputs[0] if node.op_type == "Relu" else None
    if source is None or node.outputs[0].is_graph_output() or not _never_negative(source):
        return False
    replace(node.outputs[0], source)
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
    insert_after(node, [merged])
    replace(node.outputs[0], merged.outputs[0])
    return True


def _none_constant(values: Sequence[ir.Value | None]) -> bool:
    # A constant, a bias, is left to the node that adds it.
    return all(v is not None and constant(v) is None for v in values)


RULES: tuple[Rule, ...] = (
    merge_transposes,
    cancel_squeezes,
    merge_reshapes,
    cancel_reversals,
    sink_transpose,
    drop_needless_relu,
    fold_pad,
    fold_crop,
    fold_into_conv,
    fold_scale_before,
    fold_into_matmul,
    merge_shifts,
    merge_sums,
)
