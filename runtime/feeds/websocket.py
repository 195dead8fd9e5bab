"""WebSockets as feeds and sinks, as a client (``ws://``, ``wss://``) and as a server (``ws+listen://``).

A message is a sample or a prediction. A client connects again when the connection is lost. A server takes samples from
all who connect, or gives predictions to all who connect: each has a bounded queue of its own, so that a slow one loses
its oldest predictions, which are counted, and holds up nobody. A server that others than this machine can reach demands
a token.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.http11 import Request, Response

from edgeseq.errors import ConfigError, FeedError
from edgeseq.runtime.feeds.address import Address
from edgeseq.runtime.feeds.decode import decoder
from edgeseq.runtime.feeds.encode import encoder
from edgeseq.runtime.feeds.frame import LONGEST_FRAME, Feed, Frame, Sink
from edgeseq.runtime.feeds.registry import Context
from edgeseq.runtime.feeds.retry import Backoff
from edgeseq.runtime.feeds.secure import client_tls, secret, server_tls
from edgeseq.runtime.prediction import Prediction

_LARGEST = 4 * LONGEST_FRAME  # a message above this ends its connection; one above LONGEST_FRAME is an error of its own
_MOST_WAITING = 64
_CLOSE_S = 1.0  # how long a peer has to say goodbye
_LISTEN = "+listen"


@dataclass(frozen=True)
class WebSocketOptions:
    """``token`` or ``token_file``: a secret that a server demands, and a client shows. ``ca``, ``cert``, ``key``: TLS.

    ``format``, ``columns``, ``id``: as for files. ``queue``: of a server, predictions that may wait for one client.
    ``reconnect``: of a client.
    """

    token: str | None = None
    token_file: str | None = None
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    format: str = "jsonl"
    columns: str | None = None
    id: str = ""
    queue: int = 256
    reconnect: bool = True


def open_feed(address: Address, context: Context) -> Feed:
    """``ws://HOST:PORT/PATH`` to connect, ``ws+listen://HOST:PORT`` to be connected to."""
    return ServerFeed(address, context) if address.scheme.endswith(_LISTEN) else ClientFeed(address, context)


def open_sink(address: Address) -> Sink:
    """``ws://HOST:PORT/PATH`` to connect, ``ws+listen://HOST:PORT`` to be connected to."""
    return ServerSink(address) if address.scheme.endswith(_LISTEN) else ClientSink(address)


class _Place:
    """What client and server read from an address."""

    def __init__(self, address: Address) -> None:
        self.options = options = address.read(WebSocketOptions)
        self.name = str(address)
        if address.host is None:
            raise ConfigError(f"'{address}': expected {address.scheme}://HOST:PORT")
        self.secure = address.scheme.startswith("wss")
        self.host, self.port = address.host, address.port or (443 if self.secure else 80)
        self.path = address.path or "/"
        self.token = secret(options.token, options.token_file, f"'{address}': token")

    def frame(self, message: str | bytes, where: str, stream_id: str | None) -> Frame:
        data = message.encode() if isinstance(message, str) else message
        too_long = len(data) > LONGEST_FRAME
        return Frame(b"" if too_long else data, where, self.options.id or stream_id or None, too_long=too_long)


class _Client:
    """A connection that is made again when it is lost."""

    def __init__(self, place: _Place, counts: dict[str, int]) -> None:
        self._place, self._counts = place, counts
        self.backoff = Backoff()
        """To be reset once the peer did what it is there for: some accept a connection and close it at once."""
        options = place.options
        self._tls = client_tls(options.ca, options.cert, options.key) if place.secure else None

    async def connect(self) -> ClientConnection:
        """Connect, however long it takes.

        Raises:
            FeedError: the server is there, and refuses.
        """
        place = self._place
        scheme = "wss" if place.secure else "ws"
        host = f"[{place.host}]" if ":" in place.host else place.host
        headers = {} if place.token is None else {"Authorization": f"Bearer {place.token}"}
        while True:
            try:
                connection = await connect(
                    f"{scheme}://{host}:{place.port}{place.path}",
                    ssl=self._tls,
                    max_size=_LARGEST,
                    additional_headers=headers,
                    proxy=None,
                )
            except InvalidStatus as error:
                if error.response.status_code < HTTPStatus.INTERNAL_SERVER_ERROR:
                    raise FeedError(f"'{place.name}': the server refused the connection: {error}") from error
            except (OSError, InvalidHandshake, TimeoutError):
                pass
            else:
                self._counts["ws_connections"] = self._counts.get("ws_connections", 0) + 1
                return connection
            await self.backoff.wait()


