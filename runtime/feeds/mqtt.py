"""MQTT as a feed and a sink, over aiomqtt: ``mqtt://user@host:1883/sensors/+/imu`` and ``mqtts://``.

What the wildcards of a topic match is the stream id. A message of QoS 1 is acknowledged once its predictions are out,
so a broker that keeps the session (``?client=NAME``) sends it again to whoever comes after a crash. A lost connection
is made again, for ever; a refused one is an error.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import aiomqtt

from edgeseq.errors import ConfigError, FeedError
from edgeseq.runtime.feeds.address import Address
from edgeseq.runtime.feeds.decode import decoder
from edgeseq.runtime.feeds.encode import encoder
from edgeseq.runtime.feeds.frame import LONGEST_FRAME, Feed, Frame, Sink
from edgeseq.runtime.feeds.registry import Context
from edgeseq.runtime.feeds.retry import Backoff
from edgeseq.runtime.feeds.secure import client_tls, secret
from edgeseq.runtime.prediction import Prediction

SCHEMES = ("mqtt", "mqtts")
_PORTS = {"mqtt": 1883, "mqtts": 8883}
_REFUSED = (132, 133, 134, 135)  # protocol, client id, user or password, not authorised: it will not get better
_MOST_WAITING = 65_535  # messages that arrived and were not taken; no broker has more of one session under way
_log = logging.getLogger("edgeseq.mqtt")
_log.addHandler(logging.NullHandler())
_log.propagate = False


@dataclass(frozen=True)
class MqttOptions:
    """Of both. ``client``: a name of its own, under which the broker keeps messages while nobody is connected.

    ``ca``, ``cert``, ``key``: files for TLS. ``password_file``: its first line is the password. ``format``: of the
    messages. ``qos``: 0, 1 or 2. ``retain``: of a sink. ``id`` and ``columns``: of a feed, as for files.
    """

    qos: int = 1
    client: str | None = None
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    password_file: str | None = None
    format: str = "jsonl"
    retain: bool = False
    keepalive_s: int = 30
    id: str = ""
    columns: str | None = None


def open_feed(address: Address, context: Context) -> Feed:
    """``mqtt://HOST/TOPIC``."""
    return MqttFeed(address, context)


def open_sink(address: Address) -> Sink:
    """``mqtt://HOST/TOPIC``, in which ``{stream_id}`` is replaced."""
    return MqttSink(address)


class _Broker:
    """Where the broker is, and how to get there."""

    def __init__(self, address: Address, options: MqttOptions) -> None:
        if address.host is None or not address.path.strip("/"):
            raise ConfigError(f"'{address}': expected {address.scheme}://HOST/TOPIC")
        if options.qos not in (0, 1, 2):
            raise ConfigError(f"'{address}': expected qos, 0, 1 or 2, got {options.qos}")
        self.name = str(address)
        self._arguments: dict[str, Any] = {
            "hostname": address.host,
            "port": address.port or _PORTS[address.scheme],
            "username": address.user,
            "password": secret(address.password, options.password_file, f"'{address}': password"),
            "identifier": options.client,
            "clean_session": options.client is None,
            "keepalive": options.keepalive_s,
            "logger": _log,
            "socket_options": [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],  # else small messages wait up to 40 ms
        }
        if address.scheme == "mqtts":
            self._arguments["tls_context"] = client_tls(options.ca, options.cert, options.key)

    def client(self, queue: Callable[..., Any] | None = None) -> aiomqtt.Client:
        """A client that is not connected yet."""
        client = aiomqtt.Client(**self._arguments, queue_type=queue)  # type: ignore[arg-type]
        client.pending_calls_threshold = _MOST_WAITING
        return client

    def give_up(self, client: aiomqtt.Client, error: aiomqtt.MqttError) -> None:
        """Close what a connection that failed left open, and raise if trying again will not help."""
        if client._client.socket() is not None:  # as after a time-out, which aiomqtt leaves as it is
            client._client._sock_close()
        code = getattr(error, "rc", None)
        refused = isinstance(error, aiomqtt.MqttCodeError) and getattr(code, "value", code) in _REFUSED
        if refused or "CERTIFICATE_VERIFY_FAILED" in str(error):
            fix = "check user and password" if refused else "give the authority's certificate as ?ca=FILE"
            raise FeedError(f"'{self.name}': the connection was refused: {error}; {fix}") from error


