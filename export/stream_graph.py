"""The step graph while it is being built, and what is known about each of its tensors.

``Timed`` says what one tensor of the offline graph is to time; ``StepGraph`` is the graph that a rule writes into:
operators, constants, and states. Invariant: a state is declared once, its successor is set once, and both have a
leading batch axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeseq.errors import NotStreamableError
from edgeseq.model_file import DTypeName, StateSpec

DTYPES: dict[DTypeName, ir.DataType] = {
    "float32": ir.DataType.FLOAT,
    "float64": ir.DataType.DOUBLE,
    "int32": ir.DataType.INT32,
    "int64": ir.DataType.INT64,
}


class TimeAxis(Enum):
    """What the offline tensor has where the step tensor has its time axis."""

    FULL = "every step"
    LAST = "one step: the last one, or a pool over all"
    GONE = "no time axis any more"


@dataclass(frozen=True)
class Timed:
    """One tensor that depends on the input.

    ``value`` is the step graph's tensor and ``axis`` its time axis. ``past`` counts the steps before the current one
    that influence it (None: all). ``offline`` says what became of the time axis in the offline graph: after a pool or
    a last-step selection the step graph goes on giving one value per step, the one of the prefix that ends there.
    ``rank`` is the offline tensor's; who builds a ``Timed`` in a rule leaves it, ``streamify`` sets it.
    """

    value: ir.Value
    axis: int
    past: int | None = 0
    offline: TimeAxis = TimeAxis.FULL
    rank: int = 0

    @property
    def gone(self) -> bool:
        """Whether the offline tensor has no time axis, so that the step tensor has one axis more."""
        return self.offline is TimeAxis.GONE

    def lift(self, axis: int) -> int:
        """The step tensor's axis for an axis (negative allowed) of the offline tensor."""
        axis %= self.rank
        return axis + 1 if self.gone and axis >= self.axis else axis


@dataclass
class StepGraph:
    """Nodes, constants and states of the step graph under construction."""

    nodes: list[ir.Node] = field(default_factory=list)
    initializers: dict[str, ir.Value] = field(default_factory=dict)
    states: dict[ir.Value, StateSpec] = field(default_factory=dict)
    successors: dict[ir.Value, ir.Value] = field(default_factory=dict)

    def op(self, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Add a node with one output."""
        return self.ops(op_type, 1, *inputs, **attributes)[0]

    def ops(self, op_type: str, n_outputs: int, *inputs: ir.Value | None, **attributes: Any) -> Sequence[ir.Value]:
        """Add a node with several outputs; an input None is an optional one left out."""
        given = {name: value for name, value in attributes.items() if value is not None}
        node = ir.node(op_type, list(inputs), attributes=given, num_outputs=n_outputs)
        self.nodes.append(node)
        return node.outputs

    def copy(self, node: ir.Node, inputs: Sequence[ir.Value | None], **changed: Any) -> Sequence[ir.Value]:
        """Add a node like one of the offline graph, on other inputs and with some attributes changed."""
        attributes: dict[str, Any] = {**node.attributes, **changed}
        new = ir.node(node.op_type, list(inputs), attributes=attributes, num_outputs=len(node.outputs), name=node.name)
        self.nodes.append(new)
        return new.outputs

    def constant(self, value: np.ndarray[Any, Any] | Sequence[int], name: str | None = None) -> ir.Value:
        """An initializer, shared by name; integer sequences become int64, as ONNX wants for axes and shapes."""
        array = value if isinstance(value, np.ndarray) else np.array(value, np.int64)
        key = name or "_".join(["constant", *map(str, array.ravel())])
        if key not in self.initializers:
            self.initializers[key] = ir.val(key, const_value=ir.tensor(array, name=key))
        return self.initializers[key]

    def state(self, kind: str, shape: Sequence[int], *, dtype: DTypeName = "float32", initial: float = 0.0) -> ir.Value:
        """Declare an array that is carried between calls, and read it; ``shape`` is without the batch axis."""
        name = f"{len(self.states)}_{kind}"
        value = ir.val(f"state_{name}", dtype=DTYPES[dtype], shape=["batch", *shape])
        self.states[value] = StateSpec(f"state_{name}", f"next_{name}", dtype, tuple(shape), initial)
        return value

    def carry(self, state: ir.Value, successor: ir.Value) -> None:
        """Set what the next call reads as ``state``."""
        self.successors[state] = successor


def refuse(node: ir.Node, reason: str, fix: str) -> NotStreamableError:
    """The error for a node that has no exact step form."""
    name = node.name or node.outputs[0].name
    return NotStreamableError(f"node {name!r} ({node.op_type}): {reason}; {fix}")