class ClientFeed:
    """The messages of a server."""

    replays = False

    def __init__(self, address: Address, context: Context) -> None:
        self._place = _Place(address)
        self.name = self._place.name
        self.decoder = _decoder(self._place, context)
        self.counts: dict[str, int] = {}
        self._client = _Client(self._place, self.counts)

    async def frames(self, _position: Any, /) -> AsyncIterator[Frame]:
        """All messages, until the server closes the connection, if it is not to be made again."""
        while True:
            connection = await self._client.connect()
            try:
                async for message in connection:
                    self._client.backoff.reset()
                    yield self._place.frame(message, f"a message of '{self.name}'", None)
            except ConnectionClosed:
                pass
            finally:
                await connection.close()
            if not self._place.options.reconnect:
                return
            await self._client.backoff.wait()

    async def close(self) -> None:
        """The connection is closed with the iterator."""


class ClientSink:
    """A message to a server for each prediction. What a lost connection left in doubt is sent again."""

    rewinds = False

    def __init__(self, address: Address) -> None:
        self._place = _Place(address)
        self.name = self._place.name
        self.counts: dict[str, int] = {}
        self._encode = encoder(self._place.options.format)
        self._client = _Client(self._place, self.counts)
        self._connection: ClientConnection | None = None

    async def open(self, _position: Any, /) -> None:
        """Connect, however long it takes."""
        if self._connection is None:
            self._connection = await self._client.connect()

    async def write(self, predictions: Sequence[Prediction], /) -> None:
        """Send, and wait until the server has answered a ping behind them: it has read them."""
        while True:
            await self.open(None)
            assert self._connection is not None
            try:
                for prediction in predictions:
                    await self._connection.send(self._encode(prediction))
                await (await self._connection.ping())
            except ConnectionClosed:
                await self.close()
                await self._client.backoff.wait()
            else:
                self._client.backoff.reset()
                return

    async def flush(self) -> Any:
        """There is no position."""
        return 0

    async def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


