"""The bounded queue between a feed and the model, and its two ways of being full."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from edgeseq.errors import ConfigError
from edgeseq.runtime.feeds.frame import Frame


class FrameQueue:
    """Up to ``limit`` frames. When full, the feed waits, or the oldest frame is dropped; both are counted.

    One task puts, another one takes.

    Raises:
        ConfigError: a limit below 1, or another ``when_full`` than "wait" and "drop_oldest".
    """

    def __init__(self, limit: int, when_full: str = "wait") -> None:
        if type(limit) is not int or limit < 1:
            raise ConfigError(f"run: expected queue, a number of frames of 1 or more, got {limit!r}")
        if when_full not in _WHEN_FULL:
            raise ConfigError(f"run: expected when_full, one of {sorted(_WHEN_FULL)}, got {when_full!r}")
        self.dropped = 0
        self.waits = 0
        self._limit = limit
        self._make_room = _WHEN_FULL[when_full]
        self._frames: deque[Frame] = deque()
        self.error: Exception | None = None
        """Why the feed broke off."""
        self._closed = False
        self._filled, self._emptied = asyncio.Event(), asyncio.Event()

    def __len__(self) -> int:
        return len(self._frames)

    async def put(self, frame: Frame) -> None:
        """Add a frame, once there is room."""
        if len(self._frames) >= self._limit:
            await self._make_room(self)
        self._frames.append(frame)
        self._filled.set()

    async def _wait(self) -> None:
        self.waits += 1
        while len(self._frames) >= self._limit:
            self._emptied.clear()
            await self._emptied.wait()

    async def _drop_oldest(self) -> None:
        dropped = self._frames.popleft()
        self.dropped += 1
        if dropped.done is not None:
            dropped.done()
        await asyncio.sleep(0)  # a feed that never waits leaves the model its turn

    def close(self, error: Exception | None = None) -> None:
        """No more frames will come, because of the error if there is one."""
        self._closed, self.error = True, self.error or error
        self._filled.set()

    async def take(self, most: int) -> list[Frame]:
        """The oldest frames, at least one; none when the queue is closed and empty."""
        while not self._frames:
            if self._closed:
                return []
            self._filled.clear()
            await self._filled.wait()
        taken = [self._frames.popleft() for _ in range(min(most, len(self._frames)))]
        self._emptied.set()
        return taken


_WHEN_FULL: dict[str, Callable[[FrameQueue], Awaitable[None]]] = {
    "wait": FrameQueue._wait,
    "drop_oldest": FrameQueue._drop_oldest,
}
