"""One connection: frames in, one answer to each out. No I/O.

Whatever a frame says, its answer is what was asked for or an error by name; nothing else moves, no other stream and no
other connection.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from edgeseq.errors import EdgeseqError, FrameError, PoolFullError, StreamExistsError, StreamNotOpenError
from edgeseq.model_file import Port
from edgeseq.runtime.inputs import Array
from edgeseq.runtime.serve import frames
from edgeseq.runtime.serve.frames import Request
from edgeseq.runtime.serve.streams import ServedStream, Streams, records
from edgeseq.runtime.serve.values import arrays_of

Rows = list[tuple[int, Array]]


class Connection:
    """The streams of one client.

    Example:
        >>> from edgeseq import runtime as rt
        >>> from edgeseq.runtime.serve.counters import Counters
        >>> from edgeseq.runtime.serve.limits import Limits
        >>> streams = Streams(rt.load("tests/data/tiny.stream.onnx"), Limits(), Counters())
        >>> connection = Connection(streams)
        >>> connection.take('{"type": "sample", "stream_id": "pump-7", "values": [1, 2, 3]}')
        '{"type": "predictions", "stream_id": "pump-7", "position": 1, "predictions": [{"index": 0, ...}]}'
        >>> connection.take('{"type": "sample", "stream_id": "pump-7", "values": [1, 2]}')
        '{"type": "error", "error": "ShapeError", "message": "stream \\'pump-7\\': expected float32 (3,), got (2,); ...
        >>> connection.close()
    """

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._description = streams.model.description
        self._mine: dict[str, ServedStream] = {}
        self._answers: dict[str, Callable[[Request], str | bytes]] = {
            "open": self._open,
            "sample": self._take,
            "chunk": self._take,
            "flush": self._flush,
            "reset": self._reset,
            "close": self._close,
        }

    def take(self, frame: str | bytes) -> str | bytes:
        """Answer one frame."""
        counters, request = self._streams.counters, None
        try:
            if isinstance(frame, bytes):
                request = frames.read_bytes(frame, self._description.inputs, len(self._description.outputs))
            else:
                request = frames.read_text(frame)
            answer = self._answers[request.type](request)
        except EdgeseqError as error:
            counters.add("errors_total", type(error).__name__)
            if isinstance(error, FrameError):
                counters.add("malformed_total", error.kind)
            if request is None:
                return frames.error_frame(error, frames.ref_of(frame), None)
            return frames.error_frame(error, request.ref, request.stream_id)
        counters.add("frames_total", request.type)
        return answer

    def close(self) -> None:
        """The connection has ended, and with it its streams, but for those that are kept."""
        for stream_id, served in self._mine.items():
            self._streams.leave(stream_id, served)
        self._mine = {}

    def __len__(self) -> int:
        return len(self._mine)

    def _open(self, request: Request) -> str:
        if request.stream_id in self._mine:
            raise StreamExistsError(f"stream {request.stream_id!r}: it is open already; close it, or reset it")
        served = self._opened(request.stream_id, keep=request.keep)
        return frames.answer("opened", request, position=served.stream.position)

    def _take(self, request: Request) -> str | bytes:
        # Nothing is opened for samples that are refused, so all that can be checked without a stream is checked first.
        chunk = request.values if request.is_binary else self._chunk(request)
        n = max(ServedStream.lengths(chunk))
        if n > self._streams.limits.samples:
            raise FrameError(
                "too_many_samples",
                f"stream {request.stream_id!r}: expected at most {self._streams.limits.samples} samples in a frame, "
                f"got {n}; send several frames",
            )
        served = self._mine.get(request.stream_id)
        is_new = served is None
        if served is None:
            served = self._opened(request.stream_id, keep=False)
        try:
            rows = self._streams.take(served, chunk)
        except EdgeseqError:
            if is_new:
                self._forget(request.stream_id, served)
            raise
        self._streams.counters.add("samples_total", n=n)
        if request.is_binary:
            self._streams.counters.add("rows_total", n=len(rows[0][1]))
            return frames.rows_frame(request, *rows[0])
        return self._predictions(request, served, rows)

    def _chunk(self, request: Request) -> Any:
        """The values of a text frame as a chunk (T, C), or one for each input."""
        where, is_chunk = f"stream {request.stream_id!r}", request.type == "chunk"
        given = arrays_of(self._description.inputs, request.values, where, rows=is_chunk)
        if is_chunk:
            return given
        return {name: x[None] for name, x in given.items()} if isinstance(given, dict) else given[None]

    def _flush(self, request: Request) -> str:
        served = self._found(request.stream_id)
        return self._predictions(request, served, served.flush(), at_end=True)

    def _reset(self, request: Request) -> str:
        self._found(request.stream_id).reset()
        return frames.answer("done", request)

    def _close(self, request: Request) -> str:
        self._forget(request.stream_id, self._found(request.stream_id))
        return frames.answer("done", request)

    def _predictions(self, request: Request, served: ServedStream, rows: Rows, *, at_end: bool = False) -> str:
        made = []
        for port, (first, y) in zip(self._description.outputs, rows, strict=True):
            made += records(port, first, y, at_end=at_end)
        self._streams.counters.add("rows_total", n=len(made))
        return frames.answer("predictions", request, position=served.stream.position, predictions=made)

    def _found(self, stream_id: str) -> ServedStream:
        try:
            return self._mine[stream_id]
        except KeyError:
            raise StreamNotOpenError(
                f"stream {stream_id!r}: expected one that this connection opened; send samples, or open it"
            ) from None

    def _opened(self, stream_id: str, *, keep: bool) -> ServedStream:
        limit = self._streams.limits.streams
        if len(self._mine) >= limit:
            raise PoolFullError(f"stream {stream_id!r}: this connection has {limit} streams open; close some")
        served = self._mine[stream_id] = self._streams.open(stream_id, keep=keep)
        return served

    def _forget(self, stream_id: str, served: ServedStream) -> None:
        del self._mine[stream_id]
        self._streams.close(stream_id, served)


def hello(streams: Streams) -> str:
    """The first frame to every client: what the model takes and gives, and the limits."""
    model, limits = streams.model, streams.limits
    d = model.description
    return json.dumps(
        {
            "type": "hello",
            "protocol": frames.VERSION,
            "model": model.name,
            "rate_hz": model.rate_hz,
            "inputs": [_port(port) for port in d.inputs],
            "outputs": [_port(port) for port in d.outputs],
            "receptive_field": model.receptive_field,
            "lookahead": model.lookahead,
            "limits": {
                "frame_bytes": limits.frame_bytes,
                "samples": limits.samples,
                "streams": limits.streams,
            },
        }
    )


def _port(port: Port) -> dict[str, Any]:
    told: dict[str, Any] = {"name": port.name, "dtype": port.dtype, "shape": port.shape, "names": port.names}
    if port.timing is not None:
        told |= {"law": port.timing.law, "hop": port.timing.hop, "lookahead": port.timing.lookahead}
    return told
