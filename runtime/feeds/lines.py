"""Lines: cutting bytes into them, and the standard input and output as a feed and a sink.

Reading and writing wait in threads of their own, since neither a pipe nor a terminal need be ready; a thread holds one
piece at a time, so a slow reader of the output stops the input in the end.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from edgeseq.errors import FeedError, FrameError
from edgeseq.runtime.feeds.address import Address
from edgeseq.runtime.feeds.decode import decoder
from edgeseq.runtime.feeds.encode import encoder, header
from edgeseq.runtime.feeds.frame import LONGEST_FRAME, Frame
from edgeseq.runtime.feeds.registry import Context
from edgeseq.runtime.prediction import Prediction

_PIECE = 65536


class LineCutter:
    """Cuts what comes in pieces into lines, and keeps no more than one line of up to ``longest`` bytes.

    Example:
        >>> cutter = LineCutter(longest=4)
        >>> [*cutter.cut(b"ab\\nc"), *cutter.cut(b"d\\r\\nabcdef"), *cutter.cut(b"gh\\ne"), *cutter.end()]
        [(b'ab', False), (b'cd', False), (b'', True), (b'e', False)]
    """

    def __init__(self, longest: int = LONGEST_FRAME) -> None:
        self._longest = longest
        self._kept = b""
        self._too_long = False

    def cut(self, piece: bytes) -> Iterator[tuple[bytes, bool]]:
        """The lines that end in this piece, and whether one was too long and is left out."""
        *ended, rest = piece.split(b"\n")
        for line in ended:
            yield self._line(self._kept + line)
        self._kept += rest
        if len(self._kept) > self._longest + 1:
            self._kept, self._too_long = b"", True

    def end(self) -> Iterator[tuple[bytes, bool]]:
        """A last line without an end, if there is one."""
        if self._kept or self._too_long:
            yield self._line(self._kept)

    def _line(self, line: bytes) -> tuple[bytes, bool]:
        line = line.removesuffix(b"\r")
        too_long = self._too_long or len(line) > self._longest
        self._kept, self._too_long = b"", False
        return (b"" if too_long else line), too_long


@dataclass(frozen=True)
class InputOptions:
    """``id``: the stream id of samples that do not say theirs. ``columns``: of CSV without a header, by commas.

    ``resend``: whoever writes here begins anew from its first line when this process is started again.
    """

    id: str = ""
    columns: str | None = None
    resend: bool = False


class InputFeed:
    """The lines of a file descriptor that cannot seek."""

    def __init__(self, address: Address, context: Context, fd: int = 0) -> None:
        options = address.read(InputOptions)
        self.name = str(address)
        self.replays = options.resend
        self.decoder = decoder(address.scheme, options.columns, named=context.named)
        self.counts: dict[str, int] = {}
        self._id = options.id or None
        self._fd = fd

    async def frames(self, position: Any, /) -> AsyncIterator[Frame]:
        """All lines, but for those that were taken before, if whoever writes them begins anew."""
        taken, number = position or 0, 0
        headless = self.decoder.needs_header
        async for line, too_long in _lines(self._fd):
            number += 1
            where = f"line {number} of the input"
            if headless:
                _take_header(self.decoder, line, where)
                headless = False
            elif number > taken:
                position = number if self.replays else None
                yield Frame(line, where, self._id, position, too_long=too_long)

    async def close(self) -> None:
        """The descriptor stays open: it is not ours."""


def _take_header(decoder: Any, line: bytes, where: str) -> None:
    try:
        decoder.header(line)
    except FrameError as error:
        raise FeedError(f"{where}: expected a header ({error}); give ?columns=... if there is none") from error


async def _lines(fd: int) -> AsyncIterator[tuple[bytes, bool]]:
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[bytes | OSError] = asyncio.Queue(1)

    def read() -> None:
        while True:
            piece: bytes | OSError
            try:
                piece = os.read(fd, _PIECE)
            except OSError as error:
                piece = error
            try:  # waits until the last piece is taken
                put = pieces.put(piece)
                asyncio.run_coroutine_threadsafe(put, loop).result()
            except (RuntimeError, asyncio.CancelledError):  # the loop is closed: nobody reads any more
                put.close()
                return
            if not piece or isinstance(piece, OSError):
                return

    threading.Thread(target=read, name="edgeseq input", daemon=True).start()
    cutter = LineCutter()
    while piece := await pieces.get():
        if isinstance(piece, OSError):
            raise FeedError(f"input: cannot be read: {piece.strerror}") from piece
        for line in cutter.cut(piece):
            yield line
    for line in cutter.end():
        yield line


@dataclass(frozen=True)
class OutputOptions:
    """There are none."""


class OutputSink:
    """Lines to a file descriptor that cannot seek."""

    rewinds = False

    def __init__(self, address: Address, fd: int = 1) -> None:
        address.read(OutputOptions)
        self.name = str(address)
        self.counts: dict[str, int] = {}
        self._format = address.scheme
        self._encode = encoder(address.scheme)
        self._fd = fd
        self._work: queue.Queue[tuple[bytes, Future[None]] | None] = queue.Queue(1)

    async def open(self, position: Any, /) -> None:
        """Write the header of a format that has one, unless a run goes on."""
        threading.Thread(target=self._write_all, name="edgeseq output", daemon=True).start()
        first = header(self._format)
        if first is not None and position is None:
            await self._write(first.encode() + b"\n")

    async def write(self, predictions: Sequence[Prediction], /) -> None:
        """One line for each."""
        await self._write("".join(self._encode(p) + "\n" for p in predictions).encode())

    async def _write(self, data: bytes) -> None:
        done: Future[None] = Future()
        self._work.put((data, done))
        try:
            await asyncio.wrap_future(done)
        except OSError as error:
            raise FeedError(f"output: cannot be written: {error.strerror}") from error

    def _write_all(self) -> None:
        while (work := self._work.get()) is not None:
            data, done = work
            view = memoryview(data)
            try:
                while view:
                    view = view[os.write(self._fd, view) :]
            except OSError as error:
                with suppress(Exception):
                    done.set_exception(error)
            else:
                with suppress(Exception):
                    done.set_result(None)

    async def flush(self) -> Any:
        """What is written is out."""
        return 0

    async def close(self) -> None:
        """The descriptor stays open: it is not ours."""
        with suppress(queue.Full):  # full: the thread waits for a reader that never comes, and ends with the process
            self._work.put_nowait(None)
