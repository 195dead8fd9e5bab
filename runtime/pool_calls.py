"""The calls that a pool makes: of the fast form, on the rings of a slab, and of the step graph, on states and chunks.

Both take any number of streams up to a rung's of their ladder; lanes that no stream takes hold zeros. Neither changes
what a stream's next call reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from edgeseq.fast_form import FastForm
from edgeseq.model_file import NEVER, Description
from edgeseq.runtime.fast_step import fast_graph, tensors
from edgeseq.runtime.inputs import Array
from edgeseq.runtime.lanes import Ladder, Rung, agreeing
from edgeseq.runtime.model_source import Source, session
from edgeseq.runtime.pool_rings import RingLayout, RingSlab, aligned, whole_rows

# Measured: below 16 lanes a call costs nearly what one of 16 does. All are multiples of the widest vector register, so
# that a loop over all lanes has no scalar rest.
_SIZES = (16, 64, 256)
_FAST_SIZES = (*_SIZES, 512)  # the last where slabs have so many places: a small model gains a sixth
_LONGEST_SHARED = 4  # granules: a longer chunk keeps the processor busy by itself, and is called alone
Part = tuple[RingSlab, slice, Array]
"""Streams of one slab: which of a call's streams they are, and their places."""
_SPREAD = 2.0  # of the random numbers of a probe: both sides of every activation, and what saturates it


class FastCalls:
    """One step of streams of a slab."""

    def __init__(self, source: Source, form: FastForm, n_places: int) -> None:
        """Open the fast form for any number of streams, and find the lane counts that agree.

        Raises:
            ModelFileError: it cannot be opened, or cannot serve a pool.
        """
        self._d, self.form = source.description, form
        self._ort_session = session(fast_graph(source.data, self._d, form, None), source.execution)
        self.layout = RingLayout(self._d, form, n_places)
        self._buffers: dict[tuple[int, int, type[_Buffers]], _Buffers] = {}
        self.ladder = agreeing([size for size in _FAST_SIZES if size <= max(n_places, _SIZES[-1])], self._probe)

    def run(
        self, shard: int, rung: Rung, parts: Sequence[Part], fed: Array, samples: Sequence[Array]
    ) -> tuple[list[Array], list[Array]]:
        """The outputs, until the next call of this shard, and the next of those states that stand in no ring.

        ``fed`` is how many samples each stream was fed; of one ``shard``, one call runs at a time.
        """
        kind = _Buffers if len(parts) == 1 else _CollectedBuffers
        buffers = self._buffers.get((shard, rung.size, kind))
        if buffers is None:
            buffers = self._buffers[shard, rung.size, kind] = kind(self._ort_session, self._d, self.form, rung.size)
        lanes = rung.places(len(fed))
        cursors = buffers.prepare(self.layout, parts, lanes, fed, samples)
        self._ort_session.run_with_iobinding(buffers.binding)
        buffers.keep_rows(self.layout, parts, lanes, cursors)
        return [y[lanes] for y in buffers.outputs], [state[lanes].copy() for state in buffers.carried_next]

    def _probe(self, which: Array) -> list[Array]:
        """Everything that a step of two random streams gives, the second of them loud."""
        d, rng = self._d, np.random.default_rng(0)
        size = len(which)
        layout = RingLayout(d, self.form, 2)
        slab, both = RingSlab(layout), np.arange(2)
        fed = np.full(2, self.form.start + 7)
        slab.write(both, fed, _random_states(rng, d))
        samples = [_random(rng, port.shape, port.dtype) for port in d.inputs]
        buffers = _Buffers(self._ort_session, d, self.form, size)
        buffers.prepare(layout, [(slab, slice(size), which)], slice(size), fed[which], [x[which] for x in samples])
        self._ort_session.run_with_iobinding(buffers.binding)
        rows = [np.moveaxis(rows, 1, 0) for rows in buffers.rows]
        return [*buffers.outputs, *buffers.carried_next, *rows]


