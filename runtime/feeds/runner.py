"""A run: frames from a feed, through sensor clocks and a model, to a sink; bounded, counted, and able to go on.

One task reads the feed into a bounded queue, another takes from it, steps the model and writes to the sink, so a slow
sink fills the queue, and a full queue stops the reading. A frame that is refused is counted by name and left out; only
a feed or sink that breaks ends the run, after everything that was read is out.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from edgeseq.errors import ConfigError, EdgeseqError, FeedError, FrameError, SnapshotError
from edgeseq.runtime.clock import SensorClock
from edgeseq.runtime.feed_streams import ModelStreams
from edgeseq.runtime.feeder import Feeder
from edgeseq.runtime.feeds.checkpoint import Checkpoints, RunState
from edgeseq.runtime.feeds.frame import LONGEST_FRAME, Feed, Frame, Sink
from edgeseq.runtime.feeds.frame_queue import FrameQueue
from edgeseq.runtime.feeds.registry import open_feed, open_sink
from edgeseq.runtime.feeds.report import COUNTS, RunReport, kind_of
from edgeseq.runtime.labels import LabelRule
from edgeseq.runtime.latency import Latency
from edgeseq.runtime.model import Model
from edgeseq.runtime.prediction import Prediction
from edgeseq.runtime.sample import Sample

MOST_FRAMES = 64
"""How many frames are taken at a time, at the most: acknowledged, written and noted together."""

DEFAULT_ID = "stream"
"""The stream id of samples of which neither frame nor address says one."""

OnError = Callable[[str, str, int], None]
"""(kind, message, how many of this kind there were) -> None."""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How a run goes about it.

    Attributes:
        clock, labels, warm_up, max_streams: as for ``Feeder``.
        snapshot_dir: the folder that lets the run go on after it was killed; without one, it begins anew.
        snapshot_every_s: how often the state is kept.
        budget_us: what a step of the model may take; longer ones are counted.
        queue: how many frames may wait.
        when_full: "wait", so the feed stops reading, or "drop_oldest".
        drain_s: how long, after ``stop``, a sink may take for what was read.
        on_error: told of every frame that is refused.
    """

    clock: SensorClock | None = None
    labels: Sequence[LabelRule] = ()
    warm_up: int | None = None
    max_streams: int = 100_000
    snapshot_dir: str | os.PathLike[str] | None = None
    snapshot_every_s: float = 5.0
    budget_us: float | None = None
    queue: int = 1024
    when_full: str = "wait"
    drain_s: float = 30.0
    on_error: OnError | None = None


class _TimedStreams(ModelStreams):
    """Streams whose steps are timed."""

    def __init__(self, model: Model, latency: Latency) -> None:
        super().__init__(model)
        self._latency = latency

    def step(self, samples: Mapping[str, Any]) -> dict[str, Any]:
        """One step, timed."""
        begin = time.perf_counter_ns()
        try:
            return super().step(samples)
        finally:
            self._latency.record(time.perf_counter_ns() - begin)


