"""Over real sockets on loopback."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import struct
from typing import Any

import aiohttp
import numpy as np
import pytest

from edgeseq import runtime as rt
from edgeseq.runtime.serve.frames import HEADER, chunk_frame, read_rows
from edgeseq.runtime.serve.limits import Limits
from tests.runtime.serve.serving import OFFLINE, TINY, Served, ask, noise, run, serving
from tests.runtime.serve.test_frames import MALFORMED


def test_many_streams_over_one_socket_give_the_offline_rows() -> None:
    async def test() -> None:
        x = {f"pump-{i}": noise(30, i) for i in range(7)}
        got: dict[str, list[list[float]]] = {name: [] for name in x}
        output = rt.load(TINY).output
        async with serving() as served:
            ws = await served.ws()
            for t in range(0, 30, 3):
                for i, (name, samples) in enumerate(x.items()):
                    if i % 2:
                        await ws.send_bytes(chunk_frame(name, samples[t : t + 3], t))
                        told = read_rows(await ws.receive_bytes(), output)
                        assert told[:3] == (name, t, t)
                        got[name] += told[3].tolist()
                    else:
                        answer = await ask(ws, type="chunk", stream_id=name, values=samples[t : t + 3].tolist(), ref=t)
                        assert (answer["stream_id"], answer["ref"]) == (name, t)
                        got[name] += [p["output"] for p in answer["predictions"]]
            await ws.close()
        offline = rt.load_offline(OFFLINE)
        for name, samples in x.items():
            np.testing.assert_allclose(got[name], offline.run(samples), atol=1e-5)

    run(test)


def test_a_thousand_malformed_frames_move_no_stream() -> None:
    async def test() -> None:
        dice, x = random.Random(7), noise(100)
        async with serving() as served:
            bad, good = await served.ws(), await served.ws()
            got = []
            for i in range(1000):
                frame = _mangled(dice)
                await (bad.send_bytes(frame) if isinstance(frame, bytes) else bad.send_str(frame))
                if i % 10 == 0:
                    for ws in (bad, good):  # the same id in both, which are two streams
                        await ws.send_json({"type": "sample", "stream_id": "a", "values": x[i // 10].tolist()})
                answer = json.loads((await bad.receive()).data)
                assert answer["type"] == "error", (frame, answer)
                assert answer["error"] in {"FrameError", "ShapeError", "DTypeError", "InputError", "NonFiniteError"}
                if i % 10 == 0:
                    got.append(await bad.receive_json())
                    assert got[-1] == await good.receive_json()
            assert served.server.streams.counters.total("errors_total") == 1000
            assert served.count("frames_total", "sample") == 200
            assert served.count("streams") == 2
            for ws in (bad, good):
                await ws.close()
        rows = [answer["predictions"][0]["output"] for answer in got]
        np.testing.assert_allclose(rows, rt.load_offline(OFFLINE).run(x), atol=1e-5)

    run(test)


def _mangled(dice: random.Random) -> str | bytes:
    """A frame that cannot be right, made of one that is."""
    kind = dice.randrange(5)
    if kind == 0:
        return dice.choice([frame for frames in MALFORMED.values() for frame in frames])
    if kind == 1:  # bytes that are cut or of another version; the id and the samples are as they were
        frame = bytearray(chunk_frame("a", noise(2)))
        return bytes(frame[: dice.randrange(len(frame) - 24)]) if dice.random() < 0.5 else b"\x07" + bytes(frame[1:])
    if kind == 2:
        return HEADER.pack(1, 1, 1, 9) + b"a" + dice.randbytes(dice.randrange(1, 12))
    if kind == 3:  # a text that ends too soon
        text = json.dumps({"type": "sample", "stream_id": "a", "values": [1.5, 2.5, 3.5]})
        return text[: dice.randrange(len(text))]
    values: Any = dice.choice([[1], [1, 2, "3"], [[1, 2, 3]], None, {}, "NaN", [1, 2, 1e300], [1, 2, True], [[[]]]])
    return json.dumps({"type": dice.choice(["sample"]), "stream_id": "a", "values": values})


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"\x81\x82\0\0\0\0\xff\xfe", 1007),  # a text frame that is not UTF-8
        (b"\x83\x80\0\0\0\0", 1002),  # an opcode that there is not
        (b"\xc1\x80\0\0\0\0", 1002),  # compressed, which was not agreed on
        (b"\x82\xff" + struct.pack(">Q", 2**40) + b"\0\0\0\0", 1009),  # far too long
        (b"\x82\xff" + struct.pack(">Q", 2**20 + 1) + b"\0\0\0\0", 1009),
    ],
)
def test_a_broken_websocket_is_closed_by_its_code(payload: bytes, code: int) -> None:
    async def test() -> None:
        async with serving() as served:
            reader, writer = await _raw(served)
            other = await served.ws()
            await ask(other, type="sample", stream_id="a", values=[0, 0, 0])
            writer.write(payload + b"\0" * 100)
            await _skip_to_close(reader, code)
            writer.close()
            assert (await ask(other, type="sample", stream_id="a", values=[0, 0, 0]))["position"] == 2
            await _until(lambda: served.count("refused_total", "websocket") == 1)
            await other.close()

    run(test)


async def _raw(served: Served) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A WebSocket by hand, after its hello's first bytes."""
    port = int(served.base.rsplit(":", 1)[1])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    key = base64.b64encode(os.urandom(16)).decode()
    writer.write(
        f"GET /ws HTTP/1.1\r\nHost: localhost:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    assert b"101" in await reader.readuntil(b"\r\n\r\n")
    return reader, writer


async def _skip_to_close(reader: asyncio.StreamReader, code: int) -> None:
    while True:
        first, size = await reader.readexactly(2)
        if size == 126:
            (size,) = struct.unpack(">H", await reader.readexactly(2))
        data = await reader.readexactly(size)
        if first == 0x88:
            assert struct.unpack(">H", data[:2]) == (code,)
            return


async def _until(holds: Any) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.01)


