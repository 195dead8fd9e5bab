"""The fast form of a model: one sample of one stream, on ring buffers.

A step reads the rows that it needs by their slots, which come from a table, and gives new rows, each of which takes the
place of its ring's oldest one. They are written into the rings when the next step begins, so a step that failed, at
whatever moment, has changed nothing. Of steps that are all to count or none, the rows that they replace are kept until
then. Between rings and the states of the step graph, which are the canonical layout, ``Rings`` converts without loss.
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
# A chunk runs on the step graph where that is faster. There it costs about as much as 2.7 steps on rings, and one more
# for each so many bytes of state, which it copies: docs/runtime.md has the figures. Nothing is measured at load, so a
# restored stream takes the same path, to the same bits.
_STEPS_OF_A_CHUNK, _STATE_BYTES_OF_A_STEP = 2, 2**19
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
        self.longest_by_steps = _STEPS_OF_A_CHUNK + d.state_bytes // _STATE_BYTES_OF_A_STEP
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

    def newest(self, buffer: int, n_steps: int) -> Array:
        """Where the rows that the next step makes for this buffer are to stand."""
        return self._newest[buffer].after(n_steps)


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
        self._samples, self._results = samples, results
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
        self._written = [
            (i, _rows(self._arrays[b.array]), _rows(self._arrays[b.rows])) for i, b in enumerate(fast.form.buffers)
        ]
        specs = {spec.input: spec for spec in fast.description.state}
        self._carried = [(self._arrays[name], self._arrays[specs[name].output]) for name in fast.form.states]
        numbers = {spec.input: i for i, spec in enumerate(fast.description.state)}
        self._carried_numbers = [numbers[name] for name in fast.form.states]
        self._position_number = None if fast.form.position is None else numbers[fast.form.position]
        self._parts = [  # of each ring: its state's number and axis, and its slots
            (numbers[ring.state], ring.axis, self._arrays[b.array][ring.first : ring.first + ring.size])
            for b in fast.form.buffers
            for ring in b.rings
        ]
        self._loaded_at = self._kept_until = 0
        # (fed, what stood where the step before wrote), of steps that may not count.
        self._replaced: list[tuple[int, list[tuple[Array, Any, Array]]]] = []
        self._binding = fast.ort_session.io_binding()
        for name, _, _ in fast.inputs:
            self._binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(self._arrays[name]))
        for name, _, _ in fast.outputs:
            self._binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(self._arrays[name]))

    def step(self, fed: int) -> None:
        """Run one step, of a stream whose states have seen ``fed`` samples."""
        if self._replaced:
            self._keep(fed)
        elif fed != self._kept_until:
            self._write(fed)
        self._run(fed)

    def steps(self, samples: Sequence[Array], fed: int) -> list[Array]:
        """Run a step for each sample, of a stream that is to count all of them or none: its next ``fed`` says which.

        Shapes: (T, C) of each input -> (T, K) of each output, T >= 1.
        """
        self._keep(fed)
        n_steps = len(samples[0])
        outputs = [np.empty((n_steps, *result.shape[1:]), result.dtype) for result in self._results]
        for i in range(n_steps):
            for frame, x in zip(self._samples, samples, strict=True):
                frame[0] = x[i]
            if i:
                self._replaced.append((fed + i, self._about_to_go(fed + i)))
                self._write(fed + i)
            self._run(fed + i)
            for output, result in zip(outputs, self._results, strict=True):
                output[i] = result[0]
        return outputs

    def _run(self, fed: int) -> None:
        self._all_slots[...] = self._fast.slots(fed - self._loaded_at)
        self._fast.ort_session.run_with_iobinding(self._binding)

    def _keep(self, fed: int) -> None:
        """Let the state be that after ``fed`` samples: take back steps that do not count, or keep the last one."""
        while self._replaced:
            after, before = self._replaced[-1]
            if after > fed:
                for array, slots, rows in before:
                    array[slots] = rows
                self._kept_until = after - 1
            self._replaced.pop()
        if fed != self._kept_until:
            self._write(fed)

    def _write(self, fed: int) -> None:
        """Let what the last step gave be part of the state. Doing it twice is doing it once."""
        n_steps = fed - 1 - self._loaded_at
        for buffer, ring, rows in self._written:
            ring[self._fast.newest(buffer, n_steps)] = rows
        for now, following in self._carried:
            now[...] = following
        self._kept_until = fed

    def _about_to_go(self, fed: int) -> list[tuple[Array, Any, Array]]:
        """(array, slots, rows) of what ``_write`` replaces."""
        n_steps, replaced = fed - 1 - self._loaded_at, []
        for buffer, ring, _ in self._written:
            slots: Any = self._fast.newest(buffer, n_steps)
            replaced.append((ring, slots, ring[slots]))
        return replaced + [(now, ..., now.copy()) for now, _ in self._carried]

    def load(self, states: Sequence[Array], fed: int) -> None:
        """Take over the states of the step graph, (1, ...) each."""
        self._replaced.clear()
        for of, axis, part in self._parts:
            part[...] = states[of][0] if axis == 0 else states[of][0].T
        for of, (now, _) in zip(self._carried_numbers, self._carried, strict=True):
            now[...] = states[of]
        self._loaded_at = self._kept_until = fed

    def store(self, states: Sequence[Array], fed: int) -> None:
        """Write the states of the step graph, into arrays of their shapes."""
        self._keep(fed)
        for of, axis, part in self._parts:
            oldest_first = states[of][0] if axis == 0 else states[of][0].T
            turned = (fed - self._loaded_at) % len(part)  # where the oldest row stands
            oldest_first[: len(part) - turned] = part[turned:]
            if turned:
                oldest_first[-turned:] = part[:turned]
        for of, (now, _) in zip(self._carried_numbers, self._carried, strict=True):
            states[of][...] = now
        if self._position_number is not None:
            states[self._position_number][...] = fed


def _rows(array: Array) -> Array:
    """A view (n, width) -> (n,) whose elements are whole rows: numpy moves them several times faster."""
    return array.view(np.dtype((np.void, array.itemsize * array.shape[1])))[:, 0]
