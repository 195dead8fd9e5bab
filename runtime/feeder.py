"""The core of a feed: samples in, predictions out, of many sensors; no I/O, no wall clock, no threads.

Each stream id has one sensor clock, one stream of the model and one count of everything. What a call was given is
either refused by an error that names the stream, which leaves everything as it was, or taken; what was taken gives its
predictions once, also if a later step raises: those wait, and come with the next call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgeseq.errors import ConfigError, EdgeseqError, InputError, SnapshotError
from edgeseq.runtime import clock_rules
from edgeseq.runtime.clock import SensorClock, clock_for
from edgeseq.runtime.clock_counters import Counters
from edgeseq.runtime.clock_engine import ClockEngine
from edgeseq.runtime.clock_state import ClockState, Tick
from edgeseq.runtime.feed_rows import RowRecords, RowState
from edgeseq.runtime.feed_snapshot import pack_feed, unpack_feed
from edgeseq.runtime.feed_streams import ModelStreams, Streams
from edgeseq.runtime.labels import LabelRule
from edgeseq.runtime.model import Model
from edgeseq.runtime.prediction import Prediction
from edgeseq.runtime.sample import Sample

_NOT_GIVEN = object()
OnError = Callable[[Sample, EdgeseqError], None]


def predictions(
    model: Model,
    samples: Iterable[Sample],
    clock: SensorClock | None = None,
    *,
    labels: Sequence[LabelRule] = (),
    on_error: OnError | None = None,
) -> Iterator[Prediction]:
    """The predictions of all samples, in the order in which they come; at the end, those that are owed.

    Samples that are refused raise, or go to ``on_error``, which then decides.

    Example:
        >>> from edgeseq import runtime as rt
        >>> model = rt.load("tests/data/tiny.stream.onnx")
        >>> sent = [Sample("wrist-7", [0.1 * i, 0, 1], sequence=i) for i in range(3)]
        >>> [(p.index, p.label) for p in predictions(model, sent)]
        [(0, ...), (1, ...), (2, ...)]
    """
    feeder = Feeder(model, clock, labels=labels)
    for sample in samples:
        yield from feeder.feed_many([sample], on_error=on_error)
    for stream_id in feeder.ids:
        yield from feeder.flush(stream_id)


@dataclass(slots=True, eq=False)
class _Feed:
    """What there is of one stream id beside the model's stream."""

    clock: ClockState
    rows: RowState
    owed: list[Prediction] = field(default_factory=list)


