from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest

from edgeseq import runtime as rt
from edgeseq.errors import ConfigError, ModelFileError
from edgeseq.runtime.serve import live
from edgeseq.runtime.serve.server import ServeOptions, make_server
from tests.runtime.serve.serving import OFFLINE, TINY, noise, run, serving


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "noise.csv"
    np.savetxt(path, noise(200), delimiter=",", header="x,y,z", comments="", fmt="%.9g")
    return path


async def _watch(ws: Any) -> list[dict[str, Any]]:
    """All updates until the replay has ended."""
    told: list[dict[str, Any]] = []
    while not told or told[-1].get("state") != "ended":
        told.append(await ws.receive_json())
    return told


def test_a_viewer_sees_every_sample_and_prediction_once(recording: Path) -> None:
    async def test() -> None:
        async with serving(replay=recording, lookahead=TINY, offline=OFFLINE) as served:
            ws = await served.ws("/live")
            await ws.send_json({"type": "speed", "value": 10})
            await ws.send_json({"type": "start"})
            told = await _watch(ws)
            start = next(i for i, each in enumerate(told) if each["type"] == "everything")
            told = told[start:]
            samples = [x for each in told for x in each["samples"]]
            np.testing.assert_allclose(samples, noise(200), rtol=1e-5)
            expected = rt.load_offline(OFFLINE).run(noise(200))
            for name in ("causal", "lookahead", "offline"):
                rows = [row for each in told for row in each["tracks"][name]["rows"]]
                assert [i for each in told for i in each["tracks"][name]["samples"]] == list(range(200))
                np.testing.assert_allclose(rows, expected, atol=2e-5)
            assert not any(each["tracks"]["offline"]["rows"] for each in told[:-1])
            assert told[-1]["agreement"]["causal"]["same_label"] == 1.0
            assert sum(n for _, n in told[-1]["latency"]["histogram"]) == 200
            late = await served.http.ws_connect(served.base + "/live")
            everything = await late.receive_json()
            assert (everything["state"], len(everything["samples"]), everything["labels"]) == (
                "ended",
                200,
                ["rest", "move"],
            )
            for each in (ws, late):
                await each.close()

    run(test)


def test_a_replay_stops_and_starts_anew(recording: Path) -> None:
    async def test() -> None:
        async with serving(replay=recording, offline=OFFLINE) as served:
            ws = await served.ws("/live")
            for _ in range(2):
                await ws.send_json({"type": "start"})
                while (await ws.receive_json())["position"] < 5:
                    pass
                await ws.send_json({"type": "stop"})
                last = (await _watch(ws))[-1]
                assert 5 <= last["position"] < 200
                assert len(last["tracks"]["offline"]["rows"]) == last["position"]
            await ws.close()

    run(test)


async def _closing_code(ws: aiohttp.ClientWebSocketResponse) -> int | None:
    async for _ in ws:
        pass
    return ws.close_code


@pytest.mark.parametrize(
    "frame", ["", "{", "[]", "3", '{"type": "speed"}', '{"type": "speed", "value": true}', '{"type": []}', "[" * 9999]
)
def test_a_malformed_wish_is_answered_by_name(frame: str) -> None:
    async def test() -> None:
        async with serving() as served:
            ws = await served.ws("/live")
            await ws.send_str(frame)
            assert (await ws.receive_json())["error"] == "FrameError"
            assert served.server.streams.counters.total("malformed_total") == 1
            await ws.close()

    run(test)


def test_a_viewer_that_does_not_read_misses_updates_and_is_told_everything() -> None:
    async def test() -> None:
        viewer = live.Viewer()
        assert all(viewer.put(str(i)) for i in range(live.QUEUE))
        assert not viewer.put("one more")
        assert viewer.missed == live.QUEUE + 1
        assert viewer.put("everything")
        assert await viewer.get() == "everything"

    run(test)


def test_a_slow_viewer_holds_nobody_up(recording: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "QUEUE", 2)

    async def test() -> None:
        async with serving(replay=recording) as served:
            assert isinstance(served.server.live, live.Live)
            slow = served.server.live.join()  # nobody reads it
            ws = await served.ws("/live")
            await ws.send_json({"type": "speed", "value": 10})
            await ws.send_json({"type": "start"})
            told = await _watch(ws)
            assert sum(len(each["samples"]) for each in told) == 200
            assert slow.missed > 0
            assert served.count("dropped_updates_total") > 0
            assert json.loads(await slow.get())["type"] in ("everything", "update")
            await ws.close()

    run(test)


def test_a_server_stops_in_the_middle_of_a_replay(recording: Path) -> None:
    async def test() -> None:
        async with aiohttp.ClientSession() as http:
            async with serving(replay=recording) as served:
                ws = await http.ws_connect(served.base + "/live")
                await ws.send_json({"type": "start"})
                while (await ws.receive_json())["position"] < 5:
                    pass
                closing = asyncio.create_task(_closing_code(ws))
            assert await closing == 1001

    run(test)


def test_files_that_do_not_fit_are_refused_before_anything_listens() -> None:
    for options, error in (
        (ServeOptions(offline=TINY), ModelFileError),
        (ServeOptions(lookahead=OFFLINE), ModelFileError),
        (ServeOptions(replay=Path("nowhere.csv")), ConfigError),
        (ServeOptions(token_file=Path("nowhere.txt")), ConfigError),
        (ServeOptions(tls_cert=Path("nowhere.pem")), ConfigError),
        (ServeOptions(tls_key=Path("nowhere.pem")), ConfigError),
        (ServeOptions(host="0.0.0.0"), ConfigError),
    ):
        with pytest.raises(error):
            make_server(rt.load(TINY), options)
