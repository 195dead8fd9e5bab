"""One rule per operator of a step graph: what it is to the newest row alone.

A rule gets the walk, the node, and what is known of its inputs: a ``Row``, ``Rows`` of a ring, a ``Mask``, or a
constant or a state as it stands. What has no rule, or is used in another way than its rule knows, has no fast form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from edgeseq.export.fast.rings import Buffer, FunctionGraph
from edgeseq.export.graph.edit import constant, permutation
from edgeseq.export.graph.elementwise import ELEMENTWISE

_WIDEST_POOL = 32  # rows: beyond, one operator on a copied history is faster than so many inputs


class NoFastFormError(Exception):
    """Why a step graph has no fast form."""


@dataclass(frozen=True)
class Row:
    """The newest row of a tensor that has ``rank`` axes in the step graph, time being ``axis``; ``value`` lacks it."""

    value: ir.Value
    axis: int
    rank: int

    def drop(self, axis: int) -> int:
        """The row's axis for one of the tensor's."""
        axis %= self.rank
        if axis == self.axis:
            raise NoFastFormError("an operator works along time")
        return axis - (axis > self.axis)


@dataclass(frozen=True)
class Rows:
    """Rows ``first`` to ``stop`` of a ring, from its oldest; number ``size`` is the newest row, not in the ring yet."""

    buffer: Buffer
    ring: int
    first: int
    stop: int
    newest: Row

    @property
    def size(self) -> int:
        """How many rows the ring has."""
        return self.buffer.rings[self.ring].size


class Mask(Enum):
    """What depends on the position in the stream alone: true of every row, once the stream is under way."""

    TRUE = "true"


Known = Row | Rows | Mask | ir.Value | None


class Walk(Protocol):
    """What a rule may ask of the walk."""

    function: FunctionGraph

    def op(self, op_type: str, *inputs: ir.Value | None, like: ir.Node | None = None, **attributes: Any) -> ir.Value:
        """Add a node, with the attributes of another one and these."""

    def argument(self, value: ir.Value) -> Known:
        """What is known of a value of the step graph; a constant becomes an input of the function."""

    def ring(self, state: ir.Value, newest: Row) -> Rows:
        """The ring that a state becomes, and the row that is added to it."""

    def plain(self, state: ir.Value) -> ir.Value:
        """A state that is carried as it is."""


Rule = Callable[[Walk, ir.Node, list[Known]], Sequence[Known]]
RULES: dict[str, Rule] = {}


def _fast(*op_types: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(op_types, rule))
        return rule

    return register


def _row(argument: Known) -> Row:
    if not isinstance(argument, Row):
        raise NoFastFormError("an operator reads rows that it does not know")
    return argument


def _fixed(argument: Known) -> ir.Value:
    if argument is Mask.TRUE:
        raise NoFastFormError("an operator counts with the edges of the sequence")
    if not isinstance(argument, ir.Value) or argument.const_value is None:
        raise NoFastFormError("an operator needs a constant")
    return argument


@_fast(*sorted(ELEMENTWISE | {"Mod", "PRelu", "Sin", "Cos", "Tan", "Floor", "Ceil", "Round"}))
def _pointwise(walk: Walk, node: ir.Node, arguments: list[Known]) -> list[Known]:
    if node.op_type == "Where" and arguments[0] is Mask.TRUE:
        return [_row(arguments[1])]
    head = next(a for a in arguments if isinstance(a, Row))
    inputs = []
    for argument in arguments:
        if argument is None or isinstance(argument, Row):
            inputs.append(None if argument is None else argument.value)
            continue
        fixed = _fixed(argument)
        at = head.axis - (head.rank - len(fixed.shape or ()))  # where a constant has the time axis, of size 1
        inputs.append(fixed if at < 0 else walk.op("Squeeze", fixed, walk.function.constant(at)))
    return [replace(head, value=walk.op(node.op_type, *inputs, like=node))]


@_fast("Shape")
def _shape_of(_walk: Walk, _node: ir.Node, _arguments: list[Known]) -> list[Known]:
    return [Mask.TRUE]  # the number of rows, which masks ask for


@_fast("MatMul")
def _matmul(walk: Walk, _node: ir.Node, arguments: list[Known]) -> list[Known]:
    x = _row(arguments[0])
    x.drop(-1)
    weight = _fixed(arguments[1])
    if len(_shape(weight)) != 2:
        raise NoFastFormError("a product is not with a matrix")
    return [replace(x, value=walk.op("MatMul", x.value, weight))]


@_fast("Softmax", "LogSoftmax", "LayerNormalization")
def _along_channels(walk: Walk, node: ir.Node, arguments: list[Known]) -> list[Known]:
    x, *weights = arguments
    row = _row(x)
    axis = row.drop(node.attributes.get_int("axis", -1))
    fixed = [None if w is None else _fixed(w) for w in weights]
    return [replace(row, value=walk.op(node.op_type, row.value, *fixed, like=node, axis=axis))]


@_fast("Transpose")
def _transpose(walk: Walk, node: ir.Node, arguments: list[Known]) -> list[Known]:
    x, perm = _row(arguments[0]), permutation(node)
    kept = [x.drop(axis) for axis in perm if axis != x.axis]
    value = x.value if kept == sorted(kept) else walk.op("Transpose", x.value, perm=kept)
    return [Row(value, perm.index(x.axis), x.rank)]


@_fast("ReduceMax", "ReduceMean", "ReduceSum", "ReduceMin", "ReduceProd", "ReduceL2", "ReduceSumSquare")
def _reduce(walk: Walk, node: ir.Node, arguments: list[Known]) -> list[Known]:
    x, axes = _row(arguments[0]), _axes_of(node, arguments)
    y = walk.op(node.op_type, x.value, walk.function.constant(*(x.drop(a) for a in axes)), like=node)
    if node.attributes.get_int("keepdims", 1):
        return [replace(x, value=y)]
    return [Row(y, x.axis - sum(a % x.rank < x.axis for a in axes), x.rank - len(axes))]


@_fast("Unsqueeze")
def _unsqueeze(walk: Walk, _node: ir.Node, arguments: list[Known]) -> list[Known]:
    x, axes = _row(arguments[0]), _numbers(arguments[1])
    rank = x.rank + len(axes)
    new = {axis % rank for axis in axes}
    y = Row(x.value, [axis for axis in range(rank) if axis not in new][x.axis], rank)
    return [replace(y, value=walk.op("Unsqueeze", x.value, walk.function.constant(*sorted(y.drop(a) for a in new))))]


@_fast("Squeeze")
def _squeeze(walk: Walk, node: ir.Node, arguments: list[Known]) -> list[Known]:
    x = _row(arguments[0])
    axes = sorted(axis % x.rank for axis in _axes_of(node, arguments))
    y = walk.op("Squeeze", x.value, walk.function.constant(*(x.drop(axis) for axis in axes)))
    return [Row(y, x.axis - sum(axis < x.axis for axis in axes), x.rank - len(axes))]


@_fast("Reshape")
def _reshape(walk: Walk, node: ir.Node, arguments: list[Known]) -> list[Known]:
    x, target = _row(arguments[0]), _numbers(arguments[1])
    before, after = (_row_size(v) for v in (node.inputs[0], node.outputs[0]))
    if x.axis != 1 or target[0] != 0 or before is None or before != after:
        raise NoFastFormError("an operator rearranges rows")
    y = walk.op("Reshape", x.value, walk.function.constant(0, *target[2:]))
    return [Row(y, 1, len(target))]


def _row_size(value: ir.Value | None) -> int | None:
    """How many numbers one row has, where the shape, (batch, time, ...), says so."""
    sizes = list(value.shape or ())[2:] if value is not None else []
    known = [n for n in sizes if isinstance(n, int)]
    return int(np.prod(known)) if known and len(known) == len(sizes) else None


@_fast("Split")
def _split(walk: Walk, node: ir.Node, arguments: list[Known]) -> list[Known]:
    x, *sizes = arguments
    row = _row(x)
    axis = row.drop(node.attributes.get_int("axis", 0))
    attributes = {**node.attributes, "axis": ir.AttrInt64("axis", axis)}
    results = [ir.Value() for _ in node.outputs]
    walk.function.ops("Split", results, row.value, *(_fixed(s) for s in sizes), **attributes)
    return [replace(row, value=part) for part in results]


@_fast("Gather")
def _gather(walk: Walk, node: ir.Node, arguments: list[Known]) -> list[Known]:
    table, tokens = arguments
    axis = node.attributes.get_int("axis", 0)
    if isinstance(tokens, Row) and axis == 0:
        table = _fixed(table)
        value = walk.op("Gather", table, tokens.value, like=node)
        return [Row(value, tokens.axis, tokens.rank + len(table.shape or ()) - 1)]
    x, indices = _row(table), _fixed(tokens)
    y = walk.op("Gather", x.value, indices, axis=x.drop(axis))
    rank = len(indices.shape or ())
    return [Row(y, x.axis + (rank - 1 if axis % x.rank < x.axis else 0), x.rank + rank - 1)]


@_fast("Slice")
def _slice(walk: Walk, _node: ir.Node, arguments: list[Known]) -> list[Known]:
    x = arguments[0]
    starts, ends, axes = (_numbers(a) for a in arguments[1:4])
    steps = _numbers(arguments[4]) if len(arguments) > 4 else [1] * len(starts)
    if isinstance(x, Rows):
        if axes != [x.newest.axis] or steps != [1]:
            raise NoFastFormError("it takes some of the rows only")
        kept = range(x.first, x.stop)[slice(starts[0], ends[0])]
        if not kept:
            raise NoFastFormError("a sample gives no row")
        rows = replace(x, first=kept.start, stop=kept.stop)
        return [_only_row(rows) if len(kept) == 1 else rows]
    row = _row(x)
    columns = (starts, ends, [row.drop(a) for a in axes], steps)
    return [replace(row, value=walk.op("Slice", row.value, *(walk.function.constant(*c) for c in columns)))]


def _only_row(x: Rows) -> Row:
    if x.first == x.size:
        return x.newest
    return replace(x.newest, value=x.buffer.row(x.ring, x.first))


@_fast("Concat")
def _concat(walk: Walk, node: ir.Node, arguments: list[Known]) -> list[Known]:
    axis = node.attributes.get_int("axis")
    last = _row(arguments[-1])
    if len(arguments) == 2 and axis % last.rank == last.axis and isinstance(arguments[0], ir.Value):
        return [walk.ring(arguments[0], last)]
    rows = [_row(a) for a in arguments]
    return [replace(last, value=walk.op("Concat", *(row.value for row in rows), axis=last.drop(axis)))]


@_fast("Conv")
def _conv(walk: Walk, node: ir.Node, arguments: list[Known]) -> list[Known]:
    x, weight, bias = arguments[0], _fixed(arguments[1]), arguments[2] if len(arguments) > 2 else None
    n_taps = _shape(weight)[2]
    fixed_bias = None if bias is None else _fixed(bias)
    if node.attributes.get_ints("strides", [1])[0] != 1:
        raise NoFastFormError("a convolution has a stride")
    if node.attributes.get_int("group", 1) != 1:
        return [_grouped(walk, node, x, weight, fixed_bias)]
    newest = x.newest if isinstance(x, Rows) else _row(x)
    if newest.axis != 2 or newest.rank != 3:
        raise NoFastFormError("a convolution is not over time alone")
    last, past = weight, None
    if isinstance(x, Rows):
        taps = _taps(node, x, n_taps)
        in_ring = [row for row in taps if row < x.size]
        if in_ring:
            past = x.buffer.product(x.ring, in_ring, weight, fixed_bias)
            if len(in_ring) == n_taps:
                return [replace(newest, value=past)]
        last = walk.op("Slice", weight, *(walk.function.constant(n) for n in (n_taps - 1, n_taps, 2)))
    matrix = walk.op("Transpose", walk.op("Squeeze", last, walk.function.constant(2)), perm=[1, 0])
    shift = [v for v in (past or fixed_bias,) if v is not None]
    return [replace(newest, value=walk.op("Gemm" if shift else "MatMul", newest.value, matrix, *shift))]


def _taps(node: ir.Node, x: Rows, n_taps: int) -> list[int]:
    """The rows that a window sees, which must fit once."""
    dilation = node.attributes.get_ints("dilations", [1])[0]
    if x.stop - x.first != (n_taps - 1) * dilation + 1:
        raise NoFastFormError("a sample does not give one row")
    return [x.first + i * dilation for i in range(n_taps)]


def _grouped(walk: Walk, node: ir.Node, x: Known, weight: ir.Value, bias: ir.Value | None) -> Row:
    """A convolution of the rows that the window sees, side by side.

    Not a product with zeros for the channels of other groups: 0 · Inf is NaN.
    """
    n_taps = _shape(weight)[2]
    newest = x.newest if isinstance(x, Rows) else _row(x)
    rows = [row.value for row in _each(x, _taps(node, x, n_taps))] if isinstance(x, Rows) else [newest.value]
    beside = rows[0] if n_taps == 1 else walk.op("Concat", *rows, axis=1)
    window = walk.op("Reshape", beside, walk.function.constant(0, n_taps, -1))
    inputs = [walk.op("Transpose", window, perm=[0, 2, 1]), weight, *([] if bias is None else [bias])]
    y = walk.op("Conv", *inputs, like=node, dilations=[1], pads=[0, 0])
    return replace(newest, value=walk.op("Squeeze", y, walk.function.constant(2)))


def _each(x: Rows, rows: list[int]) -> list[Row]:
    return [_only_row(replace(x, first=row, stop=row + 1)) for row in rows]


@_fast("MaxPool", "AveragePool")
def _pool(walk: Walk, node: ir.Node, arguments: list[Known]) -> list[Known]:
    x = arguments[0]
    size, *more = node.attributes.get_ints("kernel_shape")
    if size == 1 and isinstance(x, Row):
        return [x]
    if size > _WIDEST_POOL:
        raise NoFastFormError(f"a pool over {size} rows reads each of them at every step")
    if not isinstance(x, Rows) or more or node.attributes.get_ints("strides", [1])[0] != 1:
        raise NoFastFormError("a pool has a stride")
    rows = [row.value for row in _each(x, _taps(node, x, size))]
    return [replace(x.newest, value=walk.op("Max" if node.op_type == "MaxPool" else "Mean", *rows))]


@_fast("Scan")
def _scan(walk: Walk, node: ir.Node, arguments: list[Known]) -> list[Known]:
    """A running pool: its body, once."""
    body = node.attributes["body"].as_graph()
    here: dict[ir.Value, ir.Value] = {}
    newest: Row | None = None
    for value, argument in zip(body.inputs, arguments, strict=True):
        if isinstance(argument, Row):
            newest, here[value] = argument, argument.value
        elif argument is Mask.TRUE:  # of rows that count, 1
            here[value] = walk.function.array(np.ones((1, 1), (value.dtype or ir.DataType.FLOAT).numpy()))
        elif isinstance(argument, ir.Value):
            here[value] = walk.plain(argument)
    assert newest is not None
    for each in body:
        inputs = [None if v is None else here.get(v) or _fixed(walk.argument(v)) for v in each.inputs]
        here[each.outputs[0]] = walk.op(each.op_type, *inputs, like=each)
    return [replace(newest, value=here[value]) for value in body.outputs]


def _shape(fixed: ir.Value) -> tuple[int, ...]:
    assert fixed.shape is not None
    return tuple(fixed.shape.numpy())


def _axes_of(node: ir.Node, arguments: list[Known]) -> list[int]:
    if len(arguments) < 2:
        raise NoFastFormError(f"operator {node.op_type} does not say which axes")
    return _numbers(arguments[1])


def _numbers(argument: Known) -> list[int]:
    fixed = constant(_fixed(argument))
    assert fixed is not None
    return [int(n) for n in fixed.ravel()]
