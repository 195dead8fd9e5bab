"""Small edits of an onnx-ir graph, which the clean-up's rules share: look at a neighbour, put a node instead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir


def constant(value: ir.Value | None) -> np.ndarray[Any, Any] | None:
    """The value of an initializer, or None for anything that depends on the input."""
    if value is None or value.const_value is None or value.producer() is not None:
        return None
    return value.const_value.numpy()


def permutation(node: ir.Node) -> list[int]:
    """The ``perm`` of a Transpose."""
    return list(node.attributes["perm"].as_ints())


def insert_after(node: ir.Node, new: Sequence[ir.Node]) -> None:
    """Put new nodes into the graph, behind this one."""
    assert node.graph is not None
    node.graph.insert_after(node, new)


def replace(old: ir.Value, new: ir.Value) -> None:
    """Let every reader of ``old``, the graph's outputs included, read ``new``."""
    new.shape, new.type = new.shape or old.shape, new.type or old.type
    if old.is_graph_output():
        new.name, old.name = old.name, None
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def initializer(graph: ir.Graph, array: np.ndarray[Any, Any], base: str) -> ir.Value:
    """A new initializer of the graph, of this name or one like it."""
    name = base
    while name in graph.initializers:
        name += "'"
    value = ir.val(name, const_value=ir.tensor(array, name=name))
    graph.register_initializer(value)
    return value


def has_one_reader(value: ir.Value | None) -> bool:
    """Whether one node alone reads the value, and the graph does not give it."""
    return value is not None and len(list(value.uses())) == 1 and not value.is_graph_output()


def producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node that makes the value, if it is of this type and nothing else reads the value."""
    producer = value.producer() if value is not None else None
    return producer if producer is not None and producer.op_type == op_type and has_one_reader(value) else None


def cancel(node: ir.Node, source: ir.Value | None) -> bool:
    """Let the readers of the node read ``source``; not where the graph's output would become its input."""
    if source is None or (node.outputs[0].is_graph_output() and source.is_graph_input()):
        return False
    replace(node.outputs[0], source)
    return True


def either_way(node: ir.Node | None) -> list[tuple[ir.Value | None, ir.Value | None]]:
    """The two inputs of a commutative node, in both orders."""
    return [] if node is None else [(node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])]


def put_instead(node: ir.Node, new: Sequence[ir.Node]) -> None:
    """Put a chain of nodes in the place of this one."""
    for each in new:
        each.outputs[0].type = node.outputs[0].type
    insert_after(node, new)
    replace(node.outputs[0], new[-1].outputs[0])
