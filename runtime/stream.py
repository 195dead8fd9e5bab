"""One sensor's stream: its state, and the law that its outputs equal the offline model's.

Each call of the graph reads the state from one set of buffers and writes its successor into another, and only a call
that succeeded swaps them: an error, at whatever moment, leaves the stream as it was. A stream belongs to one thread at
a time; different streams of a model may run in different threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from time import perf_counter_ns
from typing import Any

import numpy as np
import onnxruntime as ort

from edgeseq.errors import InputError, StreamEndedError
from edgeseq.model_file import NEVER, Description
from edgeseq.runtime.due import OutputRows, joined
from edgeseq.runtime.fast_step import FastStep, Rings
from edgeseq.runtime.inputs import Array, InputCheck, by_port
from edgeseq.runtime.latency import Latency
from edgeseq.runtime.snapshot import check_graph, check_layout, pack, unpack

# A longer chunk is cut, so that the memory of one call stays bounded: 512 samples of 64 filters are 128 KiB a layer.
_LONGEST_CALL = 512
# A stream moves its state into rings after so many steps in a row: the move costs about as much as they gain.
_STEPS_BEFORE_RINGS = 4


class Stream:
    """Made by ``Model.stream``. ``step`` takes one sample, ``push`` a chunk; they may be mixed at any moment.

    A model of several inputs takes mappings from their names to arrays, and one of several outputs returns them.

    Example:
        >>> from edgeseq import runtime as rt
        >>> model = rt.load("tests/data/tiny.stream.onnx")
        >>> a, b = model.stream("a"), model.stream("b")
        >>> x = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
        >>> steps = np.stack([a.step(sample) for sample in x])
        >>> bool(np.allclose(steps, b.push(x), atol=1e-6))
        True
        >>> a.flush().shape  # nothing is owed: lookahead is 0
        (0, 2)
    """

    def __init__(
        self,
        description: Description,
        ort_session: Any,
        checks: Mapping[str, InputCheck],
        name: str,
        *,
        fast: FastStep | None = None,
        budget_us: float | None = None,
    ) -> None:
        self.name = name
        self._latency, self._push_latency = Latency(budget_us), Latency(budget_us)
        self._description = d = description
        self._ort_session = ort_session
        self._checks = checks
        self._outputs = [OutputRows(port, d.granule) for port in d.outputs]
        self._position = 0
        self._ended = False
        # Samples wait until they are as many as the graph takes; the phase's zeros wait first.
        self._waiting = self._zeros(d.phase)
        self._frame = [x[None] for x in self._zeros(d.granule)]
        self._fed = 0
        self._end = np.full(1, NEVER, np.int64)
        self._results = [
            np.zeros((1, output.rows_a_call, *output.port.shape), output.port.dtype) for output in self._outputs
        ]
        self._now = [np.full((1, *s.shape), s.initial, s.dtype) for s in d.state]
        self._next = [np.empty_like(array) for array in self._now]
        # One binding reads _now and writes _next, the other the reverse; they take turns.
        self._call, self._call_after = self._bind(self._now, self._next), self._bind(self._next, self._now)
        # Single steps run on rings, where the model has a fast form; _now is out of date while they hold the state.
        self._fast = fast
        self._rings: Rings | None = None
        self._in_rings = False
        self._steps_in_a_row = 0
        self._plain = d.granule == 1 and len(d.inputs) == 1 and len(self._outputs) == 1 and self._outputs[0].is_plain

    @property
    def position(self) -> int:
        """Samples taken since the start or the last ``reset``."""
        return self._position

    @property
    def latency(self) -> Latency:
        """How long calls of ``step`` took, with all checks; those that raised are left out. No part of the state."""
        return self._latency

    @property
    def push_latency(self) -> Latency:
        """How long calls of ``push`` took, of any length; those that raised are left out. No part of the state."""
        return self._push_latency

    def step(self, sample: Any) -> Any:
        """Take one sample and return the prediction that is due, or None while none is.

        Shapes: (C,) -> (K,); a token is a scalar. (n, K) for a model that gives several rows at once.

        Raises:
            ShapeError, DTypeError, NonFiniteError: the sample is not what the model takes; the state is unchanged.
            StreamEndedError: ``flush`` was called.
        """
        start = perf_counter_ns()
        prediction = self._step(sample)
        self._latency.record(perf_counter_ns() - start)
        return prediction

    def _step(self, sample: Any) -> Any:
        if self._ended:
            raise self._ended_error()
        if self._plain:
            self._frame[0][0, 0] = next(iter(self._checks.values())).sample(sample, self)
        else:
            samples = [self._checks[name].sample(x, where) for name, x, where in by_port(self._checks, sample, self)]
            rows = [np.concatenate([w, x[None]]) for w, x in zip(self._waiting, samples, strict=True)]
            if len(rows[0]) < self._description.granule:
                self._waiting, self._position = rows, self._position + 1
                return self._returned([None] * len(self._outputs))
            for frame, x in zip(self._frame, rows, strict=True):
                frame[0] = x
        try:
            if (rings := self._in_use()) is not None:
                rings.step(self._fed)
            else:
                self._ort_session.run_with_iobinding(self._call)
        except Exception as error:
            raise self._rejected(error) from error
        fed = self._fed
        self._advance(self._description.granule, 1, self._waiting if self._plain else self._zeros(0))
        if self._plain:
            prediction: Array = self._results[0][0, 0].copy()
            return prediction
        due = [output.due(y[0].copy(), fed) for output, y in zip(self._outputs, self._results, strict=True)]
        one = [output.rows_a_call == 1 for output in self._outputs]
        return self._returned(
            [None if len(y) == 0 else y[0] if single else y for y, single in zip(due, one, strict=True)]
        )

    def push(self, chunk: Any) -> Any:
        """Take consecutive samples and return the predictions that are due.

        Shapes: (T, C) -> (T', K) with T >= 0; tokens (T,). T' is T for a model without lookahead and strides.

        Raises:
            ShapeError, DTypeError, NonFiniteError: the chunk is not what the model takes; the state is unchanged.
            StreamEndedError: ``flush`` was called.
        """
        start = perf_counter_ns()
        predictions = self._push(chunk)
        self._push_latency.record(perf_counter_ns() - start)
        return predictions

    def _push(self, chunk: Any) -> Any:
        if self._ended:
            raise self._ended_error()
        chunks = [self._checks[name].chunk(x, where) for name, x, where in by_port(self._checks, chunk, self)]
        n = len(chunks[0])
        if any(len(each) != n for each in chunks):
            lengths = dict(zip(self._checks, map(len, chunks), strict=True))
            raise InputError(f"{self}: expected as many samples of each input, got {lengths}; cut them alike")
        rows = [np.concatenate(pair) if len(pair[0]) else pair[1] for pair in zip(self._waiting, chunks, strict=True)]
        whole = len(rows[0]) // self._description.granule * self._description.granule
        outputs, state = self._run([x[:whole] for x in rows])
        fed, rest = self._fed, [x[whole:].copy() for x in rows]
        if whole:
            for buffer, value in zip(self._next, state, strict=True):
                buffer[...] = value
            self._advance(whole, n, rest)
        else:
            self._waiting, self._position = rest, self._position + n
        return self._returned([output.due(y, fed) for output, y in zip(self._outputs, outputs, strict=True)])

    def flush(self) -> Any:
        """End the sequence and return the predictions that lookahead still owes, (T', K); none for a causal model.

        Behind a pool over time, the last of them is the offline model's output. The stream takes no more samples until
        ``reset``. A second call returns nothing.
        """
        d, n, fed = self._description, self._position, self._fed
        if self._ended or n == 0:
            self._ended = True
            return self._returned([output.nothing() for output in self._outputs])
        last = max(output.fed_for(n) for output in self._outputs)
        more = max(0, -(-(last - fed) // d.granule)) * d.granule
        rows = self._zeros(more)
        for x, waiting in zip(rows, self._waiting, strict=True):
            x[: len(waiting)] = waiting[:more]
        self._end[:] = n
        try:
            outputs, _ = self._run(rows)
        finally:
            self._end[:] = NEVER
        due = [output.due(y, fed, n) for output, y in zip(self._outputs, outputs, strict=True)]
        self._ended = True
        return self._returned(due)

    def reset(self) -> None:
        """Go back to the state of a new stream. Latencies stay."""
        for buffer, spec in zip(self._next, self._description.state, strict=True):
            buffer.fill(spec.initial)
        waiting = self._zeros(self._description.phase)
        # Nothing is called from here on, so an interrupt comes before all of it or after.
        self._now, self._next = self._next, self._now
        self._call, self._call_after = self._call_after, self._call
        self._waiting = waiting
        self._fed = self._position = self._steps_in_a_row = 0
        self._in_rings = self._ended = False

    def snapshot(self) -> bytes:
        """The stream's state as bytes; ``Model.restore`` continues from it bitwise. Equal states give equal bytes."""
        d = self._description
        if self._in_rings and self._rings is not None:  # they go on holding the state: the next step need not load it
            self._rings.store(self._now, self._fed)
        self._steps_in_a_row = _STEPS_BEFORE_RINGS  # as a restored one: both go on in the same form, so bitwise alike
        header = {"graph_sha256": d.graph_sha256, "position": self._position, "fed": self._fed, "ended": self._ended}
        waiting = zip((f"waiting {port.name}" for port in d.inputs), self._waiting, strict=True)
        return pack(header, [*waiting, *zip((s.input for s in d.state), self._now, strict=True)])

    def _restore(self, data: bytes | bytearray | memoryview) -> None:
        """Take over the state in a snapshot, of a stream that nobody has used.

        Raises:
            SnapshotError: it is truncated, damaged, newer, or of another model.
        """
        d = self._description
        header, arrays = unpack(data)
        check_graph(header, d)
        check_layout(header, arrays, d)
        for array, spec in zip(self._now, d.state, strict=True):
            array[...] = arrays[spec.input]
        self._waiting = [arrays[f"waiting {port.name}"] for port in d.inputs]
        self._position, self._fed, self._ended = header["position"], header["fed"], header["ended"]
        self._in_rings, self._steps_in_a_row = False, _STEPS_BEFORE_RINGS

    def _returned(self, values: list[Any]) -> Any:
        if len(values) == 1:
            return values[0]
        return dict(zip((output.port.name for output in self._outputs), values, strict=True))

    def _in_use(self) -> Rings | None:
        """The rings, if this step is to run on them."""
        fast = self._fast
        if fast is None or self._fed < fast.form.start:
            return None
        if not self._in_rings and self._steps_in_a_row < _STEPS_BEFORE_RINGS:
            self._steps_in_a_row += 1
            return None
        if self._rings is None:
            samples, results = ([array[:, 0] for array in arrays] for arrays in (self._frame, self._results))
            self._rings = Rings(fast, samples, results)
        if not self._in_rings:
            self._rings.load(self._now, self._fed)
            self._in_rings = True
        return self._rings

    def _states(self) -> list[Array]:
        """The states of the step graph, brought up to date; the next steps run on it, too."""
        self._steps_in_a_row = 0
        if self._in_rings and self._rings is not None:
            self._rings.store(self._now, self._fed)
            self._in_rings = False
        return self._now

    def _run(self, rows: list[Array]) -> tuple[list[Array], list[Array]]:
        """All outputs' rows and the last state, in calls that do not reach across a cut."""
        d, state = self._description, self._states()
        names = [*(port.name for port in d.outputs), *(s.output for s in d.state)]
        given: list[list[Array]] = [[] for _ in d.outputs]
        total = len(rows[0])
        longest = max(1, _LONGEST_CALL // d.granule) * d.granule
        cuts = {cut - self._fed for cut in d.cuts if 0 < cut - self._fed < total}
        places = sorted({*range(0, total, longest), *cuts, total})  # ONNX Runtime is wrong on empty input: none is made
        for start, stop in pairwise(places):
            feeds = dict(zip((s.input for s in d.state), state, strict=True))
            feeds |= {port.name: x[None, start:stop] for port, x in zip(d.inputs, rows, strict=True)}
            if d.end is not None:
                feeds[d.end] = self._end
            try:
                results = self._ort_session.run(names, feeds)
            except Exception as error:
                raise self._rejected(error) from error
            for rows_of, y in zip(given, results, strict=False):
                rows_of.append(y[0])
            state = results[len(given) :]
        return [joined(rows_of, output) for rows_of, output in zip(given, self._outputs, strict=True)], state

    def _zeros(self, n_samples: int) -> list[Array]:
        """So many samples of zeros, for each input."""
        return [np.zeros((n_samples, *port.shape), port.dtype) for port in self._description.inputs]

    def _advance(self, n_fed: int, n_samples: int, waiting: list[Array]) -> None:
        """Let what was written be what is read."""
        self._now, self._next, self._call, self._call_after, self._fed, self._position, self._waiting = (
            *(self._next, self._now, self._call_after, self._call),
            *(self._fed + n_fed, self._position + n_samples, waiting),
        )

    def _bind(self, read: list[Array], write: list[Array]) -> Any:
        binding = self._ort_session.io_binding()
        d = self._description
        given = [(port.name, frame) for port, frame in zip(d.inputs, self._frame, strict=True)]
        given += [(d.end, self._end)] if d.end is not None else []
        for name, array in (*given, *zip((s.input for s in d.state), read, strict=True)):
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        taken = zip((port.name for port in d.outputs), self._results, strict=True)
        for name, array in (*taken, *zip((s.output for s in d.state), write, strict=True)):
            binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))
        return binding

    def _ended_error(self) -> StreamEndedError:
        return StreamEndedError(f"{self}: the sequence was ended by flush(); call reset() to start a new one")

    def _rejected(self, error: Exception) -> InputError:
        return InputError(f"{self}: ONNX Runtime rejected the input: {str(error).splitlines()[0]}")

    def __str__(self) -> str:
        return f"stream {self.name!r}, sample {self._position}"

    def __repr__(self) -> str:
        return f"Stream({self.name!r}, position={self._position})"
