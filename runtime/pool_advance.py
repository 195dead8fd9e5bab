"""Taking samples and chunks of many streams: what is due, and what is to change when it is true."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgeseq.model_file import Description
from edgeseq.runtime.due import OutputRows
from edgeseq.runtime.inputs import Array, rejected
from edgeseq.runtime.pool_moves import Change, Group, Moves
from edgeseq.runtime.pool_slab import PlainSlab, Slab
from edgeseq.runtime.pool_table import PoolTable


@dataclass
class Advance:
    """What a call found, before it is true: rows that are due, of each output or of each stream, and what changes."""

    due: list[Any]
    changes: list[Change] = field(default_factory=list)
    records: Array | None = None


class Advances:
    """How the streams of one pool advance. Nothing is changed here."""

    def __init__(self, d: Description, table: PoolTable[Slab], moves: Moves, outputs: Sequence[OutputRows]) -> None:
        self._d, self._table, self._moves, self._outputs = d, table, moves, outputs
        self.all_plain = d.granule == 1 and all(output.is_plain for output in outputs)

    def step(self, places: Array, records: Array, rows: list[Array]) -> Advance:
        """One sample of each stream, (n, C) of each input; gives of each output what is due of each stream."""
        if self._d.granule > 1:
            return self._step_by_granules(places, records, rows)
        new = self._table.records.take(places)
        new["position"] += 1
        new["fed"] += 1
        chunks = [x[:, None] for x in rows]
        if (places[1:] > places[:-1]).all():
            (ys,), changes = self._run([Group(places, records["fed"], chunks)])
        else:
            ys, changes = self._run_some(np.argsort(places), places, records["fed"], chunks)
        if self.all_plain:
            return Advance([y[:, 0] for y in ys], changes, new)
        every = np.ones(len(places), np.bool_)
        pairs = zip(self._outputs, ys, strict=True)
        return Advance([_due_of_steps(output, y, records["fed"], every) for output, y in pairs], changes, new)

    def _step_by_granules(self, places: Array, records: Array, rows: list[Array]) -> Advance:
        granule, n_waiting = self._d.granule, self.n_waiting(records)
        whole = n_waiting == granule - 1
        new = self._table.records.take(places)
        new["position"] += 1
        new["fed"] += whole * granule
        ys: list[Array] | list[None] = [None] * len(self._outputs)
        changes: list[Change] = []
        if whole.any():
            order = np.argsort(places)
            which = order[whole[order]]
            chunks = [np.zeros((len(places), granule, *x.shape[1:]), x.dtype) for x in rows]
            for chunk, waiting, x in zip(chunks, self.waiting(places[which], granule - 1), rows, strict=True):
                chunk[which, :-1] = waiting
                chunk[:, -1] = x
            ys, changes = self._run_some(which, places, records["fed"], chunks)
        if not whole.all():
            late = np.flatnonzero(~whole)
            changes.append(lambda: self._wait(places[late], n_waiting[late], [x[late] for x in rows]))
        pairs = zip(self._outputs, ys, strict=True)
        return Advance([_due_of_steps(output, y, records["fed"], whole) for output, y in pairs], changes, new)

    def _run_some(
        self, which: Array, places: Array, fed: Array, chunks: list[Array]
    ) -> tuple[list[Array], list[Change]]:
        """Run these streams, named by their numbers in the order of their places; rows stand at their numbers."""
        (results,), changes = self._run([Group(places[which], fed[which], [x[which] for x in chunks])])
        ys = [np.zeros((len(places), *y.shape[1:]), y.dtype) for y in results]
        for y, result in zip(ys, results, strict=True):
            y[which] = result
        return ys, changes

    def push(self, places: Array, records: Array, chunks: list[list[Array]]) -> Advance:
        """A chunk of each stream, (T, C) of each input; gives of each stream what is due of each output."""
        granule = self._d.granule
        advance = Advance([], [], self._table.records.take(places))
        rows = self._behind_waiting(places, records, chunks)
        groups: dict[tuple[int, tuple[int, ...]], list[int]] = {}
        for i, joined in enumerate(rows):
            fed, whole = int(records["fed"][i]), len(joined[0]) // granule * granule
            if whole:
                groups.setdefault((whole, self._moves.cuts_within(fed, whole)), []).append(i)
            if len(joined[0]) > whole:
                rest = [x[whole:].copy() for x in joined]
                place = places[i : i + 1].repeat(len(rest[0]))
                advance.changes.append(
                    lambda place=place, rest=rest: self._wait(place, np.arange(len(place)), rest)  # type: ignore[misc]
                )
        new = advance.records
        assert new is not None
        new["fed"] += np.array([len(joined[0]) // granule * granule for joined in rows], np.int64)
        new["position"] += np.array([len(chunk[0]) for chunk in chunks], np.int64)
        advance.due = [[output.nothing() for output in self._outputs] for _ in rows]
        members = [np.array(which)[np.argsort(places[which])] for which in groups.values()]
        made = [
            Group(
                places[order],
                records["fed"][order],
                [np.stack([rows[i][k][:whole] for i in order]) for k in range(len(self._d.inputs))],
            )
            for (whole, _), order in zip(groups, members, strict=True)
        ]
        results, changes = self._run(made)
        advance.changes = [*changes, *advance.changes]
        for order, ys in zip(members, results, strict=True):
            for j, i in enumerate(order):
                fed = int(records["fed"][i])
                advance.due[i] = [out.due(y[j], fed).copy() for out, y in zip(self._outputs, ys, strict=True)]
        return advance

    def flush(self, places: Array, records: Array) -> Advance:
        """The end of one stream; gives what lookahead owes of each output."""
        d, fed, n = self._d, int(records["fed"][0]), int(records["position"][0])
        new = self._table.records.take(places)
        new["ended"] = True
        advance = Advance([output.nothing() for output in self._outputs], [], new)
        last = max(output.fed_for(n) for output in self._outputs)
        more = max(0, -(-(last - fed) // d.granule)) * d.granule
        if records["ended"][0] or n == 0 or more == 0:
            return advance
        chunks = [np.zeros((1, more, *port.shape), port.dtype) for port in d.inputs]
        n_waiting = int(self.n_waiting(records)[0])
        if n_waiting:
            for x, waiting in zip(chunks, self.waiting(places, n_waiting), strict=True):
                x[:, :n_waiting] = waiting[:, :more]
        (results,), _ = self._run([Group(places, records["fed"], chunks, np.full(1, n, np.int64))])
        advance.due = [output.due(y[0], fed, n).copy() for output, y in zip(self._outputs, results, strict=True)]
        return advance

    def n_waiting(self, records: Array) -> Array:
        """How many samples of each stream wait until they are a whole granule."""
        waiting: Array = self._d.phase + records["position"] - records["fed"]
        return waiting

    def waiting(self, places: Array, n: int) -> list[Array]:
        """The first n samples that wait, (streams, n, C) of each input; places in rising order."""
        if n == 0:
            return [np.zeros((len(places), 0, *port.shape), port.dtype) for port in self._d.inputs]
        parts = []
        for slab, _, here in self._table.by_slab(places):
            assert isinstance(slab, PlainSlab)
            parts.append([x[here, :n] for x in slab.waiting])
        return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]

    def _wait(self, places: Array, at: Array, rows: Sequence[Array]) -> None:
        """Let samples wait, each at a number."""
        size = self._table.slab_size
        for i, place in enumerate(places.tolist()):
            slab = self._table.slab(place // size)
            assert isinstance(slab, PlainSlab)
            for waiting, x in zip(slab.waiting, rows, strict=True):
                waiting[place % size, at[i]] = x[i]

    def set_waiting(self, place: int, rows: Sequence[Array]) -> None:
        """Let these samples, (n, C) of each input, be the ones that wait."""
        n = len(rows[0])
        self._wait(np.full(n, place), np.arange(n), rows)

    def _behind_waiting(self, places: Array, records: Array, chunks: list[list[Array]]) -> list[list[Array]]:
        if self._d.granule == 1:
            return chunks
        rows = []
        for i, n in enumerate(self.n_waiting(records).tolist()):
            waiting = self.waiting(places[i : i + 1], n)
            rows.append([np.concatenate([w[0], x]) for w, x in zip(waiting, chunks[i], strict=True)])
        return rows

    def _run(self, groups: list[Group]) -> tuple[list[list[Array]], list[Change]]:
        try:
            return self._moves.run(groups)
        except Exception as error:
            place, reason = self._culprit(groups, error)
            who, n_waiting = "pool", 0
            if place is not None:
                name = next(name for name, where in self._table.place_of.items() if where == place)
                record = self._table.records[place]
                who, n_waiting = f"stream {name!r}, sample {record['position']}", int(self.n_waiting(record))
            raise rejected(who, reason, n_waiting) from error

    def _culprit(self, groups: list[Group], error: Exception) -> tuple[int | None, Exception]:
        """The stream that fails by itself, too, and how."""
        for group in groups:
            for i in range(len(group.places)):
                try:
                    self._moves.run([group.one(i)])
                except Exception as its_own:
                    return int(group.places[i]), its_own
        return None, error


def _due_of_steps(output: OutputRows, y: Array | None, fed: Array, whole: Array) -> list[Array | None]:
    """Of rows that each stream's step gave, those that are of its sequence."""
    n_early = np.where(whole, np.maximum(0, -output.first(fed)), output.rows_a_call).tolist()
    if y is None:
        return [None] * len(n_early)
    if output.rows_a_call == 1:
        return [None if early else row[0] for row, early in zip(y, n_early, strict=True)]
    return [row[early:] if early < output.rows_a_call else None for row, early in zip(y, n_early, strict=True)]