def test_a_client_that_does_not_read_is_cut_off_and_delays_nobody() -> None:
    async def test() -> None:
        async with serving(limits=Limits(slow_s=0.3)) as served:
            reader, writer = await _raw(served)
            frame = chunk_frame("a", noise(1000))
            flood = b"\x82\xfe" + struct.pack(">H", len(frame)) + b"\0\0\0\0" + frame
            other = await served.ws()

            async def send() -> None:
                while True:
                    writer.write(flood)
                    await writer.drain()

            sending = asyncio.create_task(send())
            seen = 0
            while not served.count("slow_clients_total"):
                seen += 1
                assert (await ask(other, type="sample", stream_id="a", values=[0, 0, 0]))["position"] == seen
                await asyncio.sleep(0.005)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            await _until(lambda: served.count("streams") == 1)
            assert seen > 5
            assert len(reader._buffer) < 2**20  # type: ignore[attr-defined]
            writer.close()
            await other.close()

    run(test)


def test_the_end_of_a_connection_closes_its_streams_but_kept_ones() -> None:
    async def test() -> None:
        async with serving() as served:
            for closing in ("close", "abort"):
                ws = await served.ws()
                await ask(ws, type="sample", stream_id="a", values=[0, 0, 0])
                await ask(ws, type="open", stream_id="kept", keep=True)
                answer = await ask(ws, type="sample", stream_id="kept", values=[0, 0, 0])
                assert served.count("streams") == 2
                if closing == "close":
                    await ws.close()
                else:
                    assert ws._conn is not None
                    assert ws._conn.transport is not None
                    ws._conn.transport.abort()
                await _until(lambda: served.count("streams") == 1)
            assert answer["position"] == 2
            assert served.count("connections", "ws") == 0

    run(test)


def test_there_are_only_so_many_connections() -> None:
    async def test() -> None:
        async with serving(limits=Limits(connections=2)) as served:
            first, second = await served.ws(), await served.ws("/live")
            with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                await served.ws()
            assert caught.value.status == 503
            assert served.count("refused_total", "connections") == 1
            await first.close()
            await _until(lambda: served.count("connections", "ws") == 0)
            third = await served.ws()
            for ws in (second, third):
                await ws.close()

    run(test)


def test_pages_and_metrics() -> None:
    async def test() -> None:
        async with serving() as served:
            for path, kind in (
                ("/", "text/html"),
                ("/static/live.js", "text/javascript"),
                ("/healthz", "application/json"),
            ):
                async with served.http.get(served.base + path) as answer:
                    assert (answer.status, answer.content_type) == (200, kind)
                    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
            for path in ("/static/%2e%2e/app.py", "/static/uPlot.LICENSE", "/static/../app.py", "/nowhere"):
                async with served.http.get(served.base + path) as answer:
                    assert answer.status == 404
            async with served.http.post(served.base + "/healthz") as answer:
                assert answer.status == 405
            ws = await served.ws()
            await ask(ws, type="sample", stream_id="a", values=[0, 0, 0])
            async with served.http.get(served.base + "/metrics") as answer:
                text = await answer.text()
            assert 'edgeseq_step_seconds_count{model="tiny"} 1\n' in text
            assert 'edgeseq_serve_refused_total{kind="http_404"} 4\n' in text
            await ws.close()

    run(test)


def test_strangers_are_refused() -> None:
    async def test() -> None:
        token = "a-token-of-some-length"
        os.environ["EDGESEQ_TOKEN"] = token
        try:
            async with serving() as served:
                await _refuses_strangers(served, token)
        finally:
            del os.environ["EDGESEQ_TOKEN"]

    run(test)


async def _refuses_strangers(served: Served, token: str) -> None:
    base, http = served.base, served.http
    wrong = {"Authorization": "Bearer a-token-of-some-lengtj"}
    for path in ("/", "/metrics", "/static/live.js", "/v2", "/ws", "/live"):
        for headers in ({}, wrong, {"Authorization": f"Basic {token}"}):
            async with http.get(base + path, headers=headers) as answer:
                assert answer.status == 401, path
                assert token not in await answer.text()
    for headers, kind in (({"Origin": "https://example.org"}, "origin"), ({"Host": "example.org"}, "host")):
        async with http.get(base + "/ws", headers={"Authorization": f"Bearer {token}", **headers}) as answer:
            assert answer.status == 403
        assert served.count("refused_total", kind) == 1
    async with http.get(base + "/healthz") as answer:
        assert answer.status == 200
    ws = await served.ws(headers={"Authorization": f"Bearer {token}"})
    await ws.close()
    async with http.post(base + "/login", data={"token": "wrong"}) as answer:
        assert answer.status == 401
    async with http.post(base + "/login", data={"token": token}, allow_redirects=False) as answer:
        assert answer.status == 303
        cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    headers = {"Cookie": cookie.split(";")[0]}
    async with http.get(base + "/", headers=headers) as answer:
        assert answer.status == 200
