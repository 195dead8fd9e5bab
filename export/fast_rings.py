"""The rows that a fast step reads from its rings, and the products of all of them with their weights at once.

Every convolution asks for the part of its result that past rows give. Those parts do not depend on the newest sample,
so all convolutions of one shape become one Gather, one batched MatMul and one Split, in front of everything else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeseq.fast_form import Ring, RingBuffer


@dataclass
class FunctionGraph:
    """Nodes of the function; what is constant and small stands in it, weights are its inputs."""

    nodes: list[ir.Node] = field(default_factory=list)
    _constants: dict[Any, ir.Value] = field(default_factory=dict)

    def op(self, op_type: str, *inputs: ir.Value | None, into: ir.Value | None = None, **attributes: Any) -> ir.Value:
        """Add a node with one output: a new value, or ``into``."""
        return self.ops(op_type, [ir.Value() if into is None else into], *inputs, **attributes)[0]

    def ops(self, op_type: str, results: list[ir.Value], *inputs: ir.Value | None, **attributes: Any) -> list[ir.Value]:
        """Add a node with several outputs."""
        self.nodes.append(ir.node(op_type, list(inputs), attributes=attributes, outputs=results))
        return results

    def constant(self, *numbers: int) -> ir.Value:
        """A list of whole numbers, as ONNX wants for axes and shapes."""
        if numbers not in self._constants:
            self._constants[numbers] = self.op("Constant", value_ints=list(numbers))
        return self._constants[numbers]

    def array(self, array: np.ndarray[Any, Any]) -> ir.Value:
        """A small array."""
        return self.op("Constant", value=ir.tensor(array))


@dataclass(frozen=True)
class _Past:
    """A wish: rows of one ring; or what they are, times the first taps of a weight (outputs, inputs, taps)."""

    ring: int
    rows: tuple[int, ...]
    result: ir.Value
    weight: ir.Value | None = None
    bias: ir.Value | None = None

    @property
    def n_outputs(self) -> int:
        assert self.weight is not None
        assert self.weight.shape is not None
        return int(self.weight.shape.numpy()[0])

    def first_taps(self, function: FunctionGraph) -> ir.Value:
        """(taps, inputs, outputs)"""
        assert self.weight is not None
        bounds = (function.constant(n) for n in (0, len(self.rows), 2))
        return function.op("Transpose", function.op("Slice", self.weight, *bounds), perm=[2, 1, 0])


class Buffer:
    """The rings of one width, while the function is being made."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.array = ir.val(f"ring_{width}", dtype=ir.DataType.FLOAT)
        self.slots = ir.val(f"slots_{width}", dtype=ir.DataType.INT64)
        self.rings: list[Ring] = []
        self._new: list[ir.Value] = []
        self._wishes: list[_Past] = []

    def add(self, state: str, axis: int, size: int, newest: ir.Value) -> int:
        """Add a ring of which every step makes the row ``newest``, (1, width); returns its number."""
        self.rings.append(Ring(state, axis, sum(ring.size for ring in self.rings), size))
        self._new.append(newest)
        return len(self.rings) - 1

    def rows_of(self, ring: int, rows: list[int]) -> ir.Value:
        """Some rows of a ring, from its oldest: (n, width)."""
        self._wishes.append(_Past(ring, tuple(rows), ir.Value()))
        return self._wishes[-1].result

    def product(self, ring: int, rows: list[int], weight: ir.Value, bias: ir.Value | None) -> ir.Value:
        """What these rows, the first that the window sees, add to a convolution, with its bias: (1, outputs).

        ``weight`` is the convolution's, (outputs, width, taps).
        """
        self._wishes.append(_Past(ring, tuple(rows), ir.Value(), weight, bias))
        return self._wishes[-1].result

    def grant(self, function: FunctionGraph) -> RingBuffer:
        """Write what gives all wishes, before any other node; returns what the file says of this buffer."""
        groups: dict[Any, list[_Past]] = {}
        for i, wish in enumerate(self._wishes):
            key = i if wish.weight is None else (len(wish.rows), wish.n_outputs)  # products of one shape are one
            groups.setdefault(key, []).append(wish)
        ordered = list(groups.values())
        sizes = [sum(len(wish.rows) for wish in group) for group in ordered]
        parts = [group[0].result if group[0].weight is None else ir.Value() for group in ordered]
        if len(parts) == 1:
            function.op("Gather", self.array, self.slots, into=parts[0], axis=0)
        elif parts:
            gathered = function.op("Gather", self.array, self.slots, axis=0)
            function.ops("Split", parts, gathered, function.constant(*sizes), axis=0)
        for group, part in zip(ordered, parts, strict=True):
            if group[0].weight is not None:
                self._multiply(function, group, part)
        taps = tuple((wish.ring, row) for group in ordered for wish in group for row in wish.rows)
        names = (str(self.array.name), str(self.slots.name), f"rows_{self.width}")
        return RingBuffer(*names, self.width, tuple(self.rings), taps)

    def added(self, function: FunctionGraph) -> ir.Value:
        """What the step adds to the rings, (n, width)."""
        rows = ir.val(f"rows_{self.width}", dtype=ir.DataType.FLOAT)
        # Of one row, too: ONNX Runtime 1.31 loses an inner value that an Identity gives as an output.
        return function.op("Concat", *self._new, into=rows, axis=0)

    def _multiply(self, function: FunctionGraph, group: list[_Past], rows: ir.Value) -> None:
        n, wide = len(group), len(group[0].rows) * self.width
        turned = [wish.first_taps(function) for wish in group]
        if n == 1:
            (wish,) = group
            row = function.op("Reshape", rows, function.constant(1, wide))
            matrix = function.op("Reshape", turned[0], function.constant(wide, -1))
            bias = [] if wish.bias is None else [wish.bias]
            function.op("Gemm" if bias else "MatMul", row, matrix, *bias, into=wish.result)
            return
        stacked = function.op(
            "Concat", *(function.op("Reshape", w, function.constant(1, wide, -1)) for w in turned), axis=0
        )
        product = function.op("MatMul", function.op("Reshape", rows, function.constant(n, 1, wide)), stacked)
        product = function.op("Squeeze", product, function.constant(1))
        if any(wish.bias is not None for wish in group):
            none = function.array(np.zeros(group[0].n_outputs, np.float32))
            biases = [function.op("Unsqueeze", wish.bias or none, function.constant(0)) for wish in group]
            product = function.op("Add", product, function.op("Concat", *biases, axis=0))
        function.ops("Split", [wish.result for wish in group], product, function.constant(*[1] * n), axis=0)
