"""Many streams of one model, advanced in one call, each at its own position.

What a stream gives does not depend, to the last bit, on the other streams: not on their values, their number, or the
place that it has among them. A call moves all the streams that it names, or none: whatever it raises, it has changed
nothing. A pool takes one call at a time, and refuses others meanwhile (``StreamBusyError``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from time import perf_counter_ns
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np

from edgeseq.errors import ConfigError, InputError, ModelFileError, StreamEndedError
from edgeseq.runtime.due import OutputRows
from edgeseq.runtime.guard import Guard
from edgeseq.runtime.inputs import Array, InputCheck, check_length
from edgeseq.runtime.latency import Latency
from edgeseq.runtime.model_source import Source
from edgeseq.runtime.pool_advance import Advance, Advances
from edgeseq.runtime.pool_inputs import Where, checked_chunk, stacked_samples, whole_samples
from edgeseq.runtime.pool_moves import Change, Moves
from edgeseq.runtime.pool_slab import Slab
from edgeseq.runtime.pool_snapshot import PoolState, pack_pool, pack_stream, unpack_pool, unpack_stream
from edgeseq.runtime.pool_table import PoolTable

_NOT_GIVEN = object()
_Given = ParamSpec("_Given")
_R = TypeVar("_R")


def _alone(call: Callable[Concatenate[Pool, _Given], _R]) -> Callable[Concatenate[Pool, _Given], _R]:
    """Let a method run while no other one does, after what an interrupted one left to do."""

    @wraps(call)
    def guarded(self: Pool, /, *given: _Given.args, **named: _Given.kwargs) -> _R:
        def settled() -> _R:
            self._settle()
            return call(self, *given, **named)

        return self._guard.run(self, settled)

    return guarded


class Pool:
    """Made by ``Model.pool``. Streams are known by their ids, texts; ``open`` makes one.

    Example:
        >>> from edgeseq import runtime as rt
        >>> model = rt.load("tests/data/tiny.stream.onnx")
        >>> pool = model.pool(1000)
        >>> pool.open("pump-7")
        >>> pool.open("pump-8")
        >>> x = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
        >>> rows = pool.step({"pump-7": x[0], "pump-8": x[1]})
        >>> rows["pump-8"].shape, pool.step(["pump-8"], x[:1]).shape, pool.position("pump-8")
        ((2,), (1, 2), 2)
        >>> alone = model.stream("pump-7")
        >>> bool(np.allclose(alone.step(x[0]), rows["pump-7"], atol=1e-6))
        True
    """

    def __init__(
        self,
        source: Source,
        checks: Mapping[str, InputCheck],
        not_fast: str | None,
        *,
        capacity: int = 100_000,
        slab: int = 256,
        idle_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        shards: int = 1,
        budget_us: float | None = None,
    ) -> None:
        for name, value in (("capacity", capacity), ("slab", slab), ("shards", shards)):
            if type(value) is not int or value < 1:
                raise ConfigError(f"pool: expected {name}, a number of 1 or more, got {value!r}")
        if idle_s is not None and not (isinstance(idle_s, int | float) and idle_s is not True and idle_s > 0):
            raise ConfigError(f"pool: expected idle_s, seconds above 0, got {idle_s!r}; give None for no expiry")
        self._description = d = source.description
        self._checks, self._clock, self._idle_s, self._not_fast = checks, clock, idle_s, not_fast
        self._guard = Guard()
        self._latency, self._push_latency = Latency(budget_us), Latency(budget_us)
        outputs = [OutputRows(port, d.granule) for port in d.outputs]
        self._table: PoolTable[Slab] = PoolTable(capacity, slab)
        self._moves = Moves(source, self._table, outputs, shards)
        if not_fast is None:
            try:
                self._moves.use_fast_form(source)
            except ModelFileError as error:
                self._not_fast = str(error)
        self._advances = Advances(d, self._table, self._moves, outputs)
        # What a call that succeeded is to change. Once it stands here it will be done, by the next call if need be.
        self._owed: tuple[list[Change], Array, Array] | None = None

    @_alone
    def open(self, stream_id: str, *, snapshot: bytes | bytearray | memoryview | None = None) -> None:
        """Add a stream, in the initial state or in that of a snapshot, of a stream or of a pool's stream.

        Raises:
            StreamExistsError: there is a stream of this id.
            PoolFullError: the pool has ``capacity`` streams.
            InputError: the id is no text.
            SnapshotError: the snapshot is truncated, damaged, newer, or of another model; no stream is added.
        """
        found = None if snapshot is None else unpack_stream(snapshot, self._description)
        place = self._table.new_place(stream_id, self._moves.new_slab)
        if found is None:
            self._renew(place)
        else:
            record, waiting, states = found
            self._set(place, record, waiting, states)
        self._table.add(stream_id, place)

    @_alone
    def step(self, ids: Any, samples: Any = _NOT_GIVEN) -> Any:
        """Take one sample of each of these streams and return their predictions.

        Shapes: {id: (C,)} -> {id: (K,) or None}, as ``Stream.step`` gives them. Or ids and an array, (n, C) -> (n, K);
        where a prediction is not due with every sample, a list. A model of several inputs takes mappings, {id: {input:
        (C,)}} or {input: (n, C)}, and one of several outputs returns them.

        Raises:
            StreamNotOpenError, StreamExpiredError: an id has no stream.
            StreamEndedError: a stream was ended by ``flush``.
            InputError, ShapeError, DTypeError, NonFiniteError: a sample is not what the model takes, or a stream is
                named twice. Whatever is raised, no stream has moved.
        """
        start = perf_counter_ns()
        arrays = samples is not _NOT_GIVEN
        if not arrays and not isinstance(ids, Mapping):
            raise InputError(f"pool: expected a mapping from ids to samples, got {type(ids).__name__}; or give both")
        if arrays and not isinstance(ids, Iterable):
            raise InputError(f"pool: expected ids and an array of their samples, got {type(ids).__name__} as the ids")
        named = list(ids)
        places, records = self._found(named)
        where = _where(named, records)
        if arrays:
            rows = whole_samples(self._checks, samples, len(named), where)
        else:
            rows = stacked_samples(self._checks, list(ids.values()), where)
        advance = self._advances.step(places, records, rows)
        self._commit(places, advance)
        predictions = self._returned(advance.due) if arrays else self._by_id(named, advance.due)
        self._latency.record(perf_counter_ns() - start)
        return predictions

    @_alone
    def push(self, chunks: Mapping[str, Any]) -> dict[str, Any]:
        """Take consecutive samples of each of these streams, of any number, and return the predictions that are due.

        Shapes: {id: (T, C)} -> {id: (T', K)}, as ``Stream.push`` gives them.

        Raises:
            StreamNotOpenError, StreamExpiredError, StreamEndedError, InputError: as for ``step``; no stream has moved.
        """
        start = perf_counter_ns()
        if not isinstance(chunks, Mapping):
            raise InputError(f"pool: expected a mapping from ids to chunks, got {type(chunks).__name__}")
        named = list(chunks)
        places, records = self._found(named)
        where = _where(named, records)
        given = [checked_chunk(self._checks, x, where(i)) for i, x in enumerate(chunks.values())]
        advance = self._advances.push(places, records, given)
        self._commit(places, advance)
        self._push_latency.record(perf_counter_ns() - start)
        return {name: self._returned(due) for name, due in zip(named, advance.due, strict=True)}

    @_alone
    def flush(self, stream_id: str) -> Any:
        """End a stream's sequence and return the predictions that lookahead still owes, as ``Stream.flush`` does.

        Raises:
            StreamNotOpenError, StreamExpiredError: the id has no stream.
            InputError: the model was streamed by a promise of the length, and so many samples break it; the stream goes
                on as if nothing had been asked.
        """
        places, records = self._found([stream_id], ended=True)
        if not records["ended"][0] and (n := int(records["position"][0])):
            check_length(self._description.conditions, n, _where([stream_id], records)(0))
        advance = self._advances.flush(places, records)
        self._commit(places, advance)
        return self._returned(advance.due)

    @_alone
    def reset(self, stream_id: str) -> None:
        """Let a stream go back to the state of a new one.

        Raises:
            StreamNotOpenError, StreamExpiredError: the id has no stream.
        """
        place = self._table.place(stream_id)
        new = self._table.records[[place]]
        new["fed"] = new["position"] = 0
        new["ended"] = False
        self._commit(np.array([place]), Advance([], [lambda: self._renew(place)], new))

    @_alone
    def close(self, stream_id: str) -> None:
        """Remove a stream; its place is free for another.

        Raises:
            StreamNotOpenError, StreamExpiredError: the id has no stream.
        """
        self._table.place(stream_id)
        self._table.remove(stream_id)

    @_alone
    def expire(self) -> list[str]:
        """Close all streams that nobody has used for ``idle_s``, and return their ids.

        Opening, ``step``, ``push``, ``flush`` and ``reset`` are uses. To use one later raises a ``StreamExpiredError``,
        until it is opened again.

        Raises:
            ConfigError: the pool has no ``idle_s``.
        """
        if self._idle_s is None:
            raise ConfigError("pool: expected idle_s, after which streams expire, got None; give it to Model.pool")
        places = np.fromiter(self._table.place_of.values(), np.int64, len(self))
        idle = self._clock() - self._table.records["used"][places] >= self._idle_s
        expired = [stream_id for stream_id, is_idle in zip(self.ids, idle.tolist(), strict=True) if is_idle]
        for stream_id in expired:
            self._table.remove(stream_id, expired=True)
        return expired

    @_alone
    def position(self, stream_id: str) -> int:
        """Samples that a stream has taken since its start or its last ``reset``.

        Raises:
            StreamNotOpenError, StreamExpiredError: the id has no stream.
        """
        return int(self._table.records["position"][self._table.place(stream_id)])

    @_alone
    def snapshot(self, stream_id: str | None = None) -> bytes:
        """The state of a stream, in the bytes of ``Stream.snapshot``; without an id, of the whole pool.

        ``open(id, snapshot=...)`` and ``Model.restore`` continue a stream, ``Model.restore_pool`` a pool. Equal states
        give equal bytes, whatever the streams' places, the pool's past and its clock are.

        Raises:
            StreamNotOpenError, StreamExpiredError: the id has no stream.
        """
        if stream_id is None:
            return pack_pool(self._description, self._state())
        places, records = self._found([stream_id], ended=True)
        waiting = self._advances.waiting(places, int(self._advances.n_waiting(records)[0]))
        states = self._moves.states(places, records["fed"])
        return pack_stream(self._description, records[0], [w[0] for w in waiting], states)

    @property
    def ids(self) -> list[str]:
        """The ids of all streams, in the order in which they were opened."""
        return list(self._table.place_of)

    @property
    def latency(self) -> Latency:
        """How long calls of ``step`` took."""
        return self._latency

    @property
    def push_latency(self) -> Latency:
        """How long calls of ``push`` took."""
        return self._push_latency

    @property
    def n_bytes(self) -> int:
        """The memory of the streams' states, free places of their slabs included."""
        return self._table.n_bytes + sum(slab.n_bytes for slab in self._table.slabs if slab is not None)

    def explain(self) -> str:
        """Which form of the model the pool's steps run on, and on how many streams at a time."""
        if self._moves.fast is None:
            return f"everything runs on the step graph: {self._not_fast}"
        return f"steps run on the fast form, on {self._moves.fast.ladder} streams at a time"

    def __len__(self) -> int:
        return len(self._table.place_of)

    def __contains__(self, stream_id: object) -> bool:
        return stream_id in self._table.place_of

    def __repr__(self) -> str:
        return f"Pool({self._description.name!r}, {len(self)} of {self._table.capacity} streams)"

    def _found(self, ids: list[Any], *, ended: bool = False) -> tuple[Array, Array]:
        """Where streams stand, and their records."""
        places = self._table.places(ids)
        records = self._table.records.take(places)  # several times as fast as an index
        if not ended and records["ended"].any():
            which = ids[int(np.argmax(records["ended"]))]
            raise StreamEndedError(
                f"stream {which!r}: the sequence was ended by flush(); reset() it to start a new one"
            )
        return places, records

    def _commit(self, places: Array, advance: Advance) -> None:
        """Let what a call found be true."""
        assert advance.records is not None
        advance.records["used"] = self._clock()
        self._owed = (advance.changes, places, advance.records)
        self._settle()

    def _settle(self) -> None:
        """Do what is owed, which is more than nothing only where an interrupt came between."""
        self._moves.settle()
        if self._owed is not None:
            changes, places, records = self._owed
            for change in changes:
                change()
            self._table.records.put(places, records)
            self._owed = None

    def _state(self) -> PoolState:
        ids = sorted(self._table.place_of)
        places, records = self._found(ids, ended=True)
        rising = np.argsort(places)
        states = []
        for array in self._moves.states(places[rising], records["fed"][rising]):
            state = np.empty_like(array)
            state[rising] = array
            states.append(state)
        waiting = [self._advances.waiting(places[:0], 0)]
        for i, n in enumerate(self._advances.n_waiting(records).tolist()):
            if n:
                waiting.append(self._advances.waiting(places[i : i + 1], n))
        # (1, n, C) of each stream and input; the first is (0, 0, C) and only says what no samples look like.
        rows = [np.concatenate([x.reshape(-1, *x.shape[2:]) for x in each]) for each in zip(*waiting, strict=True)]
        return PoolState(ids, {name: records[name] for name in ("position", "fed", "ended")}, rows, states)

    def _restore(self, data: bytes | bytearray | memoryview) -> None:
        """Take over the streams in a snapshot, into a pool that nobody has used.

        Raises:
            SnapshotError: it is truncated, damaged, newer, or of another model.
            PoolFullError: it has more streams than the pool may have.
        """
        state = unpack_pool(data, self._description)
        places = np.zeros(len(state.ids), np.int64)
        for i, stream_id in enumerate(state.ids):
            places[i] = self._table.new_place(stream_id, self._moves.new_slab)
            self._table.add(stream_id, int(places[i]))
        records = self._table.records.take(places)  # several times as fast as an index
        for name, values in state.counts.items():
            records[name] = values
        records["used"] = self._clock()
        self._moves.set_states(places, records["fed"], state.states)  # the places rise: the pool was empty
        n_waiting = self._advances.n_waiting(records)
        for place, n, stop in zip(places.tolist(), n_waiting.tolist(), np.cumsum(n_waiting).tolist(), strict=True):
            self._advances.set_waiting(place, [x[stop - n : stop] for x in state.waiting])
        self._table.records.put(places, records)

    def _renew(self, place: int) -> None:
        """Let a place hold a new stream."""
        d = self._description
        zeros = [np.zeros((d.phase, *port.shape), port.dtype) for port in d.inputs]
        record = {"fed": 0, "position": 0, "ended": False}
        self._set(place, record, zeros, self._moves.initial(1))

    def _set(self, place: int, record: Mapping[str, int], waiting: list[Array], states: list[Array]) -> None:
        """Let a place hold a stream in this state."""
        self._advances.set_waiting(place, waiting)
        self._moves.set_states(np.array([place]), np.array([record["fed"]]), states)
        self._table.records[place] = (record["fed"], record["position"], self._clock(), record["ended"])

    def _returned(self, values: list[Any]) -> Any:
        if len(values) == 1:
            return values[0]
        return dict(zip((port.name for port in self._description.outputs), values, strict=True))

    def _by_id(self, ids: list[str], due: list[Any]) -> dict[str, Any]:
        if len(due) == 1:
            return dict(zip(ids, due[0], strict=True))
        return {name: self._returned(list(rows)) for name, *rows in zip(ids, *due, strict=True)}


def _where(ids: list[str], records: Array) -> Where:
    """What to call a stream in an error."""
    return lambda i: f"stream {ids[i]!r}, sample {records['position'][i]}"
