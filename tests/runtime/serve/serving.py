"""A server on loopback for tests, on a port of its own, and clients of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from edgeseq import runtime as rt
from edgeseq.runtime.serve.app import Server
from edgeseq.runtime.serve.limits import Limits
from edgeseq.runtime.serve.server import ServeOptions, listening, make_server

TINY = Path("tests/data/tiny.stream.onnx")
OFFLINE = Path("tests/data/tiny.onnx")


@dataclass
class Served:
    """A server that listens, and a client of it."""

    server: Server
    http: aiohttp.ClientSession
    base: str

    def count(self, metric: str, kind: str = "") -> int:
        """What the server counted."""
        return self.server.streams.counters[metric, kind]

    async def ws(self, path: str = "/ws", **options: Any) -> aiohttp.ClientWebSocketResponse:
        """A WebSocket, its hello read."""
        ws: aiohttp.ClientWebSocketResponse = await self.http.ws_connect(self.base + path, **options)
        assert (await ws.receive_json())["type"] in ("hello", "everything", "nothing")
        return ws


@asynccontextmanager
async def serving(model: Path = TINY, *, limits: Limits | None = None, **options: Any) -> AsyncIterator[Served]:
    """Serve a model while the block runs."""
    given = ServeOptions(port=0, limits=limits or Limits(), **options)
    server, context = make_server(rt.load(model), given)
    async with listening(server, given, context) as port, aiohttp.ClientSession() as http:
        scheme = "http" if context is None else "https"
        yield Served(server, http, f"{scheme}://127.0.0.1:{port}")


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run a coroutine of a test, for at most 20 s."""

    async def limited() -> None:
        async with asyncio.timeout(20):
            await test()

    asyncio.run(limited())


async def ask(ws: aiohttp.ClientWebSocketResponse, **frame: Any) -> dict[str, Any]:
    """Send a text frame and return its answer."""
    await ws.send_json(frame)
    answer: dict[str, Any] = await ws.receive_json()
    return answer


def noise(n: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Samples (n, 3) for the tiny model."""
    return np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float32)
