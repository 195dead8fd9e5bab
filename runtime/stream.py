"""One sensor's stream: its state, and the law that its outputs equal the offline model's.

A call reads the state from one place and writes its successor into another, and only a call that succeeded makes that
the state: an error leaves the stream as it was, to the last bit, and an interrupted call has happened or not. A stream
takes one call at a time and refuses others meanwhile; different streams of a model may run in different threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter_ns
from typing import Any

import numpy as np

from edgeseq.errors import InputError, StreamEndedError
from edgeseq.model_file import NEVER, Description
from edgeseq.runtime.due import OutputRows
from edgeseq.runtime.fast_step import FastStep, Rings
from edgeseq.runtime.graph_state import GraphState
from edgeseq.runtime.guard import Guard
from edgeseq.runtime.inputs import Array, InputCheck, by_port, check_length, rejected
from edgeseq.runtime.latency import Latency
from edgeseq.runtime.snapshot import check_graph, check_layout, pack, unpack


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
        self._guard = Guard()
        self._latency, self._push_latency = Latency(budget_us), Latency(budget_us)
        self._description = d = description
        self._checks = checks
        self._outputs = [OutputRows(port, d.granule) for port in d.outputs]
        self._position = 0
        self._ended = False
        # Samples wait until they are as many as the graph takes; the phase's zeros wait first.
        self._waiting = self._zeros(d.phase)
        self._fed = 0
        self._graph = GraphState(d, ort_session, self._outputs)
        self._turn = 0  # which of its two sets holds the state
        # Where the model has a fast form, steps run on rings; while those hold the state, both sets are out of date.
        self._fast = fast
        self._rings: Rings | None = None
        self._in_rings = False
        # What a step of a plain model needs, at hand.
        self._frame_row = self._graph.frame[0].reshape(-1, *d.inputs[0].shape)[-1:]
        self._result_rows = self._graph.results[0][0]
        self._check_one = next(iter(checks.values())).sample
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
            StreamBusyError: another call is under way; it goes on undisturbed.
        """
        start = perf_counter_ns()
        prediction = self._guard.run(self, self._step, sample)
        self._latency.record(perf_counter_ns() - start)
        return prediction

    def _step(self, sample: Any) -> Any:
        if self._ended:
            raise self._ended_error()
        if self._plain:
            self._frame_row[...] = self._check_one(sample, self)
            self._call_once()
            prediction: Array = self._result_rows[0].copy()
            self._turn, self._fed, self._position = 1 - self._turn, self._fed + 1, self._position + 1
            return prediction
        samples = [self._checks[name].sample(x, where) for name, x, where in by_port(self._checks, sample, self)]
        rows = [np.concatenate([w, x[None]]) for w, x in zip(self._waiting, samples, strict=True)]
        if len(rows[0]) < self._description.granule:
            self._waiting, self._position = rows, self._position + 1
            return self._returned([None] * len(self._outputs))
        for frame, x in zip(self._graph.frame, rows, strict=True):
            frame[0] = x
        self._call_once()
        due = [output.due(y[0].copy(), self._fed) for output, y in zip(self._outputs, self._graph.results, strict=True)]
        one = [output.rows_a_call == 1 for output in self._outputs]
        predictions = [None if len(y) == 0 else y[0] if single else y for y, single in zip(due, one, strict=True)]
        self._advance(self._description.granule, 1, self._zeros(0), in_rings=self._in_rings)
        return self._returned(predictions)

    def _call_once(self) -> None:
        """Run the model on the frame."""
        try:
            if self._fast is not None and self._fed >= self._fast.form.start:
                self._loaded().step(self._fed)
            else:
                self._graph.step(self._turn)
        except Exception as error:
            raise self._rejected(error) from error

    def push(self, chunk: Any) -> Any:
        """Take consecutive samples and return the predictions that are due.

        Shapes: (T, C) -> (T', K) with T >= 0; tokens (T,). T' is T for a model without lookahead and strides.

        Raises:
            ShapeError, DTypeError, NonFiniteError: the chunk is not what the model takes; the state is unchanged.
            StreamEndedError: ``flush`` was called.
            StreamBusyError: another call is under way; it goes on undisturbed.
        """
        start = perf_counter_ns()
        predictions = self._guard.run(self, self._push, chunk)
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
        fed, rest = self._fed, [x[whole:].copy() for x in rows]
        if whole:
            by_steps = self._by_steps(whole)
            outputs = self._run([x[:whole] for x in rows], by_steps=by_steps)
            self._advance(whole, n, rest, in_rings=by_steps)
        else:
            outputs = [output.nothing() for output in self._outputs]
            self._waiting, self._position = rest, self._position + n
        return self._returned([output.due(y, fed) for output, y in zip(self._outputs, outputs, strict=True)])

    def flush(self) -> Any:
        """End the sequence and return the predictions that lookahead still owes, (T', K); none for a causal model.

        Behind a pool over time, the last of them is the offline model's output. The stream takes no more samples until
        ``reset``. A second call returns nothing.

        Raises:
            InputError: the model was streamed by a promise of the length, and so many samples break it; the stream goes
                on as if nothing had been asked.
            StreamBusyError: another call is under way; it goes on undisturbed.
        """
        return self._guard.run(self, self._flush)

    def _flush(self) -> Any:
        d, n, fed = self._description, self._position, self._fed
        if self._ended or n == 0:
            self._ended = True
            return self._returned([output.nothing() for output in self._outputs])
        check_length(d.conditions, n, self)
        last = max(output.fed_for(n) for output in self._outputs)
        more = max(0, -(-(last - fed) // d.granule)) * d.granule
        rows = self._zeros(more)
        for x, waiting in zip(rows, self._waiting, strict=True):
            x[: len(waiting)] = waiting[:more]
        outputs = [output.nothing() for output in self._outputs]
        self._graph.end[:] = n
        try:
            if more:
                outputs = self._run(rows, by_steps=False)
        finally:
            self._graph.end[:] = NEVER
        due = [output.due(y, fed, n) for output, y in zip(self._outputs, outputs, strict=True)]
        self._ended = True
        return self._returned(due)

    def reset(self) -> None:
        """Go back to the state of a new stream. Latencies stay.

        Raises:
            StreamBusyError: another call is under way; it goes on undisturbed.
        """
        self._guard.run(self, self._reset)

    def _reset(self) -> None:
        self._graph.fill(1 - self._turn)
        waiting = self._zeros(self._description.phase)
        # Nothing is called from here on, so an interrupt comes before all of it or after.
        self._turn, self._waiting = 1 - self._turn, waiting
        self._fed = self._position = 0
        self._in_rings = self._ended = False

    def snapshot(self) -> bytes:
        """The stream's state as bytes; ``Model.restore`` continues from it bitwise. Equal states give equal bytes.

        Raises:
            StreamBusyError: another call is under way; it goes on undisturbed.
        """
        return self._guard.run(self, self._snapshot)

    def _snapshot(self) -> bytes:
        d = self._description
        states = self._states()
        header = {"graph_sha256": d.graph_sha256, "position": self._position, "fed": self._fed, "ended": self._ended}
        waiting = zip((f"waiting {port.name}" for port in d.inputs), self._waiting, strict=True)
        return pack(header, [*waiting, *zip((s.input for s in d.state), states, strict=True)])

    def _restore(self, data: bytes | bytearray | memoryview) -> None:
        """Take over the state in a snapshot, of a stream that nobody has used.

        Raises:
            SnapshotError: it is truncated, damaged, newer, or of another model.
        """
        d = self._description
        header, arrays = unpack(data)
        check_graph(header, d)
        check_layout(header, arrays, d)
        for array, spec in zip(self._graph.sets[self._turn], d.state, strict=True):
            array[...] = arrays[spec.input]
        self._waiting = [arrays[f"waiting {port.name}"] for port in d.inputs]
        self._position, self._fed, self._ended = header["position"], header["fed"], header["ended"]
        self._in_rings = False

    def _returned(self, values: list[Any]) -> Any:
        if len(values) == 1:
            return values[0]
        return dict(zip((output.port.name for output in self._outputs), values, strict=True))

    def _by_steps(self, n_samples: int) -> bool:
        """Whether a chunk of so many runs step by step: it depends on nothing that a snapshot does not hold."""
        fast = self._fast
        if fast is None or self._description.granule != 1 or self._fed < fast.form.start:
            return False
        return n_samples <= fast.longest_by_steps

    def _loaded(self) -> Rings:
        """The rings, which hold the state from here on."""
        rings = self._rings
        if rings is None:
            assert self._fast is not None
            samples, results = ([a[:, 0] for a in arrays] for arrays in (self._graph.frame, self._graph.results))
            rings = self._rings = Rings(self._fast, samples, results)
        if not self._in_rings:
            rings.load(self._graph.sets[self._turn], self._fed)
            self._in_rings = True
        return rings

    def _states(self) -> list[Array]:
        """The states of the step graph, brought up to date. Rings go on holding them: nothing has changed."""
        if self._in_rings and self._rings is not None:
            self._rings.store(self._graph.sets[self._turn], self._fed)
        return self._graph.sets[self._turn]

    def _run(self, rows: list[Array], *, by_steps: bool) -> list[Array]:
        """All outputs' rows, of one sample or more. It is ``_advance`` that makes it count."""
        try:
            if by_steps:
                return self._loaded().steps(rows, self._fed)
            self._states()
            return self._graph.chunk(self._turn, rows, self._fed)
        except Exception as error:
            raise self._rejected(error) from error

    def _zeros(self, n_samples: int) -> list[Array]:
        """So many samples of zeros, for each input."""
        return [np.zeros((n_samples, *port.shape), port.dtype) for port in self._description.inputs]

    def _advance(self, n_fed: int, n_samples: int, waiting: list[Array], *, in_rings: bool) -> None:
        """Let what was written be what is read."""
        self._turn, self._fed, self._position, self._waiting, self._in_rings = (
            *(1 - self._turn, self._fed + n_fed, self._position + n_samples),
            *(waiting, in_rings),
        )

    def _ended_error(self) -> StreamEndedError:
        return StreamEndedError(f"{self}: the sequence was ended by flush(); call reset() to start a new one")

    def _rejected(self, error: Exception) -> InputError:
        return rejected(self, error, len(self._waiting[0]))

    def __str__(self) -> str:
        return f"stream {self.name!r}, sample {self._position}"

    def __repr__(self) -> str:
        return f"Stream({self.name!r}, position={self._position})"
