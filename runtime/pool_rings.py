"""The states of a slab of streams as ring buffers, for models with a fast form.

Every ring has one slot more than its state has rows: a step writes its new row into the slot that it does not read. So
a call that failed, at whatever moment, has changed nothing, as long as the count of the samples that were fed, which
says where the oldest row stands, is the same as before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from edgeseq.errors import ModelFileError
from edgeseq.fast_form import FastForm, Read, RingBuffer
from edgeseq.model_file import Description
from edgeseq.runtime.inputs import Array


class RingLayout:
    """Where the rows of streams stand in the arrays of a slab: slot s of stream p is row s · places + p."""

    def __init__(self, d: Description, form: FastForm, n_places: int) -> None:
        """Of slabs with so many places.

        Raises:
            ModelFileError: a row of a product reads several rings, which no form of this version does.
        """
        self.n_places, self.form, self.specs = n_places, form, d.state
        sizes = sorted({ring.size + 1 for buffer in form.buffers for ring in buffer.rings})
        self._sizes = np.array(sizes, np.int64)[:, None]
        self.buffers = [_BufferLayout(buffer, n_places, sizes) for buffer in form.buffers]
        self.carried = [spec for spec in d.state if spec.input in form.states]

    def cursors(self, fed: Array) -> Array:
        """Of every distinct size of rings, the slot that the next row takes: (sizes, n), or (sizes, 1) in lock-step."""
        cursors: Array = (fed[:1] if (fed == fed[0]).all() else fed) % self._sizes
        return cursors


class _BufferLayout:
    """The rings of one buffer. A table holds the slots for every place that the cursor of a ring can have."""

    def __init__(self, buffer: RingBuffer, n_places: int, distinct_sizes: Sequence[int]) -> None:
        self.array, self.rows, self.width = buffer.array, buffer.rows, buffer.width
        self.rings = buffer.rings
        self.sizes = np.array([ring.size + 1 for ring in buffer.rings])
        self.firsts = np.cumsum(self.sizes) - self.sizes
        self.n_rows = int(self.sizes.sum()) * n_places + 1
        self.zeros = self.n_rows - 1  # a row that is zero for ever, for lanes that no stream takes
        self._cursor_of = np.searchsorted(distinct_sizes, self.sizes)
        self._n_places = n_places
        self.reads = [_ReadTable(read, self, n_places) for read in buffer.reads]

    def newest(self, cursors: Array) -> Array:
        """The slots that the step's new rows take, (rings, n) or, in lock-step, (rings, 1)."""
        slots: Array = cursors[self._cursor_of]
        slots += self.firsts[:, None]
        return slots

    def states(self, ring: int, places: Array, fed: Array) -> Array:
        """The rows of a ring's state, from the oldest: (n, rows)."""
        size = int(self.sizes[ring])
        slots = int(self.firsts[ring]) + (fed[:, None] + np.arange(1, size)) % size
        rows: Array = slots * self._n_places + places[:, None]
        return rows

    def cursor_of(self, ring: int) -> int:
        """The number of the ring's size among the distinct ones."""
        return int(self._cursor_of[ring])


class _ReadTable:
    def __init__(self, read: Read, buffer: _BufferLayout, n_places: int) -> None:
        self.slots, self.taps_each = read.slots, read.taps_each
        groups = [read.taps[i : i + read.taps_each] for i in range(0, len(read.taps), read.taps_each)]
        if any(ring != group[0][0] for group in groups for ring, _ in group):
            raise ModelFileError("a row of a product reads several rings; export the model again")
        self._cursor_of = np.array([buffer.cursor_of(group[0][0]) for group in groups], np.int64)
        tables: list[Array] = []
        starts = []
        for group in groups:
            ring = group[0][0]
            size, rows = int(buffer.sizes[ring]), np.array([row for _, row in group])
            starts.append(sum(len(table) for table in tables))
            tables.append(int(buffer.firsts[ring]) + (np.arange(size)[:, None] + 1 + rows) % size)
        self._table = np.concatenate(tables) * n_places
        self._starts = np.array(starts)[:, None]

    def taps(self, cursors: Array) -> Array:
        """Where the taps stand of a stream in the slab's first place, (groups, n or 1, taps_each)."""
        rows = cursors[self._cursor_of]
        rows += self._starts
        taps: Array = self._table.take(rows, axis=0)
        return taps

    def fill(self, slots: Array, lanes: slice | Array, places: Array, cursors: Array) -> None:
        """Write where the taps of streams stand into the ``slots`` (groups, lanes, taps_each) of their lanes."""
        taps = self.taps(cursors)
        for tap in range(self.taps_each):  # one by one, so that the innermost loop is the one over the streams
            slots[:, lanes, tap] = taps[..., tap] + places


