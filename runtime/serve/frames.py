"""The frames of the WebSocket: what clients ask, and what they are answered, as text (JSON) or bytes.

A frame that asks nothing right is a ``FrameError``, whose ``kind`` is the name that it is counted under. Numbers that a
model cannot take are the stream's matter. ``docs/serve.md`` has the tables.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from edgeseq.errors import EdgeseqError, FrameError
from edgeseq.model_file import Port
from edgeseq.runtime.inputs import Array

KINDS = {
    "not_json": "a text frame that is not JSON",
    "not_an_object": "JSON, but not an object",
    "unknown_type": "a type of request that there is not",
    "bad_field": "a field that is missing, of the wrong type, or not known",
    "bad_id": "a stream id that is empty, too long, or not printable",
    "too_many_samples": "more samples than a frame may have",
    "bad_header": "a binary frame without a right header",
    "wrong_size": "a binary frame of another size than its samples have",
    "not_binary": "a binary frame for a model that needs JSON",
}
"""The names under which malformed frames are counted."""

VERSION = 1
CHUNK, ROWS = 1, 2
HEADER = struct.Struct("<BBHI")  # version, kind, bytes of the id, ref
ROWS_HEADER = struct.Struct("<BBHIQ")  # the same, and the index of the first row
LONGEST_ID = 128
LARGEST_REF = 2**32 - 1

FIELDS = {
    "open": {"keep"},
    "sample": {"values"},
    "chunk": {"values"},
    "flush": set[str](),
    "reset": set[str](),
    "close": set[str](),
}
"""The fields of each type of request, beside ``type``, ``stream_id`` and ``ref``."""


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One frame of a client.

    ``values`` are as JSON has them, or a chunk (T, C) of a binary frame. ``ref`` comes back with the answer.
    """

    type: str
    stream_id: str
    ref: int | None = None
    values: Any = None
    keep: bool = False
    is_binary: bool = False


def read_text(text: str) -> Request:
    """What a text frame asks.

    Raises:
        FrameError: nothing right.

    Example:
        >>> read_text('{"type": "sample", "stream_id": "pump-7", "values": [1, 2, 3]}').values
        [1, 2, 3]
        >>> read_text('{"type": "smaple", "stream_id": "pump-7"}')
        Traceback (most recent call last):
        edgeseq.errors.FrameError: frame: expected a type of open, sample, chunk, flush, reset, close, got 'smaple'
    """
    try:
        given = json.loads(text, parse_constant=_no_constant)
    except FrameError:
        raise
    except (ValueError, RecursionError) as error:
        raise FrameError("not_json", f"frame: expected JSON, got {_short(text)} ({_short(str(error))})") from error
    if not isinstance(given, dict):
        raise FrameError("not_an_object", f"frame: expected a JSON object, got {_short(text)}")
    kind = given.get("type")
    if not isinstance(kind, str) or kind not in FIELDS:
        raise FrameError("unknown_type", f"frame: expected a type of {', '.join(FIELDS)}, got {_short(kind)}")
    if unknown := set(given) - FIELDS[kind] - {"type", "stream_id", "ref"}:
        known = ["stream_id", "ref", *sorted(FIELDS[kind])]
        raise FrameError("bad_field", f"{kind} frame: expected the fields {known}, got {_short(sorted(unknown))} too")
    if "values" in FIELDS[kind] and "values" not in given:
        raise FrameError("bad_field", f"{kind} frame: expected the field 'values', got none")
    keep, ref = given.get("keep", False), given.get("ref")
    if type(keep) is not bool:
        raise FrameError("bad_field", f"{kind} frame: expected keep, true or false, got {_short(keep)}")
    if ref is not None and (type(ref) is not int or not 0 <= ref <= LARGEST_REF):
        raise FrameError("bad_field", f"{kind} frame: expected ref, 0 to {LARGEST_REF}, got {_short(ref)}")
    return Request(kind, _stream_id(given.get("stream_id")), ref, given.get("values"), keep)


def ref_of(frame: str | bytes) -> int | None:
    """The ref of a frame that was refused, if it can still be told, so that its error finds its asker."""
    if isinstance(frame, bytes):
        return int(HEADER.unpack_from(frame)[3]) if len(frame) >= HEADER.size else None
    try:
        given = json.loads(frame)
    except (ValueError, RecursionError):
        return None
    ref = given.get("ref") if isinstance(given, dict) else None
    return ref if type(ref) is int and 0 <= ref <= LARGEST_REF else None


