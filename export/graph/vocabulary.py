"""How many tokens a graph knows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

_HANDED_ON = {"Cast", "Identity", "Where", "Concat", "Slice", "Reshape", "Squeeze", "Unsqueeze", "Transpose"}
_UNKNOWN = 2  # tokens that any model knows


def vocabulary_of(path: Path) -> int:
    """The rows of the smallest table in which the graph looks its integer inputs up; 2 if it looks nothing up."""
    model = ir.load(path)
    tokens = [value for value in model.graph.inputs if value.dtype in (ir.DataType.INT32, ir.DataType.INT64)]
    return min((size for value in tokens for size in _tables(value, set())), default=_UNKNOWN)


def _tables(value: ir.Value, seen: set[ir.Value]) -> Iterator[int]:
    if value in seen:
        return
    seen.add(value)
    for node, place in value.uses():
        table = node.inputs[0]
        if node.op_type == "Gather" and place == 1 and table is not None and table.const_value is not None:
            yield int(table.const_value.shape.numpy()[0])
        elif node.op_type in _HANDED_ON:
            for output in node.outputs:
                yield from _tables(output, seen)
