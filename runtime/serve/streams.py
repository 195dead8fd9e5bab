"""The streams of a server: who owns each, which outlive their connection, and which sample each row belongs to.

A stream belongs to one connection and to no other. Its id is the connection's own, so two connections may use the same
id for different streams; ids of kept streams are the server's, and one connection at a time has such a stream.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from edgeseq.errors import InputError, PoolFullError, StreamExistsError
from edgeseq.model_file import Port
from edgeseq.runtime.inputs import Array
from edgeseq.runtime.latency import Latency, prometheus_text
from edgeseq.runtime.model import Model
from edgeseq.runtime.serve.counters import Counters
from edgeseq.runtime.serve.limits import Limits
from edgeseq.runtime.stream import Stream


class ServedStream:
    """A ``Stream``, and how many rows of each output it has given in this sequence."""

    def __init__(self, stream: Stream, outputs: tuple[Port, ...], *, keep: bool) -> None:
        self.stream, self.keep = stream, keep
        self.is_owned = True
        self.left_s = 0.0
        self._outputs = outputs
        self._given = [0] * len(outputs)

    def take(self, chunk: Any) -> list[tuple[int, Array]]:
        """Take samples and return (index of the first row, rows (T', K)) of each output.

        Raises:
            EdgeseqError: as ``Stream.push``; the stream is as it was.
        """
        if self.lengths(chunk) == {1}:  # a step is faster than a chunk of one
            one = {name: x[0] for name, x in chunk.items()} if isinstance(chunk, dict) else chunk[0]
            return self._numbered(self.stream.step(one))
        return self._numbered(self.stream.push(chunk))

    @staticmethod
    def lengths(chunk: Any) -> set[int]:
        """How many samples a chunk has: one number, but for inputs of different lengths, which the model refuses."""
        return set(map(len, chunk.values())) if isinstance(chunk, dict) else {len(chunk)}

    def flush(self) -> list[tuple[int, Array]]:
        """End the sequence and return what is owed."""
        return self._numbered(self.stream.flush())

    def reset(self) -> None:
        """Start a new sequence, whose rows count from 0."""
        self.stream.reset()
        self._given = [0] * len(self._outputs)

    def _numbered(self, given: Any) -> list[tuple[int, Array]]:
        numbered = []
        for i, port in enumerate(self._outputs):
            y = given if len(self._outputs) == 1 else given[port.name]
            if y is None:
                y = np.zeros((0, *port.shape), port.dtype)
            rows = y if y.ndim > len(port.shape) else y[None]
            numbered.append((self._given[i], rows))
            self._given[i] += len(rows)
        return numbered


class Streams:
    """All streams of a server, on one model.

    Example:
        >>> from edgeseq import runtime as rt
        >>> streams = Streams(rt.load("tests/data/tiny.stream.onnx"), Limits(), Counters())
        >>> pump = streams.open("pump-7", keep=True)
        >>> _ = pump.take(np.zeros((5, 3), np.float32))
        >>> streams.leave("pump-7", pump)
        >>> streams.open("pump-7", keep=True).stream.position
        5
    """

    def __init__(
        self, model: Model, limits: Limits, counters: Counters, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.model, self.limits, self.counters = model, limits, counters
        self._clock = clock
        self._kept: dict[str, ServedStream] = {}
        self._n_open = 0
        # Of all streams together: adding up thousands of their own would hold up every scrape.
        self._steps, self._pushes = Latency(), Latency()

    def take(self, served: ServedStream, chunk: Any) -> list[tuple[int, Array]]:
        """What ``ServedStream.take`` gives, timed."""
        start = time.perf_counter_ns()
        rows = served.take(chunk)
        latency = self._steps if served.lengths(chunk) == {1} else self._pushes
        latency.record(time.perf_counter_ns() - start)
        return rows

    def open(self, stream_id: str, *, keep: bool) -> ServedStream:
        """A new stream, or with ``keep`` the kept one of this id, if it has no connection.

        Raises:
            StreamExistsError: another connection has the kept stream of this id; or it is kept, and not asked for.
            PoolFullError: there are as many streams as there may be.
        """
        kept = self._kept.get(stream_id)
        if kept is not None:
            if kept.is_owned:
                raise StreamExistsError(f"stream {stream_id!r}: expected a kept stream that no connection has")
            if not keep:
                raise StreamExistsError(
                    f"stream {stream_id!r}: a kept stream has this id; open it with keep, or choose another id"
                )
            kept.is_owned = True
            return kept
        if self._n_open >= self.limits.all_streams or (keep and len(self._kept) >= self.limits.kept):
            raise PoolFullError(
                f"stream {stream_id!r}: the server has as many streams as it may have ({self._n_open} open, "
                f"{len(self._kept)} of them kept); close some"
            )
        opened = ServedStream(self.model.stream(stream_id), self.model.description.outputs, keep=keep)
        self._n_open += 1
        if keep:
            self._kept[stream_id] = opened
        self.counters.add("streams")
        return opened

    def close(self, stream_id: str, served: ServedStream) -> None:
        """End a stream."""
        self._n_open -= 1
        if served.keep:
            del self._kept[stream_id]
        self.counters.add("streams", n=-1)

    def leave(self, stream_id: str, served: ServedStream) -> None:
        """What the end of a connection does to its stream: it ends, unless it is kept."""
        if not served.keep:
            self.close(stream_id, served)
            return
        served.is_owned, served.left_s = False, self._clock()

    def expire(self) -> list[str]:
        """End kept streams to which nobody came back for ``idle_s``."""
        due = self._clock() - self.limits.idle_s
        gone = [name for name, served in self._kept.items() if not served.is_owned and served.left_s <= due]
        for name in gone:
            self.close(name, self._kept[name])
            self.counters.add("expired_streams_total")
        return gone

    def metrics(self) -> str:
        """Latencies of all calls, and the counters, as Prometheus text."""
        labels = {"model": self.model.name}
        texts = [
            prometheus_text([(labels, self._steps)]),
            prometheus_text([(labels, self._pushes)], "edgeseq_push_seconds"),
            self.counters.prometheus(),
        ]
        return "".join(texts)


def records(port: Port, first: int, rows: Array, *, at_end: bool) -> list[dict[str, Any]]:
    """Rows (n, K) of an output, the first of which is row ``first``, as JSON has them, by the names of their facts.

    Example:
        >>> from edgeseq import runtime as rt
        >>> port = rt.load("tests/data/tiny.stream.onnx").output
        >>> records(port, 9, np.array([[0.25, 0.75]], np.float32), at_end=False)
        [{'index': 9, 'sample': 9, 'output_name': 'output', 'output': [0.25, 0.75], 'label': 'move', 'score': 0.75, \
'warm_up': False, 'provisional': False}]
    """
    timing = port.timing
    if timing is None:
        raise InputError(f"output {port.name!r}: expected one of a stream, which has a timing")
    names = port.names if port.names is not None and port.shape == (len(port.names),) else None
    largest = rows.argmax(axis=1).tolist() if names is not None else []
    made = []
    for j, output in enumerate(as_json(rows)):
        sample = (first + j) * timing.hop[0] // timing.hop[1]
        record = {"index": first + j, "sample": sample, "output_name": port.name, "output": output}
        if names is not None:
            record["label"], record["score"] = names[largest[j]], output[largest[j]]
        is_last = at_end and j == len(rows) - 1
        record["warm_up"] = sample < (timing.receptive_field[0] or 0)
        record["provisional"] = timing.law == "prefix" and not is_last
        made.append(record)
    return made


def as_json(array: Any) -> Any:
    """Nested lists of numbers, with None where JSON has no number."""
    x = np.asarray(array)
    if not np.isfinite(x).all():
        x = x.astype(object)
        x[~np.isfinite(array)] = None
    return x.tolist()