class MqttFeed:
    """The messages of a topic."""

    replays = False

    def __init__(self, address: Address, context: Context) -> None:
        options = address.read(MqttOptions)
        self._broker = _Broker(address, options)
        self.name = self._broker.name
        self.decoder = decoder(options.format, options.columns, named=context.named)
        if self.decoder.needs_header:
            raise ConfigError(f"'{address}': messages have no header; give ?columns=..., separated by commas")
        self.counts = {"mqtt_connections": 0, "mqtt_overflowed": 0}
        self._topic = address.path.removeprefix("/")
        self._qos = options.qos
        self._id = options.id or None
        self._connected: aiomqtt.Client | None = None

    async def frames(self, _position: Any, /) -> AsyncIterator[Frame]:
        """All messages, for ever."""
        backoff = Backoff()
        while True:
            client = self._broker.client(self._queue)
            # aiomqtt acknowledges a message before it hands it over; paho, below it, can leave that to us.
            client._client.manual_ack_set(True)
            try:
                async with client:
                    self._connected = client
                    self.counts["mqtt_connections"] += 1
                    await client.subscribe(self._topic, qos=self._qos)
                    backoff.reset()
                    async for message in client.messages:
                        yield self._frame(client, message)
            except aiomqtt.MqttError as error:
                self._broker.give_up(client, error)
            finally:
                self._connected = None
            await backoff.wait()

    def _frame(self, client: aiomqtt.Client, message: aiomqtt.Message) -> Frame:
        def done() -> None:
            if self._connected is client:  # else the broker sends it again, on another connection
                client._client.ack(message.mid, message.qos)

        topic = str(message.topic)
        data = bytes(message.payload) if isinstance(message.payload, (bytes, bytearray)) else b""
        too_long = len(data) > LONGEST_FRAME
        where = f"a message of topic {topic!r}"
        stream_id = self._id or matched(self._topic, topic)
        return Frame(b"" if too_long else data, where, stream_id, None, done if message.qos else None, too_long)

    def _queue(self, maxsize: int = 0) -> asyncio.Queue[aiomqtt.Message]:
        del maxsize
        return _CountingQueue(self.counts)

    async def close(self) -> None:
        """The connection is closed with the iterator."""


class _CountingQueue(asyncio.Queue[aiomqtt.Message]):
    """Counts the messages for which there is no room, which a broker that waits for acknowledgements never sends."""

    def __init__(self, counts: dict[str, int]) -> None:
        super().__init__(_MOST_WAITING)
        self._counts = counts

    def put_nowait(self, item: aiomqtt.Message) -> None:
        try:
            super().put_nowait(item)
        except asyncio.QueueFull:
            self._counts["mqtt_overflowed"] += 1


def matched(topic_filter: str, topic: str) -> str:
    """What the wildcards of a filter matched, joined by "/"; the whole topic, if there is none.

    Example:
        >>> matched("sensors/+/imu", "sensors/wrist-7/imu"), matched("sensors/#", "sensors/a/b"), matched("imu", "imu")
        ('wrist-7', 'a/b', 'imu')
    """
    parts = topic.split("/")
    found: list[str] = []
    for i, part in enumerate(topic_filter.split("/")):
        if part == "#":
            found += parts[i:]
        elif part == "+":
            found.append(parts[i])
    return "/".join(found) or topic


class MqttSink:
    """A message for each prediction. What a lost connection left in doubt is sent again, with the same index."""

    rewinds = False

    def __init__(self, address: Address) -> None:
        options = address.read(MqttOptions)
        self._broker = _Broker(address, options)
        self.name = self._broker.name
        self.counts = {"mqtt_sink_connections": 0}
        self._topic = address.path.removeprefix("/")
        if "+" in self._topic or "#" in self._topic:
            raise ConfigError(
                f"'{address}': expected a topic without wildcards; {{stream_id}} stands for the stream's id"
            )
        self._encode = encoder(options.format)
        self._qos, self._retain = options.qos, options.retain
        self._client: aiomqtt.Client | None = None
        self._backoff = Backoff()

    async def open(self, _position: Any, /) -> None:
        """Connect, however long it takes."""
        while self._client is None:
            client = self._broker.client()
            try:
                self._client = await client.__aenter__()
                self.counts["mqtt_sink_connections"] += 1
                self._backoff.reset()
            except aiomqtt.MqttError as error:
                self._broker.give_up(client, error)
                await self._backoff.wait()

    async def write(self, predictions: Sequence[Prediction], /) -> None:
        """Publish, in order; of QoS 1 and 2, wait for the broker's word. Whatever is in doubt is published again."""
        left = list(predictions)
        while left:
            await self.open(None)
            given = await asyncio.gather(*(self._publish(p) for p in left), return_exceptions=True)
            for problem in given:
                if isinstance(problem, BaseException) and not isinstance(problem, aiomqtt.MqttError):
                    raise problem
            left = [p for p, problem in zip(left, given, strict=True) if problem is not None]
            if left:
                await self.close()

    async def _publish(self, prediction: Prediction) -> None:
        assert self._client is not None
        topic = self._topic.replace("{stream_id}", quote(prediction.stream_id, safe="/ "))
        await self._client.publish(topic, self._encode(prediction).encode(), self._qos, self._retain)

    async def flush(self) -> Any:
        """There is no position."""
        return 0

    async def close(self) -> None:
        """Disconnect."""
        client, self._client = self._client, None
        if client is not None:
            with suppress(aiomqtt.MqttError):
                await client.__aexit__(None, None, None)
