"""Which streams a pool has, where they stand, and how far each has come: a row of numbers for each, no objects.

Places come in slabs of a fixed number, which are made when they are needed and freed when they are empty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Generic, TypeVar

import numpy as np

from edgeseq.errors import InputError, PoolFullError, StreamExistsError, StreamExpiredError, StreamNotOpenError
from edgeseq.runtime.inputs import Array

_Slab = TypeVar("_Slab")

RECORD = np.dtype([("fed", np.int64), ("position", np.int64), ("used", np.float64), ("ended", np.bool_)], align=True)
"""Samples that the states have seen; samples taken; when it was last used; whether flush() ended the sequence."""


class PoolTable(Generic[_Slab]):
    """The streams of a pool. One assignment to ``records`` moves any number of them, all or none."""

    def __init__(self, capacity: int, slab_size: int) -> None:
        self.capacity, self.slab_size = capacity, min(slab_size, capacity)
        self.place_of: dict[str, int] = {}
        self.slabs: list[_Slab | None] = []
        self.records = np.zeros(0, RECORD)
        self._taken = np.zeros(0, np.bool_)
        self._n_free = np.zeros(0, np.int64)  # of each slab
        self._expired: dict[str, None] = {}
        self._named: tuple[list[str], Array] | None = None  # the last call's streams, which are often the next one's

    def place(self, stream_id: Any) -> int:
        """Where a stream stands.

        Raises:
            StreamNotOpenError, StreamExpiredError: there is no stream of this id.
        """
        try:
            return self.place_of[stream_id]
        except (KeyError, TypeError):
            raise self._not_open(stream_id) from None

    def places(self, ids: Sequence[Any]) -> Array:
        """Where streams stand, (n,), read-only.

        Raises:
            StreamNotOpenError, StreamExpiredError: there is no stream of one of these ids.
            InputError: an id is named twice.
        """
        place_of = self.place_of
        try:
            if self._named is not None and ids == self._named[0]:
                return self._named[1]
            places = np.fromiter(map(place_of.__getitem__, ids), np.int64, len(ids))
        except (KeyError, TypeError, ValueError):  # the last of an array among the ids, which is neither equal nor not
            raise next(self._not_open(i) for i in ids if not isinstance(i, str) or i not in place_of) from None
        if len(set(ids)) < len(places):
            seen: set[str] = set()
            twice = next(i for i in ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
            raise InputError(f"stream {twice!r}: expected each stream once, got it twice; push a chunk of two samples")
        places.flags.writeable = False
        self._named = list(ids), places
        return places

    def new_place(self, stream_id: Any, new_slab: Callable[[], _Slab]) -> int:
        """A free place for a new stream, in a slab that exists; ``add`` takes it.

        Raises:
            InputError: the id is no text.
            StreamExistsError: there is a stream of this id.
            PoolFullError: there are as many streams as there may be.
        """
        if not isinstance(stream_id, str):
            raise InputError(
                f"pool: expected a text as the id of a stream, got {type(stream_id).__name__}; name it with str()"
            )
        if stream_id in self.place_of:
            raise StreamExistsError(
                f"stream {stream_id!r}: it is open already; close() it, or reset() it to start anew"
            )
        if len(self.place_of) >= self.capacity:
            raise PoolFullError(
                f"stream {stream_id!r}: the pool has all of its {self.capacity} streams; close() or expire() some, "
                "or make a pool of more capacity"
            )
        roomy = self._n_free > 0
        if not roomy.any():
            return self._grow(new_slab)
        first = int(np.argmax(roomy)) * self.slab_size
        return first + int(np.argmin(self._taken[first : first + self.slab_size]))

    def _grow(self, new_slab: Callable[[], _Slab]) -> int:
        """The first place of a new slab."""
        number = self.slabs.index(None) if None in self.slabs else len(self.slabs)
        slab = new_slab()
        if number < len(self.slabs):
            self.slabs[number] = slab
        else:
            n = (number + 1) * self.slab_size
            self.records, self._taken = _longer(self.records, n), _longer(self._taken, n)
            self._n_free = _longer(self._n_free, number + 1)
            self.slabs.append(slab)
        self._n_free[number] = self.slab_size
        return number * self.slab_size

    def add(self, stream_id: str, place: int) -> None:
        """Let a stream have a place."""
        self._taken[place] = True
        self._n_free[place // self.slab_size] -= 1
        self.place_of[stream_id] = place
        self._expired.pop(stream_id, None)

    def remove(self, stream_id: str, *, expired: bool = False) -> None:
        """Free a stream's place, and its slab if it was the last one there."""
        self._named = None
        place = self.place_of.pop(stream_id)
        number = place // self.slab_size
        self._taken[place] = False
        self._n_free[number] += 1
        if expired:  # as many as there can be streams are remembered; of older ones, it is known that they are not open
            self._expired[stream_id] = None
            if len(self._expired) > self.capacity:
                del self._expired[next(iter(self._expired))]
        if self._n_free[number] == self.slab_size:
            self._free(number)

    def _free(self, number: int) -> None:
        self.slabs[number] = None
        self._n_free[number] = 0
        n = len(self.slabs)
        while n and self.slabs[n - 1] is None:
            n -= 1
        if n < len(self.slabs):
            del self.slabs[n:]
            places = n * self.slab_size
            self.records, self._taken = self.records[:places].copy(), self._taken[:places].copy()
            self._n_free = self._n_free[:n].copy()

    def slab(self, number: int) -> _Slab:
        """A slab that holds streams."""
        slab = self.slabs[number]
        assert slab is not None
        return slab

    def by_slab(self, places: Array) -> list[tuple[_Slab, slice, Array]]:
        """Of places in rising order: each slab, which of the places stand in it, and where in it."""
        if not len(places):
            return []
        first = int(places[0]) // self.slab_size
        if int(places[-1]) // self.slab_size == first:  # as it mostly is in a small pool
            return [(self.slab(first), slice(0, len(places)), places - first * self.slab_size)]
        numbers = places // self.slab_size
        bounds = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(places)]
        parts = [slice(a, b) for a, b in pairwise(bounds)]
        found = [int(numbers[part.start]) for part in parts]
        return [
            (self.slab(number), part, places[part] - number * self.slab_size)
            for number, part in zip(found, parts, strict=True)
        ]

    def _not_open(self, stream_id: Any) -> StreamNotOpenError:
        if isinstance(stream_id, str) and stream_id in self._expired:
            return StreamExpiredError(
                f"stream {stream_id!r}: it was idle for too long and expired, its state is gone; open() it again"
            )
        return StreamNotOpenError(f"stream {stream_id!r}: the pool has no such stream; open() it first")

    @property
    def n_bytes(self) -> int:
        """The memory of the rows of numbers."""
        return self.records.nbytes + self._taken.nbytes


def _longer(array: Array, n: int) -> Array:
    longer = np.zeros(n, array.dtype)
    longer[: len(array)] = array
    return longer