class Feeder:
    """Turns the samples of many sensors into predictions. A stream begins with its first sample.

    Args:
        model: a streaming model.
        clock: how to make the even samples that it takes; without one, at the model's rate, refusing what is not even.
        pool: the ``Pool`` of this model to run on, for many streams; nobody else may use it.
        labels: rules that make labels steadier, in their order.
        warm_up: how many first samples' predictions are marked ``warm_up``; without it, the receptive field, and none
            for a model that never forgets its start.
        max_streams: how many ids there may be.

    Raises:
        ConfigError: the model's rate is not the clock's, or nobody knows the rate; there are rules for labels, and the
            model names none; or a number is out of its range.

    Example:
        >>> from edgeseq import runtime as rt
        >>> feeder = Feeder(rt.load("tests/data/tiny.stream.onnx"), SensorClock(rate_hz=50, gap="hold"))
        >>> for number in (0, 1, 3):
        ...     out = feeder.feed(Sample("wrist-7", [0.1, 0.2, 0.3], timestamp_s=number / 50, sequence=number))
        >>> [(p.index, round(p.time_s, 3), p.after_gap) for p in out]
        [(2, 0.04, True), (3, 0.06, True)]
        >>> print(feeder.counters)
        received 3, used 3, gaps 1, filled 1, ticks 4, predictions 4
    """

    def __init__(
        self,
        model: Model,
        clock: SensorClock | None = None,
        *,
        pool: Streams | None = None,
        labels: Sequence[LabelRule] = (),
        warm_up: int | None = None,
        max_streams: int = 100_000,
    ) -> None:
        if not all(n is None or (type(n) is int and n >= 0) for n in (warm_up, max_streams)):
            raise ConfigError(f"feeder: expected numbers of 0 or more, got {warm_up=}, {max_streams=}")
        self.clock = clock = clock_for(model.name, model.rate_hz, clock)
        self.labels = tuple(labels)
        self._description = model.description
        self._max_streams = max_streams
        self._engine = ClockEngine(clock, model.description.inputs)
        self._records = RowRecords(model, labels, warm_up, clock.rate_hz)
        self._streams: Streams = ModelStreams(model) if pool is None else pool
        self._is_pool = pool is not None
        self._names = [port.name for port in model.description.inputs]
        self._feeds: dict[str, _Feed] = {}
        self._gone = Counters()  # of streams that were closed, and of samples that opened none

    def feed(self, sample: Sample) -> list[Prediction]:
        """Take one sample and return the predictions that are due.

        Raises:
            InputError, ShapeError, DTypeError, NonFiniteError: it is not what the model or the clock takes.
            GapError, ClockJumpError: the clock is to raise. ``reset`` the stream and feed the sample again, or leave
                it. Whatever is raised, the sample is counted as rejected and the stream is as it was. (A model of
                tokens may refuse one that waited in the clock; that one is left out then.)
        """
        self._settle(sample.stream_id)
        return self._drain(sample.stream_id, self._take(sample))

    def feed_many(self, samples: Iterable[Sample], *, on_error: OnError | None = None) -> list[Prediction]:
        """Take many samples, of any streams, and return the predictions that are due, each stream's in its order.

        On a pool, streams are stepped together, so this is the fast way to feed many. An error ends the call: what was
        taken before it is taken, and its predictions come with the next call of its stream. With ``on_error``, which is
        given the sample and the error, the call goes on with the others.

        Raises:
            EdgeseqError: as for ``feed``, without ``on_error``; or what ``on_error`` raises.
        """
        fed: dict[str, Sample] = {}
        ended: EdgeseqError | None = None
        for sample in samples:
            try:
                if not isinstance(sample.stream_id, str) or sample.stream_id not in fed:
                    self._settle(sample.stream_id)
                self._take(sample)
                fed[sample.stream_id] = sample
            except EdgeseqError as error:
                if on_error is None:
                    ended = error
                    break
                on_error(sample, error)
        for stream_id, refusal in self._step_all({stream_id: self._feeds[stream_id] for stream_id in fed}):
            if on_error is None:
                ended = ended or refusal
            else:
                on_error(fed[stream_id], refusal)
        if ended is not None:
            raise ended
        due: list[Prediction] = []
        for stream_id in fed:
            feed = self._feeds[stream_id]
            due += feed.owed
            feed.owed = []
        return due

    def release(self, stream_id: str) -> list[Prediction]:
        """Wait no longer for late samples and missing values, as when a sensor fell silent; the sequence goes on.

        Raises:
            InputError: there is no such stream.
            GapError: there is a hole between samples that wait, and the clock is to raise.
        """
        feed = self._feed(stream_id)
        new = feed.clock.copy()
        self._engine.finish(new, f"stream {stream_id!r}")
        feed.clock = new
        return self._drain(stream_id, feed)

    def flush(self, stream_id: str) -> list[Prediction]:
        """End the sequence and return all that is owed, what waits and lookahead included.

        The next sample of this id starts another one, with a clock that knows no time; numbers go on.

        Raises:
            InputError, GapError: as for ``release``; nothing has ended. (Only if the model refused a token that waited,
                all has, and ``drain`` gives what is owed.)
        """
        feed = self._feed(stream_id)
        new = feed.clock.copy()
        self._engine.finish(new, f"stream {stream_id!r}")
        clock_rules.reset(new)
        new.forget()
        feed.clock = new
        return self._drain(stream_id, feed)

    def reset(self, stream_id: str) -> None:
        """Start the model anew, without what lookahead owes. Samples that wait in the clock open the new sequence.

        The next hole is no gap, so after a ``GapError`` the sample that raised it may be fed again. After a
        ``ClockJumpError``, ``flush`` or ``close`` the stream instead.

        Raises:
            InputError: there is no such stream.
        """
        feed = self._feed(stream_id)
        self._settle(stream_id)
        new = feed.clock.copy()
        self._engine.start_anew(new)
        self._streams.reset(stream_id)
        self._records.restart(feed.rows)
        feed.clock = new

    def close(self, stream_id: str) -> None:
        """Forget a stream; its counts stay in ``counters``, those that waited as rejected.

        Raises:
            InputError: there is no such stream.
        """
        feed = self._feed(stream_id)
        self._streams.close(stream_id)
        del self._feeds[stream_id]
        feed.clock.counts.rejected += feed.clock.n_waiting
        self._gone = self._gone + feed.clock.counts

    def drain(self, stream_id: str) -> list[Prediction]:
        """What a call owed that raised after some predictions were made; mostly nothing. Any later call gives it, too.

        Raises:
            InputError: there is no such stream.
        """
        return self._drain(stream_id, self._feed(stream_id))

    def snapshot(self, stream_id: str) -> bytes:
        """The clock, the model's stream and the counts as bytes. Equal states give equal bytes.

        Raises:
            InputError: there is no such stream.
            SnapshotError: predictions are owed, since a call raised; ``drain`` them first.
        """
        feed = self._feed(stream_id)
        if feed.owed or feed.clock.ready:
            raise SnapshotError(f"stream {stream_id!r}: predictions are owed, since a call raised; drain() them first")
        return pack_feed(self.clock, self.labels, feed.clock, feed.rows, self._streams.snapshot(stream_id))

    def restore(self, stream_id: str, snapshot: bytes | bytearray | memoryview) -> None:
        """Add a stream that continues where the snapshot was taken, bitwise.

        Raises:
            InputError: there is a stream of this id already, or there are too many.
            SnapshotError: the snapshot is damaged, newer, or of another model, clock or labels; no stream is added.
        """
        if stream_id in self._feeds:
            raise InputError(f"stream {stream_id!r}: expected an id that is not in use; close() it first")
        self._check_room(stream_id)
        clock, rows, inner = unpack_feed(snapshot, self.clock, self.labels, self._description, self._records.start())
        self._streams.open(stream_id, snapshot=inner)
        self._feeds[stream_id] = _Feed(clock, rows)

    @property
    def ids(self) -> list[str]:
        """The ids of all streams, in the order in which they began."""
        return list(self._feeds)

    @property
    def counters(self) -> Counters:
        """The counts of all streams together, those that were closed included."""
        total = self._gone.copy()
        for feed in self._feeds.values():
            total.add(feed.clock.counts)
        return total

    def counters_of(self, stream_id: str) -> Counters:
        """The counts of one stream, a copy.

        Raises:
            InputError: there is no such stream.
        """
        return self._feed(stream_id).clock.counts.copy()

    def n_waiting(self, stream_id: str) -> int:
        """How many samples of a stream wait in its clock.

        Raises:
            InputError: there is no such stream.
        """
        return self._feed(stream_id).clock.n_waiting

    def __contains__(self, stream_id: object) -> bool:
        return stream_id in self._feeds

    def __len__(self) -> int:
        return len(self._feeds)

    def _feed(self, stream_id: str) -> _Feed:
        try:
            return self._feeds[stream_id]
        except (KeyError, TypeError):
            raise InputError(f"stream {stream_id!r}: expected one that sent a sample, got an unknown id") from None

    def _check_room(self, stream_id: object) -> None:
        if not isinstance(stream_id, str):
            raise InputError(f"stream {stream_id!r}: expected a text as its id, got {type(stream_id).__name__}")
        if len(self._feeds) >= self._max_streams:
            raise InputError(
                f"stream {stream_id!r}: there are {self._max_streams} streams, as many as may be; close() some, or "
                "make max_streams larger"
            )

    def _take(self, sample: Sample) -> _Feed:
        """Let the clock take a sample, or nothing happen but its being counted."""
        feed = self._feeds.get(sample.stream_id) if isinstance(sample.stream_id, str) else None
        counts = self._gone if feed is None else feed.clock.counts
        try:
            if feed is None:
                self._check_room(sample.stream_id)
            new = ClockState() if feed is None else feed.clock.copy()
            new.counts.received += 1
            self._engine.take(new, sample)
            if feed is None:
                self._streams.open(sample.stream_id)
        except EdgeseqError:
            counts.received += 1
            counts.rejected += 1
            raise
        if feed is None:
            feed = self._feeds[sample.stream_id] = _Feed(new, self._records.start())
        else:
            feed.clock = new
        return feed

    def _settle(self, stream_id: object) -> None:
        """Let the model take what an exception left ready, before more comes: it must not pile up."""
        if isinstance(stream_id, str) and stream_id in self._feeds and self._feeds[stream_id].clock.ready:
            feed = self._feeds[stream_id]
            feed.owed = self._drain(stream_id, feed)

    def _drain(self, stream_id: str, feed: _Feed) -> list[Prediction]:
        """Let the model take what is ready, one by one. What it refuses is left out; the first error is raised."""
        first_error = None
        while feed.clock.ready:
            error = self._go_on(stream_id, feed)
            first_error = first_error or error
        if first_error is not None:
            raise first_error
        due, feed.owed = feed.owed, []
        return due

    def _step_all(self, feeds: dict[str, _Feed]) -> list[tuple[str, InputError]]:
        """Let the model take all that is ready, of many streams, and return its refusals. Predictions are owed."""
        errors: list[tuple[str, InputError]] = []
        while feeds := {stream_id: feed for stream_id, feed in feeds.items() if feed.clock.ready}:
            given = self._stepped({stream_id: feed.clock.ready[0] for stream_id, feed in feeds.items()})
            for stream_id, feed in feeds.items():
                error = self._go_on(stream_id, feed, given.get(stream_id, _NOT_GIVEN))
                if error is not None:
                    errors.append((stream_id, error))
        return errors

    def _stepped(self, ticks: dict[str, Tick]) -> dict[str, Any]:
        """What a pool gives for one tick of each of these streams; nothing if it cannot take them together."""
        together = {stream_id: self._sample(tick) for stream_id, tick in ticks.items() if tick.values is not None}
        if not self._is_pool or len(together) < 2:
            return {}
        try:
            given: dict[str, Any] = self._streams.step(together)
        except InputError:  # it has moved none of them; one by one it will be seen which
            return {}
        return given

    def _sample(self, tick: Tick) -> Any:
        assert tick.values is not None
        return tick.values[0] if len(tick.values) == 1 else dict(zip(self._names, tick.values, strict=True))

    def _go_on(self, stream_id: str, feed: _Feed, given: Any = _NOT_GIVEN) -> InputError | None:
        """Let the model take the first tick that is ready, unless that gave ``given`` already, and note what is due."""
        tick, counts, refused = feed.clock.ready[0], feed.clock.counts, None
        made: list[Prediction] = []
        try:
            if tick.values is None:
                made = self._records.records(feed.rows, stream_id, self._streams.flush(stream_id), at_end=True)
                self._streams.reset(stream_id)
                self._records.restart(feed.rows)
            else:
                if given is _NOT_GIVEN:
                    given = self._streams.step({stream_id: self._sample(tick)})[stream_id]
                self._records.took(feed.rows, tick)
                made = self._records.records(feed.rows, stream_id, given)
        except InputError as error:
            refused = error
            counts.used -= tick.real
            counts.rejected += tick.real
            counts.ticks -= 1
            feed.rows.flag_next = True
        feed.clock.ready.pop(0)
        counts.predictions += len(made)
        feed.owed += made
        return refused
