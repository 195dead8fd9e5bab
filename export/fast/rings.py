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
class _Request:
    """Rows of one ring, times the first taps of a weight (outputs, inputs, taps); or, without one, a single row."""

    ring: int
    rows: tuple[int, ...]
    result: ir.Value
    weight: ir.Value | None = None
    bias: ir.Value | None = None

    @property
    def kind(self) -> tuple[int, int]:
        """Requests of one kind are answered together: how many rows, and how many outputs, 0 for none."""
        if self.weight is None:
            return 1, 0
        assert self.weight.shape is not None
        return len(self.rows), int(self.weight.shape.numpy()[0])


class Buffer:
    """The rings of one width, while the function is being made."""

    def __init__(self, width: int, prefix: str) -> None:
        """``prefix`` begins the names of the function's inputs and outputs for this buffer."""
        self.width = width
        self._prefix = prefix
        self.array = ir.val(f"{prefix}ring_{width}", dtype=ir.DataType.FLOAT)
        self._rows_name = f"{prefix}rows_{width}"
        self.slots: list[ir.Value] = []
        self.rings: list[Ring] = []
        self._new: list[ir.Value] = []
        self._requests: list[_Request] = []

    def add(self, state: str, axis: int, size: int, newest: ir.Value) -> int:
        """Add a ring of which every step makes the row ``newest``, (B, width); returns its number."""
        self.rings.append(Ring(state, axis, sum(ring.size for ring in self.rings), size))
        self._new.append(newest)
        return len(self.rings) - 1

    def row(self, ring: int, row: int) -> ir.Value:
        """A row of a ring, counted from its oldest: (B, width)."""
        self._requests.append(_Request(ring, (row,), ir.Value()))
        return self._requests[-1].result

    def product(self, ring: int, rows: list[int], weight: ir.Value, bias: ir.Value | None) -> ir.Value:
        """What these rows, the first that the window sees, add to a convolution, with its bias: (B, outputs).

        ``weight`` is the convolution's, (outputs, width, taps).
        """
        self._requests.append(_Request(ring, tuple(rows), ir.Value(), weight, bias))
        return self._requests[-1].result

    def write_reads(self, function: FunctionGraph) -> RingBuffer:
        """Write what answers all requests, before any node that reads an answer; returns what the file says."""
        kinds: dict[tuple[int, int], list[_Request]] = {}
        for request in self._requests:
            kinds.setdefault(request.kind, []).append(request)
        reads = []
        for i, ((taps_each, n_outputs), requests) in enumerate(kinds.items()):
            slots = ir.val(f"{self._prefix}slots_{self.width}_{i}", dtype=ir.DataType.INT64)
            self.slots.append(slots)
            taps = tuple((request.ring, row) for request in requests for row in request.rows)
            reads.append(Read(str(slots.name), taps_each, taps))
            results = [request.result for request in requests]
            if n_outputs == 0:
                _part(function, results, "Gather", self.array, slots, axis=0)
            else:
                self._multiply(function, requests, function.op("Gather", self.array, slots, axis=0))
        return RingBuffer(str(self.array.name), self._rows_name, self.width, tuple(self.rings), tuple(reads))

    def write_rows(self, function: FunctionGraph) -> ir.Value:
        """What the step adds to the rings, (n · B, width)."""
        rows = ir.val(self._rows_name, dtype=ir.DataType.FLOAT)
        # Of one row, too: ONNX Runtime 1.31 loses an inner value that an Identity gives as an output.
        return function.op("Concat", *self._new, into=rows, axis=0)

    def _multiply(self, function: FunctionGraph, requests: list[_Request], rows: ir.Value) -> None:
        results = [request.result for request in requests]
        (n_rows, n_outputs), n = requests[0].kind, len(requests)
        wide = n_rows * self.width
        bounds = [function.constant(number) for number in (0, n_rows, 2)]
        first = [function.op("Slice", request.weight, *bounds) for request in requests]
        turned = [function.op("Transpose", taps, perm=[2, 1, 0]) for taps in first]  # (taps, inputs, outputs)
        if n == 1:
            matrix = function.op("Reshape", turned[0], function.constant(wide, -1))
            row = function.op("Reshape", rows, function.constant(-1, wide))
            bias = [] if requests[0].bias is None else [requests[0].bias]
            function.op("Gemm" if bias else "MatMul", row, matrix, *bias, into=results[0])
            return
        layers = [function.op("Reshape", taps, function.constant(1, wide, -1)) for taps in turned]
        stacked = function.op("Concat", *layers, axis=0)
        product = function.op("MatMul", function.op("Reshape", rows, function.constant(n, -1, wide)), stacked)
        if any(request.bias is not None for request in requests):
            none = function.array(np.zeros(n_outputs, np.float32))
            biases = [function.op("Reshape", request.bias or none, function.constant(1, 1, -1)) for request in requests]
            product = function.op("Add", product, function.op("Concat", *biases, axis=0))
        _part(function, results, "Reshape", product, function.constant(-1, n_outputs))


def _part(function: FunctionGraph, results: list[ir.Value], op_type: str, *inputs: ir.Value, **attributes: Any) -> None:
    """Let the results be equal parts of what a node gives."""
    if len(results) == 1:
        function.op(op_type, *inputs, into=results[0], **attributes)
    else:
        whole = function.op(op_type, *inputs, **attributes)
        function.ops("Split", results, whole, axis=0, num_outputs=len(results))
