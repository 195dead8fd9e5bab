"""How many streams go into one call, so that none of them can notice: lane counts that agree to the last bit.

Which kernel ONNX Runtime takes, and where a vectorised loop ends, may depend on the number of rows and on a row's place
among them. So a pool makes calls of a few fixed lane counts alone, and only after these were seen to give a stream the
same bits, in every lane that is used and beside whatever neighbours. What does not agree is left unused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgeseq.runtime.inputs import Array

Probe = Callable[[Array], Sequence[Array]]
"""Runs a call whose lane i holds stream number ``which[i]``, 0 or 1, and gives everything it made, lanes first."""


@dataclass(frozen=True)
class Rung:
    """A call of ``size`` lanes, of which streams may take ``lanes``; None for all."""

    size: int
    lanes: Array | None = None

    @property
    def n_streams(self) -> int:
        """How many streams fit."""
        return self.size if self.lanes is None else len(self.lanes)

    def places(self, n: int) -> slice | Array:
        """The lanes that n streams take."""
        return slice(n) if self.lanes is None else self.lanes[:n]


@dataclass(frozen=True)
class Ladder:
    """Lane counts that agree, from small to large."""

    rungs: tuple[Rung, ...]

    def calls(self, n: int) -> list[tuple[Rung, slice]]:
        """Calls that serve n streams, and which of them: the largest that is half full at least, and so on.

        Example:
            >>> [(rung.size, part) for rung, part in Ladder((Rung(16), Rung(64))).calls(100)]
            [(64, slice(0, 64, None)), (64, slice(64, 100, None))]
        """
        calls, start = [], 0
        while start < n:
            rest = n - start
            rung = next((r for r in reversed(self.rungs) if r.n_streams <= 2 * rest), self.rungs[0])
            calls.append((rung, slice(start, start + min(rest, rung.n_streams))))
            start += rung.n_streams
        return calls

    def __str__(self) -> str:
        return ", ".join(str(r.size) + ("" if r.lanes is None else f" ({r.n_streams} used)") for r in self.rungs)


def agreeing(sizes: Sequence[int], probe: Probe) -> Ladder:
    """Those of these lane counts, and of their lanes, that give a stream the same bits.

    The largest that agrees with itself decides. If none does, streams are served one by one.

    Example:
        >>> def last_lane_is_off(which):
        ...     rows = np.ones((len(which), 2), np.float32)
        ...     rows[-1] += 1e-6
        ...     return [rows]
        >>> str(agreeing([4, 8], last_lane_is_off))
        '4 (3 used), 8 (7 used)'
    """
    expected: Array | None = None
    rungs: list[Rung] = []
    for size in sorted(sizes, reverse=True):
        seen, used = _lanes(size, probe, expected)
        # A lane count that loses most of its lanes serves nobody well.
        if len(used) * 2 > size or (size == 1 and len(used) == 1):
            expected = seen if expected is None else expected
            rungs.append(Rung(size, None if len(used) == size else used))
    return Ladder(tuple(reversed(rungs))) if rungs else Ladder((Rung(1),))


def _lanes(size: int, probe: Probe, expected: Array | None) -> tuple[Array, Array]:
    """The bits of stream 0, and the lanes that give them, alone with itself and beside stream 1 on either side."""
    alternating = np.arange(size) % 2
    good = np.ones(size, bool)
    for which in (np.zeros(size, np.int64), alternating, 1 - alternating):
        rows = _bits(size, probe(which))
        if expected is None:
            expected = rows[0]
        here = which == 0
        good[here] &= (rows[here] == expected).all(axis=1)
    assert expected is not None
    return expected, np.flatnonzero(good)


def _bits(size: int, arrays: Sequence[Array]) -> Array:
    return np.concatenate([np.ascontiguousarray(a).reshape(size, -1).view(np.uint8) for a in arrays if a.size], axis=1)
