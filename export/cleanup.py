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
BINARY = {"Add", "Sub", "Mul", "Div", "Max", "Min", "Sum"}
ELEMENTWISE = UNARY | BINARY


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
    passes.CommonSubexpressionEliminationPass()(model)
    passes.DeduplicateInitializersPass()(model)
    passes.RemoveUnusedNodesPass()(model)
    passes.TopologicalSortPass()(model)


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


def merge_transposes(node: ir.Node) -> bool:
    """Transpose(Transpose(x)) is one Transpose, or x itself."""
    before = node.inputs[0].producer() if node.op_type == "Transpose" and node.inputs[0] is not None else None
    if before is None or before.op_type != "Transpose":
        return False
    inner, outer = permutation(before), permutation(node)
    perm = [inner[axis] for axis in outer]
    source = before.inputs[0]
    assert source is not None
    if perm == sorted(perm):
        if node.outputs[0].is_graph_output() and source.is_graph_input():
            return False
        _replace(node.outputs[0], source)
    else:
        merged = ir.node("Transpose", [source], attributes={"perm": perm})
        _insert_after(node, [merged])
        _replace(node.outputs[0], merged.outputs[0])
    return True


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
    for value, other in (tuple(node.inputs), tuple(reversed(node.inputs))):
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


RULES: tuple[Rule, ...] = (merge_transposes, sink_transpose, drop_needless_relu, fold_into_conv, merge_sums)
