"""The fast form of a model: one sample of one stream, on ring buffers.

A step reads the rows that it needs by their slots, which come from a table, and gives new rows, each of which takes the
place of its ring's oldest one. They are written into the rings when the next step begins, so a step that failed, at
whatever moment, has changed nothing. Between rings and the states of the step graph, which are the canonical layout,
``Rings`` converts without loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from edgeseq.errors import ModelFileError
from edgeseq.fast_form import FastForm, Ring
from edgeseq.model_file import Description, DTypeName
from edgeseq.protobuf import fields, message, number, text
from edgeseq.runtime.inputs import Array

_DOMAIN = "edgeseq"
_LONGEST_TABLE = 2**18  # slots; of rings whose sizes repeat together later than that, slots are computed

# Fields and element types of onnx.proto.
_MODEL_GRAPH, _MODEL_METADATA, _MODEL_FUNCTIONS = 7, 14, 25
_GRAPH_NODE, _GRAPH_NAME, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT = 1, 2, 5, 11, 12
_FUNCTION_NAME, _FUNCTION_INPUT, _FUNCTION_OUTPUT = 1, 4, 5
_NODE_INPUT, _NODE_OUTPUT, _NODE_OP_TYPE, _NODE_DOMAIN = 1, 2, 4, 7
_ELEMENT = {"float32": 1, "int32": 6, "int64": 7, "float64": 11}

Tensor = tuple[str, DTypeName, tuple[int, ...]]
"""Name, dtype and shape of an input or output."""


def tensors(d: Description, form: FastForm, n_streams: int = 1) -> tuple[list[Tensor], list[Tensor]]:
    """The inputs, but for the weights, and the outputs of the fast form on so many streams."""
    b = n_streams
    states = {state.input: state for state in d.state}
    inputs: list[Tensor] = [(port.name, port.dtype, (b, *port.shape)) for port in d.inputs]
    outputs: list[Tensor] = [(port.name, port.dtype, (b, *port.shape)) for port in d.outputs]
    for buffer in form.buffers:
        n_slots = sum(ring.size for ring in buffer.rings)
        inputs.append((buffer.array, "float32", (n_slots * b, buffer.width)))
        inputs += [(read.slots, "int64", (len(read.taps) * b,)) for read in buffer.reads]
        outputs.append((buffer.rows, "float32", (len(buffer.rings) * b, buffer.width)))
    for name in form.states:
        spec = states[name]
        inputs.append((name, spec.dtype, (b, *spec.shape)))
        outputs.append((spec.output, spec.dtype, (b, *spec.shape)))
    return inputs, outputs


def fast_graph(model: bytes, d: Description, form: FastForm, n_streams: int | None = 1) -> bytes:
    """The model whose graph is one call of the fast form's function, on the weights of the model's own graph.

    Without ``n_streams``, calls may be of any number of streams, and arrays of rings may have any number of rows.

    Raises:
        ModelFileError: the file holds no such function.
    """
    top = list(fields(model))
    function = next(
        (f for f in top if f.number == _MODEL_FUNCTIONS and _texts(f.value, _FUNCTION_NAME) == [form.function]), None
    )
    if function is None:
        raise ModelFileError(f"its description names the function {form.function!r}, which it lacks; export it again")
    inputs, outputs = tensors(d, form, n_streams or 1)
    call = [text(_NODE_INPUT, name) for name in _texts(function.value, _FUNCTION_INPUT)]
    call += [text(_NODE_OUTPUT, name) for name in _texts(function.value, _FUNCTION_OUTPUT)]
    call += [text(_NODE_OP_TYPE, form.function), text(_NODE_DOMAIN, _DOMAIN)]
    (own,) = (list(fields(part.value)) for part in top if part.number == _MODEL_GRAPH)
    weights = [part.whole for part in own if part.number == _GRAPH_INITIALIZER]
    graph: list[bytes | memoryview] = [
        message(_GRAPH_NODE, *call),
        text(_GRAPH_NAME, form.function),
        *weights,
        *(_value_info(_GRAPH_INPUT, tensor, any_rows=n_streams is None) for tensor in inputs),
        *(_value_info(_GRAPH_OUTPUT, tensor, any_rows=n_streams is None) for tensor in outputs),
    ]
    kept = [f.whole for f in top if f.number not in (_MODEL_GRAPH, _MODEL_METADATA)]
    return b"".join([*kept, message(_MODEL_GRAPH, *graph)])


def _texts(whole: memoryview, field: int) -> list[str]:
    return [bytes(f.value).decode() for f in fields(whole) if f.number == field]


def _value_info(field: int, tensor: Tensor, *, any_rows: bool) -> bytes:
    # ValueInfoProto: name, type.tensor_type: elem_type, shape: dim: dim_value, which an unknown size lacks.
    name, dtype, shape = tensor
    dims = [message(1, number(1, size)) for size in shape]
    sizes = message(2, *([message(1), *dims[1:]] if any_rows else dims))
    return message(field, text(1, name), message(2, message(1, number(1, _ELEMENT[dtype]), sizes)))


class FastStep:
    """What all streams of a model share of its fast form: the session and the tables of slots."""

    def __init__(self, ort_session: Any, d: Description, form: FastForm) -> None:
        self.ort_session = ort_session
        self.description = d
        self.form = form
        self.inputs, self.outputs = tensors(d, form)
        rings = [ring for buffer in form.buffers for ring in buffer.rings]
        taps = [(b.rings[ring], row) for b in form.buffers for read in b.reads for ring, row in read.taps]
        period = math.lcm(*(ring.size for ring in rings))
        if period * (len(taps) + len(rings)) > _LONGEST_TABLE:
            period = 0
        self._taps = _SlotTable(taps, period)
        self._newest = [_SlotTable([(ring, 0) for ring in buffer.rings], period) for buffer in form.buffers]

    def slots(self, n_steps: int) -> Array:
        """Where the taps of all buffers stand after so many steps."""
        return self._taps.after(n_steps)

    def newest(self, n_steps: int) -> list[Array]:
        """Of each buffer: where the rows that the next step makes are to stand."""
        return [slots.after(n_steps) for slots in self._newest]


class _SlotTable:
    """Where rows of rings stand: each step, what was row i of a ring is row i - 1, and stays in its slot.

    With a ``period`` after which all rings are at their beginning again, from a table.
    """

    def __init__(self, rows: Sequence[tuple[Ring, int]], period: int) -> None:
        columns = [(ring.first, row, ring.size) for ring, row in rows]
        self._first, self._row, self._size = np.array(columns, np.int64).reshape(-1, 3).T
        self._period = period
        self._table = self._at(np.arange(period)[:, None]) if period else None

    def after(self, n_steps: int) -> Array:
        """The slots after so many steps."""
        return self._at(n_steps) if self._table is None else self._table[n_steps % self._period]

    def _at(self, n_steps: Any) -> Array:
        slots: Array = self._first + (self._row + n_steps) % self._size
        return slots


class Rings:
    """One stream's state in the fast form, and the buffers that a step reads and writes.

    Steps are counted by the stream, as ``fed``, the samples that its states have seen.
    """

    def __init__(self, fast: FastStep, samples: Sequence[Array], results: Sequence[Array]) -> None:
        """``samples`` are read, and ``results`` written: one array for each port, (1, C)."""
        self._fast = fast
        self._arrays = {name: np.zeros(shape, dtype) for name, dtype, shape in (*fast.inputs, *fast.outputs)}
        for port, array in zip(
            (*fast.description.inputs, *fast.description.outputs), (*samples, *results), strict=True
        ):
            self._arrays[port.name] = array
        reads = [read for buffer in fast.form.buffers for read in buffer.reads]
        ends = np.cumsum([len(read.taps) for read in reads])
        self._all_slots = np.zeros(ends[-1] if reads else 0, np.int64)  # of all reads, in one array
        parts = np.split(self._all_slots, ends[:-1])
        self._arrays |= {read.slots: part for read, part in zip(reads, parts, strict=False)}
        self._written = [(self._arrays[b.array], self._arrays[b.rows]) for b in fast.form.buffers]
        specs = {spec.input: spec for spec in fast.description.state}
        self._carried = [(self._arrays[name], self._arrays[specs[name].output]) for name in fast.form.states]
        self._loaded_at = self._kept_until = 0
        self._binding = fast.ort_session.io_binding()
        for name, _, _ in fast.inputs:
            self._binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(self._arrays[name]))
        for name, _, _ in fast.outputs:
            self._binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(self._arrays[name]))

    def step(self, fed: int) -> None:
        """Run one step, of a stream whose states have seen ``fed`` samples."""
        if fed != self._kept_until:
            self._keep(fed)
        self._all_slots[...] = self._fast.slots(fed - self._loaded_at)
        self._fast.ort_session.run_with_iobinding(self._binding)

    def _keep(self, fed: int) -> None:
        """Let what the last step gave be part of the state. Doing it twice is doing it once."""
        places = self._fast.newest(fed - 1 - self._loaded_at)
        for (ring, rows), slots in zip(self._written, places, strict=True):
            ring[slots] = rows
        for now, following in self._carried:
            now[...] = following
        self._kept_until = fed

    def load(self, states: Sequence[Array], fed: int) -> None:
        """Take over the states of the step graph, (1, ...) each."""
        by_name = {spec.input: state for spec, state in zip(self._fast.description.state, states, strict=True)}
        for buffer in self._fast.form.buffers:
            rows = self._arrays[buffer.array]
            for ring in buffer.rings:
                state = by_name[ring.state][0]
                rows[ring.first : ring.first + ring.size] = np.moveaxis(state, ring.axis, 0)
        for name in self._fast.form.states:
            self._arrays[name][...] = by_name[name]
        self._loaded_at = self._kept_until = fed

    def store(self, states: Sequence[Array], fed: int) -> None:
        """Write the states of the step graph, into arrays of their shapes."""
        if fed != self._kept_until:
            self._keep(fed)
        by_name = {spec.input: state for spec, state in zip(self._fast.description.state, states, strict=True)}
        for buffer in self._fast.form.buffers:
            rows = self._arrays[buffer.array]
            for ring in buffer.rings:
                oldest_first = np.moveaxis(by_name[ring.state][0], ring.axis, 0)
                turned = (fed - self._loaded_at) % ring.size  # where the oldest row stands
                stop = ring.first + ring.size
                oldest_first[: ring.size - turned] = rows[ring.first + turned : stop]
                oldest_first[ring.size - turned :] = rows[ring.first : ring.first + turned]
        for name in self._fast.form.states:
            by_name[name][...] = self._arrays[name]
        if self._fast.form.position is not None:
            by_name[self._fast.form.position][...] = fed
