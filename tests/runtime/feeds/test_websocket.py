"""WebSockets on real loopback sockets: both roles of feed and sink, slow and wrong peers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import InvalidStatus

from edgeseq import runtime as rt
from edgeseq.errors import ConfigError, FeedError
from edgeseq.runtime import feeds
from tests.runtime.feeds.brokers import free_port
from tests.runtime.feeds.running import MODEL, as_json, by_stream, direct, read, walk, write_jsonl
from tests.runtime.feeds.test_mqtt import running, until

pytestmark = pytest.mark.usefixtures("nothing_left_open")


def listening(run: feeds.Run) -> Callable[[], bool]:
    part: Any = run._feed
    return lambda: part._listener._server is not None


def test_a_server_feed_equals_the_direct_replay(tmp_path: Path) -> None:
    samples, out, port = walk(30), tmp_path / "out.jsonl", free_port()
    run = feeds.run(rt.load(MODEL), f"ws+listen://127.0.0.1:{port}", f"jsonl:{out}")

    async def send() -> None:
        await until(listening(run))
        for name in ("w0", "w1", "w2"):
            async with connect(f"ws://127.0.0.1:{port}/{name}", proxy=None) as connection:
                for sample in samples:
                    if sample.stream_id == name:
                        await connection.send(json.dumps({"values": sample.values, "timestamp_s": sample.timestamp_s}))
        await until(lambda: run.report.predictions == len(samples))

    asyncio.run(running(run, send))
    assert by_stream(read(out)) == by_stream(direct(samples))


@pytest.mark.parametrize("reconnect", [True, False])
def test_a_client_feed_connects_again_or_ends(tmp_path: Path, reconnect: bool) -> None:
    samples, out, port = walk(10), tmp_path / "out.jsonl", free_port()
    left = list(samples)
    address = f"ws://127.0.0.1:{port}/sensors?reconnect={str(reconnect).lower()}"
    run = feeds.run(rt.load(MODEL), address, f"jsonl:{out}")

    async def give(connection: ServerConnection) -> None:
        for _ in range(min(len(left), 10 if reconnect else 30)):  # then the connection is closed
            await connection.send(as_json(left.pop(0)))

    async def serving() -> None:
        async with serve(give, "127.0.0.1", port):
            await until(lambda: run.report.predictions == len(samples))
        await asyncio.sleep(0.2)  # the server lets go of a connection that was just being made

    report = asyncio.run(running(run, serving))
    assert report.transport["ws_connections"] >= (3 if reconnect else 1)
    assert read(out) == direct(samples)


def test_a_client_sink_sends_again_what_a_lost_connection_left_in_doubt(tmp_path: Path) -> None:
    samples, port = walk(40, ["w"]), free_port()
    sent = write_jsonl(tmp_path / "sent.jsonl", samples)
    got: dict[int, dict[str, Any]] = {}
    run = feeds.run(rt.load(MODEL), f"jsonl:{sent}?speed=20", f"ws://127.0.0.1:{port}/in")

    async def take(connection: ServerConnection) -> None:
        async for message in connection:
            prediction = json.loads(message)
            assert got.setdefault(prediction["index"], prediction) == prediction
            if len(got) in (5, 15):
                connection.transport.abort()

    async def serving() -> feeds.RunReport:
        async with serve(take, "127.0.0.1", port):
            return await run

    report = asyncio.run(serving())
    assert list(got.values()) == direct(samples)
    assert report.transport["ws_connections"] >= 2


def test_a_server_sink_gives_each_client_what_it_asked_for_and_a_slow_one_holds_up_nobody(tmp_path: Path) -> None:
    samples, port = walk(3000), free_port()
    sent = write_jsonl(tmp_path / "sent.jsonl", samples)
    run = feeds.run(rt.load(MODEL), f"jsonl:{sent}", f"ws+listen://127.0.0.1:{port}?queue=20000")
    everything: list[dict[str, Any]] = []
    one: list[dict[str, Any]] = []
    sink: Any = run._sink

    async def listen(path: str, into: list[dict[str, Any]]) -> None:
        async with connect(f"ws://127.0.0.1:{port}{path}", proxy=None) as connection:
            into.extend([json.loads(message) async for message in connection])

    async def use() -> feeds.RunReport:
        await sink.open(None)
        async with connect(f"ws://127.0.0.1:{port}", proxy=None, max_queue=1, close_timeout=0.1):  # which never reads
            tasks = [asyncio.ensure_future(listen("/", everything)), asyncio.ensure_future(listen("/w1", one))]
            await until(lambda: len(sink._clients) == 3)
            sink.open = _nothing
            report = await run
            await asyncio.gather(*tasks)
            return report

    report = asyncio.run(use())
    assert report.predictions == len(samples)
    assert everything == direct(samples)
    assert one == by_stream(direct(samples))["w1"]


async def _nothing(_position: Any) -> None:
    return None


def test_a_client_that_does_not_read_loses_the_oldest_and_it_is_counted() -> None:
    port = free_port()
    predictions = list(rt.predictions(rt.load(MODEL), walk(5000, ["w"])))
    sink: Any = feeds.open_sink(f"ws+listen://127.0.0.1:{port}?queue=8")

    async def use() -> list[int]:
        await sink.open(None)
        async with connect(f"ws://127.0.0.1:{port}", proxy=None, max_queue=1, close_timeout=0.1) as connection:
            await until(lambda: len(sink._clients) == 1)
            for prediction in predictions:
                await sink.write([prediction])
            got = [json.loads(await connection.recv())["index"] for _ in range(8)]
            assert got == sorted(got)
            assert sink.counts["ws_dropped"] > 0
            await sink.close()
            return got

    asyncio.run(use())


def test_what_is_no_sample_is_counted_by_name(tmp_path: Path) -> None:
    port, good = free_port(), walk(5, ["w"])
    run = feeds.run(rt.load(MODEL), f"ws+listen://127.0.0.1:{port}", f"jsonl:{tmp_path}/out.jsonl")
    bad: list[str | bytes] = ["", "{", b"\xff", "7", '{"values": "x"}', "[1, 2]", "[" * 100_000, "[" + "1," * 600_000]

    async def send() -> None:
        await until(listening(run))
        async with connect(f"ws://127.0.0.1:{port}", proxy=None) as connection:
            for i in range(1000):
                await connection.send(bad[i % 6 if i > 100 else i % len(bad)])
            for sample in good:
                await connection.send(as_json(sample))
        await until(lambda: run.report.predictions == len(good))

    report = asyncio.run(running(run, send))
    assert report.frames == 1005
    assert set(report.errors) == {"not_json", "not_utf8", "not_a_sample", "wrong_type", "wrong_shape", "too_long"}
    assert read(tmp_path / "out.jsonl") == direct(good)


def test_a_message_that_is_far_too_long_ends_its_connection_and_no_other(tmp_path: Path) -> None:
    port, good = free_port(), walk(2, ["w"])
    run = feeds.run(rt.load(MODEL), f"ws+listen://127.0.0.1:{port}", f"jsonl:{tmp_path}/out.jsonl")

    async def send() -> None:
        await until(listening(run))
        async with (
            connect(f"ws://127.0.0.1:{port}", proxy=None) as wrong,
            connect(f"ws://127.0.0.1:{port}", proxy=None) as right,
        ):
            await right.send(as_json(good[0]))
            await wrong.send("1" * 5_000_000)
            await wrong.wait_closed()
            assert wrong.close_code == 1009
            await right.send(as_json(good[1]))
            await until(lambda: run.report.predictions == len(good))

    asyncio.run(running(run, send))
    assert read(tmp_path / "out.jsonl") == direct(good)


def test_a_server_that_others_can_reach_demands_a_token(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a token"):
        feeds.open_feed("ws+listen://0.0.0.0:8765")
    (tmp_path / "token").write_text("sesame\n")
    port = free_port()
    address = f"ws+listen://127.0.0.1:{port}?token_file={tmp_path}/token"
    run = feeds.run(rt.load(MODEL), address, f"jsonl:{tmp_path}/out.jsonl")

    async def send() -> None:
        await until(listening(run))
        for query in ("", "?token=wrong"):
            with pytest.raises(InvalidStatus, match="401"):
                await connect(f"ws://127.0.0.1:{port}/{query}", proxy=None)
        refused = feeds.run(rt.load(MODEL), f"ws://127.0.0.1:{port}?token=wrong", "jsonl:-")
        with pytest.raises(FeedError, match=r"token=\*\*\*.* the server refused the connection.*401"):
            await refused
        async with connect(f"ws://127.0.0.1:{port}/?token=sesame", proxy=None) as connection:
            await connection.send(as_json(walk(1)[0]))
            await until(lambda: run.report.predictions == 1)

    asyncio.run(running(run, send))


def test_a_taken_port_is_an_error_that_says_so(tmp_path: Path) -> None:
    port = free_port()

    async def both() -> None:
        async with serve(lambda _: None, "127.0.0.1", port):  # type: ignore[arg-type, return-value]
            await feeds.run(rt.load(MODEL), f"ws+listen://127.0.0.1:{port}", f"jsonl:{tmp_path}/out.jsonl")

    with pytest.raises(FeedError, match=r"cannot listen: .*choose another port"):
        asyncio.run(both())
