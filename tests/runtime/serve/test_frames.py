from __future__ import annotations

import json

import numpy as np
import pytest

from edgeseq.errors import FrameError
from edgeseq.model_file import Port
from edgeseq.runtime.serve.frames import (
    HEADER,
    KINDS,
    Request,
    chunk_frame,
    read_bytes,
    read_rows,
    read_text,
    ref_of,
    rows_frame,
)

PORT = Port("x", "float32", (3,))
GOOD = chunk_frame("pump-7", np.zeros((2, 3), np.float32), 5)

MALFORMED: dict[str, list[str | bytes]] = {
    "not_json": ["", "{", "[1, 2", '{"type": NaN}', "[" * 100_000, '{"a": ' + "9" * 5000 + "}", "\x00"],
    "not_an_object": ["[]", "3", "null", '"open"'],
    "unknown_type": ["{}", '{"type": "smaple"}', '{"type": []}', '{"type": {"a": 1}}', '{"type": null}'],
    "bad_field": [
        '{"type": "sample", "stream_id": "a"}',
        '{"type": "sample", "stream_id": "a", "values": [1], "vlaues": 2}',
        '{"type": "open", "stream_id": "a", "keep": 1}',
        '{"type": "flush", "stream_id": "a", "ref": -1}',
        '{"type": "flush", "stream_id": "a", "ref": 4294967296}',
        '{"type": "flush", "stream_id": "a", "ref": true}',
        '{"type": "flush", "stream_id": "a", "ref": 1.5}',
        '{"type": "flush", "stream_id": "a", "values": [1]}',
    ],
    "bad_id": [
        '{"type": "flush"}',
        '{"type": "flush", "stream_id": ""}',
        '{"type": "flush", "stream_id": 7}',
        '{"type": "flush", "stream_id": "a\\nb"}',
        '{"type": "flush", "stream_id": "\\ud800"}',
        json.dumps({"type": "flush", "stream_id": "a" * 129}),
        HEADER.pack(1, 1, 2, 0) + b"\xff\xfe",
        HEADER.pack(1, 1, 0, 0),
    ],
    "bad_header": [b"", b"\x01\x01", HEADER.pack(2, 1, 1, 0) + b"a", HEADER.pack(1, 2, 1, 0) + b"a"],
    "wrong_size": [GOOD[:-1], GOOD + b"\x00", HEADER.pack(1, 1, 200, 0) + b"a"],
}


@pytest.mark.parametrize(("kind", "frame"), [(kind, frame) for kind, all_ in MALFORMED.items() for frame in all_])
def test_a_malformed_frame_has_a_name(kind: str, frame: str | bytes) -> None:
    with pytest.raises(FrameError) as caught:
        read_bytes(frame, (PORT,), 1) if isinstance(frame, bytes) else read_text(frame)
    assert caught.value.kind == kind
    assert kind in KINDS
    assert len(str(caught.value)) < 400


def test_a_binary_frame_for_several_inputs_is_refused() -> None:
    for inputs, n_outputs in (((PORT, PORT), 1), ((PORT,), 2)):
        with pytest.raises(FrameError, match="send JSON"):
            read_bytes(GOOD, inputs, n_outputs)


@pytest.mark.parametrize("shape", [(0, 3), (1, 3), (7, 3)])
@pytest.mark.parametrize("stream_id", ["a", "pump-7", "Ä" * 128])
def test_binary_frames_come_back(stream_id: str, shape: tuple[int, int]) -> None:
    chunk = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    request = read_bytes(chunk_frame(stream_id, chunk, 2**32 - 1), (PORT,), 1)
    assert (request.type, request.stream_id, request.ref) == ("chunk", stream_id, 2**32 - 1)
    np.testing.assert_array_equal(request.values, chunk)
    assert request.values.dtype == np.float32
    answered = read_rows(rows_frame(request, 2**40, chunk), PORT)
    assert answered[:3] == (stream_id, 2**32 - 1, 2**40)
    np.testing.assert_array_equal(answered[3], chunk)


def test_tokens_are_scalars() -> None:
    port = Port("tokens", "int32", ())
    request = read_bytes(chunk_frame("a", np.array([3, 1, 4], np.int32)), (port,), 1)
    assert request.values.tolist() == [3, 1, 4]


@pytest.mark.parametrize(
    ("frame", "ref"),
    [
        ('{"ref": 7}', 7),
        ('{"ref": "7"}', None),
        ("{", None),
        ("[]", None),
        (GOOD, 5),
        (GOOD[:4], None),
        ("[" * 9999, None),
    ],
)
def test_an_error_finds_its_asker(frame: str | bytes, ref: int | None) -> None:
    assert ref_of(frame) == ref


def test_text_frames_are_read() -> None:
    request = read_text('{"type": "open", "stream_id": "a", "keep": true, "ref": 0}')
    assert (request.type, request.stream_id, request.ref, request.keep) == ("open", "a", 0, True)
    assert isinstance(request, Request)