class RingSlab:
    """The states of as many streams as a slab has places."""

    def __init__(self, layout: RingLayout) -> None:
        self._layout = layout
        self.arrays = {b.array: np.zeros((b.n_rows, b.width), np.float32) for b in layout.buffers}
        self.bound = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in self.arrays.items()}
        self.rows = {name: whole_rows(array) for name, array in self.arrays.items()}
        self._slots = {name: rows[:-1].reshape(-1, layout.n_places) for name, rows in self.rows.items()}
        self.carried = [np.zeros((layout.n_places, *spec.shape), spec.dtype) for spec in layout.carried]

    def read(self, places: Array, fed: Array) -> list[Array]:
        """The states of the step graph, (n, ...) each, of streams that have been fed so many samples."""
        states: dict[str, Array] = {}
        for buffer in self._layout.buffers:
            rows = self.arrays[buffer.array]
            for i, ring in enumerate(buffer.rings):
                states[ring.state] = np.moveaxis(rows[buffer.states(i, places, fed)], 1, 1 + ring.axis)
        for spec, array in zip(self._layout.carried, self.carried, strict=True):
            states[spec.input] = array[places]
        for spec in self._layout.specs:
            if spec.input == self._layout.form.position:
                states[spec.input] = fed.reshape(-1, *(1 for _ in spec.shape)).astype(spec.dtype)
        return [np.ascontiguousarray(states[spec.input]) for spec in self._layout.specs]

    def write(self, places: Array, fed: Array, states: Sequence[Array]) -> None:
        """Take over the states of the step graph."""
        by_name = {spec.input: state for spec, state in zip(self._layout.specs, states, strict=True)}
        for buffer in self._layout.buffers:
            rows = self.arrays[buffer.array]
            for i, ring in enumerate(buffer.rings):
                rows[buffer.states(i, places, fed)] = np.moveaxis(by_name[ring.state], 1 + ring.axis, 1)
        self.carry(places, [by_name[spec.input] for spec in self._layout.carried])

    def keep(self, buffer: _BufferLayout, places: Array, cursors: Array, new: Array) -> None:
        """Put the new rows of a buffer's rings, (rings, n), into the slots that only the next step reads."""
        slots, first = buffer.newest(cursors), int(places[0])
        if slots.shape[1] == 1 and int(places[-1]) - first == len(places) - 1:  # side by side: several times as fast
            self._slots[buffer.array][slots[:, 0], first : first + len(places)] = new
        else:
            self.rows[buffer.array].put(slots * self._layout.n_places + places, new)

    def carry(self, places: Array, states: Sequence[Array]) -> None:
        """Take over those states that stand in no ring."""
        for array, state in zip(self.carried, states, strict=True):
            array[places] = state

    @property
    def n_bytes(self) -> int:
        """The memory that it takes."""
        return sum(array.nbytes for array in (*self.arrays.values(), *self.carried))


def whole_rows(array: Array) -> Array:
    """A view (..., width) -> (...) whose elements are whole rows: numpy moves them several times faster."""
    rows: Array = array.view(np.dtype((np.void, array.itemsize * array.shape[-1])))[..., 0]
    return rows


def aligned(shape: Sequence[int], dtype: Any) -> Array:
    """Zeros that begin at a multiple of 64 bytes, so that a vectorised loop over them always begins alike."""
    n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(n_bytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    array: Array = raw[start : start + n_bytes].view(dtype).reshape(shape)
    return array
