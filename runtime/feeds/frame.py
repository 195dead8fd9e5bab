"""What feeds read and sinks write: the two small protocols that every scheme follows.

A **frame** is one piece of what came in, a line or a message, still as bytes: what it says is the decoder's matter, so
that a frame that says nothing right is counted instead of ending the feed.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from edgeseq.runtime.feeds.decode import Decoder
from edgeseq.runtime.prediction import Prediction

LONGEST_FRAME = 2**20
"""Bytes of a line or message; longer ones are errors of that frame, counted as ``too_long``."""


@dataclass(slots=True, eq=False)
class Frame:
    """One line or message.

    Attributes:
        data: its bytes, without the end of the line.
        where: how an error names it.
        stream_id: the sensor's, where the transport says it; what the frame itself says comes first.
        position: of a feed that can read again: where to go on after this frame, as JSON can hold it.
        done: called once its predictions are out, or there are none; so a broker gets its acknowledgement.
        too_long: ``data`` was left out, since it was longer than ``LONGEST_FRAME``.
        read_ns: when it was read, of ``time.perf_counter_ns``.
    """

    data: bytes
    where: str
    stream_id: str | None = None
    position: Any = None
    done: Callable[[], None] | None = None
    too_long: bool = False
    read_ns: int = field(default_factory=time.perf_counter_ns)


class Feed(Protocol):
    """Where frames come from.

    ``replays`` says whether ``frames(position)`` gives all frames after that position again, also in another process.
    Of a feed that cannot, a run keeps the samples itself.
    """

    name: str
    replays: bool
    counts: dict[str, int]

    @property
    def decoder(self) -> Decoder:
        """What makes samples of its frames."""

    def frames(self, position: Any, /) -> AsyncIterator[Frame]:
        """All frames after ``position``, from the start if it is None; it ends when there will be no more.

        Raises:
            FeedError: it cannot be read, or is not the one that ``position`` was in.
        """

    async def close(self) -> None:
        """Let go of what is open."""


class Sink(Protocol):
    """Where predictions go.

    ``rewinds`` says whether ``open(position)`` takes back what was written after ``position``.
    """

    name: str
    rewinds: bool
    counts: dict[str, int]

    async def open(self, position: Any, /) -> None:
        """Begin, after ``position`` if it is not None.

        Raises:
            FeedError: it cannot be written, or is not the one that ``position`` was in.
        """

    async def write(self, predictions: Sequence[Prediction], /) -> None:
        """Write; they are out when this returns.

        Raises:
            FeedError: they cannot be written, and will not be.
        """

    async def flush(self) -> Any:
        """Make what was written last, and return the position after it, None if there is none."""

    async def close(self) -> None:
        """Let go of what is open."""