class Run:
    """A run that is about to begin: await it, and it goes on until the feed ends; it returns a ``RunReport``.

    Without a sink, iterate over it instead, and it gives the predictions.
    """

    def __init__(self, model: Model, feed: Feed, sink: Sink | None, settings: RunSettings) -> None:
        self.report = RunReport(step=Latency(settings.budget_us))
        self._settings = settings
        self._feed = feed
        self._sink = _HandSink() if sink is None else sink
        self._streams = _TimedStreams(model, self.report.step)
        self._feeder = Feeder(
            model,
            settings.clock,
            pool=self._streams,
            labels=settings.labels,
            warm_up=settings.warm_up,
            max_streams=settings.max_streams,
        )
        if settings.snapshot_every_s <= 0:
            raise ConfigError(f"run: expected snapshot_every_s above 0, got {settings.snapshot_every_s}")
        self._queue = FrameQueue(settings.queue, settings.when_full)
        self._stop = asyncio.Event()
        self._checkpoints: Checkpoints | None = None
        self._state = RunState(feed=feed.name, sink=self._sink.name)
        self._before: dict[str, int] = {}
        self._skip = 0  # predictions that were out before the process was killed
        self._saved_s = 0.0

    def stop(self) -> None:
        """Read no more; what was read goes out, the state is kept, and the run ends. From the run's own loop."""
        self._stop.set()

    def __await__(self) -> Generator[Any, None, RunReport]:
        return self._run().__await__()

    async def __aiter__(self) -> AsyncIterator[Prediction]:
        if not isinstance(self._sink, _HandSink):
            raise ConfigError("run: expected no sink to iterate over the predictions; or await the run")
        task = asyncio.ensure_future(self._run())
        task.add_done_callback(lambda _: sink.hand.put_nowait(None))
        sink = self._sink
        try:
            while (predictions := await sink.hand.get()) is not None:
                for prediction in predictions:
                    yield prediction
                sink.taken.set()
            await task
        finally:
            self.stop()
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> RunReport:
        try:
            if not await self._begun():
                return self.now()
            reader = asyncio.ensure_future(self._read())
            worker = asyncio.ensure_future(self._work())
            try:
                await self._wait(reader, worker)
            finally:
                for task in (reader, worker):
                    task.cancel()
                await asyncio.gather(reader, worker, return_exceptions=True)
            return self.now()
        finally:
            await self._feed.close()
            await self._sink.close()
            if self._checkpoints is not None:
                self._checkpoints.close()

    async def _begun(self) -> bool:
        """Begin; False if the run was stopped before, as while a sink's peer cannot be reached."""
        beginning = asyncio.ensure_future(self._begin())
        stopped = asyncio.ensure_future(self._stop.wait())
        either: set[asyncio.Future[Any]] = {beginning, stopped}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if beginning.done():
            beginning.result()
            return True
        beginning.cancel()
        await asyncio.wait({beginning})
        return False

    async def _wait(self, reader: asyncio.Future[None], worker: asyncio.Future[None]) -> None:
        stopped = asyncio.ensure_future(self._stop.wait())
        either: set[asyncio.Future[Any]] = {worker, stopped}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not worker.done():
            reader.cancel()
            self._queue.close()
            await asyncio.wait({worker}, timeout=self._settings.drain_s)
            if not worker.done():
                raise FeedError(
                    f"sink '{self._sink.name}': did not take what was read within {self._settings.drain_s} s after the "
                    "run was stopped; the last checkpoint stands"
                )
        worker.result()

    async def _begin(self) -> None:
        """Take up where the last process was, if there is a checkpoint."""
        saved = None
        if self._settings.snapshot_dir is not None:
            self._checkpoints = Checkpoints(self._settings.snapshot_dir)
            saved = self._checkpoints.load()
        if saved is None:
            await self._sink.open(None)
            await self._save()  # so a sink that holds something already is known as ours
            return
        _check_place("feed", saved.feed, self._feed.name, known=saved.feed_position is not None)
        _check_place("sink", saved.sink, self._sink.name, known=self._sink.rewinds)
        for stream_id, snapshot in saved.streams.items():
            self._feeder.restore(stream_id, snapshot)
        self._before = saved.counts
        self.report.frames, self.report.predictions = (saved.counts.get(name, 0) for name in ("frames", "predictions"))
        self.report.errors.update({name: n for name, n in saved.counts.items() if name not in COUNTS})
        self._state = saved
        self._state.feed, self._state.sink = self._feed.name, self._sink.name
        await self._sink.open(saved.sink_position)
        journal = self._checkpoints.journal if self._checkpoints else None
        if journal is not None:
            self._skip = 0 if self._sink.rewinds else journal.n_out
            await self._out(self._feed_samples((None, sample) for sample in journal.samples))
            self.report.frames += len(journal.samples)
        self._saved_s = time.monotonic()

    async def _read(self) -> None:
        error: Exception | None = None
        frames = self._feed.frames(self._state.feed_position)
        try:
            async for frame in frames:
                await self._queue.put(frame)
        except Exception as raised:  # whatever it is, what was read goes out first; then take() raises it
            error = raised
        finally:
            self._queue.close(error)
            if isinstance(frames, AsyncGenerator):
                await frames.aclose()

    async def _work(self) -> None:
        while frames := await self._queue.take(MOST_FRAMES):
            await self._batch(frames)
            await asyncio.sleep(0)
        goes_on = self._checkpoints is not None and (self._stop.is_set() or self._queue.error is not None)
        if not goes_on:
            await self._out(self._end_all())
        await self._save()
        if self._queue.error is not None:
            raise self._queue.error

    async def _batch(self, frames: list[Frame]) -> None:
        samples = [(frame, sample) for frame in frames if (sample := self._decode(frame)) is not None]
        if not self._feed.replays and self._checkpoints is not None and self._checkpoints.journal is not None:
            self._checkpoints.journal.add([sample for _, sample in samples])
        await self._out(self._feed_samples(samples))
        now = time.perf_counter_ns()
        for frame in frames:
            self.report.end_to_end.record(max(0, now - frame.read_ns))
            if frame.done is not None:
                frame.done()
        self._state.feed_position = frames[-1].position
        self.report.frames += len(frames)
        if time.monotonic() - self._saved_s > self._settings.snapshot_every_s:
            await self._save()

    def _decode(self, frame: Frame) -> Sample | None:
        default = frame.stream_id or DEFAULT_ID
        try:
            if frame.too_long:
                raise FrameError("too_long", f"{frame.where}: expected up to {LONGEST_FRAME} bytes, got more")
            return self._feed.decoder.sample(frame.data, frame.where, default)
        except FrameError as error:
            self._refused(error, None)
            return None

    def _feed_samples(self, samples: Iterable[tuple[Frame | None, Sample]]) -> list[Prediction]:
        made: list[Prediction] = []
        for frame, sample in samples:
            try:
                made += self._feeder.feed(sample)
            except EdgeseqError as error:
                self._refused(error, frame)
                made += self._owed(sample.stream_id)
        return made

    def _end_all(self) -> list[Prediction]:
        made: list[Prediction] = []
        for stream_id in self._feeder.ids:
            try:
                made += self._feeder.flush(stream_id)
            except EdgeseqError as error:
                self._refused(error, None)
                made += self._owed(stream_id)
        return made

    def _owed(self, stream_id: str) -> list[Prediction]:
        """What was made by a call that raised: a snapshot must not hold any of it."""
        return self._feeder.drain(stream_id) if stream_id in self._feeder else []

    def _refused(self, error: EdgeseqError, frame: Frame | None) -> None:
        kind = kind_of(error)
        self.report.errors[kind] += 1
        if self._settings.on_error is not None:
            where = "" if frame is None else f"{frame.where}: "
            self._settings.on_error(kind, f"{where}{error}", self.report.errors[kind])

    async def _out(self, predictions: list[Prediction]) -> None:
        new = predictions[self._skip :]
        self._skip -= len(predictions) - len(new)
        if new:
            await self._sink.write(new)
            if not self._sink.rewinds and self._checkpoints is not None and self._checkpoints.journal is not None:
                self._checkpoints.journal.out(len(new))
        for prediction in predictions:
            self.report.saw(prediction)

    async def _save(self) -> None:
        if self._checkpoints is None:
            return
        state, report = self._state, self.now()
        state.sink_position = await self._sink.flush()
        state.streams = {stream_id: self._feeder.snapshot(stream_id) for stream_id in self._feeder.ids}
        state.counts = {**report.errors, **{name: getattr(report, name) for name in COUNTS}}
        await asyncio.to_thread(self._checkpoints.save, state)
        self._saved_s = time.monotonic()

    def now(self) -> RunReport:
        """The report as of now."""
        report, before = self.report, self._before
        report.dropped = before.get("dropped", 0) + self._queue.dropped
        report.waits = before.get("waits", 0) + self._queue.waits
        report.queued, report.streams = len(self._queue), len(self._feeder)
        report.samples = self._feeder.counters
        report.transport = {**self._feed.counts, **self._sink.counts}
        return report