class _Buffers:
    """What calls of one lane count read and write, bound once; the rings are those of the slab that a call is for."""

    def __init__(self, ort_session: Any, d: Description, form: FastForm, size: int) -> None:
        inputs, outputs = tensors(d, form, size)
        rings = {buffer.array for buffer in form.buffers}
        arrays = {name: aligned(shape, dtype) for name, dtype, shape in (*inputs, *outputs) if name not in rings}
        self.binding = ort_session.io_binding()
        self._bound: RingSlab | None = None
        for name, _, _ in inputs:
            if name not in rings:
                self.binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(arrays[name]))
        for name, _, _ in outputs:
            self.binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(arrays[name]))
        self.size = size
        self.samples = [arrays[port.name] for port in d.inputs]
        self.outputs = [arrays[port.name] for port in d.outputs]
        next_of = {spec.input: spec.output for spec in d.state}
        names = [spec.input for spec in d.state if spec.input in form.states]
        self.carried = [arrays[name] for name in names]
        self.carried_next = [arrays[next_of[name]] for name in names]
        self.slots = [
            [arrays[r.slots].reshape(len(r.taps) // r.taps_each, size, r.taps_each) for r in buffer.reads]
            for buffer in form.buffers
        ]
        self.rows = [whole_rows(arrays[b.rows].reshape(len(b.rings), size, b.width)) for b in form.buffers]

    def prepare(
        self, layout: RingLayout, parts: Sequence[Part], lanes: slice | Array, fed: Array, samples: Sequence[Array]
    ) -> Array:
        """Fill the lanes; returns the cursors of the rings."""
        partly = len(fed) < self.size
        cursors = layout.cursors(fed)
        self._point_at_rows(layout, parts, lanes, cursors, partly=partly)
        given = list(samples)
        if self.carried:
            states = ([array[places] for array in slab.carried] for slab, _, places in parts)
            given += [np.concatenate(arrays) for arrays in zip(*states, strict=True)]
        for array, values in zip((*self.samples, *self.carried), given, strict=True):
            if partly:
                array.fill(0)
            array[lanes] = values
        return cursors

    def _point_at_rows(
        self,
        layout: RingLayout,
        parts: Sequence[Part],
        lanes: slice | Array,
        cursors: Array,
        *,
        partly: bool,
    ) -> None:
        """Let the call read the rings where they stand."""
        ((slab, _, places),) = parts
        if slab is not self._bound:
            self._bound = None
            for name, array in slab.bound.items():
                self.binding.bind_ortvalue_input(name, array)
            self._bound = slab
        for buffer, reads in zip(layout.buffers, self.slots, strict=True):
            for table, slots in zip(buffer.reads, reads, strict=True):
                if partly:
                    slots.fill(buffer.zeros)
                table.fill(slots, lanes, places, cursors)

    def keep_rows(self, layout: RingLayout, parts: Sequence[Part], lanes: slice | Array, cursors: Array) -> None:
        """Put the new rows into the slots that only the next step reads."""
        for buffer, rows in zip(layout.buffers, self.rows, strict=True):
            new = rows[:, lanes]
            for slab, part, places in parts:
                here = cursors if cursors.shape[1] == 1 else cursors[:, part]
                slab.keep(buffer, places, here, new[:, part])


class _CollectedBuffers(_Buffers):
    """The same for streams of several slabs: a call reads copies of the rows that it needs.

    It spares a call for each slab, where a call is for few streams of many.
    """

    def __init__(self, ort_session: Any, d: Description, form: FastForm, size: int) -> None:
        super().__init__(ort_session, d, form, size)
        self._copies = []  # of each read of each buffer, (groups, lanes, taps_each, width)
        for buffer, reads in zip(form.buffers, self.slots, strict=True):
            copied = aligned((sum(slots.size for slots in reads), buffer.width), np.float32)
            self.binding.bind_ortvalue_input(buffer.array, ort.OrtValue.ortvalue_from_numpy(copied))
            start, copies = 0, []
            for slots in reads:
                slots[...] = np.arange(start, start + slots.size).reshape(slots.shape)
                copies.append(copied[start : start + slots.size].reshape(*slots.shape, buffer.width))
                start += slots.size
            self._copies.append(copies)

    def _point_at_rows(
        self,
        layout: RingLayout,
        parts: Sequence[Part],
        lanes: slice | Array,
        cursors: Array,
        *,
        partly: bool,
    ) -> None:
        """Copy the rows that the call reads."""
        numbers = np.arange(self.size)[lanes]
        for buffer, all_copies in zip(layout.buffers, self._copies, strict=True):
            for table, copies in zip(buffer.reads, all_copies, strict=True):
                if partly:
                    copies.fill(0)
                taps, rows = table.taps(cursors), whole_rows(copies)
                for slab, part, places in parts:
                    here = taps if taps.shape[1] == 1 else taps[:, part]
                    rows[:, numbers[part]] = slab.rows[buffer.array][here + places[:, None]]


class StepGraphCalls:
    """Calls of the step graph on chunks of one length."""

    def __init__(self, source: Source) -> None:
        self._d, self._ort_session = source.description, source.ort_session
        self._names = [*(port.name for port in self._d.outputs), *(spec.output for spec in self._d.state)]
        self._ladders: dict[int, Ladder] = {}

    def ladder(self, n_samples: int) -> Ladder:
        """The lane counts for chunks of this length, probed when such a chunk first comes."""
        if n_samples not in self._ladders:
            shared = n_samples <= _LONGEST_SHARED * self._d.granule
            self._ladders[n_samples] = (
                agreeing(_SIZES, lambda which: self._probe(which, n_samples)) if shared else Ladder((Rung(1),))
            )
        return self._ladders[n_samples]

    def run(
        self, rung: Rung, states: Sequence[Array], chunks: Sequence[Array], end: Array
    ) -> tuple[list[Array], list[Array]]:
        """The outputs and the next states, (n, ...) each, of n streams: chunks are (n, T, C), ends (n,)."""
        d, n = self._d, len(end)
        lanes = rung.places(n)
        named = [(spec.input, state, spec.initial) for spec, state in zip(d.state, states, strict=True)]
        named += [(port.name, chunk, 0) for port, chunk in zip(d.inputs, chunks, strict=True)]
        named += [] if d.end is None else [(d.end, end, NEVER)]
        if n == rung.size:
            feeds = {name: np.ascontiguousarray(array) for name, array, _ in named}
        else:
            feeds = {}
            for name, array, unused in named:
                feeds[name] = np.full((rung.size, *array.shape[1:]), unused, array.dtype)
                feeds[name][lanes] = array
        results = self._ort_session.run(self._names, feeds)
        kept = [y if n == rung.size else y[lanes] for y in results]
        return kept[: len(d.outputs)], kept[len(d.outputs) :]

    def _probe(self, which: Array, n_samples: int) -> list[Array]:
        d, rng = self._d, np.random.default_rng(0)
        states = [state[which] for state in _random_states(rng, d)]
        chunks = [_random(rng, (n_samples, *port.shape), port.dtype)[which] for port in d.inputs]
        outputs, states = self.run(Rung(len(which)), states, chunks, np.full(len(which), NEVER, np.int64))
        return [*outputs, *states]


def _random_states(rng: np.random.Generator, d: Description) -> list[Array]:
    """Of two streams. What counts is whole, and what counts samples is past all edges."""
    return [
        _random(rng, spec.shape, spec.dtype)
        if spec.dtype.startswith("float")
        else np.full((2, *spec.shape), max(1000, spec.initial), spec.dtype)
        for spec in d.state
    ]


def _random(rng: np.random.Generator, shape: Sequence[int], dtype: str) -> Array:
    """Of two streams, the second of them loud; tokens are 0, which every vocabulary has."""
    values = rng.normal(0, _SPREAD, (2, *shape)) * np.array([1, 50]).reshape(2, *(1 for _ in shape))
    return values.astype(dtype) if np.dtype(dtype).kind == "f" else np.zeros((2, *shape), dtype)
