from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from edgeseq import runtime as rt
from edgeseq.runtime.serve.connection import Connection, hello
from edgeseq.runtime.serve.counters import Counters
from edgeseq.runtime.serve.frames import chunk_frame, read_rows
from edgeseq.runtime.serve.limits import Limits
from edgeseq.runtime.serve.streams import Streams
from tests.runtime.serve.serving import OFFLINE, TINY, noise
from tests.runtime.serve.test_frames import MALFORMED


@pytest.fixture(scope="module")
def model() -> rt.Model:
    return rt.load(TINY)


def make(model: rt.Model, **limits: Any) -> Streams:
    return Streams(model, Limits(**limits), Counters())


def ask(connection: Connection, **frame: Any) -> dict[str, Any]:
    answer = connection.take(json.dumps(frame))
    assert isinstance(answer, str)
    given: dict[str, Any] = json.loads(answer)
    return given


def rows_of(answer: dict[str, Any]) -> list[list[float]]:
    assert answer["type"] == "predictions", answer
    return [record["output"] for record in answer["predictions"]]


@pytest.mark.parametrize("n", [1, 2, 5, 37])
def test_all_ways_to_send_give_the_offline_rows(model: rt.Model, n: int) -> None:
    connection, x = Connection(make(model)), noise(n)
    expected = rt.load_offline(OFFLINE).run(x)
    steps = [row for s in x for row in rows_of(ask(connection, type="sample", stream_id="a", values=s.tolist()))]
    chunk = rows_of(ask(connection, type="chunk", stream_id="b", values=x.tolist()))
    first = read_rows(connection.take(chunk_frame("c", x[:1], 3)), model.output)  # type: ignore[arg-type]
    rest = read_rows(connection.take(chunk_frame("c", x[1:], 4)), model.output)  # type: ignore[arg-type]
    assert [(y[0], y[1], y[2]) for y in (first, rest)] == [("c", 3, 0), ("c", 4, 1)]
    for got in (steps, chunk, np.concatenate([first[3], rest[3]])):
        np.testing.assert_allclose(got, expected, atol=1e-5)
    assert rows_of(ask(connection, type="flush", stream_id="a")) == []


def test_streams_of_connections_are_apart(model: rt.Model) -> None:
    streams, x = make(model), noise(20)
    one, other = Connection(streams), Connection(streams)
    ask(one, type="chunk", stream_id="a", values=(100 * noise(30, 1)).tolist())
    got = rows_of(ask(other, type="chunk", stream_id="a", values=x.tolist()))
    np.testing.assert_allclose(got, rt.load_offline(OFFLINE).run(x), atol=1e-5)
    one.close()
    assert ask(other, type="sample", stream_id="a", values=[0, 0, 0])["position"] == 21


def test_a_refused_frame_moves_nothing(model: rt.Model) -> None:
    streams, x = make(model), noise(40)
    connection, clean = Connection(streams), Connection(streams)
    bad: list[dict[str, Any]] = [
        {"type": "sample", "stream_id": "a", "values": [1, 2]},
        {"type": "sample", "stream_id": "a", "values": [1, 2, 1e300]},
        {"type": "chunk", "stream_id": "a", "values": [[1, 2, 3], [1, 2, 1e39]]},
        {"type": "open", "stream_id": "a"},
        {"type": "flush", "stream_id": "nobody"},
        {"type": "reset", "stream_id": "nobody"},
        {"type": "close", "stream_id": "nobody"},
    ]
    names = ["ShapeError", "NonFiniteError", "NonFiniteError", "StreamExistsError", *["StreamNotOpenError"] * 3]
    for i, sample in enumerate(x):
        got = ask(connection, type="sample", stream_id="a", values=sample.tolist())
        assert rows_of(got) == rows_of(ask(clean, type="sample", stream_id="a", values=sample.tolist()))
        answer = ask(connection, ref=i, **bad[i % len(bad)])
        assert (answer["type"], answer["error"], answer["ref"]) == ("error", names[i % len(bad)], i)
        nan = np.full((2, 3), np.nan, np.float32)
        assert json.loads(connection.take(chunk_frame("a", nan)))["error"] == "NonFiniteError"
    assert streams.counters["errors_total", "ShapeError"] == 6
    assert streams.counters["samples_total", ""] == 80


def test_a_refused_first_sample_opens_no_stream(model: rt.Model) -> None:
    streams = make(model)
    connection = Connection(streams)
    for values in ([1, 2], [1, 2, 1e300], "x"):
        assert ask(connection, type="sample", stream_id="a", values=values)["type"] == "error"
    assert len(connection) == 0
    assert streams.counters["streams", ""] == 0


