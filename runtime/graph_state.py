"""One stream's state in the step graph: two sets of arrays, of which a call reads one and writes the other.

Which set holds the state is the stream's to say, as ``turn``, 0 or 1: a call that failed, at whatever moment, has only
written into the other set.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import onnxruntime as ort

from edgeseq.model_file import NEVER, Description
from edgeseq.runtime.due import OutputRows, joined
from edgeseq.runtime.inputs import Array
from edgeseq.runtime.model_source import is_cpu

# A longer chunk is cut, so that the memory of one call stays bounded: 512 samples of 64 filters are 128 KiB a layer.
LONGEST_CALL = 512


class GraphState:
    """The arrays of one stream, bound to the session of its model.

    A step reads ``frame``, one array (1, granule, C) for each input, and writes ``results``, (1, rows, K) each.
    """

    def __init__(self, description: Description, ort_session: Any, outputs: Sequence[OutputRows]) -> None:
        self._d = d = description
        self._ort_session = ort_session
        self._outputs = outputs
        self.frame = [np.zeros((1, d.granule, *port.shape), port.dtype) for port in d.inputs]
        self.results = [np.zeros((1, o.rows_a_call, *o.port.shape), o.port.dtype) for o in outputs]
        self.end = np.full(1, NEVER, np.int64)  # how many samples the sequence has, once that is known
        first = [np.full((1, *s.shape), s.initial, s.dtype) for s in d.state]
        self.sets = (first, [np.empty_like(array) for array in first])
        self._values = [_values(arrays) for arrays in self.sets]
        self._frame_values, self._result_values = _values(self.frame), _values(self.results)
        self._in_place = is_cpu(ort_session)
        self._steps = [self._bound(turn) for turn in (0, 1)] if self._in_place else []
        self._chunks: list[Any] = [None, None]  # a stream that takes no chunks needs none

    def step(self, turn: int) -> None:
        """Run the graph on ``frame``."""
        if self._in_place:
            self._ort_session.run_with_iobinding(self._steps[turn])
        else:
            given = self._by_run(turn, [x[0] for x in self.frame], [0, self._d.granule])
            for result, y in zip(self.results, given, strict=True):
                result[0] = y

    def chunk(self, turn: int, rows: Sequence[Array], fed: int) -> list[Array]:
        """All outputs' rows, of a chunk for each input, in calls that do not reach across a cut.

        Shapes: (T, C) -> (T', K) with T >= 1, a multiple of the granule.
        """
        d, total = self._d, len(rows[0])
        longest = max(1, LONGEST_CALL // d.granule) * d.granule
        cuts = {cut - fed for cut in d.cuts if 0 < cut - fed < total}
        if total <= longest and not cuts and self._in_place:
            return self._one_call(turn, rows)
        return self._by_run(turn, rows, sorted({*range(0, total, longest), *cuts, total}))

    def _by_run(self, turn: int, rows: Sequence[Array], places: Sequence[int]) -> list[Array]:
        """In calls from place to place, which give arrays of their own: the state is still what it was."""
        d, state = self._d, self.sets[turn]
        names = [*(port.name for port in d.outputs), *(s.output for s in d.state)]
        given: list[list[Array]] = [[] for _ in d.outputs]
        for start, stop in pairwise(places):
            feeds = dict(zip((s.input for s in d.state), state, strict=True))
            feeds |= {port.name: x[None, start:stop] for port, x in zip(d.inputs, rows, strict=True)}
            if d.end is not None:
                feeds[d.end] = self.end
            results = self._ort_session.run(names, feeds)
            for rows_of, y in zip(given, results, strict=False):
                rows_of.append(y[0])
            state = results[len(given) :]
        for buffer, value in zip(self.sets[1 - turn], state, strict=True):
            buffer[...] = value
        return [joined(rows_of, output) for rows_of, output in zip(given, self._outputs, strict=True)]

    def fill(self, turn: int) -> None:
        """Make this set the state of a new stream."""
        for buffer, spec in zip(self.sets[turn], self._d.state, strict=True):
            buffer.fill(spec.initial)

    def _one_call(self, turn: int, rows: Sequence[Array]) -> list[Array]:
        if (call := self._chunks[turn]) is None:
            call = self._chunks[turn] = self._bound(turn)
        n_calls = len(rows[0]) // self._d.granule
        given = [np.empty((1, n_calls * o.rows_a_call, *o.port.shape), o.port.dtype) for o in self._outputs]
        chunks = [np.ascontiguousarray(x[None]) for x in rows]  # a binding does not keep them alive: this name does
        self._bind_ports(call, _values(chunks), _values(given))
        self._ort_session.run_with_iobinding(call)
        self._bind_ports(call, self._frame_values, self._result_values)  # and let go of the chunk
        return [y[0] for y in given]

    def _bound(self, turn: int) -> Any:
        binding = self._ort_session.io_binding()
        d = self._d
        self._bind_ports(binding, self._frame_values, self._result_values)
        if d.end is not None:
            binding.bind_ortvalue_input(d.end, ort.OrtValue.ortvalue_from_numpy(self.end))
        for spec, read, written in zip(d.state, self._values[turn], self._values[1 - turn], strict=True):
            binding.bind_ortvalue_input(spec.input, read)
            binding.bind_ortvalue_output(spec.output, written)
        return binding

    def _bind_ports(self, binding: Any, given: Sequence[Any], taken: Sequence[Any]) -> None:
        for port, value in zip(self._d.inputs, given, strict=True):
            binding.bind_ortvalue_input(port.name, value)
        for port, value in zip(self._d.outputs, taken, strict=True):
            binding.bind_ortvalue_output(port.name, value)


def _values(arrays: Sequence[Array]) -> list[Any]:
    return [ort.OrtValue.ortvalue_from_numpy(array) for array in arrays]
