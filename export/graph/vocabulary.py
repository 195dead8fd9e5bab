"""How many tokens a graph knows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

_EVERY_TOKEN = {"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Transpose"}
_HANDED_ON = _EVERY_TOKEN | {"Where", "Concat", "Slice"}  # these may leave tokens out, or change them
_UNKNOWN = 2  # tokens that any model knows


def vocabulary_of(path: Path) -> int:
    """The rows of the smallest table in which the graph looks its integer inputs up; 2 if it looks nothing up."""
    model = ir.load(path)
    tokens = [value for value in model.graph.inputs if value.dtype in (ir.DataType.INT32, ir.DataType.INT64)]
    return min((size for value in tokens for size in _tables(value, _HANDED_ON, set())), default=_UNKNOWN)


def limit_of(value: ir.Value) -> int | None:
    """The tokens that an input may have: the rows of the smallest table in which all of them are looked up."""
    if value.dtype not in (ir.DataType.INT32, ir.DataType.INT64):
        return None
    return min(_tables(value, _EVERY_TOKEN, set()), default=None)


def _tables(value: ir.Value, handed_on: set[str], seen: set[ir.Value]) -> Iterator[int]:
    if value in seen:
        return
    seen.add(value)
    for node, place in value.uses():
        table = node.inputs[0]
        if node.op_type == "Gather" and place == 1 and table is not None and table.const_value is not None:
            yield int(table.const_value.shape.numpy()[0])
        elif node.op_type in handed_on:
            for output in node.outputs:
                yield from _tables(output, handed_on, seen)
