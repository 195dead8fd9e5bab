"""What a graph computes from the sizes of its tensors, settled before it is walked.

PyTorch's exporters ask tensors for their sizes all over a graph: to reshape, to slice, to make zeros for an initial
state. ``settle_sizes`` runs the graph at a few batch sizes and lengths and looks at what came of each such value. What
is the same in all of them becomes a constant; what differs becomes a constant where its reader's rule here can say the
same without it (-1, 0 or the batch size in the shape of a Reshape, an end counted from the end, no initial state for
one of zeros). The rest stays as it is, for the walk to refuse. Names and sizes that the file gives to inner tensors are
not believed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from edgeseq.errors import NotStreamableError
from edgeseq.export.graph.edit import constant, initializer
from edgeseq.export.graph.elementwise import BINARY
from edgeseq.export.streaming.step_graph import END

Array = np.ndarray[Any, Any]

_LENGTHS = (61, 509, 8191)  # the shortest at which every window of the model fits
_MOST_RUNS = 300
_RANDOM = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"}


@dataclass(frozen=True)
class _Seen:
    """What one run gave: the values that were asked for, by name, and the sizes of other tensors."""

    values: dict[str, Array]
    sizes: dict[str, tuple[int, ...]]
    batch: int


def settle_sizes(model: ir.Model, length_modulo: tuple[int, int] | None = None) -> None:
    """Replace, in place, what is computed from sizes and constants alone.

    Lengths are those that ``length_modulo``, (modulus, remainder), allows, or any.

    Raises:
        NotStreamableError: the model does not run at other lengths than the one it was exported with.
    """
    reads = list(_reads(model.graph))
    if not reads:
        return
    runs = _run(model, reads, length_modulo or (1, 0))
    for node, index, value in reads:
        seen = [run.values[str(value.name)] for run in runs]
        if all(np.array_equal(each, seen[0]) for each in seen):
            node.replace_input_with(index, _constant(model.graph, seen[0], value))
            continue
        sizes = [_of(node, run) for run in runs]
        rule = _RULES.get(node.op_type)
        if rule is not None:
            rule(_Read(node, index, seen, sizes, [run.batch for run in runs]))


def _of(node: ir.Node, run: _Seen) -> list[tuple[int, ...]]:
    """The sizes of the node's first input, of its other inputs, and last of its first output; () for none."""
    names = [None if v is None else str(v.name) for v in (*node.inputs, node.outputs[0])]
    return [() if name is None else run.sizes.get(name, ()) for name in names]


@dataclass(frozen=True)
class _Read:
    """A node of the sequence that reads a value computed from sizes, and both as each run saw them."""

    node: ir.Node
    index: int
    seen: Sequence[Array]
    sizes: Sequence[list[tuple[int, ...]]]
    batches: Sequence[int]

    def becomes(self, array: Array | Sequence[int]) -> None:
        """Let the node read a constant instead."""
        assert self.node.graph is not None
        given = np.asarray(array) if isinstance(array, np.ndarray) else np.array(array, np.int64)
        value = _constant(self._graph, given, self.node.inputs[self.index])
        self.node.replace_input_with(self.index, value)

    def takes_batch_size(self, place: int) -> None:
        """Let the constant that the node reads have, at this place, the batch size of the graph's first input."""
        graph, known = self._graph, constant(self.node.inputs[self.index])
        assert known is not None
        shape = ir.node("Shape", [graph.inputs[0]], attributes={"start": 0, "end": 1})
        ends = [
            initializer(graph, part, f"{self.node.name}_sizes")
            for part in (known[:place], known[place + 1 :])
            if part.size
        ]
        ends.insert(1 if place else 0, shape.outputs[0])
        sizes = ir.node("Concat", ends, attributes={"axis": 0})
        for each in (shape, sizes):
            each.outputs[0].type = ir.TensorType(ir.DataType.INT64)
        graph.insert_before(self.node, [shape, sizes])
        self.node.replace_input_with(self.index, sizes.outputs[0])

    @property
    def _graph(self) -> ir.Graph:
        assert isinstance(self.node.graph, ir.Graph)
        return self.node.graph

    @property
    def number(self) -> Array | None:
        """The one number that the value is full of in every run, or None."""
        first = self.seen[0].ravel()[:1]
        return first if first.size and all((each == first).all() for each in self.seen) else None


