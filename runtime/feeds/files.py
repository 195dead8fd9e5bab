"""Files of lines as feeds, at true rate, accelerated or as fast as possible, and as sinks. ``-`` is the standard one.

Both can go back: a feed to the byte after any line, a sink by cutting off what was written later. So a run that was
killed goes on without a prediction lost or repeated.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from edgeseq.errors import ConfigError, FeedError, FrameError
from edgeseq.runtime.feeds import lines
from edgeseq.runtime.feeds.address import Address
from edgeseq.runtime.feeds.decode import decoder
from edgeseq.runtime.feeds.encode import encoder, header
from edgeseq.runtime.feeds.frame import LONGEST_FRAME, Feed, Frame, Sink
from edgeseq.runtime.feeds.registry import Context
from edgeseq.runtime.prediction import Prediction


def open_feed(address: Address, context: Context) -> Feed:
    """``csv:PATH``, ``jsonl:PATH``, ``influx:PATH``, or ``-`` as the path."""
    return lines.InputFeed(address, context) if _path(address) == "-" else FileFeed(address, context)


def open_sink(address: Address) -> Sink:
    """``csv:PATH``, ``jsonl:PATH``, ``influx:PATH``, or ``-`` as the path."""
    return lines.OutputSink(address) if _path(address) == "-" else FileSink(address)


def _path(address: Address) -> str:
    if address.host is not None or not address.path:
        raise ConfigError(f"'{address}': expected {address.scheme}:PATH, or {address.scheme}:- for the standard one")
    return address.path


@dataclass(frozen=True)
class FileOptions:
    """``speed``: "max", or how many times faster than true. ``rate``: in Hz, of samples without timestamps.

    ``id``: the stream id of samples that do not say theirs. ``columns``: of CSV without a header, by commas.
    """

    speed: str = "max"
    rate: float | None = None
    id: str = ""
    columns: str | None = None


class FileFeed:
    """The lines of a file."""

    replays = True

    def __init__(self, address: Address, context: Context) -> None:
        options = address.read(FileOptions)
        self.name = str(address)
        self.decoder = decoder(address.scheme, options.columns, named=context.named)
        self.counts: dict[str, int] = {}
        self._path = address.path
        self._id = options.id or None
        self._pace = _Pace(self.name, options, context.rate_hz)

    async def frames(self, position: Any, /) -> AsyncIterator[Frame]:
        """All lines after the position: {"offset": bytes, "line": number, "begin": SHA-256 of the first line}."""
        try:
            file = open(self._path, "rb")  # noqa: SIM115  closed below
        except OSError as error:
            raise FeedError(f"feed '{self.name}': cannot be opened: {error.strerror}; check the path") from error
        with file:
            begin = hashlib.sha256(file.readline(LONGEST_FRAME)).hexdigest()
            file.seek(0)
            number = self._header(file)
            if position is not None:
                number = self._seek(file, position, begin)
            while (read := _read_line(file)) is not None:
                line, too_long = read
                number += 1
                where = f"line {number} of {self._path!r}"
                after = {"offset": file.tell(), "line": number, "begin": begin}
                if self._pace.waits and not too_long:
                    await self._pace.wait(self._seconds(line, where))
                yield Frame(line, where, self._id, after, too_long=too_long)

    async def close(self) -> None:
        """The file is closed with the iterator."""

    def _header(self, file: BinaryIO) -> int:
        if not self.decoder.needs_header:
            return 0
        line, _ = _read_line(file) or (b"", False)
        try:
            self.decoder.header(line)
        except FrameError as error:
            raise FeedError(f"feed '{self.name}': {error}; give ?columns=... if there is no header") from error
        return 1

    def _seek(self, file: BinaryIO, position: dict[str, Any], begin: str) -> int:
        size, offset = os.fstat(file.fileno()).st_size, int(position["offset"])
        if size < offset or begin != position["begin"]:
            got = f"one of {size}" if size < offset else "one with another first line"
            raise FeedError(
                f"feed '{self.name}': expected the file that the snapshot was taken with, of {offset} bytes or more, "
                f"got {got}; use another --snapshot-dir for another file"
            )
        file.seek(offset)
        return int(position["line"])

    def _seconds(self, line: bytes, where: str) -> float | None:
        try:
            sample = self.decoder.sample(line, where, "")
        except FrameError:
            return None
        return None if sample is None else sample.timestamp_s


class _Pace:
    """Waits until a line is due. The first one is due at once."""

    def __init__(self, name: str, options: FileOptions, rate_hz: float | None) -> None:
        try:
            self._speed = None if options.speed == "max" else float(options.speed)
        except ValueError as error:
            raise ConfigError(f"'{name}': expected speed, 'max' or a number, got {options.speed!r}") from error
        if self._speed is not None and not 0 < self._speed < float("inf"):
            raise ConfigError(f"'{name}': expected a speed above 0, got {options.speed!r}; 'max' is the fastest")
        self._rate_hz = options.rate or rate_hz
        if options.rate is not None and not 0 < options.rate < float("inf"):
            raise ConfigError(f"'{name}': expected a rate above 0 Hz, got {options.rate}")
        self._name = name
        self._begin: tuple[float, float] | None = None  # of the loop's clock, and of the first timestamp
        self._n = 0

    @property
    def waits(self) -> bool:
        return self._speed is not None

    async def wait(self, time_s: float | None) -> None:
        """Wait until a sample of this timestamp is due."""
        if time_s is None:
            if self._rate_hz is None:
                raise FeedError(f"feed '{self._name}': without timestamps, give ?rate=..., in Hz")
            time_s = self._n / self._rate_hz
        self._n += 1
        now = asyncio.get_running_loop().time()
        if self._begin is None:
            self._begin = now, time_s
        due = self._begin[0] + (time_s - self._begin[1]) / (self._speed or 1)
        if due > now:
            await asyncio.sleep(due - now)


def _read_line(file: BinaryIO) -> tuple[bytes, bool] | None:
    """The next line without its end, and whether it was too long and is left out; None at the end."""
    line = file.readline(LONGEST_FRAME + 2)
    if not line:
        return None
    too_long = not line.endswith(b"\n") and len(line) > LONGEST_FRAME
    while too_long and line and not line.endswith(b"\n"):
        line = file.readline(LONGEST_FRAME)
    return (b"" if too_long else line.removesuffix(b"\n").removesuffix(b"\r")), too_long


@dataclass(frozen=True)
class FileSinkOptions:
    """``mode``: what to do with a file that holds something already, "append" or "overwrite"; without it, refuse."""

    mode: str | None = None


class FileSink:
    """Lines in a file, of which a snapshot's position is a number of bytes."""

    rewinds = True

    def __init__(self, address: Address) -> None:
        self._mode = address.read(FileSinkOptions).mode
        self.name = str(address)
        if self._mode not in (None, "append", "overwrite"):
            raise ConfigError(f"'{self.name}': expected mode, 'append' or 'overwrite', got {self._mode!r}")
        self.counts: dict[str, int] = {}
        self._format = address.scheme
        self._encode = encoder(address.scheme)
        self._path = address.path
        self._file: BinaryIO | None = None

    async def open(self, position: Any, /) -> None:
        """Open the file, and cut off what was written after the position."""
        try:
            self._file = file = open(self._path, "ab")  # noqa: SIM115  close() closes it
            size = os.fstat(file.fileno()).st_size
            if position is None:
                if size and self._mode is None:
                    raise FeedError(
                        f"sink '{self.name}': holds {size} bytes already; add ?mode=append or ?mode=overwrite"
                    )
                if self._mode == "overwrite":
                    file.truncate(0)
                first = header(self._format)
                if first is not None and not os.fstat(file.fileno()).st_size:
                    file.write(first.encode() + b"\n")
                    file.flush()
            elif size < position:
                raise FeedError(
                    f"sink '{self.name}': expected the file that the snapshot was taken with, of {position} bytes or "
                    f"more, got one of {size}; use another --snapshot-dir for another file"
                )
            else:
                file.truncate(position)
        except OSError as error:
            raise self._failed("opened", error) from error

    async def write(self, predictions: Sequence[Prediction], /) -> None:
        """One line for each."""
        if self._file is None:
            raise FeedError(f"sink '{self.name}': expected an open file, got a closed one; open() it first")
        try:
            self._file.write("".join(self._encode(p) + "\n" for p in predictions).encode())
            self._file.flush()
        except OSError as error:
            raise self._failed("written", error) from error

    async def flush(self) -> int:
        """Flush the file to the disk."""
        if self._file is None:
            raise FeedError(f"sink '{self.name}': expected an open file, got a closed one; open() it first")
        try:
            self._file.flush()
            await asyncio.to_thread(os.fsync, self._file.fileno())
            return os.fstat(self._file.fileno()).st_size
        except OSError as error:
            raise self._failed("written", error) from error

    async def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _failed(self, what: str, error: OSError) -> FeedError:
        return FeedError(f"sink '{self.name}': cannot be {what}: {error.strerror}")