def read_bytes(data: bytes, inputs: tuple[Port, ...], n_outputs: int) -> Request:
    """What a binary frame asks: a header of 8 bytes, the stream's id, and samples (T, C) in the model's dtype.

    Raises:
        FrameError: nothing right.

    Example:
        >>> port = Port("x", "float32", (3,))
        >>> frame = chunk_frame("pump-7", np.zeros((2, 3), np.float32), ref=5)
        >>> request = read_bytes(frame, (port,), 1)
        >>> request.stream_id, request.ref, request.values.shape
        ('pump-7', 5, (2, 3))
    """
    if len(inputs) != 1 or n_outputs != 1:
        raise FrameError("not_binary", "binary frame: the model has several inputs or outputs; send JSON")
    if len(data) < HEADER.size:
        raise FrameError("bad_header", f"binary frame: expected a header of {HEADER.size} bytes, got {len(data)}")
    version, kind, n_id, ref = HEADER.unpack_from(data)
    if (version, kind) != (VERSION, CHUNK):
        raise FrameError("bad_header", f"binary frame: expected version 1 and kind 1, got {version} and {kind}")
    start = HEADER.size + n_id
    try:
        stream_id = _stream_id(data[HEADER.size : start].decode())
    except UnicodeDecodeError as error:
        raise FrameError("bad_id", "binary frame: expected an id in UTF-8, got other bytes") from error
    dtype = np.dtype(inputs[0].dtype).newbyteorder("<")
    n_bytes = dtype.itemsize * int(np.prod(inputs[0].shape, dtype=np.int64))
    if start > len(data) or (len(data) - start) % n_bytes:
        raise FrameError(
            "wrong_size",
            f"binary frame: expected samples of {n_bytes} bytes ({inputs[0].dtype} {inputs[0].shape}) after an id of "
            f"{n_id}, got {len(data)} bytes in all",
        )
    # A copy, since a frame's samples need not begin at a multiple of their size.
    values = np.frombuffer(data[start:], dtype).astype(inputs[0].dtype).reshape(-1, *inputs[0].shape)
    return Request("chunk", stream_id, ref, values, is_binary=True)


def chunk_frame(stream_id: str, chunk: Array, ref: int = 0) -> bytes:
    """A binary frame of a client: samples (T, C) of a stream."""
    name = stream_id.encode()
    return HEADER.pack(VERSION, CHUNK, len(name), ref) + name + _little(chunk)


def rows_frame(request: Request, first: int, rows: Array) -> bytes:
    """The answer to a binary frame: the rows (T', K) that were due, the first of which is row ``first``."""
    name = request.stream_id.encode()
    return ROWS_HEADER.pack(VERSION, ROWS, len(name), request.ref or 0, first) + name + _little(rows)


def read_rows(data: bytes, output: Port) -> tuple[str, int, int, Array]:
    """The stream's id, the ref, the index of the first row and the rows (T', K) of an answer, for clients in Python."""
    _version, _kind, n_id, ref, first = ROWS_HEADER.unpack_from(data)
    start = ROWS_HEADER.size + n_id
    dtype = np.dtype(output.dtype).newbyteorder("<")
    rows = np.frombuffer(data[start:], dtype).astype(output.dtype).reshape(-1, *output.shape)
    return data[ROWS_HEADER.size : start].decode(), ref, first, rows


def answer(kind: str, request: Request, **more: Any) -> str:
    """A text frame for a client; NaN and infinity, which JSON has not, are null."""
    frame = {"type": kind, "stream_id": request.stream_id, "ref": request.ref, **more}
    return json.dumps({k: v for k, v in frame.items() if k != "ref" or v is not None}, allow_nan=False)


def error_frame(error: EdgeseqError, ref: int | None, stream_id: str | None) -> str:
    """What a client is told of a request that was refused. ``kind`` is there of a malformed frame."""
    frame: dict[str, Any] = {"type": "error", "error": type(error).__name__, "message": str(error)}
    if isinstance(error, FrameError):
        frame["kind"] = error.kind
    if stream_id is not None:
        frame["stream_id"] = stream_id
    if ref is not None:
        frame["ref"] = ref
    return json.dumps(frame)


def _little(array: Array) -> bytes:
    return array.astype(array.dtype.newbyteorder("<")).tobytes()


def _stream_id(given: Any) -> str:
    if not isinstance(given, str) or not 0 < len(given) <= LONGEST_ID or not given.isprintable():
        raise FrameError(
            "bad_id", f"frame: expected stream_id, 1 to {LONGEST_ID} printable characters, got {_short(given)}"
        )
    return given


def _no_constant(name: str) -> NoReturn:
    raise FrameError("not_json", f"frame: expected JSON, got {name}, which JSON has not; leave such a sample out")


def _short(given: Any) -> str:
    told = repr(given)
    return told if len(told) <= 60 else f"{told[:57]}..."