def _constant(graph: ir.Graph, array: Array, like: ir.Value | None) -> ir.Value:
    return initializer(graph, array, f"{like.name}_known" if like is not None else "known")


def _reads(graph: ir.Graph) -> Iterator[tuple[ir.Node, int, ir.Value]]:
    """Where a node that works on the sequence reads a value that was computed from sizes and constants alone."""
    content: set[ir.Value | None] = set(graph.inputs)
    for node in graph:
        if _works_on(node, content):
            content.update(node.outputs)
    for node in graph:
        if node.outputs[0] not in content:
            continue
        for index, value in enumerate(node.inputs):
            if value is not None and value.producer() is not None and value not in content:
                yield node, index, value


def _works_on(node: ir.Node, content: set[ir.Value | None]) -> bool:
    if node.op_type in ("Shape", "Size"):
        return False
    nested = any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())
    return nested or node.op_type in _RANDOM or any(value in content for value in node.inputs)


def _run(
    model: ir.Model, reads: Sequence[tuple[ir.Node, int, ir.Value]], length_modulo: tuple[int, int]
) -> list[_Seen]:
    """Run the model at several batch sizes and lengths, of different remainders where these are not promised."""
    values = {str(value.name) for _, _, value in reads}
    sized = {str(v.name) for node, _, _ in reads for v in (*node.inputs, node.outputs[0]) if v is not None} - values
    proto = ir.to_proto(model)
    ports = {port.name for port in proto.graph.output}
    available = {v.name for v in (*proto.graph.input, *proto.graph.initializer)} | {
        name for node in proto.graph.node for name in node.output
    }
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted((values | sized) - ports))
    del proto.graph.value_info[:]  # names and sizes there may be wrong
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    names = sorted((values | sized) & available)
    try:
        session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise NotStreamableError(f"ONNX Runtime does not open the model: {_short(error)}") from error
    for shortest in _LENGTHS:
        points = _points(model.graph, shortest, length_modulo)
        try:
            outputs = [session.run(names, _zeros(model.graph, *point)) for point in points]
        except Exception as error:  # ONNX Runtime's errors have no common base
            failed = error
            continue
        runs = [dict(zip(names, map(np.asarray, output), strict=True)) for output in outputs]
        return [
            _Seen({n: run[n] for n in values}, {n: run[n].shape for n in names}, batch)
            for run, (batch, _) in zip(runs, points, strict=True)
        ]
    raise NotStreamableError(
        f"the model does not run at other lengths or batch sizes than those it was exported with: {_short(failed)}; "
        "export it with batch and time dynamic (dynamic_shapes, dynamic_axes), and see that no size in it is frozen"
    ) from failed


