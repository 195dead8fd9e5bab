"""``/metrics`` over HTTP, for Prometheus: a few lines over asyncio, since it serves one text."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from edgeseq.errors import FeedError
from edgeseq.runtime.feeds.address import host_and_port

_CONTENT = "text/plain; version=0.0.4; charset=utf-8"
_TIMEOUT_S = 5.0


async def serve_metrics(place: str, text: Callable[[], str]) -> asyncio.Server:
    """Serve what ``text`` gives at ``HOST:PORT``; ``:PORT`` is on this machine alone. Close the server at the end.

    Raises:
        ConfigError: the place is none.
        FeedError: nothing can be served there.

    Source: https://prometheus.io/docs/instrumenting/exposition_formats/
    """
    host, port = host_and_port(place)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, ValueError, TimeoutError, asyncio.IncompleteReadError):
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    request = (await reader.readline()).split()
                    while (await reader.readline()).strip():
                        pass
                writer.write(_response(request, text))
                await writer.drain()
            finally:
                writer.close()

    try:
        return await asyncio.start_server(answer, host, port, limit=8192)
    except OSError as error:
        raise FeedError(f"metrics: cannot be served at {place!r}: {error.strerror}; choose another port") from error


def _response(request: list[bytes], text: Callable[[], str]) -> bytes:
    if request[:1] != [b"GET"] or len(request) < 2:
        status, body = "405 Method Not Allowed", ""
    elif request[1].split(b"?")[0] not in (b"/metrics", b"/"):
        status, body = "404 Not Found", ""
    else:
        status, body = "200 OK", text()
    content = body.encode()
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {_CONTENT}\r\nContent-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + content
