"""A serial port as a feed, over pyserial: lines, or binary frames of one size behind a marker.

A port that goes away, as when a cable is pulled, is opened again once it is back. Bytes that nobody takes wait in the
kernel, whose buffer is short: a microcontroller that numbers its samples shows what was lost there.
"""

from __future__ import annotations

import asyncio
import os
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import serial

from edgeseq.errors import ConfigError, FeedError
from edgeseq.runtime.feeds.address import Address
from edgeseq.runtime.feeds.decode import decoder
from edgeseq.runtime.feeds.frame import Feed, Frame
from edgeseq.runtime.feeds.lines import LineCutter
from edgeseq.runtime.feeds.registry import Context
from edgeseq.runtime.feeds.retry import Backoff

_PIECE = 4096
_DTYPES = {"f4": "<f4", "f8": "<f8", "i2": "<i2", "i4": "<i4"}

Check = tuple[int, Callable[[bytes], int]]
CHECKS: dict[str, Check] = {
    "none": (0, lambda _: 0),
    "sum8": (1, lambda payload: sum(payload) & 0xFF),
    "crc32": (4, zlib.crc32),
}
"""Check values behind a payload, little-endian: how many bytes, and how they are computed."""


@dataclass(frozen=True)
class SerialOptions:
    """``baud``: the speed. ``format``: of lines "csv", "jsonl", "influx"; of binary frames "f4", "f8", "i2", "i4".

    ``columns``: of CSV, by commas. ``sync``: the marker before a binary frame, in hexadecimal. ``size``: how many bytes
    a frame has between marker and check; those of one sample, by default. ``check``: "none", "sum8" or "crc32".
    ``id``: the stream id of samples that do not say theirs.
    """

    baud: int = 115_200
    format: str = "csv"
    columns: str | None = None
    sync: str = "aa55"
    size: int | None = None
    check: str = "none"
    id: str = ""


def open_feed(address: Address, context: Context) -> Feed:
    """``serial:DEVICE``."""
    return SerialFeed(address, context)


class FrameCutter:
    """Cuts what comes in pieces into frames of one size: marker, payload, check value. Between frames, it skips.

    Example:
        >>> counts = {"serial_skipped_bytes": 0, "serial_bad_checks": 0}
        >>> cutter = FrameCutter(b"\\xaa\\x55", 2, CHECKS["sum8"], counts)
        >>> list(cutter.cut(b"noise\\xaa\\x55\\x01\\x02\\x03\\xaa\\x55\\x04"))
        [(b'\\x01\\x02', False)]
        >>> list(cutter.cut(b"\\x05\\x00\\xaa\\x55\\x06\\x07\\x0d")), counts
        ([(b'\\x06\\x07', False)], {'serial_skipped_bytes': 10, 'serial_bad_checks': 1})
    """

    def __init__(self, sync: bytes, size: int, check: Check, counts: dict[str, int]) -> None:
        self._sync, self._size, self._counts = sync, size, counts
        self._check_size, self._check = check
        self._kept = b""

    def cut(self, piece: bytes) -> Iterator[tuple[bytes, bool]]:
        """The payloads that end in this piece; none is too long."""
        data, whole = self._kept + piece, len(self._sync) + self._size + self._check_size
        at = 0
        while True:
            found = data.find(self._sync, at)
            if found < 0:  # the marker's begin may be the last bytes
                found = max(at, len(data) - len(self._sync) + 1)
            self._counts["serial_skipped_bytes"] += found - at
            at = found
            if len(data) - at < whole:
                break
            begin = at + len(self._sync)
            payload = data[begin : begin + self._size]
            value = int.from_bytes(data[begin + self._size : at + whole], "little")
            if value == self._check(payload):
                yield payload, False
                at += whole
            else:  # this was no marker, or the frame is damaged: the next marker may stand within it
                self._counts["serial_bad_checks"] += 1
                self._counts["serial_skipped_bytes"] += 1
                at += 1
        self._kept = data[at:]


class SerialFeed:
    """What a serial port sends."""

    replays = False

    def __init__(self, address: Address, context: Context) -> None:
        options = address.read(SerialOptions)
        if address.host is not None or not address.path:
            raise ConfigError(f"'{address}': expected serial:DEVICE, such as serial:/dev/ttyUSB0")
        self.name = str(address)
        self.counts = {"serial_opened": 0, "serial_skipped_bytes": 0, "serial_bad_checks": 0}
        self.decoder = decoder(options.format, options.columns, named=context.named)
        if self.decoder.needs_header:
            raise ConfigError(f"'{address}': a port may be opened after a header went by; give ?columns=...")
        self._path, self._options = address.path, options
        self._new_cutter = self._cutters(options, context.n_values)
        self._port: Any = None

    def _cutters(self, options: SerialOptions, n_values: int | None) -> Callable[[], LineCutter | FrameCutter]:
        if options.format not in _DTYPES:
            return LineCutter
        try:
            sync = bytes.fromhex(options.sync)
        except ValueError as error:
            raise ConfigError(f"'{self.name}': expected sync in hexadecimal, got {options.sync!r}") from error
        itemsize = np.dtype(_DTYPES[options.format]).itemsize
        size = options.size if n_values is None or options.size is not None else n_values * itemsize
        if not sync or size is None or size < 1 or size % itemsize:
            raise ConfigError(
                f"'{self.name}': expected a sync, and a size of whole numbers of {itemsize} bytes, got {size}"
            )
        if options.check not in CHECKS:
            raise ConfigError(f"'{self.name}': expected check, one of {sorted(CHECKS)}, got {options.check!r}")
        return lambda: FrameCutter(sync, size, CHECKS[options.check], self.counts)

    async def frames(self, _position: Any, /) -> AsyncIterator[Frame]:
        """Whatever comes, for ever."""
        backoff, number = Backoff(), 0
        while True:
            try:
                self._open()
                cutter = self._new_cutter()
                async for piece in self._pieces():
                    backoff.reset()
                    for data, too_long in cutter.cut(piece):
                        number += 1
                        where = f"frame {number} of {self._path!r}"
                        yield Frame(data, where, self._options.id or None, too_long=too_long)
            except OSError as error:  # pyserial's SerialException is one
                await self.close()
                if not self.counts["serial_opened"]:
                    raise FeedError(f"feed '{self.name}': cannot be opened: {error}; check path and rights") from error
            await backoff.wait()

    def _open(self) -> None:
        self._port = serial.Serial(self._path, self._options.baud, timeout=0, exclusive=True)
        self.counts["serial_opened"] += 1

    async def _pieces(self) -> AsyncIterator[bytes]:
        loop, fd = asyncio.get_running_loop(), self._port.fileno()
        while True:
            ready: asyncio.Future[None] = loop.create_future()
            loop.add_reader(fd, _wake, ready)
            try:
                await ready
            finally:
                loop.remove_reader(fd)
            piece = os.read(fd, _PIECE)
            if not piece:
                raise OSError(f"{self._path!r} was closed")
            yield piece

    async def close(self) -> None:
        """Close the port."""
        port, self._port = self._port, None
        if port is not None:
            port.close()


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