def _check_place(what: str, before: str, now: str, *, known: bool) -> None:
    if known and before.partition("?")[0] != now.partition("?")[0]:
        raise SnapshotError(
            f"snapshots: expected the {what} of the run that they were taken of, {before!r}, got {now!r}; use another "
            "--snapshot-dir, or an empty one, for another run"
        )


class _HandSink:
    """Hands predictions to whoever iterates over the run."""

    name = "iterator"
    rewinds = False

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.hand: asyncio.Queue[Sequence[Prediction] | None] = asyncio.Queue()
        self.taken = asyncio.Event()

    async def open(self, _position: Any, /) -> None:
        """Nothing to do."""

    async def write(self, predictions: Sequence[Prediction], /) -> None:
        """Hand over, and wait until they are taken."""
        self.taken.clear()
        await self.hand.put(predictions)
        await self.taken.wait()

    async def flush(self) -> Any:
        """There is no position."""
        return 0

    async def close(self) -> None:
        """Nothing to do."""


def run(
    model: Model,
    feed: str | Feed,
    sink: str | Sink | None = None,
    settings: RunSettings | None = None,
) -> Run:
    """Let a model predict what comes from a feed, into a sink; both are addresses, or objects of your own.

    Await what this returns for a ``RunReport`` once the feed ends; or, without a sink, iterate over the predictions
    with ``async for``.

    Raises:
        ConfigError, MissingDependencyError: an address that cannot be, or settings that do not fit the model.
        FeedError: when awaited: the feed or the sink broke.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from edgeseq import runtime as rt
        >>> model = rt.load("tests/data/tiny.stream.onnx")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sent = Path(folder, "walk.csv")
        ...     _ = sent.write_text("sequence,x,y,z\\n" + "".join(f"{i},0.1,0.2,9.8\\n" for i in range(5)))
        ...     async def labels():
        ...         return [prediction.label async for prediction in run(model, f"csv:{sent}")]
        ...     len(asyncio.run(labels()))
        5
    """
    if isinstance(feed, str):
        feed = open_feed(feed, model)
    if isinstance(sink, str):
        sink = open_sink(sink)
    return Run(model, feed, sink, settings or RunSettings())
