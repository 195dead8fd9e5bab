"""The rows that a fast step reads from its rings, and the products of all of them with their weights at once.

Every convolution asks for the part of its result that past rows give. Those parts do not depend on the newest sample,
so all convolutions of one shape become one Gather, one batched MatMul and one Split, in front of everything else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeseq.fast_form import Read, Ring, RingBuffer


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
class _Wish:
    """Rows of one ring, times the first taps of a weight (outputs, inputs, taps); or, without one, a single row."""

    ring: int
    rows: tuple[int, ...]
    result: ir.Value
    weight: ir.Value | None = None
    bias: ir.Value | None = None

    @property
    def kind(self) -> tuple[int, int]:
        """Wishes of one kind are granted together: how many rows, and how many outputs, 0 for none."""
        if self.weight is None:
            return 1, 0
        assert self.weight.shape is not None
        return len(self.rows), int(self.weight.shape.numpy()[0])


class Buffer:
    """The rings of one width, while the function is being made."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.array = ir.val(f"ring_{width}", dtype=ir.DataType.FLOAT)
        self.slots: list[ir.Value] = []
        self.rings: list[Ring] = []
        self._new: list[ir.Value] = []
        self._wishes: list[_Wish] = []

    def add(self, state: str, axis: int, size: int, newest: ir.Value) -> int:
        """Add a ring of which every step makes the row ``newest``, (B, width); returns its number."""
        self.rings.append(Ring(state, axis, sum(ring.size for ring in self.rings), size))
        self._new.append(newest)
        return len(self.rings) - 1

    def row(self, ring: int, row: int) -> ir.Value:
        """A row of a ring, counted from its oldest: (B, width)."""
        self._wishes.append(_Wish(ring, (row,), ir.Value()))
        return self._wishes[-1].result

    def product(self, ring: int, rows: list[int], weight: ir.Value, bias: ir.Value | None) -> ir.Value:
        """What these rows, the first that the window sees, add to a convolution, with its bias: (B, outputs).

        ``weight`` is the convolution's, (outputs, width, taps).
        """
        self._wishes.append(_Wish(ring, tuple(rows), ir.Value(), weight, bias))
        return self._wishes[-1].result

    def grant(self, function: FunctionGraph) -> RingBuffer:
        """Write what gives all wishes, before any node that reads them; returns what the file says of this buffer."""
        kinds: dict[tuple[int, int], list[_Wish]] = {}
        for wish in self._wishes:
            kinds.setdefault(wish.kind, []).append(wish)
        reads = []
        for i, ((together, n_outputs), wishes) in enumerate(kinds.items()):
            slots = ir.val(f"slots_{self.width}_{i}", dtype=ir.DataType.INT64)
            self.slots.append(slots)
            taps = tuple((wish.ring, row) for wish in wishes for row in wish.rows)
            reads.append(Read(str(slots.name), together, taps))
            results = [wish.result for wish in wishes]
            if n_outputs == 0:
                _part(function, results, "Gather", self.array, slots, axis=0)
            else:
                self._multiply(function, wishes, function.op("Gather", self.array, slots, axis=0), results)
        return RingBuffer(str(self.array.name), f"rows_{self.width}", self.width, tuple(self.rings), tuple(reads))

    def added(self, function: FunctionGraph) -> ir.Value:
        """What the step adds to the rings, (n · B, width)."""
        rows = ir.val(f"rows_{self.width}", dtype=ir.DataType.FLOAT)
        # Of one row, too: ONNX Runtime 1.31 loses an inner value that an Identity gives as an output.
        return function.op("Concat", *self._new, into=rows, axis=0)

    def _multiply(self, function: FunctionGraph, wishes: list[_Wish], rows: ir.Value, results: list[ir.Value]) -> None:
        (n_rows, n_outputs), n = wishes[0].kind, len(wishes)
        wide = n_rows * self.width
        bounds = [function.constant(number) for number in (0, n_rows, 2)]
        first = [function.op("Slice", wish.weight, *bounds) for wish in wishes]
        turned = [function.op("Transpose", taps, perm=[2, 1, 0]) for taps in first]  # (taps, inputs, outputs)
        if n == 1:
            matrix = function.op("Reshape", turned[0], function.constant(wide, -1))
            row = function.op("Reshape", rows, function.constant(-1, wide))
            bias = [] if wishes[0].bias is None else [wishes[0].bias]
            function.op("Gemm" if bias else "MatMul", row, matrix, *bias, into=results[0])
            return
        layers = [function.op("Reshape", taps, function.constant(1, wide, -1)) for taps in turned]
        stacked = function.op("Concat", *layers, axis=0)
        product = function.op("MatMul", function.op("Reshape", rows, function.constant(n, -1, wide)), stacked)
        if any(wish.bias is not None for wish in wishes):
            none = function.array(np.zeros(n_outputs, np.float32))
            biases = [function.op("Reshape", wish.bias or none, function.constant(1, 1, -1)) for wish in wishes]
            product = function.op("Add", product, function.op("Concat", *biases, axis=0))
        _part(function, results, "Reshape", product, function.constant(-1, n_outputs))


def _part(function: FunctionGraph, results: list[ir.Value], op_type: str, *inputs: ir.Value, **attributes: Any) -> None:
    """Let the results be equal parts of what a node gives."""
    if len(results) == 1:
        function.op(op_type, *inputs, into=results[0], **attributes)
    else:
        whole = function.op(op_type, *inputs, **attributes)
        function.ops("Split", results, whole, axis=0, num_outputs=len(results))
