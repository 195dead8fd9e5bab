"""When to try again to reach a peer: soon at first, then less and less often, never all at the same time."""

from __future__ import annotations

import asyncio
import random

_FIRST_S, _LONGEST_S = 0.1, 30.0


class Backoff:
    """Waits that double from 0.1 s to 30 s, each shortened by up to a half at random, so that a fleet spreads out.

    Example:
        >>> backoff = Backoff()
        >>> waits = [backoff.next_s() for _ in range(20)]
        >>> 0.05 <= waits[0] <= 0.1, 15 <= waits[-1] <= 30
        (True, True)
    """

    def __init__(self) -> None:
        self._longest_s = _FIRST_S

    def next_s(self) -> float:
        """How long to wait this time."""
        wait_s = self._longest_s * random.uniform(0.5, 1)
        self._longest_s = min(_LONGEST_S, 2 * self._longest_s)
        return wait_s

    async def wait(self) -> None:
        """Wait."""
        await asyncio.sleep(self.next_s())

    def reset(self) -> None:
        """The peer was reached: begin with a short wait the next time."""
        self._longest_s = _FIRST_S