def test_a_malformed_frame_is_answered_by_name_and_counted(model: rt.Model) -> None:
    streams = make(model)
    connection = Connection(streams)
    for kind, frames in MALFORMED.items():
        for frame in frames:
            answer = json.loads(connection.take(frame))
            assert (answer["error"], answer["kind"]) == ("FrameError", kind)
        assert streams.counters["malformed_total", kind] == len(frames)


def test_limits_hold(model: rt.Model) -> None:
    streams = make(model, samples=4, streams=2, all_streams=3, kept=1)
    one, other = Connection(streams), Connection(streams)
    too_long = ask(one, type="chunk", stream_id="a", values=noise(5).tolist())
    assert (too_long["kind"], len(one)) == ("too_many_samples", 0)
    assert json.loads(one.take(chunk_frame("a", noise(5))))["kind"] == "too_many_samples"
    for stream_id in ("a", "b"):
        assert ask(one, type="open", stream_id=stream_id)["type"] == "opened"
    assert "this connection has 2" in ask(one, type="sample", stream_id="c", values=[0, 0, 0])["message"]
    assert ask(other, type="open", stream_id="a", keep=True)["type"] == "opened"
    assert ask(other, type="open", stream_id="b")["error"] == "PoolFullError"
    assert ask(one, type="close", stream_id="a")["type"] == "done"
    assert ask(other, type="open", stream_id="b", keep=True)["error"] == "PoolFullError"
    assert ask(other, type="open", stream_id="b")["type"] == "opened"


def test_a_kept_stream_goes_on_in_another_connection(model: rt.Model) -> None:
    streams, x = make(model), noise(30)
    one, other = Connection(streams), Connection(streams)
    assert ask(one, type="open", stream_id="a", keep=True)["position"] == 0
    before = rows_of(ask(one, type="chunk", stream_id="a", values=x[:12].tolist()))
    assert ask(other, type="open", stream_id="a", keep=True)["error"] == "StreamExistsError"
    one.close()
    assert ask(other, type="sample", stream_id="a", values=[0, 0, 0])["error"] == "StreamExistsError"
    assert ask(other, type="open", stream_id="a", keep=True)["position"] == 12
    answer = ask(other, type="chunk", stream_id="a", values=x[12:].tolist())
    assert answer["predictions"][0]["index"] == 12
    np.testing.assert_allclose(before + rows_of(answer), rt.load_offline(OFFLINE).run(x), atol=1e-5)
    assert ask(other, type="close", stream_id="a")["type"] == "done"
    other.close()
    assert ask(one, type="open", stream_id="a", keep=True)["position"] == 0


def test_a_kept_stream_expires_only_without_a_connection(model: rt.Model) -> None:
    now = 0.0
    streams = Streams(model, Limits(idle_s=10), Counters(), clock=lambda: now)
    one = Connection(streams)
    for stream_id in ("a", "b"):
        ask(one, type="open", stream_id=stream_id, keep=True)
    now = 100.0
    assert streams.expire() == []
    one.close()
    now = 109.0
    ask(one, type="open", stream_id="b", keep=True)
    now = 110.0
    assert streams.expire() == ["a"]
    assert streams.counters["expired_streams_total", ""] == 1
    assert streams.counters["streams", ""] == 1


def test_a_stream_that_ended_starts_again_by_reset(model: rt.Model) -> None:
    connection, x = Connection(make(model)), noise(9)
    first = ask(connection, type="chunk", stream_id="a", values=x.tolist())["predictions"]
    ask(connection, type="flush", stream_id="a")
    assert ask(connection, type="sample", stream_id="a", values=[0, 0, 0])["error"] == "StreamEndedError"
    assert ask(connection, type="reset", stream_id="a")["type"] == "done"
    assert ask(connection, type="chunk", stream_id="a", values=x.tolist())["predictions"] == first
    assert [p["warm_up"] for p in first] == [True] * 6 + [False] * 3


def test_hello_is_json_and_says_what_the_model_takes(model: rt.Model) -> None:
    told = json.loads(hello(make(model)))
    assert told["inputs"][0] == {"name": "input", "dtype": "float32", "shape": [3], "names": ["x", "y", "z"]}
    assert (told["rate_hz"], told["lookahead"], told["limits"]["samples"]) == (50, 0, 1024)


def test_metrics_keep_the_calls_of_closed_streams(model: rt.Model) -> None:
    streams = make(model)
    connection = Connection(streams)
    for stream_id in ("a", "b"):
        ask(connection, type="sample", stream_id=stream_id, values=[0, 0, 0])
    ask(connection, type="close", stream_id="a")
    text = streams.metrics()
    assert 'edgeseq_step_seconds_count{model="tiny"} 2' in text
    assert 'edgeseq_serve_frames_total{kind="sample"} 2' in text
    assert "edgeseq_serve_streams 1\n" in text