def _points(graph: ir.Graph, shortest: int, length_modulo: tuple[int, int]) -> list[tuple[int, int]]:
    """Batch sizes and lengths; every remainder that a size is divided by in the graph comes up."""
    modulus, remainder = length_modulo
    first = shortest + (remainder - shortest) % modulus
    runs = min(_MOST_RUNS, max(4, _period(graph)))
    lengths = [first + i * modulus for i in range(runs)]
    batches = [(2, 3, 3, 2)[i % 4] for i in range(runs)]
    return [*zip(batches, lengths, strict=True), (4, first + (first // modulus + 5) * modulus)]


def _period(graph: ir.Graph) -> int:
    """Lengths that differ by this give the same remainders."""
    period = 1
    for node in graph:
        divisor = constant(node.inputs[1]) if node.op_type in ("Mod", "Div") else None
        if divisor is not None and divisor.dtype.kind == "i" and divisor.size == 1:
            period = math.lcm(period, abs(int(divisor.item())) or 1)
    strides = [node.attributes.get_ints("strides", [1]) for node in graph]
    return period * math.prod(n for each in strides for n in each) if period > 1 else 1


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _zeros(graph: ir.Graph, batch: int, length: int) -> dict[str, Array]:
    """Inputs of these sizes; they stand batch, time, rest."""
    given = {}
    for value in graph.inputs:
        dims = list(value.shape or ())
        sizes = [n if isinstance(n, int) else (batch, length)[axis] if axis < 2 else 1 for axis, n in enumerate(dims)]
        assert value.dtype is not None
        given[str(value.name)] = np.zeros(sizes, value.dtype.numpy())
    return given


# What a reader makes of a value that differs from run to run.


def _reshape(read: _Read) -> None:
    """Sizes that are those of the input at the same axis become 0, one other -1, and one more may be the batch size."""
    if read.index != 1 or len({each.shape for each in read.seen}) > 1:
        return
    target: list[int] = []
    batch: list[int] = []
    for axis, column in enumerate(zip(*(each.tolist() for each in read.seen), strict=True)):
        if all(n == column[0] != 0 for n in column):
            target.append(column[0])
        elif all(axis < len(s[0]) and n == s[0][axis] for n, s in zip(column, read.sizes, strict=True)):
            target.append(0)
        else:
            batch += [axis] if list(column) == list(read.batches) else []
            target.append(-1)
    if target.count(-1) < 2 or (target.count(-1) == 2 and len(batch) == 1):
        read.node.attributes.pop("allowzero", None)
        read.becomes(target)
    if target.count(-1) == 2 and len(batch) == 1:
        read.takes_batch_size(batch[0])


def _expand(read: _Read) -> None:
    """A size that the input has already becomes 1, which leaves it."""
    if read.index != 1 or len({each.shape for each in read.seen}) > 1:
        return
    target: list[int] = []
    for place, column in enumerate(zip(*(each.tolist() for each in read.seen), strict=True)):
        axis = place - len(read.seen[0])
        if all(n == 1 or (-axis <= len(s[0]) and n == s[0][axis]) for n, s in zip(column, read.sizes, strict=True)):
            target.append(1)
        elif all(n == column[0] for n in column):
            target.append(column[0])
        else:
            return
    read.becomes(target)


def _slice(read: _Read) -> None:
    """A start or end that keeps its distance from the end of the axis is counted from there."""
    axes = constant(read.node.inputs[3]) if len(read.node.inputs) > 3 else np.arange(read.seen[0].size)
    if read.index not in (1, 2) or axes is None:
        return
    places: list[int] = []
    for axis, column in zip(axes.tolist(), zip(*(each.tolist() for each in read.seen), strict=True), strict=True):
        behind = {n - s[0][axis] for n, s in zip(column, read.sizes, strict=True)}
        if len(set(column)) == 1:
            places.append(column[0])
        elif len(behind) == 1 and (read.index == 2 or min(behind) < 0):
            distance = behind.pop()
            places.append(distance if distance < 0 else END)
        else:
            return
    read.becomes(places)


def _recurrent(read: _Read) -> None:
    """An initial state of zeros is none; nor are lengths that are those of the whole sequence."""
    zeros = read.index >= 5 and read.number is not None and not read.number.any()
    whole = read.index == 4 and all((n == s[0][0]).all() for n, s in zip(read.seen, read.sizes, strict=True))
    if zeros or whole:
        read.node.replace_input_with(read.index, None)


def _concat(read: _Read) -> None:
    """Joining a constant number of equal rows is a padding."""
    node, number = read.node, read.number
    if len(node.inputs) != 2 or number is None or number.dtype != np.float32:
        return
    rank = read.seen[0].ndim
    axis = node.attributes.get_int("axis") % rank
    rows = {each.shape[axis] for each in read.seen}
    if len(rows) != 1:
        return
    pads = np.zeros(2 * rank, np.int64)
    pads[axis + rank * read.index] = rows.pop()
    assert isinstance(node.graph, ir.Graph)
    inputs = [
        node.inputs[1 - read.index],
        initializer(node.graph, pads, f"{node.name}_pads"),
        initializer(node.graph, number.reshape(()), f"{node.name}_number"),
    ]
    pad = ir.node("Pad", inputs, name=node.name)
    pad.outputs[0].type = node.outputs[0].type
    node.graph.insert_after(node, pad)
    ir.convenience.replace_all_uses_with(node.outputs[0], pad.outputs[0], replace_graph_outputs=True)


def _fill(read: _Read) -> None:
    """A tensor full of one number is that number, where the other operands have the sizes of the result already."""
    others = [i for i in range(len(read.node.inputs)) if i != read.index]
    if read.number is not None and all(any(s[i] == s[-1] for i in others) for s in read.sizes):
        read.becomes(read.number.reshape(()))


_RULES: dict[str, Callable[[_Read], None]] = {
    "Reshape": _reshape,
    "Expand": _expand,
    "Slice": _slice,
    "Concat": _concat,
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
    **dict.fromkeys((*BINARY, "Where"), _fill),
}