class _Listener:
    """A server, which lets in those who know the token."""

    def __init__(self, place: _Place) -> None:
        self._place = place
        self._tls = server_tls(place.options.cert, place.options.key) if place.secure else None
        self._server: Server | None = None
        if place.token is None and not _is_loopback(place.host):
            raise ConfigError(
                f"'{place.name}': others than this machine can reach it, so it needs a token; add ?token_file=FILE, or "
                "listen at 127.0.0.1"
            )

    async def start(self, handler: Callable[[ServerConnection], Any]) -> None:
        """Listen."""
        place = self._place
        try:
            self._server = await serve(
                handler,
                place.host,
                place.port,
                ssl=self._tls,
                max_size=_LARGEST,
                close_timeout=_CLOSE_S,
                process_request=self._let_in,
            )
        except OSError as error:
            raise FeedError(f"'{place.name}': cannot listen: {error.strerror}; choose another port") from error

    def _let_in(self, connection: ServerConnection, request: Request) -> Response | None:
        if self._place.token is None:
            return None
        shown = parse_qs(urlsplit(request.path).query).get("token", [""])[0]
        shown = request.headers.get("Authorization", f"Bearer {shown}").removeprefix("Bearer ")
        if hmac.compare_digest(shown.encode(), self._place.token.encode()):
            return None
        return connection.respond(HTTPStatus.UNAUTHORIZED, "the token is missing or wrong\n")

    async def stop(self) -> None:
        """Close all connections."""
        server, self._server = self._server, None
        if server is not None:
            open_ones = list(server.connections)
            server.close()
            await server.wait_closed()
            for connection in open_ones:  # of a peer that does not read, the socket waits for it even now
                connection.transport.abort()
            await asyncio.sleep(0)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class ServerFeed:
    """The messages of all who connect. The path of a connection, without its first "/", is the stream id."""

    replays = False

    def __init__(self, address: Address, context: Context) -> None:
        self._place = _Place(address)
        self.name = self._place.name
        self.decoder = _decoder(self._place, context)
        self.counts = {"ws_accepted": 0}
        self._listener = _Listener(self._place)
        self._frames: asyncio.Queue[Frame] = asyncio.Queue(_MOST_WAITING)

    async def frames(self, _position: Any, /) -> AsyncIterator[Frame]:
        """All messages, for ever."""
        await self._listener.start(self._take)
        while True:
            yield await self._frames.get()

    async def _take(self, connection: ServerConnection) -> None:
        self.counts["ws_accepted"] += 1
        stream_id = _stream_id(connection)
        with suppress(ConnectionClosed):
            async for message in connection:
                await self._frames.put(self._place.frame(message, f"a message to '{self.name}'", stream_id))

    async def close(self) -> None:
        """Close all connections."""
        await self._listener.stop()


class ServerSink:
    """Predictions to all who connect: those of one stream, if the path of the connection names it."""

    rewinds = False

    def __init__(self, address: Address) -> None:
        self._place = _Place(address)
        self.name = self._place.name
        self.counts = {"ws_accepted": 0, "ws_dropped": 0}
        if self._place.options.queue < 1:
            raise ConfigError(f"'{address}': expected a queue of 1 or more, got {self._place.options.queue}")
        self._encode = encoder(self._place.options.format)
        self._listener = _Listener(self._place)
        self._clients: dict[asyncio.Queue[str], str] = {}

    async def open(self, _position: Any, /) -> None:
        """Listen."""
        await self._listener.start(self._give)

    async def _give(self, connection: ServerConnection) -> None:
        self.counts["ws_accepted"] += 1
        waiting: asyncio.Queue[str] = asyncio.Queue(self._place.options.queue)
        self._clients[waiting] = _stream_id(connection)
        sender = asyncio.ensure_future(_send_all(connection, waiting))
        try:
            await connection.wait_closed()
        finally:
            del self._clients[waiting]
            sender.cancel()

    async def write(self, predictions: Sequence[Prediction], /) -> None:
        """Hand to all who are connected, and wait for none."""
        for prediction in predictions:
            line = None
            for waiting, wanted in self._clients.items():
                if wanted in ("", prediction.stream_id):
                    line = self._encode(prediction) if line is None else line
                    if waiting.full():
                        waiting.get_nowait()
                        self.counts["ws_dropped"] += 1
                    waiting.put_nowait(line)

    async def flush(self) -> Any:
        """There is no position."""
        return 0

    async def close(self) -> None:
        """Close all connections, once what waits is sent or a second has passed."""
        for _ in range(100):
            if all(waiting.empty() for waiting in self._clients):
                break
            await asyncio.sleep(0.01)
        await self._listener.stop()


async def _send_all(connection: ServerConnection, waiting: asyncio.Queue[str]) -> None:
    with suppress(ConnectionClosed):
        while True:
            await connection.send(await waiting.get())


def _stream_id(connection: ServerConnection) -> str:
    request = connection.request
    return "" if request is None else unquote(urlsplit(request.path).path).removeprefix("/")


def _decoder(place: _Place, context: Context) -> Any:
    made = decoder(place.options.format, place.options.columns, named=context.named)
    if made.needs_header:
        raise ConfigError(f"'{place.name}': messages have no header; give ?columns=..., separated by commas")
    return made
