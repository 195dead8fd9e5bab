"""A run in this process: equal to the direct replay, bounded, counted, and ended in order."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from edgeseq import runtime as rt
from edgeseq.errors import ConfigError, FeedError, SnapshotError
from edgeseq.runtime import feeds
from edgeseq.runtime.feeds.decode import JsonDecoder
from edgeseq.runtime.feeds.frame_queue import FrameQueue
from tests.runtime.feeds.brokers import free_port
from tests.runtime.feeds.running import MODEL, as_json, direct, read, walk, write_csv, write_jsonl


class ListFeed:
    """Frames from a list, counting how many were read; it may break, or wait at the end."""

    name = "list"
    replays = False

    def __init__(self, samples: Sequence[rt.Sample], *, broken: Exception | None = None) -> None:
        self.decoder = JsonDecoder()
        self.counts: dict[str, int] = {}
        self.n_read = 0
        self.done: list[int] = []
        self._samples, self._broken = samples, broken

    async def frames(self, _position: Any, /) -> AsyncIterator[feeds.Frame]:
        for i, sample in enumerate(self._samples):
            self.n_read += 1
            yield feeds.Frame(as_json(sample).encode(), f"frame {i}", done=lambda i=i: self.done.append(i))  # type: ignore[misc]
        if self._broken is not None:
            raise self._broken

    async def close(self) -> None:
        pass


class ListSink:
    """Predictions into a list, once ``gate`` is open; it may break."""

    name = "list"
    rewinds = False

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.got: list[dict[str, Any]] = []
        self.gate = asyncio.Event()
        self.broken: Exception | None = None

    async def open(self, _position: Any, /) -> None:
        pass

    async def write(self, predictions: Sequence[rt.Prediction], /) -> None:
        await self.gate.wait()
        if self.broken is not None:
            raise self.broken
        self.got += [p.to_dict() for p in predictions]

    async def flush(self) -> Any:
        return 0

    async def close(self) -> None:
        pass


@pytest.mark.parametrize("write", [write_jsonl, write_csv])
def test_files_equal_the_direct_replay(tmp_path: Path, write: Any) -> None:
    samples = walk(100)
    sent = write(tmp_path / "sent", samples)
    scheme = "jsonl" if write is write_jsonl else "csv"

    async def go() -> feeds.RunReport:
        return await rt.run(rt.load(MODEL), f"{scheme}:{sent}", f"jsonl:{tmp_path}/out")

    report = asyncio.run(go())
    assert read(tmp_path / "out") == direct(samples)
    assert (report.frames, report.predictions, report.streams) == (300, 300, 3)
    assert report.step.count == report.end_to_end.count == 300


def test_iterating_gives_the_predictions_and_may_end_early(tmp_path: Path) -> None:
    samples = walk(100)
    sent = write_jsonl(tmp_path / "sent", samples)

    async def some(most: int) -> list[dict[str, Any]]:
        got: list[dict[str, Any]] = []
        async for prediction in rt.run(rt.load(MODEL), f"jsonl:{sent}"):
            got.append(prediction.to_dict())
            if len(got) == most:
                break
        return got

    assert asyncio.run(some(10_000)) == direct(samples)
    assert asyncio.run(some(7)) == direct(samples)[:7]


def test_a_slow_sink_stops_the_reading_and_nothing_is_lost() -> None:
    samples = walk(1000, ["w"])
    feed, sink = ListFeed(samples), ListSink()

    async def go() -> feeds.RunReport:
        task = asyncio.ensure_future(feeds.run(rt.load(MODEL), feed, sink, feeds.RunSettings(queue=10))._run())
        await asyncio.sleep(0.2)
        assert feed.n_read <= 10 + 64 + 1  # the queue, a batch, and one that waits for room
        assert feed.done == []
        sink.gate.set()
        return await task

    report = asyncio.run(go())
    assert report.waits > 0
    assert report.dropped == 0
    assert sink.got == direct(samples)
    assert feed.done == list(range(1000))


def test_drop_oldest_drops_and_counts() -> None:
    samples = walk(1000, ["w"])
    feed, sink = ListFeed(samples), ListSink()
    clock = rt.SensorClock(rate_hz=50, gap="hold", jump_s=1000)
    settings = feeds.RunSettings(queue=10, when_full="drop_oldest", clock=clock)

    async def go() -> feeds.RunReport:
        task = asyncio.ensure_future(feeds.run(rt.load(MODEL), feed, sink, settings)._run())
        await asyncio.sleep(0.3)
        assert feed.n_read == 1000
        sink.gate.set()
        return await task

    report = asyncio.run(go())
    assert report.dropped > 900
    assert report.frames + report.dropped == 1000
    assert sorted(feed.done) == list(range(1000))
    assert sink.got[-1]["time_s"] == samples[-1].timestamp_s  # the newest is there; what was dropped is held
    assert 900 < report.samples.filled <= report.dropped


def test_what_was_read_before_a_feed_broke_is_out() -> None:
    samples = walk(10)
    feed, sink = ListFeed(samples, broken=FeedError("unplugged")), ListSink()
    sink.gate.set()
    with pytest.raises(FeedError, match="unplugged"):
        asyncio.run(feeds.run(rt.load(MODEL), feed, sink)._run())
    assert sink.got == direct(samples)


def test_a_sink_that_breaks_ends_the_run_and_acknowledges_nothing() -> None:
    feed, sink = ListFeed(walk(10)), ListSink()
    sink.gate.set()
    sink.broken = FeedError("the disk is full")
    with pytest.raises(FeedError, match="the disk is full"):
        asyncio.run(feeds.run(rt.load(MODEL), feed, sink)._run())
    assert feed.done == []


def test_a_sink_that_is_stuck_holds_a_stopped_run_up_only_so_long() -> None:
    feed, sink = ListFeed(walk(10)), ListSink()

    async def go() -> None:
        run = feeds.run(rt.load(MODEL), feed, sink, feeds.RunSettings(drain_s=0.05))
        task = asyncio.ensure_future(run._run())
        await asyncio.sleep(0.1)
        run.stop()
        await task

    with pytest.raises(FeedError, match=r"did not take what was read within 0.05 s"):
        asyncio.run(go())


def test_a_run_can_be_stopped_while_its_sink_cannot_be_reached(tmp_path: Path) -> None:
    async def go() -> feeds.RunReport:
        run = feeds.run(rt.load(MODEL), ListFeed(walk(3)), f"mqtt://127.0.0.1:{free_port()}/out")
        task = asyncio.ensure_future(run._run())
        await asyncio.sleep(0.2)
        assert not task.done()
        run.stop()
        return await asyncio.wait_for(task, 10)

    assert asyncio.run(go()).frames == 0


def test_errors_of_samples_are_counted_told_and_left_out(tmp_path: Path) -> None:
    samples = walk(4, ["w"])
    lines = [as_json(s) for s in samples]
    lines[2:2] = ['{"stream_id": 7, "values": [1, 2, 3]}', '{"stream_id": "w", "values": {"x": 1, "q": 2}}', "[" * 5000]
    lines += [as_json(rt.Sample("w", [1, 2, 3], 900.0, 44_000)), as_json(rt.Sample("w", [1, 2, 3], 6 / 50, 6))]
    (tmp_path / "sent").write_text("\n".join(lines))
    told: list[tuple[str, str, int]] = []
    settings = feeds.RunSettings(on_error=lambda *each: told.append(each))
    run = feeds.run(rt.load(MODEL), f"jsonl:{tmp_path}/sent", f"jsonl:{tmp_path}/out", settings)
    report = asyncio.run(run._run())
    assert report.errors == {"bad_field": 1, "bad_input": 1, "not_json": 1, "clock_jump": 1, "gap": 1}
    assert read(tmp_path / "out") == direct(samples)
    assert "line 3 of" in told[0][1]
    assert "expected stream_id as text of 1 to 1000 characters, got 7" in told[0][1]
    assert "line 9 of" in told[4][1]


def test_a_folder_of_another_run_model_or_clock_is_refused(tmp_path: Path) -> None:
    samples = walk(5)
    one, other = write_jsonl(tmp_path / "one", samples), write_jsonl(tmp_path / "other", samples)
    state = tmp_path / "state"

    def go(feed: Path, out: str, **settings: Any) -> None:
        run = feeds.run(
            rt.load(MODEL),
            f"jsonl:{feed}",
            f"jsonl:{tmp_path}/{out}",
            feeds.RunSettings(snapshot_dir=state, **settings),
        )
        asyncio.run(run._run())

    go(one, "out")
    with pytest.raises(SnapshotError, match="expected the feed of the run"):
        go(other, "out")
    with pytest.raises(SnapshotError, match="expected the sink of the run"):
        go(one, "out2")
    with pytest.raises(SnapshotError, match="another clock"):
        go(one, "out", clock=rt.SensorClock(rate_hz=50, gap="hold"))
    one.write_text(one.read_text()[:300])
    with pytest.raises(FeedError, match="expected the file that the snapshot was taken with"):
        go(one, "out")
    write_jsonl(one, walk(5, seed=3))
    with pytest.raises(FeedError, match="another first line"):
        go(one, "out")
    write_jsonl(one, samples)
    os.truncate(tmp_path / "out", 100)
    with pytest.raises(FeedError, match="expected the file that the snapshot was taken with"):
        go(one, "out")
    data = bytearray((state / "run.snapshot").read_bytes())
    data[len(data) // 2] ^= 1
    (state / "run.snapshot").write_bytes(data)
    with pytest.raises(SnapshotError, match="damaged"):
        go(one, "out")


def test_settings_that_cannot_be() -> None:
    for settings, told in (
        ({"queue": 0}, "expected queue"),
        ({"when_full": "drop"}, "expected when_full"),
        ({"snapshot_every_s": 0}, "expected snapshot_every_s"),
        ({"budget_us": -1}, "expected budget_us"),
    ):
        with pytest.raises(ConfigError, match=told):
            feeds.run(rt.load(MODEL), "-", "-", feeds.RunSettings(**settings))

    async def both() -> None:
        async for _ in feeds.run(rt.load(MODEL), "-", "-"):
            pass

    with pytest.raises(ConfigError, match="expected no sink to iterate"):
        asyncio.run(both())


def test_the_queue_keeps_its_bound() -> None:
    async def go() -> None:
        queue = FrameQueue(2)
        frames = [feeds.Frame(b"", str(i)) for i in range(3)]
        await queue.put(frames[0])
        await queue.put(frames[1])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.put(frames[2]), 0.05)
        assert await queue.take(1) == frames[:1]
        await queue.put(frames[2])
        queue.close()
        assert await queue.take(10) == frames[1:]
        assert await queue.take(10) == []

    asyncio.run(go())


def test_the_metrics_tell_what_was_refused(tmp_path: Path) -> None:
    (tmp_path / "sent").write_text("{\n" + json.dumps([1, 2]) + "\n")
    run = feeds.run(rt.load(MODEL), f"jsonl:{tmp_path}/sent", f"jsonl:{tmp_path}/out")
    text = asyncio.run(run._run()).prometheus()
    assert 'edgeseq_run_frame_errors_total{kind="not_json"} 1' in text
    assert 'edgeseq_run_frame_errors_total{kind="wrong_shape"} 1' in text
    assert text.endswith("\n")
